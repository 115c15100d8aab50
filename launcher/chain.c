/* SPDX-License-Identifier: MIT
 *
 * See chain.h. What a guest may ask for has been judged by outcome.c; here it is looked where the
 * name leads. A file that stands on the one that names it closes a loop.
 */
#include "chain.h"
#include "extents.h"
#include "locks.h"
#include "outcome.h"
#include "recover.h"
#include "run.h"
#include "text.h"
#include "undo.h"

#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool same_file(const struct stat *a, const struct stat *b)
{
    return (a->st_dev == b->st_dev && a->st_ino == b->st_ino) ||
           (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode) && a->st_rdev == b->st_rdev);
}

/* Does disk i stand on disk `slot`, whatever lies between them, or is it that? */
static bool leads_to(const struct chain *c, unsigned i, unsigned slot)
{
    while (i != slot && c->disks[i].backing)
        i = c->disks[i].backing;
    return i == slot;
}

static int loop(const instar_NeedFile *need, const struct chain *c, const struct disk *known,
                struct err *e)
{
    char *name = text_safe_copy(need->name.bytes, need->name.size);
    if (need->role == instar_Role_ROLE_EXTENT)
        err_set(e, instar_Code_LOOP, "Extent '%s' is %s.", name,
                known == &c->disks[need->slot] ? "its own descriptor"
                                               : "another file of the image already");
    else if (need->role == instar_Role_ROLE_DATA)
        err_set(e, instar_Code_LOOP, "External data file '%s' is %s.", name,
                known == c->disks ? "the image itself" : "another file of the chain already");
    else if (known->role == instar_Role_ROLE_DATA || known->role == instar_Role_ROLE_EXTENT)
        err_set(e, instar_Code_LOOP, "Backing file '%s' is an %s already.", name,
                policy_kind(known->role));
    else
        err_set(e, instar_Code_LOOP, "Backing file '%s' creates an infinite loop.", name);
    free(name);
    return -1;
}

/* Are both in one directory? A name that such a file holds means the same then. */
static bool same_directory(const char *a, const char *b)
{
    struct stat st[2];
    const char *path[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        char *copy = strdup(path[i]);
        int r = copy ? stat(dirname(copy), &st[i]) : -1;
        free(copy);
        if (r < 0)
            return false;
    }
    return same_file(&st[0], &st[1]);
}

/* Would the owner of the image have somebody else's file written? root alone may: of other images
 * a name is all that their owner has contributed. */
static bool is_foreign(const struct chain *c, const instar_NeedFile *need, const struct stat *now)
{
    uid_t owner = c->disks[0].before.st_uid;
    return need->writable && now->st_uid != owner && owner != 0;
}

/* The same file may be attached several times to be read, or be shared by chains; what closes a
 * loop, or has two roles, may not. *shared: the disk that is it, of the same format and found in
 * the same place, or NULL. */
static int look_around(const struct chain *c, const instar_NeedFile *need, int fd,
                       const char *path, unsigned *shared, struct err *e)
{
    struct stat now;
    *shared = 0;
    if (fstat(fd, &now) < 0)
        return err_set(e, instar_Code_READ_FAILED, "Could not open '%s': %s", path,
                       strerror(errno));
    if (is_foreign(c, need, &now))
        return err_set(e, instar_Code_POLICY_REFUSED,
                       "'%s' would be written, and belongs to another user than the image", path);
    for (unsigned i = 0; i < c->count; i++) {
        const struct disk *d = &c->disks[i];
        bool alike = need->role == d->role;
        bool data = alike && need->role == instar_Role_ROLE_DATA;
        bool backing = alike && need->role == instar_Role_ROLE_BACKING;
        if (!same_file(&d->before, &now))
            continue;
        if (backing ? leads_to(c, i, need->slot) : !data || need->writable || d->target)
            return loop(need, c, d, e);
        if (backing && strcmp(d->format, need->format) == 0 && same_directory(c->paths[i], path))
            *shared = i;
    }
    return 0;
}

/* The open file as the next disk, which has fd and path from then on; what fails leaves no trace.
 * Its name is shown, and must not look like words of ours. */
static int add(struct job *job, struct chain *c, const instar_NeedFile *need, int fd, char *path,
               bool writable, struct err *e)
{
    struct disk *d = &c->disks[c->count];
    c->paths[c->count] = path;
    c->root[c->count] = c->root[need->slot];
    int r = disk_adopt(d, text_safe_copy(path, strlen(path)), fd, writable, job->sector, e);
    d->role = need->role;
    d->of = need->slot;
    d->target = need->writable;
    if (need->role == instar_Role_ROLE_BACKING)
        d->format = strdup(need->format);
    if (r < 0 || (r = recover_first(job, d, e)) < 0)
        return r;
    c->count++; /* from here on chain_close() sees to it */
    return 0;
}

