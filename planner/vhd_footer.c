/* SPDX-License-Identifier: MIT
 *
 * See vhd_footer.h.
 */
#include "vhd_footer.h"

int vhd_footer_make(struct image *img, u64 from, const struct vhd_size *size, u8 *p, struct err *e)
{
    int rc = blk_read(img->file[0], from, p, VF_LENGTH, e);
    if (rc)
        return rc;
    put_be64(p + VF_CURRENT_SIZE, size->current_size);
    p[VF_DISK_GEOMETRY] = (u8)(size->geometry.cylinders >> 8);
    p[VF_DISK_GEOMETRY + 1] = (u8)size->geometry.cylinders;
    p[VF_DISK_GEOMETRY + 2] = size->geometry.heads;
    p[VF_DISK_GEOMETRY + 3] = size->geometry.sectors;
    put_be32(p + VF_CHECKSUM, vhd_checksum(p, VF_LENGTH, VF_CHECKSUM));
    return 0;
}

int vhd_footer_patch(struct image *img, u64 off, u64 from, const struct vhd_size *size, bool commit,
                     struct sink *s, const char *why, struct err *e)
{
    enum { FIRST = VF_CURRENT_SIZE, LEN = VF_CHECKSUM + 4 - FIRST };
    u8 p[VF_LENGTH];
    int rc = vhd_footer_make(img, from, size, p, e);
    if (rc)
        return rc;
    return (commit ? plan_commit : plan_write)(s, off + FIRST, p + FIRST, LEN, why, e);
}

int vhd_header_patch(struct image *img, u64 table_offset, u64 entries, struct sink *s,
                     const char *why, struct err *e)
{
    enum { FIRST = VH_TABLE_OFFSET, LEN = VH_CHECKSUM + 4 - FIRST };
    const struct vhd *v = &img->u.vhd;
    u8 p[VH_LENGTH];
    int rc = blk_read(img->file[0], v->header_offset, p, sizeof p, e);
    if (rc || (table_offset == v->table_offset && entries == v->max_table_entries))
        return rc;
    put_be64(p + VH_TABLE_OFFSET, table_offset);
    put_be32(p + VH_MAX_TABLE_ENTRIES, (u32)entries);
    put_be32(p + VH_CHECKSUM, vhd_checksum(p, VH_LENGTH, VH_CHECKSUM));
    return plan_write(s, v->header_offset + FIRST, p + FIRST, LEN, why, e);
}
