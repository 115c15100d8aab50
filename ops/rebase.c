/* SPDX-License-Identifier: MIT
 *
 * rebase: open the image with the chain that it stands on and the one that it is to stand on, and
 * run the plan. In unsafe mode nothing depends on either chain: of the new one that much is looked
 * at as can be had, to see whether it leads back to the image, which the launcher can tell.
 */
#include "images.h"
#include "planhost.h"

static void put_text(char *to, const char *from)
{
    memcpy(to, from, strlen(from) + 1);
}

/* A snapshot has no reference of its own: what it does not hold, it shows of the image's. */
static int warn_of_snapshots(struct image *img, instar_RebaseResult *r, struct err *e)
{
    static struct facts f;
    memset(&f, 0, sizeof f);
    int rc = img->format->facts(img, &f, e);
    for (unsigned i = 0; !rc && i < f.cnt; i++)
        if (strlen(f.fact[i].key) == 9 && !memcmp(f.fact[i].key, "snapshots", 9))
            put_text(r->warning, "The image's internal snapshots stand on the same backing file as "
                                 "the image, and may show other data now.");
    return rc;
}

/* Asks for what is missing of both chains. */
static int open_chains(struct images *all, const instar_RebaseRequest *req, instar_Outcome *out,
                       struct err *e)
{
    struct image *new_backing = req->new_backing ? images_on(all, req->new_backing) : NULL;
    if (req->new_backing && !new_backing)
        return FAIL(e, ERR_PROTOCOL, "The new backing file is no image", 0, req->new_backing);
    if (req->unsafe)
        return images_follow_chain(all, new_backing, FOLLOW_BACKING, out, e);
    int rc = images_follow_chain(all, &all->img[0], FOLLOW_DATA | FOLLOW_BACKING, out, e);
    return rc || images_wait(out)
               ? rc
               : images_follow_chain(all, new_backing, FOLLOW_DATA | FOLLOW_BACKING, out, e);
}

/* The file's length afterwards is exactly what the plan says, but for a device. */
static void put_lengths(const struct image *img, const struct planhost *host, bool dry_run,
                        instar_RebaseResult *r)
{
    const struct plan_host *h = &host->plan;
    r->file_size_after = img->file[0]->device ? r->file_size_before : h->length[0];
    for (u8 i = 1; i < img->files; i++)
        r->files_after[r->files_after_count++] = (instar_FileLength){host->disk[i], h->length[i]};
    r->more = dry_run && h->more;
    r->eventual_file_size = dry_run ? h->eventual : 0;
}

static int rebase(struct op *op, struct images *all, struct planhost *host, void *work,
                  instar_Outcome *out, struct err *e)
{
    const instar_RebaseRequest *req = &op->request->op.rebase;
    instar_RebaseResult *r = &out->result.rebase;
    struct image *img = &all->img[0];
    static char name[sizeof req->name.bytes + 1];
    put_text(r->overlay_format, img->format->name);
    r->probed = img->probed;
    int rc = open_chains(all, req, out, e);
    if (rc || images_wait(out) || (rc = warn_of_snapshots(img, r, e)))
        return rc;
    if (img->file[0]->device)
        plan_on_device(img);
    memcpy(name, req->name.bytes, req->name.size); /* the rest is zero */
    struct rebase_args args = {.unsafe = req->unsafe,
                               .new_backing =
                                   req->new_backing ? images_on(all, req->new_backing) : NULL,
                               .name = name,
                               .format = req->name.size ? req->format : "",
                               .count = req->check_only,
                               .work = work,
                               .work_len = PLAN_WORK};
    planhost_begin(host, img);
    rc = plan_rebase(img, &args, &host->plan, e);
    r->rebuilt = host->plan.repaired && !(rc && host->plan.begun);
    r->clusters_copied = host->plan.clusters_copied;
    r->bytes_copied = host->plan.bytes_copied;
    if (!rc)
        put_lengths(img, host, op->request->dry_run, r);
    return rc;
}

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    static struct images all;
    static struct planhost host;
    const instar_RebaseRequest *req = &op->request->op.rebase;
    instar_RebaseResult *r = &out->result.rebase;
    if (op->request->which_op != instar_Request_rebase_tag || !op->disks)
        return FAIL(e, ERR_PROTOCOL, "rebase takes a disk and its own request", 0, op->disks);
    images_alloc(&all, op);
    all.lenient = req->unsafe;
    planhost_alloc(&host, op);
    if (req->check_only) { /* nothing is rehearsed, nor shown */
        host.plan.scratch = NULL;
        host.plan.show = NULL;
    }
    void *work = op_alloc(PLAN_WORK);
    out->which_result = instar_Outcome_rebase_tag;
    r->file_size_before = r->file_size_after = op->disk[0]->size;
    put_text(r->mode, req->unsafe ? "unsafe" : "safe");
    int rc = images_open(&all, op, out, e);
    if (!rc)
        rc = rebase(op, &all, &host, work, out, e);
    if (!images_wait(out))
        r->error = (instar_Code)rc;
    return rc;
}
