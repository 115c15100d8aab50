/* SPDX-License-Identifier: MIT
 *
 * Format-neutral reading, by walking map(): data is read where it lies, holes are looked up in the
 * backing image, packed units are unpacked. A loop, no recursion: each piece goes down the chain by
 * itself.
 */
#include "copy.h"

static int read_packed(struct image *img, const struct extent *x, u64 voff, u8 *buf, u64 len,
                       struct err *e)
{
    if (!img->format->unpack || !img->scratch)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "Compressed data must be read, and this program has no decoder", voff, len);
    int rc = img->format->unpack(img, x, img->scratch, e);
    if (!rc)
        memcpy(buf, (u8 *)img->scratch + (voff & (img->unit - 1)), len);
    return rc;
}

/* The first piece of [voff, voff+len) that one image of the chain answers for; its length. */
static int read_piece(struct image *img, u64 voff, u8 *buf, u64 *len, struct err *e)
{
    for (; img && voff < img->size; img = img->backing) {
        struct extent x;
        int rc = img->format->map(img, voff, *len, &x, e);
        if (rc)
            return rc;
        *len = min_u64(*len, x.len);
        bool content = x.kind == EXTENT_DATA || x.kind == EXTENT_PACKED;
        if (content && img->opaque)
            return FAIL(e, ERR_LUKS_UNSUPPORTED,
                        "Data of an encrypted image must be read, which needs its key", voff, 0);
        if (content && x.slot >= img->files)
            return FAIL(e, ERR_EXTERNAL_DATA_FILE,
                        "Data of an external data file must be read, which is not yet supported",
                        voff, 0);
        if (x.kind == EXTENT_DATA)
            return blk_read(img->file[x.slot], x.off, buf, *len, e);
        if (x.kind == EXTENT_PACKED)
            return read_packed(img, &x, voff, buf, *len, e);
        if (x.kind == EXTENT_ZERO)
            break;
    }
    memset(buf, 0, *len);
    return 0;
}

int chain_read(struct image *img, u64 voff, void *buf, u64 len, struct err *e)
{
    int rc = 0;
    for (u64 done = 0, part; !rc && done < len; done += part) {
        part = len - done;
        /* An image that ends inside the range must not answer for what lies past its end. */
        for (struct image *i = img; i; i = i->backing)
            if (voff + done < i->size)
                part = min_u64(part, i->size - (voff + done));
        rc = read_piece(img, voff + done, (u8 *)buf + done, &part, e);
    }
    return rc;
}
