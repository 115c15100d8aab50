/* SPDX-License-Identifier: MIT
 *
 * Growing a qcow2 image. What the old header cannot reach is written first (the new L1 table and
 * refcount blocks behind the old end of the file, zeros past the old end of the disk), then the
 * commit: one write inside header sector 0. What the commit left unused is given back after it. A
 * crash leaves leaked clusters at most.
 *
 * One epoch; but where the disk ends inside a shared cluster, whose copy must be counted before it
 * is linked, and the refcount table is too short for that, the table moves in an epoch of its own.
 * With preallocation, or a backing file that is longer than the disk, that epoch leaves the size as
 * it is; others map the new area, a batch each; the last one sets the size.
 * Sources: planner/plan.h (P1-P11); docs/interop/qcow2.txt, "Header", "Cluster mapping".
 */
#include "qcow2_grow.h"
#include "copy.h"
#include "qcow2_bitmaps.h"
#include "qcow2_data.h"
#include "qcow2_fill.h"
#include "qcow2_header.h"
#include "qcow2_state.h"
#include "qcow2_walk.h"

/* How the L1 table becomes longer; the clusters that takes. ERR_INVALID_NEW_SIZE. */
static int l1_query(const struct qcow2_grow_in *in, struct qcow2_grow *out, struct err *e)
{
    u64 cluster = 1ull << in->alloc.cluster_bits;
    u64 entries = div_up(in->new_size, 1ull << (in->alloc.cluster_bits + in->l2_bits));
    *out = (struct qcow2_grow){.l1_size = in->l1_size};
    if (entries > QCOW2_MAX_L1_BYTES / 8)
        return FAIL(e, ERR_INVALID_NEW_SIZE, "Failed to grow the L1 table: File too large", 0,
                    entries);
    if (entries <= in->l1_size)
        return 0;
    out->l1_size = (u32)entries;
    out->action = QCOW2_L1_IN_PLACE;
    if (!in->l1_size || entries * 8 > round_up(in->l1_size * 8ull, cluster)) {
        out->action = QCOW2_L1_GROW;
        out->l1_clusters = div_up(entries * 8, cluster);
    }
    return 0;
}

static void set_action(struct qcow2_grow *out)
{
    if (out->alloc.reftable.cnt)
        out->action = QCOW2_L1_AND_REFCOUNT_GROW;
    else if (out->alloc.refblocks.cnt)
        out->action = QCOW2_L1_AND_REFBLOCK;
}

int qcow2_grow_query(const struct qcow2_grow_in *in, struct qcow2_grow *out, struct err *e)
{
    int rc = l1_query(in, out, e);
    if (!rc && out->l1_clusters + in->extra)
        rc = qcow2_alloc_query(&in->alloc, out->l1_clusters + in->extra, &out->alloc, e);
    set_action(out);
    return rc;
}

/* What the steps below share. */
struct grow {
    struct image *img;
    struct sink *s;
    const struct qcow2 *q;
    u64 cluster, new_size;
    enum qcow2_fill_kind fill; /* how the new area is mapped before it is a part of the disk */
    struct qcow2_grow plan;
    struct qcow2_tail tail;
    struct cluster_run free[2 + QCOW2_TAIL_CLUSTERS];
    unsigned frees;
    u64 room;   /* a fill needs the file to be as long as this before it begins */
    bool wrote; /* something precedes the commit that must be durable first */
};

static void gives_back(struct grow *g, u64 off, u64 bytes)
{
    if (bytes)
        g->free[g->frees++] =
            (struct cluster_run){off >> g->q->cluster_bits, div_up(bytes, g->cluster)};
}

/* Where everything goes, and what becomes free: the old L1 table, the old refcount table, and what
 * was copied. */
static int place(struct grow *g, struct err *e)
{
    const struct qcow2 *q = g->q;
    struct qcow2_grow_in in = {{q->cluster_bits}, q->l2_bits, q->l1_size, g->new_size, 0};
    u64 clusters;
    g->tail = (struct qcow2_tail){.size = g->img->size, .own_l2 = g->fill != QCOW2_FILL_NONE};
    int rc = l1_query(&in, &g->plan, e);
    if (rc || (rc = qcow2_tail_look(g->img, &g->tail, e)))
        return rc;
    if (g->plan.l1_clusters)
        gives_back(g, q->l1_table_offset, q->l1_size * 8ull);
    for (unsigned i = 0; i < g->tail.frees; i++)
        g->free[g->frees++] = g->tail.free[i];
    clusters = g->plan.l1_clusters + qcow2_tail_clusters(&g->tail);
    if (!clusters)
        return 0;
    if ((rc = qcow2_alloc_place(g->img, clusters, g->free, g->frees, &g->plan.alloc, e)))
        return rc;
    set_action(&g->plan);
    qcow2_tail_place(g->img, &g->tail, g->plan.alloc.payload.first + g->plan.l1_clusters);
    if (g->plan.alloc.reftable.cnt) {
        gives_back(g, q->refcount_table_offset, (u64)q->refcount_table_clusters * g->cluster);
        rc = qcow2_alloc_place(g->img, clusters, g->free, g->frees, &g->plan.alloc, e);
    }
    return rc;
}

