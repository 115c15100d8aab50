/* SPDX-License-Identifier: MIT
 *
 * See qcow2_bitmaps.h. A bitmap's table may become longer than its clusters: then it moves to the
 * end of the file. Bits past the end of the disk are zero in the last cluster of bits, as the
 * specification has it; an entry that stands for ones throughout gets a cluster where the old disk
 * ends inside of it. Only what is written is looked at: the directory, one entry of each table, and
 * on a shrink the entries that go. Source: docs/interop/qcow2.txt, "Bitmaps".
 */
#include "qcow2_bitmaps.h"
#include "qcow2_alloc.h"
#include "qcow2_bitmap.h"
#include "qcow2_drop.h"
#include "qcow2_state.h"

enum { BATCH = 4 /* bitmaps of an epoch that need new clusters */ };

struct bitmaps {
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    u64 *v, old_size, new_size;
    u8 *work;
    struct qcow2_drop drop; /* a shrink's */
    /* What this epoch takes on: the bitmaps before `end`, whose directory entries end at end_at. */
    u64 end, end_at, clusters, drops;
    unsigned heavy, frees;
    struct cluster_run free[BATCH];
};

/* What the new size makes of one bitmap. */
struct change {
    struct qcow2_bitmap b;
    bool none;
    u64 entries;  /* of its table, afterwards */
    u64 table;    /* clusters of its table's new place; 0: it stays */
    u64 in, last; /* the last cluster of bits that stays, and how many bits stay in it; 0: all */
    u64 entry;    /* its table entry */
    bool fresh;   /* which stands for ones, and becomes a cluster */
};

static u64 table_clusters(const struct bitmaps *m, u64 entries)
{
    return div_up(entries * 8, m->img->unit);
}

static u64 entry_cluster(const struct change *c)
{
    return c->in ? c->entry & QCOW2_OFFSET_MASK : 0;
}

/* May this bitmap be resized at all? */
static int check_bitmap(const struct bitmaps *m, const struct change *c, struct err *e)
{
    const struct qcow2_bitmap *b = &c->b;
    int rc = 0;
    if (b->flags & QCOW2_BITMAP_IN_USE)
        rc = FAIL(e, ERR_BITMAPS_UNSUPPORTED, "Bitmap '{name}' is inconsistent and cannot be used",
                  b->off + QB_FLAGS, b->flags);
    else if (b->table_size != qcow2_bitmap_entries(m->q, m->old_size, b->granularity_bits))
        rc = FAIL(e, ERR_OVERLAY_CORRUPT,
                  "Bitmap '{name}' does not fit the disk: its table has {val} entries",
                  b->off + QB_TABLE_SIZE, b->table_size);
    else if (c->entries > QCOW2_MAX_BITMAP_BYTES >> m->q->cluster_bits)
        rc = FAIL(e, ERR_BITMAPS_UNSUPPORTED, "Bitmap '{name}' would become larger than 512 MiB",
                  b->off, c->entries);
    return rc ? qcow2_bitmap_fail(e, rc, b) : 0;
}

/* The bitmap at byte `at` of the directory, and what becomes of it. */
static int look(struct bitmaps *m, u64 at, struct change *c, struct err *e)
{
    u64 per_cluster = 8ull << m->q->cluster_bits;
    *c = (struct change){.none = true};
    int rc = qcow2_bitmap_get(m->img, at, &c->b, e);
    c->entries = rc ? 0 : qcow2_bitmap_entries(m->q, m->new_size, c->b.granularity_bits);
    if (rc || (rc = check_bitmap(m, c, e)))
        return rc;
    u64 old = qcow2_bitmap_bits(m->old_size, c->b.granularity_bits);
    u64 bits = qcow2_bitmap_bits(m->new_size, c->b.granularity_bits), keep = min_u64(old, bits);
    c->none = old == bits;
    if (c->none)
        return 0;
    if (table_clusters(m, c->entries) > table_clusters(m, c->b.table_size))
        c->table = table_clusters(m, c->entries);
    c->in = keep % per_cluster;
    c->last = keep / per_cluster;
    if (!c->in)
        return 0;
    rc = qcow2_bitmap_entry(m->img, &c->b, c->last, &c->entry, NULL, e);
    c->fresh = bits > old && c->entry == QCOW2_BITMAP_ONES;
    return rc;
}

