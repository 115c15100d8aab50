/* SPDX-License-Identifier: MIT
 *
 * What the operations that run a plan lend to it (struct plan_host): the way to the launcher, and
 * memory. A plan counts the files of its image; here these become disks of the Request.
 */
#ifndef OPS_PLANHOST_H
#define OPS_PLANHOST_H

#include "op.h"

struct planhost {
    struct plan_host plan;
    u8 disk[IMAGE_FILES]; /* of each file of the image */
    u64 told;             /* how far the launcher knows it to have come */
};

/* Takes its memory, before any disk is read. */
void planhost_alloc(struct planhost *h, const struct op *op);
/* The image that the plan is about to change. */
void planhost_begin(struct planhost *h, const struct image *img);

#endif
