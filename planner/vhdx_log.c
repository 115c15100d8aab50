/* SPDX-License-Identifier: MIT
 *
 * The log of a VHDX, written and replayed. A change of ours is one entry at the beginning of the
 * log, under a GUID of its own, so that nothing older can follow it.
 * Source: [MS-VHDX] 2.3 "Log".
 */
#include "vhdx_plan.h"
#include "crc32c.h"

int vhdx_batch_sector(struct vhdx_batch *b, struct image *img, u64 off, u8 **sector, struct err *e)
{
    const u8 *p;
    assert(off % VHDX_SECTOR == 0 && b->cnt < VHDX_BATCH);
    int rc = vhdx_get(img, &img->win, off, VHDX_SECTOR, off + VHDX_SECTOR, &p, e);
    if (rc)
        return rc;
    *sector = b->sectors + (size_t)b->cnt * VHDX_SECTOR;
    memcpy(*sector, p, VHDX_SECTOR);
    b->off[b->cnt++] = off;
    return 0;
}

void vhdx_batch_zero(struct vhdx_batch *b, u64 off, u64 len)
{
    if (!b->zero_open) {
        assert(b->zeros < VHDX_BATCH_ZEROS);
        b->zero[b->zeros++].off = off;
        b->zero_open = true;
    }
    b->zero[b->zeros - 1].len = off + len - b->zero[b->zeros - 1].off;
}

static void put_descriptor(u8 *d, const char *kind, u64 off)
{
    memcpy(d + VLD_SIGNATURE, kind, 4);
    put_le64(d + VLD_FILE_OFFSET, off);
    put_le64(d + VLD_SEQUENCE_NUMBER, 1);
}

/* A data sector, and its descriptor. */
static void put_sector(u8 *d, u8 *to, const u8 *sector, u64 off)
{
    put_descriptor(d, "desc", off);
    memcpy(d + VLD_LEADING_BYTES, sector, 8);
    memcpy(d + VLD_TRAILING_BYTES, sector + VLS_SEQUENCE_LOW, 4);
    memcpy(to, sector, VHDX_SECTOR);
    memcpy(to + VLS_SIGNATURE, "data", 4);
    put_le32(to + VLS_SEQUENCE_HIGH, 0);
    put_le32(to + VLS_SEQUENCE_LOW, 1);
}

int vhdx_batch_log(const struct vhdx_batch *b, const struct vhdx_headers *h, struct image *img,
                   u8 *entry, u64 file_length, struct err *e)
{
    u32 len = VHDX_SECTOR * (1 + b->cnt), descs = b->cnt + b->zeros;
    assert(VLE_SIZE + descs * VHDX_LOG_DESC <= VHDX_SECTOR && len <= img->u.vhdx.log.length);
    memset(entry, 0, VHDX_SECTOR);
    memcpy(entry + VLE_SIGNATURE, "loge", 4);
    put_le32(entry + VLE_ENTRY_LENGTH, len);
    put_le64(entry + VLE_SEQUENCE_NUMBER, 1);
    put_le32(entry + VLE_DESCRIPTOR_COUNT, descs);
    memcpy(entry + VLE_LOG_GUID, h->log_guid, 16);
    put_le64(entry + VLE_FLUSHED_FILE_OFFSET, round_down(file_length, VHDX_MIB));
    put_le64(entry + VLE_LAST_FILE_OFFSET, round_down(file_length, VHDX_MIB));
    for (unsigned i = 0; i < b->cnt; i++)
        put_sector(entry + VLE_SIZE + i * VHDX_LOG_DESC, entry + VHDX_SECTOR * (1 + i),
                   b->sectors + (size_t)i * VHDX_SECTOR, b->off[i]);
    for (unsigned i = 0; i < b->zeros; i++) {
        u8 *d = entry + VLE_SIZE + (b->cnt + i) * VHDX_LOG_DESC;
        put_descriptor(d, "zero", b->zero[i].off);
        put_le64(d + VLD_ZERO_LENGTH, b->zero[i].len);
    }
    put_le32(entry + VLE_CHECKSUM, crc32c(0, entry, len));
    return plan_write(h->s, img->u.vhdx.log.offset, entry, len,
                      "the log entry that holds every change of metadata", e);
}

int vhdx_batch_apply(const struct vhdx_batch *b, struct sink *s, struct err *e)
{
    int rc = 0;
    for (unsigned i = 0; !rc && i < b->cnt; i++)
        rc = plan_write(s, b->off[i], b->sectors + (size_t)i * VHDX_SECTOR, VHDX_SECTOR,
                        "the log entry, where it belongs", e);
    for (unsigned i = 0; !rc && i < b->zeros; i++)
        rc =
            plan_zero(s, b->zero[i].off, b->zero[i].len, "BAT entries past the end of the disk", e);
    return rc;
}

static int replay_changes(struct image *img, u8 *sector, struct sink *s, struct err *e)
{
    static const char why[] = "the log is replayed";
    struct blk *b = img->file[0];
    struct vhdx_log_place place = {0};
    for (;;) {
        struct vhdx_log_change c;
        bool more;
        int rc = vhdx_log_next(b, &img->win2, &img->u.vhdx.log, &place, &c, &more, e);
        if (rc || !more)
            return rc;
        if (!c.zero && !(rc = vhdx_log_sector(b, &c, sector, e)))
            rc = plan_write(s, c.off, sector, VHDX_SECTOR, why, e);
        else if (!rc && c.len)
            rc = plan_zero(s, c.off, c.len, why, e);
        if (rc)
            return rc;
    }
}

int vhdx_replay(struct image *img, const u8 random[32], const struct vhdx_work *w, struct sink *s,
                struct err *e)
{
    struct vhdx_headers h;
    u64 size = img->file[0]->size;
    u64 end = max_u64(round_up(size, VHDX_MIB), img->u.vhdx.log.last_file_offset);
    int rc = vhdx_headers_begin(&h, img, s, w->header, random, false, e);
    if (!rc && end > size)
        rc = plan_length(s, end, "as long as the log says", e);
    if (rc ||
        (rc = vhdx_headers_write(&h, false, "a header for this session, before any change", e)) ||
        (rc = plan_barrier(s, "one header is valid at any instant", e)) ||
        (rc = vhdx_headers_write(&h, false, "the other header", e)) ||
        (rc = replay_changes(img, w->sectors, s, e)) ||
        (rc = plan_barrier(s, "what was in the log is in its place", e)))
        return rc;
    vhdx_headers_log(&h, false);
    if ((rc = vhdx_headers_write(&h, true, "the log is empty", e)) ||
        (rc = plan_barrier(s, "one header is valid at any instant", e)) ||
        (rc = vhdx_headers_write(&h, false, "the other header", e)))
        return rc;
    return plan_barrier(s, "the image is as if it had been closed", e);
}
