/* SPDX-License-Identifier: MIT
 *
 * What a shrink of a sparse VMDK drops, once its header says the new size: grains and tables past
 * the end, then what named them, then the end of the file. No grain moves: qemu, and everyone else,
 * puts new grains at the end of the file, and zeros are what it has there.
 */
#include "vmdk_plan.h"

struct clean {
    struct image *img;
    struct sink *s;
    u64 keep, old; /* grains: that the disk has, that it had */
    u64 off, len;  /* what is to be discarded next; adjacent ranges become one */
};

static int discard(struct clean *c, u64 off, u64 len, struct err *e)
{
    u64 size = c->img->file[0]->size;
    len = off < size ? min_u64(len, size - off) : 0;
    if (len && c->len && c->off + c->len == off) {
        c->len += len;
        return 0;
    }
    int rc = c->len ? plan_discard(c->s, c->off, c->len, "grains past the end of the disk", e) : 0;
    c->off = off;
    c->len = len;
    return rc;
}

/* Table i of a run. */
static int drop_table(struct clean *c, const struct vmdk_run *r, u64 i, struct err *e)
{
    const struct vmdk *v = &c->img->u.vmdk;
    const u8 *p = vmdk_run_table(c->img, r, 0, i);
    u64 n = (r->idx + i) * v->gtes, span = vmdk_table_span(v), off;
    u64 first = c->keep > n ? c->keep - n : 0;
    int rc = 0;
    for (u64 k = first; !rc && k < v->gtes && n + k < c->old; k++) {
        rc = vmdk_check_grain(c->img, le32(p + k * 4), &off, e);
        if (!rc && off)
            rc = discard(c, off, c->img->unit, e);
    }
    if (rc)
        return rc;
    if (first)
        return first < v->gtes ? vmdk_clear_entries(c->img, r, i, first, c->s, e) : 0;
    for (int d = 0; !rc && d < (v->rgd_offset ? 2 : 1); d++)
        rc = discard(c, r->off[d] + i * span, span, e);
    return rc;
}

/* The entries of both directories that the disk has no more, and sectors that then have none. */
static int clear_directories(struct image *img, u64 old, struct sink *s, struct err *e)
{
    static const char why[] = "entries of tables that are dropped";
    const struct vmdk *v = &img->u.vmdk;
    u64 at = v->entries * 4, keep = vmdk_directory_span(v->entries);
    u64 end = min_u64(old * 4, keep), drop = vmdk_directory_span(old) - keep;
    int rc = 0;
    for (int c = 0; !rc && c < (v->rgd_offset ? 2 : 1); c++) {
        u64 dir = c ? v->rgd_offset : v->gd_offset;
        if (at < end)
            rc = plan_zero(s, dir + at, end - at, why, e);
        if (!rc && drop)
            rc = plan_discard(s, dir + keep, drop, "the rest of a grain directory", e);
    }
    return rc;
}

int vmdk_shrink_clean(struct image *img, const struct resize_args *a, u64 old_entries,
                      u64 old_grains, bool again, struct sink *s, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    struct clean c = {.img = img, .s = s, .keep = vmdk_grains(img), .old = old_grains};
    struct vmdk_survey found;
    struct vmdk_run r = {.idx = v->entries - 1};
    bool more = true;
    int rc = vmdk_survey_once(img, a, true, again, &found, e);
    while (!rc && !(rc = vmdk_run_next(img, a, old_entries, &r, &more, e)) && more)
        for (u64 i = 0; !rc && r.off[0] && i < r.cnt; i++)
            rc = drop_table(&c, &r, i, e);
    if (rc || (rc = discard(&c, 0, 0, e)) || (rc = clear_directories(img, old_entries, s, e)) ||
        (rc = plan_barrier(s, "nothing names what is past the end", e)))
        return rc;
    u64 end = max_u64(found.used_end, v->overhead);
    if (end >= img->file[0]->size || !a->may_shorten)
        return 0;
    rc = plan_length(s, end, "the file ends with what is used", e);
    return rc ? rc : plan_barrier(s, "done", e);
}
