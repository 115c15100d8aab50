/* SPDX-License-Identifier: MIT
 *
 * Walking all metadata of a qcow2 image: tables stream through win, what they name through win2.
 * Nothing is remembered but the place. Entries are not trusted, and neither is what open() has
 * validated in the snapshot table and the bitmap directory. With an external data file, L2 entries
 * name no cluster of this file. Sources: docs/interop/qcow2.txt, "Host cluster management",
 * "Cluster mapping", "Snapshots", "Bitmaps"; parity C.4, C.7, C.8.
 */
#include "qcow2_walk.h"
#include "qcow2_bitmap.h"

enum { L2_CHUNK = 16 << 10 };

struct walk {
    struct image *img;
    const struct qcow2 *q;
    struct qcow2_visitor *v;
    u64 clear, file_end; /* between these no table stands that the header names */
};

/* An L1 table: the active one (tree 0) or a snapshot's. */
struct tree {
    u32 idx;
    u64 off, cnt;
};

static int visit_table(struct walk *w, u64 off, u64 len, struct err *e)
{
    struct qcow2_ref ref = {.kind = QCOW2_REF_TABLE, .off = off, .len = len};
    return len ? w->v->visit(w->v, &ref, e) : 0;
}

/* What the header names. */
static int header_tables(struct walk *w, struct err *e)
{
    const struct qcow2 *q = w->q;
    int rc = visit_table(w, 0, w->img->unit, e);
    if (!rc)
        rc = visit_table(w, q->l1_table_offset, q->l1_size * 8ull, e);
    if (!rc)
        rc = visit_table(w, q->snapshots_offset, q->snapshots_size, e);
    if (!rc && q->has_crypto_ext)
        rc = visit_table(w, q->crypto_offset, q->crypto_length, e);
    if (!rc && qcow2_names_bitmaps(q))
        rc = visit_table(w, q->bitmap_directory_offset, q->bitmap_directory_size, e);
    return rc;
}

static int refcounts(struct walk *w, struct err *e)
{
    const struct qcow2 *q = w->q;
    int rc = visit_table(w, q->refcount_table_offset,
                         (u64)q->refcount_table_clusters << q->cluster_bits, e);
    for (u64 i = 0, off; !rc && i < qcow2_reftable_entries(q); i++) {
        rc = qcow2_refblock(w->img, i, &off, e);
        if (!rc && off)
            rc = visit_table(w, off, w->img->unit, e);
    }
    return rc;
}

/* ---- bitmaps ---- */

static int bitmap_data(struct walk *w, const struct qcow2_bitmap *b, struct err *e)
{
    int rc = 0;
    for (u64 i = 0, entry; !rc && i < b->table_size; i++) {
        rc = qcow2_bitmap_entry(w->img, b, i, &entry, NULL, e);
        if (!rc && (entry & QCOW2_OFFSET_MASK))
            rc = visit_table(w, entry & QCOW2_OFFSET_MASK, w->img->unit, e);
    }
    return rc;
}

/* The tables of all bitmaps; or, if `data`, the clusters that those name. */
static int bitmaps(struct walk *w, bool data, struct err *e)
{
    struct qcow2_bitmap b;
    u64 at = 0;
    int rc = 0;
    for (u32 i = 0; !rc && qcow2_names_bitmaps(w->q) && i < w->q->nb_bitmaps; i++, at += b.len) {
        rc = qcow2_bitmap_get(w->img, at, &b, e);
        if (!rc)
            rc = data ? bitmap_data(w, &b, e)
                      : visit_table(w, b.table_offset, b.table_size * 8ull, e);
    }
    return rc;
}

/* ---- L1 and L2 ---- */

static int compressed(struct walk *w, struct qcow2_ref *ref, u64 bitmap, struct err *e)
{
    u64 unit = w->img->unit, first, end;
    struct extent x;
    if (bitmap)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Compressed cluster at {off} has a bitmap: {val:x}",
                    ref->at, bitmap);
    int rc = qcow2_packed(w->img, ref->entry, &x, e);
    if (rc)
        return rc;
    first = round_down(x.off, unit);
    end = round_up(x.off + x.packed_len, unit);
    if ((rc = qcow2_check_table(w->img, first, end - first, "Compressed data at {val} is misplaced",
                                e)))
        return rc;
    ref->kind = QCOW2_REF_PACKED;
    ref->off = x.off;
    ref->len = x.packed_len;
    return w->v->visit(w->v, ref, e);
}

