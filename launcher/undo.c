/* SPDX-License-Identifier: MIT
 *
 * The journal is the file `<image>.instar-undo`, mode 0600. Integers are little endian:
 *
 *        0    8  magic, "instarUJ"             48    8  its inode
 *        8    4  version, 1                    56    8  its length before the epoch
 *       12    4  CRC-32C of all that follows   64    8  the most that its length may be in it
 *       16    8  length of the journal         72   56  zero
 *       24    4  epoch                        128  256  the image's name, ended by a zero
 *       28    4  n, sectors                   384 1664  the operation's words, ended by a zero
 *       32    8  the image's st_dev          2048 16*n  per sector, by offset: u64 offset in the
 *       40    8  its file system's f_fsid               image, u32 CRC-32C before, u32 after
 *                                                512*n  the sectors as they were
 *
 * The image is the same file if the inode is, and one of the two numbers of its file system: st_dev
 * may change from boot to boot, f_fsid is not everywhere constant either. A sector that reaches
 * past the end of the image is filled up with zeros, and one behind it is all zeros.
 *
 * The head, the first 2048 bytes, is written when the rest is durable: a journal that is empty, or
 * whose head is zeros, was left by a launcher that was killed before it had granted anything.
 */
#include "undo.h"
#include "frame.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

enum {
    UJ_MAGIC = 0,
    UJ_VERSION = 8,
    UJ_CRC = 12,
    UJ_LENGTH = 16,
    UJ_EPOCH = 24,
    UJ_SECTORS = 28,
    UJ_DEV = 32,
    UJ_FSID = 40,
    UJ_INODE = 48,
    UJ_FILE_LENGTH = 56,
    UJ_FILE_MOST = 64,
    UJ_NAME = 128,
    UJ_WORDS = 384,
    UJ_HEAD = 2048,
    UJ_MARK = 16,
    UJ_MAX = UJ_HEAD + UNDO_SECTORS * (UJ_MARK + UNDO_SECTOR),
};
static const char magic[8] = {'i', 'n', 's', 't', 'a', 'r', 'U', 'J'};
static const char suffix[] = ".instar-undo";

static uint64_t get64(const uint8_t *p)
{
    return frame_get32(p) | (uint64_t)frame_get32(p + 4) << 32;
}

static void put64(uint8_t *p, uint64_t v)
{
    frame_put32(p, (uint32_t)v);
    frame_put32(p + 4, (uint32_t)(v >> 32));
}

static void *must_alloc(size_t len)
{
    void *p = calloc(1, len);
    if (!p)
        abort();
    return p;
}

static size_t journal_length(unsigned sectors)
{
    return UJ_HEAD + (size_t)sectors * (UJ_MARK + UNDO_SECTOR);
}

/* ---- where it is ---- */

/* The name of the journal in its directory. */
static const char *name_of(const struct disk *d)
{
    return strrchr(d->journal, '/') + 1;
}

