/* SPDX-License-Identifier: MIT
 *
 * Where the blocks of a dynamic VHD lie: the whole BAT is read, in large pieces, and proved sound
 * (no block overlaps another or the metadata, none lies past the end), however long it is: what
 * does not fit into memory takes more passes. Then gaps between blocks can be found, and blocks
 * near the end of the file that would fill them.
 */
#ifndef PLANNER_VHD_BLOCKS_H
#define PLANNER_VHD_BLOCKS_H

#include "plan.h"

enum { VHD_MOVES = 256 }; /* blocks that move in one epoch, at most */

struct vhd_blocks {
    struct image *img;
    u8 *buf; /* a piece of the BAT */
    u32 *
        starts; /* by bucket of one block's span: the first sector of the block that begins in it */
    u64 cap;    /* buckets in memory */
    u64 buckets; /* that the file has */
    u64 top;     /* the bucket of the highest block */
};

struct vhd_found {
    u64 used_end;               /* where the last structure ends that the disk needs */
    u64 blocks_end;             /* the same, but for the BAT */
    u64 next;                   /* the first block behind the BAT, or where none can be any more */
    u64 stale_first, stale_end; /* entries from `keep` on that name a block; none: both 0 */
};

struct vhd_move {
    u64 idx, from, to; /* BAT entry, bytes */
};

void vhd_blocks_init(struct vhd_blocks *b, struct image *img, const struct resize_args *a);
/* Entries from `keep` on are past the end of the disk: they must be sound as well, but are not what
 * the disk needs. ERR_OVERLAY_CORRUPT. */
int vhd_blocks_scan(struct vhd_blocks *b, u64 keep, struct vhd_found *f, struct err *e);
/* After a scan that fitted into memory: the first gap of `len` bytes at `from` or behind it; it may
 * lie behind all that is used. */
u64 vhd_blocks_gap(const struct vhd_blocks *b, u64 from, u64 len);
/* After such a scan: the highest blocks, and gaps below them. m has room for VHD_MOVES; *cnt is 0
 * if no block can move down; else gaps cannot be asked for afterwards, and *end is where the last
 * block ends when they have moved. */
int vhd_blocks_moves(struct vhd_blocks *b, struct vhd_move *m, u64 *cnt, u64 *end, struct err *e);
/* Was there memory for the whole file? */
bool vhd_blocks_whole(const struct vhd_blocks *b);

#endif
