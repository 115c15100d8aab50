/* SPDX-License-Identifier: MIT
 *
 * VHD: probing, opening and map(). Messages are qemu's where it has them (parity D.5). Unlike qemu,
 * this reader verifies every checksum, refuses a footer that contradicts its copy, honours the
 * block bitmaps (a sector whose bit is clear reads zero), and knows a fixed disk by the footer at
 * its end. The format's sizes, by creator: vhd_by_chs().
 */
#include "vhd.h"
#include "format.h"

static const u8 cookie[8] = {'c', 'o', 'n', 'e', 'c', 't', 'i', 'x'};

u64 vhd_chs_sectors(struct vhd_geometry g)
{
    return (u64)g.cylinders * g.heads * g.sectors;
}

struct vhd_geometry vhd_chs(u64 sectors)
{
    u64 tracks, heads = 16, spt = 255;
    sectors = min_u64(sectors, VHD_CHS_MAX);
    tracks = sectors / spt;
    if (sectors < 65535ull * 16 * 63) {
        spt = 17;
        tracks = sectors / spt;
        heads = max_u64(div_up(tracks, 1024), 4);
        if (tracks >= heads * 1024 || heads > 16) {
            spt = 31, heads = 16;
            tracks = sectors / spt;
        }
        if (tracks >= heads * 1024) {
            spt = 63, heads = 16;
            tracks = sectors / spt;
        }
    }
    return (struct vhd_geometry){(u16)(tracks / heads), (u8)heads, (u8)spt};
}

bool vhd_by_chs(const struct vhd *v)
{
    bool creator = !memcmp(v->creator, "vpc ", 4) || !memcmp(v->creator, "qemu", 4);
    return creator && vhd_chs_sectors(v->geometry) != VHD_CHS_MAX;
}

u32 vhd_checksum(const u8 *p, u32 len, u32 at)
{
    u32 sum = 0;
    for (u32 i = 0; i < len; i++)
        sum += i >= at && i < at + 4 ? 0 : p[i];
    return ~sum;
}

u64 vhd_table_end(const struct vhd *v)
{
    return round_up(v->table_offset + v->max_table_entries * 4ull, VHD_SECTOR);
}

u64 vhd_block_span(const struct vhd *v)
{
    return (u64)v->bitmap_size + v->block_size;
}

/* ---- opening ---- */

static int has_cookie(struct blk *b, u64 off, bool *found, struct err *e)
{
    u8 p[sizeof cookie];
    int rc = blk_read(b, off, p, sizeof p, e);
    *found = !rc && !memcmp(p, cookie, sizeof cookie);
    return rc;
}

/* A file that any footer ends, or begins, is a VHD: even one that open() refuses is never raw. */
static bool vhd_probe(struct blk *b)
{
    struct err e = {0};
    bool head = false, tail = false, old = false;
    has_cookie(b, 0, &head, &e);
    if (!head && b->size >= VF_LENGTH && !has_cookie(b, b->size - VF_LENGTH, &tail, &e))
        has_cookie(b, b->size - VF_LENGTH + 1, &old, &e);
    return head || tail || old;
}

/* The footer at `off`, if the file can hold one there and its cookie is right: *found. */
static int read_footer(struct blk *b, u64 off, u8 *p, bool *found, struct err *e)
{
    *found = b->size >= VF_LENGTH;
    int rc = *found ? blk_read(b, off, p, VF_LENGTH, e) : 0;
    *found = *found && !rc && !memcmp(p, cookie, sizeof cookie);
    if (rc || !*found)
        return rc;
    if (be32(p + VF_CHECKSUM) != vhd_checksum(p, VF_LENGTH, VF_CHECKSUM))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Incorrect header checksum (of the footer at {off})",
                    off, be32(p + VF_CHECKSUM));
    if (be32(p + VF_FILE_FORMAT_VERSION) >> 16 != 1)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported VHD version {val:x}",
                    off + VF_FILE_FORMAT_VERSION, be32(p + VF_FILE_FORMAT_VERSION));
    return 0;
}

