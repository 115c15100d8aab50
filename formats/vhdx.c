/* SPDX-License-Identifier: MIT
 *
 * Opening a VHDX: the header that is current, the log if it is dirty, both region tables, the
 * metadata. Each is validated in one visible block before it is used; what a specification calls
 * required and this program does not know is refused, what is optional is left alone.
 * Source: [MS-VHDX] 2.2 "Header Section", 2.6 "Metadata Region"; parity E.
 */
#include "format.h"
#include "crc32c.h"

static const u8 bat_guid[16] = {0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
                                0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08};
static const u8 metadata_guid[16] = {0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
                                     0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e};

enum item {
    FILE_PARAMETERS,
    VIRTUAL_DISK_SIZE,
    VIRTUAL_DISK_ID,
    LOGICAL_SECTOR,
    PHYSICAL_SECTOR,
    PARENT_LOCATOR,
    ITEMS
};
static const struct {
    u8 guid[16];
    u32 length; /* 0: any */
} known[ITEMS] = {
    [FILE_PARAMETERS] = {{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0,
                          0xaa, 0x44, 0xe7, 0x6b},
                         8},
    [VIRTUAL_DISK_SIZE] = {{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe,
                            0xd8, 0x3b, 0xf4, 0xb8},
                           8},
    [VIRTUAL_DISK_ID] = {{0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09,
                          0xe0, 0x00, 0xc7, 0x46},
                         16},
    [LOGICAL_SECTOR] = {{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33,
                         0xa8, 0xfa, 0xab, 0x5f},
                        4},
    [PHYSICAL_SECTOR] = {{0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88,
                          0x52, 0x51, 0xc5, 0x56},
                         4},
    [PARENT_LOCATOR] = {{0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8,
                         0x48, 0x34, 0xab, 0x0c},
                        0},
};

int vhdx_get(struct image *img, struct window *w, u64 off, u32 len, u64 end, const u8 **p,
             struct err *e)
{
    const struct vhdx_log *log = &img->u.vhdx.log;
    struct blk *b = img->file[0];
    if (!log->dirty)
        return window_get(w, b, off, len, end, p, e);
    assert(w != &img->win2 && len <= w->cap - VHDX_LOG_SECTOR && end >= off + len);
    if (w->blk != b || off < w->off || off + len > w->off + w->len) {
        u64 at = round_down(off, VHDX_LOG_SECTOR);
        u32 want = (u32)min_u64(round_up(end - at, VHDX_LOG_SECTOR), w->cap);
        window_drop(w);
        int rc = vhdx_log_read(b, &img->win2, log, at, w->buf, want, e);
        if (rc)
            return rc;
        w->blk = b;
        w->off = at;
        w->len = want;
    }
    *p = w->buf + (off - w->off);
    return 0;
}

/* How long the file is, or will be once its log has been replayed. */
static u64 file_end(const struct image *img)
{
    const struct vhdx_log *log = &img->u.vhdx.log;
    u64 end = round_up(img->file[0]->size, VHDX_MIB);
    return log->dirty ? max_u64(end, log->last_file_offset) : end;
}

/* The checksum over len bytes at off whose own field, at off + 4, counts as zero: does it hold? */
static int check_sum(struct image *img, u64 off, u32 len, bool *ok, struct err *e)
{
    static const u8 none[4];
    u32 want = 0, sum = 0;
    for (u32 done = 0; done < len; done += VHDX_SECTOR) {
        const u8 *p;
        int rc = vhdx_get(img, &img->win, off + done, VHDX_SECTOR, off + len, &p, e);
        if (rc)
            return rc;
        u32 skip = done ? 0 : 8;
        if (!done) {
            want = le32(p + 4);
            sum = crc32c(crc32c(0, p, 4), none, 4);
        }
        sum = crc32c(sum, p + skip, VHDX_SECTOR - skip);
    }
    *ok = sum == want;
    return 0;
}

/* ---- headers ---- */

static int read_header(struct image *img, struct window *w, unsigned i, const u8 **p, bool *ok,
                       struct err *e)
{
    u64 off = vhdx_header_offset(i);
    int rc = check_sum(img, off, VHDX_SECTOR, ok, e);
    if (!rc)
        rc = vhdx_get(img, w, off, VHDX_SECTOR, off + VHDX_SECTOR, p, e);
    if (!rc)
        *ok = *ok && !memcmp(*p, "head", 4);
    return rc;
}

