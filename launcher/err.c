/* SPDX-License-Identifier: MIT
 *
 * struct err: the first failure, and lines of advice added to it. Memory that runs out while a
 * message is made is the end of the process: there is nothing sensible left to say.
 */
#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static char *format_text(const char *format, va_list args)
{
    char *text;
    if (vasprintf(&text, format, args) < 0)
        abort();
    return text;
}

int err_set(struct err *e, instar_Code code, const char *format, ...)
{
    if (e->code != instar_Code_OK)
        return -1;
    va_list args;
    va_start(args, format);
    e->code = code;
    e->text = format_text(format, args);
    va_end(args);
    return -1;
}

/* Two texts become one. */
static void join(struct err *e, char *first, const char *between, char *second)
{
    char *text;
    if (asprintf(&text, "%s%s%s", first, between, second) < 0)
        abort();
    free(first);
    free(second);
    e->text = text;
}

void err_prefix(struct err *e, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    join(e, format_text(format, args), "", e->text);
    va_end(args);
}

void err_add(struct err *e, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    join(e, e->text, "\n", format_text(format, args));
    va_end(args);
}

void err_clear(struct err *e)
{
    free(e->text);
    *e = (struct err){0};
}
