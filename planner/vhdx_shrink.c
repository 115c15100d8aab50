/* SPDX-License-Identifier: MIT
 *
 * Shrinking a VHDX: one log entry makes the disk smaller and drops the BAT entries of the blocks
 * that it loses. Only then is what these held given back: the end of the file is cut as far as
 * nothing else lies there, the rest is free space. A fixed disk keeps room for every block.
 */
#include "vhdx_plan.h"

/* How long the file must stay. */
static u64 final_length(const struct vhdx_plan *p)
{
    const struct vhdx *v = &p->img->u.vhdx;
    u64 least = p->survey.kept_end;
    if (v->leave_allocated)
        least = max_u64(least, p->survey.regions + p->bat.new_blocks * v->block_size);
    return min_u64(least, p->length);
}

int vhdx_shrink_prepare(struct vhdx_plan *p, struct err *e)
{
    int rc = vhdx_survey(p->img, &p->work, p->bat.new_blocks, &p->survey, e);
    if (rc)
        return rc;
    p->length = max_u64(p->img->file[0]->size, p->survey.kept_end);
    if ((rc = vhdx_tail(p, p->a->new_size, e)) || (rc = vhdx_metadata(p, e)) ||
        (rc = vhdx_bat_in_place(p->img, &p->work, &p->bat, &p->batch, e)))
        return rc;
    return vhdx_mark_dropped(p->img, &p->work, p->bat.new_blocks, e);
}

/* Holes in the file, where blocks were that lie before others. */
static int give_back(struct vhdx_plan *p, u64 end, struct err *e)
{
    int rc = 0;
    for (u64 at = 0, len; !rc; at += len) {
        vhdx_next_run(&p->work, end, &at, &len);
        if (!len)
            break;
        rc = plan_discard(p->s, at, len, "blocks that the disk has lost", e);
    }
    return rc;
}

int vhdx_shrink_emit(struct vhdx_plan *p, struct err *e)
{
    u64 end = final_length(p);
    int rc = vhdx_begin(p, e);
    if (rc || (rc = vhdx_commit(p, e)) || (rc = vhdx_zero_tail(p, e)) || (rc = vhdx_end(p, e)) ||
        (!p->img->u.vhdx.leave_allocated && (rc = give_back(p, end, e))))
        return rc;
    if (end < p->length && (rc = plan_length(p->s, end, "what follows is free", e)))
        return rc;
    return plan_barrier(p->s, "done", e);
}
