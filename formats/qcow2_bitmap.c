/* SPDX-License-Identifier: MIT
 *
 * See qcow2_bitmap.h. An entry is decoded first, then validated in one block; its table's entries
 * are looked at one by one, by those who follow them.
 */
#include "qcow2_bitmap.h"

bool qcow2_bitmaps_valid(const struct qcow2 *q)
{
    return qcow2_names_bitmaps(q) && q->nb_bitmaps;
}

int qcow2_bitmap_directory(const struct image *img, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    return q->nb_bitmaps > QCOW2_MAX_BITMAPS || !q->bitmap_directory_size ||
                   q->bitmap_directory_size > QCOW2_MAX_BITMAP_DIRECTORY ||
                   q->bitmap_directory_offset >= QCOW2_MAX_OFFSET
               ? FAIL(e, ERR_OVERLAY_CORRUPT,
                      "The bitmap directory of {val} bytes is larger than any, or nowhere",
                      q->bitmap_directory_offset, q->bitmap_directory_size)
               : 0;
}

u64 qcow2_bitmap_bits(u64 size, u32 granularity_bits)
{
    return div_up(size, 1ull << granularity_bits);
}

u64 qcow2_bitmap_entries(const struct qcow2 *q, u64 size, u32 granularity_bits)
{
    return div_up(qcow2_bitmap_bits(size, granularity_bits), 8ull << q->cluster_bits);
}

int qcow2_bitmap_fail(struct err *e, int rc, const struct qcow2_bitmap *b)
{
    err_name(e, b->name, sizeof b->name);
    return rc;
}

/* The first bytes of the name, and a number that tells it from others. */
static void take_name(struct qcow2_bitmap *b, const u8 *name, u32 len)
{
    u32 keep = (u32)min_u64(len, sizeof b->name - 1);
    memcpy(b->name, name, keep);
    b->name[keep] = 0;
    b->name_hash = 0xcbf29ce484222325ull;
    for (u32 i = 0; i < len; i++)
        b->name_hash = (b->name_hash ^ name[i]) * 0x100000001b3ull;
}

static int check_entry(struct image *img, const struct qcow2_bitmap *b, const u8 *head,
                       struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 max = QCOW2_MAX_BITMAP_BYTES >> q->cluster_bits;
    int rc = 0;
    if (head[QB_TYPE] != QCOW2_BITMAP_DIRTY_TRACKING)
        rc = FAIL(e, ERR_UNSUPPORTED_FEATURE, "Bitmap '{name}' is of an unknown type: {val}",
                  b->off + QB_TYPE, head[QB_TYPE]);
    else if (b->flags & ~QCOW2_BITMAP_KNOWN)
        rc = FAIL(e, ERR_UNSUPPORTED_FEATURE, "Bitmap '{name}' has unknown flags: {val:x}",
                  b->off + QB_FLAGS, b->flags);
    else if (be32(head + QB_EXTRA_DATA_SIZE))
        rc = FAIL(e, ERR_UNSUPPORTED_FEATURE, "Bitmap '{name}' has extra data, of unknown meaning",
                  b->off + QB_EXTRA_DATA_SIZE, be32(head + QB_EXTRA_DATA_SIZE));
    else if (b->granularity_bits < 9 || b->granularity_bits > 31)
        rc = FAIL(e, ERR_UNSUPPORTED_FEATURE,
                  "Bitmap '{name}' has an unsupported granularity: 2^{val}",
                  b->off + QB_GRANULARITY_BITS, b->granularity_bits);
    else if (!b->table_size || b->table_size > max)
        rc = FAIL(e, ERR_OVERLAY_CORRUPT,
                  "The table of bitmap '{name}' has an impossible size: {val} entries",
                  b->off + QB_TABLE_SIZE, b->table_size);
    else
        rc = qcow2_check_table(img, b->table_offset, b->table_size * 8ull,
                               "The table of bitmap '{name}', at {val}, is misplaced", e);
    return rc ? qcow2_bitmap_fail(e, rc, b) : 0;
}

int qcow2_bitmap_get(struct image *img, u64 at, struct qcow2_bitmap *b, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 left = q->bitmap_directory_size - min_u64(at, q->bitmap_directory_size);
    u64 end = q->bitmap_directory_offset + q->bitmap_directory_size;
    u8 head[QB_HEAD];
    const u8 *p;
    *b = (struct qcow2_bitmap){.off = q->bitmap_directory_offset + at};
    if (left < QB_HEAD)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Broken bitmap directory", b->off, left);
    int rc = window_get(&img->win, img->file[0], b->off, QB_HEAD, end, &p, e);
    if (rc)
        return rc;
    memcpy(head, p, QB_HEAD);
    b->table_offset = be64(head + QB_TABLE_OFFSET);
    b->table_size = be32(head + QB_TABLE_SIZE);
    b->flags = be32(head + QB_FLAGS);
    b->granularity_bits = head[QB_GRANULARITY_BITS];
    u32 name = be16(head + QB_NAME_SIZE);
    u64 extra = be32(head + QB_EXTRA_DATA_SIZE), len = round_up(QB_HEAD + extra + name, 8);
    if (!name || name > QCOW2_MAX_BITMAP_NAME || len > left)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Broken bitmap directory", b->off, len);
    b->len = (u32)len;
    rc = window_get(&img->win, img->file[0], b->off + QB_HEAD + extra, name, end, &p, e);
    if (rc)
        return rc;
    take_name(b, p, name);
    return check_entry(img, b, head, e);
}

int qcow2_bitmap_entry(struct image *img, const struct qcow2_bitmap *b, u64 idx, u64 *entry,
                       bool *sound, struct err *e)
{
    struct table t = {img->file[0], &img->win2, b->table_offset, b->table_size};
    struct err ignored = {0};
    int rc = table_get(&t, idx, entry, e);
    u64 off = *entry & QCOW2_OFFSET_MASK;
    bool ok = !(*entry & QCOW2_BITMAP_RESERVED) &&
              (!off || (!(*entry & QCOW2_BITMAP_ONES) &&
                        !qcow2_check_table(img, off, img->unit, "", &ignored)));
    if (sound)
        *sound = ok;
    else if (!rc && !ok)
        rc = qcow2_bitmap_fail(e,
                               FAIL(e, ERR_OVERLAY_CORRUPT,
                                    "Bitmap '{name}' has an invalid table entry: {val:x}", idx,
                                    *entry),
                               b);
    return rc;
}
