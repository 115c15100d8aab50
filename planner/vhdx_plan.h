/* SPDX-License-Identifier: MIT
 *
 * What the files of the VHDX planner share: the survey of all that lies in the file, the headers
 * and their updates, and the batch of metadata changes that one log entry carries.
 *
 * The order of every change, by [MS-VHDX] 2.2.2.1 and 2.3: both headers get new GUIDs; what the
 * image does not reach yet is written, and the log entry; COMMIT: one header names the log's GUID,
 * from which moment every reader replays the entry; the other header follows, and the entry is
 * applied in place; both headers say that the log is empty again. A crash leaves the old image, or
 * one whose log gives the new.
 */
#ifndef PLANNER_VHDX_PLAN_H
#define PLANNER_VHDX_PLAN_H

#include "plan.h"

enum {
    VHDX_BATCH = 100,             /* 4 KiB sectors that a log entry may change */
    VHDX_BATCH_ZEROS = 4,         /* and ranges that it may clear */
    VHDX_BAT_SECTORS = 60,        /* of them: what a BAT may take that stays where it is */
    VHDX_BITMAP_BYTES = 22 << 20, /* a bit for each MiB of the file: 176 TiB */
    VHDX_WINDOW_BYTES = 1 << 20,
    VHDX_CHUNK_BYTES = 1 << 20, /* of BAT entries, in one patch */
};

/* The lent memory, by use; together less than PLAN_WORK. */
struct vhdx_work {
    u8 *bitmap;  /* VHDX_BITMAP_BYTES; free again once the survey is done */
    u8 *window;  /* VHDX_WINDOW_BYTES */
    u8 *sectors; /* of the batch */
    u8 *entry;   /* the log entry: its descriptors, then a data sector for each */
    u8 *table;   /* a region table */
    u8 *header;  /* one header */
};

/* ---- vhdx_header.c ---- */

/* The updates of one run: headers are written in turn, the one that is not current first. */
struct vhdx_headers {
    struct sink *s;
    u8 *bytes; /* the header in the making */
    u64 sequence_number;
    unsigned next, written;
    u8 log_guid[16]; /* for a log of this run's own */
};

/* Refuses where the sequence numbers come to their end. `data`: what the guest sees will change. */
int vhdx_headers_begin(struct vhdx_headers *h, struct image *img, struct sink *s, u8 *bytes,
                       const u8 random[32], bool data, struct err *e);
/* The next header, with the next number. The first two are written whole, then one sector is. */
int vhdx_headers_write(struct vhdx_headers *h, bool commit, const char *why, struct err *e);
/* From the next header on, the log is this run's own, or empty. */
void vhdx_headers_log(struct vhdx_headers *h, bool own);

/* ---- vhdx_log.c ---- */

/* Metadata changes that become one log entry: sectors of 4 KiB, and ranges of zeros. */
struct vhdx_batch {
    u8 *sectors;
    u64 off[VHDX_BATCH];
    unsigned cnt;
    struct {
        u64 off, len;
    } zero[VHDX_BATCH_ZEROS];
    unsigned zeros;
    bool zero_open; /* the last range may become longer */
};

/* The 4 KiB at `off` as they are now, to be changed by the caller. They are in the batch from now
 * on. */
int vhdx_batch_sector(struct vhdx_batch *b, struct image *img, u64 off, u8 **sector, struct err *e);
/* Adds zeros; to the range before, if that is open, with what lies between. */
void vhdx_batch_zero(struct vhdx_batch *b, u64 off, u64 len);
/* Makes the entry in `entry` and writes it to the beginning of the log. */
int vhdx_batch_log(const struct vhdx_batch *b, const struct vhdx_headers *h, struct image *img,
                   u8 *entry, u64 file_length, struct err *e);
/* Writes the changes where they belong. */
int vhdx_batch_apply(const struct vhdx_batch *b, struct sink *s, struct err *e);
/* The stage that a dirty log needs before anything else: replays it and empties it. */
int vhdx_replay(struct image *img, const u8 random[32], const struct vhdx_work *w, struct sink *s,
                struct err *e);

