/* SPDX-License-Identifier: MIT
 *
 * --print-qemu: what a run would start, for the user to start by hand.
 */
#ifndef LAUNCHER_HAND_H
#define LAUNCHER_HAND_H

#include "commands.h"
#include "disks.h"

/* Writes the Request into the directory job->hand, which is made if it is not there, and prints
 * commands for a shell, with comments. Starts nothing, changes nothing else. */
int hand_print(struct job *job, const struct disk *disks, unsigned count, struct err *e);

#endif
