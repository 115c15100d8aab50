/* SPDX-License-Identifier: MIT
 *
 * What a P10 epoch overwrites, for the host's undo journal: each 512-byte sector that a patch
 * touches, with the CRC of what it will hold. Collected while the epoch is checked;
 * the host adds what the sectors hold now, makes that durable, and only then is the epoch applied.
 */
#ifndef PLANNER_UNDO_H
#define PLANNER_UNDO_H

#include "plan.h"

enum {
    UNDO_SECTOR = 512,
    UNDO_SECTORS = 2048, /* 1 MiB */
    UNDO_RUNS = 64,
    UNDO_MEM = UNDO_SECTORS * (UNDO_SECTOR + 16), /* bytes that undo_init() wants, 8-aligned */
};

struct undo_at {
    u64 sector; /* index in its file */
    u64 slot;
};

struct undo {
    struct image *img;
    u8 *data; /* the sectors as the epoch leaves them, in the order of `at` */
    struct undo_at *at;
    unsigned cnt;
};

void undo_init(struct undo *u, struct image *img, void *mem, size_t mem_len);
/* Applies a patch to the collected sectors. Growth needs no undo, since rolling back cuts the file;
 * yet what stands behind the old end has to be known for ours, or it is somebody's data, and is not
 * cut off. Zeros stand there anyway. ERR_INTERNAL_OVERFLOW: more than 1 MiB. */
int undo_patch(struct undo *u, const struct patch *p, struct err *e);
/* Shows the collection to h->undo, a run of neighbours at a time. ERR_INTERNAL_OVERFLOW: more than
 * UNDO_RUNS of them. */
int undo_show(struct undo *u, struct plan_host *h, struct err *e);

#endif
