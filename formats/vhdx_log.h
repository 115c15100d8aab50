/* SPDX-License-Identifier: MIT
 *
 * The log of a VHDX: a ring of 4 KiB sectors that holds metadata on its way to its place. If a
 * header names a log GUID, the entries that carry it must be replayed before anything that they
 * touch is believed: vhdx_log_find() finds the sequence that is active, vhdx_log_read() reads the
 * file as it will be, and vhdx_log_next() gives the changes one by one.
 * Source: [MS-VHDX] section 2.3; names are that document's. All integers little endian.
 */
#ifndef FORMATS_VHDX_LOG_H
#define FORMATS_VHDX_LOG_H

#include "table.h"

enum { VHDX_LOG_SECTOR = 4096, VHDX_LOG_DESC = 32 };

enum vhdx_log_entry_field {
    VLE_SIGNATURE = 0, /* "loge" */
    VLE_CHECKSUM = 4,
    VLE_ENTRY_LENGTH = 8,
    VLE_TAIL = 12,
    VLE_SEQUENCE_NUMBER = 16,
    VLE_DESCRIPTOR_COUNT = 24,
    VLE_LOG_GUID = 32,
    VLE_FLUSHED_FILE_OFFSET = 48,
    VLE_LAST_FILE_OFFSET = 56,
    VLE_SIZE = 64,
};

enum vhdx_log_desc_field {
    VLD_SIGNATURE = 0,      /* "zero" or "desc" */
    VLD_TRAILING_BYTES = 4, /* of a "desc": bytes 4092.. of the sector */
    VLD_LEADING_BYTES = 8,  /* of a "desc": bytes 0..7 of the sector */
    VLD_ZERO_LENGTH = 8,    /* of a "zero" */
    VLD_FILE_OFFSET = 16,
    VLD_SEQUENCE_NUMBER = 24,
};

enum vhdx_log_data_field {
    VLS_SIGNATURE = 0, /* "data" */
    VLS_SEQUENCE_HIGH = 4,
    VLS_BYTES = 8, /* 4084 of them */
    VLS_SEQUENCE_LOW = 4092,
};

struct vhdx_log {
    u64 offset; /* where the log lies */
    u32 length;
    u8 guid[16];
    bool dirty; /* guid is not zero: what follows is the active sequence, which must be replayed */
    u32 tail;   /* where its first entry begins, from `offset` on */
    u32 entries;
    u64 sequence_number, flushed_file_offset, last_file_offset; /* of its last entry */
};

/* A place in the active sequence. All zero: its beginning. */
struct vhdx_log_place {
    u32 entry, at;  /* how many entries lie behind; where this one begins in the log */
    u32 desc, data; /* the next descriptor, and the data sectors before it */
    u32 count, length;
    bool begun;
};

/* One change: `len` zero bytes at `off`; or the 4 KiB at `off`, of which `leading` and `trailing`
 * are the ends and the data sector at `data` holds the rest. */
struct vhdx_log_change {
    bool zero;
    u64 off, len, data;
    u8 leading[8], trailing[4];
};

/* Finds the active sequence of a log whose offset, length and GUID are set, and looks at what it
 * would change: headers and the log itself may not be among it, nor what lies past the end of the
 * file. Reads the log twice at most. ERR_OVERLAY_CORRUPT. */
int vhdx_log_find(struct blk *b, struct window *w, struct vhdx_log *log, struct err *e);
/* The next change in *c; false in *more if there is none. The window serves as it is found. */
int vhdx_log_next(struct blk *b, struct window *w, const struct vhdx_log *log,
                  struct vhdx_log_place *p, struct vhdx_log_change *c, bool *more, struct err *e);
/* The 4 KiB that a change that is not `zero` leaves at c->off. */
int vhdx_log_sector(struct blk *b, const struct vhdx_log_change *c, u8 *out, struct err *e);
/* Reads the file as a replay would leave it; off and len are multiples of 4 KiB. `w` is not what
 * buf belongs to. */
int vhdx_log_read(struct blk *b, struct window *w, const struct vhdx_log *log, u64 off, u8 *buf,
                  u32 len, struct err *e);

#endif
