/* SPDX-License-Identifier: MIT
 *
 * A safe rebase of a VMDK overlay, but for its descriptor: what differs between the old chain and
 * the new one becomes the overlay's own, so that it may stand on either. Through the old chain the
 * guest sees the same before, between and after the epochs.
 */
#ifndef PLANNER_VMDK_REBASE_COPY_H
#define PLANNER_VMDK_REBASE_COPY_H

#include "plan.h"

/* Before anything is changed: refuses what cannot be copied into, or read. */
int vmdk_rebase_check(const struct image *img, const struct rebase_args *a, struct err *e);
/* Has the first epoch been? */
bool vmdk_rebase_goes_on(const struct plan_state *state);
/* One epoch. *done: nothing is left to copy, and nothing has been emitted; else state->more is set.
 * With a->count it is done at once. Counts in state->clusters_copied and bytes_copied. */
int vmdk_rebase_copy(struct image *img, const struct rebase_args *a, struct plan_state *state,
                     struct sink *s, bool *done, struct err *e);

#endif
