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
#include "qcow2_alloc.h"
#include "qcow2_data.h"
#include "qcow2_header.h"
#include "qcow2_state.h"
#include "rebase_scan.h"

enum {
    TABLES_MAX = 4 << 20,    /* bytes of work for L2 tables, and for the header in its epoch */
    TABLE_MAX = 2 << 20,     /* the largest table that there is */
    TABLES_SMALL = 64 << 10, /* smaller ones are taken together up to this */
    GROUP_MAX = TABLES_SMALL / 512,
    FREES_MAX = 6,        /* runs that an epoch gives back */
    HELD_MAX = 256 << 20, /* bytes of data that are written before they are linked */
    SECTOR = 512,
    DATA_FILE = 1,
};

/* An L2 table of the epoch. */
struct copy_table {
    u64 at;     /* where it stands, or will; 0: this epoch does not touch it */
    bool fresh; /* it does not stand there yet */
    bool loaded;
};

struct copy {
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    struct rebase_scan scan;
    u8 *tables;                   /* what they hold afterwards, one behind the other */
    u64 l1_first, clusters, next; /* clusters: new ones; next: cluster index of the next of them */
    u64 written, written_at; /* clusters that earlier epochs have written to, and where: an index */
    struct cluster_run free[FREES_MAX];
    unsigned frees;
    struct qcow2_alloc alloc;
    bool in_place;        /* data is written where something has been allocated already */
    struct patch pending; /* data that the next may continue */
    struct copy_table table[GROUP_MAX];
    u8 changed[TABLE_MAX / SECTOR / 8]; /* sectors of `tables`, one bit each */
};

/* A cluster of the disk that units of the batch lie in; without extended L2 it is one unit. */
struct touched {
    u64 idx;
    u32 data, zero;  /* masks of units */
    const u8 *bytes; /* of the data units, in order */
    bool written;    /* they stand at host already: an earlier epoch has written them */
    u64 host;
};

/* A place in the batch. */
struct cursor {
    u32 run;
    u64 unit;
    const u8 *bytes;
};

static u32 units_per_cluster(const struct copy *c)
{
    return (u32)(c->img->unit / c->scan.unit);
}

static struct cursor batch_begin(const struct copy *c)
{
    const struct rebase_batch *b = c->scan.batch;
    return (struct cursor){0, b->runs ? b->run[0].first : 0, c->scan.kept};
}

static bool batch_next(const struct copy *c, struct cursor *at, struct touched *t)
{
    const struct rebase_batch *b = c->scan.batch;
    u32 per = units_per_cluster(c);
    *t = (struct touched){.idx = at->unit / per, .bytes = at->bytes};
    if (at->run == b->runs)
        return false;
    while (at->run < b->runs && at->unit / per == t->idx) {
        const struct rebase_run *r = &b->run[at->run];
        u32 bit = 1u << at->unit % per;
        t->written = at->run < b->old;
        t->host = (r->host + at->unit - r->first) << c->q->cluster_bits;
        t->data |= r->kind == REBASE_DATA ? bit : 0;
        t->zero |= r->kind == REBASE_ZERO ? bit : 0;
        at->bytes += r->kind == REBASE_DATA && !t->written ? c->scan.unit : 0;
        if (++at->unit == r->first + r->cnt && ++at->run < b->runs)
            at->unit = b->run[at->run].first;
    }
    return true;
}

/* ---- what it takes ---- */

static struct copy_table *table_of(struct copy *c, u64 cluster)
{
    return &c->table[(cluster >> c->q->l2_bits) - c->l1_first];
}

static u8 *entry_of(struct copy *c, u64 cluster)
{
    u64 idx = cluster - (c->l1_first << c->q->l2_bits);
    return c->tables + idx * c->q->l2_entry_size;
}

static int count_of(struct image *img, u64 off, u64 *count, struct err *e)
{
    int rc = qcow2_refcount_get(img, off >> img->u.qcow2.cluster_bits, count, e);
    return !rc && !*count ? FAIL(e, ERR_INCONSISTENT,
                                 "The cluster at {val} is in use but not counted; run "
                                 "'qemu-img check -r all' on the image",
                                 off, off)
                          : rc;
}

static void gives_back(struct copy *c, u64 off)
{
    c->free[c->frees++] = (struct cluster_run){off >> c->q->cluster_bits, 1};
}

