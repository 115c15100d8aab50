/* SPDX-License-Identifier: MIT
 *
 * What the files that plan a change of a sparse VMDK share: the survey that proves an image sound,
 * the walk over its grain tables, the edit of its descriptor, and the query that decides what a
 * grow needs.
 */
#ifndef PLANNER_VMDK_PLAN_H
#define PLANNER_VMDK_PLAN_H

#include "plan.h"

enum {
    VMDK_PIECE = 1 << 20, /* bytes; what the walk and the edit take of resize_args.work: two */
    VMDK_RUN = 128 << 10, /* of tables that are read at once: memory costs where it is touched */
    VMDK_LOOK = 4 << 20,
    VMDK_KEPT = 64,
};

/* ---- the walk ---- */

/* Tables that lie one behind the other in the file, in both directories: idx .. idx + cnt - 1. */
struct vmdk_run {
    u64 idx, cnt;
    u64 off[2]; /* of the first, by directory (the redundant one second); 0: absent */
    const u8
        *data[2]; /* their bytes, vmdk_table_span() each; of the second: the first's, if none */
    bool lenient; /* the caller's: the second directory may have tables that the first has not */
};

/* The next run below `entries`, after idx + cnt; false in *more: there is none. Both directories
 * have a table, or none has: else ERR_OVERLAY_CORRUPT. */
int vmdk_run_next(struct image *img, const struct resize_args *a, u64 entries, struct vmdk_run *r,
                  bool *more, struct err *e);
/* Table i of a run, in directory c. */
static inline const u8 *vmdk_run_table(const struct image *img, const struct vmdk_run *r, int c,
                                       u64 i)
{
    return r->data[c] + i * vmdk_table_span(&img->u.vmdk);
}

struct vmdk_survey {
    u64 used_end; /* where the last structure ends; this may be behind the end of the file */
    bool stale;   /* the last table names grains past the end of the disk */
    bool torn;    /* the directories differ, as vmdk_survey_torn() allows */
};

/* Reads all tables of both directories, and proves that they agree and that nothing lies on
 * anything else. ERR_OVERLAY_CORRUPT. */
int vmdk_survey(struct image *img, const struct resize_args *a, struct vmdk_survey *v,
                struct err *e);
/* The same, but what a killed rebase leaves is accepted, and so is what others leave who write one
 * directory's table after the other's: an entry that only one of two tables has, and a table that
 * only the second directory has. What the first one says counts. */
int vmdk_survey_torn(struct image *img, const struct resize_args *a, struct vmdk_survey *v,
                     struct err *e);
/* The same for a change that drops nothing, in bounded time: of each directory it looks at no more
 * than the last VMDK_LOOK bytes of tables, and behind the end of the file *v leaves room for a
 * grain of another. All are looked at where that is not safe: bytes that are in use before the
 * change, in the last table or grain, have to be cleared. */
int vmdk_survey_end(struct image *img, const struct resize_args *a, struct vmdk_survey *v,
                    struct err *e);
/* One of the two, in the first pass of an epoch; in the second what the first one found, which the
 * last VMDK_KEPT bytes of resize_args.work remember. */
int vmdk_survey_once(struct image *img, const struct resize_args *a, bool all, bool again,
                     struct vmdk_survey *v, struct err *e);
/* Zeros entries from `first` on in both copies of a table, if one of them is not zero. */
int vmdk_clear_entries(struct image *img, const struct vmdk_run *r, u64 i, u64 first,
                       struct sink *s, struct err *e);
/* The entries of cnt tables, from table idx on, as they are when nothing but the grains from `from`
 * up to `to` is there, and those are zeroed ones. */
void vmdk_zeroed_tables(const struct vmdk *v, u64 idx, u64 cnt, u64 from, u64 to, u8 *buf);

/* See planner.end. */
int vmdk_end(struct image *img, u64 *end, struct err *e);

/* ---- the descriptor ---- */

/* Bytes of the text give way to others; the two lengths may be 0. */
struct vmdk_edit_part {
    u32 off, old_len, len;
    const char *text; /* digits of the edit, or the caller's; stays until the edit is emitted */
};

struct vmdk_edit { /* not to be copied: parts point into it */
    unsigned cnt;
    struct vmdk_edit_part part[2]; /* in the order of the text */
    char digits[2][20];
    u32 new_len; /* of the text */
    u32 to;      /* where what changes ends; it begins with part[0] */
    bool shifts; /* what follows a part moves */
    bool whole;  /* all of it lies in one sector */
    bool safe;   /* whatever sectors of it reach the disk, the text can be read */
    bool commit; /* it is what the plan commits with: in one patch, whatever that takes */
    const char *why;
};

/* An edit is begun, gets its parts, and is ended. ERR_DESCRIPTOR_TOO_LARGE: the text would not fit
 * any more. */
void vmdk_edit_begin(const struct image *img, const char *why, struct vmdk_edit *d);
void vmdk_edit_put(struct vmdk_edit *d, u32 off, u32 old_len, const char *text, u32 len);
int vmdk_edit_end(const struct image *img, struct vmdk_edit *d, struct err *e);
/* All of that: what must change for a disk of `capacity` sectors, which is its extent's line, and
 * the geometry's cylinders. */