/* L1 entries past the old end of the disk that the new disk would reach, and that are not zero:
 * they lie in [*first, *end), which may be empty. */
static int stale_l1(struct grow *g, u64 *first, u64 *end, struct err *e)
{
    struct table l1 = {g->img->file[0], &g->img->win, g->q->l1_table_offset, g->q->l1_size};
    u64 last = min_u64(g->q->l1_size, qcow2_l1_entries(g->q, g->new_size));
    *first = *end = 0;
    for (u64 i = qcow2_l1_entries(g->q, g->img->size); i < last; i++) {
        u64 entry;
        int rc = table_get(&l1, i, &entry, e);
        if (rc)
            return rc;
        if (entry) {
            *first = *end ? *first : i;
            *end = i + 1;
        }
    }
    return 0;
}

/* P11: they are cleared. Where the table moves they are not copied. */
static int clear_l1(struct grow *g, struct err *e)
{
    u64 first, end;
    int rc = stale_l1(g, &first, &end, e);
    if (rc || first == end)
        return rc;
    g->wrote = true;
    return plan_zero(g->s, g->q->l1_table_offset + first * 8, (end - first) * 8,
                     "stale L1 entries past the old end of the disk", e);
}

static int longer_l1(struct grow *g, struct err *e)
{
    g->wrote = true;
    return plan_zero(g->s, g->q->l1_table_offset + g->q->l1_size * 8ull,
                     (g->plan.l1_size - g->q->l1_size) * 8ull, "the new L1 entries", e);
}

static int no_matter(struct qcow2_visitor *v, const struct qcow2_ref *r, struct err *e)
{
    (void)v, (void)r, (void)e;
    return 0;
}

/* An L1 table that moves is copied as it is: no entry may name what becomes free, or is new. Where
 * it stays and has stale entries, they may be something else in truth: an l1_size that is too large
 * makes them of whatever follows. No sound tool leaves any, so it may take time to look. */
static int check_l1(struct grow *g, struct err *e)
{
    struct table l1 = {g->img->file[0], &g->img->win, g->q->l1_table_offset, g->q->l1_size};
    u64 used = g->plan.l1_clusters ? qcow2_l1_entries(g->q, g->img->size) : 0, first, end;
    struct qcow2_visitor all = {.visit = no_matter, .refcounts = true};
    int rc = 0;
    for (u64 i = 0, l2; !rc && i < used; i++) {
        rc = table_get(&l1, i, &l2, e);
        if (!rc && l2)
            rc = qcow2_l1_get(g->img, i, &l2, e);
    }
    if (rc || g->plan.l1_clusters || (rc = stale_l1(g, &first, &end, e)) || first == end)
        return rc;
    return qcow2_walk(g->img, &all, e);
}

/* The new L1 table: the entries of the old disk, the rest zero. */
static int new_l1(struct grow *g, struct err *e)
{
    u64 used = qcow2_l1_entries(g->q, g->img->size), to = g->plan.alloc.payload.first * g->cluster;
    u64 keep = g->tail.copy_l2 ? used - 1 : used;
    u8 entry[8];
    int rc = keep ? plan_copy(g->s, to, g->q->l1_table_offset, keep * 8,
                              "the L1 table, at its new place", e)
                  : 0;
    put_be64(entry, g->tail.new_l2 | QCOW2_COPIED);
    return rc || keep == used
               ? rc
               : plan_write(g->s, to + keep * 8, entry, 8, "the L2 table of our own, in it", e);
}

/* The file becomes long enough for all that is written, and ends at a cluster. */
static int lengthen(struct grow *g, struct err *e)
{
    u64 want =
        max_u64(g->plan.alloc.end * g->cluster, g->room > g->img->file[0]->size ? g->room : 0);
    if (g->plan.l1_size > g->q->l1_size && !g->plan.l1_clusters)
        want = max_u64(want, g->q->l1_table_offset + g->plan.l1_size * 8ull);
    if (g->img->file[0]->size % g->q->l2_entry_size) /* it ends inside a table entry */
        want = max_u64(want, g->img->file[0]->size);
    if (g->tail.show && !qcow2_has_data_file(g->q)) /* it may end inside that cluster */
        want = max_u64(want, g->tail.entry & QCOW2_OFFSET_MASK) + 1;
    want = round_up(want, g->cluster);
    g->wrote |= want > g->img->file[0]->size;
    return want > g->img->file[0]->size ? plan_length(g->s, want, "room for the tables", e) : 0;
}

