/* SPDX-License-Identifier: MIT
 *
 * Growing a qcow2 image: one epoch. What the old header cannot reach is written first (the new L1
 * table and refcount blocks behind the old end of the file, stale entries and bytes past the old
 * end of the disk), then the commit: one write inside header sector 0. What the commit left unused
 * is given back after it. A crash leaves leaked clusters at most.
 *
 * Allocation begins at the end of the file, and a file reads zero where it was lengthened, so only
 * what is not zero is written there. Order and sources: planner/plan.h (P1-P11); docs/interop/
 * qcow2.txt, "Header", "Host cluster management", "Cluster mapping".
 */
#include "qcow2_grow.h"
#include "qcow2_refcount.h"

enum { SKIP_MAX = 256 << 20 /* bytes of claimed clusters past the end that are stepped over */ };

static bool exists(const struct qcow2_grow_in *in, u64 i)
{
    return i < QCOW2_GROW_BLOCKS && (in->exists[i / 8] >> i % 8 & 1);
}

/* Adds refcount blocks, and a longer refcount table, until all that is allocated is counted: each
 * addition may need another, so to a fixed point. */
static void count_blocks(const struct qcow2_grow_in *in, u32 rb_bits, struct qcow2_grow *out)
{
    u64 table_entries = (u64)in->refcount_table_clusters << (in->cluster_bits - 3), before;
    out->block_first = in->first_free >> rb_bits;
    do {
        u64 total = out->l1.cnt + out->refblocks.cnt + out->reftable.cnt;
        before = total;
        out->end = in->first_free + total;
        out->blocks = ((out->end - 1) >> rb_bits) - out->block_first + 1;
        out->refblocks.cnt = 0;
        for (u64 i = 0; i < out->blocks; i++)
            out->refblocks.cnt += !exists(in, i);
        if (out->block_first + out->blocks > table_entries)
            out->reftable.cnt = div_up((out->block_first + out->blocks) * 8, 1ull << in->cluster_bits);
    } while (out->l1.cnt + out->refblocks.cnt + out->reftable.cnt != before);
}

int qcow2_grow_query(const struct qcow2_grow_in *in, struct qcow2_grow *out, struct err *e)
{
    u64 cluster = 1ull << in->cluster_bits;
    u64 entries = div_up(in->new_size, 1ull << (in->cluster_bits + in->l2_bits));
    *out = (struct qcow2_grow){.l1_size = in->l1_size, .end = in->first_free};
    if (entries > QCOW2_MAX_L1_BYTES / 8)
        return FAIL(e, ERR_INVALID_NEW_SIZE, "Failed to grow the L1 table: File too large", 0,
                    entries);
    if (entries <= in->l1_size)
        return 0;
    out->l1_size = (u32)entries;
    if (in->l1_size && entries * 8 <= round_up(in->l1_size * 8ull, cluster)) {
        out->action = QCOW2_L1_IN_PLACE;
        return 0;
    }
    out->l1.cnt = div_up(entries * 8, cluster);
    count_blocks(in, in->cluster_bits + 3 - in->refcount_order, out);
    out->refblocks.first = in->first_free;
    out->reftable.first = out->refblocks.first + out->refblocks.cnt;
    out->l1.first = out->reftable.first + out->reftable.cnt;
    out->action = out->reftable.cnt    ? QCOW2_L1_AND_REFCOUNT_GROW
                  : out->refblocks.cnt ? QCOW2_L1_AND_REFBLOCK
                                       : QCOW2_L1_GROW;
    if (out->reftable.cnt * cluster > QCOW2_MAX_REFTABLE_BYTES ||
        out->end > QCOW2_MAX_OFFSET >> in->cluster_bits)
        return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                    "The refcount table cannot count a file of {val} clusters; a larger cluster "
                    "size is needed",
                    0, out->end);
    return 0;
}

/* What the steps below share. */
struct grow {
    struct image *img;
    struct sink *s;
    const struct qcow2 *q;
    u64 cluster, new_size;
    struct qcow2_grow plan;
    bool wrote; /* something precedes the commit that must be durable first */
};

