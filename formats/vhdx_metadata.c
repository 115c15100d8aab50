/* SPDX-License-Identifier: MIT
 *
 * The metadata region of a VHDX: its table, the items in it that say what the disk is like, and
 * whether these values go together.
 * Source: [MS-VHDX] 2.6 "Metadata Region"; parity E.
 */
#include "format.h"

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

int vhdx_open_metadata(struct image *img, struct err *e)
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
    vhdx_guid_text(p, v->disk_guid);
    if ((rc = item(img, &all, LOGICAL_SECTOR, &p, e)))
        return rc;
    v->logical_sector = le32(p);
    if ((rc = item(img, &all, PHYSICAL_SECTOR, &p, e)))
        return rc;
    v->physical_sector = le32(p);
    return check_values(img, &all, flags, e);
}