/* The external data file becomes as long as the new disk, and zero there. */
static int grow_data(struct grow *g, struct err *e)
{
    if (!qcow2_has_data_file(g->q))
        return 0;
    g->wrote = true;
    return qcow2_data_grow(g->img, g->new_size, g->fill != QCOW2_FILL_NONE, g->s, e);
}

/* Everything before the commit. `work`: a cluster's room. */
static int prepare(struct grow *g, u8 *work, struct err *e)
{
    int rc = lengthen(g, e);
    if (!rc && g->plan.l1_clusters)
        rc = new_l1(g, e);
    else if (!rc && !(rc = clear_l1(g, e)) && g->plan.l1_size > g->q->l1_size)
        rc = longer_l1(g, e);
    if (rc || (rc = grow_data(g, e)) || (rc = qcow2_tail_zero(g->img, &g->tail, g->s, e)) ||
        (rc = qcow2_tail_copy(g->img, &g->tail, g->s, e)) ||
        (rc = qcow2_tail_show(g->img, &g->tail, work, g->s, e)))
        return rc;
    g->wrote |= g->tail.zero || g->tail.stale_end || g->tail.show;
    if (g->plan.alloc.payload.cnt)
        rc = qcow2_alloc_emit(g->img, &g->plan.alloc, g->s, e);
    else if (g->wrote)
        rc = plan_barrier(g->s, "nothing old is seen past the old end", e);
    if (rc || (!qcow2_tail_clusters(&g->tail) && !g->tail.hide))
        return rc;
    rc = qcow2_tail_link(g->img, &g->tail, g->plan.l1_clusters, g->s, e);
    return rc ? rc : plan_barrier(g->s, "the end of the disk is as it will be", e);
}

/* The header fields that change, in one write inside sector 0. */
static int commit(struct grow *g, u64 size, const struct plan_state *state, struct err *e)
{
    const struct qcow2_alloc *a = &g->plan.alloc;
    struct qcow2_header h;
    qcow2_header_begin(g->img, &h);
    qcow2_header_put64(&h, QH_SIZE, size);
    if (g->plan.l1_size > g->q->l1_size)
        qcow2_header_put32(&h, QH_L1_SIZE, g->plan.l1_size);
    if (g->plan.l1_clusters)
        qcow2_header_put64(&h, QH_L1_TABLE_OFFSET, a->payload.first * g->cluster);
    if (a->reftable.cnt) {
        qcow2_header_put64(&h, QH_REFCOUNT_TABLE_OFFSET, a->reftable.first * g->cluster);
        qcow2_header_put32(&h, QH_REFCOUNT_TABLE_CLUSTERS, (u32)a->reftable.cnt);
    }
    if (size == g->new_size)
        qcow2_bitmaps_revive(state, &h);
    return qcow2_header_commit(&h, g->s, "the new size, and the tables that serve it", e);
}

static int give_back(struct grow *g, struct err *e)
{
    int rc = g->frees ? qcow2_release(g->img, &g->plan.alloc, g->free, g->frees, g->s,
                                      "no longer in use", e)
                      : 0;
    return rc || !g->frees ? rc : plan_barrier(g->s, "done", e);
}

/* How the new area must be mapped: preallocated, or hidden from a longer backing file. A raw data
 * file shows what it holds, so all of it is mapped. */
static enum qcow2_fill_kind choose_fill(const struct image *img, const struct resize_args *a)
{
    if (a->preallocation != PREALLOC_OFF ||
        (img->u.qcow2.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW))
        return QCOW2_FILL_DATA;
    if (img->backing && img->backing->size > img->size)
        return img->u.qcow2.version == 3 ? QCOW2_FILL_ZERO : QCOW2_FILL_DATA;
    return QCOW2_FILL_NONE;
}

int qcow2_grow_eventual(const struct image *img, const struct resize_args *a, u64 clusters,
                        u64 *eventual, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    const u8 none[QCOW2_ALLOC_BLOCKS / 8] = {0};
    struct qcow2_grow_in in = {
        {q->cluster_bits, q->refcount_order, q->refcount_table_clusters, clusters, none},
        q->l2_bits,
        q->l1_size,
        a->new_size,
        QCOW2_TAIL_CLUSTERS};
    struct qcow2_grow g;
    int rc = qcow2_grow_query(&in, &g, e);
    if (rc)
        return rc;
    *eventual = (g.alloc.end + g.alloc.reftable.cnt) * img->unit; /* it may have to move twice */
    if (a->new_size > img->size && choose_fill(img, a))
        *eventual = qcow2_fill_eventual(img, choose_fill(img, a), *eventual,
                                        round_down(img->size, img->unit), a->new_size);
    return 0;
}

