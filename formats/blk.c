/* SPDX-License-Identifier: MIT
 *
 * The one place where bounds, alignment and read-only are checked. Backends see whole sectors
 * below the capacity; callers see bytes. Unaligned ends of a write are read, modified and written
 * back a sector at a time.
 */
#include "blk.h"

static u64 capacity(const struct blk *b)
{
    return round_up(b->size, b->sector);
}

/* Splits [off, off+len) at sector bounds: the first piece that is either part of one sector
 * (*partial) or a run of whole sectors no longer than BLK_IO_MAX. Returns its length. */
static size_t piece(const struct blk *b, u64 off, u64 len, bool *partial)
{
    u64 in = off % b->sector;
    *partial = in || len < b->sector;
    if (*partial)
        return (size_t)min_u64(len, b->sector - in);
    return (size_t)min_u64(round_down(len, b->sector), BLK_IO_MAX);
}

/* ---- the cache: it holds what the device does, or nothing ---- */

void blk_forget(struct blk *b)
{
    struct blk_cache *c = b->cache;
    for (unsigned i = 0; c && i < BLK_LINES; i++)
        c->off[i] = BLK_NO_LINE;
    if (c)
        c->next = 0;
}

/* [off, off+len) of the device holds `data` now, or zeros. */
static void cache_put(struct blk *b, u64 off, const u8 *data, u64 len)
{
    struct blk_cache *c = b->cache;
    for (unsigned i = 0; c && i < BLK_LINES; i++) {
        u64 line = c->off[i];
        if (line == BLK_NO_LINE || !ranges_overlap(line, BLK_LINE, off, len))
            continue;
        u64 from = max_u64(line, off), n = min_u64(line + BLK_LINE, off + len) - from;
        if (data)
            memcpy(c->data[i] + (from - line), data + (from - off), n);
        else
            memset(c->data[i] + (from - line), 0, n);
    }
}

/* The line that holds the byte at `off`, which lies below the capacity. */
static int cache_get(struct blk *b, u64 off, const u8 **data, struct err *e)
{
    struct blk_cache *c = b->cache;
    u64 line = round_down(off, BLK_LINE);
    unsigned i = 0;
    while (i < BLK_LINES && c->off[i] != line)
        i++;
    if (i == BLK_LINES) {
        i = c->next++ % BLK_LINES;
        c->off[i] = BLK_NO_LINE;
        size_t n = (size_t)min_u64(BLK_LINE, capacity(b) - line);
        int rc = b->ops->read(b, line, c->data[i], n, e);
        if (rc)
            return rc;
        c->off[i] = line;
    }
    *data = c->data[i] + (off - line);
    return 0;
}

/* The n bytes at `off`, which lie in one sector, or are whole ones. */
static int read_piece(struct blk *b, u64 off, u8 *p, size_t n, bool partial, struct err *e)
{
    u8 sector[BLK_SECTOR_MAX];
    const u8 *from = sector + off % b->sector;
    int rc;
    if (b->cache && off / BLK_LINE == (off + n - 1) / BLK_LINE)
        rc = cache_get(b, off, &from, e);
    else if (partial)
        rc = b->ops->read(b, round_down(off, b->sector), sector, b->sector, e);
    else
        return b->ops->read(b, off, p, n, e);
    if (!rc)
        memcpy(p, from, n);
    return rc;
}

/* After a write: what the device holds now, if it is known. */
static int wrote(struct blk *b, u64 off, const u8 *data, u64 len, int rc)
{
    if (rc)
        blk_forget(b);
    else
        cache_put(b, off, data, len);
    return rc;
}

int blk_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    u8 *p = buf;
    u64 have = off < b->size ? min_u64(len, b->size - off) : 0;
    memset(p + have, 0, len - have);
    while (have) {
        bool partial;
        size_t n = piece(b, off, have, &partial);
        int rc = read_piece(b, off, p, n, partial, e);
        if (rc)
            return rc;
        p += n, off += n, have -= n;
    }
    return 0;
}

static int check_write(struct blk *b, u64 off, u64 len, struct err *e)
{
    u64 end;
    if (!b->writable)
        return FAIL(e, ERR_WRITE_FAILED, "Image is read-only", off, len);
    if (!add_fits(off, len, &end) || end > b->size)
        return FAIL(e, ERR_WRITE_FAILED,
                    "Write of {val} bytes at {off} is past the end of the file", off, len);
    return 0;
}

