/* SPDX-License-Identifier: MIT
 *
 * Whether an Outcome can be believed, and the words for its error.
 */
#ifndef LAUNCHER_OUTCOME_H
#define LAUNCHER_OUTCOME_H

#include "commands.h"
#include "disks.h"

/* 0: the operation was done, or waits for a file that the image names (need_file), and each number that the launcher acts on lies within what was
 * granted. -1: the guest's own error, put into words, or PROTOCOL. */
int outcome_check(const instar_Outcome *out, const struct job *job, const struct disk *disks,
                  struct err *e);

/* Puts an error of the contract into words; returns -1. */
int outcome_error(const instar_Error *error, const struct job *job, struct err *e);

#endif