/* Which refcount blocks from `first` on exist. */
static int read_exists(struct image *img, u64 first, u8 bits[QCOW2_GROW_BLOCKS / 8], struct err *e)
{
    memset(bits, 0, QCOW2_GROW_BLOCKS / 8);
    for (u64 i = 0; i < QCOW2_GROW_BLOCKS; i++) {
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

/* Finds the place for what must be allocated: behind the end of the file, past clusters that are
 * counted there already. */
static int place(struct grow *g, struct err *e)
{
    struct image *img = g->img;
    const struct qcow2 *q = g->q;
    u8 bits[QCOW2_GROW_BLOCKS / 8];
    u64 start = div_up(img->file[0]->size, g->cluster), found;
    struct qcow2_grow_in in = {q->cluster_bits, q->l2_bits, q->refcount_order,
                               q->refcount_table_clusters, q->l1_size, g->new_size, start, bits};
    memset(bits, 0xff, sizeof bits);
    int rc = qcow2_grow_query(&in, &g->plan, e);
    if (rc || g->plan.action < QCOW2_L1_GROW)
        return rc;
    for (;;) {
        if ((rc = read_exists(img, in.first_free >> qcow2_refblock_bits(q), bits, e)) ||
            (rc = qcow2_grow_query(&in, &g->plan, e)) ||
            (rc = first_counted(img, in.first_free, g->plan.end, &found, e)))
            return rc;
        if (found == g->plan.end)
            return 0;
        in.first_free = found + 1;
        if ((in.first_free - start) * g->cluster > SKIP_MAX)
            return FAIL(e, ERR_INCONSISTENT,
                        "Clusters past the end of the file are marked as in use; run "
                        "'qemu-img check -r all' on the image",
                        0, found * g->cluster);
    }
}

/* The blocks whose counts change, as runs of indices: those of the new clusters, of the old L1 table
 * and of the old refcount table. */
static unsigned touched_blocks(const struct grow *g, struct cluster_run run[3])
{
    const struct qcow2 *q = g->q;
    u32 shift = q->cluster_bits + qcow2_refblock_bits(q);
    u64 l1 = q->l1_table_offset, l1_len = q->l1_size * 8ull;
    u64 rt = q->refcount_table_offset, rt_len = (u64)q->refcount_table_clusters << q->cluster_bits;
    unsigned n = 0;
    run[n++] = (struct cluster_run){g->plan.block_first, g->plan.blocks};
    if (g->plan.l1.cnt && l1_len)
        run[n++] = (struct cluster_run){l1 >> shift, ((l1 + l1_len - 1) >> shift) - (l1 >> shift) + 1};
    if (g->plan.reftable.cnt)
        run[n++] = (struct cluster_run){rt >> shift, ((rt + rt_len - 1) >> shift) - (rt >> shift) + 1};
    return n;
}

/* Is block `idx` at `off` the only one of the run there? */
static int check_distinct(struct grow *g, u64 idx, u64 off, struct cluster_run run, struct err *e)
{
    for (u64 i = run.first; i < run.first + run.cnt; i++) {
        u64 other;
        int rc = qcow2_refblock(g->img, i, &other, e);
        if (rc)
            return rc;
        if (i != idx && other == off)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "Two refcount blocks stand at {val}", i, off);
    }
    return 0;
}

/* Blocks that this plan writes must be counted themselves and must not be the same. */
static int check_blocks(struct grow *g, struct err *e)
{
    struct cluster_run run[3];
    unsigned n = g->plan.l1.cnt ? touched_blocks(g, run) : 0;
    for (unsigned r = 0; r < n; r++) {
        for (u64 i = run[r].first; i < run[r].first + run[r].cnt; i++) {
            u64 off, count = 1;
            int rc = qcow2_refblock(g->img, i, &off, e);
            for (unsigned k = 0; !rc && off && k < n; k++)
                rc = check_distinct(g, i, off, run[k], e);
            if (!rc && off)
                rc = qcow2_refcount_get(g->img, off >> g->q->cluster_bits, &count, e);
            if (rc)
                return rc;
            if (!count)
                return FAIL(e, ERR_INCONSISTENT,
                            "Refcount block at {val} is not covered by the refcount structures; "
                            "run 'qemu-img check -r all' on the image",
                            i, off);
        }
    }
    return 0;
}

/* Is cluster `off` counted exactly once, so that it may be changed in place? */
static int check_exclusive(struct image *img, u64 off, const char *what, struct err *e)
{
    u64 count;
    int rc = qcow2_refcount_get(img, off >> img->u.qcow2.cluster_bits, &count, e);
    if (rc || count == 1)
        return rc;
    return FAIL(e, count ? ERR_UNSUPPORTED_FEATURE : ERR_INCONSISTENT, what, off, count);
}

/* P11: zeros where the old disk's end hides something. */
static int clear(struct grow *g, u64 off, u64 len, const char *why, struct err *e)
{
    g->wrote = true;
    return plan_zero(g->s, off, len, why, e);
}

/* P11: L1 entries past the old end of the disk that the new disk would reach. Where the table
 * moves they are not copied. */
static int clear_l1(struct grow *g, u64 used, struct err *e)
{
    struct table l1 = {g->img->file[0], &g->img->win, g->q->l1_table_offset, g->q->l1_size};
    u64 end = min_u64(g->q->l1_size, qcow2_l1_entries(g->q, g->new_size)), lo = end, hi = 0;
    for (u64 i = used; i < end; i++) {
        u64 entry;
        int rc = table_get(&l1, i, &entry, e);
        if (rc)
            return rc;
        if (entry) {
            lo = min_u64(lo, i);
            hi = i + 1;
        }
    }
    return lo < hi ? clear(g, l1.off + lo * 8, (hi - lo) * 8,
                               "stale L1 entries past the old end of the disk", e)
                   : 0;
}

/* P11: entries of the last L2 table past the old end of the disk that map data. */
static int clear_l2(struct grow *g, u64 l2, struct err *e)
{
    const struct qcow2 *q = g->q;
    u64 entries = 1ull << q->l2_bits, lo = entries, hi = 0;
    for (u64 i = div_up(g->img->size, g->cluster) & (entries - 1); i && i < entries; i++) {
        const u8 *p;
        int rc = window_get(&g->img->win2, g->img->file[0], l2 + i * q->l2_entry_size,
                            q->l2_entry_size, l2 + g->cluster, &p, e);
        if (rc)
            return rc;
        bool zero = q->l2_entry_size == 16 ? !be64(p) && !(u32)be64(p + 8)
                                           : !be64(p) || (q->version == 3 && be64(p) == 1);
        if (!zero) {
            lo = min_u64(lo, i);
            hi = i + 1;
        }
    }
    if (lo >= hi)
        return 0;
    int rc = check_exclusive(g->img, l2,
                             "The last L2 table maps clusters past the end of the disk and is "
                             "shared with a snapshot",
                             e);
    return rc ? rc
              : clear(g, l2 + lo * q->l2_entry_size, (hi - lo) * q->l2_entry_size,
                          "stale L2 entries past the old end of the disk", e);
}

/* P11: the rest of the last cluster, which an earlier shrink may have left full of old bytes. */
static int clear_tail(struct grow *g, struct err *e)
{
    struct image *img = g->img;
    u64 end = round_up(img->size, g->cluster);
    for (u64 voff = img->size; voff < end;) {
        struct extent x;
        int rc = qcow2_look(img, voff, &x, e);
        if (rc)
            return rc;
        voff += x.len;
        if (x.kind == EXTENT_PACKED)
            return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                        "The disk ends inside a compressed cluster: growing it is not yet "
                        "supported",
                        img->size, x.off);
        if (x.kind != EXTENT_DATA || x.off >= img->file[0]->size)
            continue;
        rc = check_exclusive(img, round_down(x.off, g->cluster),
                             "The disk ends inside a cluster that is shared with a snapshot: "
                             "growing it is not yet supported",
                             e);
        if (!rc)
            rc = clear(g, x.off, min_u64(x.len, img->file[0]->size - x.off),
                           "old bytes past the old end of the disk", e);
        if (rc)
            return rc;
    }
    return 0;
}

