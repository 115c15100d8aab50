/* SPDX-License-Identifier: MIT
 *
 * qcow2 reference counts: looking one up, and emitting patches that change a run of them.
 * Source: docs/interop/qcow2.txt, "Host cluster management".
 */
#ifndef PLANNER_QCOW2_REFCOUNT_H
#define PLANNER_QCOW2_REFCOUNT_H

#include "plan.h"

/* A run of host clusters, by index. */
struct cluster_run {
    u64 first, cnt;
};

/* Entry i of an array of counts, 2^order bits wide each, as refcount blocks hold them. */
u64 qcow2_count_get(const u8 *p, u32 order, u64 i);
void qcow2_count_put(u8 *p, u32 order, u64 i, u64 v);

/* qcow2_refblock() for a block that will be relied on: it must itself be counted, once.
 * ERR_INCONSISTENT. */
int qcow2_refblock_sound(struct image *img, u64 idx, u64 *off, struct err *e);

/* The same, where the block's cluster and its count are known. */
int qcow2_refblock_check(const struct image *img, u64 cluster_idx, u64 count, struct err *e);

/* Looks through block `block`, at `off`. *empty: it counts nothing but, perhaps, itself. *last: the
 * index of the last cluster that it does count; else unchanged. */
int qcow2_refblock_look(struct image *img, u64 block, u64 off, bool *empty, u64 *last,
                        struct err *e);

/* The count of cluster `idx` (an index, not an offset); 0 where no block covers it. */
int qcow2_refcount_get(struct image *img, u64 idx, u64 *count, struct err *e);

/* Emits what one epoch does to refcount block `block`, which stands at `off`. fresh: the block is
 * not on the disk yet and begins as zeros.
 * drop_cnt == 0: the counts of `set` become one. Else: the counts of all `drop` runs become one
 * less (a zero stays zero), and `set` is what an earlier patch of the epoch has set, or NULL:
 * narrow entries may share a byte with it. No byte is emitted twice by one call. */
int qcow2_refcount_emit(struct image *img, struct sink *s, u64 block, u64 off, bool fresh,
                        const struct cluster_run *set, const struct cluster_run *drop,
                        unsigned drop_cnt, const char *why, struct err *e);

#endif
