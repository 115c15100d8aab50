/* SPDX-License-Identifier: MIT
 *
 * Allocating qcow2 host clusters at the end of the file, with the refcount blocks and, where it is
 * too short, the refcount table that counting them takes. Placement is a pure function of scalars;
 * the rest emits patches. Source: docs/interop/qcow2.txt, "Host cluster management".
 */
#ifndef PLANNER_QCOW2_ALLOC_H
#define PLANNER_QCOW2_ALLOC_H

#include "qcow2_refcount.h"

/* Refcount blocks from the first new cluster on that a plan looks at. More are never needed: the
 * largest thing that is allocated is an L1 table (32 MiB) with a refcount table (8 MiB). */
enum { QCOW2_ALLOC_BLOCKS = 2048 };

/* Bytes of clusters, counted past the end of the file, that are stepped over. */
enum { QCOW2_SKIP_MAX = 256 << 20 };

struct qcow2_alloc_in {
    u32 cluster_bits, refcount_order, refcount_table_clusters;
    u64 first_free;   /* cluster index: nothing is in use from here on */
    const u8 *exists; /* bit i: refcount block (first_free >> refblock bits) + i exists */
    u64 written;      /* so many clusters from first_free on hold payload already: see below */
};

struct qcow2_alloc {
    u64 written; /* clusters before these that are counted with them */
    struct cluster_run refblocks, reftable, payload; /* adjacent, in this order; cnt may be 0 */
    u64 end;                                         /* cluster index: the file's new length */
    u64 block_first, blocks; /* indices of the refcount blocks that count all these clusters */
};

/* Where `clusters` (> 0) clusters of payload go. ERR_REFCOUNT_EXHAUSTED: the refcount table would
 * pass 8 MiB, or the file 2^56 bytes. */
int qcow2_alloc_query(const struct qcow2_alloc_in *in, u64 clusters, struct qcow2_alloc *out,
                      struct err *e);

/* The same for an image: behind the end of its file, past clusters that are counted there already.
 * Also proves the refcount blocks sound that the plan will change: those of the new clusters, and
 * those of the `n` runs of clusters that it means to give back. */
int qcow2_alloc_place(struct image *img, u64 clusters, const struct cluster_run *free, unsigned n,
                      struct qcow2_alloc *out, struct err *e);

/* The same where the first `written` clusters, from `first` on, have been written to, past the end
 * that the file had, and not been counted; the file ends behind them, and `clusters` more may be 0.
 * ERR_HEADER_MISMATCH if something is counted there: see qcow2_alloc_free(). */
int qcow2_alloc_place_written(struct image *img, u64 first, u64 written, u64 clusters,
                              struct qcow2_alloc *out, struct err *e);
/* *free: nothing is counted in the next so many clusters past the end of the file, and the refcount
 * table is long enough for them. */
int qcow2_alloc_free(struct image *img, u64 clusters, bool *free, struct err *e);

/* The most bytes that the file comes to if the refcount table of `a` moves first, and then what `a`
 * places is placed once more. */
u64 qcow2_alloc_moved_end(const struct image *img, const struct qcow2_alloc *a);

/* Emits the counts of all new clusters and, if there is one, the new refcount table; then a
 * barrier; then the entries of new blocks in the old table if it stays, and a barrier. Whatever
 * the new clusters hold must have been emitted before. */
int qcow2_alloc_emit(struct image *img, const struct qcow2_alloc *a, struct sink *s, struct err *e);

/* Lowers the counts of all `n` runs by one each. `a`: what the epoch allocated, or NULL. */
int qcow2_release(struct image *img, const struct qcow2_alloc *a, const struct cluster_run *runs,
                  unsigned n, struct sink *s, const char *why, struct err *e);

/* A whole epoch: the refcount table of `a`, which has one, comes into force without the payload.
 * The next placement of the same payload then finds a table that is long enough. */
int qcow2_alloc_move_reftable(struct image *img, const struct qcow2_alloc *a, struct sink *s,
                              struct err *e);

/* The most bytes that a file of `size` bytes may come to by allocating `clusters` clusters, in any
 * number of epochs. */
u64 qcow2_alloc_eventual(const struct image *img, u64 size, u64 clusters);

#endif