static int decode_footer(struct image *img, const u8 *p, struct err *e)
{
    struct vhd *v = &img->u.vhd;
    u64 sectors;
    v->disk_type = be32(p + VF_DISK_TYPE);
    memcpy(v->creator, p + VF_CREATOR_APPLICATION, 4);
    v->saved_state = p[VF_SAVED_STATE] != 0;
    v->current_size = be64(p + VF_CURRENT_SIZE);
    v->original_size = be64(p + VF_ORIGINAL_SIZE);
    v->geometry = (struct vhd_geometry){be16(p + VF_DISK_GEOMETRY), p[VF_DISK_GEOMETRY + 2],
                                        p[VF_DISK_GEOMETRY + 3]};
    v->header_offset = be64(p + VF_DATA_OFFSET);
    if (v->disk_type < VHD_FIXED || v->disk_type > VHD_DIFFERENCING)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT, "Unknown VHD disk type {val}", VF_DISK_TYPE,
                    v->disk_type);
    sectors = vhd_by_chs(v) ? vhd_chs_sectors(v->geometry) : v->current_size / VHD_SECTOR;
    if (sectors > VHD_MAX_SIZE / VHD_SECTOR || v->current_size > VHD_MAX_SIZE)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "File too large: a VHD has at most 2040 GiB",
                    VF_CURRENT_SIZE, v->current_size);
    img->size = sectors * VHD_SECTOR;
    return 0;
}

/* A footer at the end of a file that has a copy at its head: size and geometry may differ. */
static int compare_footers(struct image *img, const u8 *head, const u8 *tail, struct err *e)
{
    struct vhd *v = &img->u.vhd;
    if (memcmp(head + VF_DATA_OFFSET, tail + VF_DATA_OFFSET, 8) ||
        memcmp(head + VF_CREATOR_APPLICATION, tail + VF_CREATOR_APPLICATION, 4) ||
        memcmp(head + VF_DISK_TYPE, tail + VF_DISK_TYPE, 4) ||
        memcmp(head + VF_UNIQUE_ID, tail + VF_UNIQUE_ID, 16))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The footer and its copy at the head of the file are not "
                    "of one disk",
                    v->tail_offset, 0);
    if (be64(tail + VF_CURRENT_SIZE) > VHD_MAX_SIZE)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "File too large: a VHD has at most 2040 GiB",
                    v->tail_offset + VF_CURRENT_SIZE, be64(tail + VF_CURRENT_SIZE));
    v->saved_state |= tail[VF_SAVED_STATE] != 0;
    v->tail_differs =
        memcmp(head + VF_CURRENT_SIZE, tail + VF_CURRENT_SIZE, VF_DISK_TYPE - VF_CURRENT_SIZE) != 0;
    return 0;
}

static int check_fixed(struct image *img, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    if (max_u64(img->size, v->current_size) > v->tail_offset)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The file is shorter than the fixed disk in it",
                    VF_CURRENT_SIZE, img->size);
    return 0;
}

static int check_header(const struct image *img, const u8 *p, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    if (memcmp(p + VH_COOKIE, "cxsparse", 8))
        return FAIL(e, ERR_PARSE_FAILED, "Invalid header magic", v->header_offset, 0);
    if (be32(p + VH_CHECKSUM) != vhd_checksum(p, VH_LENGTH, VH_CHECKSUM))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Incorrect checksum of the dynamic disk header",
                    v->header_offset, be32(p + VH_CHECKSUM));
    if (be32(p + VH_HEADER_VERSION) >> 16 != 1)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported VHD header version {val:x}",
                    v->header_offset + VH_HEADER_VERSION, be32(p + VH_HEADER_VERSION));
    if (!is_pow2(v->block_size) || v->block_size < VHD_SECTOR)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Invalid block size {val}",
                    v->header_offset + VH_BLOCK_SIZE, v->block_size);
    return 0;
}

