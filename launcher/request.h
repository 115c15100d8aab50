/* SPDX-License-Identifier: MIT
 *
 * The Request as the guest gets it: what the user's words came to, and the disks.
 */
#ifndef LAUNCHER_REQUEST_H
#define LAUNCHER_REQUEST_H

#include "commands.h"
#include "disks.h"

/* Writes it to an open, empty file. */
int request_write(struct job *job, const struct disk *disks, unsigned count, int fd, struct err *e);

#endif
