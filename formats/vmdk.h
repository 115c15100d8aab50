/* SPDX-License-Identifier: MIT
 *
 * VMDK: sparse extents that hold their own descriptor (monolithicSparse, streamOptimized): where
 * each field lies, and what this image's header says. Source: VMware's "Virtual Disk Format 5.0";
 * names are that document's. All integers little endian; header fields count sectors of 512 bytes.
 *
 * The size of the disk is the header's capacity. A killed resize may leave another one in the
 * descriptor: the header rules, as it does in qemu.
 */
#ifndef FORMATS_VMDK_H
#define FORMATS_VMDK_H

#include "vmdk_descriptor.h"

enum vmdk_header_field { /* SparseExtentHeader */
                         VMH_MAGIC = 0,
                         VMH_VERSION = 4,
                         VMH_FLAGS = 8,
                         VMH_CAPACITY = 12,
                         VMH_GRAIN_SIZE = 20,
                         VMH_DESCRIPTOR_OFFSET = 28,
                         VMH_DESCRIPTOR_SIZE = 36,
                         VMH_NUM_GTES_PER_GT = 44,
                         VMH_RGD_OFFSET = 48,
                         VMH_GD_OFFSET = 56,
                         VMH_OVERHEAD = 64,
                         VMH_UNCLEAN_SHUTDOWN = 72,
                         VMH_NEWLINES = 73,
                         VMH_COMPRESS_ALGORITHM = 77,
                         VMH_LENGTH = 512,
};

enum vmdk_flag {
    VMDK_NEWLINES = 1 << 0,
    VMDK_REDUNDANT = 1 << 1,
    VMDK_ZEROED_GRAINS = 1 << 2,
    VMDK_COMPRESSED = 1 << 16,
    VMDK_MARKERS = 1 << 17,
    VMDK_FLAGS =
        VMDK_NEWLINES | VMDK_REDUNDANT | VMDK_ZEROED_GRAINS | VMDK_COMPRESSED | VMDK_MARKERS,
};

enum {
    VMDK_SECTOR = 512,
    VMDK_GTES_MAX = 512,
    VMDK_GRAIN_MIN = 8,
    VMDK_GRAIN_MAX = 1 << 21,    /* sectors; qemu's limit */
    VMDK_ENTRIES_MAX = 32 << 20, /* of a grain directory; qemu's limit */
    VMDK_ZEROED = 1,             /* a grain table's entry, with VMDK_ZEROED_GRAINS */
};

struct vmdk {
    u32 version, flags, gtes;  /* gtes: grain table entries per grain table */
    u64 capacity;              /* sectors */
    u64 entries;               /* of the grain directory */
    u64 gd_offset, rgd_offset; /* bytes; rgd_offset 0: there is no redundant directory */
    u64 descriptor_offset, descriptor_size; /* bytes */
    u64 overhead;                           /* bytes */
    bool unclean;
    struct vmdk_descriptor text;
};

/* Does what the image does not hold show a parent? One that is no VMDK has no CID, but a name. */
static inline bool vmdk_has_parent(const struct vmdk *v)
{
    return v->text.parent_cid != VMDK_NO_PARENT || v->text.hint.len;
}

struct image;
struct extent;
/* The format's unpack(), where vmdk_unpack.c is linked; see format.h. */
int vmdk_unpack(struct image *img, const struct extent *x, void *out, struct err *e);
/* Bytes that a grain table occupies in the file: whole sectors. */
u64 vmdk_table_span(const struct vmdk *v);
/* How many grains the disk has; entries of the directory that so many grains want. */
u64 vmdk_grains(const struct image *img);
u64 vmdk_entries(const struct vmdk *v, u64 grains);
/* The bytes that a grain directory of so many entries occupies: whole sectors. */
u64 vmdk_directory_span(u64 entries);
/* What an entry of a grain directory, or of a grain table, says: *off, bytes; 0: there is none.
 * ERR_OVERLAY_CORRUPT: it lies outside of the file, or on metadata. A grain may end behind the end
 * of the file: the rest of it reads zero. */
int vmdk_check_table(const struct image *img, u32 entry, u64 *off, struct err *e);
int vmdk_check_grain(const struct image *img, u32 entry, u64 *off, struct err *e);
/* The table that entry idx of a grain directory at `gd` names; 0: none. */
int vmdk_table(struct image *img, u64 gd, u64 idx, u64 *off, struct err *e);

#endif
