/* SPDX-License-Identifier: MIT
 *
 * Shrinking a VHD. The footers come first, the one at the head as the commit; then what they no
 * longer show is dropped: BAT entries, and the rest of the last block. The epochs that follow fill
 * gaps in the file with the blocks nearest to its end: a copy, then the entry. At last the footer
 * is written where the last structure ends, and the file is cut.
 *
 * qemu puts a new block behind the last structure, and takes for zero what lies there: old bytes
 * would become its guest's. So what is dropped at the end of the file is zeroed before it is, and
 * what has moved away at once, for the case that the run is killed.
 */
#include "vhd_shrink.h"
#include "vhd_blocks.h"
#include "vhd_footer.h"
#include "vhd_grow.h"

/* Head and tail, durable; in between either is right, for nothing has been dropped yet. */
static int say_size(struct image *img, const struct vhd_size *to, struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    bool differs = to->size != img->size;
    int rc = 0;
    if (!differs && !v->tail_differs)
        return 0;
    if (differs)
        rc = vhd_footer_patch(img, 0, 0, to, true, s, "the new size", e);
    if (!rc && v->tail_offset)
        rc = vhd_footer_patch(img, v->tail_offset, v->tail_offset, to, false, s,
                              "the same in the footer that ends the file", e);
    return rc ? rc : plan_barrier(s, "both footers say so", e);
}

/* [off, end) reads zero from now on, but for metadata in it; nothing else there is in use. */
static int clear(struct image *img, u64 off, u64 end, struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    const u64 header[] = {v->header_offset, v->header_offset + VH_LENGTH}, none[] = {end, end};
    const u64 table[] = {v->table_offset, vhd_table_end(v)};
    bool in_order = v->header_offset < v->table_offset;
    const u64 *meta[] = {in_order ? header : table, in_order ? table : header, none};
    int rc = 0;
    for (int i = 0; !rc && i < 3; i++) {
        u64 to = min_u64(meta[i][0], end);
        if (off < to)
            rc = plan_clear(s, off, to - off, "nothing of the disk lies there any more", e);
        off = max_u64(off, meta[i][1]);
    }
    return rc ? rc : plan_barrier(s, "a new block there would read zero", e);
}

/* Is there nothing to mend? */
static bool settled(const struct image *img, const struct vhd_found *f, bool may_shorten)
{
    const struct vhd *v = &img->u.vhd;
    bool at_end = v->tail_offset == f->used_end || (!may_shorten && v->tail_offset > f->used_end);
    return at_end && !v->tail_differs && !f->stale_end;
}

int vhd_plan_shrink(struct image *img, const struct resize_args *a, const struct vhd_size *to,
                    struct plan_state *state, struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    struct vhd_blocks blocks;
    struct vhd_found found;
    u64 end = vhd_disk_end(v, to), keep = min_u64(div_up(end, img->unit), v->max_table_entries);
    vhd_blocks_init(&blocks, img, a);
    int rc = vhd_blocks_scan(&blocks, keep, &found, e);
    if (!rc && to->size == img->size && settled(img, &found, a->may_shorten))
        return plan_barrier(s, "the disk has that size", e);
    if (rc || (rc = say_size(img, to, s, e)) ||
        (rc = clear(img, found.used_end, v->data_end, s, e)) ||
        (rc = vhd_header_patch(img, v->table_offset, keep, s, "the shorter block allocation table",
                               e)) ||
        (rc = vhd_zero_rest(img, end, s, e)))
        return rc;
    if (found.stale_end)
        rc = vhd_fill_table(a, v->table_offset + found.stale_first * 4,
                            (found.stale_end - found.stale_first) * 4, s,
                            "entries past the end of the disk", e);
    state->v[V_SETTLE] = true;
    state->v[V_COMPACT] = to->size != img->size;
    state->v[V_LEAST] = a->may_shorten ? 0 : img->file[0]->size;
    state->more = true;
    if (!v->tail_offset)
        state->eventual = round_up(img->file[0]->size, VHD_SECTOR) + VF_LENGTH;
    return rc ? rc : plan_barrier(s, "what is past the end is dropped", e);
}

/* ---- settling ---- */

