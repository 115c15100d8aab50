/* SPDX-License-Identifier: MIT
 *
 * JSON on stdout, written member by member: nothing is collected, so a list of any length costs
 * nothing. In an array, and for a value that stands alone, the key is NULL. Strings are anyone's
 * bytes (text.h).
 */
#ifndef LAUNCHER_JSON_H
#define LAUNCHER_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Zeroed: nothing has been written yet. */
struct json {
    bool pretty;    /* a line for each member, indented, as qemu-img has it */
    bool more;      /* the next member needs a comma */
    unsigned depth; /* open brackets */
};

void json_open(struct json *j, const char *key, char bracket); /* { or [ */
void json_close(struct json *j, char bracket);                 /* } or ] */
void json_bytes(struct json *j, const char *key, const void *bytes, size_t len);
void json_text(struct json *j, const char *key, const char *text);
void json_number(struct json *j, const char *key, uint64_t value);
void json_flag(struct json *j, const char *key, bool value);

/* A string of lower case digits, two for each byte. */
void json_hex(struct json *j, const char *key, const void *bytes, size_t len);

#endif
