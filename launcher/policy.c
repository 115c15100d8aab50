/* SPDX-License-Identifier: MIT
 *
 * Names from images, opened beneath a root: openat2(2) with RESOLVE_BENEATH and
 * RESOLVE_NO_MAGICLINKS does what comparing strings cannot.
 */
#include "policy.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "text.h"

/* A copy of the name as a string; NULL if it is none: empty, or with a NUL inside. */
static char *as_string(const void *name, size_t len)
{
    return len == 0 || memchr(name, 0, len) ? NULL : strndup(name, len);
}

bool policy_protocol(const char *name)
{
    size_t n = strcspn(name, ":/");
    return name[n] == ':';
}

/* dir/name, the caller's to free. */
static char *join(const char *dir, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

/* The directory part of a file's name, as it is spelled. The caller frees it. */
static char *directory_of(const char *file)
{
    char *copy = strdup(file), *dir = copy ? strdup(dirname(copy)) : NULL;
    free(copy);
    return dir;
}

/* An absolute path without empty, `.` and `..` components, by its letters alone: good enough to
 * find the root that a name means, since the kernel has the last word on what lies beneath it. */
static char *clean(const char *path)
{
    char *out = malloc(strlen(path) + 2), *end = out;
    while (out && *path) {
        size_t n = strcspn(path, "/");
        if (n == 2 && path[0] == '.' && path[1] == '.') {
            while (end > out && *--end != '/')
                ;
        } else if (n > 1 || (n == 1 && *path != '.')) {
            *end++ = '/';
            end = mempcpy(end, path, n);
        }
        path += n;
        path += strspn(path, "/");
    }
    if (out && end == out)
        *end++ = '/';
    if (out)
        *end = 0;
    return out;
}

/* What follows `root` in `path`, both absolute; NULL if path is not beneath it. */
static const char *beneath(const char *root, const char *path)
{
    size_t n = strcmp(root, "/") ? strlen(root) : 0;
    if (strncmp(root, path, n) != 0 || path[n] != '/')
        return NULL;
    path += n + strspn(path + n, "/");
    return *path ? path : NULL;
}

/* Where the name leads, as an O_PATH descriptor: a fifo that is opened wakes its writer, even by an
 * open that does not block, and a device may do anything. */
static int find_in(const char *root, const char *rest)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    int dir = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = dir < 0 ? -1 : (int)syscall(SYS_openat2, dir, rest, &how, sizeof how);
    int error = errno;
    if (dir >= 0)
        close(dir);
    errno = error;
    return fd;
}

/* Finds the absolute `path` if it lies beneath the directory `typed`, as that is spelled or as it
 * is without links. -1 and errno: EXDEV if it does not. */
static int find_beneath(const char *typed, const char *path)
{
    char *cwd = typed[0] == '/' ? NULL : getcwd(NULL, 0);
    char *full = cwd ? join(cwd, typed) : strdup(typed);
    char *root[] = {realpath(typed, NULL), full ? clean(full) : NULL};
    char *name[] = {strdup(path), clean(path)};
    int fd = -1, error = EXDEV;
    for (int i = 0; fd < 0 && i < 4; i++) {
        const char *r = root[i / 2], *n = name[i % 2], *rest = r && n ? beneath(r, n) : NULL;
        fd = rest ? find_in(r, rest) : -1;
        if (fd < 0 && rest && error == EXDEV)
            error = errno;
    }
    free(cwd);
    free(full);
    for (int i = 0; i < 2; i++) {
        free(root[i]);
        free(name[i]);
    }
    errno = error;
    return fd;
}

/* The name as an absolute path: its own, or joined to its holder's directory. */
static char *absolute(const char *holder, const char *name)
{
    if (name[0] == '/')
        return strdup(name);
    char *dir = directory_of(holder), *real = dir ? realpath(dir, NULL) : NULL;
    char *path = real ? join(real, name) : NULL;
    free(dir);
    free(real);
    return path;
}

/* Tries every root; the image's directory first. */
static int find_by_roots(const struct policy *p, const char *image, const char *path)
{
    char *home = directory_of(image);
    int fd = home ? find_beneath(home, path) : -1, error = home ? errno : ENOMEM;
    for (unsigned i = 0; fd < 0 && i < p->count; i++) {
        fd = find_beneath(p->dirs[i], path);
        if (fd < 0 && error == EXDEV)
            error = errno;
    }
    free(home);
    errno = error;
    return fd;
}

/* The file that was found, for reading or writing: the same inode, reached by no name. */
static int open_found(int found, const struct stat *st, bool writable)
{
    char self[40];
    struct stat now;
    snprintf(self, sizeof self, "/proc/self/fd/%d", found);
    int fd = open(self, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || (fstat(fd, &now) == 0 && now.st_dev == st->st_dev && now.st_ino == st->st_ino))
        return fd;
    close(fd);
    errno = ESTALE;
    return -1;
}

