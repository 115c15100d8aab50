/* SPDX-License-Identifier: MIT
 *
 * What growing a qcow2 image takes: a pure function of scalars, so that every case has a unit test.
 */
#ifndef PLANNER_QCOW2_GROW_H
#define PLANNER_QCOW2_GROW_H

#include "qcow2_alloc.h"

enum qcow2_grow_action {
    QCOW2_HEADER_ONLY,          /* the L1 table is large enough */
    QCOW2_L1_IN_PLACE,          /* it can be longer within its last cluster */
    QCOW2_L1_GROW,              /* it moves; existing refcount blocks cover its new place */
    QCOW2_L1_AND_REFBLOCK,      /* and refcount blocks are added */
    QCOW2_L1_AND_REFCOUNT_GROW, /* and the refcount table moves, being too short */
};

struct qcow2_grow_in {
    struct qcow2_alloc_in alloc;
    u32 l2_bits, l1_size;
    u64 new_size; /* bytes */
    u64 extra;    /* clusters that are wanted besides the L1 table's */
};

struct qcow2_grow {
    enum qcow2_grow_action action;
    u32 l1_size;              /* entries afterwards */
    u64 l1_clusters;          /* of the new L1 table: the first of alloc.payload; 0: it stays */
    struct qcow2_alloc alloc; /* payload.cnt == 0: nothing is allocated */
};

/* ERR_INVALID_NEW_SIZE: the L1 table would pass 32 MiB. ERR_REFCOUNT_EXHAUSTED: see
 * qcow2_alloc_query(). */
int qcow2_grow_query(const struct qcow2_grow_in *in, struct qcow2_grow *out, struct err *e);

/* The most that a file of `clusters` clusters may come to in bytes when the image is resized as `a`
 * says, whatever of its tail is shared. Errors as above. Reads nothing. */
int qcow2_grow_eventual(const struct image *img, const struct resize_args *a, u64 clusters,
                        u64 *eventual, struct err *e);

/* The planner's resize step for new_size > img->size; see plan.h. */
int qcow2_plan_grow(struct image *img, const struct resize_args *a, struct plan_state *state,
                    struct sink *s, struct err *e);

#endif
