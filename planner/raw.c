/* SPDX-License-Identifier: MIT
 *
 * raw: a resize is a new file length, exact to the byte. What a file gains reads zero (P11).
 */
#include "plan.h"

static int raw_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
                      struct sink *s, struct err *e)
{
    (void)state;
    if (a->preallocation != PREALLOC_OFF)
        return FAIL(e, ERR_PREALLOCATION_UNSUPPORTED, "Preallocation is not yet supported", 0,
                    a->preallocation);
    if (a->new_size < img->size)
        return FAIL(e, ERR_UNSUPPORTED_SHRINK,
                    "Shrinking is not yet supported for a raw image that was not named as one "
                    "(use -f raw)",
                    0, a->new_size);
    int rc = plan_length(s, a->new_size, "the file is the disk", e);
    return rc ? rc : plan_barrier(s, "the new length is durable", e);
}

const struct planner raw_planner = {&raw_format, raw_resize};