/* ---- vhdx_survey.c ---- */

struct vhdx_survey {
    u64 end;      /* where the last structure ends, whole blocks counted */
    u64 kept_end; /* the same without what blocks from `kept` on take */
    u64 regions;  /* bytes of header section, log and regions */
};

/* Reads the BAT: every entry up to the end of the disk is valid, and no two structures overlap.
 * ERR_OVERLAY_CORRUPT. */
int vhdx_survey(struct image *img, const struct vhdx_work *w, u64 kept, struct vhdx_survey *out,
                struct err *e);
/* Marks in the bitmap, and only those, the MiB that blocks from `kept` on take. */
int vhdx_mark_dropped(struct image *img, const struct vhdx_work *w, u64 kept, struct err *e);
/* The first run of marked MiB from *at on, in bytes, below `end`; *len 0: none. */
void vhdx_next_run(const struct vhdx_work *w, u64 end, u64 *at, u64 *len);

/* ---- vhdx_bat.c ---- */

/* What entries of new blocks become. */
enum vhdx_fill { VHDX_FILL_ABSENT, VHDX_FILL_ZERO, VHDX_FILL_PRESENT };

struct vhdx_bat_change {
    u64 old_blocks, new_blocks, old_entries, new_entries;
    enum vhdx_fill fill;
    u64 payload; /* PRESENT: where the first new block lies */
};

void vhdx_bat_change(const struct vhdx *v, u64 old_size, u64 new_size, struct vhdx_bat_change *c);
/* Entries from this one on change, or are new. */
u64 vhdx_bat_first(const struct vhdx *v, const struct vhdx_bat_change *c);
/* Puts into the batch what the BAT that is there must become. */
int vhdx_bat_in_place(struct image *img, const struct vhdx_work *w, const struct vhdx_bat_change *c,
                      struct vhdx_batch *b, struct err *e);
/* Writes all entries of the new disk to a new region at `off`, which is zero. */
int vhdx_bat_move(struct image *img, const struct vhdx_work *w, const struct vhdx_bat_change *c,
                  u64 off, struct sink *s, struct err *e);

/* ---- vhdx_commit.c ---- */

/* One change of size, as it is planned before the first patch. */
struct vhdx_plan {
    struct image *img;
    struct sink *s;
    const struct resize_args *a;
    struct vhdx_work work;
    struct vhdx_survey survey;
    struct vhdx_bat_change bat;
    struct vhdx_batch batch;
    struct vhdx_headers headers;
    u64 length;                  /* of the file, while the plan runs */
    u64 new_bat, new_bat_length; /* 0: the BAT stays */
    u64 clear_off, clear_len;    /* what a grow takes of the file behind the last structure */
    u64 zero_off, zero_len;      /* the rest of the block that the smaller disk ends in */
};

/* The size, and both region tables as far as they are not what they must be, into the batch. */
int vhdx_metadata(struct vhdx_plan *p, struct err *e);
/* Where the rest of the last block of a disk of `size` bytes lies, if it is in the file. */
int vhdx_tail(struct vhdx_plan *p, u64 size, struct err *e);
int vhdx_zero_tail(struct vhdx_plan *p, struct err *e);
/* The file gets p->length; both headers are this run's. What follows must not be reached yet. */
int vhdx_begin(struct vhdx_plan *p, struct err *e);
/* Log entry and commit. What follows may be done while the log is full. */
int vhdx_commit(struct vhdx_plan *p, struct err *e);
/* The entry is applied, the log is empty. What follows may be done to what is no longer reached;
 * the caller ends with a barrier. */
int vhdx_end(struct vhdx_plan *p, struct err *e);

/* ---- vhdx_grow.c, vhdx_shrink.c ---- */

/* Everything that can be refused, without a patch; then the patches. */
int vhdx_grow_prepare(struct vhdx_plan *p, struct err *e);
int vhdx_grow_emit(struct vhdx_plan *p, struct err *e);
int vhdx_shrink_prepare(struct vhdx_plan *p, struct err *e);
int vhdx_shrink_emit(struct vhdx_plan *p, struct err *e);

#endif
