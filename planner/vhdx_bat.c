/* SPDX-License-Identifier: MIT
 *
 * The BAT of a VHDX when the disk changes its size: what each entry becomes, in place or in a new
 * region. The entry of a payload block does not depend on the size; those of sector bitmap blocks
 * lie between them.
 * Source: [MS-VHDX] 2.5 "BAT".
 */
#include "vhdx_plan.h"

void vhdx_bat_change(const struct vhdx *v, u64 old_size, u64 new_size, struct vhdx_bat_change *c)
{
    *c = (struct vhdx_bat_change){.old_blocks = vhdx_blocks(v, old_size),
                                  .new_blocks = vhdx_blocks(v, new_size),
                                  .old_entries = vhdx_bat_entries(v, old_size),
                                  .new_entries = vhdx_bat_entries(v, new_size)};
}

u64 vhdx_bat_first(const struct vhdx *v, const struct vhdx_bat_change *c)
{
    u64 blocks = min_u64(c->old_blocks, c->new_blocks);
    return min_u64(vhdx_bat_index(v, blocks), min_u64(c->old_entries, c->new_entries));
}

/* What entry idx becomes. */
static u64 new_entry(const struct vhdx *v, const struct vhdx_bat_change *c, u64 idx, u64 old)
{
    u64 chunk = idx / (v->chunk_ratio + 1ull), block = idx - chunk;
    if (vhdx_is_bitmap(v, idx))
        return idx < min_u64(c->old_entries, c->new_entries) ? old : 0;
    if (block >= c->new_blocks)
        return 0;
    if (block < c->old_blocks)
        return old;
    if (c->fill == VHDX_FILL_PRESENT)
        return (c->payload + (block - c->old_blocks) * v->block_size) | VHDX_FULLY_PRESENT;
    return c->fill == VHDX_FILL_ZERO ? VHDX_ZERO : 0;
}

/* Entries [idx, idx + cnt) into `out`, what they were replaced by what they become. */
static void fill(const struct vhdx *v, const struct vhdx_bat_change *c, u64 first, u64 idx, u64 cnt,
                 u8 *out)
{
    u64 end = max_u64(c->old_entries, c->new_entries);
    for (u64 i = max_u64(idx, first); i < min_u64(idx + cnt, end); i++)
        put_le64(out + (i - idx) * 8, new_entry(v, c, i, le64(out + (i - idx) * 8)));
}

/* One sector of the BAT, which holds entries from idx on. */
static int one_sector(struct image *img, struct window *win, const struct vhdx_bat_change *c,
                      u64 idx, struct vhdx_batch *b, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 off = v->bat_offset + idx * 8, first = vhdx_bat_first(v, c);
    u64 end = v->bat_offset + round_up(max_u64(c->old_entries, c->new_entries) * 8, VHDX_SECTOR);
    const u8 *p;
    u8 *out = b->sectors + (size_t)VHDX_BATCH * VHDX_SECTOR; /* one more than a batch holds */
    int rc = vhdx_get(img, win, off, VHDX_SECTOR, end, &p, e);
    if (rc || (c->fill == VHDX_FILL_ABSENT && all_zero(p, VHDX_SECTOR)))
        return rc;
    memcpy(out, p, VHDX_SECTOR);
    fill(v, c, first, idx, VHDX_SECTOR / 8, out);
    bool changed = memcmp(out, p, VHDX_SECTOR), zero = all_zero(out, VHDX_SECTOR);
    if (zero && changed)
        vhdx_batch_zero(b, off, VHDX_SECTOR);
    if (zero)
        return 0;
    b->zero_open = false; /* no range goes across this sector */
    u8 *sector;
    if (changed && !(rc = vhdx_batch_sector(b, img, off, &sector, e)))
        memcpy(sector, out, VHDX_SECTOR);
    return rc;
}

int vhdx_bat_in_place(struct image *img, const struct vhdx_work *w, const struct vhdx_bat_change *c,
                      struct vhdx_batch *b, struct err *e)
{
    struct window win;
    u64 end = max_u64(c->old_entries, c->new_entries);
    int rc = 0;
    window_init(&win, w->window, VHDX_WINDOW_BYTES);
    for (u64 i = round_down(vhdx_bat_first(&img->u.vhdx, c), VHDX_SECTOR / 8); !rc && i < end;
         i += VHDX_SECTOR / 8)
        rc = one_sector(img, &win, c, i, b, e);
    return rc;
}

int vhdx_bat_move(struct image *img, const struct vhdx_work *w, const struct vhdx_bat_change *c,
                  u64 off, struct sink *s, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    u64 first = vhdx_bat_first(v, c), max = VHDX_CHUNK_BYTES / 8;
    int rc = first
                 ? plan_copy(s, off, v->bat_offset, first * 8, "the BAT, in a region of its own", e)
                 : 0;
    for (u64 i = first, n; !rc && c->fill != VHDX_FILL_ABSENT && i < c->new_entries; i += n) {
        n = min_u64(c->new_entries - i, max);
        memset(w->bitmap, 0, n * 8);
        for (u64 k = i; k < min_u64(i + n, c->old_entries); k++) {
            u64 entry;
            if ((rc = vhdx_bat_get(img, &img->win, k, &entry, e)))
                return rc;
            put_le64(w->bitmap + (k - i) * 8, entry);
        }
        fill(v, c, first, i, n, w->bitmap);
        rc = plan_write(s, off + i * 8, w->bitmap, n * 8, "the entries of new blocks", e);
    }
    return rc;
}
