/* SPDX-License-Identifier: MIT
 *
 * Host clusters at the end of the file. A file reads zero where it was lengthened, so only what is
 * not zero is written there. New refcount blocks count themselves where they can.
 */
#include "qcow2_alloc.h"
#include "qcow2_header.h"

enum { RELEASE_MAX = 6 /* runs that one epoch gives back */ };

static bool exists(const struct qcow2_alloc_in *in, u64 i)
{
    return i < QCOW2_ALLOC_BLOCKS && (in->exists[i / 8] >> i % 8 & 1);
}

/* Adds refcount blocks, and a longer refcount table, until all that is allocated is counted: each
 * addition may need another, so to a fixed point. */
static void count_blocks(const struct qcow2_alloc_in *in, struct qcow2_alloc *out)
{
    u32 rb_bits = in->cluster_bits + 3 - in->refcount_order;
    u64 table_entries = (u64)in->refcount_table_clusters << (in->cluster_bits - 3), before;
    do {
        before = out->written + out->payload.cnt + out->refblocks.cnt + out->reftable.cnt;
        out->end = in->first_free + before;
        out->blocks = ((out->end - 1) >> rb_bits) - out->block_first + 1;
        out->refblocks.cnt = 0;
        for (u64 i = 0; i < out->blocks; i++)
            out->refblocks.cnt += !exists(in, i);
        if (out->block_first + out->blocks > table_entries)
            out->reftable.cnt =
                div_up((out->block_first + out->blocks) * 8, 1ull << in->cluster_bits);
        if (out->reftable.cnt > QCOW2_MAX_REFTABLE_BYTES >> in->cluster_bits)
            return; /* too far: the caller refuses, and counting on would take for ever */
    } while (out->written + out->payload.cnt + out->refblocks.cnt + out->reftable.cnt != before);
}

int qcow2_alloc_query(const struct qcow2_alloc_in *in, u64 clusters, struct qcow2_alloc *out,
                      struct err *e)
{
    u32 rb_bits = in->cluster_bits + 3 - in->refcount_order;
    *out = (struct qcow2_alloc){
        .written = in->written, .payload.cnt = clusters, .block_first = in->first_free >> rb_bits};
    count_blocks(in, out);
    out->refblocks.first = in->first_free + in->written;
    out->reftable.first = out->refblocks.first + out->refblocks.cnt;
    out->payload.first = out->reftable.first + out->reftable.cnt;
    if (out->reftable.cnt > QCOW2_MAX_REFTABLE_BYTES >> in->cluster_bits ||
        out->end > QCOW2_MAX_OFFSET >> in->cluster_bits)
        return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                    "The refcount table cannot count a file of {val} clusters; a larger cluster "
                    "size is needed",
                    0, out->end);
    return 0;
}

/* Which refcount blocks from `first` on exist. */
static int read_exists(struct image *img, u64 first, u8 bits[QCOW2_ALLOC_BLOCKS / 8], struct err *e)
{
    memset(bits, 0, QCOW2_ALLOC_BLOCKS / 8);
    for (u64 i = 0; i < QCOW2_ALLOC_BLOCKS; i++) {
        u64 off;
        int rc = qcow2_refblock(img, first + i, &off, e);
        if (rc)
            return rc;
        if (off)
            bits[i / 8] |= (u8)(1 << i % 8);
    }
    return 0;
}

/* The first cluster of [first, end) that has a count although it lies past the end of the file. */
static int first_counted(struct image *img, u64 first, u64 end, u64 *found, struct err *e)
{
    for (*found = first; *found < end; ++*found) {
        u64 count;
        int rc = qcow2_refcount_get(img, *found, &count, e);
        if (rc)
            return rc;
        if (count)
            break;
    }
    return 0;
}

/* Is block `idx` at `off` the only one of the run there? */
static int check_distinct(struct image *img, u64 idx, u64 off, struct cluster_run run,
                          struct err *e)
{
    for (u64 i = run.first; i < run.first + run.cnt; i++) {
        u64 other;
        int rc = qcow2_refblock(img, i, &other, e);
        if (rc)
            return rc;
        if (i != idx && other == off)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "Two refcount blocks stand at {val}", i, off);
    }
    return 0;
}

/* Blocks that a plan changes, as runs of indices, must be counted themselves and all differ; only
 * the first run, of new clusters, may lack some. */
static int check_blocks(struct image *img, const struct cluster_run *run, unsigned n, struct err *e)
{
    for (unsigned r = 0; r < n; r++) {
        for (u64 i = run[r].first; i < run[r].first + run[r].cnt; i++) {
            u64 off;
            int rc = qcow2_refblock_sound(img, i, &off, e);
            for (unsigned k = 0; !rc && off && k < n; k++)
                rc = check_distinct(img, i, off, run[k], e);
            if (rc)
                return rc;
            if (r && !off)
                return FAIL(e, ERR_INCONSISTENT,
                            "Clusters in use are not counted (refcount block {off} is missing); "
                            "run 'qemu-img check -r all' on the image",
                            i, 0);
        }
    }
    return 0;
}