/* The table of a cluster, into memory; *shared: not with all of its owners ours. */
static int load_table(struct copy *c, u64 cluster, u64 *l2, bool *shared, struct err *e)
{
    u64 l1_idx = cluster >> c->q->l2_bits, count;
    u8 *to = c->tables + (l1_idx - c->l1_first) * c->img->unit;
    int rc = qcow2_l1_get(c->img, l1_idx, l2, e);
    *shared = false;
    if (rc || !*l2) {
        memset(to, 0, c->img->unit);
        return rc;
    }
    if ((rc = count_of(c->img, *l2, &count, e)))
        return rc;
    *shared = count > 1;
    return blk_read(c->img->file[0], *l2, to, c->img->unit, e);
}

/* Where data of the cluster goes now: *host, 0 if it has no place, or one that a snapshot shares:
 * *shared. */
static int find_place(struct copy *c, const struct touched *t, u64 *host, bool *shared,
                      struct err *e)
{
    const u8 *p = entry_of(c, t->idx);
    u64 entry = be64(p), bitmap = c->q->l2_entry_size == 16 ? be64(p + 8) : 0, count;
    bool data_file = qcow2_has_data_file(c->q);
    *host = entry & QCOW2_OFFSET_MASK;
    *shared = false;
    if ((entry & (QCOW2_COMPRESSED | QCOW2_L2_ZERO)) ||
        ((u32)(bitmap | bitmap >> 32) & (t->data | t->zero)) ||
        (c->q->l2_entry_size == 8 && (*host || (data_file && (entry & QCOW2_COPIED)))))
        return plan_changed(t->idx, entry, e);
    if (data_file || !*host || !t->data)
        return 0;
    int rc =
        qcow2_check_table(c->img, *host, c->img->unit, "Data cluster at {val} is misplaced", e);
    if (rc || (rc = count_of(c->img, *host, &count, e)))
        return rc;
    *shared = count > 1;
    return 0;
}

/* Does the cluster get a new place in this file? */
static bool is_new(const struct copy *c, const struct touched *t, u64 host, bool shared)
{
    bool data = t->data || (t->zero && c->q->version == 2);
    return data && !t->written && !qcow2_has_data_file(c->q) && (!host || shared);
}

/* The batch ends before this cluster; what follows is the next epoch's. */
static void cut(struct copy *c, u64 cluster)
{
    struct rebase_batch *b = c->scan.batch;
    u64 unit = cluster * units_per_cluster(c);
    while (b->run[b->runs - 1].first >= unit) /* the first cluster alone is never too much */
        b->runs--;
    struct rebase_run *last = &b->run[b->runs - 1];
    last->cnt = (u32)min_u64(last->cnt, unit - last->first);
    b->to = cluster * c->img->unit;
}

/* Loads the tables, counts the new clusters and those that are given back. The batch is cut short
 * where there are too many of these. */
static int measure(struct copy *c, struct err *e)
{
    struct cursor at = batch_begin(c);
    struct touched t;
    while (batch_next(c, &at, &t)) {
        struct copy_table *table = table_of(c, t.idx);
        u64 l2 = 0, host;
        bool table_shared = false, shared;
        int rc = table->loaded ? 0 : load_table(c, t.idx, &l2, &table_shared, e);
        if (rc || (rc = find_place(c, &t, &host, &shared, e)))
            return rc;
        if (c->frees + table_shared + shared > FREES_MAX) {
            cut(c, t.idx);
            return 0;
        }
        if (!table->loaded) {
            *table = (struct copy_table){l2, !l2 || table_shared, true};
            c->clusters += table->fresh;
        }
        if (table_shared)
            gives_back(c, l2);
        if (shared)
            gives_back(c, host);
        c->clusters += is_new(c, &t, host, shared);
        c->in_place |= t.data && !is_new(c, &t, host, shared);
    }
    return 0;
}

/* Where new tables stand: before the new data. */
static void place_tables(struct copy *c)
{
    c->next = c->alloc.payload.first;
    for (u32 i = 0; i < GROUP_MAX; i++)
        if (c->table[i].loaded && c->table[i].fresh)
            c->table[i].at = c->next++ << c->q->cluster_bits;
}

/* ---- data ---- */

static int emit_pending(struct copy *c, struct err *e)
{
    struct patch p = c->pending;
    c->pending.len = 0;
    return p.len ? plan_emit(c->s, p, e) : 0;
}

/* Data to `off` of a file; what continues what came before it becomes one patch with it. */
static int put_data(struct copy *c, u8 slot, u64 off, const u8 *bytes, u64 len, struct err *e)
{
    struct patch *p = &c->pending;
    int rc = 0;
    if (p->len && p->slot == slot && p->off + p->len == off &&
        (const u8 *)p->data + p->len == bytes) {
        p->len += len;
        return 0;
    }
    rc = emit_pending(c, e);
    *p = (struct patch){.kind = PATCH_WRITE,
                        .slot = slot,
                        .off = off,
                        .len = len,
                        .data = bytes,
                        .kept = true,
                        .why = "what the old chain shows and the new one does not"};
    return rc;
}

