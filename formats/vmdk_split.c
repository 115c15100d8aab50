/* SPDX-License-Identifier: MIT
 *
 * VMDKs of several files: a descriptor, which is file[0], and extents, flat or sparse, one after
 * the other on the disk, which are file[1] and so on. A sparse extent is looked at as an image by
 * itself (vmdk.c). Whoever opens the image attaches the files; here no name is followed. Sources:
 * the "Virtual Disk Format 5.0"; parity F.2.
 *
 * Lines that qemu skips, which moves all that follows them on the disk, are refused.
 */
#include "format.h"

_Static_assert((int)VMDK_EXTENTS_MAX == IMAGE_FILES - 1, "a file for each extent");
_Static_assert(sizeof(struct vmdk_own) <= IMAGE_OWN, "room for what an image keeps");

static const struct vmdk_kind kinds[] = {
    {"monolithicFlat", "FLAT", .changes = true, .single = true},
    {"twoGbMaxExtentFlat", "FLAT", .changes = true, .letter = 'f'},
    {"twoGbMaxExtentSparse", "SPARSE", .sparse = true, .changes = true, .letter = 's'},
    {"vmfs", "VMFS"},
    {"vmfsSparse", "VMFSSPARSE", .sparse = true, .cow = true},
};

static bool same(const char *a, const char *b)
{
    return strlen(a) == strlen(b) && !memcmp(a, b, strlen(a));
}

static const struct vmdk_kind *find_kind(const char *create_type)
{
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (same(kinds[i].create_type, create_type))
            return &kinds[i];
    return NULL;
}

/* ---- the descriptor's lines ---- */

static int bad_extent(const struct vmdk_line *l, const char *what, u64 val, struct err *e)
{
    int rc = FAIL(e, ERR_OVERLAY_CORRUPT, what, l->off, val);
    err_name(e, l->type, strlen(l->type));
    return rc;
}

static int check_line(const struct vmdk_kind *k, const struct vmdk_line *l, struct err *e)
{
    if (!l->writable)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "The descriptor's line at {off} is for an extent that may not be written",
                    l->off, 0);
    if (!same(l->type, k->line))
        return bad_extent(l,
                          "The extent at {off} of the descriptor has the type '{name}', which "
                          "the image cannot have",
                          0, e);
    if (!l->name_len || l->name_len > IMAGE_NAME_MAX)
        return bad_extent(l, "The name of the extent at {off} of the descriptor has {val} bytes",
                          l->name_len, e);
    bool wants_offset = same(k->line, "FLAT");
    if (!l->whole || l->len >= VMDK_LINE_MAX || (l->offset.len != 0) != wants_offset)
        return bad_extent(l, "Invalid extent line: the one at {off} of the descriptor", 0, e);
    if (!l->sectors.val || l->sectors.val > (u64)INT64_MAX / VMDK_SECTOR ||
        l->offset.val > (u64)INT64_MAX / VMDK_SECTOR - l->sectors.val)
        return bad_extent(l, "The extent at {off} of the descriptor cannot have {val} sectors",
                          l->sectors.val, e);
    return 0;
}

static int check_text(const struct vmdk *v, struct err *e)
{
    const struct vmdk_descriptor *d = v->text;
    if (!d->has_cid || !d->has_parent_cid)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The descriptor has no CID or no parentCID", 0, 0);
    if (!d->extents)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The descriptor names no extent", 0, 0);
    if (v->kind->single && d->extents > 1)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The descriptor should have one line for an extent (it has {val})", 0,
                    d->extents);
    if (d->extents > VMDK_EXTENTS_MAX)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "The image consists of {val} extents, and no more than {off} can be attached",
                    VMDK_EXTENTS_MAX, d->extents);
    return 0;
}

/* ---- the extents ---- */

/* The file that holds extent i, before or after its header is known. */
static void borrow(struct image *img, unsigned i, struct image *part)
{
    *part = *img;
    part->file[0] = img->file[1 + i];
    part->files = 1;
    part->parts = 0;
    window_drop(&img->win);
    window_drop(&img->win2);
}

