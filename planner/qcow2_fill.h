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

/* What the fill serves; the same in every epoch. */
struct qcow2_fill_args {
    enum qcow2_fill_kind kind;
    u64 end;                          /* of the new disk */
    enum preallocation preallocation; /* FALLOC, FULL: the host allocates the data clusters */
    u8 *work;                         /* QCOW2_FILL_WORK bytes */
    const u8 *head; /* content of the first cluster of all, which becomes a data cluster, in an */
    u64 head_at;    /* epoch that begins at voff head_at: the rest of a unit is zero; NULL: none */
    u64 head_len;
};

enum { QCOW2_FILL_WORK = PLAN_PREALLOCATE_WORK };

/* One epoch: maps a batch of clusters from *voff (cluster aligned, >= the disk's end rounded down)
 * towards `end`, and moves *voff on; it is done when *voff >= end. The L1 table must reach `end`
 * already and hold nothing past the disk's end; an L2 table that exists must not be shared. An
 * epoch may be spent on the refcount table alone: *voff stays. */
int qcow2_fill_step(struct image *img, const struct qcow2_fill_args *a, u64 *voff, struct sink *s,
                    struct err *e);

/* The most bytes that a file of `size` bytes may come to by mapping [voff, end). */
u64 qcow2_fill_eventual(const struct image *img, enum qcow2_fill_kind kind, u64 size, u64 voff,
                        u64 end);
/* Before the first epoch: refuses what would stop a later one, for the file will be changed by
 * then. *size: what the file is long before the fill; it is raised past clusters that are counted
 * already where the fill is to allocate. *eventual: the most bytes that the file may come to by
 * mapping [voff, a->end). Works in work[len], PLAN_WORK bytes. */
int qcow2_fill_foresee(struct image *img, const struct qcow2_fill_args *a, u64 voff, void *work,
                       size_t len, u64 *size, u64 *eventual, struct err *e);

#endif