/* The header that is current, in *p: the valid one with the higher sequence number. Two that have
 * the same number are believed if they are the same. */
static int choose_header(struct image *img, const u8 **p, struct err *e)
{
    const u8 *first, *second;
    bool one, two;
    int rc = read_header(img, &img->win2, 0, &first, &one, e);
    if (rc || (rc = read_header(img, &img->win, 1, &second, &two, e)))
        return rc;
    u64 a = le64(first + VXH_SEQUENCE_NUMBER), b = le64(second + VXH_SEQUENCE_NUMBER);
    if (!one && !two)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Neither header of the VHDX image is valid",
                    VHDX_HEADER_1, 0);
    if (one && two && a == b && memcmp(first, second, VHDX_SECTOR))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "Both headers have the sequence number {val}, and they differ", VHDX_HEADER_1,
                    a);
    img->u.vhdx.current = two && (!one || b > a);
    *p = img->u.vhdx.current ? second : first;
    return 0;
}

static void guid_text(const u8 *g, char *to)
{
    static const u8 order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    static const char digit[] = "0123456789abcdef";
    for (unsigned i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *to++ = '-';
        *to++ = digit[g[order[i]] >> 4];
        *to++ = digit[g[order[i]] & 15];
    }
    *to = 0;
}

static int open_header(struct image *img, struct err *e)
{
    static const u8 none[16];
    struct vhdx *v = &img->u.vhdx;
    const u8 *p = NULL;
    int rc = choose_header(img, &p, e);
    if (rc)
        return rc;
    u64 at = vhdx_header_offset(v->current);
    struct vhdx_log log = {.offset = le64(p + VXH_LOG_OFFSET), .length = le32(p + VXH_LOG_LENGTH)};
    memcpy(log.guid, p + VXH_LOG_GUID, 16);
    v->sequence_number = le64(p + VXH_SEQUENCE_NUMBER);
    guid_text(p + VXH_FILE_WRITE_GUID, v->file_guid);
    guid_text(p + VXH_DATA_WRITE_GUID, v->data_guid);
    u16 version = le16(p + VXH_VERSION), log_version = le16(p + VXH_LOG_VERSION);
    if (version != 1)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "VHDX version {val} is not supported",
                    at + VXH_VERSION, version);
    if (log_version)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Version {val} of the VHDX log is not supported",
                    at + VXH_LOG_VERSION, log_version);
    if (!log.length || log.length % VHDX_MIB || log.offset < VHDX_MIB || log.offset % VHDX_MIB ||
        log.offset > img->file[0]->size || log.length > img->file[0]->size - log.offset)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The log cannot have {val} bytes at {off}: whole MiB, behind the first and "
                    "inside the file",
                    log.offset, log.length);
    v->regions_end = log.offset + log.length;
    v->log = log;
    if (!memcmp(log.guid, none, 16))
        return 0;
    window_drop(&img->win); /* what it holds was not read through the log */
    rc = vhdx_log_find(img->file[0], &img->win2, &v->log, e);
    v->log.dirty = !rc;
    return rc;
}

/* ---- regions ---- */

int vhdx_region(struct image *img, struct window *w, u32 i, u64 *off, u32 *len, bool *more,
                struct err *e)
{
    u64 table = vhdx_region_table_offset(!img->u.vhdx.region_ok[0]), end = table + VHDX_TABLE_SIZE;
    const u8 *p;
    int rc = vhdx_get(img, w, table + VR_ENTRY_COUNT, 4, end, &p, e);
    if (rc)
        return rc;
    *more = i < min_u64(le32(p), VHDX_ENTRIES_MAX);
    if (!*more || (rc = vhdx_get(img, w, table + VR_ENTRIES + (u64)i * VHDX_ENTRY_SIZE,
                                 VHDX_ENTRY_SIZE, end, &p, e)))
        return rc;
    *off = le64(p + VRE_FILE_OFFSET);
    *len = le32(p + VRE_LENGTH);
    return 0;
}