int undo_find(struct disk *d, struct err *e)
{
    char self[40], *path = must_alloc(PATH_MAX + sizeof suffix);
    struct stat now;
    snprintf(self, sizeof self, "/proc/self/fd/%d", d->fd);
    ssize_t n = d->device ? 0 : readlink(self, path, PATH_MAX - 1);
    char *slash = n > 0 && n < PATH_MAX - 1 ? strrchr(path, '/') : NULL;
    if (slash) {
        *slash = '\0';
        d->dir = open(slash == path ? "/" : path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        *slash = '/';
    }
    if (slash && d->dir < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
        free(path);
        return err_set(e, instar_Code_READ_FAILED, "Could not look for an undo journal of '%s': %s",
                       d->name, strerror(errno));
    }
    if (d->dir >= 0 && fstatat(d->dir, slash + 1, &now, AT_SYMLINK_NOFOLLOW) == 0 &&
        now.st_dev == d->before.st_dev && now.st_ino == d->before.st_ino) {
        d->journal = strcat(path, suffix);
        return 0;
    }
    free(path);
    undo_leave(d); /* the file has another name by now, or none */
    return 0;
}

void undo_leave(struct disk *d)
{
    if (d->dir >= 0)
        close(d->dir);
    free(d->journal);
    d->journal = NULL;
    d->dir = -1;
}

bool undo_exists(const struct disk *d)
{
    struct stat st;
    return d->journal && fstatat(d->dir, name_of(d), &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Makes what was done in the directory durable. */
static int sync_directory(const struct disk *d)
{
    int fd = openat(d->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = fd < 0 ? -1 : fsync(fd), error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return r < 0 && error != EINVAL ? -1 : 0; /* EINVAL: it has nothing to sync */
}

/* ---- what the guest announces ---- */

int undo_announce(struct undo *u, const instar_Undo *a, const struct disk *disks, unsigned count,
                  struct err *e)
{
    if (a->slot >= count || !disks[a->slot].writable)
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest announced changes of a disk (slot %u) that it may not write",
                       (unsigned)a->slot);
    if (a->slot != 0)
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest announced changes of a file (slot %u) that has no undo journal",
                       (unsigned)a->slot);
    if (a->crc_count == 0 || a->off % UNDO_SECTOR || a->off > INT64_MAX - (1 << 20))
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest announced changes that make no sense (offset %llu)",
                       (unsigned long long)a->off);
    if (u->runs == UNDO_RUNS || a->crc_count > UNDO_SECTORS - u->cnt)
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest announced more changes than an undo journal takes");
    u->runs++;
    for (unsigned i = 0; i < a->crc_count; i++)
        u->mark[u->cnt++] = (struct undo_mark){a->off + i * UNDO_SECTOR, 0, a->crc[i]};
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct undo_mark *)a)->off, y = ((const struct undo_mark *)b)->off;
    return x < y ? -1 : x > y;
}

/* Sorts; nothing twice, and nothing past the longest length that the file may get. */
static int order(struct undo *u, uint64_t most, struct err *e)
{
    qsort(u->mark, u->cnt, sizeof u->mark[0], by_offset);
    for (unsigned i = 1; i < u->cnt; i++)
        if (u->mark[i].off == u->mark[i - 1].off)
            return err_set(e, instar_Code_PROTOCOL,
                           "The guest announced a change twice (offset %llu)",
                           (unsigned long long)u->mark[i].off);
    if (u->cnt == 0)
        return err_set(e, instar_Code_PROTOCOL, "The guest asked for an undo journal of nothing");
    if (u->mark[u->cnt - 1].off + UNDO_SECTOR > most)
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest announced a change behind the end of the file (offset %llu)",
                       (unsigned long long)u->mark[u->cnt - 1].off);
    return 0;
}

/* ---- writing ---- */

/* "resize disk.vhd +1G", as far as there is room. */
static void put_words(uint8_t *to, const struct job *job)
{
    size_t used = 0, room = UJ_HEAD - UJ_WORDS - 1;
    for (int i = 1; i < job->argc && used < room; i++)
        used += (size_t)snprintf((char *)to + used, room - used, "%s%s", i > 1 ? " " : "",
                                 job->argv[i]);
}

static int take_sectors(struct undo *u, uint8_t *bytes, const struct disk *d, struct err *e)
{
    uint8_t *mark = bytes + UJ_HEAD, *data = mark + (size_t)u->cnt * UJ_MARK;
    for (unsigned i = 0; i < u->cnt; i++, mark += UJ_MARK, data += UNDO_SECTOR) {
        if (disk_sector(d, u->mark[i].off, data, e) < 0)
            return -1;
        put64(mark, u->mark[i].off);
        frame_put32(mark + 8, crc32c(0, data, UNDO_SECTOR));
        frame_put32(mark + 12, u->mark[i].new);
    }
    return 0;
}

static void put_head(uint8_t *bytes, const struct undo *u, const struct job *job, uint32_t epoch,
                     uint64_t length, uint64_t most, const struct disk *d)
{
    const char *name = name_of(d);
    size_t whole = journal_length(u->cnt);
    struct statfs fs = {0};
    fstatfs(d->fd, &fs);
    memcpy(bytes + UJ_MAGIC, magic, sizeof magic);
    frame_put32(bytes + UJ_VERSION, 1);
    put64(bytes + UJ_LENGTH, whole);
    frame_put32(bytes + UJ_EPOCH, epoch);
    frame_put32(bytes + UJ_SECTORS, u->cnt);
    put64(bytes + UJ_DEV, d->before.st_dev);
    memcpy(bytes + UJ_FSID, &fs.f_fsid, sizeof fs.f_fsid);
    put64(bytes + UJ_INODE, d->before.st_ino);
    put64(bytes + UJ_FILE_LENGTH, length);
    put64(bytes + UJ_FILE_MOST, most);
    memcpy(bytes + UJ_NAME, name, strlen(name) - strlen(suffix)); /* a name: at most 255 bytes */
    put_words(bytes + UJ_WORDS, job);
    frame_put32(bytes + UJ_CRC, crc32c(0, bytes + UJ_LENGTH, whole - UJ_LENGTH));
}

