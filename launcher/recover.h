/* SPDX-License-Identifier: MIT
 *
 * Rolling back what an undo journal covers (undo.h): at once when a run fails, by the next
 * operation that writes, or by `instar-launch recover`. It is done only if nobody has used the
 * image since, and may be interrupted and begun again at any instant.
 */
#ifndef LAUNCHER_RECOVER_H
#define LAUNCHER_RECOVER_H

#include "commands.h"
#include "disks.h"

/* A file has just been opened: an operation that writes it rolls back first, and says so; one that
 * reads warns. -1: UNDO_PENDING or an I/O error; then nothing may be written. */
int recover_first(const struct job *job, struct disk *d, struct err *e);

/* Rolls back the epoch whose journal this run has written. QEMU must be dead. */
int recover_now(struct disk *d, struct err *e);

/* The operation: rolls back, or with --dry-run tells what it would do. */
int recover_image(struct job *job, struct err *e);

#endif
