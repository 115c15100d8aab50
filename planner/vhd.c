/* SPDX-License-Identifier: MIT
 *
 * VHD: which images can be changed at all, which sizes they can have, and the plan that serves a
 * request. Messages are qemu-img's where it has them.
 */
#include "members.h"
#include "vhd_fixed.h"
#include "vhd_grow.h"
#include "vhd_shrink.h"

static u64 vhd_fit_size(const struct image *img, u64 new_size)
{
    return vhd_fit(&img->u.vhd, img->size, new_size).size;
}

/* Refused before anything is planned, each with its reason. */
static int check_supported(const struct image *img, const struct resize_args *a,
                           const struct vhd_size *to, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    if (v->disk_type == VHD_DIFFERENCING)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "A differencing disk has the size of its parent, and cannot be resized",
                    VF_DISK_TYPE, v->disk_type);
    if (v->saved_state)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "The image belongs to the saved state of a virtual machine, and must not be "
                    "changed",
                    VF_SAVED_STATE, 0);
    if (to->size > VHD_MAX_SIZE)
        return FAIL(e, ERR_INVALID_NEW_SIZE,
                    "The image size is too large for file format 'vpc': it can have 2040 GiB", 0,
                    to->size);
    bool can = v->disk_type == VHD_FIXED && to->size > img->size &&
               a->preallocation != PREALLOC_METADATA;
    if (a->preallocation != PREALLOC_OFF && !can)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED,
                    "Preallocation is supported for VHD images only where a fixed one grows, by "
                    "falloc or full",
                    0, a->preallocation);
    if (v->tail_offset % VHD_SECTOR)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "The file's length is not a multiple of 512, but a footer ends it",
                    v->tail_offset, 0);
    const struct vhd_size now = vhd_size_now(img);
    if (to->size > img->size && to->size < vhd_disk_end(v, &now)) /* some would see it shrink */
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The footer's geometry and its size of {val} bytes are not of one disk",
                    VF_CURRENT_SIZE, v->current_size);
    return 0;
}

int vhd_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
               struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    struct vhd_size to = vhd_fit(v, img->size, a->new_size);
    if (to.size == img->size && (v->disk_type == VHD_DIFFERENCING || v->saved_state))
        return plan_barrier(s, "the disk has that size", e);
    if (to.size == img->size && v->disk_type == VHD_FIXED)
        return vhd_plan_mend_fixed(img, a, s, e);
    int rc = check_supported(img, a, &to, e);
    if (rc)
        return rc;
    if (state->v[V_SETTLE])
        return vhd_plan_settle(img, a, state, s, e);
    bool grow = to.size > img->size;
    if (v->disk_type == VHD_FIXED)
        return grow ? vhd_plan_grow_fixed(img, a, &to, state, s, e)
                    : vhd_plan_shrink_fixed(img, &to, s, e);
    return (grow ? vhd_plan_grow : vhd_plan_shrink)(img, a, &to, state, s, e);
}

const struct planner vhd_planner = {
    .format = &vhd_format, .fit = vhd_fit_size, .mends = true, .resize = vhd_resize};
