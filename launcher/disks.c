/* SPDX-License-Identifier: MIT
 *
 * Opening, measuring and finishing the files of a run. Messages are qemu-img's (parity A.4).
 */
#include "disks.h"
#include "insert.h"
#include "locks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int cannot_open(const struct disk *d, int error, struct err *e)
{
    return err_set(e, instar_Code_READ_FAILED, "Could not open '%s': Could not open '%s': %s",
                   d->name, d->name, strerror(error));
}

static int wrong_kind(const struct disk *d, struct err *e)
{
    return err_set(e, instar_Code_READ_FAILED,
                   "Could not open '%s': 'file' driver requires '%s' to be a regular file", d->name,
                   d->name);
}

/* Directories are left to open(), which has a message of its own for them. */
static bool right_kind(mode_t mode)
{
    return S_ISREG(mode) || S_ISBLK(mode);
}

/* The length and the sector. A guest cannot read what a file has after its last whole sector, but
 * for sectors of 512 bytes, up to which QEMU fills the file up with zeros. */
int disk_measure(struct disk *d, unsigned sector, struct err *e)
{
    int own = 512, read_only = 0;
    if (fstat(d->fd, &d->before) < 0)
        return cannot_open(d, errno, e);
    d->device = S_ISBLK(d->before.st_mode);
    d->length = (uint64_t)d->before.st_size;
    if (d->device &&
        (ioctl(d->fd, BLKGETSIZE64, &d->length) < 0 || ioctl(d->fd, BLKSSZGET, &own) < 0))
        return cannot_open(d, errno, e);
    /* Such a device can be opened for writing all the same, and fails later. */
    if (d->device && d->writable && ioctl(d->fd, BLKROGET, &read_only) == 0 && read_only)
        return err_set(e, instar_Code_READ_FAILED,
                       "Could not open '%s': The device is not writable: Permission denied",
                       d->name);
    d->sector = sector ? sector : (unsigned)own;
    d->insert_unit = d->device ? 0 : insert_unit(d->fd);
    if (d->sector > 512 && d->length % d->sector)
        return err_set(e, instar_Code_INVALID_OPTION,
                       "'%s' is %llu bytes long: not a whole number of blocks of %u bytes", d->name,
                       (unsigned long long)d->length, d->sector);
    return 0;
}

static int lock_and_measure(struct disk *d, unsigned sector, struct err *e)
{
    if (fstat(d->fd, &d->before) < 0)
        return cannot_open(d, errno, e);
    if (!right_kind(d->before.st_mode))
        return wrong_kind(d, e);
    if (locks_take(d->fd, d->name, d->writable, e) < 0)
        return -1;
    /* What is measured holds from the lock on. */
    return disk_measure(d, sector, e);
}

int disk_open(struct disk *d, const char *name, bool writable, unsigned sector, struct err *e)
{
    *d = (struct disk){.name = name, .fd = -1, .dir = -1, .writable = writable};
    /* A fifo is not even opened, which would wake its writer; fstat() below is what decides. */
    if (stat(name, &d->before) == 0 && !right_kind(d->before.st_mode) &&
        !S_ISDIR(d->before.st_mode))
        return wrong_kind(d, e);
    int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    d->fd = open(name, flags);
    return d->fd < 0 ? cannot_open(d, errno, e) : lock_and_measure(d, sector, e);
}

int disk_adopt(struct disk *d, const char *name, int fd, bool writable, unsigned sector,
               struct err *e)
{
    *d = (struct disk){.name = name, .fd = fd, .dir = -1, .writable = writable};
    return lock_and_measure(d, sector, e);
}

int disk_sector(const struct disk *d, uint64_t off, uint8_t sector[512], struct err *e)
{
    ssize_t n = 1;
    memset(sector, 0, 512);
    for (size_t have = 0; have < 512 && n > 0; have += (size_t)n)
        n = pread(d->fd, sector + have, 512 - have, (off_t)(off + have));
    return n < 0 ? err_set(e, instar_Code_READ_FAILED, "Could not read '%s': %s", d->name,
                           strerror(errno))
                 : 0;
}

uint64_t disk_sectors(const struct disk *d, uint64_t length)
{
    return (length + d->sector - 1) / d->sector * d->sector;
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Times advance in ticks of a few milliseconds, QEMU needs more than that to start: a write of its
 * never falls into the tick in which the file was opened. A device node's times are no witness. */
enum disk_state disk_state(const struct disk *d)
{
    struct stat now;
    if (!d->writable)
        return DISK_UNTOUCHED;
    if (d->device || fstat(d->fd, &now) < 0)
        return DISK_UNKNOWN;
    bool same = now.st_size == d->before.st_size && same_time(now.st_mtim, d->before.st_mtim) &&
                same_time(now.st_ctim, d->before.st_ctim);
    return same ? DISK_UNTOUCHED : DISK_TOUCHED;
}

bool disk_changed(const struct disk *d)
{
    struct stat now;
    return !d->writable && !d->device && fstat(d->fd, &now) == 0 &&
           (now.st_size != d->before.st_size || !same_time(now.st_mtim, d->before.st_mtim));
}

void disk_take_back(const struct disk *d)
{
    struct stat now;
    if (d->writable && !d->device && d->granted == 0 && fstat(d->fd, &now) == 0 &&
        (uint64_t)now.st_size > d->length && ftruncate(d->fd, (off_t)d->length) < 0)
        return; /* longer than it was, and as good: nothing refers to the new bytes */
}

bool disk_longer(const struct disk *d, uint64_t length)
{
    struct stat now;
    return !d->device && fstat(d->fd, &now) == 0 && (uint64_t)now.st_size > length;
}

int disk_finish(const struct disk *d, uint64_t length, struct err *e)
{
    struct stat now;
    if (!d->device) {
        if (fstat(d->fd, &now) < 0 ||
            ((uint64_t)now.st_size != length && ftruncate(d->fd, (off_t)length) < 0))
            return err_set(e, instar_Code_WRITE_FAILED, "Could not resize file: %s",
                           strerror(errno));
    }
    /* The guest has flushed; what remains is the length. What nobody touched is not ours to sync.
     */
    if (disk_state(d) != DISK_UNTOUCHED && fsync(d->fd) < 0)
        return err_set(e, instar_Code_WRITE_FAILED, "Could not write '%s' to its disk: %s", d->name,
                       strerror(errno));
    return 0;
}
