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

/* The directory that a file lies in, without links; NULL if it is gone. The caller frees it. */
static char *directory_of(const char *file)
{
    char *copy = strdup(file), *dir = copy ? realpath(dirname(copy), NULL) : NULL;
    free(copy);
    return dir;
}

/* What follows `root` in `path`: NULL if path is not beneath it. */
static const char *beneath(const char *root, const char *path)
{
    size_t n = strlen(root);
    if (n == 1) /* "/" */
        return path + 1;
    return strncmp(root, path, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

/* Opens `path` if it lies beneath `root`, both absolute. -1 and errno: EXDEV if it does not. */
static int open_beneath(const char *root, const char *path)
{
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    const char *rest = beneath(root, path);
    if (!rest || !*rest) {
        errno = EXDEV;
        return -1;
    }
    int dir = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = dir < 0 ? -1 : (int)syscall(SYS_openat2, dir, rest, &how, sizeof how);
    int error = errno;
    if (dir >= 0)
        close(dir);
    errno = error;
    return fd;
}

/* The name as an absolute path: its own, or joined to its holder's directory. */
static char *absolute(const char *holder, const char *name)
{
    char *dir, *path = NULL;
    if (name[0] == '/')
        return strdup(name);
    dir = directory_of(holder);
    if (dir && asprintf(&path, "%s/%s", strcmp(dir, "/") ? dir : "", name) < 0)
        path = NULL;
    free(dir);
    return path;
}

/* Tries every root; the image's directory first. */
static int open_by_roots(const struct policy *p, const char *image, const char *path)
{
    int fd = -1, error = EXDEV;
    for (unsigned i = 0; fd < 0 && i <= p->count; i++) {
        char *root = i == 0 ? directory_of(image) : realpath(p->dirs[i - 1], NULL);
        fd = root ? open_beneath(root, path) : -1;
        if (fd < 0 && root && errno != EXDEV)
            error = errno;
        free(root);
    }
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
    if (*path && (errno == ENOENT || errno == EACCES)) {
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
