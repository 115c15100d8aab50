/* SPDX-License-Identifier: MIT
 *
 * See chain.h. A guest may ask for the next file of the chain only, and only once for each; a file
 * that stands in the chain already closes a loop.
 */
#include "chain.h"
#include "locks.h"
#include "run.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool same_file(const struct disk *a, const struct disk *b)
{
    return a->before.st_dev == b->before.st_dev && a->before.st_ino == b->before.st_ino;
}

static int attach(struct job *job, struct chain *c, const instar_NeedFile *need, struct err *e)
{
    struct disk *d = &c->disks[c->count];
    char *path;
    if (c->count == 0 || need->slot != c->count - 1)
        return err_set(e, instar_Code_PROTOCOL, "The guest asked for a file out of turn");
    if (c->count == CHAIN_DISKS)
        return err_set(e, instar_Code_CHAIN_DEPTH,
                       "The chain of backing files is longer than %d", CHAIN_DISKS - 1);
    int fd = policy_open(&job->policy, job->image, c->disks[need->slot].name, need->name.bytes,
                         need->name.size, &path, e);
    if (fd < 0)
        return -1;
    c->count++; /* from here on chain_close() sees to it */
    if (disk_adopt(d, path, fd, job->sector, e) < 0)
        return -1;
    d->format = strdup(need->format);
    for (unsigned i = 0; i + 1 < c->count; i++) {
        if (!same_file(d, &c->disks[i]))
            continue;
        char *name = text_safe_copy(need->name.bytes, need->name.size);
        err_set(e, instar_Code_LOOP, "Backing file '%s' creates an infinite loop.", name);
        free(name);
        return -1;
    }
    return 0;
}

int chain_run(struct job *job, struct chain *c, instar_Outcome *out, struct err *e)
{
    for (;;) {
        if (run(job, c->disks, c->count, out, e) < 0)
            return -1;
        if (!out->has_need_file)
            return 0;
        if (job->verbose)
            fprintf(stderr, "disk %u names a file that the result depends on\n",
                    (unsigned)out->need_file.slot);
        if (attach(job, c, &out->need_file, e) < 0)
            return -1;
    }
}

void chain_close(struct chain *c)
{
    for (unsigned i = 0; i < c->count; i++)
        locks_drop(c->disks[i].fd);
}
