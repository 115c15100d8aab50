/* SPDX-License-Identifier: MIT
 *
 * See planhost.h.
 */
#include "planhost.h"

enum { COPY_MEM = 4 << 20, DRY_RUN_MEM = 48 << 20 };

static struct planhost *of(struct plan_host *h)
{
    return (struct planhost *)h;
}

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    return disks_need(epoch, n, of(h)->disk, e);
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)e;
    report_undo(of(h)->disk[slot], off, crc, n);
    return 0;
}

static int insert(struct plan_host *h, u32 epoch, u8 slot, u64 off, u64 len, struct err *e)
{
    return disks_insert(epoch, of(h)->disk[slot], off, len, e);
}

static int show(struct plan_host *h, u32 epoch, const struct patch *p, struct err *e)
{
    struct patch shown = *p;
    (void)e;
    shown.slot = of(h)->disk[p->slot];
    shown.from = of(h)->disk[p->from];
    report_patch(epoch, &shown);
    return 0;
}

static void alive(struct plan_host *h, u64 patches)
{
    (void)h, (void)patches;
    report_progress(0, 0, 0);
}

/* A plan may have as many epochs as the image has tables: a few hundred events tell enough. */
static void progress(struct plan_host *h, u64 done, u64 total)
{
    struct planhost *p = of(h);
    if (done < total && done - p->told < total / 256)
        return;
    p->told = done;
    report_progress(0, done, total);
}

void planhost_alloc(struct planhost *h, const struct op *op)
{
    bool dry_run = op->request->dry_run;
    *h = (struct planhost){.plan = {.need = need,
                                    .undo = undo,
                                    .insert = insert,
                                    .show = dry_run ? show : NULL,
                                    .alive = alive,
                                    .progress = progress,
                                    .dry_run = dry_run,
                                    .mem_len = COPY_MEM}};
    h->plan.mem = op_alloc(COPY_MEM);
    if (dry_run)
        h->plan.scratch = op_alloc(h->plan.scratch_len = DRY_RUN_MEM);
}

void planhost_begin(struct planhost *h, const struct image *img)
{
    for (u8 i = 0; i < img->files; i++)
        h->disk[i] = img->file[i]->slot;
}
