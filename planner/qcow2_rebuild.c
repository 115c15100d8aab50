/* SPDX-License-Identifier: MIT
 *
 * Rebuilding qcow2 reference counts. A wholly new refcount table, with blocks for what is in use,
 * is written behind the end of the file; the commit, in header sector 0, puts it in the place of
 * the old one and clears the dirty bit. Old table and blocks are neither read nor counted: they
 * become free. A crash leaves the old, dirty image or the new, clean one.
 *
 * Counts are made in the caller's memory as the blocks will hold them, a window of clusters at a
 * time, each by a walk over all metadata: passes, not caps. COPIED flags that contradict the counts
 * are put right before the commit, while the image is dirty still: what they say then is true
 * whichever refcounts are in force (P7). Later windows may read entries changed so for an earlier
 * one (P3); they look at no flag of these, which name clusters of that window.
 * Sources: planner/plan.h (P1-P11); docs/interop/qcow2.txt, "Host cluster management".
 */
#include "qcow2_rebuild.h"
#include "qcow2_census.h"
#include "qcow2_grow.h"
#include "qcow2_header.h"

enum {
    TABLE_MAX = QCOW2_MAX_REFTABLE_BYTES / 8, /* entries of a refcount table */
    TABLE_CHUNK = 256,                        /* of these, in one patch */
};

struct rebuild {
    struct qcow2_census c; /* of the window; c.end: the file's, as it was found */
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    u32 bits;   /* log2 of the clusters that a block counts */
    u64 length; /* bytes of the file, as emitted so far */
    u8 *exists; /* bit i: the new table has block i */
    u64 blocks; /* how many of them are emitted; they stand from the old end on, in order */
};

static int lengthen(struct rebuild *r, u64 clusters, struct err *e)
{
    u64 length = (r->c.end + clusters) * r->img->unit;
    if (length <= r->length)
        return 0;
    r->length = length;
    return plan_length(r->s, length, "room for new refcounts", e);
}

static int correct_flag(struct qcow2_visitor *v, const struct qcow2_ref *ref, struct err *e)
{
    struct rebuild *r = (struct rebuild *)v;
    u64 i = (ref->off >> r->q->cluster_bits) - r->c.first;
    u8 entry[8];
    if (!qcow2_census_has_flag(ref) || i >= r->c.cnt ||
        (qcow2_count_get(r->c.counts, r->q->refcount_order, i) == 1) ==
            ((ref->entry & QCOW2_COPIED) != 0))
        return 0;
    put_be64(entry, ref->entry ^ QCOW2_COPIED);
    return plan_write(r->s, ref->at, entry, 8, "a COPIED flag that contradicts the refcount", e);
}

static int correct_flags(struct rebuild *r, struct err *e)
{
    int rc = lengthen(r, 0, e);
    r->c.visitor = (struct qcow2_visitor){.visit = correct_flag};
    return rc ? rc : qcow2_walk(r->img, &r->c.visitor, e);
}

/* ---- emitting ---- */

static u8 *block_of(struct rebuild *r, u64 block)
{
    return r->c.counts + (block - (r->c.first >> r->bits)) * r->img->unit;
}

/* The next of the new blocks, which is not zero; the file reads zero where it goes. */
static int emit_block(struct rebuild *r, u64 block, const u8 *p, struct err *e)
{
    u64 from = 0, to = r->img->unit, at = (r->c.end + r->blocks++) * r->img->unit;
    while (all_zero(p + from, 512))
        from += 512;
    while (all_zero(p + to - 512, 512))
        to -= 512;
    r->exists[block / 8] |= (u8)(1 << block % 8);
    return plan_write(r->s, at + from, p + from, to - from, "a new refcount block", e);
}

/* The window's blocks, but the one that counts what comes behind the end: it is not complete. */
static int emit_blocks(struct rebuild *r, struct err *e)
{
    u64 first = r->c.first >> r->bits, n = 0;
    u64 end = min_u64(first + (r->c.cnt >> r->bits), r->c.end >> r->bits);
    for (u64 b = first; b < end; b++)
        n += !all_zero(block_of(r, b), r->img->unit);
    int rc = n ? lengthen(r, r->blocks + n, e) : 0;
    for (u64 b = first; !rc && n && b < end; b++)
        if (!all_zero(block_of(r, b), r->img->unit))
            rc = emit_block(r, b, block_of(r, b), e);
    return rc;
}

/* ---- windows ---- */

/* Counts all clusters of the file, and emits what that gives. Where it takes several windows,
 * tables alone come first: none is read again and again that is named more often than it may be. */
static int windows(struct rebuild *r, bool tables_only, struct err *e)
{
    u64 block = 0;
    int rc;
    do {
        qcow2_census_open(&r->c, block, r->c.room);
        if ((rc = qcow2_census_count(&r->c, tables_only, false, e)))
            return rc;
        if (!tables_only && r->c.flags &&
            (rc = correct_flags(r, e)))
            return rc;
        if (!tables_only && (rc = emit_blocks(r, e)))
            return rc;
        block = r->c.next >> r->bits;
    } while (r->c.next < r->c.end);
    if (!tables_only && (r->c.first + r->c.cnt) >> r->bits <= r->c.end >> r->bits)
        qcow2_census_open(&r->c, r->c.end >> r->bits, 1);
    return 0;
}

/* ---- the new table ---- */

/* The clusters [end, end + *clusters) are what is new: blocks, the last of them counting these
 * clusters too, and the table, of *table clusters; each addition may need another. */
