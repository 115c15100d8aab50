/* SPDX-License-Identifier: MIT
 *
 * Builds VHD images in memory, sound ones, of every shape that the tests need. Their guest data is
 * a function of seed and sector, so that it can be told from what is stale.
 */
#ifndef TESTS_VHD_MAKE_H
#define TESTS_VHD_MAKE_H

#include "blk_mem.h"
#include "vhd.h"

enum make_geometry {
    GEOMETRY_UP,   /* the next whose product reaches the size, which becomes that (qemu's way) */
    GEOMETRY_SPEC, /* the specification's; current_size is exact */
    GEOMETRY_MAX,  /* the largest; current_size is exact */
};

struct vhd_make {
    const char *creator; /* NULL: "qemu" */
    u32 type;            /* 0: dynamic */
    u32 block_size;      /* 0: 2 MiB */
    u64 size;
    enum make_geometry geometry;
    u32 every;   /* of so many blocks one is there; 0: none */
    bool last;   /* the last block is there */
    u32 sectors; /* of each block's that hold data; 0: all */
    bool shuffled;
    u32 holes;          /* after so many blocks, one block's span stays free; 0: none */
    u32 gap;            /* sectors between the BAT and what follows */
    u32 slack;          /* sectors of old bytes between the last structure and the footer */
    u32 extra_entries;  /* of the BAT, past the end of the disk */
    bool stale_entries; /* those name blocks, full of old bytes */
    bool stale_rest;    /* old bytes past the end of the disk in its last block */
    bool stale_bits;    /* each second sector's bit is clear, above old bytes */
    bool table_last;    /* the BAT lies behind all blocks */
    bool no_tail;
    u64 seed; /* 0: 1 */
};

struct vhd_made {
    u64 size, table_offset, header_offset, used_end;
    u32 entries;
};

void vhd_make(struct blk_mem *m, const struct vhd_make *p, struct vhd_made *made);
/* Sets the checksums of the footer or the header at `off` right. */
void vhd_make_footer_sum(struct blk_mem *m, u64 off);
void vhd_make_header_sum(struct blk_mem *m, u64 off);

#endif
