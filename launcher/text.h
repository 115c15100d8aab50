/* SPDX-License-Identifier: MIT
 *
 * Untrusted bytes made safe to print, for people and as JSON, and sizes in qemu-img's notation.
 * Printable UTF-8 passes; control characters, characters that reorder or hide text, and bytes that
 * are no UTF-8 become \xNN, byte by byte. Safe text passes unchanged a second time.
 */
#ifndef LAUNCHER_TEXT_H
#define LAUNCHER_TEXT_H

#include <stdint.h>
#include <stdio.h>

/* `keep_lines`: newlines are the caller's own and stay. */
enum text_lines { TEXT_ONE_LINE, TEXT_KEEP_LINES };
void text_safe(FILE *to, const void *bytes, size_t len, enum text_lines lines);

/* The same, on one line, as a string that the caller frees. */
char *text_safe_copy(const void *bytes, size_t len);

/* A quoted JSON string. Valid UTF-8 stays as it is, with JSON's own escapes; bytes that are no
 * UTF-8 become the four characters \xNN (their backslash doubled, as JSON wants it). */
void text_json(FILE *to, const void *bytes, size_t len);

/* 64 MiB: three significant digits, binary units, as qemu-img prints them. */
void text_size(FILE *to, uint64_t bytes);

#endif
