/* SPDX-License-Identifier: MIT
 *
 * See images.h. Disks come in the order in which they were asked for: whatever names a disk stands
 * before it.
 */
#include "images.h"

void images_alloc(struct images *all, const struct op *op)
{
    *all = (struct images){.request = op->request};
    all->mem = op_alloc(((size_t)op->disks + 1) * IMAGE_MEM);
    all->scratch = op_alloc(IMAGE_SCRATCH);
}

struct image *images_on(struct images *all, u32 disk)
{
    for (unsigned i = 0; i < all->cnt; i++)
        if (all->disk[i] == disk)
            return &all->img[i];
    return NULL;
}

/* What is about to be written must be plain data: the name came out of an image, and a hostile one
 * may name somebody else's. */
static int check_data(struct blk *b, u8 *mem, struct err *e)
{
    struct image img;
    struct err ignored = {0};
    return image_open(&img, b, NULL, mem, &ignored) || img.format != &raw_format
               ? FAIL(e, ERR_EXTERNAL_DATA_FILE,
                      "The external data file is an image of its own, and is not written to", 0, 0)
               : 0;
}

static int add_data(struct images *all, struct blk *b, u32 of, struct err *e)
{
    struct image *img = images_on(all, of);
    if (!img || img->files > 1)
        return FAIL(e, ERR_PROTOCOL, "A data file is out of its place", b->slot, of);
    img->file[img->files++] = b;
    return of ? 0 : check_data(b, all->mem + (size_t)all->cnt * IMAGE_MEM, e);
}

static int add_image(struct images *all, struct blk *b, const char *format, struct err *e)
{
    struct image *img = &all->img[all->cnt];
    struct err ignored = {0};
    bool lenient = all->lenient && all->cnt;
    int rc =
        image_open(img, b, format, all->mem + (size_t)all->cnt * IMAGE_MEM, lenient ? &ignored : e);
    img->scratch = all->scratch;
    all->disk[all->cnt++] = b->slot;
    if (!rc || !lenient)
        return rc;
    img->format = NULL;
    return 0;
}

/* Nor may an extent that is about to be written be an image by itself: a flat one is plain data,
 * and one with a header has no descriptor, by which the format tells what cannot be opened alone.
 */
static int check_extents(struct images *all, struct image *img, struct err *e)
{
    static struct image_part part;
    u8 *mem = all->mem + (size_t)all->cnt * IMAGE_MEM;
    for (u8 i = 0; i < img->parts; i++) {
        struct image alone;
        struct err why = {0};
        bool more;
        int rc = img->format->part(img, i, &part, &more, e);
        if (rc)
            return rc;
        rc = image_open(&alone, img->file[1 + i], NULL, mem, &why);
        bool good = part.unit ? rc == ERR_UNSUPPORTED_SUBFORMAT && alone.format == img->format
                              : !rc && alone.format == &raw_format;
        if (!good) {
            rc = FAIL(e, ERR_POLICY_REFUSED,
                      "Extent {off}, '{name}', is an image of its own, and is not written to",
                      i + 1u, 0);
            err_name(e, part.name, part.name_len);
            return rc;
        }
    }
    return 0;
}

/* An extent, or a new file that may become one. */
static int add_extent(struct images *all, struct blk *b, const instar_Disk *d, struct err *e)
{
    struct image *img = images_on(all, d->of);
    if (!img || img->files > IMAGE_FILES - 1 || (image_lacks(img) && d->name[0]))
        return FAIL(e, ERR_PROTOCOL, "An extent is out of its place", b->slot, d->of);
    bool lacked = image_lacks(img);
    img->file_name[img->files] = d->name[0] ? d->name : NULL;
    img->file[img->files++] = b;
    if (!lacked || image_lacks(img))
        return 0;
    int rc = image_reopen(img, e);
    bool written =
        !d->of && all->request->which_op == instar_Request_resize_tag && img->format->part && !rc;
    return written ? check_extents(all, img, e) : rc;
}