int qcow2_bitmaps_check(struct image *img, u64 new_size, struct err *e)
{
    struct bitmaps m = {
        .img = img, .q = &img->u.qcow2, .old_size = img->size, .new_size = new_size};
    if (!qcow2_bitmaps_valid(m.q))
        return 0;
    int rc = qcow2_bitmap_directory(img, e);
    u64 at = 0;
    for (u32 i = 0; !rc && i < m.q->nb_bitmaps; i++) {
        struct change c;
        rc = look(&m, at, &c, e);
        at += c.b.len;
    }
    return rc;
}

/* As many bitmaps, from the first on that is not done, as one epoch can take. */
static int take(struct bitmaps *m, struct err *e)
{
    m->end = m->v[V_BITMAPS] - 1;
    m->end_at = m->v[V_BITMAPS_AT];
    m->clusters = m->drops = m->heavy = m->frees = 0;
    for (; m->end < m->q->nb_bitmaps; m->end++) {
        struct change c;
        int rc = look(m, m->end_at, &c, e);
        if (rc)
            return rc;
        bool heavy = c.table || c.fresh;
        u64 had = c.b.table_size, has = c.entries, drops = 0;
        if (has < had)
            drops = had - has + table_clusters(m, had) - table_clusters(m, has);
        if (m->heavy + heavy > BATCH || (m->drops && m->drops + drops > m->drop.cap))
            break;
        m->heavy += heavy;
        m->drops += drops;
        m->clusters += c.table + c.fresh;
        if (c.table)
            m->free[m->frees++] = (struct cluster_run){c.b.table_offset >> m->q->cluster_bits,
                                                       table_clusters(m, had)};
        m->end_at += c.b.len;
    }
    return 0;
}

static void taken(struct bitmaps *m)
{
    m->v[V_BITMAPS] = m->end + 1;
    m->v[V_BITMAPS_AT] = m->end_at;
}

/* ---- what is emitted for one bitmap ---- */

/* The longer table; `to`: where it stands. */
static int longer_table(struct bitmaps *m, const struct change *c, u64 to, struct err *e)
{
    u64 from = c->b.table_offset, had = c->b.table_size, copied = had - c->fresh;
    if (to == from)
        return plan_zero(m->s, from + had * 8, (c->entries - had) * 8, "new bitmap table entries",
                         e);
    return copied ? plan_copy(m->s, to, from, copied * 8, "a bitmap table, at its new place", e)
                  : 0;
}

/* A cluster of bits at `off` in the place of an entry for ones: ones as far as the old disk goes.
 */
static int ones(struct bitmaps *m, const struct change *c, u64 table, u64 off, struct err *e)
{
    u8 entry[8];
    memset(m->work, 0xff, c->in / 8);
    m->work[c->in / 8] = (u8)((1 << c->in % 8) - 1);
    int rc = plan_write(m->s, off, m->work, div_up(c->in, 8), "bits of the old disk, all set", e);
    put_be64(entry, off);
    return rc ? rc : plan_write(m->s, table + c->last * 8, entry, 8, "link the cluster of bits", e);
}

/* Zeros in the last cluster of bits that stays, past the end of the disk. */
static int clear_rest(struct bitmaps *m, const struct change *c, struct err *e)
{
    u64 at = entry_cluster(c) + c->in / 8, end = entry_cluster(c) + m->img->unit;
    bool any = false;
    const u8 *p;
    int rc = window_get(&m->img->win2, m->img->file[0], at, 1, end, &p, e);
    if (rc)
        return rc;
    u8 was = *p, byte = was & ((1 << c->in % 8) - 1);
    if (byte != was)
        rc = plan_write(m->s, at, &byte, 1, "bits past the end of the disk", e);
    for (u64 i = ++at, n; !rc && !any && i < end; i += n) {
        n = min_u64(end - i, BLK_SECTOR_MAX);
        rc = window_get(&m->img->win2, m->img->file[0], i, (u32)n, end, &p, e);
        for (u64 k = 0; !rc && k < n; k++)
            any |= p[k] != 0;
    }
    return rc || !any ? rc : plan_zero(m->s, at, end - at, "bits past the end of the disk", e);
}

/* Lists the clusters of bits past the new end, and those of the table that are not needed for what
 * stays. What no sound bitmap names leaks. */
