/* SPDX-License-Identifier: MIT
 *
 * Buckets as long as a block with its bitmap: in a sound image no two blocks begin in one, and a
 * block can only overlap those that begin in the buckets beside its own.
 */
#include "vhd_blocks.h"

enum { PIECE = 1 << 20 };

void vhd_blocks_init(struct vhd_blocks *b, struct image *img, const struct resize_args *a)
{
    assert(a->work_len > 2 * PIECE);
    *b = (struct vhd_blocks){.img = img,
                             .buf = a->work,
                             .starts = (u32 *)((u8 *)a->work + PIECE),
                             .cap = (a->work_len - PIECE) / 4};
    /* an entry names no sector behind that, however long the file is */
    u64 end = min_u64(img->u.vhd.data_end, (u64)VHD_UNUSED * VHD_SECTOR);
    b->buckets = end / vhd_block_span(&img->u.vhd) + 1;
    b->cap = min_u64(b->cap, b->buckets);
}

bool vhd_blocks_whole(const struct vhd_blocks *b)
{
    return b->cap == b->buckets;
}

/* The piece of the BAT that begins with entry idx: *cnt entries at b->buf. */
static int read_piece(struct vhd_blocks *b, u64 idx, u64 *cnt, struct err *e)
{
    const struct vhd *v = &b->img->u.vhd;
    *cnt = min_u64(v->max_table_entries - idx, PIECE / 4);
    return blk_read(b->img->file[0], v->table_offset + idx * 4, b->buf, *cnt * 4, e);
}

/* The first entry from i on that is in use. Most are not: sixteen are looked at at once. */
static u64 next_used(const struct vhd_blocks *b, u64 i, u64 cnt)
{
    for (; i < cnt; i++) {
        for (u64 all = UINT64_MAX, word; i + 16 <= cnt; i += 16) {
            for (u64 k = 0; k < 64; k += 8) {
                memcpy(&word, b->buf + i * 4 + k, 8);
                all &= word;
            }
            if (all != UINT64_MAX)
                break;
        }
        if (i < cnt && be32(b->buf + i * 4) != VHD_UNUSED)
            break;
    }
    return i;
}

static u64 span_sectors(const struct vhd_blocks *b)
{
    return vhd_block_span(&b->img->u.vhd) / VHD_SECTOR;
}

/* Enters the block into the buckets [first, first + cap) that are in memory. */
static int enter(struct vhd_blocks *b, u64 first, u32 sector, struct err *e)
{
    u64 span = span_sectors(b), bucket = sector / span, i = bucket - first;
    if (bucket < first || i >= b->cap)
        return 0;
    const u32 *s = b->starts;
    if (s[i] || (i && s[i - 1] && s[i - 1] + span > sector) ||
        (i + 1 < b->cap && s[i + 1] && sector + span > s[i + 1]))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Two blocks overlap at {off}", (u64)sector * VHD_SECTOR,
                    sector);
    b->starts[i] = sector;
    return 0;
}

static void note(struct vhd_blocks *b, u64 keep, u64 idx, u64 off, struct vhd_found *f)
{
    const struct vhd *v = &b->img->u.vhd;
    if (off > v->table_offset)
        f->next = min_u64(f->next, off);
    b->top = max_u64(b->top, off / vhd_block_span(v));
    if (idx < keep) {
        f->blocks_end = max_u64(f->blocks_end, off + vhd_block_span(v));
        return;
    }
    if (!f->stale_end)
        f->stale_first = idx;
    f->stale_end = idx + 1;
}

static int scan_window(struct vhd_blocks *b, u64 first, u64 keep, struct vhd_found *f,
                       struct err *e)
{
    u64 entries = b->img->u.vhd.max_table_entries, cnt;
    memset(b->starts, 0, b->cap * sizeof *b->starts);
    for (u64 idx = 0; idx < entries; idx += cnt) {
        int rc = read_piece(b, idx, &cnt, e);
        if (rc)
            return rc;
        for (u64 i = 0; (i = next_used(b, i, cnt)) < cnt; i++) {
            u32 entry = be32(b->buf + i * 4);
            u64 off;
            if ((rc = vhd_check_block(b->img, entry, &off, e)) || (rc = enter(b, first, entry, e)))
                return rc;
            note(b, keep, idx + i, off, f);
        }
    }
    return 0;
}

