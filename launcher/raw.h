/* SPDX-License-Identifier: MIT
 *
 * Raw images whose format the user named: nothing in them means anything, so no VM is needed to
 * resize them.
 */
#ifndef LAUNCHER_RAW_H
#define LAUNCHER_RAW_H

#include "commands.h"
#include "disks.h"

/* Is this job one for the host? */
bool raw_applies(const struct job *job);

/* Judges the resize, preallocates, and fills *out as a guest would; the file's new length is out's
 * file_size_after, for disk_finish() to set. A dry run's plan is shown. */
int raw_resize(struct job *job, const struct disk *d, instar_Outcome *out, struct err *e);

#endif
