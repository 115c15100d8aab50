/* SPDX-License-Identifier: MIT
 *
 * A list of references to qcow2 host clusters that are going away: collected from L2 tables in any
 * order, sorted, then emitted as lowered counts, block by block, so that a list of any order costs
 * each refcount block one read and one write. A cluster may be listed more than once. What becomes
 * free is remembered until the end of the plan, so that neighbours are punched as one hole.
 */
#ifndef PLANNER_QCOW2_DROP_H
#define PLANNER_QCOW2_DROP_H

#include "qcow2_refcount.h"

enum {
    QCOW2_DROP_CHUNK = 64 << 10, /* bytes of a refcount block per patch */
    QCOW2_DROP_FREED =
        8 << 20,          /* bytes of the map of freed clusters; those past it stay unpunched */
    QCOW2_DROP_ENTRY = 4, /* clusters that one L2 entry can refer to, at most */
};

struct qcow2_drop {
    u64 *idx, *tmp; /* cluster indices */
    u64 cnt, cap;
    u8 *freed;               /* bit i: cluster i has no reference left */
    u8 *buf;                 /* QCOW2_DROP_CHUNK bytes */
    u64 file_size;           /* whole clusters, as the epoch found it: both passes see the same */
    u64 *spared, spared_cnt; /* refcount blocks, by cluster index, ascending */
    u64 plain;               /* from here on in the file stands no table that the header names */
};

/* Sorts a[0..cnt) with the help of tmp, as long; returns whichever of the two holds the result.
 * Bits below from_bit do not count. cnt < 2^32. */
u64 *qcow2_sort(u64 *a, u64 *tmp, u64 cnt, u32 from_bit);

/* An empty list in the caller's memory, `len` bytes: PLAN_WORK. `fresh`: nothing was freed yet. */
void qcow2_drop_init(const struct image *img, struct qcow2_drop *d, void *mem, size_t len,
                     bool fresh);
/* From now on no reference to a refcount block is dropped, whatever an L2 entry says: it leaks. */
int qcow2_drop_spare_blocks(struct image *img, struct qcow2_drop *d, struct err *e);
/* Is there room for the references of n more L2 entries? */
bool qcow2_drop_room(const struct qcow2_drop *d, u64 n);
/* Lists one cluster. */
void qcow2_drop_add(struct qcow2_drop *d, u64 cluster_idx);
/* Lists what an L2 entry refers to. An entry that no sound image has lists nothing: what it names
 * leaks, it is not freed. */
void qcow2_drop_entry(struct image *img, struct qcow2_drop *d, u64 entry);
/* Remembers that a cluster has no reference left. */
void qcow2_drop_freed(struct qcow2_drop *d, u64 cluster_idx);
/* Emits the lowered counts and a barrier, and empties the list. A count that is zero stays zero. */
int qcow2_drop_emit(struct image *img, struct qcow2_drop *d, struct sink *s, const char *why,
                    struct err *e);
/* Emits discards for what became free below cluster index `end`, neighbours as one, `most` of them
 * at most; then a barrier if there was any. */
int qcow2_drop_punch(struct image *img, const struct qcow2_drop *d, u64 end, u64 most,
                     struct sink *s, struct err *e);

#endif
