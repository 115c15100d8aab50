/* SPDX-License-Identifier: MIT
 *
 * The independent judge of VHD images: it shares no code with formats/ and planner/. It reads a
 * memory disk as three readers would (qemu 7.2, qemu 10, Hyper-V), verifies both footers, the
 * dynamic header, every checksum, and that no two structures overlap, and hashes the guest's data,
 * once with and once without regard to the block bitmaps.
 */
#ifndef TESTS_VHD_JUDGE_H
#define TESTS_VHD_JUDGE_H

#include "blk_mem.h"

struct vhd_verdict {
    bool opens;
    const char *why; /* why not */
    u64 size;        /* qemu 10's */
    u64 size_qemu7, size_current;
    bool tail;      /* a valid footer ends the file */
    bool tail_same; /* byte for byte the one at the head (always, for fixed disks) */
    u64 tail_size;  /* current_size in it */
    bool settled;   /* that footer lies right behind the last structure */
    bool padded;    /* the rest of the BAT's last sector is 0xff */
    u64 blocks, used_end;
    u64 hash, hash_raw; /* of [0, upto): by the bitmaps, and without them */
    bool zero;          /* [zero_from, zero_to) reads zero, either way */
    u64 faults;         /* contradictions */
    char first[160];
};

void vhd_judge_mem(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                   struct vhd_verdict *v);

#endif
