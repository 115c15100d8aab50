/* SPDX-License-Identifier: MIT
 *
 * qcow2 persistent bitmaps: the directory, its entries, and the table that each names. Source:
 * docs/interop/qcow2.txt, "Bitmaps"; limits are qemu's (parity C.8). Nothing is changed here.
 *
 * One bit stands for 2^granularity_bits bytes of the disk, the lowest bit of a byte first. A table
 * entry names a cluster of bits, or says that it is all zeros or all ones.
 */
#ifndef FORMATS_QCOW2_BITMAP_H
#define FORMATS_QCOW2_BITMAP_H

#include "format.h"

enum qcow2_bitmap_field { /* "Bitmap directory" */
                          QB_TABLE_OFFSET = 0,
                          QB_TABLE_SIZE = 8,
                          QB_FLAGS = 12,
                          QB_TYPE = 16,
                          QB_GRANULARITY_BITS = 17,
                          QB_NAME_SIZE = 18,
                          QB_EXTRA_DATA_SIZE = 20,
                          QB_HEAD = 24, /* then extra data, and the name */
};

#define QCOW2_BITMAP_IN_USE 1u
#define QCOW2_BITMAP_AUTO 2u
#define QCOW2_BITMAP_KNOWN 3u
#define QCOW2_BITMAP_DIRTY_TRACKING 1u /* the only type */
#define QCOW2_BITMAP_ONES 1ull         /* in a table entry without an offset */
#define QCOW2_BITMAP_RESERVED 0xff000000000001feull

#define QCOW2_MAX_BITMAPS 65535u
#define QCOW2_MAX_BITMAP_NAME 1023u
#define QCOW2_MAX_BITMAP_DIRECTORY (QCOW2_MAX_BITMAPS * 1024ull)
#define QCOW2_MAX_BITMAP_BYTES (512ull << 20) /* of bits, in whole clusters */

/* A directory entry. */
struct qcow2_bitmap {
    u64 off; /* in the file */
    u32 len; /* with its padding: the next one follows */
    u64 table_offset;
    u32 table_size; /* entries */
    u32 flags;
    u8 granularity_bits;
    u64 name_hash; /* equal for equal names */
    char name[64]; /* as in struct err */
};

/* Has the image bitmaps that are consistent with it? Without the autoclear bit they are stale. */
bool qcow2_bitmaps_valid(const struct qcow2 *q);
/* The limits of the directory as a whole. */
int qcow2_bitmap_directory(const struct image *img, struct err *e);
/* The entry that begins at byte `at` of the directory: inside of it, of a known kind, within the
 * limits. ERR_OVERLAY_CORRUPT, ERR_UNSUPPORTED_FEATURE. */
int qcow2_bitmap_get(struct image *img, u64 at, struct qcow2_bitmap *b, struct err *e);
/* Bits, and table entries, of a bitmap for a disk of `size` bytes. */
u64 qcow2_bitmap_bits(u64 size, u32 granularity_bits);
u64 qcow2_bitmap_entries(const struct qcow2 *q, u64 size, u32 granularity_bits);
/* Table entry idx; 0 past the end of the table. *sound: no reserved bits, and a cluster that it
 * names is where a cluster can be; if `sound` is NULL, any other entry is ERR_OVERLAY_CORRUPT. */
int qcow2_bitmap_entry(struct image *img, const struct qcow2_bitmap *b, u64 idx, u64 *entry,
                       bool *sound, struct err *e);
/* A failure about this bitmap, whose name the text may show. Returns the code. */
int qcow2_bitmap_fail(struct err *e, int rc, const struct qcow2_bitmap *b);

#endif