static int measure(const struct rebuild *r, u64 *clusters, u64 *table, struct err *e)
{
    const struct qcow2 *q = r->q;
    u64 n = 0;
    do {
        *clusters = n;
        u64 blocks = ((r->c.end + max_u64(n, 1) - 1) >> r->bits) + 1;
        *table = div_up(blocks * 8, r->img->unit);
        if (blocks > TABLE_MAX || r->c.end + n > QCOW2_MAX_OFFSET >> q->cluster_bits)
            return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                        "The refcount table cannot count a file of {val} clusters; a larger "
                        "cluster size is needed",
                        0, r->c.end + n);
        n = r->blocks + blocks - (r->c.end >> r->bits) + *table;
    } while (n != *clusters);
    return 0;
}

/* Blocks that count what is new, the first of which is in the window. */
static int count_new(struct rebuild *r, u64 clusters, struct err *e)
{
    u64 first = r->c.end >> r->bits, end = r->c.end + clusters;
    u8 *p = block_of(r, first);
    int rc = 0;
    for (u64 b = first; !rc && b << r->bits < end; b++) {
        if (b > first)
            memset(p, 0, r->img->unit);
        for (u64 i = max_u64(r->c.end, b << r->bits); i < min_u64(end, (b + 1) << r->bits); i++)
            qcow2_count_put(p, r->q->refcount_order, i - (b << r->bits), 1);
        rc = emit_block(r, b, p, e);
    }
    return rc;
}

/* The new table, which stands behind the blocks; the file reads zero there. */
static int emit_table(struct rebuild *r, u64 entries, struct err *e)
{
    u64 block = r->c.end, to = (r->c.end + r->blocks) * r->img->unit;
    int rc = 0;
    for (u64 i = 0; !rc && i < entries; i += TABLE_CHUNK) {
        u8 chunk[TABLE_CHUNK * 8] = {0};
        u64 n = min_u64(entries - i, TABLE_CHUNK), before = block;
        for (u64 k = i; k < i + n; k++)
            if (r->exists[k / 8] >> k % 8 & 1)
                put_be64(chunk + (k - i) * 8, block++ * r->img->unit);
        if (block != before)
            rc = plan_write(r->s, to + i * 8, chunk, n * 8, "the new refcount table", e);
    }
    return rc;
}

static int commit(struct rebuild *r, u64 table, u64 table_clusters, struct err *e)
{
    const struct qcow2 *q = r->q;
    struct qcow2_header h;
    qcow2_header_begin(r->img, &h);
    qcow2_header_put64(&h, QH_REFCOUNT_TABLE_OFFSET, table);
    qcow2_header_put32(&h, QH_REFCOUNT_TABLE_CLUSTERS, (u32)table_clusters);
    qcow2_header_put64(&h, QH_INCOMPATIBLE_FEATURES, q->incompatible & ~QCOW2_INCOMPAT_DIRTY);
    int rc = plan_barrier(r->s, "the new refcounts are durable", e);
    if (rc || (rc = qcow2_header_commit(&h, r->s, "the new refcounts; the image is clean", e)) ||
        (rc = plan_discard(r->s, q->refcount_table_offset,
                           (u64)q->refcount_table_clusters << q->cluster_bits,
                           "the old refcount table", e)))
        return rc;
    return plan_barrier(r->s, "done", e);
}

/* Everything once the file's clusters are counted. */
static int finish(struct rebuild *r, const struct resize_args *a, struct plan_state *state,
                  struct err *e)
{
    u64 clusters, table;
    struct image after = *r->img;
    int rc = measure(r, &clusters, &table, e);
    if (rc)
        return rc;
    after.u.qcow2.refcount_table_clusters = (u32)table;
    if ((rc = qcow2_grow_eventual(&after, a, r->c.end + clusters, &state->eventual, e)) ||
        (rc = lengthen(r, clusters, e)) || (rc = count_new(r, clusters, e)) ||
        (rc = emit_table(r, ((r->c.end + clusters - 1) >> r->bits) + 1, e)))
        return rc;
    return commit(r, (r->c.end + r->blocks) * r->img->unit, table, e);
}

int qcow2_plan_rebuild(struct image *img, const struct resize_args *a, struct plan_state *state,
                       struct sink *s, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    struct rebuild r = {.img = img, .q = q, .s = s, .bits = qcow2_refblock_bits(q)};
    u64 clusters, table;
    int rc;
    if (state->epoch > 0)
        return plan_changed(QH_INCOMPATIBLE_FEATURES, q->incompatible, e);
    r.length = img->file[0]->size;
    assert(a->work_len > TABLE_MAX / 8);
    r.exists = a->work;
    memset(r.exists, 0, TABLE_MAX / 8);
    qcow2_census_init(&r.c, img, r.exists + TABLE_MAX / 8, a->work_len - TABLE_MAX / 8);
    r.c.twice = "The cluster at {val} is used twice, or for two purposes: the image was not closed "
                "cleanly and is corrupt besides";
    r.c.flags = q->nb_snapshots > 0;
    state->more = state->stage = true;
    if ((rc = measure(&r, &clusters, &table, e)) ||
        (rc = qcow2_grow_eventual(img, a, r.c.end + clusters, &state->eventual, e)))
        return rc;
    if (qcow2_census_windows(&r.c) && (rc = windows(&r, true, e)))
        return rc;
    return (rc = windows(&r, false, e)) ? rc : finish(&r, a, state, e);
}
