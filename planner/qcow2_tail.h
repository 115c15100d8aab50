/* SPDX-License-Identifier: MIT
 *
 * Invariant P11 for qcow2: what an image still maps past the old end of its disk, and how a grow
 * hides it. Entries of the last L2 table past the end are cleared; the rest of the last cluster is
 * zeroed. A cluster or table that a snapshot shares, or that is compressed, is replaced by a copy.
 */
#ifndef PLANNER_QCOW2_TAIL_H
#define PLANNER_QCOW2_TAIL_H

#include "qcow2_alloc.h"

enum { QCOW2_TAIL_CLUSTERS = 2 /* at most: an L2 table and a data cluster */ };

struct qcow2_tail {
    u64 l1_idx, l2;            /* the table that maps the old end; l2 == 0: nothing is mapped */
    u64 idx;                   /* in it: the first entry wholly past the end */
    u64 stale_first, stale_end; /* entries past the end that map something */
    u64 in;                    /* bytes of the last cluster that belong to the old disk; 0: all */
    u64 entry, bitmap;         /* the last cluster's, if in != 0 */
    bool zero;                 /* its rest must be zeroed, in place */
    bool copy_data, copy_l2;   /* these are replaced instead */
    struct extent packed;      /* the last cluster, if it is compressed */
    u64 new_l2, new_data;      /* offsets; set by qcow2_tail_place() */
    struct cluster_run free[QCOW2_TAIL_CLUSTERS];
    unsigned frees;            /* what the copies leave unused */
};

/* Finds out. ERR_INCONSISTENT: something in use is not counted. */
int qcow2_tail_look(struct image *img, struct qcow2_tail *t, struct err *e);
/* New clusters that hiding takes: 0 to QCOW2_TAIL_CLUSTERS. */
u64 qcow2_tail_clusters(const struct qcow2_tail *t);
/* The new clusters stand from cluster index `first` on. */
void qcow2_tail_place(const struct image *img, struct qcow2_tail *t, u64 first);
/* Emits zeros in place and the content of new clusters; *wrote if there was anything. */
int qcow2_tail_emit(struct image *img, const struct qcow2_tail *t, struct sink *s, bool *wrote,
                    struct err *e);
/* Emits the pointers to new clusters, which are durable and counted by now, save that of a new L2
 * table in the L1 table, if `l1_moves`. */
int qcow2_tail_link(struct image *img, const struct qcow2_tail *t, bool l1_moves, struct sink *s,
                    struct err *e);

#endif
