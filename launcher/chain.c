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

/* Is the file open in this chain already? Its own lock would be in the way. */
static bool in_chain(const struct chain *c, int fd)
{
    struct stat now;
    for (unsigned i = 0; i < c->count && fstat(fd, &now) == 0; i++)
        if (c->disks[i].before.st_dev == now.st_dev && c->disks[i].before.st_ino == now.st_ino)
            return true;
    return false;
}

/* The open file as the next disk; its name is shown, and must not look like words of ours. */
static int add(struct chain *c, int fd, char *path, const char *format, unsigned sector,
               struct err *e)
{
    struct disk *d = &c->disks[c->count];
    c->paths[c->count] = path;
    c->count++; /* from here on chain_close() sees to it */
    int r = disk_adopt(d, text_safe_copy(path, strlen(path)), fd, sector, e);
    d->format = strdup(format);
    return r;
}

static int attach(struct job *job, struct chain *c, const instar_NeedFile *need, struct err *e)
{
    char *path;
    if (c->count == 0 || need->slot != c->count - 1)
        return err_set(e, instar_Code_PROTOCOL, "The guest asked for a file out of turn");
    if (c->count == CHAIN_DISKS)
        return err_set(e, instar_Code_CHAIN_DEPTH,
                       "The chain of backing files is longer than %d", CHAIN_DISKS - 1);
    const char *holder = need->slot ? c->paths[need->slot] : job->image;
    int fd = policy_open(&job->policy, job->image, holder, need->name.bytes, need->name.size,
                         &path, e);
    if (fd < 0)
        return -1;
    if (!in_chain(c, fd))
        return add(c, fd, path, need->format, job->sector, e);
    char *name = text_safe_copy(need->name.bytes, need->name.size);
    err_set(e, instar_Code_LOOP, "Backing file '%s' creates an infinite loop.", name);
    free(name);
    free(path);
    close(fd);
    return -1;
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
