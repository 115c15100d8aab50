/* SPDX-License-Identifier: MIT
 *
 * One window, filled on demand. A read covers what follows in the same table, up to the window's
 * capacity, so that a sequential walk costs one request per window and a single look costs no more
 * than one.
 */
#include "table.h"

void window_init(struct window *w, void *buf, u32 cap)
{
    assert(cap >= 2 * BLK_SECTOR_MAX && cap % BLK_SECTOR_MAX == 0);
    w->buf = buf;
    w->cap = cap;
    window_drop(w);
}

void window_drop(struct window *w)
{
    w->blk = NULL;
    w->off = 0;
    w->len = 0;
}

int window_get(struct window *w, struct blk *b, u64 off, u32 len, u64 end, const u8 **p,
               struct err *e)
{
    assert(len <= w->cap - BLK_SECTOR_MAX && end >= off + len);
    if (w->blk != b || off < w->off || off + len > w->off + w->len) {
        u64 at = round_down(off, b->sector);
        u32 want = (u32)min_u64(round_up(end - at, b->sector), w->cap);
        window_drop(w);
        int rc = blk_read(b, at, w->buf, want, e);
        if (rc)
            return rc;
        w->blk = b;
        w->off = at;
        w->len = want;
    }
    *p = w->buf + (off - w->off);
    return 0;
}

int table_get(struct table *t, u64 idx, u64 *val, struct err *e)
{
    const u8 *p;
    *val = 0;
    if (idx >= t->cnt)
        return 0;
    int rc = window_get(t->win, t->blk, t->off + idx * 8, 8, t->off + t->cnt * 8, &p, e);
    if (!rc)
        *val = be64(p);
    return rc;
}