/* Takes the lowest run of units out of the mask, which is not 0; how many, from *first on. */
static u32 next_units(u32 *mask, u32 *first)
{
    u32 n = 0;
    *first = (u32)__builtin_ctz(*mask);
    while (*first + n < 32 && *mask >> (*first + n) & 1)
        *mask &= ~(1u << (*first + n++));
    return n;
}

/* Data units of a cluster whose data stands at `host`. In a data file they end with the disk. */
static int put_units(struct copy *c, const struct touched *t, u64 host, struct err *e)
{
    u8 slot = qcow2_has_data_file(c->q) ? DATA_FILE : 0;
    u64 unit = c->scan.unit;
    const u8 *bytes = t->bytes;
    int rc = 0;
    for (u32 mask = t->data, first, n; !rc && mask; bytes += n * unit) {
        n = next_units(&mask, &first);
        u64 off = host + first * unit;
        rc = put_data(c, slot, off, bytes, slot ? min_u64(n * unit, c->img->size - off) : n * unit,
                      e);
    }
    return rc;
}

/* What a shared cluster holds of the overlay's own, to its copy. */
static int copy_units(struct copy *c, u32 mask, u64 from, u64 to, struct err *e)
{
    int rc = emit_pending(c, e);
    for (u32 first, n; !rc && mask;) {
        n = next_units(&mask, &first);
        u64 in = first * c->scan.unit;
        rc = plan_copy(c->s, to + in, from + in, n * c->scan.unit,
                       "subclusters of a cluster that a snapshot shares", e);
    }
    return rc;
}

/* Emits one cluster's data, and changes its entry in memory. */
static int put_cluster(struct copy *c, const struct touched *t, struct err *e)
{
    u8 *p = entry_of(c, t->idx);
    bool extl2 = c->q->l2_entry_size == 16, shared;
    u64 old, host;
    int rc = find_place(c, t, &old, &shared, e);
    if (rc)
        return rc;
    host = qcow2_has_data_file(c->q) ? t->idx << c->q->cluster_bits : t->written ? t->host : old;
    if (is_new(c, t, old, shared)) {
        host = c->next++ << c->q->cluster_bits;
        if (shared && (rc = copy_units(c, (u32)be64(p + 8), old, host, e)))
            return rc;
    }
    if (!t->written && (rc = put_units(c, t, host, e)))
        return rc;
    if (t->data || is_new(c, t, old, shared))
        put_be64(p, host | QCOW2_COPIED);
    else if (!extl2)
        put_be64(p, QCOW2_L2_ZERO);
    if (extl2)
        put_be64(p + 8, be64(p + 8) | t->data | (u64)t->zero << 32);
    u64 sector = (u64)(p - c->tables) / SECTOR;
    c->changed[sector / 8] |= (u8)(1 << sector % 8);
    return 0;
}

static int put_clusters(struct copy *c, struct err *e)
{
    struct cursor at = batch_begin(c);
    struct touched t;
    int rc = 0;
    while (!rc && batch_next(c, &at, &t))
        rc = put_cluster(c, &t, e);
    return rc ? rc : emit_pending(c, e);
}

/* ---- tables ---- */

/* Does this sector of table i have to be written? Where a fresh table goes, the file reads zero. */
static bool is_changed(const struct copy *c, u32 i, u64 at)
{
    static const u8 zeros[SECTOR];
    u64 off = i * (u64)c->img->unit + at;
    return c->table[i].fresh ? memcmp(c->tables + off, zeros, SECTOR) != 0
                             : c->changed[off / SECTOR / 8] >> off / SECTOR % 8 & 1;
}

static int emit_table(struct copy *c, u32 i, const char *why, struct err *e)
{
    u64 from = 0, unit = c->img->unit;
    int rc = 0;
    for (u64 at = 0; !rc && at <= unit; at += SECTOR) { /* [from, at) is to be written */
        if (at < unit && is_changed(c, i, at))
            continue;
        if (at > from)
            rc = plan_write(c->s, c->table[i].at + from, c->tables + i * unit + from, at - from,
                            why, e);
        from = at + SECTOR;
    }
    return rc;
}

static int emit_tables(struct copy *c, bool fresh, const char *why, struct err *e)
{
    int rc = 0;
    for (u32 i = 0; !rc && i < GROUP_MAX; i++)
        if (c->table[i].loaded && c->table[i].fresh == fresh)
            rc = emit_table(c, i, why, e);
    return rc;
}

