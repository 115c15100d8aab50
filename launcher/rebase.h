/* SPDX-License-Identifier: MIT
 *
 * What is rebase's own: the file that -b names, and words for what was done.
 */
#ifndef LAUNCHER_REBASE_H
#define LAUNCHER_REBASE_H

#include "chain.h"

/* The Request, from job->rebase. What needs no look at any file is refused here. */
int rebase_request(struct job *job, struct err *e);

/* Attaches the new backing file; in unsafe mode, if it can be had. The name is relative to the
 * image's directory, and is stored as it was typed. */
int rebase_begin(struct job *job, struct chain *c, struct err *e);

/* Rows of commands[] (print.h). */
void rebase_print(struct job *, const struct disk *, const instar_Outcome *);
void rebase_json(struct job *, const struct disk *, const instar_Outcome *);

/* qemu-img's progress, on stdout; nothing unless it was asked for. */
void rebase_progress(struct job *job, uint64_t done, uint64_t total);

#endif