/* `end`: where the last block ends then. */
static int move_blocks(struct image *img, const struct vhd_move *m, u64 cnt, u64 end,
                       struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    int rc = 0;
    for (u64 i = 0; !rc && i < cnt; i++)
        rc = plan_copy(s, m[i].to, m[i].from, vhd_block_span(v), "a block moves into a gap", e);
    if (!rc)
        rc = plan_barrier(s, "the copies are durable", e);
    for (u64 i = 0; !rc && i < cnt; i++) {
        u8 entry[4];
        put_be32(entry, (u32)(m[i].to / VHD_SECTOR));
        rc = plan_write(s, v->table_offset + m[i].idx * 4, entry, 4, "where the block is now", e);
    }
    if (rc || (rc = plan_barrier(s, "nothing refers to the old places", e)))
        return rc;
    return clear(img, end, m[0].from + vhd_block_span(v), s, e);
}

/* `end`: where the last structure ends then. */
static int move_table(struct image *img, const struct resize_args *a, u64 to, u64 end,
                      struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    u64 len = v->max_table_entries * 4ull, pad = vhd_table_end(v) - v->table_offset - len;
    int rc = plan_copy(s, to, v->table_offset, len, "the table moves into a gap", e);
    if (rc || (rc = vhd_fill_table(a, to + len, pad, s, "its padding", e)) ||
        (rc = plan_barrier(s, "the copy is durable", e)) ||
        (rc = vhd_header_patch(img, to, v->max_table_entries, s, "where the table is now", e)) ||
        (rc = plan_barrier(s, "nothing refers to the old place", e)) ||
        (rc = plan_clear(s, end, vhd_table_end(v) - end, "where the table was", e)))
        return rc;
    return plan_barrier(s, "a new block there would read zero", e);
}

/* One epoch of moves towards the head of the file; *moved: there was something to move. */
static int compact(struct image *img, const struct resize_args *a, struct vhd_blocks *b,
                   const struct vhd_found *f, bool *moved, struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    u64 cnt, end, len = vhd_table_end(v) - v->table_offset;
    /* The list lies at the end of the memory, past the buckets. */
    struct vhd_move *m = (struct vhd_move *)((u8 *)a->work + a->work_len) - VHD_MOVES;
    *moved = vhd_blocks_whole(b) && (u8 *)(b->starts + b->cap) <= (u8 *)m;
    if (!*moved)
        return 0;
    int rc = vhd_blocks_moves(b, m, &cnt, &end, e);
    if (rc || cnt)
        return rc ? rc : move_blocks(img, m, cnt, end, s, e);
    u64 gap = len && vhd_table_end(v) == f->used_end ? vhd_blocks_gap(b, 0, len) : UINT64_MAX;
    *moved = gap < v->table_offset;
    return *moved ? move_table(img, a, gap, max_u64(f->blocks_end, gap + len), s, e) : 0;
}

static int end_file(struct image *img, u64 end, struct sink *s, struct err *e)
{
    struct vhd_size now = vhd_size_now(img);
    u64 size = img->file[0]->size;
    u8 footer[VF_LENGTH];
    int rc = end + VF_LENGTH > size ? plan_length(s, end + VF_LENGTH, "room for the footer", e) : 0;
    if (rc || (rc = vhd_footer_make(img, img->u.vhd.tail_offset, &now, footer, e)) ||
        (rc = plan_write(s, end, footer, VF_LENGTH, "the footer, behind all that is used", e)) ||
        (rc = plan_barrier(s, "the footer is in place", e)) || end + VF_LENGTH >= size)
        return rc;
    rc = plan_length(s, end + VF_LENGTH, "the file ends with the footer", e);
    return rc ? rc : plan_barrier(s, "done", e);
}

int vhd_plan_settle(struct image *img, const struct resize_args *a, struct plan_state *state,
                    struct sink *s, struct err *e)
{
    struct vhd_blocks blocks;
    struct vhd_found found;
    vhd_blocks_init(&blocks, img, a);
    int rc = vhd_blocks_scan(&blocks, img->u.vhd.max_table_entries, &found, e);
    if (!rc && state->v[V_COMPACT]) {
        rc = compact(img, a, &blocks, &found, &state->more, s, e);
        if (state->more)
            return rc;
    }
    u64 least = round_up(max_u64(state->v[V_LEAST], VF_LENGTH), VHD_SECTOR) - VF_LENGTH;
    return rc ? rc : end_file(img, max_u64(found.used_end, least), s, e);
}
