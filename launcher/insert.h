/* SPDX-License-Identifier: MIT
 *
 * Zeros that are put into the middle of a file, so that what followed follows them: of a fixed VHD
 * the footer, which is never absent in this way. Few file systems can, and only in whole blocks.
 */
#ifndef LAUNCHER_INSERT_H
#define LAUNCHER_INSERT_H

#include "disks.h"

/* The unit of insertions into the file: 0 where there are none. That a file system knows them does
 * not mean that it can make one: insert_zeros() has the last word. */
uint32_t insert_unit(int fd);

/* Judges an insertion and does it. d->granted then includes it. PROTOCOL if it makes no sense,
 * NO_SPACE if it is beyond the limit, or the file system refuses; *lacking: it cannot do such a
 * thing at all, and nothing has been written to any file. */
int insert_zeros(const instar_Need *need, struct disk *disks, unsigned count, bool *lacking,
                 struct err *e);

#endif
