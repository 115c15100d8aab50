/* SPDX-License-Identifier: MIT
 *
 * Whether an Outcome can be believed, and the words for its error.
 */
#ifndef LAUNCHER_OUTCOME_H
#define LAUNCHER_OUTCOME_H

#include "commands.h"
#include "disks.h"

/* 0: the operation was done, and each number that the launcher acts on lies within what was
 * granted; or it waits for a file that an image names (need_file), and may. -1: the guest's own
 * error, put into words, or PROTOCOL. */
int outcome_check(const instar_Outcome *out, const struct job *job, const struct disk *disks,
                  unsigned count, struct err *e);

/* What a result says of files, of those operations that write any; the rest have zeros and NULL. */
struct outcome_files {
    const char *format; /* of the image */
    bool probed, rebuilt, more;
    uint64_t before, after, eventual;
    const instar_FileLength *other;
    unsigned others;
};
struct outcome_files outcome_files(const instar_Outcome *out);

/* The length that the file of disk `slot` gets, by an Outcome that has been checked. */
uint64_t outcome_length(const instar_Outcome *out, const struct disk *d, unsigned slot);

/* Puts an error of the contract into words; returns -1. `disks`: the run's, for their names. */
int outcome_error(const instar_Error *error, const struct job *job, const struct disk *disks,
                  unsigned count, struct err *e);

#endif
