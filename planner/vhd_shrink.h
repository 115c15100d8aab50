/* SPDX-License-Identifier: MIT
 *
 * Shrinking a dynamic VHD, and leaving one as every reader likes it.
 */
#ifndef PLANNER_VHD_SHRINK_H
#define PLANNER_VHD_SHRINK_H

#include "plan.h"
#include "vhd_size.h"

/* Also mends what an interrupted resize left, if the size stays. */
int vhd_plan_shrink(struct image *img, const struct resize_args *a, const struct vhd_size *to,
                    struct plan_state *state, struct sink *s, struct err *e);
/* After the size has been changed: moves blocks down if state->v[V_COMPACT] says so; puts the
 * footer where the last structure ends, and cuts the file behind it. */
int vhd_plan_settle(struct image *img, const struct resize_args *a, struct plan_state *state,
                    struct sink *s, struct err *e);

#endif
