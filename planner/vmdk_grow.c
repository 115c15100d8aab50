/* SPDX-License-Identifier: MIT
 *
 * Growing a sparse VMDK. Behind all that is used, new grain tables for both directories, all of
 * them: qemu takes a directory's entry that is 0 for one that it need not write. Then the
 * directories' new entries, in place, where the old header's capacity hides them, or in copies that
 * it does not name. And what lies past the old end, in the last grain and the last table, is
 * cleared (P11). Sources: parity F.8; planner/plan.h (P1-P11).
 */
#include "vmdk_plan.h"

struct vmdk_grow vmdk_grow_query(const struct vmdk_grow_in *in)
{
    u64 room = vmdk_directory_span(in->entries) / 4, at = round_up(in->end, in->grain);
    /* an entry that the old header shows cannot change in two directories at once */
    bool shown = in->have < in->entries && in->redundant;
    struct vmdk_grow g = {.action = in->want > room || shown ? VMDK_GD_GROW_RELOCATE
                                                             : VMDK_METADATA_ONLY};
    if (in->want == in->have)
        return g;
    for (int c = in->redundant; c >= 0; c--) { /* the redundant one first, as everyone does */
        if (g.action == VMDK_GD_GROW_RELOCATE) {
            g.dir[c] = at;
            at += vmdk_directory_span(in->want);
        }
        g.tables[c] = at;
        at += (in->want - in->have) * in->span;
    }
    g.length = round_up(at, in->grain);
    return g;
}

struct grow {
    struct image *img;
    const struct vmdk *v;
    const struct resize_args *a;
    struct sink *s;
    struct vmdk_grow_in in;
    struct vmdk_grow *g;
    u64 size;    /* of the file, as it was */
    u64 hide;    /* grains past the old end and up to this one are zeroed ones; 0: none */
    bool absent; /* the disk ends inside what a table should serve that is not there */
};

/* Directory c: its new entries. */
static int fill_directory(const struct grow *g, int c, struct err *e)
{
    u64 old = c ? g->v->rgd_offset : g->v->gd_offset, dir = g->g->dir[c] ? g->g->dir[c] : old;
    u8 *buf = g->a->work;
    int rc = 0;
    if (g->g->dir[c] && g->in.have)
        rc = plan_copy(g->s, dir, old, g->in.have * 4, "a grain directory's longer copy", e);
    for (u64 idx = g->in.have, n; !rc && idx < g->in.want; idx += n) {
        n = min_u64(g->in.want - idx, VMDK_PIECE / 4);
        for (u64 i = 0; i < n; i++) {
            u64 at = g->g->tables[c] + (idx + i - g->in.have) * g->in.span;
            put_le32(buf + i * 4, (u32)(at / VMDK_SECTOR));
        }
        rc = plan_write(g->s, dir + idx * 4, buf, n * 4, "entries for the new grain tables", e);
    }
    return rc;
}

/* New tables of directory c, as far as they are not all zero. */
static int fill_tables(const struct grow *g, int c, struct err *e)
{
    u64 grains = vmdk_grains(g->img), max = VMDK_PIECE / g->in.span;
    u64 end = min_u64(g->in.want, div_up(g->hide, g->v->gtes));
    u8 *buf = g->a->work;
    int rc = 0;
    for (u64 idx = g->in.have, n; !rc && idx < end; idx += n) {
        n = min_u64(end - idx, max);
        vmdk_zeroed_tables(g->v, idx, n, grains, g->hide, buf);
        rc = plan_write(g->s, g->g->tables[c] + (idx - g->in.have) * g->in.span, buf,
                        n * g->in.span, "zeroed grains, which hide the parent's", e);
    }
    return rc;
}

/* The rest of the last table, from entry `first` on. */
static int end_table(const struct grow *g, const struct vmdk_run *r, u64 first, struct err *e)
{
    u8 *buf = g->a->work;
    u64 at = first * 4;
    int rc = 0;
    if (g->hide <= vmdk_grains(g->img))
        return vmdk_clear_entries(g->img, r, 0, first, g->s, e);
    vmdk_zeroed_tables(g->v, r->idx, 1, vmdk_grains(g->img), g->hide, buf);
    for (int c = 0; !rc && c <= (int)g->in.redundant; c++)
        rc = plan_write(g->s, r->off[c] + at, buf + at, g->v->gtes * 4ull - at,
                        "zeroed grains, which hide the parent's", e);
    return rc;
}

