/* SPDX-License-Identifier: MIT
 *
 * Images of several files, grown and shrunk. A grow extends the last extent, until it has 2 GiB,
 * and fills new files that the host has made; then the descriptor, which is what makes all that
 * part of the disk, is changed. A shrink changes the descriptor first, and drops afterwards what it
 * no longer names. A sparse extent is worked on as an image by itself: its header's capacity rules
 * over its line, in qemu as here, so that a run that is killed between the two leaves a disk that
 * ends with that extent's old or new end.
 *
 * The descriptor is one sector's write where what changes lies in one, else under the undo journal
 * (P10). Sources: parity F.2, F.3; planner/plan.h.
 */
#include "vmdk_plan.h"

/* struct plan_state.v */
enum { V_PHASE, V_SIZE, V_ENTRIES, V_GRAINS };
enum phase { START, GROW_TEXT, SHRINK_TEXT, SHRINK_HEADER, CLEAN };

/* Extents of split disks: VMware's hold 2047 MiB, qemu's 2 GiB. */
enum { FULL = 4194304, FULL_VMWARE = 4192256 };

static int part_emit(struct sink *s, const struct patch *p, struct err *e)
{
    const struct vmdk_part_sink *ps = (const struct vmdk_part_sink *)s;
    struct patch moved = *p;
    moved.slot = moved.from = ps->slot;
    return plan_emit(ps->to, moved, e);
}

struct vmdk_part_sink vmdk_sink_of(struct sink *to, u64 slot)
{
    return (struct vmdk_part_sink){{part_emit}, to, (u8)slot};
}

static u64 full_size(const struct image *img, u64 unit)
{
    const struct vmdk *v = &img->u.vmdk;
    bool vmware = img->parts > 1 && v->part[0].size == (u64)FULL_VMWARE * VMDK_SECTOR;
    return round_down((vmware ? FULL_VMWARE : FULL) * (u64)VMDK_SECTOR, unit);
}

struct vmdk_layout vmdk_layout(const struct image *img, u64 new_size)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 unit = max_u64(img->unit, VMDK_SECTOR), full = full_size(img, unit), i = img->parts - 1u;
    struct vmdk_layout l = {.full = full / VMDK_SECTOR};
    new_size = min_u64(new_size, INT64_MAX); /* more is refused, whatever the layout */
    while (i && new_size <= v->part[i].start)
        i--;
    const struct vmdk_part *p = &v->part[i];
    u64 last = round_up(new_size - p->start, unit);
    if (new_size <= img->size)
        last = min_u64(last, p->size);
    else if (!v->kind->single && last > full)
        last = max_u64(full, p->size);
    l.keep = i + 1;
    l.last = last / VMDK_SECTOR;
    l.size = p->start + last;
    if (new_size > l.size) {
        l.add = div_up(new_size - l.size, full);
        l.rest = round_up(new_size - l.size - (l.add - 1) * full, unit) / VMDK_SECTOR;
        l.size += (l.add - 1) * full + l.rest * VMDK_SECTOR;
    }
    return l;
}

/* ---- what is refused ---- */

static int check_supported(const struct image *img, const struct resize_args *a, u64 to,
                           struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    const struct vmdk *last = &v->part[img->parts - 1].sparse;
    if (!v->kind->changes) {
        int rc = FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                      "An image of the type '{name}' cannot be resized; qemu-img convert makes a "
                      "monolithicSparse one of it",
                      0, 0);
        err_name(e, v->kind->create_type, strlen(v->kind->create_type));
        return rc;
    }
    if (v->child)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "The image has a parent, whose size it must have: it cannot be resized", 0,
                    v->text->parent_cid);
    if (last->flags & ~(u32)VMDK_FLAGS)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unknown flags in the header ({val:x})", VMH_FLAGS,
                    last->flags);
    if (to > (u64)INT64_MAX / 2)
        return FAIL(e, ERR_INVALID_NEW_SIZE, "The image size is too large for file format 'vmdk'",
                    0, to);
    if (a->preallocation != PREALLOC_OFF)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED,
                    "Preallocation is not supported for VMDK images", 0, a->preallocation);
    return 0;
}

/* Is the size what it was, of an image that is none of ours to change? */
static bool leave_alone(const struct image *img, u64 to)
{
    const struct vmdk *v = &img->u.vmdk;
    return to == img->size && (!v->kind->changes || v->child);
}