static int hide_stale(struct grow *g, struct err *e)
{
    u64 used = qcow2_l1_entries(g->q, g->img->size), l2 = 0;
    int rc = used ? qcow2_l1_get(g->img, used - 1, &l2, e) : 0;
    if (!rc && g->plan.action < QCOW2_L1_GROW)
        rc = clear_l1(g, used, e);
    if (!rc && l2)
        rc = clear_l2(g, l2, e);
    return rc ? rc : clear_tail(g, e);
}

/* Calls emit for each refcount block that counts the new clusters: `off` is its place, fresh if it
 * is one of the new blocks. */
static int each_new_block(struct grow *g,
                          int (*emit)(struct grow *, u64 block, u64 off, bool fresh, struct err *),
                          struct err *e)
{
    u64 next = g->plan.refblocks.first;
    for (u64 i = 0; i < g->plan.blocks; i++) {
        u64 off;
        int rc = qcow2_refblock(g->img, g->plan.block_first + i, &off, e);
        bool fresh = !rc && !off;
        if (fresh)
            off = next++ * g->cluster;
        if (!rc)
            rc = emit(g, g->plan.block_first + i, off, fresh, e);
        if (rc)
            return rc;
    }
    return 0;
}

/* All that is allocated: refcount blocks, refcount table and L1 table stand in one run. */
static struct refcount_run allocated(const struct grow *g)
{
    u64 first = g->plan.refblocks.first;
    return (struct refcount_run){first, g->plan.end - first, false};
}

