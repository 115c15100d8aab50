/* SPDX-License-Identifier: MIT
 *
 * VHDX, version 1: where each field lies and what this image says. While the log is dirty, all
 * that is read here is read through it, as if it had been replayed.
 * Source: [MS-VHDX]; names are that document's. All integers little endian.
 */
#ifndef FORMATS_VHDX_H
#define FORMATS_VHDX_H

#include "vhdx_log.h"

enum {
    VHDX_MIB = 1 << 20,
    VHDX_SECTOR = 4096, /* the unit of the log, and the size of a header */
    VHDX_HEADER_1 = 64 << 10,
    VHDX_HEADER_2 = 128 << 10,
    VHDX_REGION_TABLE_1 = 192 << 10,
    VHDX_REGION_TABLE_2 = 256 << 10,
    VHDX_TABLE_SIZE = 64 << 10, /* of a region table, and of the metadata table */
    VHDX_ENTRIES_MAX = 2047,    /* of either */
    VHDX_ENTRY_SIZE = 32,       /* in either */
};
#define VHDX_MAX_DISK_SIZE (64ull << 40)

enum vhdx_header_field {                    /* 2.2.2 */
                         VXH_SIGNATURE = 0, /* "head" */
                         VXH_CHECKSUM = 4,
                         VXH_SEQUENCE_NUMBER = 8,
                         VXH_FILE_WRITE_GUID = 16,
                         VXH_DATA_WRITE_GUID = 32,
                         VXH_LOG_GUID = 48,
                         VXH_LOG_VERSION = 64,
                         VXH_VERSION = 66,
                         VXH_LOG_LENGTH = 68,
                         VXH_LOG_OFFSET = 72,
                         VXH_SIZE = 80, /* the rest is reserved */
};

enum vhdx_region_table_field {                   /* 2.2.3 */
                               VR_SIGNATURE = 0, /* "regi" */
                               VR_CHECKSUM = 4,
                               VR_ENTRY_COUNT = 8,
                               VR_ENTRIES = 16,
};
enum vhdx_region_entry_field {
    VRE_GUID = 0,
    VRE_FILE_OFFSET = 16,
    VRE_LENGTH = 24,
    VRE_REQUIRED = 28
};

enum vhdx_metadata_table_field {                   /* 2.6.1 */
                                 VM_SIGNATURE = 0, /* "metadata" */
                                 VM_ENTRY_COUNT = 10,
                                 VM_ENTRIES = 32,
};
enum vhdx_metadata_entry_field {
    VME_ITEM_ID = 0,
    VME_OFFSET = 16,
    VME_LENGTH = 20,
    VME_FLAGS = 24
};
#define VHDX_META_IS_USER 1u
#define VHDX_META_IS_REQUIRED 4u

#define VHDX_LEAVE_BLOCK_ALLOCATED 1u /* FileParameters */
#define VHDX_HAS_PARENT 2u

enum vhdx_block_state { /* 2.5.1 */
                        VHDX_NOT_PRESENT = 0,
                        VHDX_UNDEFINED = 1,
                        VHDX_ZERO = 2,
                        VHDX_UNMAPPED = 3,
                        VHDX_FULLY_PRESENT = 6,
                        VHDX_PARTIALLY_PRESENT =
                            7, /* of a differencing disk, as its sector bitmap says */
};
#define VHDX_BAT_STATE 7ull
#define VHDX_BAT_RESERVED 0xffff8ull
#define VHDX_BAT_OFFSET (~0xfffffull)

struct vhdx {
    unsigned current;  /* the header that rules: 0 or 1 */
    bool region_ok[2]; /* is this region table valid? */
    u64 sequence_number;
    struct vhdx_log log;
    u32 bat_entry, metadata_entry; /* which ones of the region table are theirs */
    u64 bat_offset, metadata_offset;
    u32 bat_length, metadata_length;
    u64 size_offset; /* in the file, of the VirtualDiskSize item */
    u32 block_size, logical_sector, physical_sector;
    bool leave_allocated, has_parent;
    u64 locator_offset; /* in the file, of the parent locator; 0: there is none */
    u32 locator_length;
    u64 regions_end; /* where the log and the last region end, required or not */
    u32 chunk_ratio; /* payload blocks to a sector bitmap block */
    char file_guid[40], data_guid[40], disk_guid[40], parent[64]; /* as text */
};

struct image;
struct extent;
struct facts;

/* The format's members; see format.h. */
bool vhdx_probe(struct blk *b);
int vhdx_open(struct image *img, struct err *e);
/* Its last step, in vhdx_metadata.c: regions are known by then. */
int vhdx_open_metadata(struct image *img, struct err *e);
/* A GUID as text, 36 characters and a NUL. */
void vhdx_guid_text(const u8 g[16], char *to);

/* Offset of header or region table 0 or 1. */
static inline u64 vhdx_header_offset(unsigned i)
{
    return i ? VHDX_HEADER_2 : VHDX_HEADER_1;
}
static inline u64 vhdx_region_table_offset(unsigned i)
{
    return i ? VHDX_REGION_TABLE_2 : VHDX_REGION_TABLE_1;
}

/* Payload blocks of a disk of `size` bytes; entries that its BAT has; the entry of payload block
 * `block`. */
u64 vhdx_blocks(const struct vhdx *v, u64 size);
u64 vhdx_bat_entries(const struct vhdx *v, u64 size);
u64 vhdx_bat_index(const struct vhdx *v, u64 block);
/* Is this entry one of a sector bitmap block? */
bool vhdx_is_bitmap(const struct vhdx *v, u64 idx);

/* Like window_get(), through the log while that is dirty. */
int vhdx_get(struct image *img, struct window *w, u64 off, u32 len, u64 end, const u8 **p,
             struct err *e);
/* A BAT entry, as it stands. It may lie past the end of the disk, but not of the region. */
int vhdx_bat_get(struct image *img, struct window *w, u64 idx, u64 *entry, struct err *e);
/* Refuses an entry whose state or place no disk of this kind can have; *len: the bytes of the file
 * that are its block's, at entry & VHDX_BAT_OFFSET; 0 if it has none. ERR_OVERLAY_CORRUPT. */
int vhdx_bat_check(const struct image *img, u64 idx, u64 entry, u64 *len, struct err *e);
/* Region i of the region table: false in *more past the last. */
int vhdx_region(struct image *img, struct window *w, u32 i, u64 *off, u32 *len, bool *more,
                struct err *e);

#endif
