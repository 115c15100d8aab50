/* SPDX-License-Identifier: MIT
 *
 * A fixed VHD has one footer, which ends the file. Between the disk and the footer there may be
 * bytes of nobody's: then the footer can say a size up to there while it stays where it is, in one
 * write; another is written behind the disk afterwards, into such bytes, and the file is cut. Each
 * shrink is of that kind, and each grow for which the host can insert zeros before the footer.
 *
 * Elsewhere the old footer has to go, since a guest would read it, and the new one to come, in two
 * places at once: no order of these is safe, and an undo journal covers them (P10).
 */
#include "vhd_fixed.h"
#include "vhd_footer.h"
#include "vhd_grow.h"

/* The file ends with `footer` at `end`, where nobody's bytes are. */
static int cut(u64 end, const u8 *footer, struct sink *s, struct err *e)
{
    int rc = plan_write(s, end, footer, VF_LENGTH, "the footer right behind the disk", e);
    if (rc || (rc = plan_barrier(s, "the footer is in place", e)) ||
        (rc = plan_length(s, end + VF_LENGTH, "the file ends with it", e)))
        return rc;
    return plan_barrier(s, "done", e);
}

/* The footer that ends the file, at `tail`, becomes `footer`; then it ends the file at `end`. */
static int say_and_cut(u64 tail, u64 end, const u8 *footer, struct sink *s, struct err *e)
{
    enum { FIRST = VF_CURRENT_SIZE, LEN = VF_CHECKSUM + 4 - FIRST };
    int rc = plan_commit(s, tail + FIRST, footer + FIRST, LEN, "the new size", e);
    if (rc || (rc = plan_barrier(s, "the disk has its new size", e)) || end == tail)
        return rc;
    return cut(end, footer, s, e);
}

int vhd_plan_mend_fixed(struct image *img, const struct resize_args *a, struct sink *s,
                        struct err *e)
{
    const struct vhd_size now = vhd_size_now(img);
    u64 tail = img->u.vhd.tail_offset, end = vhd_disk_end(&img->u.vhd, &now);
    u8 footer[VF_LENGTH];
    if (!a->may_shorten || end >= tail || tail % VHD_SECTOR)
        return plan_barrier(s, "the disk has that size", e);
    int rc = vhd_footer_make(img, tail, &now, footer, e);
    return rc ? rc : cut(end, footer, s, e);
}

int vhd_plan_shrink_fixed(struct image *img, const struct vhd_size *to, struct sink *s,
                          struct err *e)
{
    u64 tail = img->u.vhd.tail_offset;
    u8 footer[VF_LENGTH];
    int rc = vhd_footer_make(img, tail, to, footer, e);
    return rc ? rc : say_and_cut(tail, to->size, footer, s, e);
}

/* P11: bytes of nobody's, which become the disk's. */
static int zero_slack(u64 off, u64 end, struct sink *s, struct err *e)
{
    return off < end ? plan_zero(s, off, end - off, "what lay behind the old end of the disk", e)
                     : 0;
}

/* The footer is never absent: it moves with an insertion, if one is needed. */
static int grow_before_footer(const struct image *img, const struct resize_args *a, u64 end,
                              u64 size, const u8 *footer, struct sink *s, struct err *e)
{
    u64 tail = img->u.vhd.tail_offset, more = 0;
    int rc = 0;
    if (size > tail) {
        more = round_up(size - tail, img->file[0]->insert_unit);
        rc = plan_emit(s,
                       (struct patch){.kind = PATCH_INSERT,
                                      .off = tail,
                                      .len = more,
                                      .why = "zeros before the footer, for a longer disk"},
                       e);
    }
    if (rc || (rc = zero_slack(end, min_u64(tail, size), s, e)) ||
        (more && (rc = plan_preallocate(s, 0, tail, size - tail, a->preallocation, a->work, e))) ||
        (rc = plan_barrier(s, "all that the disk gains reads zero", e)))
        return rc;
    /* What grows is not cut: bytes of nobody's that are left over stay. */
    return say_and_cut(tail + more, max_u64(size, tail), footer, s, e);
}

static int grow_over_footer(const struct image *img, const struct resize_args *a, u64 size,
                            const u8 *footer, struct sink *s, struct err *e)
{
    u64 tail = img->u.vhd.tail_offset, behind = tail + VF_LENGTH;
    int rc = plan_length(s, size + VF_LENGTH, "room for a longer disk", e);
    if (rc ||
        (size > behind &&
         (rc = plan_preallocate(s, 0, behind, size - behind, a->preallocation, a->work, e))) ||
        (rc = plan_write(s, size, footer, VF_LENGTH, "the footer with the new size", e)) ||
        (rc = plan_zero(s, tail, VF_LENGTH, "the old footer, which the disk grows over", e)))
        return rc;
    return plan_barrier(s, "done", e);
}

int vhd_plan_grow_fixed(struct image *img, const struct resize_args *a, const struct vhd_size *to,
                        struct plan_state *state, struct sink *s, struct err *e)
{
    const struct vhd_size now = vhd_size_now(img);
    u64 tail = img->u.vhd.tail_offset, end = vhd_disk_end(&img->u.vhd, &now);
    u32 unit = img->file[0]->insert_unit;
    u8 footer[VF_LENGTH];
    int rc = vhd_footer_make(img, tail, to, footer, e);
    if (rc)
        return rc;
    if (to->size <= tail || (unit && tail % unit == 0))
        return grow_before_footer(img, a, end, to->size, footer, s, e);
    if (end < tail && state->epoch == 0) { /* not in the same epoch: a journal is small */
        state->more = true;
        state->eventual = to->size + VF_LENGTH;
        rc = zero_slack(end, tail, s, e);
        return rc ? rc : plan_barrier(s, "the file ends with the disk and its footer", e);
    }
    state->undo = true;
    return grow_over_footer(img, a, to->size, footer, s, e);
}
