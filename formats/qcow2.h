/* SPDX-License-Identifier: MIT
 *
 * qcow2, versions 2 and 3: where each field lies and what this image's header says.
 * Source: QEMU's docs/interop/qcow2.txt; names are that document's. All integers big endian.
 */
#ifndef FORMATS_QCOW2_H
#define FORMATS_QCOW2_H

#include "table.h"

enum qcow2_header_field { /* "Header" */
    QH_MAGIC = 0,
    QH_VERSION = 4,
    QH_BACKING_FILE_OFFSET = 8,
    QH_BACKING_FILE_SIZE = 16,
    QH_CLUSTER_BITS = 20,
    QH_SIZE = 24,
    QH_CRYPT_METHOD = 32,
    QH_L1_SIZE = 36,
    QH_L1_TABLE_OFFSET = 40,
    QH_REFCOUNT_TABLE_OFFSET = 48,
    QH_REFCOUNT_TABLE_CLUSTERS = 56,
    QH_NB_SNAPSHOTS = 60,
    QH_SNAPSHOTS_OFFSET = 64,
    QH_V2_LENGTH = 72,
    QH_INCOMPATIBLE_FEATURES = 72,
    QH_COMPATIBLE_FEATURES = 80,
    QH_AUTOCLEAR_FEATURES = 88,
    QH_REFCOUNT_ORDER = 96,
    QH_HEADER_LENGTH = 100,
    QH_COMPRESSION_TYPE = 104,
    QH_V3_LENGTH = 104, /* the least a version 3 header may have */
};

#define QCOW2_MAGIC 0x514649fbu

enum qcow2_extension {
    QEXT_END = 0,
    QEXT_BACKING_FORMAT = (int)0xe2792aca,
    QEXT_FEATURE_NAMES = 0x6803f857,
    QEXT_BITMAPS = 0x23852875,
    QEXT_CRYPTO = 0x0537be77,
    QEXT_DATA_FILE = 0x44415441,
};

#define QCOW2_INCOMPAT_DIRTY 1ull
#define QCOW2_INCOMPAT_CORRUPT 2ull
#define QCOW2_INCOMPAT_DATA_FILE 4ull
#define QCOW2_INCOMPAT_COMPRESSION 8ull
#define QCOW2_INCOMPAT_EXTL2 16ull
#define QCOW2_INCOMPAT_KNOWN 31ull
#define QCOW2_COMPAT_LAZY_REFCOUNTS 1ull
#define QCOW2_AUTOCLEAR_BITMAPS 1ull
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW 2ull
#define QCOW2_AUTOCLEAR_KNOWN 3ull

/* Table entries: an offset's bits, and the flags around them. */
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_COPIED (1ull << 63)
#define QCOW2_COMPRESSED (1ull << 62)
#define QCOW2_L2_ZERO 1ull
#define QCOW2_L1_RESERVED 0x7f000000000001ffull
#define QCOW2_L2_RESERVED 0x3f000000000001feull
#define QCOW2_REFTABLE_OFFSET_MASK 0xfffffffffffffe00ull
#define QCOW2_REFTABLE_RESERVED 0x1ffull

/* qemu's limits (parity A.7, C.1, C.7). */
#define QCOW2_MAX_L1_BYTES (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_DISK_SIZE (0x7fffffffffffffffull - (1u << 30) + 1) /* 2^63 - 2^30 */
#define QCOW2_MAX_OFFSET (1ull << 56)

enum { QCOW2_NAMED_TABLES = 6 };

