/* SPDX-License-Identifier: MIT
 *
 * VMDK sparse extents: opening and validating header and descriptor, finding grains. What consists
 * of several files is vmdk_split.c's. Sources: the "Virtual Disk Format 5.0"; parity F.
 *
 * Reads go by the grain directory; the redundant one is looked at by whoever changes the image.
 */
#include "format.h"

static const char other_kind[] =
    "VMDK images of the type '{name}' are not supported; qemu-img convert makes a "
    "monolithicSparse one of them";

u64 vmdk_table_span(const struct vmdk *v)
{
    return round_up(v->gtes * 4ull, VMDK_SECTOR);
}

u64 vmdk_grains(const struct image *img)
{
    return div_up(img->size, img->unit);
}

u64 vmdk_entries(const struct vmdk *v, u64 grains)
{
    return div_up(grains, v->gtes);
}

u64 vmdk_directory_span(u64 entries)
{
    return round_up(entries * 4, VMDK_SECTOR);
}

/* ---- opening ---- */

static bool vmdk_probe(struct blk *b)
{
    static const u8 sesparse[8] = {0xbe, 0xba, 0xfe, 0xca};
    u8 p[VMDK_PROBE_MAX];
    struct err e = {0};
    u32 n = (u32)min_u64(b->size, sizeof p);
    if (blk_read(b, 0, p, sizeof p, &e))
        return false;
    return !memcmp(p, "KDMV", 4) || !memcmp(p, "COWD", 4) || !memcmp(p, sesparse, 8) ||
           vmdk_descriptor_probe(p, n);
}

int vmdk_unsupported(const char *name, struct err *e)
{
    int rc = FAIL(e, ERR_UNSUPPORTED_SUBFORMAT, other_kind, 0, 0);
    err_name(e, name, strlen(name));
    return rc;
}

/* A file that is no sparse header: which kind of VMDK is it? */
static int open_other(struct image *img, const u8 *p, struct err *e)
{
    u8 text[VMDK_PROBE_MAX];
    u32 n = (u32)min_u64(img->file[0]->size, sizeof text);
    if (!memcmp(p, "COWD", 4))
        return vmdk_unsupported("vmfsSparse (COWD), without its descriptor", e);
    if (le64(p) == 0xcafebabe)
        return vmdk_unsupported("seSparse", e);
    int rc = blk_read(img->file[0], 0, text, n, e);
    if (rc)
        return rc;
    if (!vmdk_descriptor_probe(text, n))
        return FAIL(e, ERR_PARSE_FAILED, "Image not in VMDK format", 0, 0);
    return vmdk_open_split(img, e);
}

static void decode(struct vmdk *v, const u8 *p)
{
    v->version = le32(p + VMH_VERSION);
    v->flags = le32(p + VMH_FLAGS);
    v->capacity = le64(p + VMH_CAPACITY);
    v->gtes = le32(p + VMH_NUM_GTES_PER_GT);
    v->unclean = p[VMH_UNCLEAN_SHUTDOWN] != 0;
    v->head = VMH_LENGTH;
}

/* What both kinds of header must say: a size, and no larger a directory than can be. */
static int check_size(struct image *img, u32 at, u64 grain, struct err *e)
{
    struct vmdk *v = &img->u.vmdk;
    if (!v->capacity)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "A VMDK of no size, or one that wraps a descriptor, is not supported", at, 0);
    if (v->capacity > (u64)INT64_MAX / VMDK_SECTOR - VMDK_GRAIN_MAX)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The capacity of {val} sectors is too large", at,
                    v->capacity);
    img->size = v->capacity * VMDK_SECTOR;
    img->unit = (u32)(grain * VMDK_SECTOR);
    v->entries = vmdk_entries(v, vmdk_grains(img));
    if (v->entries > VMDK_ENTRIES_MAX)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "L1 size too big ({val} entries)", at, v->entries);
    return 0;
}

static int check_geometry(struct image *img, const u8 *p, struct err *e)
{
    struct vmdk *v = &img->u.vmdk;
    u64 grain = le64(p + VMH_GRAIN_SIZE);
    if (v->version < 1 || v->version > 3)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported VMDK version {val}", VMH_VERSION,
                    v->version);
    if (v->flags & VMDK_NEWLINES && memcmp(p + VMH_NEWLINES, "\n \r\n", 4))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The file was transferred as text: its line ends have been changed",
                    VMH_NEWLINES, le32(p + VMH_NEWLINES));
    if (!is_pow2(grain) || grain < VMDK_GRAIN_MIN || grain > VMDK_GRAIN_MAX)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "Invalid granularity, image may be corrupt (a grain of {val} sectors)",
                    VMH_GRAIN_SIZE, grain);
    if (v->gtes < 1 || v->gtes > VMDK_GTES_MAX)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "L2 table size too big (or none: {val} entries)",
                    VMH_NUM_GTES_PER_GT, v->gtes);
    return check_size(img, VMH_CAPACITY, grain, e);
}