int vmdk_split_files(struct image *img, const struct resize_args *a, struct plan_files *f,
                     struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    if (!v->kind || leave_alone(img, a->new_size))
        return 0;
    struct vmdk_layout l = vmdk_layout(img, a->new_size);
    int rc = check_supported(img, a, l.size, e);
    if (rc)
        return rc;
    if (l.keep + l.add > VMDK_EXTENTS_MAX)
        return FAIL(e, ERR_INVALID_NEW_SIZE,
                    "The image would consist of {val} extents, and no more than {off} can be "
                    "attached",
                    VMDK_EXTENTS_MAX, l.keep + l.add);
    *f = (struct plan_files){(unsigned)l.keep, (unsigned)l.add, (unsigned)l.keep + 1,
                             v->kind->letter};
    return 0;
}

/* ---- growing ---- */

/* The file of new extent i; nothing has been done to it. */
static int check_new(const struct image *img, u64 i, struct err *e)
{
    u64 slot = img->parts + 1u + i;
    return slot >= img->files || !img->file_name[slot] || img->file[slot]->size
               ? FAIL(e, ERR_PROTOCOL, "The file for a new extent is not there, or not empty", slot,
                      i)
               : 0;
}

static int grow_flat(struct image *img, const struct vmdk_layout *l, struct sink *s, struct err *e)
{
    static const char why[] = "room for the disk, all zero";
    const struct vmdk_part *p = &img->u.vmdk.part[img->parts - 1];
    u64 size = img->file[img->parts]->size, old = p->off + p->size;
    u64 end = p->off + l->last * VMDK_SECTOR;
    struct patch longer = {.kind = PATCH_LENGTH, .slot = img->parts, .len = end, .why = why};
    struct patch zero = {.kind = PATCH_ZERO,
                         .slot = img->parts,
                         .off = old,
                         .len = min_u64(size, end) - old,
                         .why = "what the file holds behind the end of the disk",
                         .may_unmap = true};
    int rc = end > size ? plan_emit(s, longer, e) : 0;
    if (!rc && zero.len)
        rc = plan_emit(s, zero, e);
    for (u64 i = 0; !rc && i < l->add; i++) {
        longer.slot = (u8)(img->parts + 1 + i);
        longer.len = vmdk_layout_new(l, i) * VMDK_SECTOR;
        if (!(rc = check_new(img, i, e)))
            rc = plan_emit(s, longer, e);
    }
    return rc ? rc : plan_barrier(s, "the extents are as long as they must be", e);
}

static int grow_sparse(struct image *img, const struct resize_args *a, const struct vmdk_layout *l,
                       struct sink *s, struct err *e)
{
    struct vmdk_part_sink to = vmdk_sink_of(s, img->parts);
    struct vmdk_grow g;
    struct image part;
    int rc = 0;
    u64 size = l->last * VMDK_SECTOR;
    vmdk_lend_part(img, img->parts - 1u, &part);
    bool longer = size > part.size;
    if (longer)
        rc = vmdk_grow_prepare(&part, a, size, false, &g, &to.sink, e);
    for (u64 i = 0; !rc && i < l->add; i++) {
        struct vmdk_part_sink fresh = vmdk_sink_of(s, img->parts + 1 + i);
        if (!(rc = check_new(img, i, e)))
            rc = vmdk_grow_new(&part, a, vmdk_layout_new(l, i), &fresh.sink, e);
    }
    if (!rc && l->add)
        rc = plan_barrier(s, "the new extents are whole", e);
    if (!rc && longer)
        rc = vmdk_commit(&part, size, g.dir[0], g.dir[1], &to.sink, e);
    vmdk_return_part(img, &part);
    return rc;
}

static int grow(struct image *img, const struct resize_args *a, const struct vmdk_layout *l,
                struct plan_state *state, struct sink *s, struct err *e)
{
    struct vmdk_rewrite text;
    int rc = vmdk_rewrite_init(img, l, a, &text, e);
    if (rc)
        return rc;
    state->v[V_PHASE] = GROW_TEXT;
    state->eventual = max_u64(text.length, img->file[0]->size);
    state->more = true;
    return img->u.vmdk.kind->sparse ? grow_sparse(img, a, l, s, e) : grow_flat(img, l, s, e);
}

/* ---- the descriptor ---- */

static int write_text(struct image *img, const struct resize_args *a, const struct vmdk_layout *l,
                      struct plan_state *state, struct sink *s, struct err *e)
{
    struct vmdk_rewrite text;
    int rc = vmdk_rewrite_init(img, l, a, &text, e);
    if (rc)
        return rc;
    state->undo = !text.whole;
    return vmdk_rewrite_emit(img, &text, s, e);
}

