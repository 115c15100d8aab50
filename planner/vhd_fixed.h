/* SPDX-License-Identifier: MIT
 *
 * Growing and shrinking a fixed VHD: the disk's bytes, and behind them one footer.
 */
#ifndef PLANNER_VHD_FIXED_H
#define PLANNER_VHD_FIXED_H

#include "plan.h"
#include "vhd_size.h"

int vhd_plan_grow_fixed(struct image *img, const struct resize_args *a, const struct vhd_size *to,
                        struct plan_state *state, struct sink *s, struct err *e);
/* The size stays. Bytes between the disk and its footer, as a killed shrink leaves them, go if the
 * user allowed the file to become shorter. */
int vhd_plan_mend_fixed(struct image *img, const struct resize_args *a, struct sink *s,
                        struct err *e);
int vhd_plan_shrink_fixed(struct image *img, const struct vhd_size *to, struct sink *s,
                          struct err *e);

#endif
