/* SPDX-License-Identifier: MIT
 *
 * What an image stands on is said in its header cluster: two fields, the extension that says the
 * backing file's format, and the name.
 */
#ifndef PLANNER_QCOW2_REBASE_H
#define PLANNER_QCOW2_REBASE_H

#include "plan.h"

/* One whole epoch: the header names a->name and a->format, or nothing. It is one of P10 where that
 * cannot be said within one sector. Nothing is emitted if it is so already. Uses two clusters of
 * a->work. BACKING_PATH_TOO_LONG: there is no room for it in the header cluster. */
int qcow2_rebase_header(struct image *img, const struct rebase_args *a, struct plan_state *state,
                        struct sink *s, struct err *e);

#endif
