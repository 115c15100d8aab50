/* SPDX-License-Identifier: MIT
 *
 * resize: open the image, work out the new size, run the plan. The order of the checks is
 * qemu-img's (parity A.1, A.3).
 */
#include "newsize.h"
#include "op.h"

enum { COPY_MEM = 4 << 20, DRY_RUN_MEM = 48 << 20 };

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h;
    return disks_need(epoch, n, e);
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)e;
    report_undo(slot, off, crc, n);
    return 0;
}

static int insert(struct plan_host *h, u32 epoch, u8 slot, u64 off, u64 len, struct err *e)
{
    (void)h;
    return disks_insert(epoch, slot, off, len, e);
}

static int show(struct plan_host *h, u32 epoch, const struct patch *p, struct err *e)
{
    (void)h, (void)e;
    report_patch(epoch, p);
    return 0;
}

static void alive(struct plan_host *h, u64 patches)
{
    (void)h, (void)patches;
    report_progress(0, 0, 0);
}

static void set_action(instar_ResizeResult *r)
{
    static const char *const action[] = {"shrink", "noop", "grow"};
    u64 now = r->old_virtual_size, then = r->resolved_new_virtual_size;
    const char *text = action[then > now ? 2 : then == now];
    memcpy(r->action, text, strlen(text) + 1);
}

/* The image with the chain below it, as far as disks are attached. */
struct images {
    struct image img[IMAGE_FILES];
    u8 disk[IMAGE_FILES]; /* of each image: its own disk */
    unsigned cnt;
};

/* Asks the launcher for a file that image i names. */
static void ask(const struct images *all, unsigned i, instar_Role role, const char *name, u32 len,
                const char *format, instar_Outcome *out)
{
    instar_NeedFile *need = &out->need_file;
    out->has_need_file = true;
    need->slot = all->disk[i];
    need->role = role;
    need->writable = role == instar_Role_ROLE_DATA && i == 0;
    need->name.size = (pb_size_t)len;
    memcpy(need->name.bytes, name, len);
    memcpy(need->format, format, sizeof need->format);
}

/* The file that holds the guest's data of image i, if that is another one. */
static int open_data(struct images *all, unsigned i, const struct facts *f, instar_Outcome *out,
                     struct err *e)
{
    static const char raw[sizeof out->need_file.format] = "";
    if (!f->has_data_file || all->img[i].files > 1)
        return 0;
    if (!f->data_file_len)
        return FAIL(e, ERR_EXTERNAL_DATA_FILE, "'data-file' is required for this image", 0, 0);
    ask(all, i, instar_Role_ROLE_DATA, f->data_file, f->data_file_len, raw, out);
    return 0;
}

/* A resize works on the image's data file, too. Growing an overlay depends on how long its backing
 * file is, and, if the disk ends inside a cluster, on what the chain shows there. Asks for the next
 * file that is not attached yet. */
