/* SPDX-License-Identifier: MIT
 *
 * The memory disk: pages of 4 KiB in a hash table. The blk_ops count, and assert that formats/blk.c
 * keeps its promises (alignment, range, writable).
 */
#define _GNU_SOURCE
#include "blk_mem.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"

static size_t slot_of(const struct blk_mem *m, u64 page)
{
    size_t i = (size_t)((page * 0x9e3779b97f4a7c15ull) >> 20) & (m->slots_cnt - 1);
    while (m->slots[i].page && m->slots[i].page != page + 1)
        i = (i + 1) & (m->slots_cnt - 1);
    return i;
}

/* The slot that rules this page, in the disk or below it; NULL: nothing was ever written. */
static const struct mem_slot *find(const struct blk_mem *m, u64 page)
{
    for (; m; m = m->base) {
        if (!m->slots_cnt)
            continue;
        const struct mem_slot *s = &m->slots[slot_of(m, page)];
        if (s->page)
            return s;
    }
    return NULL;
}

static void enlarge(struct blk_mem *m)
{
    struct mem_slot *old = m->slots;
    size_t cnt = m->slots_cnt;
    m->slots_cnt = cnt ? cnt * 2 : 64;
    m->slots = calloc(m->slots_cnt, sizeof(*m->slots));
    for (size_t i = 0; i < cnt; i++)
        if (old[i].page)
            m->slots[slot_of(m, old[i].page - 1)] = old[i];
    free(old);
}

/* This disk's own slot for the page, made if need be. With `keep`, it holds the bytes below. */
static struct mem_slot *own(struct blk_mem *m, u64 page, bool keep)
{
    if (m->pages * 2 >= m->slots_cnt)
        enlarge(m);
    struct mem_slot *s = &m->slots[slot_of(m, page)];
    if (s->page)
        return s;
    const struct mem_slot *below = m->base ? find(m->base, page) : NULL;
    s->page = page + 1;
    m->pages++;
    if (keep && below && below->data) {
        s->data = malloc(MEM_PAGE);
        memcpy(s->data, below->data, MEM_PAGE);
    }
    return s;
}

void blk_mem_get(const struct blk_mem *m, u64 off, void *buf, size_t len)
{
    u8 *p = buf;
    for (size_t n; len; off += n, p += n, len -= n) {
        u64 page = off / MEM_PAGE, in = off % MEM_PAGE;
        n = (size_t)min_u64(len, MEM_PAGE - in);
        const struct mem_slot *s = find(m, page);
        if (s && s->data)
            memcpy(p, s->data + in, n);
        else
            memset(p, 0, n);
    }
}

void blk_mem_put(struct blk_mem *m, u64 off, const void *buf, size_t len)
{
    const u8 *p = buf;
    m->length = max_u64(m->length, off + len);
    for (size_t n; len; off += n, p += n, len -= n) {
        u64 page = off / MEM_PAGE, in = off % MEM_PAGE;
        n = (size_t)min_u64(len, MEM_PAGE - in);
        struct mem_slot *s = own(m, page, n < MEM_PAGE);
        if (!s->data)
            s->data = calloc(1, MEM_PAGE);
        memcpy(s->data + in, p, n);
    }
}

/* Clears the pages of [off, off+len), which are whole, by going through those that there are. */
static void clear_pages(struct blk_mem *m, u64 off, u64 len)
{
    for (const struct blk_mem *l = m->base; l; l = l->base)
        for (size_t i = 0; i < l->slots_cnt; i++) {
            u64 page = l->slots[i].page;
            if (page && (page - 1) * MEM_PAGE - off < len)
                own(m, page - 1, false);
        }
    for (size_t i = 0; i < m->slots_cnt; i++) {
        struct mem_slot *s = &m->slots[i];
        if (s->page && (s->page - 1) * MEM_PAGE - off < len) {
            free(s->data);
            s->data = NULL;
        }
    }
}

void blk_mem_clear(struct blk_mem *m, u64 off, u64 len)
{
    enum { MANY = 16 << 20 };
    if (len > MANY) {
        u64 first = round_up(off, MEM_PAGE), end = round_down(off + len, MEM_PAGE);
        clear_pages(m, first, end - first);
        blk_mem_clear(m, off, first - off);
        len -= end - off;
        off = end;
    }
    for (u64 n; len; off += n, len -= n) {
        u64 page = off / MEM_PAGE, in = off % MEM_PAGE;
        n = min_u64(len, MEM_PAGE - in);
        if (!find(m, page))
            continue;
        struct mem_slot *s = own(m, page, n < MEM_PAGE);
        if (n == MEM_PAGE) {
            free(s->data);
            s->data = NULL;
        } else if (s->data) {
            memset(s->data + in, 0, n);
        }
    }
}

void blk_mem_truncate(struct blk_mem *m, u64 length)
{
    if (length < m->length)
        blk_mem_clear(m, length, min_u64(m->length - length, 64u << 20));
    m->length = length;
    m->blk.size = length;
}

bool blk_mem_hole(const struct blk_mem *m, u64 off, size_t len)
{
    for (u64 page = off / MEM_PAGE; page <= (off + len - 1) / MEM_PAGE; page++) {
        const struct mem_slot *s = find(m, page);
        if (s && s->data)
            return false;
    }
    return true;
}