/* A field that counts sectors, as bytes; what passes the end of the file is cut to what does. */
static u64 sectors_at(const struct image *img, const u8 *p)
{
    return min_u64(le64(p), div_up(img->file[0]->size, VMDK_SECTOR) + 1) * VMDK_SECTOR;
}

static int check_places(const struct image *img, const u8 *p, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 size = img->file[0]->size, gd_len = v->entries * 4;
    const u64 part[4][3] = {{0, v->head, VMH_MAGIC},
                            {v->descriptor_offset, v->descriptor_size, VMH_DESCRIPTOR_OFFSET},
                            {v->gd_offset, vmdk_directory_span(v->entries), VMH_GD_OFFSET},
                            {v->rgd_offset, vmdk_directory_span(v->entries), VMH_RGD_OFFSET}};
    if (v->overhead > size)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "File truncated, expecting at least {val} bytes",
                    VMH_OVERHEAD, v->overhead);
    if (!v->gd_offset || v->gd_offset + gd_len > size)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The grain directory cannot lie at {val}",
                    VMH_GD_OFFSET, le64(p + VMH_GD_OFFSET));
    if (v->flags & VMDK_REDUNDANT && (!v->rgd_offset || v->rgd_offset + gd_len > size))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The redundant grain directory cannot lie at {val}",
                    VMH_RGD_OFFSET, le64(p + VMH_RGD_OFFSET));
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < i; k++)
            if ((i < 3 || v->rgd_offset) &&
                ranges_overlap(part[i][0], part[i][1], part[k][0], part[k][1]))
                return FAIL(e, ERR_OVERLAY_CORRUPT, "The image's metadata overlap at {val}",
                            part[i][2], part[i][0]);
    return 0;
}

static int read_text(struct image *img, struct err *e)
{
    struct vmdk *v = &img->u.vmdk;
    struct vmdk_descriptor *d = v->text;
    static const char *const type[] = {"monolithicSparse", "streamOptimized"};
    if (!v->descriptor_offset)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "The file is an extent of a VMDK, without a descriptor of its own",
                    VMH_DESCRIPTOR_OFFSET, 0);
    if (!v->descriptor_size || v->descriptor_size > VMDK_TEXT_MAX ||
        v->descriptor_offset + v->descriptor_size > img->file[0]->size)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The descriptor cannot have {val} bytes",
                    VMH_DESCRIPTOR_SIZE, v->descriptor_size);
    int rc = vmdk_descriptor_read(img->file[0], &img->win2, v->descriptor_offset,
                                  (u32)v->descriptor_size, d, e);
    if (rc)
        return rc;
    if (!d->text_len)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "The file is an extent of a VMDK, without a descriptor of its own",
                    v->descriptor_offset, 0);
    if (!d->has_cid || !d->has_parent_cid)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The descriptor has no CID or no parentCID",
                    v->descriptor_offset, 0);
    const char *want = type[(v->flags & VMDK_COMPRESSED) != 0];
    if (strlen(d->create_type) != strlen(want) || memcmp(d->create_type, want, strlen(want)))
        return vmdk_unsupported(d->create_type[0] ? d->create_type : "(none)", e);
    if (d->extents != 1 || memcmp(d->line[0].type, "SPARSE", 7))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The descriptor should have one line for a SPARSE extent (it has {val} lines)",
                    v->descriptor_offset, d->extents);
    v->child = d->parent_cid != VMDK_NO_PARENT || d->hint.len;
    if (d->line[0].sectors.val > (u64)INT64_MAX / VMDK_SECTOR)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The descriptor's extent of {val} sectors is too large",
                    v->descriptor_offset + d->line[0].sectors.off, d->line[0].sectors.val);
    return 0;
}

