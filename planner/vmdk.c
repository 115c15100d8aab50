/* SPDX-License-Identifier: MIT
 *
 * VMDK: which images can be changed at all, which sizes they can have, and the plan that serves a
 * request, for images of one file (vmdk_split.c: of several). The header's capacity rules, and is
 * the commit: a grow writes the descriptor before it, a shrink behind it, and what a killed run
 * leaves there is mended by the next. A descriptor whose text moves across sectors is an epoch of
 * its own, under the undo journal (P10).
 */
#include "members.h"
#include "vmdk_plan.h"

/* struct plan_state.v */
enum { V_PHASE, V_ENTRIES, V_GRAINS, V_GD, V_RGD };
enum phase { START, GROW_TEXT, GROW_COMMIT, SHRINK_TEXT, CLEAN };

static u64 vmdk_fit_size(const struct image *img, u64 new_size)
{
    if (img->u.vmdk.kind)
        return vmdk_layout(img, new_size).size;
    u64 size = round_up(new_size, img->unit);
    return new_size == img->size || (new_size < img->size && size > img->size) ? img->size : size;
}

/* Refused before anything is planned, each with its reason. */
static int check_supported(const struct image *img, const struct resize_args *a, u64 to,
                           struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    if (v->flags & VMDK_COMPRESSED)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "A streamOptimized image cannot be resized; qemu-img convert makes a "
                    "monolithicSparse one of it",
                    VMH_FLAGS, v->flags);
    if (v->flags & ~(u32)VMDK_FLAGS)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unknown flags in the header ({val:x})", VMH_FLAGS,
                    v->flags);
    if (to > (u64)INT64_MAX / 2)
        return FAIL(e, ERR_INVALID_NEW_SIZE, "The image size is too large for file format 'vmdk'",
                    0, to);
    if (a->preallocation != PREALLOC_OFF)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED,
                    "Preallocation is not supported for VMDK images", 0, a->preallocation);
    return 0;
}

int vmdk_commit(struct image *img, u64 size, u64 gd, u64 rgd, struct sink *s, struct err *e)
{
    u8 p[VMH_OVERHEAD - VMH_CAPACITY];
    int rc = blk_read(img->file[0], VMH_CAPACITY, p, sizeof p, e);
    if (rc)
        return rc;
    put_le64(p, size / VMDK_SECTOR);
    if (gd)
        put_le64(p + (VMH_GD_OFFSET - VMH_CAPACITY), gd / VMDK_SECTOR);
    if (rgd)
        put_le64(p + (VMH_RGD_OFFSET - VMH_CAPACITY), rgd / VMDK_SECTOR);
    rc = plan_commit(s, VMH_CAPACITY, p, gd || rgd ? sizeof p : 8, "the new size", e);
    return rc ? rc : plan_barrier(s, "the header says so", e);
}

static int grow(struct image *img, const struct resize_args *a, u64 to,
                const struct vmdk_edit *text, struct plan_state *state, struct sink *s,
                struct err *e)
{
    struct vmdk_grow g;
    int rc = vmdk_grow_prepare(img, a, to, state->again, &g, s, e);
    if (rc)
        return rc;
    state->v[V_GD] = g.dir[0];
    state->v[V_RGD] = g.dir[1];
    if (!text->safe) {
        state->v[V_PHASE] = GROW_TEXT;
        state->eventual = max_u64(g.length, img->file[0]->size);
        state->more = true;
        return 0;
    }
    rc = vmdk_edit_emit(img, text, a, s, e);
    return rc ? rc : vmdk_commit(img, to, g.dir[0], g.dir[1], s, e);
}

/* Also what mends an image that has that size already. */
static int shrink(struct image *img, const struct resize_args *a, u64 to,
                  const struct vmdk_edit *text, struct plan_state *state, struct sink *s,
                  struct err *e)
{
    struct vmdk_survey found;
    int rc = vmdk_survey_once(img, a, to != img->size, state->again, &found, e);
    if (rc)
        return rc;
    if (to == img->size && !text->cnt && !found.stale)
        return plan_barrier(s, "the disk has that size", e);
    if (to != img->size)
        rc = vmdk_commit(img, to, 0, 0, s, e);
    if (!rc && text->safe)
        rc = vmdk_edit_emit(img, text, a, s, e);
    state->v[V_PHASE] = text->safe ? CLEAN : SHRINK_TEXT;
    state->v[V_ENTRIES] = img->u.vmdk.entries;
    state->v[V_GRAINS] = vmdk_grains(img);
    state->more = true;
    return rc;
}

/* The descriptor by itself, which the undo journal makes whole. */
static int text_epoch(struct image *img, const struct resize_args *a, const struct vmdk_edit *text,
                      enum phase next, struct plan_state *state, struct sink *s, struct err *e)
{
    state->undo = state->more = true;
    state->v[V_PHASE] = next;
    return vmdk_edit_emit(img, text, a, s, e);
}

int vmdk_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
                struct sink *s, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 to = vmdk_fit_size(img, a->new_size);
    struct vmdk_edit text;
    if (v->kind)
        return vmdk_split_resize(img, a, state, s, e);
    if (state->v[V_PHASE] == START && to == img->size &&
        (v->flags & ~(u32)VMDK_FLAGS || v->flags & VMDK_COMPRESSED))
        return plan_barrier(s, "the disk has that size", e);
    int rc = check_supported(img, a, to, e);
    if (rc || (rc = vmdk_edit_init(img, to / VMDK_SECTOR, &text, e)))
        return rc;
    switch ((enum phase)state->v[V_PHASE]) {
    case START:
        return to > img->size ? grow(img, a, to, &text, state, s, e)
                              : shrink(img, a, to, &text, state, s, e);
    case GROW_TEXT:
        return text_epoch(img, a, &text, GROW_COMMIT, state, s, e);
    case GROW_COMMIT:
        return vmdk_commit(img, to, state->v[V_GD], state->v[V_RGD], s, e);
    case SHRINK_TEXT:
        return text_epoch(img, a, &text, CLEAN, state, s, e);
    case CLEAN:
        break;
    }
    return vmdk_shrink_clean(img, a, state->v[V_ENTRIES], state->v[V_GRAINS],
                             state->again, s, e);
}

const struct planner vmdk_planner = {.format = &vmdk_format,
                                     .fit = vmdk_fit_size,
                                     .mends = true,
                                     .chain = true,
                                     .resize = vmdk_resize,
                                     .rebase = vmdk_rebase,
                                     .files = vmdk_split_files,
                                     .end = vmdk_end};
