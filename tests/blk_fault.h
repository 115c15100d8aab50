/* SPDX-License-Identifier: MIT
 *
 * A disk that fails: request number N (and, if `stay`, all after it), over another disk.
 */
#ifndef TESTS_BLK_FAULT_H
#define TESTS_BLK_FAULT_H

#include "blk.h"

struct blk_fault {
    struct blk blk;
    struct blk *inner;
    u64 seen;    /* requests so far: reads, writes, zeros, discards, flushes, grows */
    u64 fail_at; /* counted from 1; 0: never */
    bool stay;
};

void blk_fault_init(struct blk_fault *f, struct blk *inner, u64 fail_at, bool stay);

#endif