static int check_table(const struct image *img, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    u64 len = v->max_table_entries * 4ull, end;
    if (len / 4 * v->block_size < img->size)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Page table too small",
                    v->header_offset + VH_MAX_TABLE_ENTRIES, v->max_table_entries);
    if (v->table_offset % VHD_SECTOR || v->table_offset < VF_LENGTH ||
        !add_fits(v->table_offset, len, &end))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The block allocation table cannot lie at {val}",
                    v->header_offset + VH_TABLE_OFFSET, v->table_offset);
    if (end > v->data_end)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Max Table Entries too large ({val})",
                    v->header_offset + VH_MAX_TABLE_ENTRIES, v->max_table_entries);
    if (ranges_overlap(v->table_offset, len, v->header_offset, VH_LENGTH))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The block allocation table lies on the dynamic disk header",
                    v->header_offset + VH_TABLE_OFFSET, v->table_offset);
    return 0;
}

static int open_dynamic(struct image *img, struct err *e)
{
    struct vhd *v = &img->u.vhd;
    u8 p[VH_LENGTH];
    u64 end;
    v->data_end = v->tail_offset ? v->tail_offset : img->file[0]->size;
    if (v->header_offset < VF_LENGTH || v->header_offset % VHD_SECTOR ||
        !add_fits(v->header_offset, VH_LENGTH, &end) || end > v->data_end)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Error reading dynamic VHD header", VF_DATA_OFFSET,
                    v->header_offset);
    int rc = blk_read(img->file[0], v->header_offset, p, sizeof p, e);
    if (rc)
        return rc;
    v->table_offset = be64(p + VH_TABLE_OFFSET);
    v->max_table_entries = be32(p + VH_MAX_TABLE_ENTRIES);
    v->block_size = be32(p + VH_BLOCK_SIZE);
    v->bitmap_size = (u32)round_up(div_up(v->block_size / VHD_SECTOR, 8), VHD_SECTOR);
    img->unit = v->block_size;
    if ((rc = check_header(img, p, e)))
        return rc;
    return check_table(img, e);
}

static int vhd_open(struct image *img, struct err *e)
{
    struct blk *b = img->file[0];
    struct vhd *v = &img->u.vhd;
    u8 head[VF_LENGTH], tail[VF_LENGTH];
    bool at_head, at_tail, old;
    *v = (struct vhd){0};
    img->unit = 0;
    if (b->size < VF_LENGTH)
        return FAIL(e, ERR_PARSE_FAILED, "File too small for a VHD header", 0, b->size);
    u64 end = b->size - VF_LENGTH;
    int rc = read_footer(b, 0, head, &at_head, e);
    if (rc || (rc = read_footer(b, end, tail, &at_tail, e)) ||
        (rc = has_cookie(b, end + 1, &old, e)))
        return rc;
    if (!at_tail && old)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT, "A footer of 511 bytes is not supported", end + 1,
                    0);
    if (!at_head && !at_tail)
        return FAIL(e, ERR_PARSE_FAILED, "invalid VPC image", 0, 0);
    v->tail_offset = at_tail ? end : 0;
    if ((rc = decode_footer(img, at_head ? head : tail, e)))
        return rc;
    if (end && at_head != (v->disk_type != VHD_FIXED))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    at_head ? "The file begins with the footer of a fixed disk"
                            : "invalid VPC image: there is no copy of the footer at its head",
                    0, v->disk_type);
    if (v->disk_type == VHD_FIXED)
        return check_fixed(img, e);
    if (at_tail && end && (rc = compare_footers(img, head, tail, e)))
        return rc;
    return open_dynamic(img, e);
}

/* ---- where bytes are ---- */

int vhd_check_block(const struct image *img, u32 entry, u64 *off, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    u64 at = (u64)entry * VHD_SECTOR, span = vhd_block_span(v);
    *off = entry == VHD_UNUSED ? 0 : at;
    if (!*off && entry)
        return 0;
    if (at + span > v->data_end)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "A block at {off} lies past the end of the file. The image has been truncated.",
                    at, entry);
    if (at < VF_LENGTH || ranges_overlap(at, span, v->header_offset, VH_LENGTH) ||
        ranges_overlap(at, span, v->table_offset, vhd_table_end(v) - v->table_offset))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A block at {off} lies on the image's own metadata", at,
                    entry);
    return 0;
}

