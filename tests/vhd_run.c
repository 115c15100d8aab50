/* SPDX-License-Identifier: MIT
 *
 * See vhd_run.h.
 */
#include "vhd_run.h"

#include "test.h"

static u64 granted, promised;

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)e;
    assert(n->room);
    if (epoch == 0)
        promised = max_u64(n->eventual, n->length[0]);
    assert(n->length[0] <= promised); /* what is not asked for at once may be refused half-way */
    granted = n->length[0];
    return 0;
}

int vhd_run_open(struct blk *b, const char *name, struct image *img, struct err *e)
{
    static u8 image_mem[IMAGE_MEM] __attribute__((aligned(4096)));
    return image_open(img, b, name, image_mem, e);
}

int vhd_run(struct blk *b, u64 new_size, enum preallocation preallocation, u64 *length,
            struct err *e)
{
    static u8 copy_mem[BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct image img;
    struct plan_host h = {.need = need, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    struct resize_args a = {.new_size = new_size,
                            .preallocation = preallocation,
                            .work = work,
                            .work_len = sizeof(work)};
    granted = promised = 0;
    int rc = vhd_run_open(b, "vpc", &img, e);
    if (!rc)
        rc = plan_resize(&img, &a, &h, e);
    *length = h.length[0];
    return rc;
}

int vhd_run_mem(struct blk_mem *m, u64 new_size, struct err *e)
{
    u64 length;
    int rc = vhd_run(&m->blk, new_size, PREALLOC_OFF, &length, e);
    if (!rc)
        blk_mem_truncate(m, length);
    return rc;
}
