/* SPDX-License-Identifier: MIT
 *
 * raw: the file is the disk. Whatever no other format claims is raw, so open() refuses what is
 * known not to be: images of formats that are not supported yet. Whoever means raw says so (`-f
 * raw`).
 */
#include "format.h"

/* Formats that are not supported yet must not be taken for raw: their first bytes. */
struct magic {
    u32 off, len;
    const char *bytes, *name;
};

static const struct magic foreign[] = {
    {0, 8, "QFI\xfb\0\0\0\1", "qcow"}, /* version 1: the others have been probed */
    {0, 4, "QED", "QED"},              /* with its NUL */
    {64, 4, "\x7f\x10\xda\xbe", "VDI"},
    {0, 16, "WithoutFreeSpace", "Parallels"},
    {0, 16, "WithouFreSpacExt", "Parallels"},
    {0, 6, "LUKS\xba\xbe", "LUKS"},
};

static int refuse_foreign(struct blk *b, struct err *e)
{
    u8 head[512];
    int rc = blk_read(b, 0, head, sizeof head, e);
    for (unsigned i = 0; !rc && i < sizeof foreign / sizeof foreign[0]; i++) {
        const struct magic *m = &foreign[i];
        if (memcmp(head + m->off, m->bytes, m->len))
            continue;
        rc = FAIL(e, ERR_UNSUPPORTED_FORMAT,
                  "The file is a {name} image: that format is not yet supported (-f raw treats it "
                  "as bare data)",
                  m->off, 0);
        err_name(e, m->name, strlen(m->name));
    }
    return rc;
}

static bool raw_probe(struct blk *b)
{
    (void)b;
    return true;
}

static int raw_open(struct image *img, struct err *e)
{
    img->size = img->file[0]->size;
    img->unit = 0;
    return img->probed ? refuse_foreign(img->file[0], e) : 0;
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
