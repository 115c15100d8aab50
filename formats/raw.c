/* SPDX-License-Identifier: MIT
 *
 * raw: the file is the disk. Whatever no other format claims is raw, so open() refuses what only
 * looks like it: a file that ends in a VHD footer is a fixed VHD (parity D.5), and treating it as
 * raw would misplace that footer. Whoever means raw says so (`-f raw`).
 */
#include "format.h"

static bool raw_probe(struct blk *b)
{
    (void)b;
    return true;
}

static int raw_open(struct image *img, struct err *e)
{
    struct blk *b = img->file[0];
    u8 footer[512];
    img->size = b->size;
    img->unit = 0;
    if (!img->probed || b->size < sizeof footer)
        return 0;
    int rc = blk_read(b, b->size - sizeof footer, footer, sizeof footer, e);
    if (!rc && !memcmp(footer, "conectix", 8))
        rc = FAIL(e, ERR_UNSUPPORTED_FORMAT,
                  "The file ends in a VHD footer: fixed VHD images are not yet supported (-f raw "
                  "treats the footer as data)",
                  b->size - sizeof footer, 0);
    return rc;
}

static int raw_map(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e)
{
    (void)e;
    *x = (struct extent){EXTENT_DATA, voff, min_u64(max, img->size - voff), 0, voff, 0};
    return 0;
}

static int raw_facts(struct image *img, struct facts *f, struct err *e)
{
    (void)img, (void)f, (void)e;
    return 0;
}

const struct format raw_format = {"raw", raw_probe, raw_open, raw_map, NULL, raw_facts};
