/* SPDX-License-Identifier: MIT
 *
 * What a safe rebase has to copy: where an overlay has nothing of its own, and its old chain shows
 * something else than its new one. Works for every format: what an overlay owns is what map() says.
 */
#ifndef PLANNER_REBASE_SCAN_H
#define PLANNER_REBASE_SCAN_H

#include "copy.h"
#include "plan.h"

enum {
    REBASE_WINDOW = 8 << 20, /* bytes that are read and compared together, at most */
    REBASE_RUNS = 64 << 10,
};

enum rebase_kind { REBASE_DATA, REBASE_ZERO };

/* Units `first` and following of the disk: what the old chain shows there. */
struct rebase_run {
    u64 first, host; /* host: the planner's own */
    u32 cnt;
    enum rebase_kind kind;
};

/* What one epoch takes on. It stays in args.work from the check pass to the apply pass, so that
 * nothing is read twice, and what was compared is what will be written. */
struct rebase_batch {
    u64 from, to; /* bytes of the disk that have been compared */
    u64 kept;     /* bytes of data: all units of DATA, in the order of the runs */
    u32 old;      /* so many runs were found, and their data was kept, in earlier epochs */
    u32 runs;
    struct rebase_run run[REBASE_RUNS];
};

struct rebase_scan {
    struct image *img;
    u64 unit; /* bytes that the overlay can own or not: a (sub)cluster, a grain; a power of two */
    u64 span; /* bytes of the disk that the tables of one epoch map; a multiple of unit */
    struct rebase_batch *batch;
    u8 *kept, *other; /* other: what the new chain shows */
    u64 room;         /* bytes at `kept` */
    struct chain old, new;
    struct extent own; /* the overlay's extent that was looked at last */
    u64 looked;        /* bytes compared */
};

/* Divides `len` bytes of work, 8-aligned, of which len >= REBASE_WORK. */
void rebase_scan_init(struct rebase_scan *k, struct image *img, struct image *new_backing, u64 unit,
                      u64 span, void *work, size_t len);
enum { REBASE_WORK = 16 << 20 };

/* Compares from voff on, and adds to the batch, of which `old` runs are to stay: up to the end of
 * the span that holds the first difference, or as much as there is room for, or as may be read
 * without a sign of life. It may find nothing before the end of the disk. */
int rebase_scan(struct rebase_scan *k, u64 voff, u32 old, struct err *e);
/* Does the batch go on in the same span, and is there room for more runs? */
bool rebase_scan_goes_on(const struct rebase_scan *k);
/* What is new in the batch comes to: clusters of `cluster` bytes that something of it lies in, but
 * for *last, which then is the last one of them; bytes of data. */
void rebase_scan_count(const struct rebase_scan *k, u64 cluster, u64 *last, u64 *clusters,
                       u64 *bytes);

#endif
