/* SPDX-License-Identifier: MIT
 *
 * The undo journal of a P10 epoch (DESIGN section 4): what stands in the sectors that the epoch is
 * about to overwrite, in a file beside the image, durable before the epoch is granted and removed
 * when it is over. The launcher copies bytes here and interprets none. Only the image itself is
 * journaled, not the files that it names. Rolling back: recover.h.
 */
#ifndef LAUNCHER_UNDO_H
#define LAUNCHER_UNDO_H

#include "commands.h"
#include "disks.h"

enum { UNDO_SECTOR = 512, UNDO_SECTORS = 2048, UNDO_RUNS = 64 };

struct undo_mark {
    uint64_t off;      /* of a sector of the image */
    uint32_t old, new; /* CRC-32C of what it held before the epoch, and of what it is to hold */
};

/* ---- while a VM runs ---- */

/* What a guest has announced and no Need has asked to be journaled yet. */
struct undo {
    unsigned runs, cnt;
    struct undo_mark mark[UNDO_SECTORS];
};

/* Takes an announcement in; PROTOCOL if it makes no sense. */
int undo_announce(struct undo *u, const instar_Undo *a, const struct disk *disks, unsigned count,
                  struct err *e);

/* Makes a durable journal of what was announced, which is forgotten then. `most`: bytes that the
 * file may come to have in the epoch. -1: there is no journal. */
int undo_write(struct undo *u, const struct job *job, uint32_t epoch, uint64_t most, struct disk *d,
               struct err *e);

/* The epoch is complete: syncs the image, and removes its journal for good. */
int undo_retire(struct disk *d, struct err *e);

/* ---- what lies beside an image ---- */

/* Finds where the disk's journal would be: in the directory of the file that is open, by whatever
 * name it was reached. Without a place there is none, and none can be made. */
int undo_find(struct disk *d, struct err *e);

/* Forgets the place. */
void undo_leave(struct disk *d);

/* Is something there by that name? */
bool undo_exists(const struct disk *d);

struct undo_journal {
    uint8_t *bytes; /* all of it; undo_free() */
    uint32_t epoch;
    uint64_t length, most; /* of the image: before the epoch, and at most in it */
    const char *words;     /* of the operation: anyone's bytes */
    unsigned cnt;
    struct undo_mark mark[UNDO_SECTORS]; /* by offset */
    const uint8_t *data;                 /* the old sectors, in their order */
};

/* Reads the journal beside the image, and takes nothing for granted. 1: it is one of this image, in
 * force, and nothing in it contradicts itself. 0: there is none, or one that was never finished, so
 * that nothing was granted under it. -1: UNDO_PENDING, or it cannot be read. */
int undo_load(struct undo_journal *j, const struct disk *d, struct err *e);
void undo_free(struct undo_journal *j);

#endif
