/* SPDX-License-Identifier: MIT
 *
 * Shrinking a qcow2 image. The size is the commit and comes before anything is freed; what follows
 * only gives back what the new header can no longer reach, so that a crash leaves leaks at most:
 *
 *   UNSHARE  a table or cluster at the new end that a snapshot shares, or that is compressed, is
 *            replaced by a copy; nothing changes for the guest
 *   COMMIT   size and l1_size; then the last L2 table's entries past the end are cleared, the rest
 *            of the last cluster is zeroed, and what those entries named is freed
 *   STREAM   the old L1 table's tail is walked, a batch an epoch, and all that it names is freed;
 *            nobody overwrites it meanwhile. No table is ever allocated for a hole
 *   BLOCKS   refcount blocks that count nothing any more go; the file is cut behind what is in use
 *
 * Source: docs/interop/qcow2.txt; planner/plan.h (P1-P11).
 */
#include "qcow2_shrink.h"
#include "qcow2_alloc.h"
#include "qcow2_bitmaps.h"
#include "qcow2_data.h"
#include "qcow2_drop.h"
#include "qcow2_header.h"
#include "qcow2_state.h"
#include "qcow2_tail.h"

enum { PUNCH_MAX = 100000, PIECE = 4096 /* bytes of an L2 table looked at together */ };

static const char past_the_end[] = "past the new end";

struct shrink {
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    u64 *v, new_size;
    struct qcow2_drop drop;
};

static int unshare(struct shrink *k, struct qcow2_tail *t, u64 *eventual, struct err *e)
{
    struct image *img = k->img;
    struct qcow2_alloc a;
    int rc = qcow2_alloc_place(img, qcow2_tail_clusters(t), t->free, t->frees, &a, e);
    if (rc)
        return rc;
    *eventual = qcow2_alloc_moved_end(img, &a);
    if (a.reftable.cnt)
        return qcow2_alloc_move_reftable(img, &a, k->s, e);
    qcow2_tail_place(img, t, a.payload.first);
    if ((rc = plan_length(k->s, a.end * img->unit, "room for copies of what is shared", e)) ||
        (rc = qcow2_tail_copy(img, t, k->s, e)) || (rc = qcow2_alloc_emit(img, &a, k->s, e)) ||
        (rc = qcow2_tail_link(img, t, false, k->s, e)) ||
        (rc = plan_barrier(k->s, "copies are in the place of what is shared", e)) ||
        (rc = qcow2_release(img, &a, t->free, t->frees, k->s, "no longer in use", e)))
        return rc;
    return plan_barrier(k->s, "done", e);
}

/* What the last L2 table's entries past the end refer to, before they are cleared. */
static int list_stale(struct shrink *k, const struct qcow2_tail *t, struct err *e)
{
    for (u64 i = t->stale_first; i < t->stale_end; i++) {
        u64 entry, bitmap;
        int rc = qcow2_tail_entry(k->img, t, i, &entry, &bitmap, e);
        if (rc)
            return rc;
        qcow2_drop_entry(k->img, &k->drop, entry);
    }
    return 0;
}

/* Every refcount block must be where a block can be, and counted: what comes after the commit
 * relies on it. */
static int check_reftable(struct shrink *k, struct err *e)
{
    for (u64 i = 0; i < k->drop.spared_cnt; i++) { /* in the order of the counts */
        u64 count;
        int rc = qcow2_refcount_get(k->img, k->drop.spared[i], &count, e);
        if (rc || (rc = qcow2_refblock_check(k->img, k->drop.spared[i], count, e)))
            return rc;
    }
    return 0;
}

/* A file may end inside a table of its last cluster, in which counts are about to be changed. */
static int whole_clusters(struct shrink *k, struct err *e)
{
    u64 size = k->img->file[0]->size, want = round_up(size, k->img->unit);
    int rc = want > size ? plan_length(k->s, want, "whole clusters", e) : 0;
    return rc || want == size ? rc : plan_barrier(k->s, "the file's length", e);
}

