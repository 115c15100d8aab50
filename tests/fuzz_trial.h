/* SPDX-License-Identifier: MIT
 *
 * One trial of a possibly hostile qcow2 image: open, facts, map, a grow (or shrink) that is only
 * planned, the same performed, and a judgement of the outcome. Sanitizers and assertions speak for
 * themselves; everything else that must hold is checked here, for the mutation test and the fuzz
 * target alike.
 *
 * Refused: code and text are there and not a byte was written. Grown: the result opens with the new
 * size, the file is no longer than a plan may make it, and bytes changed only where a grow has
 * business (struct own in fuzz_trial.c), and its new area reads zero. Refused after refcounts were
 * rebuilt: it has the old size and is not dirty. A sound image must be sound afterwards and hold
 * the same data. One that was not may become `worse`: that counts of clusters are wrong, or that two
 * things stand in one place, cannot always be seen from what a grow reads.
 */
#ifndef TESTS_FUZZ_TRIAL_H
#define TESTS_FUZZ_TRIAL_H

#include "grow.h"

struct trial {
    const struct blk_mem *image; /* frozen */
    u64 new_size;
    unsigned extents; /* that map() is followed for */
    bool no_scratch;  /* no memory for a decoder */
    bool shrink;      /* a new size below the old one is tried too, or it is only read */
    /* out */
    bool opened, grown; /* grown: or shrunk */
    bool repaired;      /* its refcounts were rebuilt */
    struct err e; /* why it was refused */
    u64 old_size, length, requests;
    bool sound, judged; /* before: no corruptions; verdicts are complete */
    bool worse; /* it was not sound, and has more corruptions now */
    struct verdict before, after;
    char wrong[320]; /* what trial_run() has against it */
};

/* Whether all was as it must be; if not, t->wrong says why. Aborts past REQUESTS_MAX requests. */
bool trial_run(struct trial *t);

#endif