static int raise_block(struct grow *g, u64 block, u64 off, bool fresh, struct err *e)
{
    struct refcount_run run = allocated(g);
    return qcow2_refcount_emit(g->img, g->s, block, off, fresh, &run, NULL,
                               fresh ? "a new refcount block" : "count the new clusters", e);
}

/* The entry of a new block: in the new refcount table if there is one, else in the old. */
static int link_block(struct grow *g, u64 block, u64 off, bool fresh, struct err *e)
{
    u8 entry[8];
    u64 table = g->plan.reftable.cnt ? g->plan.reftable.first * g->cluster
                                     : g->q->refcount_table_offset;
    put_be64(entry, off);
    return fresh ? plan_write(g->s, table + block * 8, entry, 8, "link the new refcount block", e)
                 : 0;
}

/* The new refcount table: a copy of the old up to the first block that is new, the blocks that
 * exist among the new ones' range, and the new ones. */
static int copy_reftable(struct grow *g, struct err *e)
{
    u64 to = g->plan.reftable.first * g->cluster;
    u64 entries = (u64)g->q->refcount_table_clusters << (g->q->cluster_bits - 3);
    for (u64 i = 0, end; i < entries; i = end + 1) {
        /* [i, end) holds no entry of a new block */
        for (end = i; end < entries; end++) {
            u64 off = 1;
            int rc = end < g->plan.block_first ? 0 : qcow2_refblock(g->img, end, &off, e);
            if (rc)
                return rc;
            if (!off && end < g->plan.block_first + g->plan.blocks)
                break;
        }
        int rc = end == i ? 0
                          : plan_copy(g->s, to + i * 8, g->q->refcount_table_offset + i * 8,
                                      (end - i) * 8, "the refcount table, at its new place", e);
        if (rc)
            return rc;
    }
    return 0;
}

/* Everything that the old header cannot reach, and raised counts. */
static int prepare(struct grow *g, struct err *e)
{
    u64 used = qcow2_l1_entries(g->q, g->img->size);
    int rc = each_new_block(g, raise_block, e);
    if (!rc && g->plan.reftable.cnt && !(rc = copy_reftable(g, e)))
        rc = each_new_block(g, link_block, e);
    if (!rc && used)
        rc = plan_copy(g->s, g->plan.l1.first * g->cluster, g->q->l1_table_offset, used * 8,
                       "the L1 table, at its new place", e);
    if (!rc)
        rc = plan_barrier(g->s, "new tables and counts are durable", e);
    if (rc || !g->plan.refblocks.cnt || g->plan.reftable.cnt)
        return rc;
    rc = each_new_block(g, link_block, e);
    return rc ? rc : plan_barrier(g->s, "the new refcount blocks count", e);
}

/* The header fields that change, from `size` on, in one write inside sector 0. */
static int commit(struct grow *g, struct err *e)
{
    u8 field[QH_NB_SNAPSHOTS - QH_SIZE];
    const struct qcow2 *q = g->q;
    static const u8 end[] = {
        [QCOW2_HEADER_ONLY] = QH_CRYPT_METHOD,
        [QCOW2_L1_IN_PLACE] = QH_L1_TABLE_OFFSET,
        [QCOW2_L1_GROW] = QH_REFCOUNT_TABLE_OFFSET,
        [QCOW2_L1_AND_REFBLOCK] = QH_REFCOUNT_TABLE_OFFSET,
        [QCOW2_L1_AND_REFCOUNT_GROW] = QH_NB_SNAPSHOTS,
    };
    bool l1_moves = g->plan.l1.cnt, rt_moves = g->plan.reftable.cnt;
    put_be64(field, g->new_size);
    put_be32(field + QH_CRYPT_METHOD - QH_SIZE, q->crypt_method);
    put_be32(field + QH_L1_SIZE - QH_SIZE, g->plan.l1_size);
    put_be64(field + QH_L1_TABLE_OFFSET - QH_SIZE,
             l1_moves ? g->plan.l1.first * g->cluster : q->l1_table_offset);
    put_be64(field + QH_REFCOUNT_TABLE_OFFSET - QH_SIZE,
             rt_moves ? g->plan.reftable.first * g->cluster : q->refcount_table_offset);
    put_be32(field + QH_REFCOUNT_TABLE_CLUSTERS - QH_SIZE,
             rt_moves ? (u32)g->plan.reftable.cnt : q->refcount_table_clusters);
    int rc = plan_commit(g->s, QH_SIZE, field, end[g->plan.action] - QH_SIZE,
                         "the new size, and the tables that serve it", e);
    return rc ? rc : plan_barrier(g->s, "the new size is durable", e);
}