/* ---- shrinking ---- */

/* Also what mends an image that has that size already. */
static int shrink(struct image *img, const struct resize_args *a, const struct vmdk_layout *l,
                  struct plan_state *state, struct sink *s, struct err *e)
{
    struct vmdk_survey found = {0};
    struct vmdk_rewrite text;
    struct image part;
    int rc = 0;
    if (img->u.vmdk.kind->sparse) {
        vmdk_lend_part(img, (unsigned)l->keep - 1, &part);
        rc = vmdk_survey(&part, a, &found, e);
        vmdk_return_part(img, &part);
    }
    if (rc || (rc = vmdk_rewrite_init(img, l, a, &text, e)))
        return rc;
    if (l->size == img->size && text.from == text.to && !found.stale)
        return plan_barrier(s, "the disk has that size", e);
    state->more = true;
    state->eventual = max_u64(text.length, img->file[0]->size);
    if (!text.whole) {
        state->v[V_PHASE] = SHRINK_TEXT;
        return plan_barrier(s, "the descriptor is next", e);
    }
    state->v[V_PHASE] = SHRINK_HEADER;
    return vmdk_rewrite_emit(img, &text, s, e);
}

static int shrink_header(struct image *img, const struct vmdk_layout *l, struct plan_state *state,
                         struct sink *s, struct err *e)
{
    struct vmdk_part_sink to = vmdk_sink_of(s, img->parts);
    struct image part;
    int rc;
    state->v[V_PHASE] = CLEAN;
    state->more = true;
    if (!img->u.vmdk.kind->sparse)
        return plan_barrier(s, "only the files' ends are left", e);
    vmdk_lend_part(img, img->parts - 1u, &part);
    state->v[V_ENTRIES] = part.u.vmdk.entries;
    state->v[V_GRAINS] = vmdk_grains(&part);
    u64 size = l->last * VMDK_SECTOR;
    rc = size < part.size ? vmdk_commit(&part, size, 0, 0, &to.sink, e)
                          : plan_barrier(s, "the last extent keeps its size", e);
    vmdk_return_part(img, &part);
    return rc;
}

static int clean(struct image *img, const struct resize_args *a, const struct vmdk_layout *l,
                 const struct plan_state *state, struct sink *s, struct err *e)
{
    static const char why[] = "the file ends with what is used";
    struct vmdk_part_sink to = vmdk_sink_of(s, img->parts);
    const struct vmdk_part *p = &img->u.vmdk.part[img->parts - 1];
    struct vmdk_rewrite text;
    struct image part;
    int rc = vmdk_rewrite_init(img, l, a, &text, e);
    if (!rc && img->u.vmdk.kind->sparse) {
        vmdk_lend_part(img, img->parts - 1u, &part);
        rc = vmdk_shrink_clean(&part, a, state->v[V_ENTRIES], state->v[V_GRAINS], false,
                               &to.sink, e);
        vmdk_return_part(img, &part);
    } else if (!rc && a->may_shorten && p->off + p->size < img->file[img->parts]->size) {
        rc = plan_length(&to.sink, p->off + p->size, why, e);
    }
    if (!rc && a->may_shorten && text.length < img->file[0]->size)
        rc = plan_length(s, text.length, why, e);
    return rc ? rc : plan_barrier(s, "done", e);
}

int vmdk_split_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
                      struct sink *s, struct err *e)
{
    if (state->v[V_PHASE] == START) {
        if (leave_alone(img, a->new_size))
            return plan_barrier(s, "the disk has that size", e);
        state->v[V_SIZE] = vmdk_layout(img, a->new_size).size;
    }
    struct vmdk_layout l = vmdk_layout(img, state->v[V_SIZE]);
    int rc = check_supported(img, a, l.size, e);
    if (rc)
        return rc;
    switch ((enum phase)state->v[V_PHASE]) {
    case START:
        return l.size > img->size ? grow(img, a, &l, state, s, e) : shrink(img, a, &l, state, s, e);
    case GROW_TEXT:
        return write_text(img, a, &l, state, s, e);
    case SHRINK_TEXT:
        state->v[V_PHASE] = SHRINK_HEADER;
        state->more = true;
        return write_text(img, a, &l, state, s, e);
    case SHRINK_HEADER:
        return shrink_header(img, &l, state, s, e);
    case CLEAN:
        break;
    }
    return clean(img, a, &l, state, s, e);
}
