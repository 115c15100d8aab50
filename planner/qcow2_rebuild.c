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
#include "qcow2_grow.h"
#include "qcow2_header.h"
#include "qcow2_refcount.h"
#include "qcow2_walk.h"

enum {
    TABLE_MAX = QCOW2_MAX_REFTABLE_BYTES / 8, /* entries of a refcount table */
    TABLE_CHUNK = 256,                        /* of these, in one patch */
    KIND_ORDER = 1,                           /* an enum qcow2_ref_kind takes 2 bits */
};

struct rebuild {
    struct qcow2_visitor visitor;
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    u32 bits;             /* log2 of the clusters that a block counts */
    u64 end, length;      /* the file's: clusters, as it was found; bytes, as emitted so far */
    u8 *exists;           /* bit i: the new table has block i */
    u64 blocks;           /* how many of them are emitted; they stand from `end` on, in order */
    u8 *counts, *kinds;   /* of the window's clusters; a kind means something if its count does */
    u64 room;             /* blocks that fit into the window */
    u64 first, cnt, next; /* the window's clusters; the first one behind it that is referred to */
    bool flags;           /* some COPIED flag may be wrong */
};

/* ---- counting ---- */

/* A cluster serves one purpose; an L1 table and what hangs on it refers to it once, unless what is
 * stored in it is compressed. */
static int count_cluster(struct rebuild *r, const struct qcow2_ref *ref, u64 idx, struct err *e)
{
    u32 order = r->q->refcount_order;
    u64 i = idx - r->first, n = qcow2_count_get(r->counts, order, i), most = UINT64_MAX;
    if (ref->kind == QCOW2_REF_TABLE)
        most = 1;
    else if (ref->kind != QCOW2_REF_PACKED)
        most = ref->tree + 1ull;
    if (n && (n >= most || qcow2_count_get(r->kinds, KIND_ORDER, i) != ref->kind))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The cluster at {val} is used twice, or for two purposes: the image was not "
                    "closed cleanly and is corrupt besides",
                    ref->at, idx << r->q->cluster_bits);
    if (n == (order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1))
        return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                    "The cluster at {val} has more references than the image's refcounts can hold",
                    ref->at, idx << r->q->cluster_bits);
    qcow2_count_put(r->kinds, KIND_ORDER, i, ref->kind);
    qcow2_count_put(r->counts, order, i, n + 1);
    return 0;
}

/* Of the active L1 table's: the others' flags mean nothing. */
static bool has_flag(const struct qcow2_ref *ref)
{
    return ref->tree == 0 && (ref->kind == QCOW2_REF_L2 || ref->kind == QCOW2_REF_DATA);
}

static int count(struct qcow2_visitor *v, const struct qcow2_ref *ref, struct err *e)
{
    struct rebuild *r = (struct rebuild *)v;
    u64 i = ref->off >> r->q->cluster_bits, end = div_up(ref->off + ref->len, r->img->unit);
    u64 window_end = r->first + r->cnt;
    int rc = 0;
    r->flags |= has_flag(ref) && !(ref->entry & QCOW2_COPIED);
    if (end > window_end)
        r->next = min_u64(r->next, max_u64(i, window_end));
    for (i = max_u64(i, r->first); !rc && i < min_u64(end, window_end); i++)
        rc = count_cluster(r, ref, i, e);
    return rc;
}

static int correct_flag(struct qcow2_visitor *v, const struct qcow2_ref *ref, struct err *e)
{
    struct rebuild *r = (struct rebuild *)v;
    u64 i = (ref->off >> r->q->cluster_bits) - r->first;
    u8 entry[8];
    if (!has_flag(ref) || i >= r->cnt ||
        (qcow2_count_get(r->counts, r->q->refcount_order, i) == 1) ==
            ((ref->entry & QCOW2_COPIED) != 0))
        return 0;
    put_be64(entry, ref->entry ^ QCOW2_COPIED);
    return plan_write(r->s, ref->at, entry, 8, "a COPIED flag that contradicts the refcount", e);
}

/* ---- emitting ---- */

static int lengthen(struct rebuild *r, u64 clusters, struct err *e)
{
    u64 length = (r->end + clusters) * r->img->unit;
    if (length <= r->length)
        return 0;
    r->length = length;
    return plan_length(r->s, length, "room for new refcounts", e);
}

static u8 *block_of(struct rebuild *r, u64 block)
{
    return r->counts + (block - (r->first >> r->bits)) * r->img->unit;
}

static bool is_zero(const u8 *p, u64 len)
{
    return !p[0] && !memcmp(p, p + 1, len - 1);
}

/* The next of the new blocks, which is not zero; the file reads zero where it goes. */
static int emit_block(struct rebuild *r, u64 block, const u8 *p, struct err *e)
{
    u64 from = 0, to = r->img->unit, at = (r->end + r->blocks++) * r->img->unit;
    while (is_zero(p + from, 512))
        from += 512;
    while (is_zero(p + to - 512, 512))
        to -= 512;
    r->exists[block / 8] |= (u8)(1 << block % 8);
    return plan_write(r->s, at + from, p + from, to - from, "a new refcount block", e);
}

