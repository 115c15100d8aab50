/* SPDX-License-Identifier: MIT
 *
 * A disk over a disk: what is written to it stays in memory, and is read back; the disk below is
 * only read. A dry run carries out its epochs on it, so that it can show the next one.
 */
#ifndef PLANNER_SCRATCH_H
#define PLANNER_SCRATCH_H

#include "blk.h"

enum { SCRATCH_PAGE = 4096 };

/* The pages that all scratch disks of a run share. */
struct scratch_pool {
    u64 *key;   /* of each slot: page number and disk, plus one; 0: free */
    u32 *at;    /* of each slot: which page of `data`; SCRATCH_ZERO: all zero */
    u8 *data;
    u32 slots, pages, used_slots, used_pages; /* slots: a power of two */
};

struct scratch {
    struct blk blk;
    struct blk *below;
    struct scratch_pool *pool;
    u8 index; /* tells disks of one pool apart */
    u64 top;  /* nothing is kept from here on */
};

/* Divides the caller's memory, 8-aligned, into slots and pages. */
void scratch_pool_init(struct scratch_pool *p, void *mem, size_t len);
/* `below` as it is now; `index` < 8. A write for which there is no
 * page left is ERR_SCRATCH_TOO_SMALL. */
void scratch_init(struct scratch *s, struct blk *below, u8 index, struct scratch_pool *p);

#endif