static bool covered_by(const struct blk_mem *pages, const struct blk_mem *a,
                       const struct blk_mem *b, u64 *at)
{
    u8 x[MEM_PAGE], y[MEM_PAGE];
    for (; pages; pages = pages->base)
        for (size_t i = 0; i < pages->slots_cnt; i++) {
            if (!pages->slots[i].page)
                continue;
            u64 off = (pages->slots[i].page - 1) * MEM_PAGE;
            blk_mem_get(a, off, x, MEM_PAGE);
            blk_mem_get(b, off, y, MEM_PAGE);
            for (unsigned k = 0; k < MEM_PAGE; k++)
                if (x[k] != y[k]) {
                    *at = off + k;
                    return false;
                }
        }
    return true;
}

bool blk_mem_equal(const struct blk_mem *a, const struct blk_mem *b, u64 *at)
{
    *at = min_u64(a->length, b->length);
    return a->length == b->length && covered_by(a, a, b, at) && covered_by(b, a, b, at);
}

bool blk_mem_save(const struct blk_mem *m, const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    bool ok = true;
    for (const struct blk_mem *l = m; l; l = l->base)
        for (size_t i = 0; ok && i < l->slots_cnt; i++) {
            u8 buf[MEM_PAGE];
            u64 off = (l->slots[i].page - 1) * MEM_PAGE;
            if (!l->slots[i].page || blk_mem_hole(m, off, MEM_PAGE))
                continue;
            blk_mem_get(m, off, buf, MEM_PAGE);
            ok = pwrite(fd, buf, MEM_PAGE, (off_t)off) == MEM_PAGE;
        }
    ok = ok && !ftruncate(fd, (off_t)m->length);
    return !close(fd) && ok;
}

bool blk_mem_load(struct blk_mem *m, const char *path, u32 sector)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return false;
    if (fstat(fd, &st)) {
        close(fd);
        return false;
    }
    blk_mem_init(m, (u64)st.st_size, sector);
    off_t off = 0;
    while ((off = lseek(fd, off, SEEK_DATA)) >= 0) {
        off_t end = lseek(fd, off, SEEK_HOLE);
        for (; off < end;) {
            u8 buf[MEM_PAGE];
            ssize_t n = pread(fd, buf, MEM_PAGE, off);
            if (n <= 0)
                break;
            blk_mem_put(m, (u64)off, buf, (size_t)n);
            off += n;
        }
        off = end;
    }
    close(fd);
    return true;
}

/* ---- blk_ops ---- */

static struct blk_mem *rules(struct blk *b, u64 off, u64 len, bool write)
{
    struct blk_mem *m = (struct blk_mem *)b;
    u64 end;
    assert(len && off % b->sector == 0 && len % b->sector == 0);
    assert(add_fits(off, len, &end) && end <= round_up(b->size, b->sector));
    assert(!write || b->writable);
    return m;
}

static int mem_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    (void)e;
    struct blk_mem *m = rules(b, off, len, false);
    assert(len <= BLK_IO_MAX);
    m->reads++;
    m->bytes_read += len;
    blk_mem_get(m, off, buf, len);
    return 0;
}

static int mem_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    (void)e;
    struct blk_mem *m = rules(b, off, len, true);
    assert(len <= BLK_IO_MAX);
    m->writes++;
    m->bytes_written += len;
    blk_mem_put(m, off, buf, len);
    return 0;
}

static int mem_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    (void)e, (void)may_unmap;
    struct blk_mem *m = rules(b, off, len, true);
    m->writes++;
    m->length = max_u64(m->length, off + len);
    blk_mem_clear(m, off, len);
    return 0;
}

static int mem_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    (void)e;
    blk_mem_clear(rules(b, off, len, true), off, len);
    return 0;
}

static int mem_flush(struct blk *b, struct err *e)
{
    (void)e;
    ((struct blk_mem *)b)->flushes++;
    return 0;
}

static int mem_grow(struct blk *b, u64 new_size, struct err *e)
{
    struct blk_mem *m = (struct blk_mem *)b;
    if (m->limit && new_size > m->limit)
        return FAIL(e, ERR_NO_SPACE, "the memory disk may not grow to {val}", 0, new_size);
    m->grows++;
    m->length = max_u64(m->length, new_size);
    return 0;
}

static const struct blk_ops mem_ops = {
    .read = mem_read,
    .write = mem_write,
    .zero = mem_zero,
    .discard = mem_discard,
    .flush = mem_flush,
    .grow = mem_grow,
};

void blk_mem_init(struct blk_mem *m, u64 length, u32 sector)
{
    *m = (struct blk_mem){
        .blk = {.ops = &mem_ops, .size = length, .sector = sector, .writable = true},
        .length = length,
    };
}

void blk_mem_over(struct blk_mem *m, const struct blk_mem *base)
{
    blk_mem_init(m, base->length, base->blk.sector);
    m->base = base;
}

void blk_mem_free(struct blk_mem *m)
{
    for (size_t i = 0; i < m->slots_cnt; i++)
        free(m->slots[i].data);
    free(m->slots);
    m->slots = NULL;
    m->slots_cnt = m->pages = 0;
}
