/* SPDX-License-Identifier: MIT
 *
 * See qcow2_fill.h. In an epoch: new L2 tables and data clusters -> their counts -> barrier -> what
 * links them: L1 entries past the old end of the disk, and entries of an L2 table that exists. A
 * cluster that the guest can see already (the last one, where it was a hole) reads zero before and
 * after. Source: docs/interop/qcow2.txt, "Cluster mapping".
 */
#include "qcow2_fill.h"
#include "qcow2_drop.h"

enum {
    BATCH_CLUSTERS = 32768, /* data clusters of an epoch, about; at least one table's */
    BATCH_TABLES = 512,     /* so that their L1 entries fit a stack buffer */
    CHUNK = 64 << 10,       /* bytes of an L2 table per patch */
};

struct fill {
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    const struct qcow2_fill_args *a;
    bool head;                 /* the first cluster is one of data, whatever the kind */
    u64 per_table, first, end; /* clusters of the disk: [first, end) in this epoch */
    u64 l1_first, tables;      /* L1 entries that serve them */
    u64 old_l2;                /* the first of them, if it exists */
    struct qcow2_alloc alloc;
};

static u64 new_tables(const struct fill *f)
{
    return f->tables - (f->old_l2 != 0);
}

/* The part of the epoch's clusters that table t of it maps: [*from, *to), by index in the table. */
static void table_part(const struct fill *f, u64 t, u64 *from, u64 *to)
{
    u64 base = (f->l1_first + t) * f->per_table;
    *from = max_u64(f->first, base) - base;
    *to = min_u64(f->end - base, f->per_table);
}

/* Data clusters of this epoch: all, or the first, or none. In an external data file they take no
 * cluster of this one. */
static u64 data_clusters(const struct fill *f)
{
    return f->a->kind == QCOW2_FILL_DATA ? f->end - f->first : f->head;
}

/* Where the data clusters of the epoch stand: behind the new tables, or in the data file, where the
 * guest has them. */
static u64 first_data(const struct fill *f)
{
    return qcow2_has_data_file(f->q) ? f->first : f->alloc.payload.first + new_tables(f);
}

/* The entry of cluster c of the disk. */
static void put_entry(const struct fill *f, u64 c, u8 *p)
{
    bool data = c - f->first < data_clusters(f), extl2 = f->q->l2_entry_size == 16;
    u64 at = first_data(f) + c - f->first;
    put_be64(p, data ? at << f->q->cluster_bits | QCOW2_COPIED : extl2 ? 0 : QCOW2_L2_ZERO);
    if (extl2)
        put_be64(p + 8, data ? 0xffffffffull : 0xffffffffull << 32);
}

/* Writes the entries of table t, which stands at l2. */
static int emit_entries(struct fill *f, u64 t, u64 l2, struct err *e)
{
    u64 size = f->q->l2_entry_size, from, to;
    int rc = 0;
    for (table_part(f, t, &from, &to); !rc && from < to;) {
        u64 n = min_u64(to - from, CHUNK / size);
        for (u64 i = 0; i < n; i++)
            put_entry(f, (f->l1_first + t) * f->per_table + from + i, f->a->work + i * size);
        rc = plan_write(f->s, l2 + from * size, f->a->work, n * size,
                        f->a->kind == QCOW2_FILL_DATA ? "L2 entries: preallocated clusters"
                                                      : "L2 entries: zero clusters",
                        e);
        from += n;
    }
    return rc;
}

/* What the data clusters hold. Where they must be allocated by the host, that goes as far as the
 * new disk in a data file, which ends there. */
static int emit_data(struct fill *f, struct err *e)
{
    u8 slot = qcow2_has_data_file(f->q);
    u64 off = first_data(f) << f->q->cluster_bits;
    u64 end = off + (data_clusters(f) << f->q->cluster_bits);
    int rc = 0;
    if (slot)
        end = min_u64(end, f->a->end);
    if (f->head)
        rc = plan_emit(f->s,
                       (struct patch){.kind = PATCH_WRITE,
                                      .slot = slot,
                                      .off = off,
                                      .len = f->a->head_len,
                                      .data = f->a->head,
                                      .why = "what the backing file shows before the old end of "
                                             "the disk"},
                       e);
    if (f->head)
        off += f->a->head_len;
    return rc ? rc
              : plan_preallocate(f->s, slot, off, end - off, f->a->preallocation, f->a->work, e);
}

/* Everything that nothing points at yet. */
static int emit_new(struct fill *f, struct err *e)
{
    u64 end = max_u64(f->alloc.end * f->img->unit, round_up(f->img->file[0]->size, f->img->unit));
    int rc = plan_length(f->s, end, "room for what is mapped", e);
    for (u64 t = f->old_l2 != 0; !rc && t < f->tables; t++)
        rc = emit_entries(f, t, (f->alloc.payload.first + t - (f->old_l2 != 0)) * f->img->unit, e);
    if (!rc)
        rc = emit_data(f, e);
    if (rc || f->alloc.payload.cnt)
        return rc ? rc : qcow2_alloc_emit(f->img, &f->alloc, f->s, e);
    return plan_barrier(f->s, "what will be mapped is durable", e);
}

