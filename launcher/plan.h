/* SPDX-License-Identifier: MIT
 *
 * --dry-run: the plan, printed patch by patch as it comes, for a plan may be of any length. With
 * --output=json the one object of the run begins here, and print.c ends it.
 */
#ifndef LAUNCHER_PLAN_H
#define LAUNCHER_PLAN_H

#include "commands.h"

/* One patch of the plan. Its strings are escaped, its numbers only printed. */
void plan_show(struct job *job, const instar_Patch *p);

/* What stands after the last patch: for people, what it comes to. */
void plan_print(const struct job *job, const struct disk *disks, const instar_Outcome *out);

/* Begins the object if no patch has, and ends the list in it. */
void plan_json_end(struct job *job);

/* The members of a patch, as in a plan. */
void plan_json_patch(struct json *j, const char *key, const instar_Patch *p);

#endif
