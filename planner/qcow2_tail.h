/* SPDX-License-Identifier: MIT
 *
 * Invariant P11 for qcow2: what an image maps past an end of its disk (the old one of a grow, the
 * new one of a shrink), and how that is hidden. Entries of the last L2 table past the end are
 * cleared; the rest of the last cluster is zeroed. A table or cluster that a snapshot shares, or
 * that is compressed, is replaced by a copy first.
 */
#ifndef PLANNER_QCOW2_TAIL_H
#define PLANNER_QCOW2_TAIL_H

#include "qcow2_alloc.h"

enum { QCOW2_TAIL_CLUSTERS = 2 /* at most: an L2 table and a data cluster */ };

struct qcow2_tail {
    u64 size;                   /* the end of the disk in question */
    u64 file_size[2];           /* as the epoch found them: both passes see the same */
    u64 l1_idx, l2;             /* the table that maps it; l2 == 0: nothing is mapped */
    bool l2_copied;             /* the COPIED flag of its entry */
    u64 idx;                    /* in it: the first entry wholly past the end */
    u64 stale_first, stale_end; /* entries past the end that map something */
    u64 in;                     /* bytes of the last cluster before the end; 0: all */
    u64 entry, bitmap;          /* the last cluster's, if in != 0 */
    bool zero;                  /* its rest must be zeroed, in place */
    bool beyond;                /* it reads zero because the file is too short */
    bool copy_data, copy_l2;    /* these are replaced first */
    bool whole;                 /* copies are whole: what is past the end can still be seen */
    bool own_l2;                /* the table will be written: it must not be shared */
    bool hole;                  /* the last cluster is not allocated at all */
    u64 hide;                   /* bits that the last cluster's subclusters get (extended L2), */
    bool show;                  /* and the one that holds the end gets the chain's data: see look */
    struct extent packed;       /* the last cluster, if it is compressed */
    u64 new_l2, new_data;       /* offsets; set by qcow2_tail_place() */
    struct cluster_run free[QCOW2_TAIL_CLUSTERS];
    unsigned frees; /* what the copies leave unused */
};

/* Looks at the end t->size of the disk; `size`, `whole` and `own_l2` are set, the rest is not.
 * With a backing file and own_l2, subclusters of an allocated cluster that show it past the end are
 * to read zero; one that shows it before the end, too, becomes data.
 * ERR_INCONSISTENT: something in use is not counted. ERR_LUKS_UNSUPPORTED: a key is needed. */
int qcow2_tail_look(struct image *img, struct qcow2_tail *t, struct err *e);
/* New clusters that hiding takes: 0 to QCOW2_TAIL_CLUSTERS. */
u64 qcow2_tail_clusters(const struct qcow2_tail *t);
/* The new clusters stand from cluster index `first` on. */
void qcow2_tail_place(const struct image *img, struct qcow2_tail *t, u64 first);
/* Emits the content of new clusters: copies, without what is past the end unless `whole`. */
int qcow2_tail_copy(struct image *img, const struct qcow2_tail *t, struct sink *s, struct err *e);
/* Emits the data of a subcluster that shows the backing file before the end; buf: img->unit bytes.
 */
int qcow2_tail_show(struct image *img, const struct qcow2_tail *t, u8 *buf, struct sink *s,
                    struct err *e);
/* Emits zeros over what is past the end and need not be copied. */
int qcow2_tail_zero(struct image *img, const struct qcow2_tail *t, struct sink *s, struct err *e);
/* Emits the pointers to new clusters, which are durable and counted by now, save that of a new L2
 * table in the L1 table, if `l1_moves`. */
int qcow2_tail_link(struct image *img, const struct qcow2_tail *t, bool l1_moves, struct sink *s,
                    struct err *e);
/* Entry idx of the table, and its subcluster bitmap (0 without extended L2). */
int qcow2_tail_entry(struct image *img, const struct qcow2_tail *t, u64 idx, u64 *entry,
                     u64 *bitmap, struct err *e);

#endif
