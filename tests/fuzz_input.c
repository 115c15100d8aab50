/* SPDX-License-Identifier: MIT
 *
 * Coding and decoding of the fuzz target's input. Bytes past the end of the file are dropped, so
 * that a file that grows there reads zero.
 */
#include "fuzz_input.h"

#include "test.h"

enum { PUT_HEAD = 8, FILL_LEN = 25, BLOCK = 512, KEEP = 8 };

static u64 le(const u8 *p, int bytes)
{
    u64 v = 0;
    while (bytes--)
        v = v << 8 | p[bytes];
    return v;
}

static void put_le(u8 *p, int bytes, u64 v)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (u8)(v >> 8 * i);
}

/* ---- decoding ---- */

static void put_clipped(struct blk_mem *m, u64 off, const u8 *p, size_t len)
{
    if (off < m->length && len)
        blk_mem_put(m, off, p, (size_t)min_u64(len, m->length - off));
}

static size_t fill(struct blk_mem *m, const u8 *p, u64 *left)
{
    u64 off = le(p + 1, 6), cnt = min_u64(le(p + 7, 2), *left / 8);
    u64 value = le(p + 9, 8), step = le(p + 17, 8);
    *left -= cnt * 8;
    for (u64 i = 0; i < cnt; i++) {
        u8 b[8];
        put_be64(b, value + i * step);
        put_clipped(m, off + i * 8, b, 8);
    }
    return FILL_LEN;
}

bool fuzz_decode(const u8 *in, size_t size, struct fuzz_head *h, struct blk_mem *m,
                 struct blk_mem *under)
{
    u64 left = FUZZ_FILL_MAX;
    size_t at = FUZZ_HEAD;
    if (size < FUZZ_HEAD)
        return false;
    *h = (struct fuzz_head){ le(in, 8) & INT64_MAX, le(in + 8, 8) & INT64_MAX, in[16], 0 };
    if (h->flags & FUZZ_UNDER) {
        if (size < FUZZ_HEAD + 8)
            return false;
        h->under = le(in + FUZZ_HEAD, 8) & INT64_MAX;
        at += 8;
    }
    blk_mem_init(m, h->length, h->flags & FUZZ_SECTOR_4096 ? 4096 : 512);
    blk_mem_init(under, h->under, h->flags & FUZZ_SECTOR_4096 ? 4096 : 512);
    while (at < size) {
        size_t room = size - at;
        struct blk_mem *to = in[at] & 2 && h->flags & FUZZ_UNDER ? under : m;
        if (in[at] & 1) {
            if (room < FILL_LEN)
                break;
            at += fill(to, in + at, &left);
            continue;
        }
        if (room < PUT_HEAD)
            break;
        size_t len = (size_t)min_u64(in[at + 7], room - PUT_HEAD);
        put_clipped(to, le(in + at + 1, 6), in + at + PUT_HEAD, len);
        at += PUT_HEAD + len;
    }
    return true;
}

/* ---- coding ---- */

size_t fuzz_put_head(u8 *out, const struct fuzz_head *h)
{
    put_le(out, 8, h->new_size);
    put_le(out + 8, 8, h->length);
    out[16] = h->flags;
    if (h->flags & FUZZ_UNDER)
        put_le(out + FUZZ_HEAD, 8, h->under);
    return FUZZ_HEAD + (h->flags & FUZZ_UNDER ? 8 : 0);
}

size_t fuzz_append(u8 *out, size_t size, size_t max, bool under, u64 off, const u8 *bytes,
                   size_t len)
{
    if (size + PUT_HEAD + len > max || len > 255 || off >> 48)
        return size;
    out[size] = under ? 2 : 0;
    put_le(out + size + 1, 6, off);
    out[size + 7] = (u8)len;
    memcpy(out + size + PUT_HEAD, bytes, len);
    return size + PUT_HEAD + len;
}

