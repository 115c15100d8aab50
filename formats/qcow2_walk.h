/* SPDX-License-Identifier: MIT
 *
 * Every reference that a qcow2 image's metadata makes to clusters of its file. Whoever rebuilds or
 * checks reference counts adds these up.
 */
#ifndef FORMATS_QCOW2_WALK_H
#define FORMATS_QCOW2_WALK_H

#include "format.h"

/* What a cluster is used for. It serves one kind only, or the image is corrupt. */
enum qcow2_ref_kind {
    QCOW2_REF_TABLE,  /* header, L1, refcount and snapshot tables, bitmaps: referred to once */
    QCOW2_REF_L2,     /* an L2 table: once by each L1 table that shares it */
    QCOW2_REF_DATA,   /* a guest cluster, or one kept under a zero flag: likewise */
    QCOW2_REF_PACKED, /* compressed data: as often as streams touch the cluster */
};

struct qcow2_ref {
    enum qcow2_ref_kind kind;
    u32 tree;      /* of L2, DATA, PACKED: 0: the active L1 table's; n: the n-th snapshot's */
    u64 off, len;  /* bytes of the file; all clusters that these touch are referred to */
    u64 at, entry; /* of L2, DATA, PACKED: where the table entry stands, and what it says */
};

struct qcow2_visitor {
    int (*visit)(struct qcow2_visitor *, const struct qcow2_ref *, struct err *);
    bool refcounts;   /* visit the refcount table and its blocks, too */
    bool tables_only; /* leave out what L2 tables and bitmap tables name: none of them is read */
};

/* Visits all references, in this order: tables that the header, the snapshot table or the bitmap
 * directory name; L2 tables, L1 table by L1 table; what those name. So a visitor that counts can
 * refuse tables that are named twice before any of them is read twice.
 * Stops at the visitor's error, or at an entry that no sound image has (reserved bits, misaligned,
 * outside the file, on a table that the header names): ERR_OVERLAY_CORRUPT. Uses both windows:
 * the visitor must not. */
int qcow2_walk(struct image *img, struct qcow2_visitor *v, struct err *e);

#endif
