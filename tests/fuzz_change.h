/* SPDX-License-Identifier: MIT
 *
 * One change of a possibly hostile VHD, VHDX or VMDK: open, facts, map, a resize that is only
 * planned, the same performed, and a judgement of the outcome by the format's own judge. What a
 * format adds is in struct fuzz_format; each target links one (fuzz_vhd.c, fuzz_vhdx.c,
 * fuzz_vmdk.c).
 *
 * Refused: code and text are there, and not a byte was written; no refusal comes after the first
 * epoch. Changed: the result opens with the new size, and can be changed once more. If the judge
 * had nothing against the image before, it has nothing against it afterwards; the guest's data is
 * the same, what is new reads zero, and what a resize has no business with is as it was. A disk
 * that fails at some write leaves the old size or the new one, with that data, and the next run
 * gets through. P5, P8 and the bounds of every patch are asserted by the check sink.
 */
#ifndef TESTS_FUZZ_CHANGE_H
#define TESTS_FUZZ_CHANGE_H

#include "blk_mem.h"
#include "fuzz_evil.h"
#include "plan.h"

enum { PLACES_MAX = 64 };

/* What a judge says, in words that all formats share. */
struct fuzz_verdict {
    bool opens, zero; /* zero: what it was asked about reads zero */
    bool clean;       /* as a run leaves it that came to its end */
    const char *why;  /* why it does not open */
    u64 size, seen;   /* seen: the size for the reader that sees most */
    u64 hash, kept;   /* of the guest's data; of what a resize has no business with */
    u64 faults;
    char first[160];
};

struct fuzz_format {
    const char *name;
    bool little; /* its numbers are little endian */
    /* Sets all checksums right, of whatever is there. NULL: the format has none. */
    void (*mend)(struct blk_mem *m);
    /* Places of its metadata; offsets and sizes that mean something in this image; the disk's size,
     * and its block size. None of them trusts the image. */
    unsigned (*spots)(const struct blk_mem *m, struct spot out[SPOTS_MAX]);
    unsigned (*places)(const struct blk_mem *m, u64 out[PLACES_MAX]);
    u64 (*size)(const struct blk_mem *m, u64 *unit);
    /* Is the judge quick with this image, which has few data blocks? */
    bool (*cheap)(const struct image *img);
    void (*judge)(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                  struct fuzz_verdict *v);
};
extern const struct fuzz_format fuzz_format;

/* What spots() and places() are made of. */
u64 fuzz_get(const struct blk_mem *m, u64 off, u8 bytes);
/* Another number at `off`, if it lies in the file and there is room. */
void fuzz_spot(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *cnt, u64 off,
               u8 bytes, const char *name);

struct change {
    const struct blk_mem *image; /* frozen */
    u64 new_size;
    enum preallocation how;
    u32 insert_unit;
    u64 fail_at;   /* number of the write, from 1 on, that fails with all after it; 0: none */
    bool rehearse; /* the dry run goes through all epochs */
    /* out */
    bool opened, changed, judged,
        denied;  /* denied: it would become longer than there is time for */
    bool failed; /* by fail_at */
    struct err e;
    bool uneven; /* a VHD whose footer gives two sizes, by rounding */
    u64 old_size, size, requests;
    char wrong[320]; /* what change_run() has against it */
};

/* Whether all was as it must be; if not, c->wrong says why. */
bool change_run(struct change *c);

#endif
