/* SPDX-License-Identifier: MIT
 *
 * See qcow2_census.h. Source: docs/interop/qcow2.txt, "Host cluster management".
 */
#include "qcow2_census.h"

enum { KIND_ORDER = 1 /* an enum qcow2_ref_kind takes 2 bits */ };

void qcow2_census_init(struct qcow2_census *c, struct image *img, void *mem, size_t len)
{
    u64 unit = img->unit, kinds = (unit << (KIND_ORDER + 3)) >> (img->u.qcow2.refcount_order + 3);
    *c = (struct qcow2_census){.img = img,
                               .twice = "The cluster at {val} is used twice, or for two purposes",
                               .end = div_up(img->file[0]->size, unit),
                               .room = len / (unit + kinds),
                               .counts = mem};
    assert(c->room > 0);
    c->kinds = c->counts + c->room * unit;
}

bool qcow2_census_windows(const struct qcow2_census *c)
{
    return c->end >> qcow2_refblock_bits(&c->img->u.qcow2) >= c->room;
}

void qcow2_census_open(struct qcow2_census *c, u64 block, u64 max)
{
    u32 bits = qcow2_refblock_bits(&c->img->u.qcow2);
    u64 blocks = min_u64(max, (c->end >> bits) - block + 1);
    c->first = block << bits;
    c->cnt = blocks << bits;
    c->next = c->end;
    memset(c->counts, 0, blocks * c->img->unit);
}

/* A cluster serves one purpose; an L1 table and what hangs on it refers to it once, unless what is
 * stored in it is compressed. */
static int count_cluster(struct qcow2_census *c, const struct qcow2_ref *ref, u64 idx,
                         struct err *e)
{
    const struct qcow2 *q = &c->img->u.qcow2;
    u32 order = q->refcount_order;
    u64 i = idx - c->first, n = qcow2_count_get(c->counts, order, i), most = UINT64_MAX;
    if (ref->kind == QCOW2_REF_TABLE)
        most = 1;
    else if (ref->kind != QCOW2_REF_PACKED)
        most = ref->tree + 1ull;
    if (n && (n >= most || qcow2_count_get(c->kinds, KIND_ORDER, i) != ref->kind))
        return FAIL(e, ERR_OVERLAY_CORRUPT, c->twice, ref->at, idx << q->cluster_bits);
    if (n == (order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1))
        return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                    "The cluster at {val} has more references than the image's refcounts can hold",
                    ref->at, idx << q->cluster_bits);
    qcow2_count_put(c->kinds, KIND_ORDER, i, ref->kind);
    qcow2_count_put(c->counts, order, i, n + 1);
    return 0;
}

bool qcow2_census_has_flag(const struct qcow2_ref *ref)
{
    return ref->tree == 0 && (ref->kind == QCOW2_REF_L2 || ref->kind == QCOW2_REF_DATA);
}

static int count(struct qcow2_visitor *v, const struct qcow2_ref *ref, struct err *e)
{
    struct qcow2_census *c = (struct qcow2_census *)v;
    u64 i = ref->off >> c->img->u.qcow2.cluster_bits;
    u64 end = div_up(ref->off + ref->len, c->img->unit), window_end = c->first + c->cnt;
    int rc = 0;
    c->flags |= qcow2_census_has_flag(ref) && !(ref->entry & QCOW2_COPIED);
    if (end > window_end)
        c->next = min_u64(c->next, max_u64(i, window_end));
    for (i = max_u64(i, c->first); !rc && i < min_u64(end, window_end); i++)
        rc = count_cluster(c, ref, i, e);
    return rc;
}

int qcow2_census_count(struct qcow2_census *c, bool tables_only, bool refcounts, struct err *e)
{
    c->visitor = (struct qcow2_visitor){count, refcounts, tables_only};
    return qcow2_walk(c->img, &c->visitor, e);
}

/* Holds the window's counts against what the image says. */
static int compare(struct qcow2_census *c, struct err *e)
{
    const struct qcow2 *q = &c->img->u.qcow2;
    for (u64 i = c->first; i < min_u64(c->first + c->cnt, c->end); i++) {
        u64 n = qcow2_count_get(c->counts, q->refcount_order, i - c->first), said;
        int rc = n ? qcow2_refcount_get(c->img, i, &said, e) : 0;
        if (rc)
            return rc;
        if (n && said < n)
            return FAIL(e, ERR_INCONSISTENT,
                        "The cluster at {val} is in use more often than counted; run 'qemu-img "
                        "check -r all' on the image",
                        i, i << q->cluster_bits);
    }
    return 0;
}

/* All windows, one after the other. */
static int windows(struct qcow2_census *c, bool tables_only, struct err *e)
{
    u64 block = 0;
    do {
        qcow2_census_open(c, block, c->room);
        int rc = qcow2_census_count(c, tables_only, true, e);
        if (rc || (!tables_only && (rc = compare(c, e))))
            return rc;
        block = c->next >> qcow2_refblock_bits(&c->img->u.qcow2);
    } while (c->next < c->end);
    return 0;
}

int qcow2_census_check(struct image *img, void *work, size_t len, struct err *e)
{
    struct qcow2_census c;
    qcow2_census_init(&c, img, work, len);
    int rc = qcow2_census_windows(&c) ? windows(&c, true, e) : 0;
    return rc ? rc : windows(&c, false, e);
}
