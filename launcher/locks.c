/* SPDX-License-Identifier: MIT
 *
 * A read lock on byte 100 + p says "I hold permission p"; one on byte 200 + p says "I do not share
 * it". First all of one's own are taken, then it is looked whether anyone's claims contradict
 * them, with the calls and in the order of qemu's block/file-posix.c, whose messages these are.
 */
#include "locks.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

enum { CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE, PERMS };
enum { HELD = 100, UNSHARED = 200 };

static const char *const perm_name[PERMS] = {"consistent read", "write", "write unchanged",
                                             "resize"};
/* [writable]: as qemu-img check (read) and qemu-img resize (write) do. */
static const bool held[2][PERMS] = {
    {[CONSISTENT_READ] = true},
    {[CONSISTENT_READ] = true, [WRITE] = true, [RESIZE] = true},
};
static const bool unshared[PERMS] = {[WRITE] = true, [RESIZE] = true};

static int lock_byte(int fd, int command, short type, int byte, struct flock *result)
{
    *result = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, command, result);
}

/* Is there somebody else's lock on the byte? */
static bool claimed(int fd, int byte)
{
    struct flock l;
    return lock_byte(fd, F_OFD_GETLK, F_WRLCK, byte, &l) < 0 || l.l_type != F_UNLCK;
}

static int in_use(const char *name, const char *what, const char *perm, struct err *e)
{
    return err_set(e, instar_Code_LOCKED,
                   "Could not open '%s': Failed to get %s\"%s\" lock\n"
                   "Is another process using the image [%s]?",
                   name, what, perm, name);
}

static int lock_all(int fd, const bool perms[PERMS], int base, const char *name, struct err *e)
{
    struct flock l;
    for (int p = 0; p < PERMS; p++) {
        if (!perms[p] || lock_byte(fd, F_OFD_SETLK, F_RDLCK, base + p, &l) == 0)
            continue;
        if (errno == EAGAIN || errno == EACCES)
            return in_use(name, base == HELD ? "" : "shared ", perm_name[p], e);
        return err_set(e, instar_Code_LOCKED, "Could not open '%s': Failed to lock byte %d: %s",
                       name, base + p, strerror(errno));
    }
    return 0;
}

int locks_take(int fd, const char *name, bool writable, struct err *e)
{
    const bool *mine = held[writable];
    if (lock_all(fd, mine, HELD, name, e) < 0 || lock_all(fd, unshared, UNSHARED, name, e) < 0)
        return -1;
    for (int p = 0; p < PERMS; p++)
        if (mine[p] && claimed(fd, UNSHARED + p))
            return in_use(name, "", perm_name[p], e);
    for (int p = 0; p < PERMS; p++)
        if (unshared[p] && claimed(fd, HELD + p))
            return in_use(name, "shared ", perm_name[p], e);
    return 0;
}

void locks_drop(int fd)
{
    struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET}; /* to the end of the file */
    fcntl(fd, F_OFD_SETLK, &all);
}
