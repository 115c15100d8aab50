/* SPDX-License-Identifier: MIT
 *
 * The arithmetic of VHD sizes. Source: the specification's "CHS Calculation"; parity D.3, D.4.
 */
#include "vhd_size.h"

enum { CYLINDER_MAX = 16 * 255 * VHD_SECTOR }; /* bytes: what a geometry may round off */

static const struct vhd_geometry largest = {65535, 16, 255};

static bool created_by(const struct vhd *v, const char *const *names)
{
    for (; *names; names++)
        if (!memcmp(v->creator, *names, 4))
            return true;
    return false;
}

/* The smallest disk of at least so many sectors whose geometry says its size. */
static struct vhd_size by_geometry(u64 sectors)
{
    struct vhd_geometry g = vhd_chs(sectors);
    for (u64 i = 1; vhd_chs_sectors(g) < min_u64(sectors, VHD_CHS_MAX); i++)
        g = vhd_chs(sectors + i);
    if (vhd_chs_sectors(g) != VHD_CHS_MAX)
        sectors = vhd_chs_sectors(g);
    return (struct vhd_size){sectors * VHD_SECTOR, sectors * VHD_SECTOR, g};
}

static struct vhd_size exact(u64 sectors, struct vhd_geometry g)
{
    return (struct vhd_size){sectors * VHD_SECTOR, sectors * VHD_SECTOR, g};
}

bool vhd_never_by_chs(const struct vhd *v)
{
    static const char *const current[] = {"win ", "qem2", "d2v ", "tap\0", "CTXS", NULL};
    return created_by(v, current);
}

struct vhd_size vhd_fit(const struct vhd *v, u64 now, u64 want)
{
    static const char *const geometry[] = {"qemu", "vpc ", NULL};
    u64 sectors = div_up(want, VHD_SECTOR);
    struct vhd_geometry g = vhd_chs(sectors);
    struct vhd_size s;
    if (created_by(v, geometry)) {
        if (want > now && v->current_size < now + CYLINDER_MAX)
            sectors = max_u64(sectors, div_up(v->current_size, VHD_SECTOR));
        s = by_geometry(sectors);
    } else {
        bool all = vhd_never_by_chs(v);
        if (all ? vhd_chs_sectors(v->geometry) == VHD_CHS_MAX : vhd_chs_sectors(g) != sectors)
            g = largest;
        s = exact(sectors, g);
    }
    if (want == now || (want < now && s.size >= now))
        s = (struct vhd_size){now, v->current_size, v->geometry};
    return s;
}

struct vhd_grow vhd_grow_query(const struct vhd_grow_in *in)
{
    struct vhd_grow out = {VHD_TABLE_ENOUGH, in->entries, in->table_offset};
    if (in->want <= in->entries)
        return out;
    u64 len = round_up(in->want * 4, VHD_SECTOR);
    out.entries = in->want;
    out.action = VHD_TABLE_IN_PLACE;
    if (in->table_offset + len <= in->next)
        return out;
    out.action = VHD_TABLE_MOVES;
    out.table_offset = round_up(in->used_end, VHD_SECTOR);
    if (in->tail && out.table_offset + len > in->tail)
        out.table_offset = in->tail + VF_LENGTH;
    return out;
}
