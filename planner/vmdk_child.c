/* SPDX-License-Identifier: MIT
 *
 * Growing a VMDK that has a parent. Where a child has no grain its parent is seen, so that what a
 * longer parent holds past the child's old end must be hidden, by entries that say "zeroed grain"
 * (P11). Only images whose header has that flag can say so: for others, and where the disk ends
 * inside a grain that shows the parent, there is no way.
 *
 * The parent is the one whose CID the child names. Any other means that the parent was written to,
 * and then nobody can tell what the child's disk is. A parent that is no VMDK has no CID, and its
 * child says so.
 */
#include "copy.h"
#include "vmdk_plan.h"

static int check_link(const struct image *child, const struct image *parent, struct err *e)
{
    u64 at = child->u.vmdk.descriptor_offset;
    u32 cid = child->u.vmdk.text->parent_cid;
    if (!parent)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The descriptor does not name the image's parent", at,
                    cid);
    if (parent->format != &vmdk_format)
        return cid == VMDK_NO_PARENT ? 0
                                     : FAIL(e, ERR_OVERLAY_CORRUPT,
                                            "The image's parent is not in VMDK format", at, cid);
    return parent->u.vmdk.text->cid == cid
               ? 0
               : FAIL(e, ERR_OVERLAY_CORRUPT,
                      "The image's parent has changed since the image was made: its CID is {val:x}",
                      at, parent->u.vmdk.text->cid);
}

int vmdk_check_links(const struct image *top, struct err *e)
{
    int rc = 0;
    for (; !rc && top; top = top->backing)
        if (top->format == &vmdk_format && top->u.vmdk.child)
            rc = check_link(top, top->backing, e);
    return rc;
}

/* Does the chain from img on hold data in [voff, end)? */
static int holds_data(struct image *img, u64 voff, u64 end, bool *data, struct err *e)
{
    struct chain c;
    struct chain_piece p = {NULL};
    int rc = 0;
    chain_init(&c, img, NULL);
    for (; !rc && !p.img && voff < end; voff += p.x.len)
        rc = chain_look(&c, voff, end - voff, &p, e);
    *data = p.img != NULL;
    return rc;
}

/* Is the parent seen in the grain that the disk ends in? */
static int ends_in_hole(struct image *img, bool *hole, struct err *e)
{
    struct extent x;
    *hole = false;
    if (img->size % img->unit == 0)
        return 0;
    int rc = vmdk_format.map(img, img->size - 1, 1, &x, e);
    *hole = x.kind == EXTENT_HOLE;
    return rc;
}

int vmdk_child_hides(struct image *img, u64 new_size, u64 *grains, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 grain_end = round_up(img->size, img->unit);
    bool data, hole;
    *grains = 0;
    if (!v->text || !v->child) /* an extent of several has none */
        return 0;
    int rc = vmdk_check_links(img, e);
    if (rc || (rc = ends_in_hole(img, &hole, e)))
        return rc;
    if (hole && ((rc = holds_data(img->backing, img->size, grain_end, &data, e)) || data))
        return rc ? rc
                  : FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                         "The disk ends inside a grain that shows its parent, and what that holds "
                         "behind the end cannot be hidden",
                         img->size, img->backing->size);
    u64 end = min_u64(new_size, img->backing->size);
    if (end <= grain_end || (rc = holds_data(img->backing, grain_end, end, &data, e)) || !data)
        return rc;
    if (!(v->flags & VMDK_ZEROED_GRAINS))
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "The parent has data behind the end of the disk, and without the flag for "
                    "zeroed grains the image cannot hide them",
                    VMH_FLAGS, img->backing->size);
    *grains = div_up(end, img->unit);
    return 0;
}
