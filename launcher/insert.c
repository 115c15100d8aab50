/* SPDX-License-Identifier: MIT
 *
 * fallocate(FALLOC_FL_INSERT_RANGE), on the file that QEMU has open, too: the page cache is one.
 */
#include "insert.h"
#include "growth.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

uint32_t insert_unit(int fd)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0 || (fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != XFS_SUPER_MAGIC) ||
        fs.f_bsize <= 0 || fs.f_bsize > INT32_MAX)
        return 0;
    return (uint32_t)fs.f_bsize;
}

/* Where the guest may write, in whole units, inside the file, and to a length that a file can have.
 */
static int check(const instar_Need *need, const struct disk *disks, unsigned count, uint64_t length,
                 struct err *e)
{
    const instar_Insert *i = &need->insert;
    if (i->slot >= count || !disks[i->slot].writable)
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest asked for an insertion into a disk (slot %u) that it may not "
                       "write",
                       (unsigned)i->slot);
    const struct disk *d = &disks[i->slot];
    if (need->undo || need->lengths_count || d->insert_unit == 0 || i->len == 0 ||
        i->off % d->insert_unit || i->len % d->insert_unit || i->off >= length ||
        i->len > INT64_MAX - length)
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest asked for an insertion that makes no sense (%llu bytes at %llu)",
                       (unsigned long long)i->len, (unsigned long long)i->off);
    return growth_within_limit(d, length + i->len, e);
}

int insert_zeros(const instar_Need *need, struct disk *disks, unsigned count, bool *lacking,
                 struct err *e)
{
    const instar_Insert *i = &need->insert;
    struct stat now = {0};
    if (i->slot < count && fstat(disks[i->slot].fd, &now) < 0)
        return err_set(e, instar_Code_READ_FAILED, "Could not look at '%s': %s",
                       disks[i->slot].name, strerror(errno));
    if (check(need, disks, count, (uint64_t)now.st_size, e) < 0)
        return -1;
    struct disk *d = &disks[i->slot];
    bool touched = false; /* looked at first: a failure may leave its time in the file, too */
    for (unsigned k = 0; k < count; k++)
        touched |= disk_state(&disks[k]) != DISK_UNTOUCHED;
    if (fallocate(d->fd, FALLOC_FL_INSERT_RANGE, (off_t)i->off, (off_t)i->len) < 0) {
        *lacking = !touched && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS);
        return err_set(e, instar_Code_NO_SPACE, "Could not insert %llu bytes into '%s': %s",
                       (unsigned long long)i->len, d->name, strerror(errno));
    }
    uint64_t length = (uint64_t)now.st_size + i->len;
    if (length > d->granted)
        d->granted = length;
    return 0;
}