/* The window's blocks, but the one that counts what comes behind the end: it is not complete. */
static int emit_blocks(struct rebuild *r, struct err *e)
{
    u64 first = r->first >> r->bits, n = 0;
    u64 end = min_u64(first + (r->cnt >> r->bits), r->end >> r->bits);
    for (u64 b = first; b < end; b++)
        n += !is_zero(block_of(r, b), r->img->unit);
    int rc = n ? lengthen(r, r->blocks + n, e) : 0;
    for (u64 b = first; !rc && n && b < end; b++)
        if (!is_zero(block_of(r, b), r->img->unit))
            rc = emit_block(r, b, block_of(r, b), e);
    return rc;
}

/* ---- windows ---- */

/* From refcount block `block` on, all counts zero; the last block is the one that the end of the
 * file lies in. */
static void open_window(struct rebuild *r, u64 block, u64 max)
{
    u64 blocks = min_u64(max, (r->end >> r->bits) - block + 1);
    r->first = block << r->bits;
    r->cnt = blocks << r->bits;
    r->next = r->end;
    memset(r->counts, 0, blocks * r->img->unit);
}

static int walk(struct rebuild *r, bool tables_only,
                int (*visit)(struct qcow2_visitor *, const struct qcow2_ref *, struct err *),
                struct err *e)
{
    r->visitor = (struct qcow2_visitor){.visit = visit, .tables_only = tables_only};
    return qcow2_walk(r->img, &r->visitor, e);
}

/* Counts all clusters of the file, and emits what that gives. Where it takes several windows,
 * tables alone come first: none is read again and again that is named more often than it may be. */
static int windows(struct rebuild *r, bool tables_only, struct err *e)
{
    u64 block = 0;
    int rc;
    do {
        open_window(r, block, r->room);
        if ((rc = walk(r, tables_only, count, e)))
            return rc;
        if (!tables_only && r->flags &&
            ((rc = lengthen(r, 0, e)) || (rc = walk(r, false, correct_flag, e))))
            return rc;
        if (!tables_only && (rc = emit_blocks(r, e)))
            return rc;
        block = r->next >> r->bits;
    } while (r->next < r->end);
    if (!tables_only && (r->first + r->cnt) >> r->bits <= r->end >> r->bits)
        open_window(r, r->end >> r->bits, 1);
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
        u64 blocks = ((r->end + max_u64(n, 1) - 1) >> r->bits) + 1;
        *table = div_up(blocks * 8, r->img->unit);
        if (blocks > TABLE_MAX || r->end + n > QCOW2_MAX_OFFSET >> q->cluster_bits)
            return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                        "The refcount table cannot count a file of {val} clusters; a larger "
                        "cluster size is needed",
                        0, r->end + n);
        n = r->blocks + blocks - (r->end >> r->bits) + *table;
    } while (n != *clusters);
    return 0;
}

/* Blocks that count what is new, the first of which is in the window. */
static int count_new(struct rebuild *r, u64 clusters, struct err *e)
{
    u64 first = r->end >> r->bits, end = r->end + clusters;
    u8 *p = block_of(r, first);
    int rc = 0;
    for (u64 b = first; !rc && b << r->bits < end; b++) {
        if (b > first)
            memset(p, 0, r->img->unit);
        for (u64 i = max_u64(r->end, b << r->bits); i < min_u64(end, (b + 1) << r->bits); i++)
            qcow2_count_put(p, r->q->refcount_order, i - (b << r->bits), 1);
        rc = emit_block(r, b, p, e);
    }
    return rc;
}

/* The new table, which stands behind the blocks; the file reads zero there. */
static int emit_table(struct rebuild *r, u64 entries, struct err *e)
{
    u64 block = r->end, to = (r->end + r->blocks) * r->img->unit;
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
    if ((rc = qcow2_grow_eventual(&after, a, r->end + clusters, &state->eventual, e)) ||
        (rc = lengthen(r, clusters, e)) || (rc = count_new(r, clusters, e)) ||
        (rc = emit_table(r, ((r->end + clusters - 1) >> r->bits) + 1, e)))
        return rc;
    return commit(r, (r->end + r->blocks) * r->img->unit, table, e);
}

int qcow2_plan_rebuild(struct image *img, const struct resize_args *a, struct plan_state *state,
                       struct sink *s, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    struct rebuild r = {.img = img, .q = q, .s = s, .bits = qcow2_refblock_bits(q)};
    u64 unit = img->unit, kinds = (unit << (KIND_ORDER + 3)) >> (q->refcount_order + 3);
    u64 clusters, table;
    int rc;
    if (state->epoch > 0)
        return FAIL(e, ERR_HEADER_MISMATCH,
                    "The image changed while it was being worked on; retry the operation",
                    QH_INCOMPATIBLE_FEATURES, q->incompatible);
    r.length = img->file[0]->size;
    r.end = div_up(r.length, unit);
    r.room = (a->work_len - TABLE_MAX / 8) / (unit + kinds);
    assert(a->work_len > TABLE_MAX / 8 && r.room > 0);
    r.exists = a->work;
    r.counts = r.exists + TABLE_MAX / 8;
    r.kinds = r.counts + r.room * unit;
    memset(r.exists, 0, TABLE_MAX / 8);
    r.flags = q->nb_snapshots > 0;
    state->more = state->stage = true;
    if ((rc = measure(&r, &clusters, &table, e)) ||
        (rc = qcow2_grow_eventual(img, a, r.end + clusters, &state->eventual, e)))
        return rc;
    if (r.end >> r.bits >= r.room && (rc = windows(&r, true, e)))
        return rc;
    return (rc = windows(&r, false, e)) ? rc : finish(&r, a, state, e);
}
