/* SPDX-License-Identifier: MIT
 *
 * A plan: the ordered stream of patches that turns an image into what a request asks for.
 * Patches are pushed into a sink and never collected, so a plan of any length costs one window.
 *
 * THE INVARIANTS, cited by number in comments and tests:
 *  P1  A planner reads only through its images and emits only to its sink: no globals, no clock, no
 *      randomness.
 *  P2  Same input, same patches.
 *  P3  It never reads bytes that an earlier patch of the same epoch wrote; values are absolute,
 *      never increments.
 *  P4  Between two barriers patches may land in any order, torn at 512 bytes, or not at all, and
 *      the image still opens with the old or the new guest data.
 *  P5  A plan that switches metadata marks one commit patch, inside one sector.
 *  P6  Bytes that no patch names are preserved: fields are patched, headers are never rewritten.
 *  P7  Before the commit, patches touch only bytes that the old header cannot reach (table entries
 *      past the old end of the disk count as such, and so does what the header declares stale), or
 *      raise a refcount, or do what a specification demands first (clear autoclear bits).
 *  P8  PATCH_LENGTH precedes any write past the old end of the file.
 *  P9  patch.data is the planner's, valid only during emit().
 *  P10 Where a format allows no order that satisfies P4 and P5, the epoch is marked so and an undo
 *      journal covers it.
 *  P11 A grow guarantees that the newly exposed area reads zero.
 */
#ifndef PLANNER_PLAN_H
#define PLANNER_PLAN_H

#include "format.h"

enum patch_kind {
    PATCH_LENGTH,  /* the file becomes `len` bytes long. Longer: it reads zero there. Shorter: the
                    * launcher cuts it when the plan is done; nothing follows */
    PATCH_WRITE,   /* `data`, `len` bytes, to `off` */
    PATCH_ZERO,    /* `len` zero bytes at `off`; may_unmap: the host may punch a hole */
    PATCH_COPY,    /* `len` bytes from `from_off` of slot `from` to `off`; ranges do not overlap */
    PATCH_DISCARD, /* [off, off+len) is garbage from here on */
    PATCH_INSERT,  /* the host inserts `len` zero bytes at `off`, at once or not at all: what
                    * followed follows them. The first patch of its epoch, where blk.insert_unit
                    * allows it */
    PATCH_BARRIER, /* everything before is durable before anything after is issued */
};

struct patch {
    enum patch_kind kind;
    u8 slot, from;
    u64 off, len, from_off;
    const void *data;
    const char *why; /* a constant text: shown by --dry-run */
    bool commit, may_unmap;
    bool kept; /* `data` lies in args.work since the check pass: the same bytes by construction, so
                * that nobody has to compare them */
};

struct sink {
    int (*emit)(struct sink *, const struct patch *, struct err *);
};

/* Emitting, for planners: any patch; then, with the reason, those to file[0]. */
int plan_emit(struct sink *s, struct patch p, struct err *e);
int plan_length(struct sink *s, u64 len, const char *why, struct err *e);
int plan_write(struct sink *s, u64 off, const void *data, u64 len, const char *why, struct err *e);
int plan_commit(struct sink *s, u64 off, const void *data, u64 len, const char *why, struct err *e);
int plan_zero(struct sink *s, u64 off, u64 len, const char *why, struct err *e);
/* Zeros that need no room: may_unmap. */
int plan_clear(struct sink *s, u64 off, u64 len, const char *why, struct err *e);
int plan_copy(struct sink *s, u64 off, u64 from_off, u64 len, const char *why, struct err *e);
int plan_discard(struct sink *s, u64 off, u64 len, const char *why, struct err *e);
int plan_barrier(struct sink *s, const char *why, struct err *e);
/* ERR_HEADER_MISMATCH: what an earlier pass or epoch has seen or made is not there any more. */
int plan_changed(u64 off, u64 val, struct err *e);
/* The emit of a sink that does nothing: for planners that want to know whether a later epoch would
 * be refused. */
int plan_ignore(struct sink *s, const struct patch *p, struct err *e);

enum preallocation { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };

/* Emits what makes the host allocate [off, off+len) of file `slot`, which reads zero already: by
 * zeroing (FALLOC), or by writing zeros (FULL) out of `work`; nothing for the other two. */
