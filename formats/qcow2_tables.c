/* SPDX-License-Identifier: MIT
 *
 * qcow2: the tables that the header names, and those that a snapshot or the refcount table names in
 * turn: inside the file, aligned, and on no other. qemu does not look at all of that. Source:
 * docs/interop/qcow2.txt, sections "Header", "Host cluster management", "Snapshots".
 */
#include "format.h"

enum { SNAPSHOT_HEAD = 40, SNAPSHOT_EXTRA_MAX = 1024, SNAPSHOT_TABLE_MAX = 64 << 20 };

u64 qcow2_reftable_entries(const struct qcow2 *q)
{
    return (u64)q->refcount_table_clusters << (q->cluster_bits - 3);
}

bool qcow2_names_bitmaps(const struct qcow2 *q)
{
    return q->has_bitmaps_ext && (q->autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

/* ---- what the header names ---- */

/* The tables that the header names: [off, off+len), len 0 if there is none. */
struct named_table {
    u64 off, len;
    const char *outside, *overlaps;
};

static void named_tables(const struct qcow2 *q, struct named_table t[QCOW2_NAMED_TABLES])
{
    t[0] = (struct named_table){0, 1ull << q->cluster_bits, "The image ends inside its header", ""};
    t[1] = (struct named_table){q->l1_table_offset, q->l1_size * 8ull,
                                "Active L1 table lies beyond the end of the file",
                                "Active L1 table overlaps other metadata"};
    t[2] = (struct named_table){q->refcount_table_offset,
                                (u64)q->refcount_table_clusters << q->cluster_bits,
                                "Reference count table lies beyond the end of the file",
                                "Reference count table overlaps other metadata"};
    t[3] = (struct named_table){q->snapshots_offset, q->snapshots_size,
                                "Snapshot table lies beyond the end of the file",
                                "Snapshot table overlaps other metadata"};
    t[4] = (struct named_table){q->bitmap_directory_offset,
                                qcow2_names_bitmaps(q) ? q->bitmap_directory_size : 0,
                                "Bitmap directory lies beyond the end of the file",
                                "Bitmap directory overlaps other metadata"};
    t[5] = (struct named_table){q->crypto_offset, q->has_crypto_ext ? q->crypto_length : 0,
                                "Encryption header lies beyond the end of the file",
                                "Encryption header overlaps other metadata"};
}

/* Inside the file, whose last cluster may be cut short? Offsets above 2^56 never are. */
static bool inside_file(const struct image *img, u64 off, u64 len)
{
    u64 end, file_end;
    return add_fits(off, len, &end) && end <= QCOW2_MAX_OFFSET &&
           round_up_fits(img->file[0]->size, img->unit, &file_end) && end <= file_end;
}

int qcow2_check_table(const struct image *img, u64 off, u64 len, const char *what, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    bool ok = off % img->unit == 0 && inside_file(img, off, len);
    for (int i = 0; ok && i < QCOW2_NAMED_TABLES; i++)
        ok = off >= q->named[i].end || off + len <= q->named[i].off;
    return ok ? 0 : FAIL(e, ERR_OVERLAY_CORRUPT, what, off, off);
}

/* Alignment of what extensions name; then every named table inside the file and on its own. */
static int check_placement(struct image *img, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    struct named_table t[QCOW2_NAMED_TABLES];
    u64 unit = img->unit;
    named_tables(q, t);
    if (img->file[0]->size < q->header_length)
        return FAIL(e, ERR_PARSE_FAILED, t[0].outside, img->file[0]->size, q->header_length);
    q->named[0].end = unit;
    for (int i = 1; i < QCOW2_NAMED_TABLES; i++) {
        if (t[i].len && (t[i].off % unit || !inside_file(img, t[i].off, t[i].len)))
            return FAIL(e, ERR_OVERLAY_CORRUPT, t[i].outside, t[i].off, t[i].len);
        q->tables_end = max_u64(q->tables_end, t[i].len ? t[i].off + t[i].len : 0);
        q->named[i].off = t[i].off;
        q->named[i].end = t[i].len ? round_up(t[i].off + t[i].len, unit) : 0;
        for (int j = 0; j < i; j++)
            if (ranges_overlap(t[i].off, round_up(t[i].len, unit), t[j].off,
                               round_up(t[j].len, unit)))
                return FAIL(e, ERR_OVERLAY_CORRUPT, t[i].overlaps, t[i].off, t[j].off);
    }
    return 0;
}

/* ---- what those name ---- */

int qcow2_refblock(struct image *img, u64 idx, u64 *off, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    struct table rt = {img->file[0], &img->win, q->refcount_table_offset,
                       qcow2_reftable_entries(q)};
    u64 entry;
    int rc = table_get(&rt, idx, &entry, e);
    if (rc)
        return rc;
    *off = entry & QCOW2_REFTABLE_OFFSET_MASK;
    if (entry & QCOW2_REFTABLE_RESERVED)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "Refcount table entry {off} has reserved bits set: {val:x}", idx, entry);
    return *off ? qcow2_check_table(img, *off, img->unit, "Refcount block at {val} is misplaced", e)
                : 0;
}

int qcow2_snapshot(struct image *img, struct window *win, u64 at, struct qcow2_snapshot *s,
                   struct err *e)
{
    const u8 *p;
    if (!inside_file(img, at, SNAPSHOT_HEAD))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Snapshot table lies beyond the end of the file", at,
                    img->file[0]->size);
    int rc = window_get(win, img->file[0], at, SNAPSHOT_HEAD, at + win->cap, &p, e);
    if (rc)
        return rc;
    u32 extra = be32(p + 36);
    s->l1_table_offset = be64(p);
    s->l1_size = be32(p + 8);
    s->len = round_up(SNAPSHOT_HEAD + (u64)extra + be16(p + 12) + be16(p + 14), 8);
    if (extra > SNAPSHOT_EXTRA_MAX)
        return FAIL(e, ERR_PARSE_FAILED, "Snapshot table too large", at, extra);
    if (s->l1_size > QCOW2_MAX_L1_BYTES / 8)
        return FAIL(e, ERR_PARSE_FAILED, "Snapshot L1 table too large", at, s->l1_size);
    return s->l1_size ? qcow2_check_table(img, s->l1_table_offset, s->l1_size * 8ull,
                                          "Snapshot L1 table at {val} is misplaced", e)
                      : 0;
}

/* Where the snapshot table ends: its entries are of variable length. */
static int measure_snapshots(struct image *img, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    u64 size = 0;
    for (u32 i = 0; i < q->nb_snapshots; i++) {
        struct qcow2_snapshot s;
        int rc = qcow2_snapshot(img, &img->win, q->snapshots_offset + size, &s, e);
        if (rc)
            return rc;
        size += s.len;
        if (size > SNAPSHOT_TABLE_MAX)
            return FAIL(e, ERR_PARSE_FAILED, "Snapshot table too large", q->snapshots_offset, size);
        if (s.l1_size)
            q->tables_end = max_u64(q->tables_end, s.l1_table_offset + s.l1_size * 8ull);
    }
    q->snapshots_size = size;
    return 0;
}

int qcow2_tables_open(struct image *img, struct err *e)
{
    int rc = check_placement(img, e);
    if (rc || !img->u.qcow2.nb_snapshots)
        return rc;
    rc = measure_snapshots(img, e);
    return rc ? rc : check_placement(img, e); /* the snapshot table, now that it has a length */
}
