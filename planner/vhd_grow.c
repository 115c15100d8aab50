/* SPDX-License-Identifier: MIT
 *
 * Growing a dynamic VHD. First what the footers do not show yet: a longer BAT (in place, or between
 * or behind all that is used, with a copy of the footer behind it), zeros past the old end; then
 * the dynamic disk header, one sector, which changes nothing for the guest; then the footer at the
 * head, which qemu and this program go by, as the commit; then the one at the end, which Hyper-V
 * goes by. In between the two may differ: either is right. No block ever moves for a grow. Sources:
 * parity D.6; planner/plan.h (P1-P11).
 */
#include "vhd_grow.h"
#include "vhd_blocks.h"
#include "vhd_footer.h"

enum { FILL_PIECE = 1 << 20, TABLE_MAX = 0x1fffffff /* entries; qemu's limit */ };

struct vhd_size vhd_size_now(const struct image *img)
{
    return (struct vhd_size){img->size, img->u.vhd.current_size, img->u.vhd.geometry};
}

u64 vhd_disk_end(const struct vhd *v, const struct vhd_size *size)
{
    u64 end = max_u64(size->size, round_up(size->current_size, VHD_SECTOR));
    u64 chs = vhd_chs_sectors(size->geometry);
    bool read = chs != VHD_CHS_MAX && !vhd_never_by_chs(v);
    return read ? max_u64(end, chs * VHD_SECTOR) : end;
}

int vhd_fill_table(const struct resize_args *a, u64 off, u64 len, struct sink *s, const char *why,
                   struct err *e)
{
    int rc = 0;
    memset(a->work, 0xff, min_u64(len, FILL_PIECE));
    for (u64 n; !rc && len; off += n, len -= n) {
        n = min_u64(len, FILL_PIECE);
        rc = plan_write(s, off, a->work, n, why, e);
    }
    return rc;
}

/* Clears the bits of a block's sectors from `first` on. */
static int clear_bits(struct image *img, u64 bitmap, u64 first, struct sink *s, struct err *e)
{
    static const char why[] = "the bits of those sectors";
    u64 end = div_up(img->unit / VHD_SECTOR, 8), byte = first / 8;
    u8 bits;
    if (first % 8) {
        int rc = blk_read(img->file[0], bitmap + byte, &bits, 1, e);
        if (rc)
            return rc;
        bits &= (u8)(0xff00 >> first % 8);
        if ((rc = plan_write(s, bitmap + byte, &bits, 1, why, e)))
            return rc;
        byte++;
    }
    return byte < end ? plan_zero(s, bitmap + byte, end - byte, why, e) : 0;
}

int vhd_zero_rest(struct image *img, u64 end, struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    u64 in = end % img->unit, off = 0;
    int rc =
        in && end / img->unit < v->max_table_entries ? vhd_block(img, end / img->unit, &off, e) : 0;
    if (rc || !off)
        return rc;
    rc = plan_zero(s, off + v->bitmap_size + in, img->unit - in,
                   "the rest of the block that the disk ends in", e);
    return rc ? rc : clear_bits(img, off, in / VHD_SECTOR, s, e);
}

struct grow {
    struct image *img;
    const struct vhd *v;
    const struct resize_args *a;
    struct sink *s;
    struct vhd_size now;
    u64 keep; /* entries of the BAT that the disk has by now */
    struct vhd_found found;
    struct vhd_grow table;
    u64 tail; /* where the file's footer will be; 0: there is none */
};

static u64 table_end(const struct grow *g)
{
    return round_up(g->table.table_offset + g->table.entries * 4, VHD_SECTOR);
}

/* The BAT in its new place: the disk's own entries, and no others. The file's last sector is a
 * footer again when that is done. */
static int move_table(struct grow *g, struct err *e)
{
    const struct vhd *v = g->v;
    u8 footer[VF_LENGTH];
    u64 end = table_end(g), at = g->table.table_offset, kept = g->keep * 4;
    bool behind = !v->tail_offset || end > v->tail_offset;
    int rc = 0;
    if (behind && end + VF_LENGTH > g->img->file[0]->size)
        rc = plan_length(g->s, end + VF_LENGTH, "room for a longer block allocation table", e);
    if (!rc && kept)
        rc = plan_copy(g->s, at, v->table_offset, kept, "the table, which becomes longer", e);
    if (!rc)
        rc = vhd_fill_table(g->a, at + kept, end - (at + kept), g->s, "entries without blocks", e);
    if (rc || !behind)
        return rc;
    g->tail = end;
    rc = vhd_footer_make(g->img, v->tail_offset, &g->now, footer, e);
    return rc ? rc : plan_write(g->s, end, footer, VF_LENGTH, "the footer as it is", e);
}

