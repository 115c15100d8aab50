/* SPDX-License-Identifier: MIT
 *
 * See chain.h. What a guest may ask for has been judged by outcome.c; here it is looked where the
 * name leads. A file that stands in the chain already closes a loop.
 */
#include "chain.h"
#include "locks.h"
#include "outcome.h"
#include "recover.h"
#include "run.h"
#include "text.h"
#include "undo.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool same_file(const struct stat *a, const struct stat *b)
{
    return (a->st_dev == b->st_dev && a->st_ino == b->st_ino) ||
           (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode) && a->st_rdev == b->st_rdev);
}

/* The disk of this chain that is the open file, or NULL. Its own lock would be in the way. */
static const struct disk *in_chain(const struct chain *c, int fd)
{
    struct stat now;
    for (unsigned i = 0; i < c->count && fstat(fd, &now) == 0; i++)
        if (same_file(&c->disks[i].before, &now))
            return &c->disks[i];
    return NULL;
}

static int loop(const instar_NeedFile *need, const struct chain *c, const struct disk *known,
                struct err *e)
{
    char *name = text_safe_copy(need->name.bytes, need->name.size);
    if (need->role == instar_Role_ROLE_DATA)
        err_set(e, instar_Code_LOOP, "External data file '%s' is %s.", name,
                known == c->disks ? "the image itself" : "another file of the chain already");
    else if (known->role == instar_Role_ROLE_DATA)
        err_set(e, instar_Code_LOOP, "Backing file '%s' is an external data file already.", name);
    else
        err_set(e, instar_Code_LOOP, "Backing file '%s' creates an infinite loop.", name);
    free(name);
    return -1;
}

/* The open file as the next disk; its name is shown, and must not look like words of ours. */
static int add(struct job *job, struct chain *c, const instar_NeedFile *need, int fd, char *path,
               bool writable, struct err *e)
{
    struct disk *d = &c->disks[c->count];
    c->paths[c->count] = path;
    c->count++; /* from here on chain_close() sees to it */
    int r = disk_adopt(d, text_safe_copy(path, strlen(path)), fd, writable, job->sector, e);
    d->role = need->role;
    d->of = need->slot;
    d->target = need->writable;
    if (need->role == instar_Role_ROLE_BACKING) {
        d->format = strdup(need->format);
        c->disks[need->slot].backing = c->count - 1;
    }
    return r < 0 ? r : recover_first(job, d, e);
}

static int attach(struct job *job, struct chain *c, const instar_NeedFile *need, struct err *e)
{
    bool writable = need->writable && !job->request.dry_run;
    char *path;
    if (c->count == CHAIN_DISKS)
        return err_set(e, instar_Code_CHAIN_DEPTH,
                       "The chain of files that the image names is longer than %d",
                       CHAIN_DISKS - 1);
    const char *holder = need->slot ? c->paths[need->slot] : job->image;
    int fd = policy_open(&job->policy, job->image, holder, need, writable, &path, e);
    if (fd < 0)
        return -1;
    const struct disk *known = in_chain(c, fd);
    if (!known)
        return add(job, c, need, fd, path, writable, e);
    free(path);
    close(fd);
    return loop(need, c, known, e);
}

int chain_run(struct job *job, struct chain *c, instar_Outcome *out, struct err *e)
{
    for (;;) {
        if (run(job, c->disks, c->count, out, e) < 0)
            return -1;
        if (!out->has_need_file)
            return 0;
        if (job->verbose)
            fprintf(stderr, "disk %u has %s %s that the result depends on\n",
                    (unsigned)out->need_file.slot,
                    out->need_file.role == instar_Role_ROLE_DATA ? "an" : "a",
                    policy_kind(out->need_file.role));
        if (attach(job, c, &out->need_file, e) < 0)
            return -1;
    }
}

/* Its length, then the end of its undo journal; a file that gets shorter than the journal can make
 * it again is complete already, and can lose it first. */
static int finish(struct chain *c, struct disk *d, uint64_t length, struct err *e)
{
    /* A write that is still on its way would make the file longer again. */
    c->stuck = disk_longer(d, length) && run_settle(e) < 0;
    if (c->stuck || (d->undo && length < d->undo_length && undo_retire(d, e) < 0) ||
        disk_finish(d, length, e) < 0)
        return -1;
    return d->undo ? undo_retire(d, e) : 0;
}

int chain_finish(struct chain *c, const instar_Outcome *out, struct err *e)
{
    for (unsigned i = 0; i < c->count; i++) {
        struct disk *d = &c->disks[i];
        if (!d->writable || finish(c, d, outcome_length(out, d, i), e) == 0)
            continue;
        if (d->undo)
            err_add(e, "The next operation that writes the image rolls back, or 'instar-launch "
                       "recover'.");
        return -1;
    }
    return 0;
}

void chain_close(struct chain *c)
{
    for (unsigned i = 0; i < c->count && !c->stuck; i++)
        locks_drop(c->disks[i].fd);
}
