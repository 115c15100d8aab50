/* SPDX-License-Identifier: MIT
 *
 * See qcow2_drop.h. Sorting is by radix, ten bits a pass, over no more of them than the largest
 * index has, and only as far as to bring together what one patch changes. Values are absolute (P3):
 * the list holds every reference that the epoch drops.
 */
#include "qcow2_drop.h"

void qcow2_drop_init(const struct image *img, struct qcow2_drop *d, void *mem, size_t len,
                     bool fresh)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 blocks = qcow2_reftable_entries(q);
    u64 fixed = QCOW2_DROP_CHUNK + QCOW2_DROP_FREED + blocks * 8;
    assert(len >= fixed + (4 << 20));
    *d = (struct qcow2_drop){.buf = mem,
                             .cap = (len - fixed) / 16,
                             .file_size = round_up(img->file[0]->size, img->unit)};
    d->freed = d->buf + QCOW2_DROP_CHUNK;
    d->spared = (u64 *)(void *)(d->freed + QCOW2_DROP_FREED);
    d->idx = d->spared + blocks;
    d->tmp = d->idx + d->cap;
    for (int i = 0; i < QCOW2_NAMED_TABLES; i++)
        d->plain = max_u64(d->plain, q->named[i].end);
    if (fresh)
        memset(d->freed, 0, min_u64(QCOW2_DROP_FREED, div_up(d->file_size >> q->cluster_bits, 8)));
}

bool qcow2_drop_room(const struct qcow2_drop *d, u64 n)
{
    return d->cnt + n * QCOW2_DROP_ENTRY <= d->cap;
}

void qcow2_drop_freed(struct qcow2_drop *d, u64 cluster_idx)
{
    if (cluster_idx / 8 < QCOW2_DROP_FREED)
        d->freed[cluster_idx / 8] |= (u8)(1 << cluster_idx % 8);
}

void qcow2_drop_add(struct qcow2_drop *d, u64 cluster_idx)
{
    assert(d->cnt < d->cap);
    d->idx[d->cnt++] = cluster_idx;
}

void qcow2_drop_entry(struct image *img, struct qcow2_drop *d, u64 entry)
{
    const struct qcow2 *q = &img->u.qcow2;
    struct err ignored = {0};
    u64 off = entry & QCOW2_OFFSET_MASK, len = img->unit;
    if (qcow2_has_data_file(q)) /* whose clusters nobody counts */
        return;
    if (entry & QCOW2_COMPRESSED) {
        struct extent x;
        if (qcow2_packed(img, entry, &x, &ignored))
            return;
        off = round_down(x.off, img->unit);
        len = round_up(x.off + x.packed_len, img->unit) - off;
    }
    bool plain = off >= d->plain && len == img->unit && off < d->file_size && !(off & (len - 1));
    if (!plain && (!off || qcow2_check_table(img, off, len, "", &ignored)))
        return;
    for (u64 i = 0; i < len >> q->cluster_bits; i++)
        qcow2_drop_add(d, (off >> q->cluster_bits) + i);
}

u64 *qcow2_sort(u64 *a, u64 *tmp, u64 cnt, u32 from_bit)
{
    enum { DIGIT = 10 };
    u64 max = 0;
    for (u64 i = 0; i < cnt; i++)
        max = max_u64(max, a[i]);
    for (u32 shift = from_bit; shift < 64 && max >> shift; shift += DIGIT) {
        u32 at[1 << DIGIT] = {0}, sum = 0, mask = (1 << DIGIT) - 1;
        u64 *swap = tmp;
        for (u64 i = 0; i < cnt; i++)
            at[a[i] >> shift & mask]++;
        for (u32 b = 0; b <= mask; b++) {
            u32 n = at[b];
            at[b] = sum;
            sum += n;
        }
        for (u64 i = 0; i < cnt; i++)
            tmp[at[a[i] >> shift & mask]++] = a[i];
        tmp = a;
        a = swap;
    }
    return a;
}

int qcow2_drop_spare_blocks(struct image *img, struct qcow2_drop *d, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 entries = qcow2_reftable_entries(q), n = 0;
    for (u64 i = 0; i < entries; i++) {
        u64 off;
        int rc = qcow2_refblock(img, i, &off, e);
        if (rc)
            return rc;
        if (off)
            d->spared[n++] = off >> q->cluster_bits;
    }
    u64 *sorted = qcow2_sort(d->spared, d->tmp, n, 0);
    if (sorted != d->spared)
        memcpy(d->spared, sorted, n * 8);
    d->spared_cnt = n;
    for (u64 i = 1; i < n; i++)
        if (d->spared[i] == d->spared[i - 1])
            return FAIL(e, ERR_OVERLAY_CORRUPT, "Two refcount blocks stand at {val}", 0,
                        d->spared[i] << q->cluster_bits);
    return 0;
}