static int commit(struct shrink *k, const struct qcow2_tail *t, const struct plan_state *state,
                  struct err *e)
{
    struct qcow2_header h;
    u64 used = qcow2_l1_entries(k->q, k->new_size);
    k->v[V_PHASE] = PHASE_STREAM;
    k->v[V_OLD_L1_SIZE] = k->q->l1_size;
    k->v[V_L1_IDX] = used;
    qcow2_header_begin(k->img, &h);
    int rc = list_stale(k, t, e);
    if (rc || (rc = whole_clusters(k, e)))
        return rc;
    qcow2_header_put64(&h, QH_SIZE, k->new_size);
    qcow2_header_put32(&h, QH_L1_SIZE, (u32)used);
    qcow2_bitmaps_revive(state, &h);
    if ((rc = qcow2_header_commit(&h, k->s, "the new size, and the shorter L1 table", e)) ||
        (rc = qcow2_tail_zero(k->img, t, k->s, e)))
        return rc;
    if (t->zero || t->stale_end)
        rc = plan_barrier(k->s, "nothing is seen past the new end", e);
    return rc || !k->drop.cnt ? rc : qcow2_drop_emit(k->img, &k->drop, k->s, past_the_end, e);
}

/* Lists one L2 table's references from entry v[V_L2_IDX] on, and the table itself once it is done.
 */
static int list_table(struct shrink *k, u64 l2, bool *full, struct err *e)
{
    u32 size = k->q->l2_entry_size;
    u64 *i = &k->v[V_L2_IDX], n;
    for (; *i < 1ull << k->q->l2_bits; *i += n) {
        const u8 *p;
        n = min_u64(PIECE / size, (1ull << k->q->l2_bits) - *i);
        *full = !qcow2_drop_room(&k->drop, n);
        if (*full)
            return 0;
        int rc = window_get(&k->img->win2, k->img->file[0], l2 + *i * size, (u32)n * size,
                            l2 + k->img->unit, &p, e);
        if (rc)
            return rc;
        for (const u8 *end = p + n * size; p < end; p += size)
            if (be64(p))
                qcow2_drop_entry(k->img, &k->drop, be64(p));
    }
    *full = !qcow2_drop_room(&k->drop, 1);
    if (*full)
        return 0;
    qcow2_drop_add(&k->drop, l2 >> k->q->cluster_bits);
    *i = 0;
    return 0;
}

/* One batch of the old L1 tail. A table that no sound image has is left alone: it leaks. So does
 * what comes after more tables than the file has clusters: some are listed twice. */
static int stream(struct shrink *k, struct err *e)
{
    struct table l1 = {k->img->file[0], &k->img->win, k->q->l1_table_offset, k->v[V_OLD_L1_SIZE]};
    bool full = false;
    u64 most = k->drop.file_size >> k->q->cluster_bits;
    for (u64 *i = &k->v[V_L1_IDX]; *i < l1.cnt && k->v[V_TABLES] < most; ++*i) {
        struct err ignored = {0};
        u64 entry;
        int rc = table_get(&l1, *i, &entry, e);
        entry &= QCOW2_OFFSET_MASK;
        if (!rc && entry && !qcow2_check_table(k->img, entry, k->img->unit, "", &ignored))
            rc = list_table(k, entry, &full, e);
        if (rc)
            return rc;
        if (full)
            return qcow2_drop_emit(k->img, &k->drop, k->s, past_the_end, e);
        k->v[V_TABLES] += entry != 0;
    }
    u64 kept = div_up(k->q->l1_size * 8ull, k->img->unit), had = div_up(l1.cnt * 8, k->img->unit);
    if (k->drop.cnt + had - kept <= k->drop.cap) { /* else in the next epoch, with an empty list */
        while (kept < had)
            qcow2_drop_add(&k->drop, (l1.off >> k->q->cluster_bits) + kept++);
        k->v[V_PHASE] = PHASE_BLOCKS;
    }
    return qcow2_drop_emit(k->img, &k->drop, k->s, past_the_end, e);
}

