/* SPDX-License-Identifier: MIT
 *
 * A sparse disk, perhaps a second one below it, and a request in few bytes: what the qcow2 fuzz
 * target eats. Any bytes decode to something, so that a fuzzer may mutate them blindly.
 *
 *     u64 new size, u64 file length (little endian), u8 flags, with FUZZ_UNDER u64 length of the
 *     second disk; then records, later ones on top:
 *     PUT  (op bit 0 clear)  u48 offset, u8 length, bytes
 *     FILL (op bit 0 set)    u48 offset, u16 count, u64 value, u64 step: count big-endian numbers
 * Op bit 1: onto the second disk.
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
    FUZZ_HOW_SHIFT = 2, /* two bits: enum preallocation */
    FUZZ_UNDER = 16,    /* there is a second disk: what the image's backing name means */
    FUZZ_UNDER_RAW = 32,
};

struct fuzz_head {
    u64 new_size, length;
    u8 flags;
    u64 under; /* length of the second disk */
};

/* Into fresh memory disks, of which the second may be empty; false (and no disk) if there is not
 * even a head. */
bool fuzz_decode(const u8 *in, size_t size, struct fuzz_head *h, struct blk_mem *m,
                 struct blk_mem *under);

/* Returns how many bytes it takes: what was there must have had the same flag FUZZ_UNDER. */
size_t fuzz_put_head(u8 *out, const struct fuzz_head *h);
/* Appends a PUT record of up to 255 bytes, onto the second disk if `under`; returns the new size, or
 * `size` if it has no room. */
size_t fuzz_append(u8 *out, size_t size, size_t max, bool under, u64 off, const u8 *bytes,
                   size_t len);
/* The whole disk, and the one below it or NULL; of guest data, as make_pattern() writes it, some
 * bytes only. 0: no room. */
size_t fuzz_encode(const struct blk_mem *m, const struct blk_mem *under, u64 new_size, u8 flags,
                   u8 *out, size_t max);

/* LibFuzzer's entry points, and the one that it provides. */
int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max, unsigned int seed);
size_t LLVMFuzzerMutate(u8 *data, size_t size, size_t max);

#endif