/* The L1 entries of new tables, neighbours in one patch. */
static int link_tables(struct copy *c, struct err *e)
{
    u8 entries[GROUP_MAX * 8];
    int rc = 0;
    for (u32 i = 0, n; !rc && i < GROUP_MAX; i += n + 1) {
        for (n = 0; i + n < GROUP_MAX && c->table[i + n].loaded && c->table[i + n].fresh; n++)
            put_be64(entries + n * 8, c->table[i + n].at | QCOW2_COPIED);
        if (n)
            rc = plan_write(c->s, c->q->l1_table_offset + (c->l1_first + i) * 8, entries, n * 8,
                            "link the new L2 tables", e);
    }
    return rc;
}

/* ---- the epoch ---- */

/* Both files become long enough for all that is written; the first ends at a cluster. */
static int lengthen(struct copy *c, struct err *e)
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

static int emit_batch(struct copy *c, struct err *e)
{
    int rc = qcow2_header_autoclear(c->img, c->s, e);
    if (rc || (rc = lengthen(c, e)) || (rc = put_clusters(c, e)) ||
        (rc = emit_tables(c, true, "a new L2 table", e)))
        return rc;
    if (c->clusters + c->written)
        rc = qcow2_alloc_emit(c->img, &c->alloc, c->s, e);
    else if (c->in_place)
        rc = plan_barrier(c->s, "data is durable before it is linked", e);
    if (rc || (rc = emit_tables(c, false, "L2 entries of what has been copied", e)) ||
        (rc = link_tables(c, e)) || (rc = plan_barrier(c->s, "a part has been copied", e)) ||
        !c->frees)
        return rc;
    rc = qcow2_release(c->img, &c->alloc, c->free, c->frees, c->s, "no longer in use", e);
    return rc ? rc : plan_barrier(c->s, "done", e);
}

static void copy_init(struct copy *c, struct image *img, const struct rebase_args *a,
                      struct sink *s)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 tables = max_u64(1, TABLES_SMALL / img->unit);
    *c = (struct copy){.img = img, .q = q, .s = s, .tables = a->work};
    rebase_scan_init(
        &c->scan, img, a->new_backing, q->l2_entry_size == 16 ? img->unit / 32 : img->unit,
        tables << (q->cluster_bits + q->l2_bits), c->tables + TABLES_MAX, a->work_len - TABLES_MAX);
}

static void count(const struct copy *c, struct plan_state *state)
{
    rebase_scan_count(&c->scan, c->img->unit, &state->v[V_LAST_CLUSTER], &state->clusters_copied,
                      &state->bytes_copied);
    state->v[V_VOFF] = c->scan.batch->to;
    state->done = c->scan.batch->to;
    state->total = c->img->size;
}

/* Everything, for those who only want to know how much it is. */
static int count_all(struct copy *c, struct plan_state *state, struct err *e)
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
static int hold(struct copy *c, const struct plan_state *state, bool *yes, struct err *e)
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
static u64 room_ahead(const struct copy *c)
{
    const struct rebase_batch *b = c->scan.batch;
    u64 unit = c->img->unit, most = HELD_MAX / unit, left = (c->img->size - b->to) / unit;
    if (c->alloc.end * unit <= c->img->file[0]->size || c->written >= most)
        return 0;
    return min_u64(min_u64(c->written, most - c->written), left);
}

static int write_batch(struct copy *c, struct plan_state *state, struct err *e)
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
        rc = put_data(c, data_file ? DATA_FILE : 0, off, bytes,
                      data_file ? min_u64(len, c->img->size - off) : len, e);
        bytes += len;
    }
    state->v[V_RUNS] = b->runs;
    state->v[V_WRITTEN] = c->written;
    state->v[V_WRITTEN_AT] = c->written_at;
    state->open = true;
    return rc ? rc : emit_pending(c, e);
}

/* ---- all together ---- */

static int place(struct copy *c, struct err *e)
{
    if (c->written)
        return qcow2_alloc_place_written(c->img, c->written_at, c->written, c->clusters, &c->alloc,
                                         e);
    return c->clusters ? qcow2_alloc_place(c->img, c->clusters, c->free, c->frees, &c->alloc, e)
                       : 0;
}

static int copy_batch(struct copy *c, struct plan_state *state, struct err *e)
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
    if ((rc = measure(c, e)) || (rc = place(c, e)))
        return rc;
    if (c->alloc.reftable.cnt) /* what was compared is compared once more */
        return qcow2_alloc_move_reftable(c->img, &c->alloc, c->s, e);
    place_tables(c);
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
    struct copy c;
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
