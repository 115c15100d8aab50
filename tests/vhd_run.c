/* SPDX-License-Identifier: MIT
 *
 * See vhd_run.h.
 */
#include "vhd_run.h"

#include "test.h"

static u64 granted, promised;
static struct blk_mem *inserting; /* where insertions are made */
struct vhd_undo vhd_undo;

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)e;
    assert(slot == 0 && n);
    for (unsigned i = 0; i < n; i++) {
        assert(vhd_undo.cnt < 8);
        vhd_undo.off[vhd_undo.cnt] = off + i * 512;
        vhd_undo.crc[vhd_undo.cnt++] = crc[i];
    }
    return 0;
}

static int insert(struct plan_host *h, u32 epoch, u8 slot, u64 off, u64 len, struct err *e)
{
    (void)h, (void)epoch, (void)e;
    struct blk_mem *m = inserting;
    assert(slot == 0 && m && off % m->blk.insert_unit == 0 && len % m->blk.insert_unit == 0);
    assert(off < m->length);
    u64 tail = m->length - off;
    u8 *moved = malloc(tail);
    blk_mem_get(m, off, moved, tail);
    blk_mem_put(m, off + len, moved, tail);
    blk_mem_clear(m, off, len);
    free(moved);
    return 0;
}

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)e;
    assert(n->room);
    assert(n->undo == (vhd_undo.cnt > 0));
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
    static u8 copy_mem[2 * BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct image img;
    struct plan_host h = {.need = need,
                          .undo = undo,
                          .insert = insert,
                          .mem = copy_mem,
                          .mem_len = sizeof(copy_mem)};
    struct resize_args a = {.new_size = new_size,
                            .may_shorten = true,
                            .preallocation = preallocation,
                            .work = work,
                            .work_len = sizeof(work)};
    granted = promised = vhd_undo.cnt = 0;
    int rc = vhd_run_open(b, "vpc", &img, e);
    if (!rc)
        rc = plan_resize(&img, &a, &h, e);
    *length = h.length[0];
    return rc;
}

int vhd_run_mem(struct blk_mem *m, u64 new_size, struct err *e)
{
    u64 length;
    inserting = m;
    int rc = vhd_run(&m->blk, new_size, PREALLOC_OFF, &length, e);
    inserting = NULL;
    if (!rc)
        blk_mem_truncate(m, length);
    return rc;
}