int plan_preallocate(struct sink *s, u8 slot, u64 off, u64 len, enum preallocation how, void *work,
                     struct err *e);
enum { PLAN_PREALLOCATE_WORK = 1 << 20 /* bytes of `work` */ };

/* What a planner remembers from one epoch to the next; plan_run() copies it freely. */
struct plan_state {
    u32 epoch;  /* 0 in the first call; counted by plan_run() */
    bool more;  /* set by the planner: another epoch follows */
    bool undo;  /* set by the planner, before it emits: this epoch is one of P10 */
    bool stage; /* set by the planner: this epoch repairs the image first, and does nothing else */
    bool open;  /* set by the planner: nothing refers to what this epoch writes, and others follow:
                 * it need not end at a barrier */
    bool confirm; /* set by the planner: the host is asked before this epoch even if that needs
                   * nothing, and looks whether what has been read is still what it was */
    bool again; /* set by plan_run(): the second pass of this epoch; what the first one left in
                 * args.work is there */
    u64 eventual; /* set in the first epoch of several: the most that the file may come to, bytes */
    u64 done, total; /* set by the planner if that is known: how far it has come */
    u64 clusters_copied, bytes_copied; /* counted by a rebase, from epoch to epoch */
    u64 v[12];                         /* the planner's own */
};

struct resize_args {
    u64 new_size; /* bytes; differs from img->size in the first epoch, but for planner.mends */
    enum preallocation preallocation;
    /* Memory for planners that collect: PLAN_WORK bytes, 8-aligned. It stays what it is from pass
     * to pass and from epoch to epoch; a planner that remembers something there does so in both. */
    void *work;
    size_t work_len;
    const u8 *random; /* 32 bytes, for GUIDs; NULL: zeros */
    bool may_shorten; /* the file, too: the user allowed a shrink */
};

enum { PLAN_WORK = 44 << 20 };

struct rebase_args {
    /* What the overlay stands on afterwards, its own chain behind `backing`; NULL: on nothing. What
     * it stands on now is img->backing, or NULL. An image may be part of both chains. */
    struct image *new_backing;
    bool unsafe; /* change the reference only; both chains are NULL */
    const char *name, *format; /* what to store, NUL-terminated; "" for neither */
    bool count;  /* emit nothing: work out what would be copied. For a dry run without scratch */
    void *work;  /* as in resize_args */
    size_t work_len;
};

/* A step function: each call emits one epoch, a bounded run of patches that ends at a barrier and
 * leaves a consistent image. A NULL member is UNSUPPORTED_FORMAT, raised by plan.c alone. */
/* What becomes of the files of an image that consists of several (image.parts). */
struct plan_files {
    unsigned keep;   /* of its parts: so many, from the first on, stay */
    unsigned add;    /* new files, which are attached behind all parts */
    unsigned number; /* which the first of them gets in its name, behind the letter */
    char letter;
};

struct planner {
    const struct format *format;
    /* The size that a disk can have which is asked to get new_size bytes: at least that, unless the
     * limit is passed. Never on the other side of img->size. NULL: any. */
    u64 (*fit)(const struct image *img, u64 new_size);
    const char *warning; /* what a resize does besides, for the user to know; NULL: nothing */
    bool chain; /* a grow depends on what all images below show, not on the next one's size alone */
    bool mends; /* a resize to img->size is planned too: it mends what an interrupted one left */
    int (*resize)(struct image *, const struct resize_args *, struct plan_state *, struct sink *,
                  struct err *);
    /* Makes the overlay stand on another backing file; its own content stays what it is through the
     * old chain, until the commit makes it so through the new one. */
    int (*rebase)(struct image *, const struct rebase_args *, struct plan_state *, struct sink *,
                  struct err *);
    /* For images with parts; refuses what resize() would, as far as it can be told without reading.
     * NULL: all stay. */
    int (*files)(struct image *, const struct resize_args *, struct plan_files *, struct err *);
    /* Where the image ends in a device that is longer; what follows is nobody's. NULL: never before
     * the device does. */
    int (*end)(struct image *, u64 *end, struct err *);
};

