/* SPDX-License-Identifier: MIT
 *
 * The crash recorder: a disk over a memory disk that logs what is done to it, and then shows every
 * state in which a crash may have left the file. What was flushed is there. Of what came after the
 * last flush, each 512-byte sector is there or not: every prefix of the log, each request missing,
 * each alone, each torn, each suffix, and seeded random subsets of requests and of sectors.
 * A growth of the file is logged too: the file has its old length (then nothing that was written
 * behind it is there) or the new one (bytes that were not written read zero).
 */
#ifndef TESTS_BLK_RECORD_H
#define TESTS_BLK_RECORD_H

#include "blk_mem.h"

struct record_entry {
    enum { REC_WRITE, REC_ZERO, REC_DISCARD, REC_FLUSH, REC_GROW } kind;
    u64 off, len; /* GROW: len is the new length */
    u8 *data;
};

struct blk_record {
    struct blk blk;
    const struct blk_mem *initial; /* frozen */
    struct blk_mem now;            /* over initial */
    struct record_entry *log;
    size_t cnt, cap;
};

void blk_record_init(struct blk_record *r, const struct blk_mem *initial);
void blk_record_free(struct blk_record *r);

/* Called for each crash state; `what` tells which. False ends the enumeration. */
typedef bool record_judge(void *ctx, struct blk_mem *state, const char *what);

/* Shows every state to the judge, those of equal content possibly more than once. Returns how many
 * states were shown. `random`: how many random subsets per epoch, of each kind. */
u64 blk_record_states(const struct blk_record *r, u64 seed, unsigned random, record_judge *judge,
                      void *ctx);

#endif
