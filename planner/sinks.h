/* SPDX-License-Identifier: MIT
 *
 * The two sinks that plan_run() pushes an epoch into, and the digest that ties them together.
 */
#ifndef PLANNER_SINKS_H
#define PLANNER_SINKS_H

#include "undo.h"

struct digest {
    u64 hash, cnt;
};
void digest_init(struct digest *d);
void digest_patch(struct digest *d, const struct patch *p);

/* Proves that an epoch is legal (P5, P8, bounds) and adds up what it needs. Writes nothing. */
struct check_sink {
    struct sink sink;
    struct image *img;
    u64 length[IMAGE_FILES]; /* as the epoch would leave them */
    struct digest digest, commit_digest; /* commit_digest: up to and with the commit patch */
    struct plan_need need;
    bool committed, barrier; /* barrier: the last patch was one */
    const struct plan_state *state; /* of the planner that is being run */
    struct undo undo;               /* in use if state->undo */
    struct plan_host *host;
    u64 bytes; /* digested since the host was told that we are alive */
};
void check_init(struct check_sink *c, struct image *img, struct plan_host *h,
                const struct plan_state *state);

/* Performs an epoch on the image's files: the only code that writes. The digest is compared before
 * the commit patch is performed (all that precedes it is harmless by P7) and once more at the end,
 * by plan_run(); a difference is ERR_HEADER_MISMATCH. */
struct apply_sink {
    struct sink sink;
    struct image *img;
    struct digest digest, commit_digest;
    struct plan_host *host;
    u32 epoch;
};
void apply_init(struct apply_sink *a, struct image *img, const struct check_sink *checked,
                struct plan_host *h);

#endif
