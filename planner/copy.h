/* SPDX-License-Identifier: MIT
 *
 * Reading what a guest would see: an image with the chain of backing images below it. Images that
 * hold compressed data need img->scratch, and a decoder.
 */
#ifndef PLANNER_COPY_H
#define PLANNER_COPY_H

#include "format.h"

/* [voff, voff+len) of img as its guest sees it, into buf; zeros past the end of an image of the
 * chain. */
int chain_read(struct image *img, u64 voff, void *buf, u64 len, struct err *e);

/* What one image of a chain answers for; img == NULL: zeros, of which nobody knows more. */
struct chain_piece {
    struct image *img;
    struct extent x; /* DATA or PACKED, if there is an img */
};

/* A chain that is read from its beginning to its end: remembers the piece it looked at last, and
 * the unit that it unpacked last. */
struct chain {
    struct image *top; /* NULL: nothing but zeros */
    u8 *unit;          /* the caller's: IMAGE_UNIT_MAX bytes, or NULL where nothing is read */
    struct chain_piece piece;
    const struct image *unpacked; /* whose unit is in `unit`, NULL: nobody's; its x.off */
    u64 unpacked_off;
};

/* Requests that are in flight together. */
struct chain_reads {
    struct blk_req req[BLK_BATCH_MAX];
    unsigned cnt;
};

void chain_init(struct chain *c, struct image *top, u8 *unit);
/* The piece that begins at voff, at most max (> 0) bytes long. */
int chain_look(struct chain *c, u64 voff, u64 max, struct chain_piece *p, struct err *e);
/* Reads [voff, voff+len) into buf. What can be in flight may not be there before chain_wait(), nor
 * may anything else that the same `r` has queued. *zero: it is all zeros, and buf was left as it
 * is. */
int chain_queue(struct chain *c, u64 voff, u8 *buf, u64 len, bool *zero, struct chain_reads *r,
                struct err *e);
int chain_wait(struct chain_reads *r, struct err *e);

#endif
