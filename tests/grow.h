/* SPDX-License-Identifier: MIT
 *
 * What the grow tests share: running the planner over a disk as the operation would, and telling
 * from the image itself which action was taken.
 */
#ifndef TESTS_GROW_H
#define TESTS_GROW_H

#include "plan.h"
#include "qcow2_grow.h"
#include "qcow2_judge.h"
#include "qcow2_make.h"

/* Opens the image on `b` as qcow2 and grows it to new_size; 0 or the error's code. Every need is
 * granted. *length: the file length that the plan ends with. */
int grow_run(struct blk *b, u64 new_size, u64 *length, struct err *e);

/* The same over a memory disk, which then gets that length, as the launcher would see to. */
int grow_mem(struct blk_mem *m, u64 new_size, struct err *e);

/* Which action led from one verdict to the other. */
enum qcow2_grow_action grow_action(const struct verdict *before, const struct verdict *after);
extern const char *const grow_names[];

/* The shapes that the matrix and the crash recorder go through; at least one for each action. */
struct grow_case {
    const char *name;
    struct make p;
    u64 new_size;
    enum qcow2_grow_action action;
};
extern const struct grow_case grow_cases[];
extern const unsigned grow_cases_cnt;

#endif
