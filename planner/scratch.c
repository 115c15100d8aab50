/* SPDX-License-Identifier: MIT
 *
 * See scratch.h. Pages lie in one hash table with open addressing. Zeros behind the end of the disk
 * below are not kept: that is what is read there anyway, so preallocation of any size fits.
 */
#include "scratch.h"

enum { INDEX_BITS = 5, SLOTS_PER_PAGE = 4, SCRATCH_ZERO = 0xffffffff };

void scratch_pool_init(struct scratch_pool *p, void *mem, size_t len)
{
    u64 pages = len / (SCRATCH_PAGE + SLOTS_PER_PAGE * 12), slots = 1;
    while (slots * 2 <= pages * SLOTS_PER_PAGE)
        slots *= 2;
    assert(pages && pages < SCRATCH_ZERO);
    *p = (struct scratch_pool){.key = mem, .slots = (u32)slots, .pages = (u32)pages};
    p->at = (u32 *)(void *)(p->key + slots);
    p->data = (u8 *)(p->at + slots);
    memset(p->key, 0, slots * 8);
}

/* The slot of a page, or the free one where it would stand. */
static u32 find(const struct scratch_pool *p, u64 key)
{
    u32 i = (u32)((key * 0x9e3779b97f4a7c15ull) >> 32) & (p->slots - 1);
    while (p->key[i] && p->key[i] != key)
        i = (i + 1) & (p->slots - 1);
    return i;
}

static u64 key_of(const struct scratch *s, u64 off)
{
    return ((off / SCRATCH_PAGE) << INDEX_BITS | s->index) + 1;
}

static int full(struct err *e)
{
    return FAIL(e, ERR_SCRATCH_TOO_SMALL, "A dry run has no memory left for this plan", 0, 0);
}

/* The bytes of one page at `off` into buf; false: nothing was written there. */
static bool kept(const struct scratch *s, u64 off, void *buf, size_t n)
{
    const struct scratch_pool *p = s->pool;
    u32 i = find(p, key_of(s, off));
    if (!p->key[i])
        return false;
    if (p->at[i] == SCRATCH_ZERO)
        memset(buf, 0, n);
    else
        memcpy(buf, p->data + (u64)p->at[i] * SCRATCH_PAGE + off % SCRATCH_PAGE, n);
    return true;
}

static size_t piece(u64 off, u64 len)
{
    return (size_t)min_u64(SCRATCH_PAGE - off % SCRATCH_PAGE, len);
}

static int scratch_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    const struct scratch *s = (const struct scratch *)b;
    int rc = blk_read(s->below, off, buf, len, e);
    for (size_t done = 0, n; !rc && done < len; done += n) {
        n = piece(off + done, len - done);
        kept(s, off + done, (u8 *)buf + done, n);
    }
    return rc;
}

/* A slot for the page; *i: which. */
static int claim(struct scratch *s, u64 off, u32 *i, struct err *e)
{
    struct scratch_pool *p = s->pool;
    *i = find(p, key_of(s, off));
    if (p->key[*i])
        return 0;
    if (p->used_slots >= p->slots / 4 * 3)
        return full(e);
    p->used_slots++;
    s->top = max_u64(s->top, round_down(off, SCRATCH_PAGE) + SCRATCH_PAGE);
    p->key[*i] = key_of(s, off);
    p->at[*i] = SCRATCH_ZERO;
    return 0;
}

/* One page's part of a write; data NULL: zeros. */
static int put(struct scratch *s, u64 off, const u8 *data, size_t n, struct err *e)
{
    struct scratch_pool *p = s->pool;
    u32 i = find(p, key_of(s, off));
    bool zeros = !data || all_zero(data, n), fresh = !p->key[i];
    if (fresh && zeros && round_down(off, SCRATCH_PAGE) >= s->below->size)
        return 0;
    int rc = claim(s, off, &i, e);
    if (rc || (zeros && p->at[i] == SCRATCH_ZERO && (!fresh || n == SCRATCH_PAGE)))
        return rc;
    u8 *page = p->data + (u64)p->at[i] * SCRATCH_PAGE;
    if (p->at[i] == SCRATCH_ZERO) {
        if (p->used_pages == p->pages)
            return full(e);
        p->at[i] = p->used_pages++;
        page = p->data + (u64)p->at[i] * SCRATCH_PAGE;
        memset(page, 0, SCRATCH_PAGE);
        rc = fresh ? blk_read(s->below, round_down(off, SCRATCH_PAGE), page, SCRATCH_PAGE, e) : 0;
    }
    if (zeros)
        memset(page + off % SCRATCH_PAGE, 0, n);
    else
        memcpy(page + off % SCRATCH_PAGE, data, n);
    return rc;
}

static int scratch_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    int rc = 0;
    for (size_t done = 0, n; !rc && done < len; done += n) {
        n = piece(off + done, len - done);
        rc = put((struct scratch *)b, off + done, (const u8 *)buf + done, n, e);
    }
    return rc;
}

static int scratch_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    struct scratch *s = (struct scratch *)b;
    u64 zeros = max_u64(s->below->size, s->top); /* it reads zero from here on */
    int rc = 0;
    (void)may_unmap;
    for (u64 end = off + len, n; !rc && off < end; off += n) {
        n = piece(off, end - off);
        if (off >= zeros)
            return 0;
        rc = put(s, off, NULL, (size_t)n, e);
    }
    return rc;
}

static int scratch_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    (void)b, (void)off, (void)len, (void)e; /* garbage may as well stay what it was */
    return 0;
}

static int scratch_flush(struct blk *b, struct err *e)
{
    (void)b, (void)e;
    return 0;
}

static int scratch_grow(struct blk *b, u64 new_size, struct err *e)
{
    (void)b, (void)new_size, (void)e;
    return 0;
}

static const struct blk_ops scratch_ops = {
    scratch_read, scratch_write, scratch_zero, scratch_discard, scratch_flush, scratch_grow, NULL};

void scratch_init(struct scratch *s, struct blk *below, u8 index, struct scratch_pool *p)
{
    assert(index < 1 << INDEX_BITS);
    struct blk blk = *below;
    blk.cache = NULL;
    blk.ops = &scratch_ops;
    blk.writable = true;
    *s = (struct scratch){blk, below, p, index, 0};
}
