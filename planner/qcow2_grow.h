/* SPDX-License-Identifier: MIT
 *
 * What growing a qcow2 image takes: a pure function of scalars, so that every case has a unit test.
 */
#ifndef PLANNER_QCOW2_GROW_H
#define PLANNER_QCOW2_GROW_H

#include "plan.h"

enum qcow2_grow_action {
    QCOW2_HEADER_ONLY,          /* the L1 table is large enough */
    QCOW2_L1_IN_PLACE,          /* it can be longer within its last cluster */
    QCOW2_L1_GROW,              /* it moves; existing refcount blocks cover its new place */
    QCOW2_L1_AND_REFBLOCK,      /* it moves, and refcount blocks are added */
    QCOW2_L1_AND_REFCOUNT_GROW, /* it moves, and the refcount table does, being too short */
};

/* A run of host clusters, by index. */
struct cluster_run {
    u64 first, cnt;
};

struct qcow2_grow_in {
    u32 cluster_bits, l2_bits, refcount_order, refcount_table_clusters, l1_size;
    u64 new_size;   /* bytes */
    u64 first_free; /* cluster index: nothing is allocated from here on */
    /* Bit i of exists: refcount block (first_free >> refblock bits) + i exists. Blocks that do not
     * fit (more than QCOW2_GROW_BLOCKS) are never needed: the L1 table has at most 32 MiB. */
    const u8 *exists;
};

enum { QCOW2_GROW_BLOCKS = 2048 };

struct qcow2_grow {
    enum qcow2_grow_action action;
    u32 l1_size;             /* entries afterwards */
    struct cluster_run refblocks, reftable, l1; /* what is allocated, in this order */
    u64 end;                 /* cluster index: the file's new length */
    u64 block_first, blocks; /* indices of the refcount blocks that count the new clusters */
};

/* ERR_INVALID_NEW_SIZE: the L1 table would pass 32 MiB. ERR_REFCOUNT_EXHAUSTED: the refcount table
 * would pass 8 MiB, or the file 2^56 bytes. */
int qcow2_grow_query(const struct qcow2_grow_in *in, struct qcow2_grow *out, struct err *e);

/* The planner's resize step for new_size > img->size; see plan.h. */
int qcow2_plan_grow(struct image *img, const struct resize_args *a, struct sink *s, struct err *e);

#endif