static int link_new(struct fill *f, struct err *e)
{
    u8 entries[BATCH_TABLES * 8];
    u64 n = new_tables(f), skip = f->old_l2 != 0;
    int rc = skip ? emit_entries(f, 0, f->old_l2, e) : 0;
    for (u64 i = 0; i < n; i++)
        put_be64(entries + i * 8, (f->alloc.payload.first + i) * f->img->unit | QCOW2_COPIED);
    if (!rc && n)
        rc = plan_write(f->s, f->q->l1_table_offset + (f->l1_first + skip) * 8, entries, n * 8,
                        "L1 entries past the end of the disk", e);
    return rc ? rc : plan_barrier(f->s, "mapped, but not yet a part of the disk", e);
}

int qcow2_fill_step(struct image *img, const struct qcow2_fill_args *a, u64 *voff, struct sink *s,
                    struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    struct fill f = {.img = img, .q = q, .s = s, .a = a, .per_table = 1ull << q->l2_bits};
    f.head = a->head && *voff == a->head_at;
    f.first = *voff >> q->cluster_bits;
    f.l1_first = f.first / f.per_table;
    f.tables = min_u64(BATCH_TABLES, max_u64(1, BATCH_CLUSTERS / f.per_table));
    f.end = min_u64(div_up(a->end, img->unit), (f.l1_first + f.tables) * f.per_table);
    f.tables = div_up(f.end, f.per_table) - f.l1_first;
    int rc = qcow2_l1_get(img, f.l1_first, &f.old_l2, e);
    u64 clusters = new_tables(&f) + (qcow2_has_data_file(q) ? 0 : data_clusters(&f));
    if (!rc && clusters)
        rc = qcow2_alloc_place(img, clusters, NULL, 0, &f.alloc, e);
    if (rc)
        return rc;
    if (f.alloc.reftable.cnt)
        return qcow2_alloc_move_reftable(img, &f.alloc, s, e);
    *voff = f.end << q->cluster_bits;
    rc = emit_new(&f, e);
    return rc ? rc : link_new(&f, e);
}

u64 qcow2_fill_eventual(const struct image *img, enum qcow2_fill_kind kind, u64 size, u64 voff,
                        u64 end)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 data = div_up(end, img->unit) - (voff >> q->cluster_bits);
    u64 n = div_up(data, 1ull << q->l2_bits) + 1;
    if (!qcow2_has_data_file(q))
        n += kind == QCOW2_FILL_DATA ? data : 1;
    return qcow2_alloc_eventual(img, size, n);
}

/* The refcount blocks that count [first, end) must be sound; *after: behind the last cluster of it
 * that has a count, or first. */
static int last_counted(struct image *img, u64 first, u64 end, u64 *after, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u32 bits = qcow2_refblock_bits(q);
    u64 blocks = min_u64(qcow2_reftable_entries(q), ((end - 1) >> bits) + 1);
    *after = first;
    for (u64 b = first >> bits; b < blocks; b++) {
        u64 off, count;
        int rc = qcow2_refblock_sound(img, b, &off, e);
        for (u64 i = max_u64(first, b << bits); !rc && off && i < min_u64(end, (b + 1) << bits);
             i++)
            if (!(rc = qcow2_refcount_get(img, i, &count, e)) && count)
                *after = i + 1;
        if (rc)
            return rc;
    }
    return 0;
}

int qcow2_fill_foresee(struct image *img, const struct qcow2_fill_args *a, u64 voff, void *work,
                       size_t len, u64 *size, u64 *eventual, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 start = div_up(*size, img->unit), from = start, after = start;
    struct qcow2_drop d;
    qcow2_drop_init(img, &d, work, len, true);
    int rc = qcow2_drop_spare_blocks(img, &d, e); /* each in its place, and no two in one */
    if (rc)
        return rc;
    do {
        from = after;
        *eventual = qcow2_fill_eventual(img, a->kind, from * img->unit, voff, a->end);
        u64 last = *eventual / img->unit;
        if (*eventual > QCOW2_MAX_OFFSET ||
            last >> qcow2_refblock_bits(q) >= QCOW2_MAX_REFTABLE_BYTES / 8)
            return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                        "The refcount table cannot count a file of {val} clusters; a larger "
                        "cluster size is needed",
                        0, last);
        if ((rc = last_counted(img, from, last, &after, e)))
            return rc;
        if ((after - start) * img->unit > QCOW2_SKIP_MAX)
            return FAIL(e, ERR_INCONSISTENT,
                        "Clusters past the end of the file are marked as in use; run 'qemu-img "
                        "check -r all' on the image",
                        0, after * img->unit);
    } while (after > from);
    if (from > start)
        *size = from * img->unit;
    return 0;
}
