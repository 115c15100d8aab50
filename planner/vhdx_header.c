/* SPDX-License-Identifier: MIT
 *
 * Updating the headers of a VHDX: always the one that is not current, with the next sequence
 * number, so that there is a valid one at any instant. Reserved bytes are the current header's.
 * Source: [MS-VHDX] 2.2.2.1 "Updating the Headers".
 */
#include "vhdx_plan.h"
#include "crc32c.h"

enum { UPDATES = 16 /* more than any run makes */ };

/* Random bytes as a GUID of version 4. */
static void set_guid(u8 *to, const u8 random[16])
{
    memcpy(to, random, 16);
    to[7] = (u8)((to[7] & 0x0f) | 0x40);
    to[8] = (u8)((to[8] & 0x3f) | 0x80);
}

int vhdx_headers_begin(struct vhdx_headers *h, struct image *img, struct sink *s, u8 *bytes,
                       const u8 random[32], bool data, struct err *e)
{
    static const u8 zeros[32];
    const struct vhdx *v = &img->u.vhdx;
    u8 mixed[16];
    *h = (struct vhdx_headers){
        .s = s, .bytes = bytes, .sequence_number = v->sequence_number, .next = !v->current};
    if (v->sequence_number > UINT64_MAX - UPDATES)
        return FAIL(
            e, ERR_UNSUPPORTED_FEATURE,
            "The headers' sequence numbers ({val}) are used up: the image cannot be changed",
            vhdx_header_offset(v->current) + VXH_SEQUENCE_NUMBER, v->sequence_number);
    if (!random)
        random = zeros;
    int rc = blk_read(img->file[0], vhdx_header_offset(v->current), bytes, VHDX_SECTOR, e);
    set_guid(bytes + VXH_FILE_WRITE_GUID, random);
    if (data)
        set_guid(bytes + VXH_DATA_WRITE_GUID, random + 16);
    for (unsigned i = 0; i < 16; i++)
        mixed[i] = (u8)(random[i] ^ random[31 - i] ^ 0x5a);
    set_guid(h->log_guid, mixed);
    return rc;
}

void vhdx_headers_log(struct vhdx_headers *h, bool own)
{
    static const u8 none[16];
    memcpy(h->bytes + VXH_LOG_GUID, own ? h->log_guid : none, 16);
}

int vhdx_headers_write(struct vhdx_headers *h, bool commit, const char *why, struct err *e)
{
    u64 off = vhdx_header_offset(h->next), len = h->written < 2 ? VHDX_SECTOR : VXH_SIZE;
    put_le64(h->bytes + VXH_SEQUENCE_NUMBER, ++h->sequence_number);
    put_le32(h->bytes + VXH_CHECKSUM, 0);
    put_le32(h->bytes + VXH_CHECKSUM, crc32c(0, h->bytes, VHDX_SECTOR));
    assert(!commit || h->written >= 2);
    h->next = !h->next;
    h->written++;
    return commit ? plan_commit(h->s, off, h->bytes, len, why, e)
                  : plan_write(h->s, off, h->bytes, len, why, e);
}
