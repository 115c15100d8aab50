/* SPDX-License-Identifier: MIT
 *
 * The tables of a sparse VMDK, read in large pieces, and the proof that they are sound: a bit for
 * each sector of the file, set by what uses it; a bit that is set already is a contradiction. What
 * does not fit into memory takes more passes.
 */
#include "vmdk_plan.h"

struct survey {
    struct image *img;
    const struct resize_args *a;
    struct vmdk_survey *v;
    u64 *bits;
    u64 first, cap; /* sectors that the bits stand for */
    u64 from;       /* the first table to look at */
    bool lenient;   /* what a killed writer leaves is no contradiction */
};

int vmdk_run_next(struct image *img, const struct resize_args *a, u64 entries, struct vmdk_run *r,
                  bool *more, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 span = vmdk_table_span(v), off[2] = {0}, max = VMDK_RUN / span;
    int rc = 0, dirs = v->rgd_offset ? 2 : 1;
    r->idx += r->cnt;
    r->cnt = 0;
    for (; r->idx + r->cnt < entries && r->cnt < max; r->cnt++) {
        for (int c = 0; !rc && c < dirs; c++)
            rc = vmdk_table(img, c ? v->rgd_offset : v->gd_offset, r->idx + r->cnt, &off[c], e);
        if (rc)
            return rc;
        if (dirs == 2 && !off[0] != !off[1] && (off[0] || !r->lenient))
            return FAIL(e, ERR_OVERLAY_CORRUPT,
                        "The two grain directories disagree (on entry {val})", v->rgd_offset,
                        r->idx + r->cnt);
        if (!r->cnt)
            memcpy(r->off, off, sizeof off);
        u64 step[2] = {r->off[0] ? r->cnt * span : 0, r->off[1] ? r->cnt * span : 0};
        if (off[0] != r->off[0] + step[0] || (dirs == 2 && off[1] != r->off[1] + step[1]))
            break;
    }
    *more = r->cnt > 0;
    for (int c = 0; !rc && r->off[0] && r->cnt && c < 2; c++) {
        u8 *buf = (u8 *)a->work + (c < dirs ? c * VMDK_PIECE : 0);
        r->data[c] = buf;
        if (c < dirs)
            rc = blk_read(img->file[0], r->off[c], buf, r->cnt * span, e);
    }
    return rc;
}

/* [off, off+len) is in use. */
static int mark(struct survey *s, u64 off, u64 len, struct err *e)
{
    u64 from = off / VMDK_SECTOR, to = div_up(off + len, VMDK_SECTOR), end = s->first + s->cap;
    s->v->used_end = max_u64(s->v->used_end, to * VMDK_SECTOR);
    from = max_u64(from, s->first) - s->first;
    to = to > s->first ? min_u64(to, end) - s->first : 0;
    for (u64 n; from < to; from += n) {
        n = min_u64(64 - from % 64, to - from);
        u64 mask = (n == 64 ? UINT64_MAX : (1ull << n) - 1) << from % 64;
        if (s->bits[from / 64] & mask)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "Two parts of the image overlap at {off}", off,
                        len);
        s->bits[from / 64] |= mask;
    }
    return 0;
}

static int mark_metadata(struct survey *s, struct err *e)
{
    const struct vmdk *v = &s->img->u.vmdk;
    u64 dir = vmdk_directory_span(v->entries);
    int rc = mark(s, 0, VMH_LENGTH, e);
    if (!rc)
        rc = mark(s, v->descriptor_offset, v->descriptor_size, e);
    if (!rc)
        rc = mark(s, v->gd_offset, dir, e);
    return rc || !v->rgd_offset ? rc : mark(s, v->rgd_offset, dir, e);
}

/* The entries of table i of a run. */
static int mark_grains(struct survey *s, const struct vmdk_run *r, u64 i, struct err *e)
{
    const struct vmdk *v = &s->img->u.vmdk;
    const u8 *one = vmdk_run_table(s->img, r, 0, i), *two = vmdk_run_table(s->img, r, 1, i);
    u64 n = (r->idx + i) * v->gtes, grains = vmdk_grains(s->img);
    if (all_zero(one, v->gtes * 4ull) && all_zero(two, v->gtes * 4ull))
        return 0;
    for (u32 k = 0; k < v->gtes; k++, n++, one += 4, two += 4) {
        u64 off;
        if (n >= grains) {
            s->v->stale |= le32(one) || le32(two);
            continue;
        }
        s->v->torn |= le32(one) != le32(two);
        if (le32(one) != le32(two) && (!s->lenient || (le32(one) && le32(two))))
            return FAIL(e, ERR_OVERLAY_CORRUPT,
                        "The two grain directories disagree (on the grain at {off} of the disk)",
                        n * s->img->unit, le32(two));
        int rc = vmdk_check_grain(s->img, le32(one), &off, e);
        if (rc || (off && (rc = mark(s, off, s->img->unit, e))))
            return rc;
    }
    return 0;
}

