/* SPDX-License-Identifier: MIT
 *
 * Persistent bitmaps in a resize: what the disk gains is clean, what it loses is dropped.
 *
 * Sizes of bitmaps and of the disk cannot change in one write. So the first epoch declares the
 * bitmaps stale (autoclear bit 0), the next ones give them their new sizes in place, and the commit
 * of the resize, which follows, declares them valid. A crash in between costs the bitmaps, and
 * leaks clusters; the disk has its old size and all its data.
 */
#ifndef PLANNER_QCOW2_BITMAPS_H
#define PLANNER_QCOW2_BITMAPS_H

#include "qcow2_header.h"

/* One epoch of the resize itself. */
typedef int qcow2_resize_fn(struct image *, const struct resize_args *, struct plan_state *,
                            struct sink *, struct err *);

/* Is there a bitmap that cannot be resized, whatever the refcounts say? ERR_BITMAPS_UNSUPPORTED,
 * ERR_OVERLAY_CORRUPT. */
int qcow2_bitmaps_check(struct image *img, u64 new_size, struct err *e);
/* Does an epoch for the bitmaps come next? */
bool qcow2_bitmaps_pending(const struct image *img, const struct plan_state *state);
/* That epoch. All that can be refused is refused in the first one, before anything is emitted;
 * what `resize` would refuse is found by a rehearsal of it. */
int qcow2_plan_bitmaps(struct image *img, const struct resize_args *a, struct plan_state *state,
                       qcow2_resize_fn *resize, struct sink *s, struct err *e);
/* In the commit that sets the new size: bitmaps that were resized are valid from here on. */
void qcow2_bitmaps_revive(const struct plan_state *state, struct qcow2_header *h);

#endif