static bool write_all(int fd, const uint8_t *p, size_t len, off_t off)
{
    for (ssize_t n; len; p += n, off += n, len -= (size_t)n)
        if ((n = pwrite(fd, p, len, off)) <= 0)
            return false;
    return true;
}

/* The new file, durable with its name; nothing is left if that fails. */
static int put_file(const struct disk *d, const uint8_t *bytes, size_t len)
{
    int fd = openat(d->dir, name_of(d),
                    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    bool ok = write_all(fd, bytes + UJ_HEAD, len - UJ_HEAD, UJ_HEAD) && fdatasync(fd) == 0 &&
              write_all(fd, bytes, UJ_HEAD, 0) && fsync(fd) == 0 && sync_directory(d) == 0;
    int error = errno;
    close(fd);
    if (!ok)
        unlinkat(d->dir, name_of(d), 0);
    errno = error;
    return ok ? 0 : -1;
}

static int no_journal(const struct disk *d, int error, const char *why, struct err *e)
{
    err_set(e, error == ENOSPC || error == EDQUOT ? instar_Code_NO_SPACE : instar_Code_WRITE_FAILED,
            "Could not write an undo journal for '%s': %s", d->journal ? d->journal : d->name, why);
    err_add(e, "The change cannot be made in one step, and is not begun without a way back.");
    return -1;
}

int undo_write(struct undo *u, const struct job *job, uint32_t epoch, uint64_t most, struct disk *d,
               struct err *e)
{
    struct stat now;
    if (fstat(d->fd, &now) < 0)
        return no_journal(d, errno, strerror(errno), e);
    uint64_t length = (uint64_t)now.st_size;
    most = disk_sectors(d, most > length ? most : length);
    if (order(u, most, e) < 0)
        return -1;
    if (d->device)
        return no_journal(d, 0, "it is a device, beside which no file lasts", e);
    if (!d->journal)
        return no_journal(d, 0, "the image is no longer where it was opened", e);
    if (now.st_nlink > 1) /* a symbolic link leads to the file's name; these are names themselves */
        return no_journal(d, 0, "the image has other names (hard links), which do not lead to it",
                          e);
    uint8_t *bytes = must_alloc(journal_length(u->cnt));
    int r = take_sectors(u, bytes, d, e);
    if (r == 0) {
        put_head(bytes, u, job, epoch, length, most, d);
        r = put_file(d, bytes, journal_length(u->cnt));
        if (r < 0)
            no_journal(d, errno, strerror(errno), e);
    }
    free(bytes);
    if (r < 0)
        return -1;
    d->undo = true;
    d->undo_length = length;
    u->runs = u->cnt = 0;
    return 0;
}

int undo_retire(struct disk *d, struct err *e)
{
    if (fsync(d->fd) < 0)
        return err_set(e, instar_Code_WRITE_FAILED, "Could not write '%s' to its disk: %s", d->name,
                       strerror(errno));
    if (unlinkat(d->dir, name_of(d), 0) < 0 || sync_directory(d) < 0)
        return err_set(e, instar_Code_WRITE_FAILED, "Could not remove the undo journal '%s': %s",
                       d->journal, strerror(errno));
    d->undo = false;
    return 0;
}

/* ---- reading: every byte may be somebody's who means harm ---- */

static int useless(const struct disk *d, const char *why, struct err *e)
{
    err_set(e, instar_Code_UNDO_PENDING, "The undo journal '%s' cannot be used: %s", d->journal,
            why);
    err_add(e, "An operation on the image may have been interrupted and not been undone. If the "
               "image is as it should be, remove the journal.");
    return -1;
}

/* Who may write the image may as well write its journal; nobody else is believed. */
static bool trusted(const struct stat *st, const struct disk *d)
{
    return (st->st_uid == geteuid() || st->st_uid == 0 || st->st_uid == d->before.st_uid) &&
           !(st->st_mode & (S_IWGRP | S_IWOTH));
}

/* The descriptor and its length; a fifo is not even opened. */
static int open_journal(const struct disk *d, struct stat *st, struct err *e)
{
    struct stat found;
    if (fstatat(d->dir, name_of(d), &found, AT_SYMLINK_NOFOLLOW) < 0)
        return useless(d, strerror(errno), e);
    if (!S_ISREG(found.st_mode))
        return useless(d, "it is no regular file", e);
    int fd = openat(d->dir, name_of(d), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return useless(d, strerror(errno), e);
    if (fstat(fd, st) < 0 || st->st_ino != found.st_ino || st->st_dev != found.st_dev)
        useless(d, "it was replaced just now", e);
    else if (!trusted(st, d))
        useless(d, "it belongs to another user, or others may write it", e);
    else if (st->st_size > UJ_MAX)
        useless(d, "it is too long", e);
    else
        return fd;
    close(fd);
    return -1;
}

static bool zeros(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i])
            return false;
    return true;
}

