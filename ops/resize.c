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

static void set_action(instar_ResizeResult *r)
{
    static const char *const action[] = {"shrink", "noop", "grow"};
    u64 now = r->old_virtual_size, then = r->resolved_new_virtual_size;
    const char *text = action[then > now ? 2 : then == now];
    memcpy(r->action, text, strlen(text) + 1);
}

static int resize(struct image *img, const instar_Request *req, struct plan_host *host, void *work,
                  instar_ResizeResult *r, struct err *e)
{
    const char *what = "";
    u64 val = 0;
    memcpy(r->target_format, img->format->name, strlen(img->format->name) + 1);
    r->probed = img->probed;
    r->old_virtual_size = img->size;
    int rc = (int)newsize(&req->op.resize, img->size, &r->resolved_new_virtual_size, &what, &val);
    if (rc)
        return FAIL(e, (enum err_code)rc, what, 0, val);
    set_action(r);
    if (r->resolved_new_virtual_size == img->size)
        return 0;
    struct resize_args args = {r->resolved_new_virtual_size,
                               (enum preallocation)req->op.resize.preallocation, work, PLAN_WORK};
    rc = plan_resize(img, &args, host, e);
    if (!rc)
        r->file_size_after = host->length[0];
    return rc;
}

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    static struct image img;
    const instar_Request *req = op->request;
    instar_ResizeResult *r = &out->result.resize;
    struct plan_host host = {.need = need, .mem_len = COPY_MEM, .dry_run = req->dry_run,
                             .show = req->dry_run ? show : NULL};
    void *mem = op_alloc(IMAGE_MEM);
    host.mem = op_alloc(COPY_MEM);
    if (req->which_op != instar_Request_resize_tag || op->disks != 1)
        return FAIL(e, ERR_PROTOCOL, "resize takes one disk and its own request", 0, op->disks);
    out->which_result = instar_Outcome_resize_tag;
    r->file_size_before = r->file_size_after = op->disk[0]->size;
    void *scratch = op_alloc(IMAGE_SCRATCH), *work = op_alloc(PLAN_WORK);
    int rc = image_open(&img, op->disk[0], req->disks[0].format, mem, e);
    img.scratch = scratch;
    if (!rc)
        rc = resize(&img, req, &host, work, r, e);
    r->error = (instar_Code)rc;
    return rc;
}