/* Where the file may end: behind the last cluster that is counted, and every table that is named.
 * What is free before that becomes holes. */
static int cut(struct shrink *k, u64 last, struct err *e)
{
    const struct qcow2 *q = k->q;
    u64 end = max_u64((last + 1) << q->cluster_bits, round_up(q->tables_end, k->img->unit));
    int rc = qcow2_drop_punch(k->img, &k->drop, end >> q->cluster_bits, PUNCH_MAX, k->s, e);
    if (!rc)
        rc = end < k->img->file[0]->size ? plan_length(k->s, end, "what follows is free", e) : 0;
    if (!rc)
        rc = plan_barrier(k->s, "done", e);
    return rc || !qcow2_has_data_file(q) ? rc : qcow2_data_shrink(k->img, k->new_size, k->s, e);
}

/* Unlinks refcount blocks that are empty; when there are none left, cuts the file. A block that
 * counts itself vanishes with its count; one that another block counts is listed there. No block
 * that is emptied here is read again (P3): an empty one counts nothing else. */
static int blocks(struct shrink *k, struct plan_state *state, struct err *e)
{
    const struct qcow2 *q = k->q;
    u64 last = 0;
    static const u8 none[8];
    state->more = false;
    for (u64 i = 0; i < qcow2_reftable_entries(q) && qcow2_drop_room(&k->drop, 1); i++) {
        u64 off;
        bool empty = false;
        int rc = qcow2_refblock(k->img, i, &off, e);
        if (rc || (off && (rc = qcow2_refblock_look(k->img, i, off, &empty, &last, e))))
            return rc;
        if (!off || !empty)
            continue;
        state->more = true;
        u64 cluster = off >> q->cluster_bits;
        if (cluster >> qcow2_refblock_bits(q) == i)
            qcow2_drop_freed(&k->drop, cluster);
        else
            qcow2_drop_add(&k->drop, cluster);
        if ((rc = plan_write(k->s, q->refcount_table_offset + i * 8, none, 8,
                             "a refcount block that counts nothing any more", e)))
            return rc;
    }
    if (!state->more)
        return cut(k, last, e);
    k->drop.spared_cnt = 0; /* here it is blocks that go */
    int rc = plan_barrier(k->s, "empty refcount blocks are unlinked", e);
    return rc || !k->drop.cnt ? rc : qcow2_drop_emit(k->img, &k->drop, k->s, "the block itself", e);
}

bool qcow2_shrink_goes_on(const struct plan_state *state)
{
    return state->v[V_PHASE] == PHASE_STREAM || state->v[V_PHASE] == PHASE_BLOCKS;
}

int qcow2_plan_shrink(struct image *img, const struct resize_args *a, struct plan_state *state,
                      struct sink *s, struct err *e)
{
    struct shrink k = {img, &img->u.qcow2, s, state->v, a->new_size};
    struct qcow2_tail tail = {.size = a->new_size, .whole = true};
    qcow2_drop_init(img, &k.drop, a->work, a->work_len, state->v[V_PHASE] == PHASE_START);
    state->more = true;
    int rc = qcow2_drop_spare_blocks(img, &k.drop, e);
    if (rc)
        return rc;
    if (state->v[V_PHASE] == PHASE_STREAM)
        return stream(&k, e);
    if (state->v[V_PHASE] == PHASE_BLOCKS)
        return blocks(&k, state, e);
    if ((rc = check_reftable(&k, e)) || (rc = qcow2_tail_look(img, &tail, e)))
        return rc;
    return qcow2_tail_clusters(&tail) ? unshare(&k, &tail, &state->eventual, e)
                                      : commit(&k, &tail, state, e);
}
