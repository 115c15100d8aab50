/* SPDX-License-Identifier: MIT
 *
 * VMDK: sparse extents that hold their own descriptor (monolithicSparse, streamOptimized), and
 * descriptors that name extents in other files, flat or sparse: where each field lies, and what
 * this image's headers say. Source: VMware's "Virtual Disk Format 5.0"; names are that document's.
 * All integers little endian; header fields count sectors of 512 bytes.
 *
 * The size of a sparse extent is its header's capacity. A killed resize may leave another one in
 * the descriptor: the header rules, as it does in qemu. A flat extent's is what its line says.
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

enum vmdk_cow_field { /* COWDisk_Header, all of 32 bits */
                      VMC_VERSION = 4,
                      VMC_NUM_SECTORS = 12,
                      VMC_GRAIN_SIZE = 16,
                      VMC_GD_OFFSET = 20,
                      VMC_NUM_GD_ENTRIES = 24,
                      VMC_UNCLEAN_SHUTDOWN = 1648,
                      VMC_LENGTH = 2048,
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
    VMDK_COW_GTES = 4096,
    VMDK_GRAIN_MIN = 8,
    VMDK_GRAIN_MAX = 1 << 21,    /* sectors; qemu's limit */
    VMDK_ENTRIES_MAX = 32 << 20, /* of a grain directory; qemu's limit */
    VMDK_ZEROED = 1,             /* a grain table's entry, with VMDK_ZEROED_GRAINS */
};

/* A kind of image that consists of extents in other files. */
struct vmdk_kind {
    const char *create_type, *line; /* the TYPE of all its lines */
    bool sparse, cow;
    bool changes; /* can be resized */
    bool single;  /* it has one extent */
    char letter;  /* of its extents' names: x-s001.vmdk */
};

struct vmdk_part;
struct vmdk {
    /* Of a sparse extent. */
    u32 version, flags, gtes;  /* gtes: grain table entries per grain table */
    u64 capacity;              /* sectors */
    u64 entries;               /* of the grain directory */
    u64 gd_offset, rgd_offset; /* bytes; rgd_offset 0: there is no redundant directory */
    u64 descriptor_offset, descriptor_size; /* bytes */
    u64 overhead;                           /* bytes */
    u32 head;                               /* bytes of the header */
    bool unclean;
    bool child; /* of an image with a parent. One that is no VMDK has no CID, but a name */
    /* Of an image. */
    struct vmdk_descriptor *text;
    const struct vmdk_kind *kind; /* NULL: its only extent is the file with the descriptor */
    struct vmdk_part *part;       /* else its extents, in order: text->extents */
};

/* An extent in a file of its own, file[1] and so on. */
struct vmdk_part {
    u64 start, size; /* bytes of the disk */
    u64 off;         /* of a flat one: where it begins in its file */
    u32 unit;        /* of a sparse one: bytes of a grain */
    struct vmdk sparse;
};

/* What an image keeps in img->own. */
struct vmdk_own {
    struct vmdk_descriptor text;
    struct vmdk_part part[VMDK_EXTENTS_MAX];
};

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

/* Opens img->file[0] as an extent by itself: header and directories, no descriptor. */
int vmdk_open_extent(struct image *img, bool cow, struct err *e);
/* map() of an image that is one sparse extent. */
int vmdk_map_sparse(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e);

/* ---- vmdk_split.c: descriptors of several files ---- */

/* Opens the image whose descriptor is file[0]; its extents too, if they are attached. */
int vmdk_open_split(struct image *img, struct err *e);
int vmdk_map_split(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e);
/* The sparse extent i as an image by itself, which has lent img's windows until it is given back;
 * img is not used in the meantime. */
void vmdk_lend_part(struct image *img, unsigned i, struct image *part);
void vmdk_return_part(struct image *img, const struct image *part);
/* ERR_UNSUPPORTED_SUBFORMAT, with the name of the kind. */
int vmdk_unsupported(const char *name, struct err *e);

#endif
