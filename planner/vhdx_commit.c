/* SPDX-License-Identifier: MIT
 *
 * The steps that every change of a VHDX goes through; vhdx_plan.h has the order and why it is safe.
 * Everything is read and worked out before the first patch.
 */
#include "vhdx_plan.h"
#include "crc32c.h"

/* The 8 bytes of VirtualDiskSize, which may lie across two sectors. */
static int put_size(struct vhdx_plan *p, struct err *e)
{
    u64 at = p->img->u.vhdx.size_offset, sector_off = UINT64_MAX;
    u8 value[8], *sector = NULL;
    put_le64(value, p->a->new_size);
    for (unsigned i = 0; i < 8; i++) {
        if (round_down(at + i, VHDX_SECTOR) != sector_off) {
            sector_off = round_down(at + i, VHDX_SECTOR);
            int rc = vhdx_batch_sector(&p->batch, p->img, sector_off, &sector, e);
            if (rc)
                return rc;
        }
        sector[at + i - sector_off] = value[i];
    }
    return 0;
}

/* The region table as it must become. */
static int make_table(struct vhdx_plan *p, struct err *e)
{
    const struct vhdx *v = &p->img->u.vhdx;
    u64 off = vhdx_region_table_offset(!v->region_ok[0]);
    u8 *t = p->work.table, *entry = t + VR_ENTRIES + (size_t)v->bat_entry * VHDX_ENTRY_SIZE;
    for (u32 i = 0; i < VHDX_TABLE_SIZE; i += VHDX_SECTOR) {
        const u8 *from;
        int rc =
            vhdx_get(p->img, &p->img->win, off + i, VHDX_SECTOR, off + VHDX_TABLE_SIZE, &from, e);
        if (rc)
            return rc;
        memcpy(t + i, from, VHDX_SECTOR);
    }
    if (p->new_bat) {
        put_le64(entry + VRE_FILE_OFFSET, p->new_bat);
        put_le32(entry + VRE_LENGTH, (u32)p->new_bat_length);
    }
    put_le32(t + VR_CHECKSUM, 0);
    put_le32(t + VR_CHECKSUM, crc32c(0, t, VHDX_TABLE_SIZE));
    return 0;
}

static int put_tables(struct vhdx_plan *p, struct err *e)
{
    int rc = make_table(p, e);
    for (u32 i = 0; !rc && i < 2 * VHDX_TABLE_SIZE; i += VHDX_SECTOR) {
        u64 off = VHDX_REGION_TABLE_1 + i; /* the second follows the first */
        const u8 *want = p->work.table + i % VHDX_TABLE_SIZE, *now;
        u8 *sector;
        rc = vhdx_get(p->img, &p->img->win, off, VHDX_SECTOR, off + VHDX_SECTOR, &now, e);
        if (!rc && memcmp(now, want, VHDX_SECTOR) &&
            !(rc = vhdx_batch_sector(&p->batch, p->img, off, &sector, e)))
            memcpy(sector, want, VHDX_SECTOR);
    }
    return rc;
}

int vhdx_metadata(struct vhdx_plan *p, struct err *e)
{
    const struct vhdx *v = &p->img->u.vhdx;
    int rc = put_size(p, e);
    if (!rc && (p->new_bat || !v->region_ok[0] || !v->region_ok[1]))
        rc = put_tables(p, e);
    return rc;
}

int vhdx_tail(struct vhdx_plan *p, u64 size, struct err *e)
{
    const struct vhdx *v = &p->img->u.vhdx;
    u64 in = size % v->block_size, entry, file = p->img->file[0]->size;
    if (!in)
        return 0;
    int rc = vhdx_bat_get(p->img, &p->img->win, vhdx_bat_index(v, size / v->block_size), &entry, e);
    if (rc || (entry & VHDX_BAT_STATE) < VHDX_FULLY_PRESENT)
        return rc;
    u64 off = entry & VHDX_BAT_OFFSET, end = min_u64(off + v->block_size, file);
    if (off + in < end) {
        p->zero_off = off + in;
        p->zero_len = end - p->zero_off;
    }
    return 0;
}

int vhdx_zero_tail(struct vhdx_plan *p, struct err *e)
{
    return p->zero_len ? plan_zero(p->s, p->zero_off, p->zero_len,
                                   "bytes of the last block that are past the end of the disk", e)
                       : 0;
}

int vhdx_begin(struct vhdx_plan *p, struct err *e)
{
    int rc = 0;
    if (p->length > p->img->file[0]->size)
        rc = plan_length(p->s, p->length, "room for all that the new disk has in the file", e);
    if (rc ||
        (rc = vhdx_headers_write(&p->headers, false,
                                 "new GUIDs in one header, before any other change", e)) ||
        (rc = plan_barrier(p->s, "one header is valid at any instant", e)))
        return rc;
    return vhdx_headers_write(&p->headers, false, "the other header", e);
}

int vhdx_commit(struct vhdx_plan *p, struct err *e)
{
    int rc = vhdx_batch_log(&p->batch, &p->headers, p->img, p->work.entry, p->length, e);
    if (rc || (rc = plan_barrier(p->s, "all that the log entry relies on is in the file", e)))
        return rc;
    vhdx_headers_log(&p->headers, true);
    if ((rc = vhdx_headers_write(&p->headers, true,
                                 "a header names the log: who opens the image now, replays it",
                                 e)) ||
        (rc = plan_barrier(p->s, "the new size is durable", e)))
        return rc;
    return vhdx_headers_write(&p->headers, false, "the other header names the log", e);
}

int vhdx_end(struct vhdx_plan *p, struct err *e)
{
    int rc = vhdx_batch_apply(&p->batch, p->s, e);
    if (rc || (rc = plan_barrier(p->s, "what the log holds is in its place", e)))
        return rc;
    vhdx_headers_log(&p->headers, false);
    if ((rc = vhdx_headers_write(&p->headers, false, "the log is empty", e)) ||
        (rc = plan_barrier(p->s, "one header is valid at any instant", e)))
        return rc;
    return vhdx_headers_write(&p->headers, false, "the other header: the log is empty", e);
}
