/* SPDX-License-Identifier: MIT
 *
 * An independent reader of VHDX that judges images for the tests. It shares no code with formats/
 * and reads [MS-VHDX] by itself: headers, both region tables, metadata, BAT, and the log, which it
 * replays on a copy first.
 */
#ifndef TESTS_VHDX_JUDGE_H
#define TESTS_VHDX_JUDGE_H

#include "blk_mem.h"

struct vhdx_verdict {
    bool opens; /* if not, `why` says why and the rest is 0 */
    const char *why;
    bool dirty;          /* the log had to be replayed */
    u32 headers, tables; /* how many of each are valid: 0 to 2 */
    bool headers_agree;  /* GUIDs and log fields of both are equal */
    u64 corruptions;     /* and the first of them */
    const char *first;
    u64 first_at;
    u64 size, sequence_number, present, entries, bat_offset, bat_length, length /* of the file */;
    u64 stale; /* BAT entries past the last one that are not zero */
    bool fixed, child;
    u8 file_guid[16], data_guid[16], disk_guid[16];
    u64 hash;         /* of guest bytes [0, hash_to), as in qcow2_judge.h */
    bool zero;        /* guest bytes [zero_from, zero_to) are all zero, by this file alone */
    u64 unknown_hash; /* of what optional regions and items of others hold */
};

void vhdx_judge(const struct blk_mem *m, u64 hash_to, u64 zero_from, u64 zero_to,
                struct vhdx_verdict *v);
/* No corruption, both headers and tables valid and in agreement, the log empty? */
bool vhdx_judge_clean(const struct vhdx_verdict *v);

#endif
