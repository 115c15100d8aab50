/* SPDX-License-Identifier: MIT
 *
 * One trial of a possibly hostile qcow2 image, perhaps over a backing image that is as hostile:
 * open, facts, map, a grow (with preallocation or without) or shrink that is only planned, the same
 * performed, and a judgement of the outcome. Sanitizers and assertions speak for themselves;
 * everything else that must hold is checked here, for the mutation test and the fuzz target alike.
 *
 * Refused: code and text are there and not a byte was written. Grown: the result opens with the new
 * size, the file is no longer than the first epoch said, nor than a plan may make it, bytes changed
 * only where a grow has business (struct own in fuzz_trial.c), and its new area reads zero, also
 * where the backing image is longer. Refused after refcounts were rebuilt: it has the old size and is
 * not dirty. A sound image must be sound afterwards (a shrunk one without new
 * leaks) and hold the same data. One that was not may become `worse`: that counts of clusters are
 * wrong, or that two things stand in one place, cannot always be seen from what a grow reads.
 */
#ifndef TESTS_FUZZ_TRIAL_H
#define TESTS_FUZZ_TRIAL_H

#include "grow.h"

struct trial {
    const struct blk_mem *image; /* frozen */
    const struct blk_mem *under; /* the file that the image's backing name means; NULL: none */
    const char *under_format;    /* "raw", "qcow2", or "": as it looks */
    u64 new_size;
    enum preallocation how;
    unsigned extents; /* that map() is followed for */
    bool no_scratch;  /* no memory for a decoder */
    /* out */
    bool opened, grown; /* grown: or shrunk */
    bool repaired;      /* its refcounts were rebuilt */
    bool denied;        /* it would become longer than a trial has time for */
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
