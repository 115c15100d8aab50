/* SPDX-License-Identifier: MIT
 *
 * See qcow2_copy.h: the L2 tables of an epoch, the clusters that it takes and gives back, and which
 * cluster of the disk goes where.
 */
#include "qcow2_copy.h"
#include "qcow2_data.h"

static u32 units_per_cluster(const struct qcow2_copy *c)
{
    return (u32)(c->img->unit / c->scan.unit);
}

struct qcow2_cursor qcow2_batch_begin(const struct qcow2_copy *c)
{
    const struct rebase_batch *b = c->scan.batch;
    return (struct qcow2_cursor){0, b->runs ? b->run[0].first : 0, c->scan.kept};
}

bool qcow2_batch_next(const struct qcow2_copy *c, struct qcow2_cursor *at, struct qcow2_touched *t)
{
    const struct rebase_batch *b = c->scan.batch;
    u32 per = units_per_cluster(c);
    *t = (struct qcow2_touched){.idx = at->unit / per, .bytes = at->bytes};
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

static struct qcow2_copy_table *table_of(struct qcow2_copy *c, u64 cluster)
{
    return &c->table[(cluster >> c->q->l2_bits) - c->l1_first];
}

u8 *qcow2_copy_entry(struct qcow2_copy *c, u64 cluster)
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

static void gives_back(struct qcow2_copy *c, u64 off)
{
    c->free[c->frees++] = (struct cluster_run){off >> c->q->cluster_bits, 1};
}

/* The table of a cluster, into memory; *shared: not with all of its owners ours. */
static int load_table(struct qcow2_copy *c, u64 cluster, u64 *l2, bool *shared, struct err *e)
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
int qcow2_copy_place(struct qcow2_copy *c, const struct qcow2_touched *t, u64 *host, bool *shared,
                     struct err *e)
{
    const u8 *p = qcow2_copy_entry(c, t->idx);
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
bool qcow2_copy_is_new(const struct qcow2_copy *c, const struct qcow2_touched *t, u64 host,
                       bool shared)
{
    bool data = t->data || (t->zero && c->q->version == 2);
    return data && !t->written && !qcow2_has_data_file(c->q) && (!host || shared);
}

/* The batch ends before this cluster; what follows is the next epoch's. */
static void cut(struct qcow2_copy *c, u64 cluster)
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
int qcow2_copy_measure(struct qcow2_copy *c, struct err *e)
{
    struct qcow2_cursor at = qcow2_batch_begin(c);
    struct qcow2_touched t;
    while (qcow2_batch_next(c, &at, &t)) {
        struct qcow2_copy_table *table = table_of(c, t.idx);
        u64 l2 = 0, host;
        bool table_shared = false, shared;
        int rc = table->loaded ? 0 : load_table(c, t.idx, &l2, &table_shared, e);
        if (rc || (rc = qcow2_copy_place(c, &t, &host, &shared, e)))
            return rc;
        if (c->frees + table_shared + shared > FREES_MAX) {
            cut(c, t.idx);
            return 0;
        }
        if (!table->loaded) {
            *table = (struct qcow2_copy_table){l2, !l2 || table_shared, true};
            c->clusters += table->fresh;
        }
        if (table_shared)
            gives_back(c, l2);
        if (shared)
            gives_back(c, host);
        c->clusters += qcow2_copy_is_new(c, &t, host, shared);
        c->in_place |= t.data && !qcow2_copy_is_new(c, &t, host, shared);
    }
    return 0;
}

/* Where new tables stand: before the new data. */
void qcow2_copy_place_tables(struct qcow2_copy *c)
{
    c->next = c->alloc.payload.first;
    for (u32 i = 0; i < GROUP_MAX; i++)
        if (c->table[i].loaded && c->table[i].fresh)
            c->table[i].at = c->next++ << c->q->cluster_bits;
}

/* ---- tables ---- */

/* Does this sector of table i have to be written? Where a fresh table goes, the file reads zero. */
static bool is_changed(const struct qcow2_copy *c, u32 i, u64 at)
{
    static const u8 zeros[SECTOR];
    u64 off = i * (u64)c->img->unit + at;
    return c->table[i].fresh ? memcmp(c->tables + off, zeros, SECTOR) != 0
                             : c->changed[off / SECTOR / 8] >> off / SECTOR % 8 & 1;
}

static int emit_table(struct qcow2_copy *c, u32 i, const char *why, struct err *e)
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

int qcow2_copy_emit_tables(struct qcow2_copy *c, bool fresh, const char *why, struct err *e)
{
    int rc = 0;
    for (u32 i = 0; !rc && i < GROUP_MAX; i++)
        if (c->table[i].loaded && c->table[i].fresh == fresh)
            rc = emit_table(c, i, why, e);
    return rc;
}

/* The L1 entries of new tables, neighbours in one patch. */
int qcow2_copy_link(struct qcow2_copy *c, struct err *e)
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