/* Which of the two region tables are valid. Those that are must say the same. */
static int check_region_tables(struct image *img, struct err *e)
{
    struct vhdx *v = &img->u.vhdx;
    u32 sum[2];
    for (unsigned i = 0; i < 2; i++) {
        u64 off = vhdx_region_table_offset(i);
        const u8 *p;
        int rc = vhdx_get(img, &img->win, off, VR_ENTRIES, off + VHDX_TABLE_SIZE, &p, e);
        if (rc)
            return rc;
        bool looks = !memcmp(p, "regi", 4);
        u32 cnt = le32(p + VR_ENTRY_COUNT);
        sum[i] = le32(p + VR_CHECKSUM);
        if (looks && (rc = check_sum(img, off, VHDX_TABLE_SIZE, &v->region_ok[i], e)))
            return rc;
        if (v->region_ok[i] && cnt > VHDX_ENTRIES_MAX)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "A region table cannot have {val} entries",
                        off + VR_ENTRY_COUNT, cnt);
    }
    if (!v->region_ok[0] && !v->region_ok[1])
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Neither region table of the VHDX image is valid",
                    VHDX_REGION_TABLE_1, 0);
    if (v->region_ok[0] && v->region_ok[1] && sum[0] != sum[1])
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The two region tables are valid and differ",
                    VHDX_REGION_TABLE_1, 0);
    return 0;
}

/* One entry: by itself. */
static int open_region(struct image *img, u32 i, const u8 *p, struct err *e)
{
    struct vhdx *v = &img->u.vhdx;
    u64 off = le64(p + VRE_FILE_OFFSET), at = VR_ENTRIES + (u64)i * VHDX_ENTRY_SIZE, end;
    u32 len = le32(p + VRE_LENGTH);
    bool bat = !memcmp(p, bat_guid, 16), metadata = !memcmp(p, metadata_guid, 16);
    if (!bat && !metadata && le32(p + VRE_REQUIRED) & 1)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "The image has a required region that is not known (entry {val})", at, i);
    if (!len || len % VHDX_MIB || off < VHDX_MIB || off % VHDX_MIB || !add_fits(off, len, &end) ||
        end > file_end(img))
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "A region cannot have {val} bytes at {off}: whole MiB, behind the first and "
                    "inside the file",
                    off, len);
    if ((bat && v->bat_length) || (metadata && v->metadata_length))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The BAT or the metadata is there twice (entry {val})",
                    at, i);
    if (bat) {
        v->bat_entry = i;
        v->bat_offset = off;
        v->bat_length = len;
    } else if (metadata) {
        v->metadata_entry = i;
        v->metadata_offset = off;
        v->metadata_length = len;
    }
    v->regions_end = max_u64(v->regions_end, end);
    return 0;
}

/* Nothing may overlap the log or a region that is used here. */
static int check_overlaps(struct image *img, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    const struct {
        u64 off, len;
        u32 entry; /* its own in the table */
    } own[3] = {{v->log.offset, v->log.length, UINT32_MAX},
                {v->bat_offset, v->bat_length, v->bat_entry},
                {v->metadata_offset, v->metadata_length, v->metadata_entry}};
    bool more = true;
    for (u32 i = 0; more; i++) {
        u64 off;
        u32 len;
        int rc = vhdx_region(img, &img->win, i, &off, &len, &more, e);
        if (rc)
            return rc;
        for (unsigned k = 0; more && k < 3; k++)
            if (i != own[k].entry && ranges_overlap(off, len, own[k].off, own[k].len))
                return FAIL(e, ERR_OVERLAY_CORRUPT, "The region at {val} overlaps another",
                            own[k].off, off);
    }
    return 0;
}

