/* SPDX-License-Identifier: MIT
 *
 * qemu's own scheme of locks on an image (parity A.4), so that qemu and instar respect each other.
 */
#ifndef LAUNCHER_LOCKS_H
#define LAUNCHER_LOCKS_H

#include "err.h"

#include <stdbool.h>

/* Locks the open file as qemu does for a guest that reads it, or reads, writes and resizes it.
 * `name` is for the message. The locks belong to the open file description: QEMU, which inherits
 * it, holds them too. */
int locks_take(int fd, const char *name, bool writable, struct err *e);

/* Gives every lock up, also the ones that a dying QEMU would still hold for a while. */
void locks_drop(int fd);

#endif
