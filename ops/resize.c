/* SPDX-License-Identifier: MIT
 *
 * resize: open the image, work out the new size, run the plan. The order of the checks is
 * qemu-img's (parity A.1, A.3).
 */
#include "newsize.h"
#include "op.h"

enum { COPY_MEM = 4 << 20 };

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h;
    return disks_need(epoch, n, e);
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
    unsigned cnt;
};

/* Growing an overlay depends on how long its backing file is, and, if the disk ends inside a
 * cluster, on what the chain shows there. Asks for the next file of the chain that is not attached
 * yet. */
static int open_chain(struct images *all, instar_Outcome *out, struct err *e)
{
    bool content = all->img[0].unit && all->img[0].size % all->img[0].unit;
    static struct facts facts;
    int rc = 0;
    for (unsigned i = 0; !rc && (i == 0 || content); i++) {
        struct image *img = &all->img[i];
        memset(&facts, 0, sizeof facts);
        if ((rc = img->format->facts(img, &facts, e)) || !facts.backing_len)
            return rc;
        if (i + 1 == all->cnt) {
            instar_NeedFile *need = &out->need_file;
            out->has_need_file = true;
            need->slot = i;
            need->role = instar_Role_ROLE_BACKING;
            need->name.size = (pb_size_t)facts.backing_len;
            memcpy(need->name.bytes, facts.backing, facts.backing_len);
            memcpy(need->format, facts.backing_format, sizeof need->format);
            return 0;
        }
        img->backing = &all->img[i + 1];
    }
    return rc;
}

/* Opens every disk of the Request: the image, then its backing files in order. */
static int open_images(struct op *op, struct images *all, u8 *mem, void *scratch, struct err *e)
{
    int rc = 0;
    for (unsigned i = 0; !rc && i < op->disks; i++) {
        rc = image_open(&all->img[i], op->disk[i], op->request->disks[i].format,
                        mem + (size_t)i * IMAGE_MEM, e);
        all->img[i].scratch = scratch;
    }
    all->cnt = op->disks;
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
    set_action(r);
    if (r->resolved_new_virtual_size == img->size)
        return 0;
    if (r->resolved_new_virtual_size > img->size &&
        ((rc = open_chain(all, out, e)) || out->has_need_file))
        return rc;
    struct resize_args args = {r->resolved_new_virtual_size,
                               (enum preallocation)req->preallocation, work, PLAN_WORK};
    rc = plan_resize(img, &args, host, e);
    if (rc)
        return rc;
    r->file_size_after = host->length[0];
    r->more = op->request->dry_run && host->more;
    return 0;
}

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    static struct images all;
    const instar_Request *req = op->request;
    instar_ResizeResult *r = &out->result.resize;
    struct plan_host host = {.need = need, .mem_len = COPY_MEM, .dry_run = req->dry_run,
                             .show = req->dry_run ? show : NULL, .alive = alive};
    if (req->which_op != instar_Request_resize_tag || !op->disks)
        return FAIL(e, ERR_PROTOCOL, "resize takes a disk and its own request", 0, op->disks);
    u8 *mem = op_alloc((size_t)op->disks * IMAGE_MEM);
    void *scratch = op_alloc(IMAGE_SCRATCH), *work = op_alloc(PLAN_WORK);
    host.mem = op_alloc(COPY_MEM);
    out->which_result = instar_Outcome_resize_tag;
    r->file_size_before = r->file_size_after = op->disk[0]->size;
    int rc = open_images(op, &all, mem, scratch, e);
    if (!rc)
        rc = resize(op, &all, &host, work, out, e);
    r->error = (instar_Code)rc;
    return rc;
}
