/* SPDX-License-Identifier: MIT
 *
 * See qcow2_rebase_copy.h. An epoch takes what rebase_scan() has found in one L2 table's part of
 * the disk (in several tables', where they are small): data and new L2 tables, behind the end of
 * the file -> refcounts -> barrier -> entries of L2 tables that exist, L1 entries of new ones ->
 * barrier -> what copies of shared tables and clusters left unused is given back. Each entry by
 * itself shows what the old chain shows, so it may land or not (P4). Where memory holds less data
 * than one table's, epochs come first that write data and nothing else, past the end of the file:
 * nobody refers to it or counts it, so that they need no barrier, and waiting for the disk is rare.
 *
 * A table or cluster that a snapshot shares is replaced by a copy; with extended L2, a cluster that
 * is the overlay's in part gets its missing subclusters where it stands. What reads zero becomes a
 * zero cluster, in version 2 an allocated one that nobody writes to: the file reads zero where it
 * was lengthened. Source: docs/interop/qcow2.txt, "Cluster mapping", "Extended L2 Entries".
 */
#include "qcow2_rebase_copy.h"
#include "qcow2_copy.h"
#include "qcow2_data.h"
#include "qcow2_header.h"
#include "qcow2_state.h"

/* ---- the epoch ---- */

/* Both files become long enough for all that is written; the first ends at a cluster. */
static int lengthen(struct qcow2_copy *c, struct err *e)
{
    u64 size = c->img->file[0]->size, want = round_up(size, c->img->unit);
    const struct rebase_batch *b = c->scan.batch;
    if (c->clusters + c->written)
        want = max_u64(want, c->alloc.end << c->q->cluster_bits);
    int rc = want > size ? plan_length(c->s, want, "room for what is copied", e) : 0;
    if (rc || !qcow2_has_data_file(c->q) || !b->kept)
        return rc;
    const struct rebase_run *last = &b->run[b->runs - 1];
    want = min_u64((last->first + last->cnt) * c->scan.unit, c->img->size);
    return want > c->img->file[DATA_FILE]->size
               ? plan_emit(c->s,
                           (struct patch){.kind = PATCH_LENGTH,
                                          .slot = DATA_FILE,
                                          .len = want,
                                          .why = "the data file reaches what is copied"},
                           e)
               : 0;
}

static int emit_batch(struct qcow2_copy *c, struct err *e)
{
    int rc = qcow2_header_autoclear(c->img, c->s, e);
    if (rc || (rc = lengthen(c, e)) || (rc = qcow2_copy_put_clusters(c, e)) ||
        (rc = qcow2_copy_emit_tables(c, true, "a new L2 table", e)))
        return rc;
    if (c->clusters + c->written)
        rc = qcow2_alloc_emit(c->img, &c->alloc, c->s, e);
    else if (c->in_place)
        rc = plan_barrier(c->s, "data is durable before it is linked", e);
    if (rc || (rc = qcow2_copy_emit_tables(c, false, "L2 entries of what has been copied", e)) ||
        (rc = qcow2_copy_link(c, e)) || (rc = plan_barrier(c->s, "a part has been copied", e)) ||
        !c->frees)
        return rc;
    rc = qcow2_release(c->img, &c->alloc, c->free, c->frees, c->s, "no longer in use", e);
    return rc ? rc : plan_barrier(c->s, "done", e);
}

static void copy_init(struct qcow2_copy *c, struct image *img, const struct rebase_args *a,
                      struct sink *s)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 tables = max_u64(1, TABLES_SMALL / img->unit);
    *c = (struct qcow2_copy){.img = img, .q = q, .s = s, .tables = a->work};
    rebase_scan_init(
        &c->scan, img, a->new_backing, q->l2_entry_size == 16 ? img->unit / 32 : img->unit,
        tables << (q->cluster_bits + q->l2_bits), c->tables + TABLES_MAX, a->work_len - TABLES_MAX);
}

static void count(const struct qcow2_copy *c, struct plan_state *state)
{
    rebase_scan_count(&c->scan, c->img->unit, &state->v[V_LAST_CLUSTER], &state->clusters_copied,
                      &state->bytes_copied);
    state->v[V_VOFF] = c->scan.batch->to;
    state->done = c->scan.batch->to;
    state->total = c->img->size;
}

/* Everything, for those who only want to know how much it is. */
static int count_all(struct qcow2_copy *c, struct plan_state *state, struct err *e)
{
    int rc = 0;
    while (!rc && state->v[V_VOFF] < c->img->size)
        if (!(rc = rebase_scan(&c->scan, state->v[V_VOFF], 0, e)))
            count(c, state);
    return rc;
}

/* ---- epochs that write data and nothing else ---- */

/* Shall this be one? Not where something is given back, or where the clusters past the end of the
 * file are not all free: then what is written would not be allocated in one run. */
static int hold(struct qcow2_copy *c, const struct plan_state *state, bool *yes, struct err *e)
{
    const struct rebase_batch *b = c->scan.batch;
    u64 unit = c->img->unit, held = 0, most = min_u64(2 * HELD_MAX, c->scan.span) / unit;
    for (u32 i = 0; i < b->runs; i++)
        held += b->run[i].kind == REBASE_DATA ? b->run[i].cnt * unit : 0;
    *yes = c->q->version == 3 && c->q->l2_entry_size == 8 && !c->q->nb_snapshots &&
           held < HELD_MAX && rebase_scan_goes_on(&c->scan);
    if (!*yes || state->v[V_RUNS] || qcow2_has_data_file(c->q))
        return 0;
    most += GROUP_MAX;
    most += most / ((1ull << qcow2_refblock_bits(c->q)) - 1) + 2; /* refcount blocks */
    return qcow2_alloc_free(c->img, most, yes, e);
}

