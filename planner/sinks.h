/* SPDX-License-Identifier: MIT
 *
 * The two sinks that plan_run() pushes an epoch into, and the digest that ties them together.
 */
#ifndef PLANNER_SINKS_H
#define PLANNER_SINKS_H

#include "plan.h"

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
    struct plan_host *host;
    u32 epoch;
    u64 bytes; /* digested since the host was told that we are alive */
};
void check_init(struct check_sink *c, struct image *img, struct plan_host *h, u32 epoch);

/* Performs an epoch on the image's files: the only code that writes. The digest is compared before
 * the commit patch is performed (all that precedes it is harmless by P7) and once more at the end,
 * by plan_run(); a difference is ERR_HEADER_MISMATCH. */
struct apply_sink {
    struct sink sink;
    struct image *img;
    struct digest digest, commit_digest;
    void *mem;
    size_t mem_len;
};
void apply_init(struct apply_sink *a, struct image *img, const struct check_sink *checked, void *mem,
                size_t mem_len);

#endif
