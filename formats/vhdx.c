/* SPDX-License-Identifier: MIT
 *
 * Opening a VHDX: the header that is current, the log if it is dirty, both region tables. Each is
 * validated in one visible block before it is used; what a specification calls required and this
 * program does not know is refused, what is optional is left alone. Then vhdx_metadata.c.
 * Source: [MS-VHDX] 2.2 "Header Section"; parity E.
 */
#include "format.h"
#include "crc32c.h"

static const u8 bat_guid[16] = {0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
                                0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08};
static const u8 metadata_guid[16] = {0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
                                     0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e};

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

void vhdx_guid_text(const u8 g[16], char *to)
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
    vhdx_guid_text(p + VXH_FILE_WRITE_GUID, v->file_guid);
    vhdx_guid_text(p + VXH_DATA_WRITE_GUID, v->data_guid);
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
        (rc = vhdx_open_metadata(img, e)))
        return rc;
    img->unit = img->u.vhdx.block_size;
    return 0;
}