/* To ask the host for room takes time. Where it has to be asked, it is for as much again as has
 * been written, if that much may follow before it is linked; what is left of it stays free. */
static u64 room_ahead(const struct qcow2_copy *c)
{
    const struct rebase_batch *b = c->scan.batch;
    u64 unit = c->img->unit, most = HELD_MAX / unit, left = (c->img->size - b->to) / unit;
    if (c->alloc.end * unit <= c->img->file[0]->size || c->written >= most)
        return 0;
    return min_u64(min_u64(c->written, most - c->written), left);
}

static int write_batch(struct qcow2_copy *c, struct plan_state *state, struct err *e)
{
    struct rebase_batch *b = c->scan.batch;
    const u8 *bytes = c->scan.kept;
    bool data_file = qcow2_has_data_file(c->q);
    u64 unit = c->img->unit;
    for (u32 i = b->old; i < b->runs; i++) {
        b->run[i].host = data_file ? b->run[i].first : c->written_at + c->written;
        c->written += b->run[i].kind == REBASE_DATA && !data_file ? b->run[i].cnt : 0;
    }
    c->alloc.end = c->written_at + c->written;
    c->alloc.end += room_ahead(c);
    int rc = qcow2_header_autoclear(c->img, c->s, e);
    if (!rc)
        rc = lengthen(c, e);
    for (u32 i = b->old; !rc && i < b->runs; i++) {
        u64 off = b->run[i].host << c->q->cluster_bits, len = b->run[i].cnt * unit;
        if (b->run[i].kind != REBASE_DATA)
            continue;
        rc = qcow2_copy_put(c, data_file ? DATA_FILE : 0, off, bytes,
                            data_file ? min_u64(len, c->img->size - off) : len, e);
        bytes += len;
    }
    state->v[V_RUNS] = b->runs;
    state->v[V_WRITTEN] = c->written;
    state->v[V_WRITTEN_AT] = c->written_at;
    state->open = true;
    return rc ? rc : qcow2_copy_flush(c, e);
}

/* ---- all together ---- */

static int place(struct qcow2_copy *c, struct err *e)
{
    if (c->written)
        return qcow2_alloc_place_written(c->img, c->written_at, c->written, c->clusters, &c->alloc,
                                         e);
    return c->clusters ? qcow2_alloc_place(c->img, c->clusters, c->free, c->frees, &c->alloc, e)
                       : 0;
}

static int copy_batch(struct qcow2_copy *c, struct plan_state *state, struct err *e)
{
    const struct rebase_batch *b = c->scan.batch;
    bool data_only;
    c->written = state->v[V_WRITTEN];
    c->written_at =
        c->written ? state->v[V_WRITTEN_AT] : div_up(c->img->file[0]->size, c->img->unit);
    c->in_place = b->old > 0;
    c->l1_first = b->run[0].first * c->scan.unit / c->scan.span *
                  (c->scan.span / c->img->unit >> c->q->l2_bits);
    int rc = hold(c, state, &data_only, e);
    if (rc)
        return rc;
    if (data_only) {
        count(c, state);
        return write_batch(c, state, e);
    }
    if ((rc = qcow2_copy_measure(c, e)) || (rc = place(c, e)))
        return rc;
    if (c->alloc.reftable.cnt) /* what was compared is compared once more */
        return qcow2_alloc_move_reftable(c->img, &c->alloc, c->s, e);
    qcow2_copy_place_tables(c);
    count(c, state);
    state->v[V_RUNS] = state->v[V_WRITTEN] = 0;
    return emit_batch(c, e);
}

bool qcow2_rebase_goes_on(const struct plan_state *state)
{
    return state->v[V_PHASE] == PHASE_COPY;
}

int qcow2_rebase_copy(struct image *img, const struct rebase_args *a, struct plan_state *state,
                      struct sink *s, bool *done, struct err *e)
{
    struct qcow2_copy c;
    copy_init(&c, img, a, s);
    if (state->v[V_PHASE] == PHASE_START) {
        state->v[V_PHASE] = PHASE_COPY;
        state->v[V_LAST_CLUSTER] = UINT64_MAX;
    }
    int rc = a->count        ? count_all(&c, state, e)
             : !state->again ? rebase_scan(&c.scan, state->v[V_VOFF], (u32)state->v[V_RUNS], e)
                             : 0;
    const struct rebase_batch *b = c.scan.batch;
    *done = !rc && (a->count || (!b->runs && b->to >= img->size));
    if (rc || *done)
        return rc;
    state->more = true;
    if (b->runs)
        return copy_batch(&c, state, e);
    count(&c, state);
    return plan_barrier(s, "nothing differs so far", e);
}

int qcow2_rebase_check(const struct image *img, const struct rebase_args *a, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    const struct image *chain[2] = {img->backing, a->new_backing};
    int rc = qcow2_data_check(img, e);
    if (rc)
        return rc;
    if (q->crypt_method)
        return FAIL(e, ERR_LUKS_UNSUPPORTED,
                    "Copying into an encrypted image needs its key, and is not supported",
                    QH_CRYPT_METHOD, q->crypt_method);
    for (int i = 0; i < 2; i++)
        for (const struct image *link = chain[i]; link; link = link->backing)
            if (link->opaque)
                return FAIL(e, ERR_LUKS_UNSUPPORTED,
                            "Data of an encrypted image must be read, which needs its key", 0, i);
    return 0;
}
