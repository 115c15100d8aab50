/* SPDX-License-Identifier: MIT
 *
 * Rebases on memory disks: chains of links of any format, made by chance from a seed; running the
 * planner over an overlay that stands on them; and what the overlay's guest sees, before and after.
 */
#ifndef TESTS_REBASE_RUN_H
#define TESTS_REBASE_RUN_H

#include "blk_mem.h"
#include "plan.h"
#include "qcow2_make.h"

enum { RUN_LINKS = 6, RUN_DEPTH = 4 };

struct run_link {
    struct blk_mem disk;
    struct blk *blk; /* what is opened: the disk, or something in front of it */
    const char *format;
    struct image img;
    u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
};

/* An overlay, and two chains of links, nearest first; a link may be in both. */
struct run_case {
    struct run_link overlay, link[RUN_LINKS];
    struct make shape; /* of the overlay */
    unsigned links, old_cnt, new_cnt;
    unsigned old[RUN_DEPTH], new[RUN_DEPTH]; /* indices of links */
    u8 *before;                              /* what the guest sees: overlay.img.size bytes */
};

struct run_result {
    u64 clusters, bytes, length;
    u32 epochs; /* that asked for something */
};

/* A link of this format, of about that size. */
void run_make_link(struct run_link *l, const char *format, u64 size, u64 *seed);
/* All of it by chance: the overlay has at most `most` bytes. */
void run_make(struct run_case *c, u64 most, u64 *seed);
void run_free(struct run_case *c);

/* Opens the overlay on `b` and every link, and puts the overlay on the old chain, or the new. */
int run_open(struct run_case *c, struct blk *b, bool on_new, struct err *e);
/* Fills c->before. */
void run_look(struct run_case *c);
/* Does the overlay on `b`, standing on that chain, show what it did? *at: where it does not. */
bool run_same(struct run_case *c, struct blk *b, bool on_new, u64 *at);
/* Does the header of the overlay on `b` name the new chain? */
bool run_switched(struct blk *b);
/* A safe rebase of the overlay on `b`; with `count`, a dry run that only counts. */
int run_rebase(struct run_case *c, struct blk *b, bool count, struct run_result *r, struct err *e);

#endif