/* A stream's header says that its directory is named by a copy of the header, near the end. */
static int read_footer(struct image *img, u8 *p, struct err *e)
{
    u64 size = img->file[0]->size, at = size - 3 * VMDK_SECTOR;
    u8 t[3 * VMDK_SECTOR];
    if (size % VMDK_SECTOR || size < 4 * VMDK_SECTOR)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Invalid footer", size, 0);
    int rc = blk_read(img->file[0], at, t, sizeof t, e);
    if (rc)
        return rc;
    bool marked = le64(t) == 1 && le32(t + 8) == 0 && le32(t + 12) == 3;
    bool ends = !le64(t + 2 * VMDK_SECTOR) && !le64(t + 2 * VMDK_SECTOR + 8);
    if (!marked || !ends || memcmp(t + VMDK_SECTOR, "KDMV", 4) ||
        le64(t + VMDK_SECTOR + VMH_GD_OFFSET) == UINT64_MAX)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Invalid footer", at, le32(t + 12));
    memcpy(p, t + VMDK_SECTOR, VMH_LENGTH);
    return 0;
}

/* Everything that the header says, but for its descriptor's text. */
static int read_header(struct image *img, u8 *p, struct err *e)
{
    struct vmdk *v = &img->u.vmdk;
    int rc;
    if (le64(p + VMH_GD_OFFSET) == UINT64_MAX && le32(p + VMH_FLAGS) & VMDK_MARKERS) {
        u64 text_offset = le64(p + VMH_DESCRIPTOR_OFFSET), text = le64(p + VMH_DESCRIPTOR_SIZE);
        if ((rc = read_footer(img, p, e)))
            return rc;
        put_le64(p + VMH_DESCRIPTOR_OFFSET, text_offset);
        put_le64(p + VMH_DESCRIPTOR_SIZE, text);
    }
    decode(v, p);
    if ((rc = check_geometry(img, p, e)))
        return rc;
    v->gd_offset = sectors_at(img, p + VMH_GD_OFFSET);
    v->rgd_offset = v->flags & VMDK_REDUNDANT ? sectors_at(img, p + VMH_RGD_OFFSET) : 0;
    v->overhead = sectors_at(img, p + VMH_OVERHEAD);
    v->descriptor_offset = sectors_at(img, p + VMH_DESCRIPTOR_OFFSET);
    v->descriptor_size = sectors_at(img, p + VMH_DESCRIPTOR_SIZE);
    if ((v->flags & VMDK_COMPRESSED) &&
        (!(v->flags & VMDK_MARKERS) || le16(p + VMH_COMPRESS_ALGORITHM) != 1))
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported compression, number {val}",
                    VMH_COMPRESS_ALGORITHM, le16(p + VMH_COMPRESS_ALGORITHM));
    if (v->flags & VMDK_COMPRESSED && img->unit > IMAGE_UNIT_MAX)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Compressed grains of {val} bytes are too large",
                    VMH_GRAIN_SIZE, img->unit);
    return 0;
}

static int vmdk_open(struct image *img, struct err *e)
{
    struct vmdk_own *own = img->own;
    u8 p[VMH_LENGTH];
    img->u.vmdk = (struct vmdk){.text = &own->text};
    img->size = img->unit = img->parts = 0;
    int rc = blk_read(img->file[0], 0, p, sizeof p, e);
    if (rc)
        return rc;
    if (memcmp(p, "KDMV", 4))
        return open_other(img, p, e);
    if ((rc = read_header(img, p, e)) || (rc = read_text(img, e)))
        return rc;
    return check_places(img, p, e);
}

/* A COWDisk_Header, for which the same checks hold, as far as it has those fields. */
static int open_cow(struct image *img, struct err *e)
{
    struct vmdk *v = &img->u.vmdk;
    u8 p[VMC_LENGTH];
    int rc = blk_read(img->file[0], 0, p, sizeof p, e);
    if (rc)
        return rc;
    u64 grain = le32(p + VMC_GRAIN_SIZE), size = img->file[0]->size;
    if (memcmp(p, "COWD", 4))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The extent has no COWD header", 0, le32(p));
    v->version = le32(p + VMC_VERSION);
    v->gtes = VMDK_COW_GTES;
    v->capacity = le32(p + VMC_NUM_SECTORS);
    v->head = VMC_LENGTH;
    v->gd_offset = le32(p + VMC_GD_OFFSET) * (u64)VMDK_SECTOR;
    v->unclean = le32(p + VMC_UNCLEAN_SHUTDOWN) != 0;
    if (v->version != 1)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported COWD version {val}", VMC_VERSION,
                    v->version);
    if (!is_pow2(grain) || grain > VMDK_GRAIN_MAX)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "Invalid granularity, image may be corrupt (a grain of {val} sectors)",
                    VMC_GRAIN_SIZE, grain);
    if ((rc = check_size(img, VMC_NUM_SECTORS, grain, e)))
        return rc;
    if (v->entries > le32(p + VMC_NUM_GD_ENTRIES) || v->gd_offset < VMC_LENGTH ||
        v->gd_offset + v->entries * 4 > size)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The grain directory cannot lie at {val}",
                    VMC_GD_OFFSET, v->gd_offset);
    return 0;
}

