/* SPDX-License-Identifier: MIT
 *
 * Patching fields of a qcow2 header: what lies between two changed fields is written as it is on
 * the disk (P6), so that one write inside sector 0 can be the commit of all of them (P5).
 */
#ifndef PLANNER_QCOW2_HEADER_H
#define PLANNER_QCOW2_HEADER_H

#include "plan.h"

struct qcow2_header {
    u8 bytes[QH_V3_LENGTH]; /* as on the disk, but for the fields that were put */
    u32 from, to;           /* those lie in [from, to) */
};

/* The header as it is; nothing is changed yet. */
void qcow2_header_begin(const struct image *img, struct qcow2_header *h);
/* The field at offset `field` gets the value `v`. */
void qcow2_header_put32(struct qcow2_header *h, enum qcow2_header_field field, u32 v);
void qcow2_header_put64(struct qcow2_header *h, enum qcow2_header_field field, u64 v);
/* Emits what was put, as the commit, and a barrier. */
int qcow2_header_commit(const struct qcow2_header *h, struct sink *s, const char *why,
                        struct err *e);

/* Clears unknown autoclear bits, before anything else is changed, as the specification demands. The
 * bit of the bitmaps is qcow2_bitmaps.c's. */
int qcow2_header_autoclear(const struct image *img, struct sink *s, struct err *e);

#endif
