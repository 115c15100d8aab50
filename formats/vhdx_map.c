/* SPDX-License-Identifier: MIT
 *
 * Where a VHDX keeps its blocks: BAT entries, sector bitmaps, map(); and what info shows. Every
 * entry is checked by itself when it is followed; that no two name the same place, is what a
 * planner has to see to before it writes.
 * Source: [MS-VHDX] 2.4 "Blocks", 2.5 "BAT", 2.6.2.6 "Parent Locator".
 */
#include "format.h"

u64 vhdx_blocks(const struct vhdx *v, u64 size)
{
    return div_up(size, v->block_size);
}

u64 vhdx_bat_entries(const struct vhdx *v, u64 size)
{
    u64 blocks = vhdx_blocks(v, size);
    if (v->has_parent)
        return div_up(blocks, v->chunk_ratio) * (v->chunk_ratio + 1ull);
    return blocks ? blocks + (blocks - 1) / v->chunk_ratio : 0;
}

u64 vhdx_bat_index(const struct vhdx *v, u64 block)
{
    return block + block / v->chunk_ratio;
}

bool vhdx_is_bitmap(const struct vhdx *v, u64 idx)
{
    return idx % (v->chunk_ratio + 1ull) == v->chunk_ratio;
}

int vhdx_bat_get(struct image *img, struct window *w, u64 idx, u64 *entry, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    const u8 *p;
    assert(idx < v->bat_length / 8);
    int rc = vhdx_get(img, w, v->bat_offset + idx * 8, 8, v->bat_offset + v->bat_length, &p, e);
    if (!rc)
        *entry = le64(p);
    return rc;
}

/* Bytes of a block that belong to the disk: the last block may be cut short by the end of the disk,
 * and qemu lets the file end there. */
static u64 used_bytes(const struct image *img, u64 idx)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 voff = (idx - idx / (v->chunk_ratio + 1ull)) * v->block_size;
    return vhdx_is_bitmap(v, idx) || voff >= img->size ? VHDX_MIB
                                                       : min_u64(v->block_size, img->size - voff);
}

int vhdx_bat_check(const struct image *img, u64 idx, u64 entry, u64 *len, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 at = v->bat_offset + idx * 8, off = entry & VHDX_BAT_OFFSET, state = entry & VHDX_BAT_STATE;
    bool bitmap = vhdx_is_bitmap(v, idx),
         known = state <= VHDX_UNMAPPED || state == VHDX_FULLY_PRESENT;
    *len = 0;
    if (bitmap && !v->has_parent)
        return 0; /* unused; qemu up to 7.2 may have left anything there */
    if (bitmap ? state != VHDX_NOT_PRESENT && state != VHDX_FULLY_PRESENT
               : !known && !(state == VHDX_PARTIALLY_PRESENT && v->has_parent))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "No block of this image can be in state {val}", at,
                    state);
    if (entry & VHDX_BAT_RESERVED)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A BAT entry has reserved bits ({val:x})", at, entry);
    if (state < VHDX_FULLY_PRESENT)
        return 0;
    u64 end, file = max_u64(img->file[0]->size, v->log.dirty ? v->log.last_file_offset : 0);
    if (off < VHDX_MIB || !add_fits(off, used_bytes(img, idx), &end) || end > file ||
        off > (u64)INT64_MAX - v->block_size)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "A block cannot lie at {val}: that is outside of the file", at, off);
    *len = bitmap ? VHDX_MIB : v->block_size;
    return 0;
}

/* The run of equal bits in the sector bitmap from voff on: present here, or to be found in the
 * parent. */
static int map_partial(struct image *img, u64 block, struct extent *x, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 chunk = block / v->chunk_ratio, idx = (chunk + 1) * (v->chunk_ratio + 1ull) - 1, entry, len;
    int rc = vhdx_bat_get(img, &img->win, idx, &entry, e);
    if (rc || (rc = vhdx_bat_check(img, idx, entry, &len, e)))
        return rc;
    if (!len)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "A block is present in part, without a sector bitmap",
                    v->bat_offset + idx * 8, block);
    u64 first = x->voff / v->logical_sector, end = div_up(x->voff + x->len, v->logical_sector);
    bool here = false;
    for (u64 sector = first; sector < end; sector++) {
        u64 bit = sector & ((1u << 23) - 1), map = entry & VHDX_BAT_OFFSET;
        const u8 *p;
        if ((rc = vhdx_get(img, &img->win, map + bit / 8, 1, map + VHDX_MIB, &p, e)))
            return rc;
        bool set = *p >> bit % 8 & 1;
        if (sector > first && set != here) {
            x->len = sector * v->logical_sector - x->voff;
            break;
        }
        here = set;
    }
    x->kind = here ? EXTENT_DATA : EXTENT_HOLE;
    return 0;
}