/* One L2 entry that is not zero. */
static int l2_entry(struct walk *w, struct qcow2_ref *ref, u64 bitmap, struct err *e)
{
    const struct qcow2 *q = w->q;
    u64 off = ref->entry & QCOW2_OFFSET_MASK;
    if (ref->entry & QCOW2_COMPRESSED)
        return compressed(w, ref, bitmap, e);
    if ((ref->entry & qcow2_l2_reserved(q)) || off % w->img->unit)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "L2 entry at {off} is invalid: {val:x}", ref->at,
                    ref->entry);
    if ((bitmap & bitmap >> 32 & UINT32_MAX) ||
        ((bitmap & UINT32_MAX) && !qcow2_l2_allocated(q, ref->entry)))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Subcluster bitmap at {off} is invalid: {val:x}",
                    ref->at + 8, bitmap);
    if (!off || qcow2_has_data_file(q))
        return 0;
    int rc =
        off >= w->clear && off < w->file_end
            ? 0
            : qcow2_check_table(w->img, off, w->img->unit, "Data cluster at {val} is misplaced", e);
    ref->kind = QCOW2_REF_DATA;
    ref->off = off;
    ref->len = w->img->unit;
    return rc ? rc : w->v->visit(w->v, ref, e);
}

/* A chunk of a table at a time: there may be millions of entries. */
static int l2_table(struct walk *w, const struct tree *t, u64 l2, struct err *e)
{
    u32 size = w->q->l2_entry_size, chunk = (u32)min_u64(L2_CHUNK, w->img->unit);
    for (u64 at = l2; at < l2 + w->img->unit; at += chunk) {
        const u8 *p;
        int rc = window_get(&w->img->win2, w->img->file[0], at, chunk, l2 + w->img->unit, &p, e);
        for (u32 i = 0; !rc && i < chunk; i += size) {
            struct qcow2_ref ref = {.tree = t->idx, .at = at + i, .entry = be64(p + i)};
            u64 bitmap = size == 16 ? be64(p + i + 8) : 0;
            if (ref.entry || bitmap)
                rc = l2_entry(w, &ref, bitmap, e);
        }
        if (rc)
            return rc;
    }
    return 0;
}

/* The L2 tables that an L1 table names; or, if `data`, what those name. */
static int l1_table(struct walk *w, const struct tree *t, bool data, struct err *e)
{
    struct table l1 = {w->img->file[0], &w->img->win, t->off, t->cnt};
    int rc = 0;
    for (u64 i = 0, entry; !rc && i < t->cnt; i++) {
        if ((rc = table_get(&l1, i, &entry, e)) || !entry)
            continue;
        struct qcow2_ref ref = {QCOW2_REF_L2, t->idx, 0, w->img->unit, t->off + i * 8, entry};
        rc = qcow2_l1_entry(w->img, i, entry, &ref.off, e);
        if (!rc && ref.off)
            rc = data ? l2_table(w, t, ref.off, e) : w->v->visit(w->v, &ref, e);
    }
    return rc;
}

enum step { L1_TABLES, L2_TABLES, CLUSTERS };

/* One step for every L1 table: the active one, then the snapshots'. */
static int trees(struct walk *w, enum step step, struct err *e)
{
    struct tree t = {0, w->q->l1_table_offset, w->q->l1_size};
    u64 at = w->q->snapshots_offset;
    int rc = step == L1_TABLES ? 0 : l1_table(w, &t, step == CLUSTERS, e);
    while (!rc && t.idx < w->q->nb_snapshots) {
        struct qcow2_snapshot s;
        if ((rc = qcow2_snapshot(w->img, &w->img->win2, at, &s, e)))
            break;
        at += s.len;
        t = (struct tree){t.idx + 1, s.l1_table_offset, s.l1_size};
        rc = step == L1_TABLES ? visit_table(w, t.off, t.cnt * 8, e)
                               : l1_table(w, &t, step == CLUSTERS, e);
    }
    return rc;
}

int qcow2_walk(struct image *img, struct qcow2_visitor *v, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    struct walk w = {img, q, v, round_up(q->tables_end, img->unit),
                     round_down(img->file[0]->size, img->unit)};
    int rc = header_tables(&w, e);
    if (rc || (v->refcounts && (rc = refcounts(&w, e))) || (rc = trees(&w, L1_TABLES, e)) ||
        (rc = bitmaps(&w, false, e)) || (rc = trees(&w, L2_TABLES, e)) || v->tables_only)
        return rc;
    return (rc = trees(&w, CLUSTERS, e)) ? rc : bitmaps(&w, true, e);
}
