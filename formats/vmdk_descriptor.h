/* SPDX-License-Identifier: MIT
 *
 * The text that describes a VMDK, in a file of its own or embedded behind a sparse header: what its
 * lines say, and where in the text those numbers stand that a resize changes. Source: VMware's
 * "Virtual Disk Format 5.0". Nothing here follows a name that the text contains.
 */
#ifndef FORMATS_VMDK_DESCRIPTOR_H
#define FORMATS_VMDK_DESCRIPTOR_H

#include "table.h"

enum {
    VMDK_TEXT_MAX = 1 << 20,
    VMDK_PROBE_MAX = 2048, /* bytes, as in qemu */
    VMDK_LINE_MAX = 4608,
    VMDK_EXTENTS_MAX = 23, /* as many as there can be disks besides the descriptor's */
};
#define VMDK_NO_PARENT 0xffffffffu

/* Bytes of the text; len 0: there are none. */
struct vmdk_span {
    u32 off, len;
};

/* Decimal digits at `off` of the text; len 0: there are none. */
struct vmdk_number {
    u32 off, len;
    u64 val;
};

/* A line that describes an extent: ACCESS SECTORS TYPE "name" [OFFSET] */
struct vmdk_line {
    u32 off, len; /* of the line in the text, without its end; len VMDK_LINE_MAX: at least that */
    struct vmdk_number sectors, offset; /* offset.len 0: it has none */
    u32 name_off, name_len;             /* in the text; name_len 0: it has none */
    bool writable;                      /* its access is RW */
    bool whole;                         /* nothing else follows */
    char type[16];                      /* NUL-terminated, cut if longer */
};

struct vmdk_descriptor {
    u32 text_len; /* what precedes the first NUL, or all of the slot */
    bool has_cid, has_parent_cid;
    u32 cid, parent_cid;
    u32 extents;                                /* lines that describe one; in `line`: the first */
    struct vmdk_number cylinders, heads, track; /* ddb.geometry: heads; sectors of a track */
    char create_type[32], parent_hint[64]; /* NUL-terminated, cut if longer; "" if none */
    struct vmdk_span parent_cid_at;        /* the digits */
    struct vmdk_span hint;                 /* all of the parent's name, without its quotes */
    struct vmdk_span hint_line, type_line; /* with their ends */
    u32 hints;                             /* lines that name a parent: the first one counts */
    struct vmdk_line line[VMDK_EXTENTS_MAX];
};

/* The text in [off, off + slot) of `b`, slot <= VMDK_TEXT_MAX. The first line that says something
 * wins; lines that say nothing of this are skipped. ERR_OVERLAY_CORRUPT: a number is none. */
int vmdk_descriptor_read(struct blk *b, struct window *win, u64 off, u32 slot,
                         struct vmdk_descriptor *d, struct err *e);
/* Does such a text begin here: with the usual words, or, after comments and empty lines, with
 * version=1, 2 or 3? */
bool vmdk_descriptor_probe(const u8 *text, u32 len);

#endif
