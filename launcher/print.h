/* SPDX-License-Identifier: MIT
 *
 * Results and failures in words: for people after qemu-img's layout, and as JSON.
 */
#ifndef LAUNCHER_PRINT_H
#define LAUNCHER_PRINT_H

#include "commands.h"
#include "disks.h"

/* One row of commands[] each; the second argument is the array of all disks of the run. */
void print_resize(struct job *, const struct disk *, const instar_Outcome *);
void json_resize(struct job *, const struct disk *, const instar_Outcome *);
void print_info(struct job *, const struct disk *, const instar_Outcome *);
void json_info(struct job *, const struct disk *, const instar_Outcome *);
void print_noop(struct job *, const struct disk *, const instar_Outcome *);
void json_noop(struct job *, const struct disk *, const instar_Outcome *);

/* What qemu-img says when it opens an image whose refcounts have to be rebuilt. */
void print_rebuilt(void);
/* The guest's warning, if it has one. */
void print_warning(const char *warning);

/* A fact as a member; a key of the human layout is one of JSON with its spaces made hyphens. */
void print_json_fact(struct json *j, const instar_Fact *f);

/* qemu-img's warning where a raw image was only guessed to be one, and was changed. */
void print_raw_warning(const struct job *job, const instar_Outcome *out);

/* To stderr, or with --output=json to stdout, with nothing else there. */
void print_failure(struct job *job, const struct err *e);

#endif