/* What is wrong with it, or NULL. */
static const char *decode(struct undo_journal *j, size_t len)
{
    const uint8_t *b = j->bytes;
    if (len < UJ_HEAD || memcmp(b, magic, sizeof magic) != 0)
        return "it is none";
    if (frame_get32(b + UJ_VERSION) != 1)
        return "its version is unknown";
    j->cnt = frame_get32(b + UJ_SECTORS);
    if (get64(b + UJ_LENGTH) != len || j->cnt == 0 || j->cnt > UNDO_SECTORS ||
        journal_length(j->cnt) != len)
        return "it is cut off, or too long";
    if (frame_get32(b + UJ_CRC) != crc32c(0, b + UJ_LENGTH, len - UJ_LENGTH))
        return "its checksum is wrong";
    j->epoch = frame_get32(b + UJ_EPOCH);
    j->length = get64(b + UJ_FILE_LENGTH);
    j->most = get64(b + UJ_FILE_MOST);
    j->words = (const char *)b + UJ_WORDS;
    j->data = b + UJ_HEAD + (size_t)j->cnt * UJ_MARK;
    bool sane = j->length <= j->most && j->most <= INT64_MAX && !b[UJ_HEAD - 1];
    for (unsigned i = 0; i < j->cnt && sane; i++) {
        const uint8_t *m = b + UJ_HEAD + (size_t)i * UJ_MARK;
        j->mark[i] = (struct undo_mark){get64(m), frame_get32(m + 8), frame_get32(m + 12)};
        uint64_t off = j->mark[i].off;
        sane = off % UNDO_SECTOR == 0 && off < j->most && j->most - off >= UNDO_SECTOR &&
               (i == 0 || off > j->mark[i - 1].off) &&
               crc32c(0, j->data + (size_t)i * UNDO_SECTOR, UNDO_SECTOR) == j->mark[i].old;
    }
    return sane ? NULL : "it contradicts itself";
}

static bool same_image(const uint8_t *b, const struct disk *d)
{
    struct statfs fs = {0};
    bool known = fstatfs(d->fd, &fs) == 0 && !zeros((uint8_t *)&fs.f_fsid, sizeof fs.f_fsid);
    return get64(b + UJ_INODE) == d->before.st_ino &&
           (get64(b + UJ_DEV) == d->before.st_dev ||
            (known && memcmp(b + UJ_FSID, &fs.f_fsid, sizeof fs.f_fsid) == 0));
}

int undo_load(struct undo_journal *j, const struct disk *d, struct err *e)
{
    struct stat st;
    *j = (struct undo_journal){0};
    if (!undo_exists(d))
        return 0;
    int fd = open_journal(d, &st, e);
    if (fd < 0)
        return -1;
    size_t len = (size_t)st.st_size;
    j->bytes = must_alloc(UJ_MAX);
    ssize_t n = pread(fd, j->bytes, len, 0);
    close(fd);
    if (n != st.st_size)
        return useless(d, n < 0 ? strerror(errno) : "it changes", e);
    if (len == 0 || (len >= UJ_HEAD && zeros(j->bytes, UJ_HEAD)))
        return 0;
    const char *why = decode(j, len);
    if (!why && !same_image(j->bytes, d))
        why = "it is another file's";
    return why ? useless(d, why, e) : 1;
}

void undo_free(struct undo_journal *j)
{
    free(j->bytes);
    j->bytes = NULL;
}
