/* SPDX-License-Identifier: MIT
 *
 * Mapping an area past the end of a qcow2 disk before the disk reaches it: with data clusters
 * (preallocation), or with zero clusters that hide a backing file. A batch of L2 tables an epoch;
 * the guest sees nothing of it until the size is set.
 */
#ifndef PLANNER_QCOW2_FILL_H
#define PLANNER_QCOW2_FILL_H

#include "qcow2_tail.h"

enum qcow2_fill_kind {
    QCOW2_FILL_NONE,
    QCOW2_FILL_DATA, /* allocated clusters that read zero */
    QCOW2_FILL_ZERO, /* zero clusters without allocation; version 3 only */
};

/* One epoch: maps a batch of clusters from *voff (cluster aligned, >= the disk's end rounded down)
 * towards `end`, and moves *voff on; it is done when *voff >= end. The L1 table must reach `end`
 * already and hold nothing past the disk's end; an L2 table that exists must not be shared. An
 * epoch may be spent on the refcount table alone: *voff stays. `a`: preallocation FALLOC and FULL
 * make the host allocate the data clusters, by zeroing and by writing zeros. */
int qcow2_fill_step(struct image *img, enum qcow2_fill_kind kind, const struct resize_args *a,
                    u64 *voff, u64 end, struct sink *s, struct err *e);

#endif