/* Is the last cluster unallocated, and does the guest see the backing file in a part of it? */
static int shows_backing(struct grow *g, bool *shows, struct err *e)
{
    u64 voff = round_down(g->img->size, g->cluster), end = voff + g->cluster;
    int rc = 0;
    *shows = false;
    if (!g->img->backing || g->img->size % g->cluster == 0 || !g->tail.hole)
        return 0;
    for (struct extent x; !rc && !*shows && voff < end; voff += x.len) {
        rc = qcow2_look(g->img, voff, &x, e);
        *shows = x.kind == EXTENT_HOLE;
    }
    return rc;
}

/* The tables are long enough and hold nothing past the end of the disk: maps the new area from the
 * first cluster on that is wholly new, or, if it is a hole, from the last old one. */
static int fill(struct grow *g, const struct resize_args *a, struct plan_state *state,
                struct err *e)
{
    u64 *voff = &state->v[V_VOFF], old = g->img->size;
    struct qcow2_fill_args f = {g->fill, g->new_size, a->preallocation, a->work};
    assert(a->work_len >= QCOW2_FILL_WORK + IMAGE_UNIT_MAX);
    if (state->v[V_HEAD] && *voff == round_down(old, g->cluster)) {
        u8 *head = f.work + QCOW2_FILL_WORK;
        f.head = head;
        f.head_at = *voff;
        f.head_len = old - *voff;
        int rc = chain_read(g->img, *voff, head, f.head_len, e);
        if (rc)
            return rc;
    }
    state->more = true;
    if (*voff < g->new_size)
        return qcow2_fill_step(g->img, &f, voff, g->s, e);
    state->more = false;
    g->plan = (struct qcow2_grow){.l1_size = g->q->l1_size};
    return commit(g, g->new_size, state, e);
}

/* Once the tables are ready: where the fill begins. */
static int begin_fill(struct grow *g, const struct resize_args *a, struct plan_state *state,
                      struct err *e)
{
    u64 size = g->img->size, last = round_down(size, g->cluster);
    bool shows;
    int rc = shows_backing(g, &shows, e);
    if (rc)
        return rc;
    state->more = true;
    state->v[V_PHASE] = PHASE_FILL;
    state->v[V_HEAD] = shows;
    state->v[V_VOFF] = last;
    if (size % g->cluster && !shows && !(g->fill == QCOW2_FILL_DATA && g->tail.hole))
        state->v[V_VOFF] = last + g->cluster;
    if (g->q->crypt_method && (g->fill == QCOW2_FILL_DATA || shows))
        return FAIL(e, ERR_LUKS_UNSUPPORTED,
                    "Growing this encrypted overlay must write data, which needs the key", size, 0);
    /* What cannot be read is refused now, not after an epoch has been applied. */
    rc = shows ? chain_read(g->img, last, a->work, size - last, e) : 0;
    struct qcow2_fill_args f = {g->fill, g->new_size, a->preallocation, a->work};
    g->room = max_u64(g->img->file[0]->size, g->plan.alloc.end * g->cluster);
    return rc ? rc
              : qcow2_fill_foresee(g->img, &f, state->v[V_VOFF], a->work, a->work_len, &g->room,
                                   &state->eventual, e);
}

int qcow2_plan_grow(struct image *img, const struct resize_args *a, struct plan_state *state,
                    struct sink *s, struct err *e)
{
    struct grow g = {img, s, &img->u.qcow2, img->unit, a->new_size, choose_fill(img, a)};
    int rc;
    if (state->v[V_PHASE] == PHASE_FILL)
        return fill(&g, a, state, e);
    if ((rc = place(&g, e)) || (rc = check_l1(&g, e)))
        return rc;
    bool move_reftable = g.plan.alloc.reftable.cnt && qcow2_tail_clusters(&g.tail);
    struct plan_state next = *state;
    if (g.fill && (rc = begin_fill(&g, a, &next, e)))
        return rc;
    if (move_reftable) {
        u64 most = qcow2_alloc_moved_end(img, &g.plan.alloc);
        state->more = true;
        state->eventual = g.fill ? qcow2_fill_eventual(img, g.fill, max_u64(most, g.room),
                                                       next.v[V_VOFF], a->new_size)
                                 : most;
        return qcow2_alloc_move_reftable(img, &g.plan.alloc, s, e);
    }
    *state = next;
    if ((rc = prepare(&g, a->work, e)) ||
        (rc = commit(&g, g.fill ? img->size : g.new_size, state, e)))
        return rc;
    return give_back(&g, e);
}