/* Places the payload, stepping over clusters past the end that are counted. */
static int step_over(struct image *img, u64 clusters, struct qcow2_alloc *out, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u8 bits[QCOW2_ALLOC_BLOCKS / 8];
    u64 start = div_up(img->file[0]->size, img->unit), found, known = UINT64_MAX;
    struct qcow2_alloc_in in = {
        q->cluster_bits, q->refcount_order, q->refcount_table_clusters, start, bits, 0};
    for (;;) {
        u64 block = in.first_free >> qcow2_refblock_bits(q);
        int rc = block == known ? 0 : read_exists(img, block, bits, e);
        known = block;
        if (rc || (rc = qcow2_alloc_query(&in, clusters, out, e)) ||
            (rc = first_counted(img, in.first_free, out->end, &found, e)))
            return rc;
        if (found == out->end)
            return 0;
        in.first_free = found + 1;
        if ((in.first_free - start) * img->unit > QCOW2_SKIP_MAX)
            return FAIL(e, ERR_INCONSISTENT,
                        "Clusters past the end of the file are marked as in use; run "
                        "'qemu-img check -r all' on the image",
                        0, found * img->unit);
    }
}

int qcow2_alloc_place(struct image *img, u64 clusters, const struct cluster_run *free, unsigned n,
                      struct qcow2_alloc *out, struct err *e)
{
    struct cluster_run run[RELEASE_MAX + 1];
    u32 bits = qcow2_refblock_bits(&img->u.qcow2);
    int rc = step_over(img, clusters, out, e);
    assert(n <= RELEASE_MAX);
    if (rc)
        return rc;
    run[0] = (struct cluster_run){out->block_first, out->blocks};
    for (unsigned i = 0; i < n; i++) {
        u64 first = free[i].first >> bits;
        run[i + 1] = (struct cluster_run){
            first, free[i].cnt ? ((free[i].first + free[i].cnt - 1) >> bits) - first + 1 : 0};
    }
    return check_blocks(img, run, n + 1, e);
}

int qcow2_alloc_place_written(struct image *img, u64 first, u64 written, u64 clusters,
                              struct qcow2_alloc *out, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u8 bits[QCOW2_ALLOC_BLOCKS / 8];
    struct qcow2_alloc_in in = {
        q->cluster_bits, q->refcount_order, q->refcount_table_clusters, first, bits, written};
    struct cluster_run run;
    u64 found = 0;
    int rc = read_exists(img, first >> qcow2_refblock_bits(q), bits, e);
    if (rc || (rc = qcow2_alloc_query(&in, clusters, out, e)) ||
        (rc = first_counted(img, first, out->end, &found, e)))
        return rc;
    if (found < out->end || out->reftable.cnt)
        return FAIL(e, ERR_HEADER_MISMATCH,
                    "The image changed while it was being worked on; retry the operation", 0,
                    found * img->unit);
    run = (struct cluster_run){out->block_first, out->blocks};
    return check_blocks(img, &run, 1, e);
}

int qcow2_alloc_free(struct image *img, u64 clusters, bool *free, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 first = div_up(img->file[0]->size, img->unit), found = 0;
    int rc = first_counted(img, first, first + clusters, &found, e);
    *free = !rc && found == first + clusters &&
            found >> qcow2_refblock_bits(q) < qcow2_reftable_entries(q);
    return rc;
}

u64 qcow2_alloc_moved_end(const struct image *img, const struct qcow2_alloc *a)
{
    return (a->end + a->payload.cnt + a->refblocks.cnt + 1) * img->unit;
}

/* All new clusters stand in one run: payload that was written before, refcount blocks, refcount
 * table and payload. */
static struct cluster_run allocated(const struct qcow2_alloc *a)
{
    u64 first = a->refblocks.first - a->written;
    return (struct cluster_run){first, a->end - first};
}

/* The place of refcount block `block`; *fresh if it is one of the new ones, of which *next is the
 * first that is not placed yet. */
static int block_place(struct image *img, u64 block, u64 *next, u64 *off, bool *fresh,
                       struct err *e)
{
    int rc = qcow2_refblock(img, block, off, e);
    *fresh = !rc && !*off;
    if (*fresh)
        *off = (*next)++ * img->unit;
    return rc;
}

static int raise_counts(struct image *img, const struct qcow2_alloc *a, struct sink *s,
                        struct err *e)
{
    struct cluster_run run = allocated(a);
    u64 next = a->refblocks.first;
    for (u64 i = 0; i < a->blocks; i++) {
        u64 off;
        bool fresh;
        int rc = block_place(img, a->block_first + i, &next, &off, &fresh, e);
        if (!rc)
            rc = qcow2_refcount_emit(img, s, a->block_first + i, off, fresh, &run, NULL, 0,
                                     fresh ? "a new refcount block" : "count the new clusters", e);
        if (rc)
            return rc;
    }
    return 0;
}