static int open_regions(struct image *img, struct err *e)
{
    struct vhdx *v = &img->u.vhdx;
    int rc = check_region_tables(img, e);
    if (rc)
        return rc;
    u64 table = vhdx_region_table_offset(!v->region_ok[0]), end = table + VHDX_TABLE_SIZE;
    const u8 *p;
    if ((rc = vhdx_get(img, &img->win, table + VR_ENTRY_COUNT, 4, end, &p, e)))
        return rc;
    u32 cnt = le32(p);
    for (u32 i = 0; i < cnt; i++) {
        rc = vhdx_get(img, &img->win, table + VR_ENTRIES + (u64)i * VHDX_ENTRY_SIZE,
                      VHDX_ENTRY_SIZE, end, &p, e);
        if (rc || (rc = open_region(img, i, p, e)))
            return rc;
    }
    if (!v->bat_length || !v->metadata_length)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The image has no BAT or no metadata", table, cnt);
    return check_overlaps(img, e);
}

/* ---- metadata ---- */

struct items {
    u64 off[ITEMS]; /* in the file; 0: absent */
    u32 len[ITEMS];
};

/* One entry of the metadata table: by itself, and against those found before (`all`). */
static int open_item(struct image *img, const u8 *p, u64 at, struct items *all, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 off = le32(p + VME_OFFSET), len = le32(p + VME_LENGTH);
    u32 flags = le32(p + VME_FLAGS);
    int which = -1;
    for (int i = 0; i < ITEMS && !(flags & VHDX_META_IS_USER); i++)
        if (!memcmp(p, known[i].guid, 16))
            which = i;
    if (which < 0 && flags & VHDX_META_IS_REQUIRED)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "The image has a required metadata item that is not known", at, flags);
    if (which < 0 && !len && !off)
        return 0; /* an item without content */
    if (off < VHDX_TABLE_SIZE || !len || len > VHDX_MIB || off + len > v->metadata_length)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A metadata item cannot have {val} bytes there", at,
                    len);
    if (which < 0)
        return 0;
    if (all->off[which])
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A metadata item is there twice", at, 0);
    if (known[which].length && len != known[which].length)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A metadata item cannot have {val} bytes", at, len);
    all->off[which] = v->metadata_offset + off;
    all->len[which] = (u32)len;
    return 0;
}

/* Nothing may overlap an item that is used here. */
static int check_item_overlaps(struct image *img, const struct items *all, u32 cnt, struct err *e)
{
    u64 table = img->u.vhdx.metadata_offset;
    for (u32 i = 0; i < cnt; i++) {
        const u8 *p;
        u64 at = table + VM_ENTRIES + (u64)i * VHDX_ENTRY_SIZE;
        int rc = vhdx_get(img, &img->win, at, VHDX_ENTRY_SIZE, table + VHDX_TABLE_SIZE, &p, e);
        if (rc)
            return rc;
        u64 off = table + le32(p + VME_OFFSET), len = le32(p + VME_LENGTH);
        for (int k = 0; k < ITEMS; k++)
            if (ranges_overlap(off, len, all->off[k], all->len[k]) &&
                (off != all->off[k] || memcmp(p, known[k].guid, 16) ||
                 le32(p + VME_FLAGS) & VHDX_META_IS_USER))
                return FAIL(e, ERR_OVERLAY_CORRUPT, "Two metadata items overlap at {val}", at, off);
    }
    return 0;
}

static int find_items(struct image *img, struct items *all, struct err *e)
{
    u64 table = img->u.vhdx.metadata_offset, end = table + VHDX_TABLE_SIZE;
    const u8 *p;
    int rc = vhdx_get(img, &img->win, table, VM_ENTRIES, end, &p, e);
    if (rc)
        return rc;
    u32 cnt = le16(p + VM_ENTRY_COUNT);
    if (memcmp(p, "metadata", 8) || cnt > VHDX_ENTRIES_MAX)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The metadata table is not one ({val} entries)", table,
                    cnt);
    for (u32 i = 0; i < cnt; i++) {
        u64 at = table + VM_ENTRIES + (u64)i * VHDX_ENTRY_SIZE;
        rc = vhdx_get(img, &img->win, at, VHDX_ENTRY_SIZE, end, &p, e);
        if (rc || (rc = open_item(img, p, at, all, e)))
            return rc;
    }
    for (int i = 0; i < PARENT_LOCATOR; i++)
        if (!all->off[i])
            return FAIL(e, ERR_OVERLAY_CORRUPT, "A required metadata item is missing", table,
                        (u64)i);
    return check_item_overlaps(img, all, cnt, e);
}

