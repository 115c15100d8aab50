/* SPDX-License-Identifier: MIT
 *
 * qcow2 reference counts: looking one up, and emitting patches that change a run of them.
 * Source: docs/interop/qcow2.txt, "Host cluster management".
 */
#ifndef PLANNER_QCOW2_REFCOUNT_H
#define PLANNER_QCOW2_REFCOUNT_H

#include "plan.h"

/* A change to the counts of clusters [first, first+cnt): set to one, or one less (never below
 * zero: an entry that is zero stays zero). */
struct refcount_run {
    u64 first, cnt;
    bool drop;
};

/* log2 of the entries of a refcount block. */
u32 qcow2_refblock_bits(const struct qcow2 *q);

/* The offset of refcount block `idx`, 0 if there is none. ERR_OVERLAY_CORRUPT: reserved bits,
 * misplaced, or on top of a table that the header names. */
int qcow2_refblock(struct image *img, u64 idx, u64 *off, struct err *e);

/* The count of cluster `idx` (an index, not an offset); 0 where no block covers it. */
int qcow2_refcount_get(struct image *img, u64 idx, u64 *count, struct err *e);

/* Emits what `run` changes in refcount block `block`, which stands at `off`. fresh: the block is
 * not on the disk yet and begins as zeros. `before`: a run that an earlier patch of this epoch
 * changed, or NULL: it may share bytes with `run` where entries are narrower than a byte. */
int qcow2_refcount_emit(struct image *img, struct sink *s, u64 block, u64 off, bool fresh,
                        const struct refcount_run *run, const struct refcount_run *before,
                        const char *why, struct err *e);

#endif
