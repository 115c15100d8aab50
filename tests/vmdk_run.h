/* SPDX-License-Identifier: MIT
 *
 * Resizing a VMDK on the host, as the operation would.
 */
#ifndef TESTS_VMDK_RUN_H
#define TESTS_VMDK_RUN_H

#include "blk_mem.h"
#include "plan.h"

struct vmdk_run_out {
    u64 length;      /* of the file, that the plan ends with */
    u64 undo;        /* sectors that the journal was shown */
    u64 undo_at[64]; /* where the first of them lie */
};

/* 0 or the error's code. Every need is granted. */
int vmdk_run(struct blk *b, u64 new_size, enum preallocation preallocation,
             struct vmdk_run_out *out, struct err *e);
/* The same for a child: its parent is open. */
int vmdk_run_child(struct blk *b, struct image *parent, u64 new_size, struct vmdk_run_out *out,
                   struct err *e);
/* The same over a memory disk, which then gets that length. */
int vmdk_run_mem(struct blk_mem *m, u64 new_size, struct err *e);
/* Opens as `name` (NULL: probed) into memory that the next call uses again. */
int vmdk_run_open(struct blk *b, const char *name, struct image *img, struct err *e);

#endif
