/* SPDX-License-Identifier: MIT
 *
 * resize: open the image, work out the new size, run the plan. The order of the checks is
 * qemu-img's (parity A.1, A.3).
 */
#include "images.h"
#include "newsize.h"
#include "planhost.h"

static void set_action(instar_ResizeResult *r)
{
    static const char *const action[] = {"shrink", "noop", "grow"};
    u64 now = r->old_virtual_size, then = r->resolved_new_virtual_size;
    const char *text = action[then > now ? 2 : then == now];
    memcpy(r->action, text, strlen(text) + 1);
}

/* A resize works on the image's data file, too. Growing an overlay depends on how long its backing
 * file is, and, if the disk ends inside a cluster, on what the chain shows there; with some formats
 * on what it shows past the end, too. */
static int open_chain(struct images *all, bool grow, instar_Outcome *out, struct err *e)
{
    struct image *img = &all->img[0];
    unsigned wanted = grow ? FOLLOW_DATA | FOLLOW_BACKING : FOLLOW_DATA;
    bool content = (img->unit && img->size % img->unit) || plan_chain(img);
    return content ? images_follow_chain(all, img, wanted, out, e)
                   : images_follow(all, img, wanted, out, e);
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

/* Asks for the new files that the larger image wants, if they are not there. */
static void ask_new(const struct image *img, const struct plan_files *f, instar_Outcome *out)
{
    unsigned fresh = img->parts ? img->files - 1u - img->parts : 0;
    if (fresh >= f->add)
        return;
    out->which_result = instar_Outcome_need_extents_tag;
    out->result.need_extents = (instar_NeedExtents){
        .writable = true, .create = f->add, .number = f->number, .letter = {f->letter}};
}

/* What the files are to become: those that the image still consists of, and those that it drops. */
static void tell_files(const struct image *img, const struct plan_files *f, const u64 *length,
                       instar_ResizeResult *r)
{
    for (u8 i = 1; i < img->files; i++)
        if (img->parts && i > f->keep + f->add)
            r->dropped[r->dropped_count++] = img->file[i]->slot;
        else
            r->files_after[r->files_after_count++] =
                (instar_FileLength){img->file[i]->slot, length[i]};
}

/* The size that is asked for, in bytes. A size that this image had to round up, when it was asked
 * for before, is the size that it has. */
static int wanted_size(const instar_ResizeRequest *req, struct image *img, u64 *size, struct err *e)
{
    instar_ResizeRequest again = *req;
    const char *what = "", *ignored = "";
    u64 val = 0, total, unused = 0;
    int rc = (int)newsize(req, img->size, size, &what, &val);
    again.shrink = true;
    if (rc == ERR_SHRINK_WITHOUT_FLAG && req->kind == instar_SizeKind_ABSOLUTE &&
        !newsize(&again, img->size, &total, &ignored, &unused) && total < img->size &&
        plan_fits(img, total)) {
        *size = img->size;
        return 0;
    }
    return rc ? FAIL(e, (enum err_code)rc, what, 0, val) : 0;
}

static int resize(struct op *op, struct images *all, struct planhost *host, void *work,
                  instar_Outcome *out, struct err *e)
{
    const instar_ResizeRequest *req = &op->request->op.resize;
    instar_ResizeResult *r = &out->result.resize;
    struct image *img = &all->img[0];
    u64 size = 0;
    memcpy(r->target_format, img->format->name, strlen(img->format->name) + 1);
    r->probed = img->probed;
    r->old_virtual_size = img->size;
    int rc = wanted_size(req, img, &size, e);
    if (rc)
        return rc;
    r->resolved_new_virtual_size = plan_fit(img, size);
    if (req->align && r->resolved_new_virtual_size % req->align)
        return FAIL(e, ERR_INVALID_NEW_SIZE,
                    "This image's size goes by its geometry, which can express {val} bytes, but no "
                    "multiple of {off}",
                    req->align, r->resolved_new_virtual_size);
    set_action(r);
    if (r->resolved_new_virtual_size == img->size && !plan_mends(img))
        return 0;
    bool grow = r->resolved_new_virtual_size > img->size;
    if ((rc = open_chain(all, grow, out, e)) || images_wait(out))
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
    struct plan_files files;
    if ((rc = plan_files(img, &args, &files, e)))
        return rc;
    ask_new(img, &files, out);
    if (images_wait(out))
        return 0;
    planhost_begin(host, img);
    rc = plan_resize(img, &args, &host->plan, e);
    r->rebuilt = host->plan.repaired && !(rc && host->plan.begun);
    if (rc)
        return rc;
    const char *warning = plan_warning(img);
    memcpy(r->warning, warning, strlen(warning) + 1);
    r->file_size_after = device ? r->file_size_before : host->plan.length[0];
    tell_files(img, &files, host->plan.length, r);
    r->more = op->request->dry_run && host->plan.more;
    r->eventual_file_size = op->request->dry_run ? host->plan.eventual : 0;
    return 0;
}

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    static struct images all;
    static struct planhost host;
    instar_ResizeResult *r = &out->result.resize;
    if (op->request->which_op != instar_Request_resize_tag || !op->disks)
        return FAIL(e, ERR_PROTOCOL, "resize takes a disk and its own request", 0, op->disks);
    images_alloc(&all, op);
    planhost_alloc(&host, op);
    void *work = op_alloc(PLAN_WORK);
    out->which_result = instar_Outcome_resize_tag;
    r->file_size_before = r->file_size_after = op->disk[0]->size;
    int rc = images_open(&all, op, out, e);
    if (!rc)
        rc = images_parts(&all, &all.img[0], out, e);
    if (!rc && !images_wait(out))
        rc = resize(op, &all, &host, work, out, e);
    if (!images_wait(out))
        r->error = (instar_Code)rc;
    return rc;
}
