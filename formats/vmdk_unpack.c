/* SPDX-License-Identifier: MIT
 *
 * VMDK: the content of a streamOptimized image's grain, a zlib stream behind its marker. Whoever
 * does not link this file has a vmdk_format without unpack(). Source: "Virtual Disk Format 5.0",
 * "Stream-Optimized Compressed Sparse Extents"; RFC 1950.
 *
 * A grain holds as many bytes as it is large; the last may stop where the disk does. Nothing past
 * the end of the stream is looked at.
 */
#include "format.h"
#include "inflate.h"

enum { ZLIB_STREAM = 15, PACKED_MAX = 2 * IMAGE_UNIT_MAX /* map() lets nothing longer through */ };

int vmdk_unpack(struct image *img, const struct extent *x, void *out, struct err *e)
{
    u8 *in = (u8 *)img->scratch + IMAGE_UNIT_MAX;
    u64 grain = x->voff / img->unit * img->unit;
    u32 need = (u32)min_u64(img->unit, img->size - grain), len = 0;
    bool ended = false;
    assert(x->kind == EXTENT_PACKED && img->scratch && x->packed_len <= PACKED_MAX);
    struct arena a = {in + PACKED_MAX, (u8 *)img->scratch + IMAGE_SCRATCH};
    int rc = blk_read(img->file[x->slot], x->off, in, x->packed_len, e);
    if (rc)
        return rc;
    if (!inflate_all(in, x->packed_len, ZLIB_STREAM, out, img->unit, &a, &len, &ended) || !ended ||
        len < need)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The grain at {off} cannot be decompressed", x->off,
                    x->packed_len);
    memset((u8 *)out + len, 0, img->unit - len);
    return 0;
}
