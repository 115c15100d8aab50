/* SPDX-License-Identifier: MIT
 *
 * The grammar of sizes on the command line: qemu-img's (1.5G, 0x200, +64k).
 */
#ifndef LAUNCHER_SIZE_H
#define LAUNCHER_SIZE_H

#include "err.h"

/* A number of bytes: [space] [+] digits [. digits] [one of bBkKmMgGtTpPeE], or 0x and hex digits.
 * `parameter` is the name that a message gives it. */
int size_parse(const char *text, const char *parameter, uint64_t *bytes, struct err *e);

/* The size operand of resize: one more + or - before it makes it relative. */
int size_parse_change(const char *text, instar_ResizeRequest *r, struct err *e);

#endif
