/* SPDX-License-Identifier: MIT
 *
 * An image with the files that it names: run the VM, and where it asks for such a file, apply the
 * path policy, attach the file as one more disk, and run it again: one boot more a file, or for
 * all that an image consists of. All but the external data file and the extents of the image itself
 * are attached read-only. A rebase has a second chain, which begins at the new backing file; a file
 * that both need is attached once.
 */
#ifndef LAUNCHER_CHAIN_H
#define LAUNCHER_CHAIN_H

#include "commands.h"
#include "disks.h"

enum { CHAIN_DISKS = MACHINE_SLOTS };

struct chain {
    struct disk disks[CHAIN_DISKS]; /* [0]: the image that the user named */
    char *paths[CHAIN_DISKS]; /* of the others: where they were found, byte for byte */
    const char *root[CHAIN_DISKS]; /* whose directory the names obey that the disk holds: a file
                                    * that the user named; NULL: the image */
    unsigned count;
    bool stuck; /* a QEMU that does not die has the files still */
};

/* Attaches the file that is open as `fd`, found at `path`, to be the image's new backing file, of a
 * format: the second chain begins there. Both become the chain's. LOOP. */
int chain_fork(struct job *job, struct chain *c, int fd, char *path, const char *name,
               const char *format, struct err *e);

/* Runs the job over the chain, which holds the image alone, or nothing, at first. */
int chain_run(struct job *job, struct chain *c, instar_Outcome *out, struct err *e);

/* Gives every file that was written the length that the Outcome says, and makes it durable. From
 * then on there is no undo. */
int chain_finish(struct chain *c, const instar_Outcome *out, struct err *e);

/* Gives up the locks of every file, so long as nobody else can write to it. */
void chain_close(struct chain *c);

#endif
