/* SPDX-License-Identifier: MIT
 *
 * The path policy: which files that an image names may be opened. Roots are the directory of the
 * image that the user named and each --backing-dir, for every link of a chain. A relative name
 * belongs to the directory of the file that holds it; an absolute one must lie beneath a root. It
 * is opened relative to that root and may not leave it, by `..` or by a link. Protocols and json:
 * are never followed; the name of an external data file has none, as qemu reads it. An extent lies
 * in the directory of the file that names it, and nowhere else. A refusal reveals nothing about
 * what lies outside.
 */
#ifndef LAUNCHER_POLICY_H
#define LAUNCHER_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "err.h"

enum { POLICY_DIRS = 16 };

struct policy {
    const char *dirs[POLICY_DIRS]; /* --backing-dir, as the user typed them */
    unsigned count;
    bool forbidden; /* --no-backing */
};

/* What a file that an image names is called in messages, and its article. */
const char *policy_kind(instar_Role role);
const char *policy_article(instar_Role role);

/* Opens what the file `holder` names, need->name. `image` is the file that the user named; `holder`
 * is a path that policy_open() made, or `image` itself. Whether it may be written is the caller's
 * to say. Returns the descriptor of a regular file or a block device (no device for an extent), and
 * its path in *path, which the caller frees; -1: POLICY_REFUSED, or the file cannot be opened. */
int policy_open(const struct policy *p, const char *image, const char *holder,
                const instar_NeedFile *need, bool writable, char **path, struct err *e);

/* A name that the user typed is the user's business, and may lead anywhere; a relative one belongs
 * to the directory of the file `holder`. Opens it to be read; -1 with errno, which is 0 if it is
 * neither a regular file nor a block device. *path as above. */
int policy_open_typed(const char *holder, const char *name, char **path);

/* "proto:rest", or json:, as qemu reads it: a colon before the first slash. */
bool policy_protocol(const char *name);

#endif