static int survey_window(struct survey *s, struct err *e)
{
    const struct vmdk *v = &s->img->u.vmdk;
    u64 span = vmdk_table_span(v);
    struct vmdk_run r = {.idx = s->from, .lenient = s->lenient};
    bool more = true;
    memset(s->bits, 0, s->cap / 8);
    int rc = mark_metadata(s, e);
    while (!rc && !(rc = vmdk_run_next(s->img, s->a, v->entries, &r, &more, e)) && more) {
        s->v->torn |= v->rgd_offset && !r.off[0] != !r.off[1];
        if (!r.off[0])
            continue;
        rc = mark(s, r.off[0], r.cnt * span, e);
        if (!rc && v->rgd_offset)
            rc = mark(s, r.off[1], r.cnt * span, e);
        for (u64 i = 0; !rc && i < r.cnt; i++)
            rc = mark_grains(s, &r, i, e);
    }
    return rc;
}

static int survey_from(struct image *img, const struct resize_args *a, u64 from, bool lenient,
                       struct vmdk_survey *v, struct err *e)
{
    u64 reach = (1ull << 32) * VMDK_SECTOR; /* an entry names nothing behind */
    u64 total = div_up(min_u64(img->file[0]->size, reach) + img->unit, VMDK_SECTOR);
    struct survey s = {.img = img, .a = a, .v = v, .from = from, .lenient = lenient};
    int rc = 0;
    assert(a->work_len > 3 * VMDK_PIECE);
    *v = (struct vmdk_survey){0};
    s.bits = (u64 *)((u8 *)a->work + 2 * VMDK_PIECE);
    s.cap = min_u64(round_up(total, 64), (a->work_len - 2 * VMDK_PIECE - VMDK_KEPT) / 8 * 64);
    for (; !rc && s.first < total; s.first += s.cap)
        rc = survey_window(&s, e);
    return rc;
}

int vmdk_survey(struct image *img, const struct resize_args *a, struct vmdk_survey *v,
                struct err *e)
{
    return survey_from(img, a, 0, false, v, e);
}

int vmdk_survey_torn(struct image *img, const struct resize_args *a, struct vmdk_survey *v,
                     struct err *e)
{
    return survey_from(img, a, 0, true, v, e);
}

int vmdk_survey_end(struct image *img, const struct resize_args *a, struct vmdk_survey *v,
                    struct err *e)
{
    u64 entries = img->u.vmdk.entries, cnt = VMDK_LOOK / vmdk_table_span(&img->u.vmdk);
    if (entries <= cnt)
        return survey_from(img, a, 0, false, v, e);
    int rc = survey_from(img, a, entries - cnt, false, v, e);
    if (!rc && (v->stale || img->size % img->unit))
        return survey_from(img, a, 0, false, v, e);
    v->used_end = max_u64(v->used_end, img->file[0]->size + img->unit);
    return rc;
}

int vmdk_survey_once(struct image *img, const struct resize_args *a, bool all, bool again,
                     struct vmdk_survey *v, struct err *e)
{
    struct vmdk_survey *kept = (void *)((u8 *)a->work + a->work_len - VMDK_KEPT);
    int rc = 0;
    assert(sizeof *kept <= VMDK_KEPT);
    if (!again) {
        rc = all ? vmdk_survey(img, a, v, e) : vmdk_survey_end(img, a, v, e);
        *kept = *v;
    }
    *v = *kept;
    return rc;
}

void vmdk_zeroed_tables(const struct vmdk *v, u64 idx, u64 cnt, u64 from, u64 to, u8 *buf)
{
    u64 span = vmdk_table_span(v);
    memset(buf, 0, cnt * span);
    for (u64 i = 0; i < cnt; i++, buf += span)
        for (u64 k = 0, n = (idx + i) * v->gtes; k < v->gtes && n < to; k++, n++)
            if (n >= from)
                put_le32(buf + k * 4, VMDK_ZEROED);
}

int vmdk_clear_entries(struct image *img, const struct vmdk_run *r, u64 i, u64 first,
                       struct sink *s, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 at = first * 4, len = v->gtes * 4ull - at;
    int rc = 0;
    if (all_zero(vmdk_run_table(img, r, 0, i) + at, len) &&
        all_zero(vmdk_run_table(img, r, 1, i) + at, len))
        return 0;
    for (int c = 0; !rc && c < (v->rgd_offset ? 2 : 1); c++)
        rc = plan_zero(s, r->off[c] + i * vmdk_table_span(v) + at, len,
                       "entries past the end of the disk", e);
    return rc;
}
