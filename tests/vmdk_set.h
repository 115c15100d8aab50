/* SPDX-License-Identifier: MIT
 *
 * VMDKs of several files on the host: all files lie in one memory disk, the box, each in a place of
 * its own, with their lengths, so that the crash recorder and the fault injector see them as one.
 * Building such sets, opening and resizing them as operation and launcher would, and an independent
 * judge, which shares no code with formats/ and planner/.
 */
#ifndef TESTS_VMDK_SET_H
#define TESTS_VMDK_SET_H

#include "blk_mem.h"
#include "plan.h"

enum { SET_FILES = 32, SET_EXTENTS = 8 };

/* ---- the box: file 0 is the descriptor, file N the extent whose name says N ---- */

void vmdk_set_init(struct blk_mem *box);
bool vmdk_set_exists(const struct blk_mem *box, unsigned i);
u64 vmdk_set_length(const struct blk_mem *box, unsigned i);
/* Makes the file exactly so long; it exists then. */
void vmdk_set_truncate(struct blk_mem *box, unsigned i, u64 length);
void vmdk_set_remove(struct blk_mem *box, unsigned i);
/* What is in [off, off + len) of the file; zeros behind its end. */
void vmdk_set_get(const struct blk_mem *box, unsigned i, u64 off, void *buf, size_t len);
void vmdk_set_put(struct blk_mem *box, unsigned i, u64 off, const void *buf, size_t len);
/* A copy of one file. */
void vmdk_set_extract(const struct blk_mem *box, unsigned i, struct blk_mem *out);
bool vmdk_set_same(const struct blk_mem *a, const struct blk_mem *b);

/* ---- making ---- */

struct vmdk_set_make {
    const char *type; /* NULL: twoGbMaxExtentSparse */
    u32 cnt;          /* 0: 1 */
    u64 sectors[SET_EXTENTS];
    u32 grain, gtes, version; /* of sparse extents, as in vmdk_make.h */
    bool no_rgd, zeroed, last, shuffled, short_end, stale_rest, stale_entries, stale_slack;
    bool tables_last;
    u32 every, data; /* of so many grains one is there (64 KiB of a flat one); its sectors */
    u32 slack;       /* sectors of old bytes that end the last extent's file */
    u32 offset;      /* of flat extents in their files, sectors */
    u32 pad;         /* the descriptor begins with a comment this long */
    u32 tail;        /* zeros behind the text */
    bool crlf, no_ddb, last_line; /* last_line: the extents' lines end the text, without a \n */
    bool between;                 /* comments between the lines */
    bool child;
    u64 seed;
};
void vmdk_set_build(struct blk_mem *box, const struct vmdk_set_make *p);
/* Replaces `from`, the first place in the descriptor, by `to`, of any length. */
void vmdk_set_text(struct blk_mem *box, const char *from, const char *to);

/* ---- opening and resizing ---- */

struct set_file {
    struct blk blk;
    struct blk *inner;
    unsigned i;
};
struct vmdk_set {
    struct set_file file[IMAGE_FILES];
    char name[IMAGE_FILES][24];
    struct image img;
};
/* Makes the file longer, through the disk that it lies on: a crash may lose that. */
int vmdk_set_grow(struct set_file *f, u64 length, struct err *e);
/* Opens the image whose files `dev` holds; their lengths are looked up in `box`. fresh: numbers of
 * new files, ended by 0. */
int vmdk_set_open(struct vmdk_set *s, struct blk *dev, const struct blk_mem *box,
                  const unsigned *fresh, struct err *e);

struct vmdk_set_out {
    u64 undo;                  /* sectors of the descriptor that the journal was shown */
    u64 undo_at[64];           /* where the first of them lie */
    u64 length[IMAGE_FILES];   /* of each file of the image, that the plan ends with */
    unsigned of[IMAGE_FILES];  /* which file of the box that is */
    unsigned files, dropped;   /* dropped: so many of the last */
    unsigned fresh[SET_FILES]; /* new files that were made, ended by 0 */
};
/* The new files that a resize wants, made in the box. */
int vmdk_set_prepare(struct blk_mem *box, u64 new_size, struct vmdk_set_out *out, struct err *e);
/* The plan by itself, after that. */
int vmdk_set_plan(struct blk *dev, const struct blk_mem *box, u64 new_size,
                  struct vmdk_set_out *out, struct err *e);
/* All of it; the files get their lengths, what was dropped is removed, and what was made, too, if
 * it fails before the descriptor has been touched. */
int vmdk_set_resize(struct blk_mem *box, u64 new_size, struct vmdk_set_out *out, struct err *e);

/* ---- judging ---- */

struct vmdk_set_verdict {
    bool opens;
    const char *why;
    u64 size;      /* of sparse extents by their headers, of flat ones by their lines */
    u64 line_size; /* by the lines */
    unsigned extents;
    bool geometry; /* the cylinders are those of line_size, or none are named */
    u64 text_hash; /* of the descriptor, but for its lines and the cylinders */
    u64 absent, stale, faults;
    u64 torn; /* of these: extents of which vmdk_judge.h calls all faults that */
    u64 grains;
    u64 hash;  /* of [0, upto) */
    bool zero; /* [zero_from, end) reads zero */
    char first[160];
};
void vmdk_set_judge(const struct blk_mem *box, u64 upto, u64 zero_from, struct vmdk_set_verdict *v);

#endif
