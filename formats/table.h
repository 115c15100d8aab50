/* SPDX-License-Identifier: MIT
 *
 * Streams a huge on-disk array of integers (L1 tables, refcount tables, BATs, grain tables)
 * through a small window of memory, so that no table is ever held whole.
 */
#ifndef FORMATS_TABLE_H
#define FORMATS_TABLE_H

#include "blk.h"

/* A cached run of bytes of one file. The memory is the caller's. */
struct window {
    u8 *buf;
    u32 cap;         /* bytes at buf: a multiple of BLK_SECTOR_MAX */
    struct blk *blk; /* NULL: empty */
    u64 off;
    u32 len;
};

void window_init(struct window *w, void *buf, u32 cap);
/* Forgets the bytes, so that the next access reads the disk again. */
void window_drop(struct window *w);
/* *p points at `len` bytes of `b` at `off`, valid until the next call on this window. What else of
 * [off, end) fits into the window is read ahead. len <= cap - BLK_SECTOR_MAX; zeros past the end
 * of the file. */
int window_get(struct window *w, struct blk *b, u64 off, u32 len, u64 end, const u8 **p,
               struct err *e);

/* An array of big-endian u64 at `off`, `cnt` entries. */
struct table {
    struct blk *blk;
    struct window *win;
    u64 off, cnt;
};

/* Entry idx; past cnt is 0, like a table that is shorter than the disk it serves. */
int table_get(struct table *t, u64 idx, u64 *val, struct err *e);

#endif
