/* SPDX-License-Identifier: MIT
 *
 * The external data file of a qcow2 image: as long as its disk, and zero where a disk grows. What
 * lies past the old end of the disk is out of everybody's reach before a grow's commit, and after a
 * shrink's. Source: docs/interop/qcow2.txt, "Incompatible features" bit 2, "Autoclear features"
 * bit 1.
 */
#ifndef PLANNER_QCOW2_DATA_H
#define PLANNER_QCOW2_DATA_H

#include "plan.h"

/* Refuses a combination of features that the specification forbids, and a data file that is not
 * attached. An image without one passes. */
int qcow2_data_check(const struct image *img, struct err *e);
/* Emits the data file's growth to the new size. `mapped`: the new area will be mapped to it, so
 * what the file has there already becomes zero (P11). */
int qcow2_data_grow(const struct image *img, u64 new_size, bool mapped, struct sink *s,
                    struct err *e);
/* Emits, after the commit, that the data file ends with the disk. */
int qcow2_data_shrink(const struct image *img, u64 new_size, struct sink *s, struct err *e);

#endif
