/* SPDX-License-Identifier: MIT
 *
 * Running a VHDX resize on the host.
 */
#include "vhdx_run.h"

#include "copy.h"
#include "test.h"

enum { STEP = 64 << 10, SMALL = 24 << 20 };

struct host {
    struct plan_host h;
    struct vhdx_run *r;
};

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    struct vhdx_run *r = ((struct host *)h)->r;
    assert(n->room);
    r->needs++;
    if (epoch == 0)
        r->eventual = max_u64(n->eventual, n->length[0]);
    return r->refuse ? FAIL(e, ERR_NO_SPACE, "refused", 0, n->length[0]) : 0;
}

int vhdx_open_mem(struct blk *b, struct image *img, struct err *e)
{
    static u8 mem[8][IMAGE_MEM] __attribute__((aligned(4096)));
    static unsigned next;
    return image_open(img, b, "vhdx", mem[next++ % 8], e);
}

int vhdx_run(struct blk *b, struct vhdx_run *r, struct err *e)
{
    static u8 copy_mem[BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    static bool dirtied;
    struct image img;
    u8 random[32];
    if (!dirtied) /* as little to be relied on as in the VM */
        memset(work, 0xa5, sizeof(work));
    dirtied = true;
    memset(random, r->random, sizeof(random));
    struct host host = {
        .h = {.need = need, .mem = copy_mem, .mem_len = sizeof(copy_mem), .dry_run = r->dry_run},
        .r = r};
    struct resize_args a = {.new_size = r->new_size,
                            .preallocation = r->preallocation,
                            .work = work,
                            .work_len = sizeof(work),
                            .random = random};
    int rc = vhdx_open_mem(b, &img, e);
    if (!rc && img.size != r->new_size)
        rc = plan_resize(&img, &a, &host.h, e);
    r->length = host.h.length[0] ? host.h.length[0] : b->size;
    r->more = host.h.more;
    return rc;
}

int vhdx_run_mem(struct blk_mem *m, struct vhdx_run *r, struct err *e)
{
    int rc = vhdx_run(&m->blk, r, e);
    if (!rc && !r->dry_run)
        blk_mem_truncate(m, r->length);
    return rc;
}

int vhdx_resize_mem(struct blk_mem *m, u64 new_size, u8 random, struct err *e)
{
    return vhdx_run_mem(m, &(struct vhdx_run){.new_size = new_size, .random = random}, e);
}

/* The next place to look at after [at, at + STEP): all of a small disk, else around MiB bounds. */
static u64 next_place(u64 at, u64 len, u64 unit)
{
    if (len <= SMALL)
        return at + STEP;
    u64 in = at % unit;
    return in + 2 * STEP < unit && in >= STEP ? at - in + unit - STEP : at + STEP;
}

bool vhdx_same_content(struct blk *a, struct blk *b, u64 len)
{
    static u8 x[STEP], y[STEP];
    struct image one, two;
    struct err e = {0};
    if (vhdx_open_mem(a, &one, &e) || vhdx_open_mem(b, &two, &e))
        return false;
    for (u64 at = 0; at < len; at = next_place(at, len, one.unit)) {
        u64 n = min_u64(STEP, len - at);
        if (chain_read(&one, at, x, n, &e) || chain_read(&two, at, y, n, &e) || memcmp(x, y, n))
            return false;
    }
    return true;
}

bool vhdx_reads_zero(struct blk *b, u64 from, u64 to)
{
    static u8 x[STEP];
    struct image img;
    struct err e = {0};
    if (vhdx_open_mem(b, &img, &e))
        return false;
    for (u64 at = from; at < to; at = next_place(at, to - from, img.unit)) {
        u64 n = min_u64(STEP, to - at);
        if (chain_read(&img, at, x, n, &e))
            return false;
        for (u64 i = 0; i < n; i++)
            if (x[i])
                return false;
    }
    return true;
}