/* The entries of new blocks in the refcount table at `table`. */
static int link_blocks(struct image *img, const struct qcow2_alloc *a, u64 table, struct sink *s,
                       struct err *e)
{
    u64 next = a->refblocks.first;
    for (u64 i = 0; i < a->blocks; i++) {
        u64 off, block = a->block_first + i;
        u8 entry[8];
        bool fresh;
        int rc = block_place(img, block, &next, &off, &fresh, e);
        put_be64(entry, off);
        if (!rc && fresh)
            rc = plan_write(s, table + block * 8, entry, 8, "link the new refcount block", e);
        if (rc)
            return rc;
    }
    return 0;
}

/* The old refcount table at its new place, without the entries of new blocks, which are zero. */
static int copy_reftable(struct image *img, const struct qcow2_alloc *a, struct sink *s,
                         struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 to = a->reftable.first * img->unit, from = q->refcount_table_offset;
    u64 entries = qcow2_reftable_entries(q);
    for (u64 i = 0, end; i < entries; i = end + 1) {
        for (end = i; end < entries; end++) { /* [i, end) holds no entry of a new block */
            u64 off = 1;
            int rc = end < a->block_first ? 0 : qcow2_refblock(img, end, &off, e);
            if (rc)
                return rc;
            if (!off && end < a->block_first + a->blocks)
                break;
        }
        int rc = end == i ? 0
                          : plan_copy(s, to + i * 8, from + i * 8, (end - i) * 8,
                                      "the refcount table, at its new place", e);
        if (rc)
            return rc;
    }
    return 0;
}

int qcow2_alloc_emit(struct image *img, const struct qcow2_alloc *a, struct sink *s, struct err *e)
{
    int rc = raise_counts(img, a, s, e);
    if (!rc && a->reftable.cnt && !(rc = copy_reftable(img, a, s, e)))
        rc = link_blocks(img, a, a->reftable.first * img->unit, s, e);
    if (!rc)
        rc = plan_barrier(s, "what is new, and its counts, are durable", e);
    if (rc || !a->refblocks.cnt || a->reftable.cnt)
        return rc;
    rc = link_blocks(img, a, img->u.qcow2.refcount_table_offset, s, e);
    return rc ? rc : plan_barrier(s, "the new refcount blocks count", e);
}

/* Is block `b` among those of an earlier run? */
static bool seen(const struct cluster_run *runs, unsigned n, u32 bits, u64 b)
{
    for (unsigned i = 0; i < n; i++)
        if (runs[i].cnt && runs[i].first >> bits <= b &&
            b <= (runs[i].first + runs[i].cnt - 1) >> bits)
            return true;
    return false;
}

int qcow2_release(struct image *img, const struct qcow2_alloc *a, const struct cluster_run *runs,
                  unsigned n, struct sink *s, const char *why, struct err *e)
{
    u32 bits = qcow2_refblock_bits(&img->u.qcow2);
    struct cluster_run set = a ? allocated(a) : (struct cluster_run){0, 0};
    for (unsigned r = 0; r < n; r++) {
        for (u64 b = runs[r].first >> bits; b << bits < runs[r].first + runs[r].cnt; b++) {
            u64 off;
            if (seen(runs, r, bits, b))
                continue;
            int rc = qcow2_refblock(img, b, &off, e);
            if (!rc && off)
                rc = qcow2_refcount_emit(img, s, b, off, false, &set, runs, n, why, e);
            if (rc)
                return rc;
        }
    }
    return 0;
}

int qcow2_alloc_move_reftable(struct image *img, const struct qcow2_alloc *a, struct sink *s,
                              struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    struct qcow2_alloc table = *a;
    struct cluster_run old = {q->refcount_table_offset >> q->cluster_bits,
                              q->refcount_table_clusters};
    struct qcow2_header h;
    table.payload.cnt = 0; /* its blocks are made, its clusters are not counted yet */
    table.end = table.payload.first;
    qcow2_header_begin(img, &h);
    qcow2_header_put64(&h, QH_REFCOUNT_TABLE_OFFSET, table.reftable.first * img->unit);
    qcow2_header_put32(&h, QH_REFCOUNT_TABLE_CLUSTERS, (u32)table.reftable.cnt);
    int rc = plan_length(s, table.end * img->unit, "room for a longer refcount table", e);
    if (rc || (rc = qcow2_alloc_emit(img, &table, s, e)) ||
        (rc = qcow2_header_commit(&h, s, "the longer refcount table", e)) ||
        (rc = qcow2_release(img, &table, &old, 1, s, "the old refcount table", e)))
        return rc;
    return plan_barrier(s, "done", e);
}

u64 qcow2_alloc_eventual(const struct image *img, u64 size, u64 n)
{
    const struct qcow2 *q = &img->u.qcow2;
    /* Refcount blocks count n, the file so far, and themselves; the table may move a few times. */
    u64 per_block = 1ull << qcow2_refblock_bits(q);
    u64 blocks = div_up(n, per_block - 1) + 2;
    u64 table = div_up((div_up(size, img->unit) + n + blocks) / per_block * 8 + 16, img->unit);
    if (table > q->refcount_table_clusters)
        n += 3 * table;
    return round_up(size, img->unit) + (n + blocks) * img->unit;
}
