/* SPDX-License-Identifier: MIT
 *
 * See extents.h. Names are STEM-LNNN.EXT, as everyone's are: a letter for the kind, three digits.
 */
#include "extents.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { NUMBERS = 1000 /* that are tried for a name which is free */ };

/* The image's directory, as the user spelled it, and the rest of its name. */
static int open_home(const char *image, const char **base)
{
    const char *slash = strrchr(image, '/');
    char *dir = slash ? strndup(image, (size_t)(slash - image) + 1) : strdup(".");
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    *base = slash ? slash + 1 : image;
    free(dir);
    return fd;
}

/* The name goes between quotes, into a line of the image. */
static bool can_be_quoted(const char *name)
{
    for (; *name; name++)
        if (*name == '"' || (unsigned char)*name < ' ' || *name == 0x7f)
            return false;
    return true;
}

static char *form_name(const char *base, const char *letter, unsigned number)
{
    const char *dot = strrchr(base, '.');
    char *name = NULL;
    if (!dot || dot == base)
        dot = base + strlen(base);
    return asprintf(&name, "%.*s-%s%03u%s", (int)(dot - base), base, letter, number, dot) < 0
               ? NULL
               : name;
}

/* An empty file that nobody else sees, read-only, as all is in a dry run. */
static int open_nothing(void)
{
    char self[40];
    int fd = memfd_create("extent", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    int again = open(self, O_RDONLY | O_CLOEXEC);
    close(fd);
    return again;
}

static int open_new(int home, const char *name, bool dry_run)
{
    struct stat st;
    if (!dry_run)
        return openat(home, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC,
                      0600);
    if (fstatat(home, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return open_nothing();
    errno = EEXIST;
    return -1;
}

static int cannot_make(const char *name, int error, struct err *e)
{
    char *shown = text_safe_copy(name, strlen(name));
    err_set(e, error == ENOSPC || error == EDQUOT ? instar_Code_NO_SPACE : instar_Code_WRITE_FAILED,
            "Could not create the extent '%s': %s", shown, strerror(error));
    free(shown);
    return -1;
}

/* The file is the image owner's as much as the image is, and durable with its name. */
static bool settle(const struct disk *image, int fd, int home)
{
    int ignored = fchown(fd, image->before.st_uid, image->before.st_gid);
    (void)ignored; /* only root may give files away */
    return fchmod(fd, image->before.st_mode & 0666) == 0 && fsync(fd) == 0 &&
           (fsync(home) == 0 || errno == EINVAL);
}

/* Makes one file and the disk of it. *number: the first that is tried; then the next one. */
static int make_one(struct job *job, struct chain *c, const char *letter, unsigned *number,
                    struct err *e)
{
    bool dry_run = job->request.dry_run;
    struct disk *d = &c->disks[c->count];
    const char *base;
    char *name = NULL;
    int home = open_home(job->image, &base), fd = -1;
    if (home < 0)
        return cannot_make(base, errno, e);
    for (int i = 0; fd < 0 && i < NUMBERS && (i == 0 || errno == EEXIST); i++) {
        free(name);
        name = form_name(base, letter, (*number)++);
        fd = name ? open_new(home, name, dry_run) : -1;
    }
    if (fd < 0) {
        cannot_make(name ? name : base, errno, e);
        free(name);
        close(home);
        return -1;
    }
    c->paths[c->count++] = name;
    int r = disk_adopt(d, name, fd, !dry_run, job->sector, e);
    d->role = instar_Role_ROLE_EXTENT;
    d->target = true;
    d->made = name;
    d->home = home;
    if (r == 0 && !dry_run && !settle(&c->disks[0], fd, home))
        r = cannot_make(name, errno, e);
    return r < 0 ? r : disk_measure(d, job->sector, e);
}

int extents_make(struct job *job, struct chain *c, const instar_NeedExtents *need, struct err *e)
{
    unsigned number = need->number;
    const char *slash = strrchr(job->image, '/'), *base = slash ? slash + 1 : job->image;
    if (!can_be_quoted(base) || strlen(base) + sizeof "-s001" > NAME_MAX)
        return err_set(e, instar_Code_INVALID_OPTION,
                       "New extents are named after the image, whose name cannot be part of one");
    for (unsigned i = 0; i < need->create; i++)
        if (make_one(job, c, need->letter, &number, e) < 0)
            return -1;
    return 0;
}

/* Removes what the name stands for, if that is the disk's file. */
static bool remove_name(int home, const char *name, const struct disk *d)
{
    struct stat now;
    return fstatat(home, name, &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_dev == d->before.st_dev &&
           now.st_ino == d->before.st_ino && unlinkat(home, name, 0) == 0;
}

void extents_discard(struct chain *c, struct err *e)
{
    struct disk *image = &c->disks[0];
    bool kept = !image->rolled_back && disk_state(image) != DISK_UNTOUCHED;
    for (unsigned i = 1; i < c->count; i++) {
        struct disk *d = &c->disks[i];
        if (!d->made || !d->writable)
            continue;
        if (kept)
            err_add(e, "The new extent '%s' is kept, since the image may name it by now.", d->made);
        else if (!remove_name(d->home, d->made, d))
            err_add(e, "The new extent '%s' could not be removed.", d->made);
    }
}

void extents_drop(struct chain *c, const instar_ResizeResult *r)
{
    for (unsigned i = 0; i < r->dropped_count; i++) {
        const struct disk *d = &c->disks[r->dropped[i]];
        const char *path = c->paths[r->dropped[i]], *base;
        int home = open_home(path, &base);
        if (home < 0 || !remove_name(home, base, d)) {
            fputs("instar-launch: warning: the image no longer has the extent '", stderr);
            text_safe(stderr, path, strlen(path), TEXT_ONE_LINE);
            fputs("', and its file is left\n", stderr);
        }
        if (home >= 0)
            close(home);
    }
}
