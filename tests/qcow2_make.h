/* SPDX-License-Identifier: MIT
 *
 * Fabricates qcow2 images on a memory disk, of every shape that the tests want: what qemu-img would
 * not make, `qemu-img check` still accepts (a test holds it to that).
 */
#ifndef TESTS_QCOW2_MAKE_H
#define TESTS_QCOW2_MAKE_H

#include "blk_mem.h"

/* Kinds of guest cluster, as a mask: allocated clusters take the kinds in turn. */
enum {
    MAKE_DATA = 1,
    MAKE_ZERO = 2,    /* v3: the zero flag alone */
    MAKE_PREZERO = 4, /* v3: zero flag over a cluster that holds old bytes */
    MAKE_PACKED = 8,  /* compressed: one byte value throughout */
    MAKE_SUB = 16,    /* ext L2: subclusters allocated, zero and absent by turns */
};

struct make {
    u32 version, cluster_bits, refcount_order;
    bool ext_l2;
    u64 size, seed;
    u32 header_length;                       /* 0: 72 (v2) or 112; else as given, 104 and up */
    u8 header_fill;                          /* bytes 112.. of a longer header, "unknown fields" */
    bool unknown_ext;                        /* two unknown extensions and a feature name table */
    u64 autoclear, compatible, incompatible; /* set as given (ext L2 is added) */
    u8 compression_type;
    const char *backing, *backing_format;
    u32 snapshots;
    u32 kinds;  /* of the clusters below; 0: no data */
    u32 first;  /* this many guest clusters from 0 on */
    u32 spread; /* and this many anywhere */
    bool last;  /* and the last one, which may be partial: of kind last_kind or DATA */
    u32 last_kind;
    bool stale;       /* bytes of the last cluster past the size are not zero */
    bool stale_l2;    /* data clusters mapped past the size, within the last L2 table */
    u32 l1_extra;     /* L1 entries beyond what the size needs */
    bool l1_middle;   /* L1 right after the first refcount blocks; else at the end of the file */
    u32 rt_clusters;  /* 0: as many as needed */
    u64 end_cluster;  /* what comes last begins at this cluster, or later; 0: no gap */
    u32 pad_clusters; /* the file is longer by this many free clusters */
    u64 above_eof;    /* bit i: cluster i after the end of the file has refcount 1 */
    u32 bitmaps;      /* this many, named b0, b1, ...; clusters of bits are data, zeros and ones */
    u32 granularity;  /* its bits, of b0; each following bitmap has one more; 0: 16 */
    enum { MAKE_END_EXACT, MAKE_END_CLUSTER, MAKE_END_SECTOR } end;
};

struct made {
    u64 length, l1_offset, l1_size, rt_offset, rt_clusters, clusters /* of the file */;
    u64 rt_entries, block_entries; /* the table's; per block */
    u64 blocks;                    /* refcount blocks */
    u64 last_l2, last_data;        /* host offsets of the last ones made; 0: none */
    u64 dir_offset, dir_size;      /* the bitmap directory */
    u64 ext_offset;                /* data of the bitmaps extension */
};

/* A fresh memory disk in *m. Defaults for zeros: version 3, 64 KiB clusters (cluster_bits 16);
 * refcount_order is taken as it is. */
void qcow2_make(struct blk_mem *m, const struct make *p, struct made *out);

/* The pattern that the maker writes as guest data: len bytes at voff. Never all zero in 512. */
void make_pattern(u64 seed, u64 voff, u8 *buf, size_t len);

#endif
