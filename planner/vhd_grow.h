/* SPDX-License-Identifier: MIT
 *
 * Growing a dynamic VHD, and what that shares with shrinking one.
 */
#ifndef PLANNER_VHD_GROW_H
#define PLANNER_VHD_GROW_H

#include "plan.h"
#include "vhd_size.h"

enum vhd_state {
    V_SETTLE,
    V_LEAST, /* the file's length before, which only a shrink may go below */
    V_COMPACT
}; /* of plan_state.v: vhd_plan_settle() is next; and moves blocks */

int vhd_plan_grow(struct image *img, const struct resize_args *a, const struct vhd_size *to,
                  struct plan_state *state, struct sink *s, struct err *e);

/* What the footers say now. */
struct vhd_size vhd_size_now(const struct image *img);
/* Where the disk ends for the reader that sees most of it. */
u64 vhd_disk_end(const struct vhd *v, const struct vhd_size *size);
/* 0xff over [off, off+len) of a BAT: no blocks. Uses the first MiB of the memory for work. */
int vhd_fill_table(const struct resize_args *a, u64 off, u64 len, struct sink *s, const char *why,
                   struct err *e);
/* P11: the rest of the block that the disk would end in is zeroed, and its bits are cleared. */
int vhd_zero_rest(struct image *img, u64 end, struct sink *s, struct err *e);

#endif
