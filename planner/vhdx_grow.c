/* SPDX-License-Identifier: MIT
 *
 * Growing a VHDX. New blocks of a dynamic disk are absent; those of a fixed one, or of one that is
 * preallocated, are allocated at the end of the file; those of a differencing disk are zero blocks,
 * which hide whatever its parent may have there. The BAT stays where it is while its region has
 * room and the log entry has too; else it moves to the end of the file.
 */
#include "vhdx_plan.h"

/* A differencing disk that ends inside a block shows its parent there, or a part of it: whether it
 * reads zero past the end, only the parent tells. */
static int check_child(struct vhdx_plan *p, struct err *e)
{
    const struct vhdx *v = &p->img->u.vhdx;
    u64 size = p->img->size, entry;
    if (!v->has_parent || size % v->block_size == 0)
        return 0;
    int rc = vhdx_bat_get(p->img, &p->img->win, vhdx_bat_index(v, size / v->block_size), &entry, e);
    u64 state = entry & VHDX_BAT_STATE;
    if (!rc && (state == VHDX_NOT_PRESENT || state == VHDX_PARTIALLY_PRESENT))
        return FAIL(
            e, ERR_UNSUPPORTED_FEATURE,
            "The differencing disk ends inside a block that shows its parent; what that has "
            "past the end is not looked at, so the disk cannot grow",
            size, state);
    return rc;
}

static int choose_fill(struct vhdx_plan *p, struct err *e)
{
    const struct vhdx *v = &p->img->u.vhdx;
    if (p->a->preallocation == PREALLOC_METADATA)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED, "Unsupported preallocation mode: metadata", 0,
                    0);
    if (p->a->preallocation != PREALLOC_OFF && v->has_parent)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED,
                    "Preallocation is not supported for differencing disks", 0, 0);
    if (v->has_parent)
        p->bat.fill = VHDX_FILL_ZERO;
    else if (v->leave_allocated || p->a->preallocation != PREALLOC_OFF)
        p->bat.fill = VHDX_FILL_PRESENT;
    return 0;
}

static u64 new_payload(const struct vhdx_plan *p)
{
    return (p->bat.new_blocks - p->bat.old_blocks) * p->img->u.vhdx.block_size;
}

/* Where everything goes that is new: behind the last structure, be that the end of the file or not.
 * A fixed disk may have room there that is meant for blocks it has: behind the end of the file. */
static void place(struct vhdx_plan *p)
{
    const struct vhdx *v = &p->img->u.vhdx;
    u64 need = p->bat.new_entries * 8, first = vhdx_bat_first(v, &p->bat) * 8;
    u64 sectors = (round_up(need, VHDX_SECTOR) - round_down(first, VHDX_SECTOR)) / VHDX_SECTOR;
    u64 end = p->survey.end, size = p->img->file[0]->size;
    if (v->leave_allocated)
        end = max_u64(end, round_up(size, VHDX_MIB));
    p->clear_off = end;
    if (need > v->bat_length || (p->bat.fill != VHDX_FILL_ABSENT && sectors > VHDX_BAT_SECTORS)) {
        p->new_bat = end;
        p->new_bat_length = round_up(need, VHDX_MIB);
        end += p->new_bat_length;
    }
    if (p->bat.fill == VHDX_FILL_PRESENT) {
        p->bat.payload = end;
        end += new_payload(p);
    }
    p->length = max_u64(size, end);
    p->clear_len = min_u64(end, max_u64(size, p->clear_off)) - p->clear_off;
}

int vhdx_grow_prepare(struct vhdx_plan *p, struct err *e)
{
    int rc = choose_fill(p, e);
    if (rc || (rc = check_child(p, e)) ||
        (rc = vhdx_survey(p->img, &p->work, p->bat.old_blocks, &p->survey, e)))
        return rc;
    place(p);
    if ((rc = vhdx_tail(p, p->img->size, e)) || (rc = vhdx_metadata(p, e)))
        return rc;
    return p->new_bat ? 0 : vhdx_bat_in_place(p->img, &p->work, &p->bat, &p->batch, e);
}

int vhdx_grow_emit(struct vhdx_plan *p, struct err *e)
{
    const struct vhdx *v = &p->img->u.vhdx;
    int rc = vhdx_begin(p, e);
    if (rc || (rc = vhdx_zero_tail(p, e)) ||
        (p->clear_len && (rc = plan_zero(p->s, p->clear_off, p->clear_len,
                                         "what is new, as far as the file reached", e))) ||
        (p->new_bat && (rc = vhdx_bat_move(p->img, &p->work, &p->bat, p->new_bat, p->s, e))) ||
        (rc = plan_preallocate(p->s, 0, p->bat.payload, new_payload(p), p->a->preallocation,
                               p->work.bitmap, e)) ||
        (rc = vhdx_commit(p, e)) || (rc = vhdx_end(p, e)))
        return rc;
    if (p->new_bat &&
        (rc = plan_discard(p->s, v->bat_offset, v->bat_length, "where the BAT was", e)))
        return rc;
    return plan_barrier(p->s, "done", e);
}
