/* SPDX-License-Identifier: MIT
 *
 * See qcow2_end.h. Both are looked at, references and counts: what is referred to and not counted
 * must not be allocated again, and what is counted and not referred to is not ours to take.
 */
#include "qcow2_end.h"
#include "qcow2_refcount.h"
#include "qcow2_walk.h"

struct last {
    struct qcow2_visitor visitor;
    u64 end;
};

static int visit(struct qcow2_visitor *v, const struct qcow2_ref *r, struct err *e)
{
    struct last *l = (struct last *)v;
    (void)e;
    l->end = max_u64(l->end, r->off + r->len);
    return 0;
}

int qcow2_end(struct image *img, u64 *end, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    struct last l = {.visitor = {.visit = visit, .refcounts = true}};
    u64 last = 0;
    int rc = qcow2_walk(img, &l.visitor, e);
    for (u64 i = 0; !rc && i < qcow2_reftable_entries(q); i++) {
        u64 off;
        bool empty;
        rc = qcow2_refblock(img, i, &off, e);
        if (!rc && off)
            rc = qcow2_refblock_look(img, i, off, &empty, &last, e);
    }
    *end = round_up(max_u64(l.end, (last + 1) << q->cluster_bits), img->unit);
    return rc;
}