/* All that the old footers do not show: the BAT, and zeros. */
static int prepare(struct grow *g, struct err *e)
{
    const struct vhd_found *f = &g->found;
    u64 kept_end = g->v->table_offset + g->keep * 4;
    int rc = 0;
    if (g->v->tail_differs) {
        rc = vhd_footer_patch(g->img, g->v->tail_offset, g->v->tail_offset, &g->now, false, g->s,
                              "the footer was left behind by an interrupted resize", e);
        if (rc || (rc = plan_barrier(g->s, "the footers agree", e)))
            return rc;
    }
    if (g->table.action == VHD_TABLE_MOVES)
        rc = move_table(g, e);
    else if (g->table.action == VHD_TABLE_IN_PLACE)
        rc = vhd_fill_table(g->a, kept_end, table_end(g) - kept_end, g->s,
                            "more entries, without blocks", e);
    else if (f->stale_end)
        rc = vhd_fill_table(g->a, g->v->table_offset + f->stale_first * 4,
                            (f->stale_end - f->stale_first) * 4, g->s,
                            "entries past the old end of the disk", e);
    if (!rc)
        rc = vhd_zero_rest(g->img, vhd_disk_end(g->v, &g->now), g->s, e);
    return rc ? rc : plan_barrier(g->s, "what the new size will show", e);
}

/* The BAT, then the footers: in either order, for each is right whatever the other says. */
static int switch_over(struct grow *g, const struct vhd_size *to, struct err *e)
{
    int rc = 0;
    if (g->table.action != VHD_TABLE_ENOUGH &&
        ((rc = vhd_header_patch(g->img, g->table.table_offset, g->table.entries, g->s,
                                "the longer block allocation table", e)) ||
         (rc = plan_barrier(g->s, "the table is in place", e))))
        return rc;
    rc = vhd_footer_patch(g->img, 0, 0, to, true, g->s, "the new size", e);
    if (!rc && g->tail)
        rc = vhd_footer_patch(g->img, g->tail, g->v->tail_offset, to, false, g->s,
                              "the same in the footer that ends the file", e);
    return rc ? rc : plan_barrier(g->s, "the disk is larger", e);
}

int vhd_plan_grow(struct image *img, const struct resize_args *a, const struct vhd_size *to,
                  struct plan_state *state, struct sink *s, struct err *e)
{
    const struct vhd *v = &img->u.vhd;
    struct grow g = {img, v, a, s, vhd_size_now(img)};
    struct vhd_blocks blocks;
    u64 want = div_up(to->size, img->unit), size = img->file[0]->size;
    g.tail = v->tail_offset;
    g.keep = min_u64(div_up(vhd_disk_end(v, &g.now), img->unit), v->max_table_entries);
    if (want > TABLE_MAX)
        return FAIL(
            e, ERR_INVALID_NEW_SIZE,
            "Max Table Entries too large ({val}): blocks of this size cannot make up such a "
            "disk",
            0, want);
    vhd_blocks_init(&blocks, img, a);
    int rc = vhd_blocks_scan(&blocks, g.keep, &g.found, e);
    if (rc)
        return rc;
    struct vhd_grow_in in = {v->max_table_entries, want,          v->table_offset, g.found.next,
                             g.found.used_end,     v->tail_offset};
    g.table = vhd_grow_query(&in);
    if ((rc = prepare(&g, e)) || (rc = switch_over(&g, to, e)))
        return rc;
    u64 used_end = max_u64(g.found.used_end, table_end(&g));
    state->v[V_SETTLE] = true;
    state->v[V_LEAST] = a->may_shorten ? 0 : size;
    state->more = g.tail != used_end || max_u64(size, g.tail + VF_LENGTH) != used_end + VF_LENGTH;
    if (state->more)
        state->eventual = max_u64(round_up(size, VHD_SECTOR), used_end + VF_LENGTH);
    return 0;
}