static int list_cut(struct bitmaps *m, const struct change *c, struct err *e)
{
    u64 first = c->b.table_offset >> m->q->cluster_bits;
    for (u64 i = c->entries; i < c->b.table_size; i++) {
        u64 entry;
        bool sound;
        int rc = qcow2_bitmap_entry(m->img, &c->b, i, &entry, &sound, e);
        if (rc)
            return rc;
        if (sound && (entry & QCOW2_OFFSET_MASK))
            qcow2_drop_add(&m->drop, (entry & QCOW2_OFFSET_MASK) >> m->q->cluster_bits);
    }
    for (u64 i = table_clusters(m, c->entries); i < table_clusters(m, c->b.table_size); i++)
        qcow2_drop_add(&m->drop, first + i);
    return 0;
}

/* *next: the first new cluster that nobody has. */
static int change_one(struct bitmaps *m, const struct change *c, u64 *next, struct err *e)
{
    u64 table = c->table ? *next * m->img->unit : c->b.table_offset;
    u8 fields[12];
    int rc = 0;
    *next += c->table;
    if (c->entries > c->b.table_size)
        rc = longer_table(m, c, table, e);
    if (!rc && c->fresh)
        rc = ones(m, c, table, (*next)++ * m->img->unit, e);
    else if (!rc && entry_cluster(c))
        rc = clear_rest(m, c, e);
    if (!rc && c->entries < c->b.table_size)
        rc = list_cut(m, c, e);
    if (rc || c->entries == c->b.table_size)
        return rc;
    put_be64(fields, table);
    put_be32(fields + 8, (u32)c->entries);
    return plan_write(m->s, c->b.off + QB_TABLE_OFFSET, fields, sizeof fields,
                      "the bitmap's table, and how long it is now", e);
}

/* An epoch: the next few bitmaps. No order is needed while they are stale. */
static int step(struct bitmaps *m, struct err *e)
{
    u64 size = m->img->file[0]->size, want = round_up(size, m->img->unit);
    struct qcow2_alloc a = {.end = 0};
    int rc = take(m, e);
    if (!rc && m->clusters)
        rc = qcow2_alloc_place(m->img, m->clusters, m->free, m->frees, &a, e);
    if (!rc && m->drops)
        rc = qcow2_drop_spare_blocks(m->img, &m->drop, e);
    if (rc)
        return rc;
    if (a.reftable.cnt)
        return qcow2_alloc_move_reftable(m->img, &a, m->s, e);
    want = max_u64(want, a.end * m->img->unit);
    if (want > size)
        rc = plan_length(m->s, want, "whole clusters, for the bitmaps", e);
    u64 at = m->v[V_BITMAPS_AT], next = a.payload.first;
    for (u64 i = m->v[V_BITMAPS] - 1; !rc && i < m->end; i++) {
        struct change c;
        if (!(rc = look(m, at, &c, e)) && !c.none)
            rc = change_one(m, &c, &next, e);
        at += c.b.len;
    }
    if (!rc && m->clusters)
        rc = qcow2_alloc_emit(m->img, &a, m->s, e);
    if (!rc && m->frees)
        rc = qcow2_release(m->img, &a, m->free, m->frees, m->s, "a bitmap table's old place", e);
    if (!rc && m->drop.cnt)
        rc = qcow2_drop_emit(m->img, &m->drop, m->s, "bits past the new end", e);
    taken(m);
    return rc ? rc : plan_barrier(m->s, "bitmaps fit the new size", e);
}

/* ---- the first epoch ---- */

/* A run of clusters as a number that sorts by where it begins; tables have at most 2^14 clusters.
 */
static u64 run_key(u64 first, u64 cnt)
{
    return first << 16 | cnt;
}

/* Will be written in place: must be counted once, or somebody else has it too. */
static int check_counts(struct bitmaps *m, u64 off, u64 cnt, const struct change *c, struct err *e)
{
    for (u64 i = 0; i < cnt; i++) {
        u64 idx = (off >> m->q->cluster_bits) + i, count;
        int rc = qcow2_refcount_get(m->img, idx, &count, e);
        if (!rc && count != 1)
            rc = qcow2_bitmap_fail(e,
                                   FAIL(e, ERR_INCONSISTENT,
                                        "A cluster of bitmap '{name}', at {off}, is counted {val} "
                                        "times; run 'qemu-img check -r all' on the image",
                                        idx << m->q->cluster_bits, count),
                                   &c->b);
        if (rc)
            return rc;
    }
    return 0;
}

