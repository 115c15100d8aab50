/* SPDX-License-Identifier: MIT
 *
 * `instar-launch decode`: the frames of a serial port in words, for runs by hand.
 */
#ifndef LAUNCHER_DECODE_H
#define LAUNCHER_DECODE_H

#include "commands.h"

/* Reads frames from stdin and prints each Event as a JSON object on a line of its own, named as in
 * the contract. What is no frame is passed over; -1: there was some, and *e says where. */
int decode_stdin(struct job *job, struct err *e);

#endif