/* Replaces n bytes inside one sector; data == NULL: by zeros. */
static int modify(struct blk *b, u64 off, const u8 *data, size_t n, struct err *e)
{
    u8 sector[BLK_SECTOR_MAX];
    u64 at = round_down(off, b->sector);
    int rc = read_piece(b, at, sector, b->sector, false, e);
    if (rc)
        return rc;
    if (data)
        memcpy(sector + (off - at), data, n);
    else
        memset(sector + (off - at), 0, n);
    return wrote(b, at, sector, b->sector, b->ops->write(b, at, sector, b->sector, e));
}

int blk_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    const u8 *p = buf;
    int rc = check_write(b, off, len, e);
    while (!rc && len) {
        bool partial;
        size_t n = piece(b, off, len, &partial);
        rc = partial ? modify(b, off, p, n, e)
                     : wrote(b, off, p, n, b->ops->write(b, off, p, n, e));
        p += n, off += n, len -= n;
    }
    return rc;
}

int blk_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    int rc = check_write(b, off, len, e);
    while (!rc && len) {
        bool partial;
        u64 n = piece(b, off, len, &partial);
        if (!partial)
            n = round_down(len, b->sector);
        rc = partial ? modify(b, off, NULL, (size_t)n, e)
                     : wrote(b, off, NULL, n, b->ops->zero(b, off, n, may_unmap, e));
        off += n, len -= n;
    }
    return rc;
}

int blk_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    int rc = check_write(b, off, len, e);
    if (rc)
        return rc;
    u64 first = round_up(off, b->sector), end = round_down(off + len, b->sector);
    blk_forget(b);
    return first < end ? b->ops->discard(b, first, end - first, e) : 0;
}

int blk_flush(struct blk *b, struct err *e)
{
    return b->writable ? b->ops->flush(b, e) : 0;
}

int blk_grow(struct blk *b, u64 new_size, struct err *e)
{
    if (new_size <= b->size)
        return 0;
    if (!b->writable)
        return FAIL(e, ERR_WRITE_FAILED, "Image is read-only", new_size, 0);
    blk_forget(b); /* a line may have ended with the device */
    int rc = new_size > capacity(b) ? b->ops->grow(b, new_size, e) : 0;
    if (!rc)
        b->size = new_size;
    return rc;
}

static int one(struct blk_req *r, struct err *e)
{
    const struct blk_ops *ops = r->b->ops;
    switch (r->op) {
    case BLK_READ:
        return ops->read(r->b, r->off, r->buf, r->len, e);
    case BLK_WRITE:
        return ops->write(r->b, r->off, r->buf, r->len, e);
    case BLK_ZERO:
        return ops->zero(r->b, r->off, r->len, true, e);
    case BLK_DISCARD:
        return ops->discard(r->b, r->off, r->len, e);
    }
    assert(!"a request of no kind");
    return 0;
}

int blk_batch(struct blk_req *r, unsigned n, struct err *e)
{
    int rc = 0;
    assert(n <= BLK_BATCH_MAX);
    for (unsigned i = 0; i < n; i++) {
        struct blk *b = r[i].b;
        u64 end;
        assert(r[i].len <= BLK_IO_MAX && b->ops->batch == r[0].b->ops->batch);
        assert(r[i].off % b->sector == 0 && r[i].len % b->sector == 0);
        if (r[i].op != BLK_READ && !b->writable)
            return FAIL(e, ERR_WRITE_FAILED, "Image is read-only", r[i].off, r[i].len);
        if (!add_fits(r[i].off, r[i].len, &end) || end > capacity(b))
            return FAIL(e, r[i].op == BLK_READ ? ERR_READ_FAILED : ERR_WRITE_FAILED,
                        "Request of {val} bytes at {off} is past the end of the file", r[i].off,
                        r[i].len);
        if (r[i].op != BLK_READ)
            blk_forget(b);
    }
    if (n && r[0].b->ops->batch)
        return r[0].b->ops->batch(r, n, e);
    for (unsigned i = 0; !rc && i < n; i++)
        rc = one(&r[i], e);
    return rc;
}