static int open_chain(struct images *all, bool grow, instar_Outcome *out, struct err *e)
{
    bool content = all->img[0].unit && all->img[0].size % all->img[0].unit;
    static struct facts facts;
    int rc = 0;
    for (unsigned i = 0; !rc && (i == 0 || content); i++) {
        struct image *img = &all->img[i];
        memset(&facts, 0, sizeof facts);
        if ((rc = img->format->facts(img, &facts, e)) || (rc = open_data(all, i, &facts, out, e)) ||
            out->has_need_file || !grow || !facts.backing_len)
            return rc;
        if (i + 1 == all->cnt) {
            ask(all, i, instar_Role_ROLE_BACKING, facts.backing, facts.backing_len,
                facts.backing_format, out);
            return 0;
        }
        img->backing = &all->img[i + 1];
    }
    return rc;
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

/* Opens every disk of the Request: the image, its backing files in order, and their data files. */
static int open_images(struct op *op, struct images *all, u8 *mem, void *scratch, struct err *e)
{
    int rc = 0;
    for (unsigned i = 0; !rc && i < op->disks; i++) {
        const instar_Disk *d = &op->request->disks[i];
        struct image *img = &all->img[all->cnt];
        if (d->role == instar_Role_ROLE_DATA) {
            img--;
            if (!all->cnt || all->disk[all->cnt - 1] != d->of || img->files > 1)
                return FAIL(e, ERR_PROTOCOL, "A data file is out of its place", i, d->of);
            img->file[img->files++] = op->disk[i];
            if (all->cnt == 1 && (rc = check_data(op->disk[i], mem + IMAGE_MEM, e)))
                return rc;
            continue;
        }
        rc = image_open(img, op->disk[i], d->format, mem + (size_t)all->cnt * IMAGE_MEM, e);
        img->scratch = scratch;
        all->disk[all->cnt++] = (u8)i;
    }
    return rc;
}

/* --shrink=unallocated: is there data in what would be cut off? */
static int check_unallocated(struct image *img, u64 new_size, struct err *e)
{
    struct extent x;
    int rc = 0;
    for (u64 voff = new_size; !rc && voff < img->size; voff += x.len) {
        rc = img->format->map(img, voff, img->size - voff, &x, e);
        if (!rc && (x.kind == EXTENT_DATA || x.kind == EXTENT_PACKED))
            rc = FAIL(e, ERR_SHRINK_BELOW_ALLOCATED,
                      "Data is allocated past the new end (first at byte {off} of the disk). "
                      "--shrink without =unallocated discards it.",
                      voff, x.len);
    }
    return rc;
}

static int resize(struct op *op, struct images *all, struct plan_host *host, void *work,
                  instar_Outcome *out, struct err *e)
{
    const instar_ResizeRequest *req = &op->request->op.resize;
    instar_ResizeResult *r = &out->result.resize;
    struct image *img = &all->img[0];
    const char *what = "";
    u64 val = 0;
    memcpy(r->target_format, img->format->name, strlen(img->format->name) + 1);
    r->probed = img->probed;
    r->old_virtual_size = img->size;
    int rc = (int)newsize(req, img->size, &r->resolved_new_virtual_size, &what, &val);
    if (rc)
        return FAIL(e, (enum err_code)rc, what, 0, val);
    r->resolved_new_virtual_size = plan_fit(img, r->resolved_new_virtual_size);
    if (req->align && r->resolved_new_virtual_size % req->align)
        return FAIL(e, ERR_INVALID_NEW_SIZE,
                    "This image's size goes by its geometry, which can express {val} bytes, but no "
                    "multiple of {off}",
                    req->align, r->resolved_new_virtual_size);
    set_action(r);
    if (r->resolved_new_virtual_size == img->size && !plan_mends(img))
        return 0;
    bool grow = r->resolved_new_virtual_size > img->size;
    if ((rc = open_chain(all, grow, out, e)) || out->has_need_file)
        return rc;
    if (!grow && req->unallocated && (rc = check_unallocated(img, r->resolved_new_virtual_size, e)))
        return rc;
    bool device = img->file[0]->device;
    if (device)
        plan_on_device(img);
    struct resize_args args = {.new_size = r->resolved_new_virtual_size,
                               .preallocation = (enum preallocation)req->preallocation,
                               .may_shorten = req->shrink,
                               .work = work,
                               .work_len = PLAN_WORK};
    if (op->request->random.size == sizeof op->request->random.bytes)
        args.random = op->request->random.bytes;
    rc = plan_resize(img, &args, host, e);
    r->rebuilt = host->repaired && !(rc && host->begun);
    if (rc)
        return rc;
    const char *warning = plan_warning(img);
    memcpy(r->warning, warning, strlen(warning) + 1);
    r->file_size_after = device ? r->file_size_before : host->length[0];
    for (u8 i = 1; i < img->files; i++)
        r->files_after[r->files_after_count++] =
            (instar_FileLength){img->file[i]->slot, host->length[i]};
    r->more = op->request->dry_run && host->more;
    r->eventual_file_size = op->request->dry_run ? host->eventual : 0;
    return 0;
}

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    static struct images all;
    const instar_Request *req = op->request;
    instar_ResizeResult *r = &out->result.resize;
    struct plan_host host = {.need = need,
                             .undo = undo,
                             .insert = insert,
                             .mem_len = COPY_MEM,
                             .dry_run = req->dry_run,
                             .show = req->dry_run ? show : NULL,
                             .alive = alive};
    if (req->which_op != instar_Request_resize_tag || !op->disks)
        return FAIL(e, ERR_PROTOCOL, "resize takes a disk and its own request", 0, op->disks);
    u8 *mem = op_alloc((size_t)op->disks * IMAGE_MEM);
    void *scratch = op_alloc(IMAGE_SCRATCH), *work = op_alloc(PLAN_WORK);
    host.mem = op_alloc(COPY_MEM);
    if (req->dry_run)
        host.scratch = op_alloc(host.scratch_len = DRY_RUN_MEM);
    out->which_result = instar_Outcome_resize_tag;
    r->file_size_before = r->file_size_after = op->disk[0]->size;
    int rc = open_images(op, &all, mem, scratch, e);
    if (!rc)
        rc = resize(op, &all, &host, work, out, e);
    r->error = (instar_Code)rc;
    return rc;
}
