/* SPDX-License-Identifier: MIT
 *
 * The arithmetic of `resize`: a request and a current size give a new size, or the reason why not,
 * in the order of qemu-img's own checks (parity A.3). Used in the guest and, for `-f raw`, which
 * needs no VM, by the launcher: it is a part of the contract.
 */
#ifndef OPS_NEWSIZE_H
#define OPS_NEWSIZE_H

#include "instar.pb.h"

/* `current`: bytes, rounded up to 512 here as the block layer does. The new size is what was asked
 * for, to the byte; with r->align, the next multiple of that. Returns instar_Code_OK and *new_size,
 * or a code and *what (a constant text; {val} is *val). */
instar_Code newsize(const instar_ResizeRequest *r, uint64_t current, uint64_t *new_size,
                    const char **what, uint64_t *val);

#endif