/* No two of what the plan relies on may overlap: tables, refcount blocks, clusters of bits that are
 * written. So the plan is no longer than the file, whatever the directory says. */
static int check_disjoint(struct bitmaps *m, u64 *keys, u64 *tmp, u64 cnt, struct err *e)
{
    keys = qcow2_sort(keys, tmp, cnt, 0);
    for (u64 i = 1; i < cnt; i++)
        if ((keys[i - 1] >> 16) + (keys[i - 1] & 0xffff) > keys[i] >> 16)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "A bitmap at {val} overlaps other metadata", 0,
                        keys[i] >> 16 << m->q->cluster_bits);
    return 0;
}

/* Equal hashes are taken for equal names. */
static int check_names(u64 *names, u64 *tmp, u64 cnt, struct err *e)
{
    names = qcow2_sort(names, tmp, cnt, 0);
    for (u64 i = 1; i < cnt; i++)
        if (names[i] == names[i - 1])
            return FAIL(e, ERR_OVERLAY_CORRUPT, "Two bitmaps have the same name", 0, cnt);
    return 0;
}

/* Every refcount block, as runs. */
static int list_blocks(struct bitmaps *m, u64 *keys, u64 *cnt, struct err *e)
{
    for (u64 i = 0, off; i < qcow2_reftable_entries(m->q); i++) {
        int rc = qcow2_refblock(m->img, i, &off, e);
        if (rc)
            return rc;
        if (off)
            keys[(*cnt)++] = run_key(off >> m->q->cluster_bits, 1);
    }
    return 0;
}

/* Looks at every bitmap; refuses what cannot be resized, before anything is written. */
static int survey(struct bitmaps *m, size_t work_len, struct err *e)
{
    u64 nb = m->q->nb_bitmaps, cap = qcow2_reftable_entries(m->q) + 2 * nb, cnt = 0, at = 0;
    u64 *names = (u64 *)(void *)m->work, *keys = names + nb, *tmp = keys + cap;
    assert((nb + 2 * cap) * 8 <= work_len);
    int rc = list_blocks(m, keys, &cnt, e);
    for (u64 i = 0; !rc && i < nb; i++) {
        struct change c;
        if ((rc = look(m, at, &c, e)))
            return rc;
        u64 clusters = table_clusters(m, c.b.table_size), data = entry_cluster(&c);
        names[i] = c.b.name_hash;
        keys[cnt++] = run_key(c.b.table_offset >> m->q->cluster_bits, clusters);
        if (data)
            keys[cnt++] = run_key(data >> m->q->cluster_bits, 1);
        at += c.b.len;
    }
    if (!rc && at != m->q->bitmap_directory_size)
        rc = FAIL(e, ERR_OVERLAY_CORRUPT, "Broken bitmap directory", at,
                  m->q->bitmap_directory_size);
    if (!rc)
        rc = check_disjoint(m, keys, tmp, cnt, e);
    return rc ? rc : check_names(names, tmp, nb, e);
}

/* Takes all epochs in turn, but for what they emit. *clusters: all that they allocate. */
static int rehearse_bitmaps(struct bitmaps *m, u64 *clusters, struct err *e)
{
    for (*clusters = 0; m->v[V_BITMAPS] <= m->q->nb_bitmaps; *clusters += m->clusters) {
        struct qcow2_alloc a;
        u64 at = m->v[V_BITMAPS_AT];
        int rc = take(m, e);
        if (!rc && m->clusters)
            rc = qcow2_alloc_place(m->img, m->clusters, m->free, m->frees, &a, e);
        for (u64 i = m->v[V_BITMAPS] - 1; !rc && i < m->end; i++) {
            struct change c;
            rc = look(m, at, &c, e);
            at += c.b.len;
            if (rc || c.none)
                continue;
            rc = check_counts(m, c.b.table_offset, table_clusters(m, c.b.table_size), &c, e);
            if (!rc && entry_cluster(&c))
                rc = check_counts(m, entry_cluster(&c), 1, &c, e);
        }
        if (rc)
            return rc;
        taken(m);
    }
    return 0;
}

/* Takes patches and performs none. */
struct rehearsal {
    struct sink sink;
    u64 length; /* that the file comes to */
};

