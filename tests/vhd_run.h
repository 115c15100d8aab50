/* SPDX-License-Identifier: MIT
 *
 * Resizing a VHD on the host, as the operation would.
 */
#ifndef TESTS_VHD_RUN_H
#define TESTS_VHD_RUN_H

#include "blk_mem.h"
#include "plan.h"

/* 0 or the error's code. Every need is granted. *length: the file length that the plan ends with.
 */
int vhd_run(struct blk *b, u64 new_size, enum preallocation preallocation, u64 *length,
            struct err *e);
/* The same over a memory disk, which then gets that length. With an insert_unit it can insert. */
int vhd_run_mem(struct blk_mem *m, u64 new_size, struct err *e);
/* The sectors that the last run announced for its undo journal. */
struct vhd_undo {
    unsigned cnt;
    u64 off[8];
    u32 crc[8];
};
extern struct vhd_undo vhd_undo;
/* Opens as `name` (NULL: probed) into memory that the next call uses again. */
int vhd_run_open(struct blk *b, const char *name, struct image *img, struct err *e);

#endif
