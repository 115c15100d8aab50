/* SPDX-License-Identifier: MIT
 *
 * Reference counts of 1 to 64 bits. Entries of at least a byte are big endian; narrower ones are
 * packed from the least significant bit of each byte up. A patch holds whole bytes with absolute
 * values, so that it may be written twice (P3): bytes that two runs share are computed from both.
 */
#include "qcow2_refcount.h"

enum { CHUNK = 4096 /* bytes of a block changed by one patch, but for what is no whole sector */ };

u64 qcow2_count_get(const u8 *p, u32 order, u64 i)
{
    if (order < 3) {
        u32 width = 1u << order, per_byte = 8u >> order; /* shifts: divisions are slow */
        return p[i >> (3 - order)] >> ((i & (per_byte - 1)) << order) & ((1u << width) - 1);
    }
    return order == 3   ? p[i]
           : order == 4 ? be16(p + i * 2)
           : order == 5 ? be32(p + i * 4)
                        : be64(p + i * 8);
}

void qcow2_count_put(u8 *p, u32 order, u64 i, u64 v)
{
    if (order < 3) {
        u32 width = 1u << order, per_byte = 8u >> order, shift = (u32)(i & (per_byte - 1)) << order;
        u8 *b = &p[i >> (3 - order)];
        *b = (u8)((*b & ~(((1u << width) - 1) << shift)) | (u32)v << shift);
        return;
    }
    for (u32 n = 1u << (order - 3), k = n; k-- > 0; v >>= 8)
        p[i * n + k] = (u8)v;
}

/* The bytes [from, to) of the block at `off`, as on disk. */
static int block_bytes(struct image *img, u64 off, u64 from, u64 to, const u8 **p, struct err *e)
{
    return window_get(&img->win2, img->file[0], off + from, (u32)(to - from), off + to, p, e);
}

int qcow2_refcount_get(struct image *img, u64 idx, u64 *count, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    u32 bits = qcow2_refblock_bits(q);
    u64 off, i = idx & ((1ull << bits) - 1);
    const u8 *p;
    *count = 0;
    int rc = qcow2_refblock(img, idx >> bits, &off, e);
    if (rc || !off)
        return rc;
    u64 from = (i << q->refcount_order) / 8, width = max_u64(1, (1u << q->refcount_order) / 8);
    rc = window_get(&img->win2, img->file[0], off + from, (u32)width, off + img->unit, &p, e);
    if (!rc)
        *count = qcow2_count_get(p, q->refcount_order,
                                 q->refcount_order < 3 ? i % (8u >> q->refcount_order) : 0);
    return rc;
}

int qcow2_refblock_check(const struct image *img, u64 cluster_idx, u64 count, struct err *e)
{
    return count == 1 ? 0
                      : FAIL(e, ERR_INCONSISTENT,
                             "Refcount block at {val} is not covered by the refcount structures; "
                             "run 'qemu-img check -r all' on the image",
                             count, cluster_idx << img->u.qcow2.cluster_bits);
}

int qcow2_refblock_sound(struct image *img, u64 idx, u64 *off, struct err *e)
{
    u64 count, cluster_idx;
    int rc = qcow2_refblock(img, idx, off, e);
    if (rc || !*off)
        return rc;
    cluster_idx = *off >> img->u.qcow2.cluster_bits;
    rc = qcow2_refcount_get(img, cluster_idx, &count, e);
    return rc ? rc : qcow2_refblock_check(img, cluster_idx, count, e);
}

int qcow2_refblock_look(struct image *img, u64 block, u64 off, bool *empty, u64 *last,
                        struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 first = block << qcow2_refblock_bits(q), self = off >> q->cluster_bits;
    *empty = true;
    for (u64 at = 0; at < img->unit; at += 512) {
        const u8 *p;
        int rc = window_get(&img->win2, img->file[0], off + at, 512, off + img->unit, &p, e);
        if (rc)
            return rc;
        for (u64 b = 0; b < 512; b += 8) {
            u64 word;
            memcpy(&word, p + b, 8);
            for (u64 i = 0; word && i < 64u >> q->refcount_order; i++) {
                u64 idx = first + ((at + b) * 8 >> q->refcount_order) + i;
                if (!qcow2_count_get(p + b, q->refcount_order, i))
                    continue;
                *last = idx;
                *empty &= idx == self;
            }
        }
    }
    return 0;
}

/* Changes those of the entries [base, base+cnt), held in buf, that lie in the run. */
static void change(u8 *buf, u32 order, u64 base, u64 cnt, const struct cluster_run *run, bool drop)
{
    u64 i = max_u64(base, run->first), end = min_u64(base + cnt, run->first + run->cnt);
    for (; i < end; i++) {
        u64 v = qcow2_count_get(buf, order, i - base);
        qcow2_count_put(buf, order, i - base, !drop ? 1 : v ? v - 1 : 0);
    }
}

/* The bytes [*from, *to) of block `block` that hold entries of the run; empty if there are none. */
static void run_bytes(const struct qcow2 *q, u64 block, const struct cluster_run *run, u64 *from,
                      u64 *to)
{
    u32 bits = qcow2_refblock_bits(q);
    u64 first = block << bits;
    u64 lo = max_u64(run->first, first), hi = min_u64(run->first + run->cnt, (block + 1) << bits);
    *from = *to = 0;
    if (lo < hi) {
        *from = ((lo - first) << q->refcount_order) / 8;
        *to = div_up((hi - first) << q->refcount_order, 8);
    }
}

/* How many bytes from `from` on, up to `to`, belong to none of the runs; 0 if `from` does. */
static u64 uncovered(const struct qcow2 *q, u64 block, const struct cluster_run *runs, unsigned n,
                     u64 from, u64 to)
{
    for (unsigned i = 0; i < n; i++) {
        u64 lo, hi;
        run_bytes(q, block, &runs[i], &lo, &hi);
        if (from < hi && lo < to)
            to = max_u64(lo, from);
    }
    return to - from;
}

int qcow2_refcount_emit(struct image *img, struct sink *s, u64 block, u64 off, bool fresh,
                        const struct cluster_run *set, const struct cluster_run *drop,
                        unsigned drop_cnt, const char *why, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    const struct cluster_run *runs = drop_cnt ? drop : set;
    u64 first = block << qcow2_refblock_bits(q);
    for (unsigned r = 0; r < max_u64(drop_cnt, 1); r++) {
        u64 from, to, len;
        for (run_bytes(q, block, &runs[r], &from, &to); from < to; from += len) {
            u8 buf[CHUNK];
            u64 base = first + (from * 8 >> q->refcount_order);
            const u8 *p;
            len = uncovered(q, block, runs, r, from, min_u64(to, round_down(from + CHUNK, 512)));
            if (!len) {
                len = 1;
                continue;
            }
            int rc = fresh ? 0 : block_bytes(img, off, from, from + len, &p, e);
            if (rc)
                return rc;
            if (fresh)
                memset(buf, 0, len);
            else
                memcpy(buf, p, len);
            if (set)
                change(buf, q->refcount_order, base, len * 8 >> q->refcount_order, set, false);
            for (unsigned i = 0; i < drop_cnt; i++)
                change(buf, q->refcount_order, base, len * 8 >> q->refcount_order, &drop[i], true);
            if ((rc = plan_write(s, off + from, buf, len, why, e)))
                return rc;
        }
    }
    return 0;
}