int images_open(struct images *all, struct op *op, instar_Outcome *out, struct err *e)
{
    int rc = 0;
    for (unsigned i = 0; !rc && i < op->disks; i++) {
        const instar_Disk *d = &op->request->disks[i];
        if (d->role == instar_Role_ROLE_DATA)
            rc = add_data(all, op->disk[i], d->of, e);
        else if (d->role == instar_Role_ROLE_EXTENT)
            rc = add_extent(all, op->disk[i], d, e);
        else
            rc = add_image(all, op->disk[i], d->format, e);
        out->error.disk = rc ? i : 0;
    }
    return rc;
}

/* ---- what images name ---- */

/* Asks the launcher for a file that the image on `disk` names. */
static void ask(u8 disk, instar_Role role, const char *name, u32 len, const char *format,
                instar_Outcome *out)
{
    instar_NeedFile *need = &out->need_file;
    out->has_need_file = true;
    need->slot = disk;
    need->role = role;
    need->writable = role == instar_Role_ROLE_DATA && disk == 0;
    need->name.size = (pb_size_t)len;
    memcpy(need->name.bytes, name, len);
    memcpy(need->format, format, sizeof need->format);
}

int images_parts(struct images *all, struct image *img, instar_Outcome *out, struct err *e)
{
    static struct image_part part;
    instar_NeedExtents *need = &out->result.need_extents;
    u8 disk = all->disk[img - all->img];
    if (!image_lacks(img))
        return 0;
    pb_size_t op = all->request->which_op;
    bool changes = op == instar_Request_resize_tag || op == instar_Request_rebase_tag;
    *need = (instar_NeedExtents){.slot = disk, .writable = disk == 0 && changes};
    for (unsigned i = 0; i < img->parts; i++) {
        bool more;
        int rc = img->format->part(img, i, &part, &more, e);
        if (rc)
            return rc;
        assert(more && i < sizeof need->names / sizeof need->names[0]);
        need->names[i].size = (pb_size_t)part.name_len;
        memcpy(need->names[i].bytes, part.name, part.name_len);
    }
    need->names_count = img->parts;
    out->which_result = instar_Outcome_need_extents_tag;
    return 0;
}

int images_follow(struct images *all, struct image *img, unsigned wanted, instar_Outcome *out,
                  struct err *e)
{
    static const char raw[sizeof out->need_file.format] = "";
    static struct facts f;
    u8 disk = all->disk[img - all->img];
    const instar_Disk *d = &all->request->disks[disk];
    memset(&f, 0, sizeof f);
    img->backing = NULL;
    int rc = img->format && (wanted & FOLLOW_DATA) ? images_parts(all, img, out, e) : 0;
    if (rc || images_wait(out) || (img->format && (rc = img->format->facts(img, &f, e))))
        return rc;
    if ((wanted & FOLLOW_DATA) && f.has_data_file && img->files == 1) {
        if (!f.data_file_len)
            return FAIL(e, ERR_EXTERNAL_DATA_FILE, "'data-file' is required for this image", 0, 0);
        ask(disk, instar_Role_ROLE_DATA, f.data_file, f.data_file_len, raw, out);
        return 0;
    }
    if ((wanted & FOLLOW_BACKING) && f.parent_lost && img != all->img && !all->lenient) {
        out->error.disk = disk;
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "It is a differencing disk, and its parent cannot be read", 0, disk);
    }
    if (!(wanted & FOLLOW_BACKING) || !f.backing_len || d->lost)
        return 0;
    img->backing = d->backing ? images_on(all, d->backing) : NULL;
    if (!img->backing)
        ask(disk, instar_Role_ROLE_BACKING, f.backing, f.backing_len, f.backing_format, out);
    return 0;
}

int images_follow_chain(struct images *all, struct image *img, unsigned wanted, instar_Outcome *out,
                        struct err *e)
{
    int rc = 0;
    for (unsigned i = 0; !rc && img && !images_wait(out) && i < all->cnt; i++) {
        rc = images_follow(all, img, wanted, out, e);
        img = img->backing;
    }
    return rc;
}