/* Is the cluster one of spared[first..end)? */
static bool is_spared(const struct qcow2_drop *d, u64 first, u64 end, u64 cluster_idx)
{
    while (first < end) {
        u64 mid = first + (end - first) / 2;
        if (d->spared[mid] == cluster_idx)
            return true;
        if (d->spared[mid] < cluster_idx)
            first = mid + 1;
        else
            end = mid;
    }
    return false;
}

/* Lowers the counts of idx[i..j), whose entries lie in d->buf from entry `base` on, but for those
 * of spared[from..to). Returns whether any changed. */
static bool lower(struct qcow2_drop *d, u32 order, u64 base, u64 i, u64 j, u64 from, u64 to)
{
    bool changed = false;
    for (; i < j; i++) {
        u64 v = qcow2_count_get(d->buf, order, d->idx[i] - base);
        if (!v || (from < to && is_spared(d, from, to, d->idx[i])))
            continue;
        changed = true;
        qcow2_count_put(d->buf, order, d->idx[i] - base, v - 1);
        if (v == 1)
            qcow2_drop_freed(d, d->idx[i]);
    }
    return changed;
}

/* The end of the group that begins at idx[i]: entries of one chunk of `per` counts. *lo, *hi: the
 * least and the greatest of it. */
static u64 group(const struct qcow2_drop *d, u64 i, u64 per, u64 *lo, u64 *hi)
{
    u64 base = round_down(d->idx[i], per), j = i;
    for (*lo = *hi = d->idx[i]; j < d->cnt && round_down(d->idx[j], per) == base; j++) {
        *lo = min_u64(*lo, d->idx[j]);
        *hi = max_u64(*hi, d->idx[j]);
    }
    return j;
}

int qcow2_drop_emit(struct image *img, struct qcow2_drop *d, struct sink *s, const char *why,
                    struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u32 order = q->refcount_order, bits = qcow2_refblock_bits(q);
    u64 per = min_u64(QCOW2_DROP_CHUNK, img->unit) * 8 >> order, per_sector = 512 * 8 >> order;
    u64 *sorted = qcow2_sort(d->idx, d->tmp, d->cnt, (u32)__builtin_ctzll(per)), lo, hi;
    d->tmp = sorted == d->idx ? d->tmp : d->idx;
    d->idx = sorted;
    for (u64 i = 0, j, from = 0, to = 0; i < d->cnt; i = j) {
        u64 off;
        j = group(d, i, per, &lo, &hi);
        for (from = to; from < d->spared_cnt && d->spared[from] < lo;)
            from++;
        for (to = from; to < d->spared_cnt && d->spared[to] <= hi;)
            to++;
        int rc = qcow2_refblock(img, lo >> bits, &off, e);
        if (rc)
            return rc;
        if (!off)
            continue;
        u64 first = round_down(lo, per_sector); /* whole sectors are read and written */
        u64 len = (round_up(hi + 1, per_sector) - first) << order >> 3;
        off += ((first & ((1ull << bits) - 1)) << order) >> 3;
        if ((rc = blk_read(img->file[0], off, d->buf, len, e)))
            return rc;
        if (lower(d, order, first, i, j, from, to) &&
            (rc = plan_write(s, off, d->buf, len, why, e)))
            return rc;
    }
    d->cnt = 0;
    return plan_barrier(s, "the lower counts are durable", e);
}

/* The first cluster in [at, end) that became free, or, with `!is`, that did not; end: there is
 * none. */
static u64 next_freed(const struct qcow2_drop *d, u64 at, u64 end, bool is)
{
    u8 other = is ? 0 : 0xff; /* a byte without any */
    while (at < end && !(d->freed[at / 8] >> at % 8 & 1) == is)
        at += at % 8 == 0 && d->freed[at / 8] == other ? 8 : 1;
    return min_u64(at, end);
}

int qcow2_drop_punch(struct image *img, const struct qcow2_drop *d, u64 end, u64 most,
                     struct sink *s, struct err *e)
{
    u64 n = 0, at = 0;
    end =
        min_u64(min_u64(end, d->file_size >> img->u.qcow2.cluster_bits), (u64)QCOW2_DROP_FREED * 8);
    for (u64 to; n < most && (at = next_freed(d, at, end, true)) < end; n++, at = to) {
        to = next_freed(d, at, end, false);
        int rc = plan_discard(s, at * img->unit, (to - at) * img->unit, "free", e);
        if (rc)
            return rc;
    }
    return n ? plan_barrier(s, "holes are punched", e) : 0;
}
