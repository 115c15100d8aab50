/* SPDX-License-Identifier: MIT
 *
 * Raw images whose format the user named: nothing in them means anything, so no VM is needed to set
 * their length. Preallocation writes, and what writes is a guest.
 */
#ifndef LAUNCHER_RAW_H
#define LAUNCHER_RAW_H

#include "commands.h"
#include "disks.h"

/* Is this job one for the host? */
bool raw_applies(const struct job *job);

/* Judges the resize and fills *out as a guest would; the file is not touched yet: its new length is
 * out's file_size_after. A dry run's plan is shown. */
int raw_resize(struct job *job, const struct disk *d, instar_Outcome *out, struct err *e);

#endif
