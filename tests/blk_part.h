/* SPDX-License-Identifier: MIT
 *
 * A disk that is a part of another one, so that what several files go through stands in one log of
 * the crash recorder. It can grow as far as the next part begins.
 */
#ifndef TESTS_BLK_PART_H
#define TESTS_BLK_PART_H

#include "blk.h"

struct blk_part {
    struct blk blk;
    struct blk *inner;
    u64 base;
};

/* [base, base+size) of the inner disk, which must reach as far as anything will be written. */
void blk_part_init(struct blk_part *p, struct blk *inner, u64 base, u64 size);

#endif
