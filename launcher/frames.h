/* SPDX-License-Identifier: MIT
 *
 * From the bytes of the guest's serial port to Events. Every byte is taken to be hostile: whatever
 * is not a frame of the contract, byte for byte, is an error, and there is no way back from it.
 */
#ifndef LAUNCHER_FRAMES_H
#define LAUNCHER_FRAMES_H

#include "err.h"
#include "frame.h"

#include <sys/types.h>

struct frames {
    size_t have; /* bytes in buf that no event has used up */
    uint8_t buf[FRAME_HEAD + FRAME_MAX + FRAME_TAIL];
};

/* Reads what the socket holds now: the number of bytes, 0 at its end, -1 if there is nothing yet.
 * To be called when frames_next() has returned 0. */
ssize_t frames_read(struct frames *f, int fd);

/* 1: *ev is the next event; 0: it is not complete yet; -1: *e says what is wrong. */
int frames_next(struct frames *f, instar_Event *ev, struct err *e);

#endif
