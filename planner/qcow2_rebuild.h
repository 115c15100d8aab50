/* SPDX-License-Identifier: MIT
 *
 * The stage that an image with the dirty bit goes through before anything else: its reference
 * counts may be wrong, and are worked out anew from what its metadata refers to.
 */
#ifndef PLANNER_QCOW2_REBUILD_H
#define PLANNER_QCOW2_REBUILD_H

#include "plan.h"

/* One epoch of a resize, after which others follow. a->work holds as many counts as fit; with less
 * of it there are more passes over the metadata. Sets state->more, stage and eventual.
 * ERR_OVERLAY_CORRUPT: an entry is invalid, or a cluster serves two purposes. ERR_INVALID_NEW_SIZE,
 * ERR_REFCOUNT_EXHAUSTED: the image cannot have what is asked for. */
int qcow2_plan_rebuild(struct image *img, const struct resize_args *a, struct plan_state *state,
                       struct sink *s, struct err *e);

#endif