void vmdk_lend_part(struct image *img, unsigned i, struct image *part)
{
    const struct vmdk_part *p = &img->u.vmdk.part[i];
    borrow(img, i, part);
    part->u.vmdk = p->sparse;
    part->size = p->size;
    part->unit = p->unit;
}

void vmdk_return_part(struct image *img, const struct image *part)
{
    img->win = part->win;
    img->win2 = part->win2;
}

static int open_sparse(struct image *img, unsigned i, struct err *e)
{
    struct vmdk_part *p = &img->u.vmdk.part[i];
    struct image part;
    borrow(img, i, &part);
    int rc = vmdk_open_extent(&part, img->u.vmdk.kind->cow, e);
    if (rc)
        return rc;
    p->size = part.size;
    p->unit = part.unit;
    p->sparse = part.u.vmdk;
    p->sparse.child = img->u.vmdk.child;
    if (p->unit != img->u.vmdk.part[0].unit)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "Extents with grains of different sizes are not supported", i, p->unit);
    return 0;
}

static int open_flat(struct image *img, unsigned i, struct err *e)
{
    const struct vmdk_part *p = &img->u.vmdk.part[i];
    if (p->off + p->size <= img->file[1 + i]->size)
        return 0;
    int rc = FAIL(e, ERR_OVERLAY_CORRUPT,
                  "Extent {off} is shorter than the descriptor says: it has {val} bytes", i + 1,
                  img->file[1 + i]->size);
    return rc;
}

static int open_parts(struct image *img, struct err *e)
{
    struct vmdk *v = &img->u.vmdk;
    bool lacks = image_lacks(img);
    img->size = 0;
    for (u32 i = 0; i < v->text->extents; i++) {
        const struct vmdk_line *l = &v->text->line[i];
        struct vmdk_part *p = &v->part[i];
        int rc = check_line(v->kind, l, e);
        if (rc)
            return rc;
        *p = (struct vmdk_part){.start = img->size,
                                .size = l->sectors.val * VMDK_SECTOR,
                                .off = l->offset.val * VMDK_SECTOR};
        if (!lacks && (rc = v->kind->sparse ? open_sparse(img, i, e) : open_flat(img, i, e)))
            return rc;
        if (!add_fits(img->size, p->size, &img->size) || img->size > (u64)INT64_MAX)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "The extents together are too large", l->off,
                        l->sectors.val);
    }
    img->unit = v->part[0].unit;
    return 0;
}

int vmdk_open_split(struct image *img, struct err *e)
{
    struct vmdk_own *own = img->own;
    struct vmdk *v = &img->u.vmdk;
    u64 size = img->file[0]->size;
    v->part = own->part;
    if (size > VMDK_TEXT_MAX)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "A descriptor of {val} bytes is not supported", 0,
                    size);
    int rc = vmdk_descriptor_read(img->file[0], &img->win2, 0, (u32)size, v->text, e);
    if (rc)
        return rc;
    const char *type = v->text->create_type;
    v->kind = find_kind(type);
    if (!v->kind)
        return vmdk_unsupported(type[0] ? type : "(none)", e);
    if ((rc = check_text(v, e)))
        return rc;
    v->child = v->text->parent_cid != VMDK_NO_PARENT || v->text->hint.len;
    img->parts = (u8)v->text->extents;
    return open_parts(img, e);
}

int vmdk_map_split(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    struct image part;
    u8 i = 0;
    assert(!image_lacks(img));
    while (voff - v->part[i].start >= v->part[i].size)
        i++;
    const struct vmdk_part *p = &v->part[i];
    u64 in = voff - p->start;
    max = min_u64(max, p->size - in);
    if (!v->kind->sparse) {
        *x = (struct extent){EXTENT_DATA, voff, max, (u8)(i + 1), p->off + in, 0};
        return 0;
    }
    vmdk_lend_part(img, i, &part);
    int rc = vmdk_map_sparse(&part, in, max, x, e);
    vmdk_return_part(img, &part);
    x->voff = voff;
    x->slot = x->kind == EXTENT_DATA ? (u8)(i + 1) : 0;
    return rc;
}
