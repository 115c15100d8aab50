/* SPDX-License-Identifier: MIT
 *
 * One persistent bitmap of a disk that changes its size: what becomes of it, and the patches. In
 * which order bitmaps are taken on, and when they are valid, is qcow2_bitmaps.c's.
 */
#ifndef PLANNER_QCOW2_BITMAP_CHANGE_H
#define PLANNER_QCOW2_BITMAP_CHANGE_H

#include "qcow2_bitmap.h"
#include "qcow2_drop.h"

struct qcow2_bitmap_change {
    struct qcow2_bitmap b;
    bool none;
    u64 had;               /* clusters of its table now */
    u64 entries, clusters; /* of its table afterwards */
    u64 table;             /* the same clusters, if it moves; 0: it stays */
    u64 last, in; /* the last cluster of bits that stays, and how many bits stay in it; 0: all */
    u64 bits;     /* the offset of that cluster, if the bits in it change; 0: there is none */
    bool fresh;   /* it stands for ones in the table, and becomes a cluster */
};

/* What becomes of the bitmap at byte `at` of the directory. ERR_BITMAPS_UNSUPPORTED,
 * ERR_OVERLAY_CORRUPT: it cannot be resized. */
int qcow2_bitmap_change(struct image *img, u64 new_size, u64 at, struct qcow2_bitmap_change *c,
                        struct err *e);
/* Emits the change: no order is needed while the bitmap is stale. *next: the first new cluster that
 * nobody has; c->table + c->fresh are taken. What is cut off is listed in `drop`. work: a cluster's
 * room. */
int qcow2_bitmap_emit(struct image *img, const struct qcow2_bitmap_change *c, u64 *next, u8 *work,
                      struct qcow2_drop *drop, struct sink *s, struct err *e);

#endif
