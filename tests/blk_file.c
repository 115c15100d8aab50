/* SPDX-License-Identifier: MIT
 *
 * blk_ops over pread, pwrite and fallocate. grow() is the grant: it lengthens the file itself.
 */
#define _GNU_SOURCE
#include "blk_file.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int fd_of(const struct blk *b)
{
    return ((const struct blk_file *)b)->fd;
}

static int file_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    u8 *p = buf;
    while (len) {
        ssize_t n = pread(fd_of(b), p, len, (off_t)off);
        if (n < 0)
            return FAIL(e, ERR_READ_FAILED, "the file cannot be read", off, len);
        if (n == 0) {
            memset(p, 0, len);
            return 0;
        }
        off += (u64)n, p += n, len -= (size_t)n;
    }
    return 0;
}

static int file_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    const u8 *p = buf;
    while (len) {
        ssize_t n = pwrite(fd_of(b), p, len, (off_t)off);
        if (n <= 0)
            return FAIL(e, ERR_WRITE_FAILED, "the file cannot be written", off, len);
        off += (u64)n, p += n, len -= (size_t)n;
    }
    return 0;
}

static int file_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    static const u8 zeros[64 << 10];
    off_t end = lseek(fd_of(b), 0, SEEK_END);
    if (may_unmap && off + len <= (u64)end &&
        !fallocate(fd_of(b), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len))
        return 0;
    for (u64 n; len; off += n, len -= n) {
        n = min_u64(len, sizeof(zeros));
        if (file_write(b, off, zeros, n, e))
            return e->code;
    }
    return 0;
}

static int file_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    (void)e;
    (void)!fallocate(fd_of(b), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len);
    return 0;
}

static int file_flush(struct blk *b, struct err *e)
{
    return fdatasync(fd_of(b)) ? FAIL(e, ERR_WRITE_FAILED, "the file cannot be synced", 0, 0) : 0;
}

static int file_grow(struct blk *b, u64 new_size, struct err *e)
{
    off_t end = lseek(fd_of(b), 0, SEEK_END);
    if (end >= 0 && (u64)end >= new_size)
        return 0;
    return ftruncate(fd_of(b), (off_t)new_size)
               ? FAIL(e, ERR_NO_SPACE, "the file cannot grow to {val}", 0, new_size)
               : 0;
}

static const struct blk_ops file_ops = {
    .read = file_read,
    .write = file_write,
    .zero = file_zero,
    .discard = file_discard,
    .flush = file_flush,
    .grow = file_grow,
};

void blk_file_init(struct blk_file *f, int fd, u64 length, u32 sector, bool writable)
{
    *f = (struct blk_file){
        .blk = {.ops = &file_ops, .size = length, .sector = sector, .writable = writable},
        .fd = fd,
    };
}
