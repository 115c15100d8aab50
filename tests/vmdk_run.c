/* SPDX-License-Identifier: MIT
 *
 * See vmdk_run.h.
 */
#include "vmdk_run.h"

#include "test.h"

static u64 promised;
static struct vmdk_run_out *into;

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)e;
    if (epoch == 0)
        promised = max_u64(n->eventual, n->length[0]);
    assert(n->length[0] <= promised); /* what is not asked for at once may be refused half-way */
    return 0;
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)crc, (void)e;
    assert(slot == 0);
    for (unsigned i = 0; i < n; i++, into->undo++)
        if (into->undo < 64)
            into->undo_at[into->undo] = off + i * 512ull;
    return 0;
}

int vmdk_run_open(struct blk *b, const char *name, struct image *img, struct err *e)
{
    static u8 image_mem[IMAGE_MEM] __attribute__((aligned(4096)));
    return image_open(img, b, name, image_mem, e);
}

static int run_over(struct blk *b, struct image *parent, u64 new_size,
                    enum preallocation preallocation, struct vmdk_run_out *out, struct err *e)
{
    static u8 copy_mem[4 * BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct image img;
    struct plan_host h = {.need = need, .undo = undo, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    struct resize_args a = {.new_size = new_size,
                            .preallocation = preallocation,
                            .may_shorten = true,
                            .work = work,
                            .work_len = sizeof(work)};
    promised = 0;
    *out = (struct vmdk_run_out){0};
    into = out;
    int rc = vmdk_run_open(b, "vmdk", &img, e);
    img.backing = parent;
    if (!rc)
        rc = plan_resize(&img, &a, &h, e);
    out->length = h.length[0];
    return rc;
}

int vmdk_run(struct blk *b, u64 new_size, enum preallocation preallocation,
             struct vmdk_run_out *out, struct err *e)
{
    return run_over(b, NULL, new_size, preallocation, out, e);
}

int vmdk_run_child(struct blk *b, struct image *parent, u64 new_size, struct vmdk_run_out *out,
                   struct err *e)
{
    return run_over(b, parent, new_size, PREALLOC_OFF, out, e);
}

int vmdk_run_mem(struct blk_mem *m, u64 new_size, struct err *e)
{
    struct vmdk_run_out out;
    int rc = vmdk_run(&m->blk, new_size, PREALLOC_OFF, &out, e);
    if (!rc)
        blk_mem_truncate(m, out.length);
    return rc;
}
