/* SPDX-License-Identifier: MIT
 *
 * How far a guest may make a file grow: the launcher's answer to Need.
 */
#ifndef LAUNCHER_GROWTH_H
#define LAUNCHER_GROWTH_H

#include "commands.h"
#include "disks.h"

/* The longest length that the file may reach: old length + D + D/32 + 640 MiB, where D is the
 * growth that was asked for; for what copies data, all free space but 5 % more; or old length +
 * --max-growth. */
uint64_t growth_limit(const struct job *job, const struct disk *d);

/* NO_SPACE if the file may not become so long. */
int growth_within_limit(const struct disk *d, uint64_t length, struct err *e);

/* Judges a Need: may every length in it be granted? PROTOCOL if it makes no sense, NO_SPACE if it
 * is more than the limit. */
int growth_check(const instar_Need *need, const struct disk *disks, unsigned count, struct err *e);

#endif