/* What is past the old end, in its last table and its last grain. */
static int clear_rest(const struct grow *g, struct err *e)
{
    struct image *img = g->img;
    u64 in = vmdk_grains(img) % g->v->gtes;
    struct vmdk_run r = {.idx = g->in.entries - 1};
    struct extent x;
    bool more;
    int rc = 0;
    if (in && !g->absent && !(rc = vmdk_run_next(img, g->a, g->in.entries, &r, &more, e)))
        rc = end_table(g, &r, in, e);
    if (rc || img->size % img->unit == 0 || (rc = vmdk_format.map(img, img->size - 1, 1, &x, e)) ||
        x.kind != EXTENT_DATA)
        return rc;
    u64 end = min_u64(x.off + 1 + img->unit - img->size % img->unit, g->size);
    if (x.off + 1 < end)
        rc = plan_zero(g->s, x.off + 1, end - x.off - 1,
                       "the rest of the grain that the disk ends in", e);
    return rc;
}

static int check_size(const struct grow *g, struct err *e)
{
    u64 sectors = g->g->length / VMDK_SECTOR;
    if (g->in.want > VMDK_ENTRIES_MAX)
        return FAIL(e, ERR_INVALID_NEW_SIZE,
                    "L1 size too big: grains of this size cannot make up such a disk", 0,
                    g->in.want);
    if (sectors > UINT32_MAX)
        return FAIL(e, ERR_INVALID_NEW_SIZE,
                    "The tables of such a disk would pass the file's first 2 TiB, which is all "
                    "that they can name",
                    0, g->g->length);
    return 0;
}

int vmdk_grow_prepare(struct image *img, const struct resize_args *a, u64 new_size, bool again,
                      struct vmdk_grow *out, struct sink *s, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    struct grow g = {
        img, v, a, s, {.entries = v->entries, .have = v->entries}, out, .size = img->file[0]->size};
    struct vmdk_survey found;
    u64 last = 0;
    int rc = vmdk_child_hides(img, new_size, &g.hide, e);
    if (!rc)
        rc = vmdk_survey_once(img, a, false, again, &found, e);
    if (!rc && vmdk_grains(img) % v->gtes) {
        rc = vmdk_table(img, v->gd_offset, v->entries - 1, &last, e);
        g.absent = !last;
    }
    if (rc)
        return rc;
    g.in.have -= g.absent;
    g.in.want = vmdk_entries(v, new_size / img->unit);
    g.in.end = max_u64(found.used_end, g.size);
    g.in.grain = img->unit;
    g.in.span = vmdk_table_span(v);
    g.in.redundant = v->rgd_offset != 0;
    *out = vmdk_grow_query(&g.in);
    if ((rc = check_size(&g, e)))
        return rc;
    if (out->length && (rc = plan_length(s, out->length, "room for grain tables, all zero", e)))
        return rc;
    if (g.absent && (rc = plan_barrier(s, "the last table is there before it is named", e)))
        return rc;
    rc = clear_rest(&g, e);
    for (int c = g.in.redundant; !rc && out->length && c >= 0; c--)
        if (!(rc = fill_tables(&g, c, e)))
            rc = fill_directory(&g, c, e);
    return rc ? rc : plan_barrier(s, "the grain tables are in place", e);
}

int vmdk_grow_new(struct image *like, const struct resize_args *a, u64 sectors, struct sink *s,
                  struct err *e)
{
    const struct vmdk *v = &like->u.vmdk;
    struct vmdk_grow out;
    struct grow g = {like, v, a, s, {0}, &out};
    u8 p[VMH_LENGTH];
    g.in.want = vmdk_entries(v, div_up(sectors * VMDK_SECTOR, like->unit));
    g.in.end = max_u64(VMH_LENGTH, v->descriptor_offset + v->descriptor_size);
    g.in.grain = like->unit;
    g.in.span = vmdk_table_span(v);
    g.in.redundant = v->rgd_offset != 0;
    out = vmdk_grow_query(&g.in);
    int rc = blk_read(like->file[0], 0, p, sizeof p, e);
    if (rc)
        return rc;
    put_le64(p + VMH_CAPACITY, sectors);
    put_le64(p + VMH_GD_OFFSET, out.dir[0] / VMDK_SECTOR);
    put_le64(p + VMH_RGD_OFFSET, out.dir[1] / VMDK_SECTOR);
    put_le64(p + VMH_OVERHEAD, out.length / VMDK_SECTOR);
    p[VMH_UNCLEAN_SHUTDOWN] = 0;
    rc = plan_length(s, out.length, "a new extent, its grain tables all zero", e);
    if (!rc)
        rc = plan_write(s, 0, p, sizeof p, "the new extent's header", e);
    for (int c = g.in.redundant; !rc && c >= 0; c--)
        rc = fill_directory(&g, c, e);
    return rc;
}
