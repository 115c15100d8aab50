/* SPDX-License-Identifier: MIT
 *
 * raw: a resize is a new file length, exact to the byte. What a file gains reads zero (P11), and what
 * it loses is gone: the host's file system does all of it.
 */
#include "plan.h"

enum { WRITE_CHUNK = 1 << 20 };

/* Makes the host allocate what the file gained: by zeroing, or by writing zeros. */
static int preallocate(struct image *img, const struct resize_args *a, struct sink *s, struct err *e)
{
    int rc = 0;
    if (a->preallocation == PREALLOC_FALLOC)
        return plan_zero(s, img->size, a->new_size - img->size,
                         "preallocated: the host reserves the space", e);
    assert(a->work_len >= WRITE_CHUNK);
    memset(a->work, 0, WRITE_CHUNK);
    for (u64 off = img->size, n; !rc && off < a->new_size; off += n) {
        n = min_u64(a->new_size - off, WRITE_CHUNK);
        rc = plan_write(s, off, a->work, n, "preallocated: zeros are written", e);
    }
    return rc;
}

static int raw_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
                      struct sink *s, struct err *e)
{
    (void)state;
    if (a->preallocation == PREALLOC_METADATA)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED, "Unsupported preallocation mode: metadata", 0,
                    0);
    int rc = plan_length(s, a->new_size, "the file is the disk", e);
    if (!rc && a->preallocation != PREALLOC_OFF && a->new_size > img->size)
        rc = preallocate(img, a, s, e);
    return rc ? rc : plan_barrier(s, "the new length is durable", e);
}

const struct planner raw_planner = {&raw_format, raw_resize};
