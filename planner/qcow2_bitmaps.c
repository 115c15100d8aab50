/* SPDX-License-Identifier: MIT
 *
 * See qcow2_bitmaps.h. Before the first epoch all bitmaps are looked at, and all that the epochs
 * would do is gone through; then each epoch takes on the next few. What becomes of a bitmap is
 * qcow2_bitmap_change.c's. Source: docs/interop/qcow2.txt, "Bitmaps".
 */
#include "qcow2_bitmaps.h"
#include "qcow2_alloc.h"
#include "qcow2_bitmap_change.h"
#include "qcow2_state.h"

enum { BATCH = 4 /* bitmaps of an epoch that need new clusters */ };

struct bitmaps {
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    u64 *v, new_size;
    u8 *work;
    struct qcow2_drop drop; /* a shrink's */
    /* What this epoch takes on: the bitmaps before `end`, whose directory entries end at end_at. */
    u64 end, end_at, clusters, drops;
    unsigned heavy, frees;
    struct cluster_run free[BATCH];
};

int qcow2_bitmaps_check(struct image *img, u64 new_size, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    if (!qcow2_bitmaps_valid(q))
        return 0;
    int rc = qcow2_bitmap_directory(img, e);
    u64 at = 0;
    for (u32 i = 0; !rc && i < q->nb_bitmaps; i++) {
        struct qcow2_bitmap_change c;
        rc = qcow2_bitmap_change(img, new_size, at, &c, e);
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
        struct qcow2_bitmap_change c;
        int rc = qcow2_bitmap_change(m->img, m->new_size, m->end_at, &c, e);
        if (rc)
            return rc;
        bool heavy = c.table || c.fresh;
        u64 drops = 0;
        if (c.entries < c.b.table_size)
            drops = c.b.table_size - c.entries + c.had - c.clusters;
        if (m->heavy + heavy > BATCH || (m->drops && m->drops + drops > m->drop.cap))
            break;
        m->heavy += heavy;
        m->drops += drops;
        m->clusters += c.table + c.fresh;
        if (c.table)
            m->free[m->frees++] =
                (struct cluster_run){c.b.table_offset >> m->q->cluster_bits, c.had};
        m->end_at += c.b.len;
    }
    return 0;
}

static void taken(struct bitmaps *m)
{
    m->v[V_BITMAPS] = m->end + 1;
    m->v[V_BITMAPS_AT] = m->end_at;
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
        struct qcow2_bitmap_change c;
        if (!(rc = qcow2_bitmap_change(m->img, m->new_size, at, &c, e)) && !c.none)
            rc = qcow2_bitmap_emit(m->img, &c, &next, m->work, &m->drop, m->s, e);
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
static int check_counts(struct bitmaps *m, u64 off, u64 cnt, const struct qcow2_bitmap *b,
                        struct err *e)
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
                                   b);
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
        struct qcow2_bitmap_change c;
        if ((rc = qcow2_bitmap_change(m->img, m->new_size, at, &c, e)))
            return rc;
        names[i] = c.b.name_hash;
        keys[cnt++] = run_key(c.b.table_offset >> m->q->cluster_bits, c.had);
        if (c.bits)
            keys[cnt++] = run_key(c.bits >> m->q->cluster_bits, 1);
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
            struct qcow2_bitmap_change c;
            rc = qcow2_bitmap_change(m->img, m->new_size, at, &c, e);
            at += c.b.len;
            if (rc || c.none)
                continue;
            rc = check_counts(m, c.b.table_offset, c.had, &c.b, e);
            if (!rc && c.bits)
                rc = check_counts(m, c.bits, 1, &c.b, e);
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
