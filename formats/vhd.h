/* SPDX-License-Identifier: MIT
 *
 * VHD ("vpc"): fixed, dynamic and differencing: where each field lies, and what this image's footer
 * and dynamic disk header say. Source: Microsoft's "Virtual Hard Disk Image Format Specification"
 * 1.0; names are that document's. All integers big endian.
 *
 * A footer ends every file; all but fixed disks have a copy of it at the head. A killed resize may
 * leave them apart, or the file without the one at its end: then the head rules, as it does in
 * qemu.
 */
#ifndef FORMATS_VHD_H
#define FORMATS_VHD_H

#include "table.h"

enum vhd_footer_field { /* "Hard Disk Footer Format" */
                        VF_COOKIE = 0,
                        VF_FEATURES = 8,
                        VF_FILE_FORMAT_VERSION = 12,
                        VF_DATA_OFFSET = 16,
                        VF_TIME_STAMP = 24,
                        VF_CREATOR_APPLICATION = 28,
                        VF_ORIGINAL_SIZE = 40,
                        VF_CURRENT_SIZE = 48,
                        VF_DISK_GEOMETRY = 56,
                        VF_DISK_TYPE = 60,
                        VF_CHECKSUM = 64,
                        VF_UNIQUE_ID = 68,
                        VF_SAVED_STATE = 84,
                        VF_LENGTH = 512,
};

enum vhd_header_field { /* "Dynamic Disk Header Format" */
                        VH_COOKIE = 0,
                        VH_TABLE_OFFSET = 16,
                        VH_HEADER_VERSION = 24,
                        VH_MAX_TABLE_ENTRIES = 28,
                        VH_BLOCK_SIZE = 32,
                        VH_CHECKSUM = 36,
                        VH_LENGTH = 1024,
};

enum vhd_disk_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 };

enum { VHD_SECTOR = 512 };
#define VHD_UNUSED 0xffffffffu             /* a BAT entry: no block */
#define VHD_MAX_SIZE (0xff000000ull * 512) /* 2040 GiB */
#define VHD_CHS_MAX (65535ull * 16 * 255)  /* sectors: the most that a geometry can say */

struct vhd_geometry {
    u16 cylinders;
    u8 heads, sectors; /* sectors: a track's */
};

struct vhd {
    u32 disk_type;
    char creator[5]; /* NUL-terminated */
    bool saved_state;
    u64 current_size, original_size;
    struct vhd_geometry geometry;
    u64 tail_offset;   /* the footer at the end of the file; 0: there is none */
    bool tail_differs; /* it gives another size than the head */
    /* Of dynamic and differencing disks: */
    u64 header_offset, table_offset;
    u32 max_table_entries, block_size;
    u32 bitmap_size; /* bytes before each block's data */
    u64 data_end;    /* where the last block must have ended: at the footer, or the file's end */
};

/* Sectors that a geometry names. */
u64 vhd_chs_sectors(struct vhd_geometry g);
/* The specification's geometry for a disk of so many sectors ("CHS Calculation"); its product may
 * be less. */
struct vhd_geometry vhd_chs(u64 sectors);
/* Does a reader of this creator's images go by the geometry (qemu 10's rule, parity D.4)? A
 * geometry that is the largest possible says nothing. */
bool vhd_by_chs(const struct vhd *v);
/* Ones' complement of the sum of len bytes, but for the four at `at`. */
u32 vhd_checksum(const u8 *p, u32 len, u32 at);

struct image;
/* BAT entry idx (< max_table_entries): *off is where its bitmap lies in the file, 0 if there is no
 * block. ERR_OVERLAY_CORRUPT: it lies outside of what can hold a block. */
int vhd_block(struct image *img, u64 idx, u64 *off, struct err *e);
/* The same for the value of an entry that has been read already. */
int vhd_check_block(const struct image *img, u32 entry, u64 *off, struct err *e);
/* The end of the BAT, rounded up to a sector: padding belongs to it. */
u64 vhd_table_end(const struct vhd *v);
/* A block in the file, with its bitmap: bytes. */
u64 vhd_block_span(const struct vhd *v);

#endif