static int by_number(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

static u64 word(const struct blk_mem *m, u64 off)
{
    u8 b[8];
    blk_mem_get(m, off, b, 8);
    return be64(b);
}

/* make_pattern()'s bytes are odd; half a kilobyte of such is nothing else, but for a VHD's empty
 * BAT. */
static bool is_data(const struct blk_mem *m, u64 block)
{
    u8 b[BLOCK], even = 0;
    if (block % BLOCK)
        return false;
    blk_mem_get(m, block, b, BLOCK);
    for (unsigned i = 0; i < BLOCK; i++)
        even |= ~b[i] & 1;
    return !even && word(m, block) != UINT64_MAX;
}

/* How many words from `off` on, up to `end`, go up by the same step. */
static u64 series(const struct blk_mem *m, u64 off, u64 end, u64 *step)
{
    u64 n = 1;
    *step = word(m, off + 8) - word(m, off);
    while (off + n * 8 < end && word(m, off + n * 8) - word(m, off + n * 8 - 8) == *step)
        n++;
    return n;
}

struct coder {
    const struct blk_mem *m;
    u8 *out;
    size_t size, max;
    bool full, under;
};

static void append(struct coder *c, u64 off, size_t len)
{
    u8 b[255];
    blk_mem_get(c->m, off, b, len);
    size_t size = fuzz_append(c->out, c->size, c->max, c->under, off, b, len);
    c->full |= size == c->size;
    c->size = size;
}

static void append_fill(struct coder *c, u64 off, u64 cnt, u64 step)
{
    if (c->size + FILL_LEN > c->max) {
        c->full = true;
        return;
    }
    u8 *p = c->out + c->size;
    p[0] = c->under ? 3 : 1;
    put_le(p + 1, 6, off);
    put_le(p + 7, 2, cnt);
    put_le(p + 9, 8, word(c->m, off));
    put_le(p + 17, 8, step);
    c->size += FILL_LEN;
}

/* One page: runs of words that are not zero, and series of them. */
static void encode_page(struct coder *c, u64 page)
{
    u64 end = page + MEM_PAGE;
    for (u64 off = page; off < end && !c->full;) {
        u64 step, cnt, run = off;
        if (is_data(c->m, off)) {
            if (!is_data(c->m, off - BLOCK) || !is_data(c->m, off + BLOCK)) {
                append(c, off, KEEP);
                append(c, off + BLOCK - KEEP, KEEP);
            }
            off += BLOCK;
            continue;
        }
        if (!word(c->m, off)) {
            off += 8;
            continue;
        }
        if ((cnt = series(c->m, off, end, &step)) > 4) {
            append_fill(c, off, cnt, step);
            off += cnt * 8;
            continue;
        }
        while (run < end && run < off + 248 && word(c->m, run))
            run += 8;
        append(c, off, run - off);
        off = run;
    }
}

static void encode_disk(struct coder *c, const struct blk_mem *m)
{
    u64 *pages = malloc((m->pages + 1) * sizeof(*pages));
    size_t cnt = 0;
    c->m = m;
    for (size_t i = 0; i < m->slots_cnt; i++)
        if (m->slots[i].page && m->slots[i].data)
            pages[cnt++] = m->slots[i].page - 1;
    qsort(pages, cnt, sizeof(*pages), by_number);
    for (size_t i = 0; i < cnt && !c->full; i++)
        encode_page(c, pages[i] * MEM_PAGE);
    free(pages);
}

size_t fuzz_encode(const struct blk_mem *m, const struct blk_mem *under, u64 new_size, u8 flags,
                   u8 *out, size_t max)
{
    struct fuzz_head h = { new_size, m->length, flags, under ? under->length : 0 };
    struct coder c = { .out = out, .size = fuzz_put_head(out, &h), .max = max };
    encode_disk(&c, m);
    if (under) {
        c.under = true;
        encode_disk(&c, under);
    }
    return c.full ? 0 : c.size;
}