extern const struct planner raw_planner, qcow2_planner, vhd_planner, vhdx_planner, vmdk_planner;
extern const struct planner *const planners[]; /* the registry; NULL-terminated */

/* What an epoch needs of the host before it may be applied. */
struct plan_need {
    u64 length[IMAGE_FILES]; /* file length wanted, 0: as it is */
    u64 eventual;            /* length[0] in later epochs, at most; 0: this is the last that asks.
                              * Asked for in the first, so that a refusal comes before a write */
    bool room;               /* some length is wanted */
    bool undo;               /* what plan_host.undo was shown must be durable first */
    bool confirm;            /* see plan_state.confirm */
};

enum { UNDO_SHOW_MAX = 64 };

/* What the operation lends to plan_run(). */
struct plan_host {
    /* Asks for what the epoch needs; returns 0 once it is granted. Called for the epoch after one
     * of P10 even if that needs nothing: it says that the journal has served. */
    int (*need)(struct plan_host *, u32 epoch, const struct plan_need *, struct err *);
    /* Shown what a P10 epoch overwrites, before its need(): at `off` of file `slot` stand `n`
     * sectors of 512 bytes, n <= UNDO_SHOW_MAX, and crc[i] is the CRC-32C of what sector i will
     * hold. A sector behind the end of the file is one of zeros. */
    int (*undo)(struct plan_host *, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *);
    /* Performs a PATCH_INSERT and returns 0 once the device shows it. */
    int (*insert)(struct plan_host *, u32 epoch, u8 slot, u64 off, u64 len, struct err *);
    /* Shown every patch of the check pass; NULL if nobody looks. */
    int (*show)(struct plan_host *, u32 epoch, const struct patch *, struct err *);
    /* Called now and then while a long plan is checked, which does no I/O; NULL if nobody waits. */
    void (*alive)(struct plan_host *, u64 patches);
    /* Told after each epoch how far a plan has come, if it says so; NULL: nobody wants to know. */
    void (*progress)(struct plan_host *, u64 done, u64 total);
    bool dry_run;       /* change nothing: each epoch is shown, and carried out in `scratch` only */
    void *scratch;      /* memory for that, 8-aligned; NULL: the first epoch is the last shown */
    size_t scratch_len; /* where it does not suffice, the plan is shown as far as it does */
    void *mem; /* copy buffer for apply, page aligned; the check pass keeps undo records in it */
    size_t mem_len; /* a multiple of BLK_IO_MAX, at least one; two where epochs are of P10 */
    u64 length[IMAGE_FILES]; /* out: file lengths after the plan */
    bool repaired;           /* out: a stage has been applied, whatever came after it */
    bool begun;              /* out: an epoch that is no stage has been applied, if in part */
    bool more;               /* out, of a dry run: other epochs follow, which are not shown */
    u64 eventual;            /* out, of a dry run: plan_need.eventual */
    u64 clusters_copied, bytes_copied; /* out, of a rebase, after an error too */
};

/* For an image that stands on a device: from here on file[0] is as long as the image needs, and can
 * grow within the device. What it gains is zeroed when a plan asks for it. An image whose end
 * cannot be told keeps the whole device. */
void plan_on_device(struct image *img);
/* See planner.fit, planner.chain and planner.mends. */
u64 plan_fit(const struct image *img, u64 new_size);
/* Is this disk what one gets that was smaller and was asked to get new_size bytes? Then the same
 * request once more is none to shrink it. */
bool plan_fits(struct image *img, u64 new_size);
bool plan_chain(const struct image *img);
bool plan_mends(const struct image *img);
/* See planner.files. */
int plan_files(struct image *img, const struct resize_args *a, struct plan_files *f,
               struct err *e);
/* See planner.warning; "" if there is none. */
const char *plan_warning(const struct image *img);

/* Runs each epoch twice from the same state: into the check sink, which proves it legal and adds up
 * what it needs, then, once granted, into the apply sink. The image is opened anew before each
 * pass but the first; if it changed in between, the streams differ: ERR_HEADER_MISMATCH, before the
 * commit, or at the end of an epoch that has none. */
int plan_resize(struct image *img, const struct resize_args *a, struct plan_host *h, struct err *e);
int plan_rebase(struct image *img, const struct rebase_args *a, struct plan_host *h, struct err *e);

#endif
