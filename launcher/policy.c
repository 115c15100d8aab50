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

/* "proto:rest", as qemu reads it: a colon before the first slash. */
static bool has_protocol(const char *name)
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

/* An absolute path without empty, `.` and `..` components, by its letters alone: good enough to find
 * the root that a name means, since the kernel has the last word on what lies beneath it. */
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

static int open_in(const char *root, const char *rest)
{
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    int dir = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = dir < 0 ? -1 : (int)syscall(SYS_openat2, dir, rest, &how, sizeof how);
    int error = errno;
    if (dir >= 0)
        close(dir);
    errno = error;
    return fd;
}

/* Opens the absolute `path` if it lies beneath the directory `typed`, as that is spelled or as it is
 * without links. -1 and errno: EXDEV if it does not. */
static int open_beneath(const char *typed, const char *path)
{
    char *cwd = typed[0] == '/' ? NULL : getcwd(NULL, 0);
    char *full = cwd ? join(cwd, typed) : strdup(typed);
    char *root[] = {realpath(typed, NULL), full ? clean(full) : NULL};
    char *name[] = {strdup(path), clean(path)};
    int fd = -1, error = EXDEV;
    for (int i = 0; fd < 0 && i < 4; i++) {
        const char *r = root[i / 2], *n = name[i % 2], *rest = r && n ? beneath(r, n) : NULL;
        fd = rest ? open_in(r, rest) : -1;
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
static int open_by_roots(const struct policy *p, const char *image, const char *path)
{
    char *home = directory_of(image);
    int fd = home ? open_beneath(home, path) : -1, error = home ? errno : ENOMEM;
    for (unsigned i = 0; fd < 0 && i < p->count; i++) {
        fd = open_beneath(p->dirs[i], path);
        if (fd < 0 && error == EXDEV)
            error = errno;
    }
    free(home);
    errno = error;
    return fd;
}

static int refused(const char *name, const char *why, struct err *e)
{
    char *shown = text_safe_copy(name, strlen(name));
    err_set(e, instar_Code_POLICY_REFUSED, "The image names another file, '%s', which %s", shown,
            why);
    free(shown);
    return -1;
}

static int open_name(const struct policy *p, const char *image, const char *holder,
                     const char *name, char **path, struct err *e)
{
    if (p->forbidden)
        return refused(name, "--no-backing forbids to open.", e);
    if (has_protocol(name))
        return refused(name, "is no plain file name: such names are never followed.", e);
    *path = absolute(holder, name);
    int fd = *path ? open_by_roots(p, image, *path) : -1;
    if (fd >= 0)
        return fd;
    if (*path && errno != EXDEV && errno != ELOOP) {
        char *shown = text_safe_copy(name, strlen(name));
        err_set(e, instar_Code_READ_FAILED, "Could not open backing file: Could not open '%s': %s",
                shown, strerror(errno));
        free(shown);
        return -1;
    }
    return refused(name,
                   "does not lie in the image's directory. If you trust that, give its "
                   "directory with --backing-dir.",
                   e);
}

int policy_open(const struct policy *p, const char *image, const char *holder, const void *name,
                size_t len, char **path, struct err *e)
{
    char *string = as_string(name, len);
    *path = NULL;
    if (!string)
        return refused("", "is empty or holds a NUL byte.", e);
    int fd = open_name(p, image, holder, string, path, e);
    free(string);
    return fd;
}
