/* SPDX-License-Identifier: MIT
 *
 * A list of references to qcow2 host clusters that are going away: collected from L2 tables in any
 * order, sorted, then emitted as lowered counts, block by block, so that a list of any order costs
 * each refcount block one read and one write. A cluster may be listed more than once.
 */
#ifndef PLANNER_QCOW2_DROP_H
#define PLANNER_QCOW2_DROP_H

#include "qcow2_refcount.h"

enum {
    QCOW2_DROP_CHUNK = 16 << 10, /* bytes of a refcount block per patch */
    QCOW2_DROP_ENTRY = 4,        /* clusters that one L2 entry can refer to, at most */
};

struct qcow2_drop {
    u64 *idx, *tmp; /* cluster indices */
    u64 cnt, cap;
    u64 freed; /* after qcow2_drop_emit(): idx[0..freed) have no reference left, ascending */
    u8 *buf;   /* QCOW2_DROP_CHUNK bytes */
    u64 file_size; /* whole clusters, as the epoch found it: both passes see the same */
    u64 *spared, spared_cnt; /* refcount blocks, by cluster index, ascending */
};

/* An empty list in the caller's memory, `len` bytes: PLAN_WORK. */
void qcow2_drop_init(const struct image *img, struct qcow2_drop *d, void *mem, size_t len);
/* From now on no reference to a refcount block is dropped, whatever an L2 entry says: it leaks. */
int qcow2_drop_spare_blocks(struct image *img, struct qcow2_drop *d, struct err *e);
/* Is there room for one more L2 entry's references? */
bool qcow2_drop_room(const struct qcow2_drop *d);
/* Lists one cluster. */
void qcow2_drop_add(struct qcow2_drop *d, u64 cluster_idx);
/* Lists what an L2 entry refers to. An entry that no sound image has lists nothing: what it names
 * leaks, it is not freed. */
void qcow2_drop_entry(struct image *img, struct qcow2_drop *d, u64 entry);
/* Emits the lowered counts and a barrier, and empties the list but for `freed`. A count that is zero
 * stays zero. */
int qcow2_drop_emit(struct image *img, struct qcow2_drop *d, struct sink *s, const char *why,
                    struct err *e);
/* Emits discards for freed clusters, neighbours as one, while *left lasts; then a barrier. */
int qcow2_drop_punch(struct image *img, const struct qcow2_drop *d, u64 *left, struct sink *s,
                     struct err *e);

#endif