static int ignore(struct sink *s, const struct patch *p, struct err *e)
{
    struct rehearsal *r = (struct rehearsal *)s;
    (void)e;
    if (p->kind == PATCH_LENGTH)
        r->length = max_u64(r->length, p->len);
    return 0;
}

/* Is there room for what the bitmaps allocate, besides the resize's own, which ends at `length`? */
static int check_room(const struct bitmaps *m, u64 clusters, u64 length, struct err *e)
{
    static const u8 none[QCOW2_ALLOC_BLOCKS / 8];
    const struct qcow2 *q = m->q;
    struct qcow2_alloc_in in = {q->cluster_bits, q->refcount_order, q->refcount_table_clusters,
                                div_up(length, m->img->unit), none};
    struct qcow2_alloc a;
    int rc = qcow2_alloc_query(&in, clusters, &a, e);
    return rc || a.blocks > QCOW2_ALLOC_BLOCKS
               ? rc
               : qcow2_alloc_place(m->img, clusters, NULL, 0, &a, e);
}

/* The resize's first epoch, and all of the bitmaps', as if. Sets state->eventual. */
static int rehearse(struct bitmaps *m, const struct resize_args *a, struct plan_state *state,
                    qcow2_resize_fn *resize, struct err *e)
{
    struct rehearsal r = {{ignore}, m->img->file[0]->size};
    struct plan_state copy = *state;
    u64 clusters;
    int rc = resize(m->img, a, &copy, &r.sink, e);
    r.length = max_u64(round_up(r.length, m->img->unit), copy.eventual);
    copy = *state;
    copy.v[V_BITMAPS] = 1;
    m->v = copy.v;
    if (rc || (rc = rehearse_bitmaps(m, &clusters, e)) ||
        (clusters && (rc = check_room(m, clusters, r.length, e))))
        return rc;
    state->eventual = clusters ? qcow2_alloc_eventual(m->img, r.length, clusters) : r.length;
    return 0;
}

/* As the specification demands before anything else is changed: the bitmaps are stale from here on,
 * and bits that this program does not know are cleared. */
static int begin(struct bitmaps *m, const struct resize_args *a, struct plan_state *state,
                 qcow2_resize_fn *resize, struct err *e)
{
    u8 field[8];
    int rc = survey(m, a->work_len, e);
    if (rc || (rc = rehearse(m, a, state, resize, e)))
        return rc;
    state->v[V_BITMAPS] = 1;
    state->v[V_BITMAPS_AT] = 0;
    put_be64(field, m->q->autoclear & QCOW2_AUTOCLEAR_KNOWN & ~QCOW2_AUTOCLEAR_BITMAPS);
    rc = plan_write(m->s, QH_AUTOCLEAR_FEATURES, field, 8,
                    "bitmaps are stale while they and the disk are resized", e);
    return rc ? rc : plan_barrier(m->s, "before anything else is changed", e);
}

bool qcow2_bitmaps_pending(const struct image *img, const struct plan_state *state)
{
    const struct qcow2 *q = &img->u.qcow2;
    return state->v[V_BITMAPS] ? state->v[V_BITMAPS] <= q->nb_bitmaps : qcow2_bitmaps_valid(q);
}

int qcow2_plan_bitmaps(struct image *img, const struct resize_args *a, struct plan_state *state,
                       qcow2_resize_fn *resize, struct sink *s, struct err *e)
{
    struct bitmaps m = {.img = img,
                        .q = &img->u.qcow2,
                        .s = s,
                        .v = state->v,
                        .old_size = img->size,
                        .new_size = a->new_size,
                        .work = a->work};
    int rc = qcow2_bitmap_directory(img, e);
    if (rc)
        return rc;
    qcow2_drop_init(img, &m.drop, a->work, a->work_len, true);
    state->more = true;
    return state->v[V_BITMAPS] ? step(&m, e) : begin(&m, a, state, resize, e);
}

void qcow2_bitmaps_revive(const struct plan_state *state, struct qcow2_header *h)
{
    if (state->v[V_BITMAPS])
        qcow2_header_put64(h, QH_AUTOCLEAR_FEATURES,
                           be64(h->bytes + QH_AUTOCLEAR_FEATURES) | QCOW2_AUTOCLEAR_BITMAPS);
}