int vmdk_edit_init(const struct image *img, u64 capacity, struct vmdk_edit *d, struct err *e);
/* The patches, and a barrier; nothing if nothing changes. */
int vmdk_edit_emit(const struct image *img, const struct vmdk_edit *d, const struct resize_args *a,
                   struct sink *s, struct err *e);

/* capacity, and the directories' places; 0 leaves one where it is. A commit, and a barrier. */
int vmdk_commit(struct image *img, u64 size, u64 gd, u64 rgd, struct sink *s, struct err *e);
/* ---- rebasing ---- */

enum {
    VMDK_NAME_MAX = 1023,
    VMDK_TEXT_WORK = 2 * VMDK_PIECE + 4096, /* bytes of rebase_args.work */
};

/* ---- growing ---- */

enum vmdk_grow_action { VMDK_METADATA_ONLY, VMDK_GD_GROW_RELOCATE };

struct vmdk_grow_in {
    u64 entries;     /* of the directories, as they are */
    u64 have, want;  /* tables that there are; entries that the larger disk has */
    u64 end;         /* nothing is in use from here on, bytes */
    u64 grain, span; /* bytes: of a grain, of a table */
    bool redundant;
};
struct vmdk_grow {
    enum vmdk_grow_action action;
    u64 dir[2];    /* where the directories go; 0: they stay */
    u64 tables[2]; /* where the new tables go */
    u64 length;    /* the file's then; 0: as it is */
};
/* A directory stays where it is if the last of its sectors has room for the new entries. All new
 * tables exist at once: on a directory's entry that is 0, qemu's next write destroys the image. */
struct vmdk_grow vmdk_grow_query(const struct vmdk_grow_in *in);

/* All that precedes the descriptor, and its barrier; *g says where the directories are then.
 * again: see plan_state. */
int vmdk_grow_prepare(struct image *img, const struct resize_args *a, u64 new_size, bool again,
                      struct vmdk_grow *g, struct sink *s, struct err *e);
/* A grow to new_size: which grains must be zeroed ones, so that a parent's data is not seen: from
 * the first past the disk's old end up to *grains, exclusively; 0: none.
 * ERR_UNSUPPORTED_SUBFORMAT: the image has no way to say so. ERR_OVERLAY_CORRUPT: what it stands on
 * is not its parent. */
int vmdk_child_hides(struct image *img, u64 new_size, u64 *grains, struct err *e);
/* Is each parent in the chain from `top` on, which may have links of other formats, what its child
 * says? ERR_OVERLAY_CORRUPT. */
int vmdk_check_links(const struct image *top, struct err *e);
/* A whole extent of so many sectors in an empty file, `s`'s, as `like` is. No barrier. */
int vmdk_grow_new(struct image *like, const struct resize_args *a, u64 sectors, struct sink *s,
                  struct err *e);
/* After a shrink's commit: what the disk had before is dropped. old: its entries, its grains. */
int vmdk_shrink_clean(struct image *img, const struct resize_args *a, u64 old_entries,
                      u64 old_grains, bool again, struct sink *s, struct err *e);

/* ---- images of several files ---- */

/* What is emitted for an extent's file 0 goes to file `slot` of the image. */
struct vmdk_part_sink {
    struct sink sink;
    struct sink *to;
    u8 slot;
};
struct vmdk_part_sink vmdk_sink_of(struct sink *to, u64 slot);

/* The extents of a disk; sectors, but for size. */
struct vmdk_layout {
    u64 keep, add; /* extents that stay, from the first on; new ones behind them */
    u64 last;      /* of the last that stays: its sectors then */
    u64 full;      /* of new ones, but for the last */
    u64 rest;      /* of the last new one */
    u64 size;      /* of the disk, bytes */
};
/* What a disk that is asked to get new_size bytes can be. */
struct vmdk_layout vmdk_layout(const struct image *img, u64 new_size);
/* Of new extent i. */
static inline u64 vmdk_layout_new(const struct vmdk_layout *l, u64 i)
{
    return i + 1 < l->add ? l->full : l->rest;
}

/* A descriptor in a file of its own, as it is to be for a layout. */
struct vmdk_rewrite {
    const u8 *text; /* in resize_args.work; behind its end zeros */
    u32 from, to;   /* what differs; to == from: nothing does */
    u64 length;     /* of the file then */
    bool whole;     /* what differs lies in one sector: it can be a commit */
};
/* ERR_DESCRIPTOR_TOO_LARGE: no reader would take it. */
int vmdk_rewrite_init(const struct image *img, const struct vmdk_layout *l,
                      const struct resize_args *a, struct vmdk_rewrite *w, struct err *e);
/* The patches but for a cut, and a barrier; a commit, if it can be one. */
int vmdk_rewrite_emit(const struct image *img, const struct vmdk_rewrite *w, struct sink *s,
                      struct err *e);

int vmdk_split_files(struct image *img, const struct resize_args *a, struct plan_files *f,
                     struct err *e);
int vmdk_split_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
                      struct sink *s, struct err *e);

#endif
