/* SPDX-License-Identifier: MIT
 *
 * The planner's resize step for new_size < img->size; see plan.h and qcow2_shrink.c.
 */
#ifndef PLANNER_QCOW2_SHRINK_H
#define PLANNER_QCOW2_SHRINK_H

#include "plan.h"

int qcow2_plan_shrink(struct image *img, const struct resize_args *a, struct plan_state *state,
                      struct sink *s, struct err *e);

/* Has an earlier epoch of a shrink set the new size already? */
bool qcow2_shrink_goes_on(const struct plan_state *state);

#endif
