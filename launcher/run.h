/* SPDX-License-Identifier: MIT
 *
 * An operation in a VM: which accelerator, what a failure means for the image, whether the Outcome
 * can be believed.
 */
#ifndef LAUNCHER_RUN_H
#define LAUNCHER_RUN_H

#include "commands.h"
#include "disks.h"

/* Runs the operation. 0: *out says that it was done and is plausible; the files' lengths are still
 * to be set by it. -1: *e says what happened, and what that means for the image. */
int run(struct job *job, struct disk *disks, unsigned count, instar_Outcome *out, struct err *e);

/* Waits until no QEMU is left that could write to a file. -1: one does not die. */
int run_settle(struct err *e);

#endif
