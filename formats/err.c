/* SPDX-License-Identifier: MIT
 *
 * Filling a struct err. See base.h for the rule.
 */
#include "base.h"

int err_set(struct err *e, enum err_code code, const char *file, int line, const char *what,
            u64 off, u64 val)
{
    assert(code != OK);
    if (e->code == OK) {
        e->code = code;
        e->file = file;
        e->line = line;
        e->what = what;
        e->off = off;
        e->val = val;
        e->name[0] = 0;
    }
    return (int)e->code;
}

void err_name(struct err *e, const void *name, size_t len)
{
    const char *p = name;
    size_t i = 0;
    if (e->name[0])
        return;
    for (; i < len && i < sizeof e->name - 1 && p[i]; i++)
        e->name[i] = p[i];
    e->name[i] = 0;
}