/* Attaches the open file as what was asked for, unless it is there: then that is *at. Takes fd and
 * path in any case. */
static int attach(struct job *job, struct chain *c, const instar_NeedFile *need, int fd, char *path,
                  bool writable, unsigned *at, struct err *e)
{
    unsigned shared, next = c->count;
    int r = look_around(c, need, fd, path, &shared, e);
    *at = shared ? shared : next;
    if (r == 0 && !shared && next == CHAIN_DISKS)
        r = err_set(e, instar_Code_CHAIN_DEPTH,
                    "The chain of files that the image names is longer than %d", CHAIN_DISKS - 1);
    if (r == 0 && !shared)
        r = add(job, c, need, fd, path, writable, e);
    if (c->count == next) {
        free(path);
        close(fd);
    }
    return r;
}

static int follow(struct job *job, struct chain *c, const instar_NeedFile *need, struct err *e)
{
    bool writable = need->writable && !job->request.dry_run;
    const char *holder = need->slot ? c->paths[need->slot] : job->image;
    const char *root = c->root[need->slot] ? c->root[need->slot] : job->image;
    unsigned at;
    char *path;
    int fd = policy_open(&job->policy, root, holder, need, writable, &path, e);
    if (fd < 0 || attach(job, c, need, fd, path, writable, &at, e) < 0)
        return -1;
    if (need->role == instar_Role_ROLE_BACKING)
        c->disks[need->slot].backing = at;
    return 0;
}

int chain_fork(struct job *job, struct chain *c, int fd, char *path, const char *name,
               const char *format, struct err *e)
{
    instar_NeedFile need = {.role = instar_Role_ROLE_BACKING};
    unsigned at;
    snprintf(need.format, sizeof need.format, "%s", format);
    need.name.size = (pb_size_t)strnlen(name, sizeof need.name.bytes);
    memcpy(need.name.bytes, name, need.name.size);
    if (attach(job, c, &need, fd, path, false, &at, e) < 0)
        return -1;
    c->root[at] = path;
    return 0;
}

/* Does nothing depend on the file? Then the guest does without it, but for what must not be. */
static bool give_up(struct job *job, struct chain *c, const instar_NeedFile *need, struct err *e)
{
    if (!job->lenient || e->code == instar_Code_LOOP)
        return false;
    if (job->verbose)
        fprintf(stderr, "going on without it: %s\n", e->text);
    err_clear(e);
    c->disks[need->slot].lost = true;
    return true;
}

/* All extents that were asked for, or new ones. */
static int attach_extents(struct job *job, struct chain *c, const instar_NeedExtents *need,
                          struct err *e)
{
    static instar_NeedFile one; /* too large for a stack */
    if (need->create)
        return extents_make(job, c, need, e);
    for (unsigned i = 0; i < need->names_count; i++) {
        one = (instar_NeedFile){.slot = need->slot,
                                .role = instar_Role_ROLE_EXTENT,
                                .writable = need->writable};
        one.name.size = need->names[i].size;
        memcpy(one.name.bytes, need->names[i].bytes, need->names[i].size);
        if (follow(job, c, &one, e) < 0)
            return -1;
    }
    return 0;
}

int chain_run(struct job *job, struct chain *c, instar_Outcome *out, struct err *e)
{
    for (;;) {
        if (run(job, c->disks, c->count, out, e) < 0)
            return -1;
        const instar_NeedExtents *extents = &out->result.need_extents;
        if (out->which_result == instar_Outcome_need_extents_tag) {
            if (job->verbose)
                fprintf(stderr, "disk %u consists of %u %sfiles\n", (unsigned)extents->slot,
                        (unsigned)(extents->create ? extents->create : extents->names_count),
                        extents->create ? "more, new " : "");
            if (attach_extents(job, c, extents, e) < 0)
                return -1;
            continue;
        }
        if (!out->has_need_file)
            return 0;
        if (job->verbose)
            fprintf(stderr, "disk %u has %s %s that the result depends on\n",
                    (unsigned)out->need_file.slot,
                    policy_article(out->need_file.role), policy_kind(out->need_file.role));
        if (follow(job, c, &out->need_file, e) < 0 && !give_up(job, c, &out->need_file, e))
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