int vhd_block(struct image *img, u64 idx, u64 *off, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    const u8 *p;
    assert(idx < v->max_table_entries);
    int rc = window_get(&img->win, img->file[0], v->table_offset + idx * 4, 4,
                        v->table_offset + v->max_table_entries * 4ull, &p, e);
    return rc ? rc : vhd_check_block(img, be32(p), off, e);
}

/* How many of the sectors [first, first+cnt) of a block have the same bit as the first; *set. */
static int bitmap_run(struct image *img, u64 bitmap, u64 first, u64 cnt, bool *set, u64 *run,
                      struct err *e)
{
    for (*run = 0; *run < cnt; ++*run) {
        u64 bit = first + *run;
        const u8 *p;
        int rc = window_get(&img->win2, img->file[0], bitmap + bit / 8, 1,
                            bitmap + img->u.vhd.bitmap_size, &p, e);
        if (rc)
            return rc;
        bool now = *p >> (7 - bit % 8) & 1;
        if (*run == 0)
            *set = now;
        else if (now != *set)
            break;
    }
    return 0;
}

/* A run of blocks that are not there. */
static int map_absent(struct image *img, u64 idx, struct extent *x, u64 max, struct err *e)
{
    u64 off = 0;
    x->kind = img->u.vhd.disk_type == VHD_DIFFERENCING ? EXTENT_HOLE : EXTENT_ZERO;
    while (x->len < max) {
        int rc = vhd_block(img, ++idx, &off, e);
        if (rc)
            return rc;
        if (off)
            break;
        x->len += img->unit;
    }
    x->len = min_u64(x->len, max);
    return 0;
}

static int vhd_map(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    u64 off, run;
    bool set = false;
    max = min_u64(max, img->size - voff);
    *x = (struct extent){EXTENT_DATA, voff, max, 0, voff, 0};
    if (v->disk_type == VHD_FIXED)
        return 0;
    u64 idx = voff / img->unit, in = voff % img->unit;
    x->len = img->unit - in;
    int rc = vhd_block(img, idx, &off, e);
    if (rc)
        return rc;
    if (!off) {
        x->off = 0;
        return map_absent(img, idx, x, max, e);
    }
    u64 first = in / VHD_SECTOR, skip = in % VHD_SECTOR;
    rc =
        bitmap_run(img, off, first, div_up(min_u64(x->len, max) + skip, VHD_SECTOR), &set, &run, e);
    if (rc)
        return rc;
    x->len = min_u64(run * VHD_SECTOR - skip, max);
    x->off = set ? off + v->bitmap_size + in : 0;
    if (!set)
        x->kind = v->disk_type == VHD_DIFFERENCING ? EXTENT_HOLE : EXTENT_ZERO;
    return 0;
}

static int vhd_facts(struct image *img, struct facts *f, struct err *e)
{
    static const char *const types[] = {"fixed", "dynamic", "differencing"};
    const struct vhd *v = &img->u.vhd;
    (void)e;
    f->dirty = v->disk_type != VHD_FIXED && (!v->tail_offset || v->tail_differs);
    f->parent_lost = v->disk_type == VHD_DIFFERENCING;
    facts_text(f, "subformat", types[v->disk_type - VHD_FIXED]);
    facts_text(f, "creator", v->creator);
    facts_number(f, "current size", v->current_size);
    facts_number(f, "original size", v->original_size);
    facts_number(f, "cylinders", v->geometry.cylinders);
    facts_number(f, "heads", v->geometry.heads);
    facts_number(f, "sectors per track", v->geometry.sectors);
    if (v->disk_type != VHD_FIXED)
        facts_number(f, "block size", v->block_size);
    facts_bool(f, "saved state", v->saved_state);
    return 0;
}

const struct format vhd_format = {"vpc", vhd_probe, vhd_open, vhd_map, NULL, vhd_facts};