/* Reads a scalar item, at most 16 bytes. */
static int item(struct image *img, const struct items *all, enum item which, const u8 **p,
                struct err *e)
{
    return vhdx_get(img, &img->win, all->off[which], all->len[which],
                    all->off[which] + all->len[which], p, e);
}

static int check_values(struct image *img, const struct items *all, u32 flags, struct err *e)
{
    struct vhdx *v = &img->u.vhdx;
    if (!is_pow2(v->block_size) || v->block_size < VHDX_MIB || v->block_size > 256 * VHDX_MIB)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Blocks cannot have {val} bytes: 1 to 256 MiB",
                    all->off[FILE_PARAMETERS], v->block_size);
    if (flags & ~(VHDX_LEAVE_BLOCK_ALLOCATED | VHDX_HAS_PARENT))
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "The image has unknown file parameters ({val:x})",
                    all->off[FILE_PARAMETERS] + 4, flags);
    if (v->has_parent && !all->off[PARENT_LOCATOR])
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A differencing image does not name its parent",
                    v->metadata_offset, 0);
    if ((v->logical_sector != 512 && v->logical_sector != 4096) ||
        (v->physical_sector != 512 && v->physical_sector != 4096))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Sectors cannot have {off} or {val} bytes: 512 or 4096",
                    v->logical_sector, v->physical_sector);
    if (!img->size || img->size % v->logical_sector || img->size > VHDX_MAX_DISK_SIZE)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The disk cannot have {val} bytes: whole sectors, at most 64 TiB",
                    v->size_offset, img->size);
    v->chunk_ratio = (u32)(((u64)v->logical_sector << 23) / v->block_size);
    if (vhdx_bat_entries(v, img->size) * 8 > v->bat_length)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The BAT, of {val} bytes, is too small for the disk",
                    v->bat_offset, v->bat_length);
    return 0;
}

static int open_metadata(struct image *img, struct err *e)
{
    struct vhdx *v = &img->u.vhdx;
    struct items all = {0};
    const u8 *p;
    int rc = find_items(img, &all, e);
    if (rc || (rc = item(img, &all, FILE_PARAMETERS, &p, e)))
        return rc;
    u32 flags = le32(p + 4);
    v->block_size = le32(p);
    v->has_parent = flags & VHDX_HAS_PARENT;
    v->leave_allocated = flags & VHDX_LEAVE_BLOCK_ALLOCATED && !v->has_parent;
    v->size_offset = all.off[VIRTUAL_DISK_SIZE];
    v->locator_offset = all.off[PARENT_LOCATOR];
    v->locator_length = all.len[PARENT_LOCATOR];
    if ((rc = item(img, &all, VIRTUAL_DISK_SIZE, &p, e)))
        return rc;
    img->size = le64(p);
    if ((rc = item(img, &all, VIRTUAL_DISK_ID, &p, e)))
        return rc;
    guid_text(p, v->disk_guid);
    if ((rc = item(img, &all, LOGICAL_SECTOR, &p, e)))
        return rc;
    v->logical_sector = le32(p);
    if ((rc = item(img, &all, PHYSICAL_SECTOR, &p, e)))
        return rc;
    v->physical_sector = le32(p);
    return check_values(img, &all, flags, e);
}

/* ---- the format ---- */

static int read_magic(struct blk *b, bool *ok, struct err *e)
{
    u8 magic[8];
    int rc = blk_read(b, 0, magic, sizeof magic, e);
    *ok = !rc && !memcmp(magic, "vhdxfile", 8);
    return rc;
}

bool vhdx_probe(struct blk *b)
{
    struct err e = {0};
    bool ok;
    read_magic(b, &ok, &e);
    return ok;
}

int vhdx_open(struct image *img, struct err *e)
{
    bool ok;
    img->u.vhdx = (struct vhdx){0};
    int rc = read_magic(img->file[0], &ok, e);
    if (!rc && !ok)
        rc = FAIL(e, ERR_PARSE_FAILED, "Image is not in VHDX format", 0, 0);
    if (rc || (rc = open_header(img, e)) || (rc = open_regions(img, e)) ||
        (rc = open_metadata(img, e)))
        return rc;
    img->unit = img->u.vhdx.block_size;
    return 0;
}
