/* SPDX-License-Identifier: MIT
 *
 * Where a qcow2 image ends that stands on something longer: a block device.
 */
#ifndef PLANNER_QCOW2_END_H
#define PLANNER_QCOW2_END_H

#include "plan.h"

/* *end: behind the last cluster that anything refers to or that has a count; see struct planner.
 * ERR_OVERLAY_CORRUPT: the metadata cannot be followed. */
int qcow2_end(struct image *img, u64 *end, struct err *e);

#endif
