/* SPDX-License-Identifier: MIT
 *
 * An independent reader of qcow2 that judges images for the tests. It shares no code with formats/
 * and reads the specification (docs/interop/qcow2.txt) by itself: header, L1 and L2 (standard and
 * extended), snapshots, bitmaps, refcounts of every width. Not judged: encryption.
 */
#ifndef TESTS_QCOW2_JUDGE_H
#define TESTS_QCOW2_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct judge_io {
    void *ctx;
    uint64_t size;
    void (*read)(void *ctx, uint64_t off, void *buf, size_t len); /* zeros past the end */
    bool (*hole)(void *ctx, uint64_t off, size_t len);            /* known to be zero? or NULL */
    const struct judge_io *data; /* the external data file, where the image has one */
};

struct verdict {
    bool opens; /* if not, `why` says why and the rest is 0 */
    const char *why;
    uint64_t size, leaks, corruptions;
    char first[200]; /* the first leak or corruption, in words */
    uint64_t hash;   /* of guest bytes [0, hash_to); equal content, equal hash, however stored */
    uint64_t snapshot_hash; /* of all that the snapshots hold */
    bool zero;              /* guest bytes [zero_from, zero_to) all read zero */
    uint64_t data_clusters, l1_entries, l1_offset, rt_offset, blocks /* of refcounts */;
    bool dirty, corrupt, backing;
    uint64_t bitmaps, bitmap_bits; /* valid ones, and how many bits are set in all of them */
    uint64_t bitmap_hash; /* of which bits are set, up to the one that holds byte hash_to - 1 */
    bool bitmap_zero;     /* no bit is set that stands for bytes of [zero_from, zero_to) alone */
};

/* hash_to: bytes of guest data to hash, at most the image's size. A hole counts as zeros, also
 * where there is a backing file; what zstd compressed counts by its compressed bytes. */
void qcow2_judge(const struct judge_io *io, uint64_t hash_to, uint64_t zero_from, uint64_t zero_to,
                 struct verdict *v);

/* One more 512-byte block of guest data at voff for a hash as above; zeros change nothing. */
uint64_t judge_hash_block(uint64_t voff, const uint8_t *block, size_t len);

struct blk_mem;
void qcow2_judge_mem(const struct blk_mem *m, uint64_t hash_to, uint64_t zero_from,
                     uint64_t zero_to, struct verdict *v);

/* The judge's view of [base, base+size) of a memory disk. */
struct judge_part {
    const struct blk_mem *m;
    uint64_t base, size;
};
struct judge_io judge_part_io(const struct judge_part *part);

#endif
