/* SPDX-License-Identifier: MIT
 *
 * The files that an image consists of and that an operation makes or drops: new extents are named
 * here, after the image, and never take the place of a file that exists; they are removed unless
 * the image may name them by now. What the image has dropped is removed when all is done, if it is
 * still there under the name that the image had for it.
 */
#ifndef LAUNCHER_EXTENTS_H
#define LAUNCHER_EXTENTS_H

#include "chain.h"

/* Makes the new files that were asked for, empty and durable, each the chain's next disk. Of a dry
 * run they are in memory only. */
int extents_make(struct job *job, struct chain *c, const instar_NeedExtents *need, struct err *e);

/* The run has failed. QEMU is dead, or has nothing to write. */
void extents_discard(struct chain *c, struct err *e);

/* The run is done, and its Outcome has been checked. */
void extents_drop(struct chain *c, const instar_ResizeResult *r);

#endif
