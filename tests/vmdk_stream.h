/* SPDX-License-Identifier: MIT
 *
 * Builds streamOptimized VMDK images in memory, laid out as VMware's products do (the directory
 * behind the grains, named by a footer) or as qemu does (in front, no footer).
 */
#ifndef TESTS_VMDK_STREAM_H
#define TESTS_VMDK_STREAM_H

#include "blk_mem.h"
#include "vmdk.h"

struct vmdk_stream {
    u64 size;        /* whole sectors */
    u32 grain;       /* sectors; 0: 128 */
    u32 gtes;        /* 0: 512 */
    bool front;      /* directory and tables in front, no footer */
    bool short_last; /* the last grain's stream stops where the disk does */
    u64 child_of;    /* parentCID, of a parent named "parent.vmdk"; 0: none */
    u64 seed;
};

struct vmdk_streamed {
    u8 *plain;          /* p->size bytes: what the disk holds; free() it */
    u64 grain, gd;      /* bytes: of a grain; where the directory is */
    u64 first, last;    /* where the markers of the first and the last grain stand */
    u64 first_idx, cnt; /* which grain the first is; how many there are */
    u32 first_len;      /* of its stream */
};

void vmdk_stream(struct blk_mem *m, const struct vmdk_stream *p, struct vmdk_streamed *made);

#endif