int vmdk_open_extent(struct image *img, bool cow, struct err *e)
{
    u8 p[VMH_LENGTH];
    img->u.vmdk = (struct vmdk){0};
    if (cow)
        return open_cow(img, e);
    int rc = blk_read(img->file[0], 0, p, sizeof p, e);
    if (rc)
        return rc;
    if (memcmp(p, "KDMV", 4))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The extent has no sparse header", 0, le32(p));
    if (le32(p + VMH_FLAGS) & (VMDK_COMPRESSED | VMDK_MARKERS))
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported flags of an extent ({val:x})",
                    VMH_FLAGS, le32(p + VMH_FLAGS));
    rc = read_header(img, p, e);
    return rc ? rc : check_places(img, p, e);
}

/* ---- where bytes are ---- */

static bool on_metadata(const struct vmdk *v, u64 off, u64 len)
{
    u64 gd = vmdk_directory_span(v->entries);
    return off < v->head || ranges_overlap(off, len, v->descriptor_offset, v->descriptor_size) ||
           ranges_overlap(off, len, v->gd_offset, gd) ||
           (v->rgd_offset && ranges_overlap(off, len, v->rgd_offset, gd));
}

int vmdk_check_table(const struct image *img, u32 entry, u64 *off, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    *off = (u64)entry * VMDK_SECTOR;
    if (entry &&
        (*off + v->gtes * 4ull > img->file[0]->size || on_metadata(v, *off, vmdk_table_span(v))))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A grain table cannot lie at {off}", *off, entry);
    return 0;
}

int vmdk_check_grain(const struct image *img, u32 entry, u64 *off, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 len = v->flags & VMDK_COMPRESSED ? VMDK_SECTOR : img->unit;
    *off = (u64)entry * VMDK_SECTOR;
    if (!entry || (entry == VMDK_ZEROED && v->flags & VMDK_ZEROED_GRAINS)) {
        *off = 0;
        return 0;
    }
    if (*off >= img->file[0]->size)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "A grain at {off} lies past the end of the file. The image has been truncated.",
                    *off, entry);
    if (on_metadata(v, *off, len))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A grain at {off} lies on the image's own metadata",
                    *off, entry);
    return 0;
}

int vmdk_table(struct image *img, u64 gd, u64 idx, u64 *off, struct err *e)
{
    struct window *win = gd == img->u.vmdk.gd_offset ? &img->win : &img->win2;
    const u8 *p;
    int rc = window_get(win, img->file[0], gd + idx * 4, 4,
                        gd + max_u64(img->u.vmdk.entries, idx + 1) * 4, &p, e);
    return rc ? rc : vmdk_check_table(img, le32(p), off, e);
}

static int map_packed(struct image *img, struct extent *x, struct err *e)
{
    u8 marker[12];
    int rc = blk_read(img->file[0], x->off, marker, sizeof marker, e);
    if (rc)
        return rc;
    x->kind = EXTENT_PACKED;
    x->packed_len = le32(marker + 8);
    if (!x->packed_len || x->packed_len > 2ull * img->unit ||
        le64(marker) != x->voff / img->unit * (img->unit / VMDK_SECTOR) ||
        x->off + sizeof marker + x->packed_len > img->file[0]->size)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The grain marker at {off} is damaged", x->off,
                    x->packed_len);
    x->off += sizeof marker;
    return 0;
}

/* The entries behind the first of a table that go on as it began: absent, zeroed, or adjacent. */
static int map_run(struct image *img, u64 table, u32 first, u64 idx, u64 max, struct extent *x,
                   struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u32 step = x->kind == EXTENT_DATA ? img->unit / VMDK_SECTOR : 0;
    for (u32 next = first + step; x->len < max && ++idx < v->gtes; next += step) {
        const u8 *p;
        u64 off;
        int rc =
            window_get(&img->win2, img->file[0], table + idx * 4, 4, table + v->gtes * 4ull, &p, e);
        if (rc || le32(p) != next)
            return rc;
        if ((rc = vmdk_check_grain(img, next, &off, e)))
            return rc;
        x->len += img->unit;
    }
    return 0;
}

