/* SPDX-License-Identifier: MIT
 *
 * The members of planners that a whole operation hangs on. They are no file's own, so that the
 * linker can leave those out of an image that its operation does not call (LEFT_OUT in the
 * Makefile): there the member is NULL.
 */
#ifndef PLANNER_MEMBERS_H
#define PLANNER_MEMBERS_H

#include "plan.h"

int raw_resize(struct image *, const struct resize_args *, struct plan_state *, struct sink *,
               struct err *);
int qcow2_resize(struct image *, const struct resize_args *, struct plan_state *, struct sink *,
                 struct err *);
int vhd_resize(struct image *, const struct resize_args *, struct plan_state *, struct sink *,
               struct err *);
int vhdx_resize(struct image *, const struct resize_args *, struct plan_state *, struct sink *,
                struct err *);
int vmdk_resize(struct image *, const struct resize_args *, struct plan_state *, struct sink *,
                struct err *);

int qcow2_rebase(struct image *, const struct rebase_args *, struct plan_state *, struct sink *,
                 struct err *);
int vmdk_rebase(struct image *, const struct rebase_args *, struct plan_state *, struct sink *,
                struct err *);

#endif