int vhd_blocks_scan(struct vhd_blocks *b, u64 keep, struct vhd_found *f, struct err *e)
{
    const struct vhd *v = &b->img->u.vhd;
    int rc = 0;
    *f = (struct vhd_found){.blocks_end = v->header_offset + VH_LENGTH, .next = v->data_end};
    if (v->header_offset > v->table_offset)
        f->next = min_u64(f->next, v->header_offset);
    b->top = 0;
    u64 first = 0, step = vhd_blocks_whole(b) ? b->cap : b->cap - 1; /* windows share a bucket */
    for (; !rc && first <= b->top; first += step) { /* which the first window's scan finds */
        f->stale_first = f->stale_end = 0;
        rc = scan_window(b, first, keep, f, e);
    }
    f->used_end = max_u64(f->blocks_end, vhd_table_end(v));
    return rc;
}

/* The end of what [off, off+len) meets last: *off is moved behind it. False: it meets nothing. */
static bool step_over(const struct vhd_blocks *b, u64 *off, u64 len)
{
    const struct vhd *v = &b->img->u.vhd;
    const u64 meta[3][2] = {{0, VF_LENGTH},
                            {v->header_offset, VH_LENGTH},
                            {v->table_offset, vhd_table_end(v) - v->table_offset}};
    u64 span = vhd_block_span(v);
    for (int i = 0; i < 3; i++)
        if (ranges_overlap(*off, len, meta[i][0], meta[i][1])) {
            *off = meta[i][0] + meta[i][1];
            return true;
        }
    u64 low = *off / span, high = min_u64((*off + len - 1) / span, b->cap - 1);
    for (u64 i = high + 1; i-- > (low ? low - 1 : 0);) {
        u64 at = (u64)b->starts[i] * VHD_SECTOR;
        if (at && ranges_overlap(*off, len, at, span)) {
            *off = at + span;
            return true;
        }
    }
    return false;
}

u64 vhd_blocks_gap(const struct vhd_blocks *b, u64 from, u64 len)
{
    assert(vhd_blocks_whole(b));
    while (step_over(b, &from, len))
        ;
    return from;
}

/* Which BAT entry names each block that moves: the bucket of each tells its number. */
static int find_owners(struct vhd_blocks *b, struct vhd_move *m, u64 moves, struct err *e)
{
    u64 entries = b->img->u.vhd.max_table_entries, cnt, lowest = m[moves - 1].from / VHD_SECTOR;
    for (u64 idx = 0; idx < entries; idx += cnt) {
        int rc = read_piece(b, idx, &cnt, e);
        if (rc)
            return rc;
        for (u64 i = 0; (i = next_used(b, i, cnt)) < cnt; i++) {
            u32 entry = be32(b->buf + i * 4);
            if (entry < lowest || entry / span_sectors(b) >= b->cap)
                continue;
            u32 k = b->starts[entry / span_sectors(b)];
            if (k >= moves || m[k].from != (u64)entry * VHD_SECTOR)
                return plan_changed(entry, 0, e);
            m[k].idx = idx + i;
        }
    }
    return 0;
}

int vhd_blocks_moves(struct vhd_blocks *b, struct vhd_move *m, u64 *cnt, u64 *end, struct err *e)
{
    u64 span = vhd_block_span(&b->img->u.vhd), gap = 0;
    *cnt = *end = 0;
    for (u64 i = b->top + 1; i-- > 0;) {
        u64 from = (u64)b->starts[i] * VHD_SECTOR;
        if (!from)
            continue;
        gap = vhd_blocks_gap(b, gap, span);
        if (*cnt == VHD_MOVES || gap >= from) {
            *end = from + span; /* this one stays */
            break;
        }
        m[*cnt] = (struct vhd_move){0, from, gap};
        ++*cnt;
        gap += span;
    }
    if (!*cnt)
        return 0;
    *end = max_u64(*end, m[*cnt - 1].to + span);
    for (u64 k = 0; k < *cnt; k++)
        b->starts[m[k].from / span] = (u32)k;
    return find_owners(b, m, *cnt, e);
}