const char *policy_kind(instar_Role role)
{
    static const char *const kind[] = {[instar_Role_ROLE_BACKING] = "backing file",
                                       [instar_Role_ROLE_DATA] = "external data file",
                                       [instar_Role_ROLE_EXTENT] = "extent"};
    return kind[role];
}

const char *policy_article(instar_Role role)
{
    return role == instar_Role_ROLE_BACKING ? "a" : "an";
}

static int refused(const instar_NeedFile *need, const char *why, struct err *e)
{
    char *shown = text_safe_copy(need->name.bytes, need->name.size);
    err_set(e, instar_Code_POLICY_REFUSED, "The image names %s %s, '%s', which %s",
            policy_article(need->role), policy_kind(need->role), shown, why);
    free(shown);
    return -1;
}

static int cannot_open(const instar_NeedFile *need, int error, struct err *e)
{
    char *shown = text_safe_copy(need->name.bytes, need->name.size);
    if (error)
        err_set(e, instar_Code_READ_FAILED, "Could not open %s: Could not open '%s': %s",
                policy_kind(need->role), shown, strerror(error));
    else
        err_set(e, instar_Code_READ_FAILED,
                "Could not open %s: 'file' driver requires '%s' to be a regular file",
                policy_kind(need->role), shown);
    free(shown);
    return -1;
}

/* An extent: a plain name in the holder's directory, which no link may lead out of. */
static int find_extent(const char *holder, const instar_NeedFile *need, const char *name,
                       char **path, struct err *e)
{
    if (strchr(name, '/') || strcmp(name, "..") == 0 || strcmp(name, ".") == 0)
        return refused(need, "is no plain file name: extents lie beside their descriptor.", e);
    char *dir = directory_of(holder);
    if (dir)
        *path = strchr(holder, '/') ? join(dir, name) : strdup(name);
    int found = *path ? find_in(dir, name) : -1, error = *path ? errno : ENOMEM;
    free(dir);
    if (found < 0 && (error == EXDEV || error == ELOOP))
        return refused(need, "is a link that leads out of the image's directory.", e);
    return found < 0 ? cannot_open(need, error, e) : found;
}

/* The descriptor of what the policy allows; a refusal is worded here. */
static int find_name(const struct policy *p, const char *image, const char *holder,
                     const instar_NeedFile *need, const char *name, char **path, struct err *e)
{
    if (p->forbidden)
        return refused(need, "--no-backing forbids to open.", e);
    if (need->role == instar_Role_ROLE_EXTENT)
        return find_extent(holder, need, name, path, e);
    if (need->role != instar_Role_ROLE_DATA && policy_protocol(name))
        return refused(need, "is no plain file name: such names are never followed.", e);
    *path = absolute(holder, name);
    int found = *path ? find_by_roots(p, image, *path) : -1;
    if (found >= 0)
        return found;
    if (*path && errno != EXDEV && errno != ELOOP)
        return cannot_open(need, errno, e);
    return refused(need,
                   "does not lie in the image's directory. If you trust that, give its "
                   "directory with --backing-dir.",
                   e);
}

int policy_open(const struct policy *p, const char *image, const char *holder,
                const instar_NeedFile *need, bool writable, char **path, struct err *e)
{
    char *name = as_string(need->name.bytes, need->name.size);
    struct stat st;
    *path = NULL;
    if (!name)
        return refused(need, "is empty or holds a NUL byte.", e);
    int fd = -1, found = find_name(p, image, holder, need, name, path, e);
    free(name);
    if (found < 0)
        return -1;
    if (fstat(found, &st) < 0)
        cannot_open(need, errno, e);
    else if (!S_ISREG(st.st_mode) &&
             (!S_ISBLK(st.st_mode) || need->role == instar_Role_ROLE_EXTENT))
        cannot_open(need, 0, e);
    else if ((fd = open_found(found, &st, writable)) < 0)
        cannot_open(need, errno, e);
    close(found);
    if (fd < 0) {
        free(*path);
        *path = NULL;
    }
    return fd;
}

int policy_open_typed(const char *holder, const char *name, char **path)
{
    struct stat st;
    *path = absolute(holder, name);
    int fd = -1, found = *path ? open(*path, O_PATH | O_CLOEXEC) : -1, error = errno;
    if (found >= 0 && fstat(found, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        error = 0;
    } else if (found >= 0) {
        fd = open_found(found, &st, false);
        error = errno;
    }
    if (found >= 0)
        close(found);
    if (fd < 0)
        free(*path);
    errno = error;
    return fd;
}