/* Gives back [first, first+cnt) by lowering its counts; `before` shares bytes with them. */
static int release(struct grow *g, u64 off, u64 bytes, const char *why, struct err *e)
{
    struct refcount_run run = {off >> g->q->cluster_bits, div_up(bytes, g->cluster), true};
    struct refcount_run before = allocated(g);
    u32 bits = qcow2_refblock_bits(g->q);
    for (u64 b = run.first >> bits; b <= (run.first + run.cnt - 1) >> bits; b++) {
        u64 at;
        int rc = qcow2_refblock(g->img, b, &at, e);
        if (!rc && at)
            rc = qcow2_refcount_emit(g->img, g->s, b, at, false, &run, &before, why, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int release_old(struct grow *g, struct err *e)
{
    int rc = 0;
    if (g->plan.l1.cnt && g->q->l1_size)
        rc = release(g, g->q->l1_table_offset, g->q->l1_size * 8ull,
                     "the old L1 table is free", e);
    if (!rc && g->plan.reftable.cnt)
        rc = release(g, g->q->refcount_table_offset,
                     (u64)g->q->refcount_table_clusters << g->q->cluster_bits,
                     "the old refcount table is free", e);
    return rc ? rc : plan_barrier(g->s, "done", e);
}

/* The file becomes long enough for all that is written, and ends at a cluster. */
static int lengthen(struct grow *g, struct err *e)
{
    u64 size = g->img->file[0]->size, want = size;
    if (g->plan.action == QCOW2_L1_IN_PLACE)
        want = g->q->l1_table_offset + g->plan.l1_size * 8ull;
    else if (g->plan.action != QCOW2_HEADER_ONLY)
        want = g->plan.end * g->cluster;
    want = round_up(want, g->cluster);
    return want > size && g->plan.action != QCOW2_HEADER_ONLY
               ? plan_length(g->s, want, "room for the tables", e)
               : 0;
}

static int clear_autoclear(struct grow *g, struct err *e)
{
    u8 field[8];
    u64 keep = g->q->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
    if (keep == g->q->autoclear)
        return 0;
    put_be64(field, keep);
    int rc = plan_write(g->s, QH_AUTOCLEAR_FEATURES, field, 8,
                        "clear autoclear bits that this program does not maintain", e);
    return rc ? rc : plan_barrier(g->s, "before anything else is changed", e);
}

int qcow2_plan_grow(struct image *img, const struct resize_args *a, struct sink *s, struct err *e)
{
    struct grow g = {img, s, &img->u.qcow2, img->unit, a->new_size, {0}, false};
    int rc;
    if ((rc = place(&g, e)) || (rc = check_blocks(&g, e)) || (rc = clear_autoclear(&g, e)) ||
        (rc = lengthen(&g, e)) || (rc = hide_stale(&g, e)))
        return rc;
    if (g.plan.action == QCOW2_L1_IN_PLACE)
        rc = clear(&g, g.q->l1_table_offset + g.q->l1_size * 8ull,
                   (g.plan.l1_size - g.q->l1_size) * 8ull, "the new L1 entries", e);
    if (!rc && g.plan.action >= QCOW2_L1_GROW)
        rc = prepare(&g, e);
    else if (!rc && g.wrote)
        rc = plan_barrier(s, "nothing old can be seen past the old end", e);
    if (rc || (rc = commit(&g, e)))
        return rc;
    return g.plan.action >= QCOW2_L1_GROW ? release_old(&g, e) : 0;
}
