/* SPDX-License-Identifier: MIT
 *
 * What the VHDX tests share: running a resize over a disk as the operation would, and reading an
 * image through formats/.
 */
#ifndef TESTS_VHDX_RUN_H
#define TESTS_VHDX_RUN_H

#include "plan.h"
#include "vhdx_judge.h"
#include "vhdx_make.h"

struct vhdx_run {
    u64 new_size;
    enum preallocation preallocation;
    u8 random;            /* what the 32 bytes are */
    bool dry_run, refuse; /* refuse: no need is granted */
    u64 length, eventual; /* out: the file's after the plan; the most that was asked for at first */
    bool more;
    u32 needs;
};

/* Opens the image on `b` as vhdx and resizes it; 0 or the error's code. */
int vhdx_run(struct blk *b, struct vhdx_run *r, struct err *e);
/* The same over a memory disk, which then gets the plan's length. */
int vhdx_run_mem(struct blk_mem *m, struct vhdx_run *r, struct err *e);
int vhdx_resize_mem(struct blk_mem *m, u64 new_size, u8 random, struct err *e);

int vhdx_open_mem(struct blk *b, struct image *img, struct err *e);
/* Do the first `len` bytes of both disks read alike, through map()? Large disks: around what their
 * blocks' ends are. */
bool vhdx_same_content(struct blk *a, struct blk *b, u64 len);
/* Does [from, to) read zero through map()? Only around blocks' ends on large disks. */
bool vhdx_reads_zero(struct blk *b, u64 from, u64 to);

#endif
