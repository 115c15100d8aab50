/* SPDX-License-Identifier: MIT
 *
 * How the launcher fails. A function returns 0, or -1 with *e filled; the first failure wins. The
 * text is for people and may have several lines; it is escaped when it is printed, so that bytes of
 * file names and of QEMU's messages may stand in it as they are. What the guest sent is escaped
 * when it is put in (text.h), since a newline of the guest's is not one of ours.
 */
#ifndef LAUNCHER_ERR_H
#define LAUNCHER_ERR_H

#include "instar.pb.h"

struct err {
    instar_Code code; /* OK: no failure */
    int signal;       /* the signal that interrupted the run, or 0 */
    char *text;       /* owned */
};

/* Fills *e unless it holds a failure already; returns -1. */
int err_set(struct err *e, instar_Code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts something before the text of a failure. */
void err_prefix(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Adds a line to the text of a failure. */
void err_add(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Forgets the failure: the caller has another way. */
void err_clear(struct err *e);

#endif
