/* SPDX-License-Identifier: MIT
 *
 * The JSON writer. One flag is enough for the commas: after a bracket is closed its parent has a
 * member, after one is opened there is none.
 */
#include "json.h"
#include "text.h"

#include <stdio.h>
#include <string.h>

static void new_line(const struct json *j)
{
    if (j->pretty)
        printf("\n%*s", (int)j->depth * 4, "");
}

/* What stands before a value. */
static void begin(struct json *j, const char *key)
{
    if (j->more)
        fputs(j->pretty ? "," : ", ", stdout);
    if (j->depth)
        new_line(j);
    if (key) {
        text_json(stdout, key, strlen(key));
        fputs(": ", stdout);
    }
    j->more = true;
}

void json_open(struct json *j, const char *key, char bracket)
{
    begin(j, key);
    putchar(bracket);
    j->more = false;
    j->depth++;
}

void json_close(struct json *j, char bracket)
{
    j->depth--;
    if (j->more)
        new_line(j);
    putchar(bracket);
    j->more = true;
    if (j->depth == 0)
        putchar('\n');
}

void json_bytes(struct json *j, const char *key, const void *bytes, size_t len)
{
    begin(j, key);
    text_json(stdout, bytes, len);
}

void json_text(struct json *j, const char *key, const char *text)
{
    json_bytes(j, key, text, strlen(text));
}

void json_number(struct json *j, const char *key, uint64_t value)
{
    begin(j, key);
    printf("%llu", (unsigned long long)value);
}

void json_flag(struct json *j, const char *key, bool value)
{
    begin(j, key);
    fputs(value ? "true" : "false", stdout);
}

void json_hex(struct json *j, const char *key, const void *bytes, size_t len)
{
    const uint8_t *p = bytes;
    begin(j, key);
    putchar('"');
    for (size_t i = 0; i < len; i++)
        printf("%02x", p[i]);
    putchar('"');
}
