/* SPDX-License-Identifier: MIT
 *
 * See qcow2_bitmap_change.h. A bitmap's table may become longer than its clusters: then it moves to
 * the end of the file. Bits past the end of the disk are zero in the last cluster of bits, as the
 * specification has it; an entry that stands for ones throughout gets a cluster where the old disk
 * ends inside of it. Only what is written is looked at: one entry of each table, and on a shrink
 * the entries that go. Source: docs/interop/qcow2.txt, "Bitmaps".
 */
#include "qcow2_bitmap_change.h"

/* May this bitmap be resized at all? */
static int check_bitmap(const struct image *img, const struct qcow2_bitmap_change *c, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    const struct qcow2_bitmap *b = &c->b;
    int rc = 0;
    if (b->flags & QCOW2_BITMAP_IN_USE)
        rc = FAIL(e, ERR_BITMAPS_UNSUPPORTED, "Bitmap '{name}' is inconsistent and cannot be used",
                  b->off + QB_FLAGS, b->flags);
    else if (b->table_size != qcow2_bitmap_entries(q, img->size, b->granularity_bits))
        rc = FAIL(e, ERR_OVERLAY_CORRUPT,
                  "Bitmap '{name}' does not fit the disk: its table has {val} entries",
                  b->off + QB_TABLE_SIZE, b->table_size);
    else if (c->entries > QCOW2_MAX_BITMAP_BYTES >> q->cluster_bits)
        rc = FAIL(e, ERR_BITMAPS_UNSUPPORTED, "Bitmap '{name}' would become larger than 512 MiB",
                  b->off, c->entries);
    return rc ? qcow2_bitmap_fail(e, rc, b) : 0;
}

int qcow2_bitmap_change(struct image *img, u64 new_size, u64 at, struct qcow2_bitmap_change *c,
                        struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 per_cluster = 8ull << q->cluster_bits, entry;
    *c = (struct qcow2_bitmap_change){.none = true};
    int rc = qcow2_bitmap_get(img, at, &c->b, e);
    if (rc)
        return rc;
    c->entries = qcow2_bitmap_entries(q, new_size, c->b.granularity_bits);
    c->had = div_up(c->b.table_size * 8ull, img->unit);
    c->clusters = div_up(c->entries * 8, img->unit);
    if ((rc = check_bitmap(img, c, e)))
        return rc;
    u64 old = qcow2_bitmap_bits(img->size, c->b.granularity_bits);
    u64 bits = qcow2_bitmap_bits(new_size, c->b.granularity_bits), keep = min_u64(old, bits);
    c->none = old == bits;
    if (c->none)
        return 0;
    c->table = c->clusters > c->had ? c->clusters : 0;
    c->in = keep % per_cluster;
    c->last = keep / per_cluster;
    if (!c->in)
        return 0;
    rc = qcow2_bitmap_entry(img, &c->b, c->last, &entry, NULL, e);
    c->bits = entry & QCOW2_OFFSET_MASK;
    c->fresh = bits > old && entry == QCOW2_BITMAP_ONES;
    return rc;
}

/* ---- what is emitted ---- */

/* The longer table; `to`: where it stands. */
static int longer_table(const struct qcow2_bitmap_change *c, u64 to, struct sink *s, struct err *e)
{
    u64 from = c->b.table_offset, had = c->b.table_size, copied = had - c->fresh;
    if (to == from)
        return plan_zero(s, from + had * 8, (c->entries - had) * 8, "new bitmap table entries", e);
    return copied ? plan_copy(s, to, from, copied * 8, "a bitmap table, at its new place", e) : 0;
}

/* A cluster of bits at `off` in the place of an entry for ones: ones as far as the old disk goes.
 */
static int ones(const struct qcow2_bitmap_change *c, u64 table, u64 off, u8 *work, struct sink *s,
                struct err *e)
{
    u8 entry[8];
    memset(work, 0xff, c->in / 8);
    work[c->in / 8] = (u8)((1 << c->in % 8) - 1);
    int rc = plan_write(s, off, work, div_up(c->in, 8), "bits of the old disk, all set", e);
    put_be64(entry, off);
    return rc ? rc : plan_write(s, table + c->last * 8, entry, 8, "link the cluster of bits", e);
}

/* Zeros in the last cluster of bits that stays, past the end of the disk. */
static int clear_rest(struct image *img, const struct qcow2_bitmap_change *c, struct sink *s,
                      struct err *e)
{
    u64 at = c->bits + c->in / 8, end = c->bits + img->unit;
    bool any = false;
    const u8 *p;
    int rc = window_get(&img->win2, img->file[0], at, 1, end, &p, e);
    if (rc)
        return rc;
    u8 was = *p, byte = was & ((1 << c->in % 8) - 1);
    if (byte != was)
        rc = plan_write(s, at, &byte, 1, "bits past the end of the disk", e);
    for (u64 i = ++at, n; !rc && !any && i < end; i += n) {
        n = min_u64(end - i, BLK_SECTOR_MAX);
        rc = window_get(&img->win2, img->file[0], i, (u32)n, end, &p, e);
        any = !rc && !all_zero(p, n);
    }
    return rc || !any ? rc : plan_zero(s, at, end - at, "bits past the end of the disk", e);
}

/* Lists the clusters of bits past the new end, and those of the table that are not needed for what
 * stays. What no sound bitmap names leaks. */
static int list_cut(struct image *img, const struct qcow2_bitmap_change *c, struct qcow2_drop *drop,
                    struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 first = c->b.table_offset >> q->cluster_bits;
    for (u64 i = c->entries; i < c->b.table_size; i++) {
        u64 entry;
        bool sound;
        int rc = qcow2_bitmap_entry(img, &c->b, i, &entry, &sound, e);
        if (rc)
            return rc;
        if (sound && (entry & QCOW2_OFFSET_MASK))
            qcow2_drop_add(drop, (entry & QCOW2_OFFSET_MASK) >> q->cluster_bits);
    }
    for (u64 i = c->clusters; i < c->had; i++)
        qcow2_drop_add(drop, first + i);
    return 0;
}

int qcow2_bitmap_emit(struct image *img, const struct qcow2_bitmap_change *c, u64 *next, u8 *work,
                      struct qcow2_drop *drop, struct sink *s, struct err *e)
{
    u64 table = c->table ? *next * img->unit : c->b.table_offset;
    u8 fields[12];
    int rc = 0;
    *next += c->table;
    if (c->entries > c->b.table_size)
        rc = longer_table(c, table, s, e);
    if (!rc && c->fresh)
        rc = ones(c, table, (*next)++ * img->unit, work, s, e);
    else if (!rc && c->bits)
        rc = clear_rest(img, c, s, e);
    if (!rc && c->entries < c->b.table_size)
        rc = list_cut(img, c, drop, e);
    if (rc || c->entries == c->b.table_size)
        return rc;
    put_be64(fields, table);
    put_be32(fields + 8, (u32)c->entries);
    return plan_write(s, c->b.off + QB_TABLE_OFFSET, fields, sizeof fields,
                      "the bitmap's table, and how long it is now", e);
}