static int vhdx_map(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 block = voff / v->block_size, in = voff % v->block_size, idx = vhdx_bat_index(v, block);
    u64 entry, len;
    int rc = vhdx_bat_get(img, &img->win, idx, &entry, e);
    if (rc || (rc = vhdx_bat_check(img, idx, entry, &len, e)))
        return rc;
    u64 left = min_u64(v->block_size - in, img->size - voff);
    *x = (struct extent){EXTENT_ZERO, voff, min_u64(max, left), 0, 0, 0};
    if (len)
        x->off = (entry & VHDX_BAT_OFFSET) + in;
    if ((entry & VHDX_BAT_STATE) == VHDX_FULLY_PRESENT)
        x->kind = EXTENT_DATA;
    else if ((entry & VHDX_BAT_STATE) == VHDX_PARTIALLY_PRESENT)
        rc = map_partial(img, block, x, e);
    else if ((entry & VHDX_BAT_STATE) == VHDX_NOT_PRESENT && v->has_parent)
        x->kind = EXTENT_HOLE;
    return rc;
}

/* ---- info ---- */

enum { LOCATOR_HEAD = 20, LOCATOR_ENTRY = 12, TEXT = 63 };

/* UTF-16 at `off` of the locator, as printable ASCII, cut to what fits. */
static int locator_text(struct image *img, u64 off, u32 bytes, char *to, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 end = v->locator_offset + v->locator_length;
    u32 cnt = off > v->locator_length || bytes > v->locator_length - off ? 0 : bytes / 2;
    if (cnt > TEXT)
        cnt = TEXT;
    for (u32 i = 0; i < cnt; i++) {
        const u8 *p;
        int rc = vhdx_get(img, &img->win, v->locator_offset + off + 2ull * i, 2, end, &p, e);
        if (rc)
            return rc;
        u16 c = le16(p);
        to[i] = c >= ' ' && c < 127 ? (char)c : '?';
    }
    to[cnt] = 0;
    return 0;
}

static bool is(const char *a, const char *b)
{
    return strlen(a) == strlen(b) && !memcmp(a, b, strlen(b));
}

/* Where the locator says that the parent is: the relative path if there is one. */
static int find_parent(struct image *img, struct err *e)
{
    struct vhdx *v = &img->u.vhdx;
    u64 end = v->locator_offset + v->locator_length;
    const u8 *p;
    if (v->locator_length < LOCATOR_HEAD)
        return 0;
    int rc = vhdx_get(img, &img->win, v->locator_offset, LOCATOR_HEAD, end, &p, e);
    if (rc)
        return rc;
    u32 cnt = le16(p + 18);
    for (u32 i = 0; i < cnt && LOCATOR_HEAD + (i + 1) * LOCATOR_ENTRY <= v->locator_length; i++) {
        char key[TEXT + 1];
        if ((rc = vhdx_get(img, &img->win, v->locator_offset + LOCATOR_HEAD + i * LOCATOR_ENTRY,
                           LOCATOR_ENTRY, end, &p, e)))
            return rc;
        u32 key_at = le32(p), value_at = le32(p + 4), key_len = le16(p + 8), len = le16(p + 10);
        if ((rc = locator_text(img, key_at, key_len, key, e)))
            return rc;
        bool relative = is(key, "relative_path");
        if ((relative || is(key, "absolute_win32_path")) &&
            (rc = locator_text(img, value_at, len, v->parent, e)))
            return rc;
        if (relative)
            return 0;
    }
    return 0;
}

static int vhdx_facts(struct image *img, struct facts *f, struct err *e)
{
    struct vhdx *v = &img->u.vhdx;
    f->dirty = v->log.dirty;
    f->parent_lost = v->has_parent;
    facts_text(f, "subformat",
               v->has_parent        ? "differencing"
               : v->leave_allocated ? "fixed"
                                    : "dynamic");
    facts_text(f, "log", v->log.dirty ? "to be replayed before the next write" : "empty");
    facts_number(f, "block size", v->block_size);
    facts_number(f, "logical sector size", v->logical_sector);
    facts_number(f, "physical sector size", v->physical_sector);
    facts_text(f, "file write guid", v->file_guid);
    facts_text(f, "data write guid", v->data_guid);
    facts_text(f, "virtual disk id", v->disk_guid);
    int rc = v->has_parent ? find_parent(img, e) : 0;
    if (v->parent[0])
        facts_text(f, "parent", v->parent);
    return rc;
}

const struct format vhdx_format = {"vhdx", vhdx_probe, vhdx_open, vhdx_map, NULL, vhdx_facts};
