/* SPDX-License-Identifier: MIT
 *
 * Fabricates VHDX images on a memory disk, of every shape that the tests want, and writes log
 * entries into them. Shares no code with formats/.
 */
#ifndef TESTS_VHDX_MAKE_H
#define TESTS_VHDX_MAKE_H

#include "blk_mem.h"

struct vhdx_make {
    u64 size, seed;
    u32 block_mib, sector;    /* 0: 1 MiB, 512 */
    bool fixed, child;        /* LeaveBlockAllocated, every block present; a differencing image */
    u32 blocks;               /* this many payload blocks hold data, spread over the disk */
    bool last;                /* and the last one */
    bool backwards;           /* the later blocks lie first in the file */
    bool partial;             /* of a child: every other one of them is present in part */
    bool stale_tail;          /* bytes of the last block past the end of the disk are not zero */
    u32 stale_entries;        /* BAT entries past the last one that are not zero */
    bool short_end;           /* the file ends with the disk, inside the last block */
    u32 bat_mib, log_mib;     /* 0: what is needed; 1 */
    u32 gap_mib;              /* free MiB between the structures */
    u32 slack_mib, slack_odd; /* the file goes on, with bytes that nobody owns: MiB and bytes */
    bool metadata_last;       /* the metadata region lies behind the payload */
    bool unknown;             /* an optional region and an optional metadata item of others */
    bool crooked_size;        /* VirtualDiskSize lies across two sectors of 4 KiB */
    u64 sequence_number;      /* of header 2; header 1 has one less. 0: 2 */
    bool first_rules, one_header, same_headers; /* header 1 is current; 2 is void; both are equal */
    u8 void_table;                              /* 1, 2: that region table is void */
};

struct vhdx_made {
    u64 length, log, bat, metadata, payload; /* where they begin; the file's length */
    u32 log_length, bat_length, block, ratio;
    u64 blocks, entries, size_item;
};

void vhdx_make(struct blk_mem *m, const struct vhdx_make *p, struct vhdx_made *out);

/* One change for a log entry: 4 KiB of `data`, or `zero` bytes of zeros, at `off`. */
struct vhdx_make_change {
    u64 off, zero;
    const u8 *data;
};

/* Writes an entry at `at` of the log (wrapping around its end) and returns its length. */
u32 vhdx_make_entry(struct blk_mem *m, const struct vhdx_made *d, u32 at, u32 tail, u64 sequence,
                    const u8 guid[16], const struct vhdx_make_change *c, u32 cnt, u64 flushed,
                    u64 last);
/* Makes both headers name the log GUID; sums are set right. */
void vhdx_make_log_guid(struct blk_mem *m, const u8 guid[16]);
/* Sets the checksum of `len` bytes at off, whose field lies at off + 4, right. */
void vhdx_make_sum(struct blk_mem *m, u64 off, u32 len);
u32 vhdx_make_crc(u32 crc, const u8 *p, size_t len);

#endif
