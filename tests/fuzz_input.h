/* SPDX-License-Identifier: MIT
 *
 * A sparse disk and a request in few bytes: what the qcow2 fuzz target eats. Any bytes decode to
 * something, so that a fuzzer may mutate them blindly.
 *
 *     u64 new size, u64 file length (little endian), u8 flags; then records, later ones on top:
 *     PUT  (even op)  u48 offset, u8 length, bytes
 *     FILL (odd op)   u48 offset, u16 count, u64 value, u64 step: count big-endian numbers
 */
#ifndef TESTS_FUZZ_INPUT_H
#define TESTS_FUZZ_INPUT_H

#include "blk_mem.h"

enum {
    FUZZ_HEAD = 17,
    FUZZ_INPUT_MAX = 8192,
    FUZZ_FILL_MAX = 1 << 17, /* bytes that all FILL records together may write */
    FUZZ_SECTOR_4096 = 1,    /* flags */
    FUZZ_NO_SCRATCH = 2,
};

struct fuzz_head {
    u64 new_size, length;
    u8 flags;
};

/* Into a fresh memory disk; false (and no disk) if there is not even a head. */
bool fuzz_decode(const u8 *in, size_t size, struct fuzz_head *h, struct blk_mem *m);

void fuzz_put_head(u8 *out, const struct fuzz_head *h);
/* Appends a PUT record of up to 255 bytes; returns the new size, or `size` if it has no room. */
size_t fuzz_append(u8 *out, size_t size, size_t max, u64 off, const u8 *bytes, size_t len);
/* The whole disk; of guest data, as make_pattern() writes it, some bytes only. 0: no room. */
size_t fuzz_encode(const struct blk_mem *m, u64 new_size, u8 flags, u8 *out, size_t max);

/* LibFuzzer's entry points, and the one that it provides. */
int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max, unsigned int seed);
size_t LLVMFuzzerMutate(u8 *data, size_t size, size_t max);

#endif
