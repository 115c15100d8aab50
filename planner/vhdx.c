/* SPDX-License-Identifier: MIT
 *
 * VHDX: what can be refused at once, the stage that a dirty log needs, and the plan that serves a
 * request. Everything is worked out through the log before that is replayed, so that a refusal
 * leaves the image untouched.
 */
#include "members.h"
#include "vhdx_plan.h"

enum { SECTORS_BYTES = (VHDX_BATCH + 1) * VHDX_SECTOR, ENTRY_BYTES = SECTORS_BYTES };

static void lend(struct vhdx_work *w, const struct resize_args *a)
{
    u8 *p = a->work;
    assert(a->work_len >= VHDX_BITMAP_BYTES + VHDX_WINDOW_BYTES + SECTORS_BYTES + ENTRY_BYTES +
                              VHDX_TABLE_SIZE + VHDX_SECTOR);
    w->bitmap = p;
    w->window = w->bitmap + VHDX_BITMAP_BYTES;
    w->sectors = w->window + VHDX_WINDOW_BYTES;
    w->entry = w->sectors + SECTORS_BYTES;
    w->table = w->entry + ENTRY_BYTES;
    w->header = w->table + VHDX_TABLE_SIZE;
}

static int check_size(const struct image *img, u64 size, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    if (size % v->logical_sector)
        return FAIL(e, ERR_INVALID_NEW_SIZE, "The new size must be a multiple of {val}", 0,
                    v->logical_sector);
    if (size > VHDX_MAX_DISK_SIZE)
        return FAIL(e, ERR_INVALID_NEW_SIZE, "A VHDX disk cannot be larger than 64 TiB", 0, size);
    return 0;
}

int vhdx_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
                struct sink *s, struct err *e)
{
    struct vhdx_plan p = {.img = img, .s = s, .a = a};
    bool grow = a->new_size > img->size;
    int rc = check_size(img, a->new_size, e);
    if (rc)
        return rc;
    lend(&p.work, a);
    p.batch.sectors = p.work.sectors;
    vhdx_bat_change(&img->u.vhdx, img->size, a->new_size, &p.bat);
    rc = vhdx_headers_begin(&p.headers, img, s, p.work.header, a->random, true, e);
    if (rc || (rc = grow ? vhdx_grow_prepare(&p, e) : vhdx_shrink_prepare(&p, e)))
        return rc;
    if (img->u.vhdx.log.dirty && state->epoch)
        return plan_changed(0, 0, e);
    if (img->u.vhdx.log.dirty) {
        state->more = true;
        state->eventual = p.length;
        return vhdx_replay(img, a->random, &p.work, s, e);
    }
    return grow ? vhdx_grow_emit(&p, e) : vhdx_shrink_emit(&p, e);
}

const struct planner vhdx_planner = {
    .format = &vhdx_format,
    .resize = vhdx_resize,
    .warning =
        "A VHDX that is resized gets a new data GUID: differencing disks whose parent it is no "
        "longer find it to be theirs."};
