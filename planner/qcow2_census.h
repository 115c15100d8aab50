/* SPDX-License-Identifier: MIT
 *
 * Counting what refers to each cluster of a qcow2 file, a window of clusters at a time: passes over
 * the metadata, not caps. Counts stand in the caller's memory as refcount blocks hold them.
 */
#ifndef PLANNER_QCOW2_CENSUS_H
#define PLANNER_QCOW2_CENSUS_H

#include "qcow2_refcount.h"
#include "qcow2_walk.h"

struct qcow2_census {
    struct qcow2_visitor visitor;
    struct image *img;
    const char *twice;    /* the message where a cluster is: OVERLAY_CORRUPT */
    u64 end;              /* of the file: clusters */
    u64 room;             /* refcount blocks that fit into the window */
    u8 *counts, *kinds;   /* of the window's clusters; a kind means something if its count does */
    u64 first, cnt, next; /* the window's clusters; the first one behind it that is referred to */
    bool flags;           /* some COPIED flag is missing, or may be wrong */
};

/* Divides `len` bytes: a few clusters' worth, at least. */
void qcow2_census_init(struct qcow2_census *c, struct image *img, void *mem, size_t len);
/* Does it take more than one window? */
bool qcow2_census_windows(const struct qcow2_census *c);
/* Opens a window, all counts zero, from refcount block `block` on: at most max blocks, as far as
 * the one that the end of the file lies in. */
void qcow2_census_open(struct qcow2_census *c, u64 block, u64 max);
/* Counts. tables_only: see struct qcow2_visitor; where it takes several windows, these come first,
 * so that none is read again and again that is named more often than it may be. A cluster serves
 * one purpose, and an L1 table and what hangs on it refers to it once, or the image is corrupt. */
int qcow2_census_count(struct qcow2_census *c, bool tables_only, bool refcounts, struct err *e);
/* Is it a reference with a COPIED flag that means something: the active L1 table's? */
bool qcow2_census_has_flag(const struct qcow2_ref *ref);

/* Refuses an image in which something is used twice, or more often than its refcounts say, so that
 * what is not counted can be allocated, and what is counted once be changed. Works in work[len]. */
int qcow2_census_check(struct image *img, void *work, size_t len, struct err *e);

#endif