int vmdk_map_sparse(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 grain = voff / img->unit, in = voff % img->unit, table, off, idx = grain % v->gtes;
    const u8 *p;
    max = min_u64(max, img->size - voff);
    *x = (struct extent){EXTENT_HOLE, voff, img->unit - in, 0, 0, 0};
    int rc = vmdk_table(img, v->gd_offset, grain / v->gtes, &table, e);
    if (rc)
        return rc;
    if (!table) {
        x->len = min_u64((v->gtes - idx) * img->unit - in, max);
        return 0;
    }
    if ((rc = window_get(&img->win2, img->file[0], table + idx * 4, 4, table + v->gtes * 4ull, &p,
                         e)))
        return rc;
    u32 entry = le32(p);
    if ((rc = vmdk_check_grain(img, entry, &off, e)))
        return rc;
    if (off)
        x->kind = EXTENT_DATA, x->off = off + in;
    else if (entry)
        x->kind = EXTENT_ZERO;
    if (off && v->flags & VMDK_COMPRESSED) {
        x->off = off;
        rc = map_packed(img, x, e);
    } else {
        rc = map_run(img, table, entry, idx, max, x, e);
    }
    x->len = min_u64(x->len, max);
    return rc;
}

static int vmdk_map(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e)
{
    return img->u.vmdk.kind ? vmdk_map_split(img, voff, max, x, e)
                            : vmdk_map_sparse(img, voff, max, x, e);
}

/* ---- what info shows ---- */

/* The parent's name, all of it. A parent that has a CID is a VMDK, whatever it looks like. */
static int parent_name(struct image *img, struct facts *f, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    if (v->text->hint.len && v->text->parent_cid != VMDK_NO_PARENT)
        memcpy(f->backing_format, "vmdk", sizeof "vmdk");
    f->backing_len = (u32)min_u64(v->text->hint.len, sizeof f->backing - 1);
    return blk_read(img->file[0], v->descriptor_offset + v->text->hint.off, f->backing,
                    f->backing_len, e);
}

static int vmdk_facts(struct image *img, struct facts *f, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    const struct vmdk_descriptor *d = v->text;
    int rc = parent_name(img, f, e);
    facts_text(f, "create type", d->create_type);
    if (!v->kind)
        facts_number(f, "version", v->version);
    facts_number(f, "cid", d->cid);
    facts_number(f, "parent cid", d->parent_cid);
    if (d->parent_hint[0])
        facts_text(f, "parent file name hint", d->parent_hint);
    f->dirty = v->unclean;
    for (u32 i = 0; i < d->extents && !image_lacks(img); i++) {
        const struct vmdk *s = v->kind ? &v->part[i].sparse : v;
        f->dirty |= s->gtes && (s->unclean || d->line[i].sectors.val != s->capacity);
    }
    if (!v->gtes)
        return rc;
    facts_number(f, "grain size", img->unit);
    facts_bool(f, "redundant grain directory", v->rgd_offset != 0);
    facts_bool(f, "zeroed grains", (v->flags & VMDK_ZEROED_GRAINS) != 0);
    return rc;
}

/* The extents, as the descriptor names them. */
static int vmdk_part(struct image *img, unsigned idx, struct image_part *p, bool *more,
                     struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    const struct vmdk_line *l = &v->text->line[idx];
    *more = idx < v->text->extents;
    if (!*more)
        return 0;
    *p = (struct image_part){.kind = l->type, .len = l->sectors.val * VMDK_SECTOR};
    if (!v->kind || !image_lacks(img)) {
        const struct vmdk *s = v->kind ? &v->part[idx].sparse : v;
        p->unit = v->kind ? v->part[idx].unit : img->unit;
        p->len = s->gtes ? s->capacity * VMDK_SECTOR : p->len;
    }
    p->name_len = (u32)min_u64(l->name_len, sizeof p->name);
    return blk_read(img->file[0], v->descriptor_offset + l->name_off, p->name, p->name_len, e);
}

#pragma weak vmdk_unpack
const struct format vmdk_format = {"vmdk",      vmdk_probe, vmdk_open, vmdk_map,
                                   vmdk_unpack, vmdk_facts, vmdk_part};
