/* SPDX-License-Identifier: MIT
 *
 * qcow2: the content of a compressed cluster. Decompression is zlib's (raw deflate) and zstd's own;
 * this file feeds them. It is one of the few pure files that need more than mem*: whoever does not
 * link it has a qcow2_format without unpack(). Source: docs/interop/qcow2.txt, "Compressed Clusters
 * Descriptor"; the stream may be followed by anything, up to the end of its last sector.
 */
#define ZSTD_STATIC_LINKING_ONLY /* ZSTD_initStaticDCtx */
#include <zstd.h>

#include "format.h"
#include "inflate.h"

enum { RAW_DEFLATE = -15, PACKED_MAX = 2 * IMAGE_UNIT_MAX /* a descriptor can span no more */ };

static bool inflate_cluster(const u8 *in, u32 in_len, u8 *out, u32 out_len, struct arena *a)
{
    u32 len;
    bool ended;
    /* Like qemu: a full cluster is enough, whether or not the stream says that it ends there. */
    return inflate_all(in, in_len, RAW_DEFLATE, out, out_len, a, &len, &ended) && len == out_len;
}

/* The guest's link leads libzstd's entries into its decoders of versions 0.5 to 0.7 here: no qcow2
 * holds such frames, and what is not linked cannot be attacked (Makefile, NO_LEGACY). */
_Noreturn void qcow2_zstd_legacy(void);
_Noreturn void qcow2_zstd_legacy(void)
{
    assert_failed(__FILE__, __LINE__, "a frame of an old zstd");
}

static bool zstd_cluster(const u8 *in, u32 in_len, u8 *out, u32 out_len, struct arena *a)
{
    if (in_len < 4 || be32(in) != 0x28b52ffd /* the magic number, little endian */)
        return false;
    size_t frame = ZSTD_findFrameCompressedSize(in, in_len);
    ZSTD_DCtx *ctx = ZSTD_initStaticDCtx(a->at, (size_t)(a->end - a->at));
    return ctx && !ZSTD_isError(frame) &&
           ZSTD_decompressDCtx(ctx, out, out_len, in, frame) == out_len;
}

int qcow2_unpack(struct image *img, const struct extent *x, void *out, struct err *e)
{
    u8 *in = (u8 *)img->scratch + IMAGE_UNIT_MAX;
    assert(x->kind == EXTENT_PACKED && img->scratch && x->packed_len <= PACKED_MAX);
    struct arena a = {in + PACKED_MAX, (u8 *)img->scratch + IMAGE_SCRATCH};
    int rc = blk_read(img->file[0], x->off, in, x->packed_len, e);
    if (rc)
        return rc;
    bool ok = img->u.qcow2.compression_type
                  ? zstd_cluster(in, x->packed_len, out, img->unit, &a)
                  : inflate_cluster(in, x->packed_len, out, img->unit, &a);
    return ok ? 0
              : FAIL(e, ERR_OVERLAY_CORRUPT,
                     "The compressed cluster at {off} cannot be decompressed", x->off,
                     x->packed_len);
}
