/* SPDX-License-Identifier: MIT
 *
 * raw: a resize is a new file length, exact to the byte. What a file gains reads zero (P11), and
 * what it loses is gone: the host's file system does all of it.
 */
#include "members.h"

int raw_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
               struct sink *s, struct err *e)
{
    (void)state;
    if (a->preallocation == PREALLOC_METADATA)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED, "Unsupported preallocation mode: metadata", 0,
                    0);
    int rc = plan_length(s, a->new_size, "the file is the disk", e);
    assert(a->preallocation == PREALLOC_OFF || a->work_len >= PLAN_PREALLOCATE_WORK);
    if (!rc && a->new_size > img->size)
        rc = plan_preallocate(s, 0, img->size, a->new_size - img->size, a->preallocation, a->work,
                              e);
    return rc ? rc : plan_barrier(s, "the new length is durable", e);
}

const struct planner raw_planner = {.format = &raw_format, .resize = raw_resize};