struct qcow2 {
    u32 version, cluster_bits, crypt_method, l1_size, refcount_table_clusters, nb_snapshots;
    u32 refcount_order, header_length;
    u64 l1_table_offset, refcount_table_offset, snapshots_offset;
    u64 incompatible, compatible, autoclear;
    u8 compression_type;
    u64 backing_file_offset;
    u32 backing_file_size;
    u64 backing_format_offset; /* 0: no such extension */
    u32 backing_format_size;
    bool has_bitmaps_ext, has_crypto_ext, has_data_file_ext;
    u32 nb_bitmaps;
    u64 bitmap_directory_offset, bitmap_directory_size;
    u64 crypto_offset, crypto_length;
    u64 data_file_offset;
    u32 data_file_size;
    u64 snapshots_size; /* bytes of the snapshot table */
    u64 tables_end;     /* where the last table ends that the header or a snapshot names */
    u8 header[QH_V3_LENGTH]; /* as on the disk, whatever the version */
    /* derived */
    struct {
        u64 off, end;
    } named[QCOW2_NAMED_TABLES]; /* clusters of the tables that the header names; end 0: none */
    u32 l2_bits; /* log2 of the entries of an L2 table */
    u32 l2_entry_size; /* 8, or 16 with extended L2 */
};

struct image;
struct extent;

/* L1 entries that a disk of `size` bytes needs. */
u64 qcow2_l1_entries(const struct qcow2 *q, u64 size);
/* Is the guest's data in a file of its own, file[1]? Its offsets are the guest's. */
bool qcow2_has_data_file(const struct qcow2 *q);
/* Entries of the refcount table. */
u64 qcow2_reftable_entries(const struct qcow2 *q);
/* log2 of the entries of a refcount block. */
u32 qcow2_refblock_bits(const struct qcow2 *q);
/* Does the header name a bitmap directory? Without the autoclear bit the extension is stale. */
bool qcow2_names_bitmaps(const struct qcow2 *q);

/* ---- qcow2_tables.c ---- */

/* The last step of opening: every table that the header or a snapshot names is where one can be. */
int qcow2_tables_open(struct image *img, struct err *e);
/* Refuses a metadata structure of `len` bytes (> 0) at `off` that is not cluster-aligned, does not
 * lie inside the file (its last cluster may be cut short), or touches the header or a table that
 * the header names. ERR_OVERLAY_CORRUPT with `what`; val is the offset. */
int qcow2_check_table(const struct image *img, u64 off, u64 len, const char *what, struct err *e);

/* The offset of refcount block `idx`, 0 if there is none. ERR_OVERLAY_CORRUPT: reserved bits,
 * misplaced, or on top of a table that the header names. */
int qcow2_refblock(struct image *img, u64 idx, u64 *off, struct err *e);

struct qcow2_snapshot {
    u64 l1_table_offset;
    u32 l1_size;
    u64 len; /* of the entry, with its padding: the next one follows */
};
/* The entry of the snapshot table that stands at `at` of the file, read through `win`; its L1 table
 * is where one can be. ERR_OVERLAY_CORRUPT, ERR_PARSE_FAILED. */
int qcow2_snapshot(struct image *img, struct window *win, u64 at, struct qcow2_snapshot *s,
                   struct err *e);

/* ---- qcow2_map.c ---- */

/* The L2 table that the value of an L1 entry names, validated; 0 if there is none. */
int qcow2_l1_entry(const struct image *img, u64 l1_idx, u64 entry, u64 *l2_offset, struct err *e);
/* The same for entry l1_idx of the active L1 table, which is read. */
int qcow2_l1_get(struct image *img, u64 l1_idx, u64 *l2_offset, struct err *e);
/* Bits that must be 0 in an L2 entry of a cluster that is not compressed; and whether such an entry
 * maps a cluster. */
u64 qcow2_l2_reserved(const struct qcow2 *q);
bool qcow2_l2_allocated(const struct qcow2 *q, u64 entry);
/* Decodes a compressed cluster's descriptor: x bits of byte offset, then how many more sectors it
 * spans. Sets kind, off and packed_len. */
int qcow2_packed(struct image *img, u64 entry, struct extent *x, struct err *e);
/* The one cluster or subcluster (or unmapped L2 range) that voff lies in, from voff on. It may lie
 * past the end of the disk, but not past the reach of the L1 table. */
int qcow2_look(struct image *img, u64 voff, struct extent *x, struct err *e);
/* The format's map(); see format.h. */
int qcow2_map(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e);

/* The format's unpack(), where qcow2_unpack.c is linked; see format.h. */
int qcow2_unpack(struct image *img, const struct extent *x, void *out, struct err *e);

#endif
