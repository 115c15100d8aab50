/* SPDX-License-Identifier: MIT
 *
 * The independent judge of monolithicSparse VMDK images: it shares no code with formats/ and
 * planner/. It reads a memory disk as qemu would, and as a careful reader would: both directories
 * and all tables alike, no directory entry zero, nothing on top of anything, the descriptor's
 * numbers against the header's.
 */
#ifndef TESTS_VMDK_JUDGE_H
#define TESTS_VMDK_JUDGE_H

#include "blk_mem.h"

struct vmdk_verdict {
    bool opens;
    const char *why;     /* why not */
    u64 size;            /* the header's */
    u64 text_size;       /* the descriptor's extent */
    bool geometry;       /* its cylinders are those of that extent, or none are named */
    u64 text_hash;       /* of the descriptor, but for those two numbers */
    u64 rest_hash;       /* of the header, but for capacity and directories */
    u64 entries, grains; /* of the directory; that are there */
    u64 absent;          /* entries of a directory that are 0 */
    u64 stale;           /* entries of the last table past the end of the disk that are not 0 */
    u64 used_end;
    u64 hash;   /* of [0, upto) */
    bool zero;  /* [zero_from, zero_to) reads zero */
    u64 faults; /* contradictions */
    u64 torn;   /* of these: grains that one of two tables has, tables that only the second
                 * directory has */
    char first[160];
};

/* An extent of a split image, which begins at byte `first` of the disk: it has no descriptor. upto
 * and the others count in the disk. */
void vmdk_judge_extent(const struct blk_mem *m, u64 first, u64 upto, u64 zero_from, u64 zero_to,
                       struct vmdk_verdict *v);
/* What a flat extent's bytes from `off` on, `len` of them, add to such a verdict. */
void vmdk_judge_flat(const struct blk_mem *m, u64 off, u64 len, u64 first, u64 upto, u64 zero_from,
                     u64 zero_to, struct vmdk_verdict *v);
void vmdk_judge_mem(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                    struct vmdk_verdict *v);
/* The hash that a disk of these bytes has. */
u64 vmdk_judge_plain(const u8 *p, u64 len);

#endif
