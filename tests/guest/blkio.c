/* SPDX-License-Identifier: MIT
 *
 * Disk requests by script. The module holds commands of one letter and numbers; the answer to each
 * is a line: what the call returned (0 or an enum kernel_error), or the value asked for.
 *
 *   p SLOT              present
 *   s SLOT              sector size
 *   c SLOT              capacity
 *   o SLOT              read-only
 *   w SLOT OFF LEN N    write the pattern N
 *   r SLOT OFF LEN N    read and compare with it (9: it differs)
 *   z SLOT OFF LEN      zero
 *   u SLOT OFF LEN      zero and unmap
 *   d SLOT OFF LEN      discard
 *   n SLOT OFF LEN      read and compare with zeros
 *   f SLOT              flush
 *   g SLOT LEN          wait until the capacity is at least LEN
 *   b SLOT OFF LEN N    16 writes of LEN bytes in one batch, from OFF on
 *   B SLOT OFF LEN N    the same, read and compared
 *   m SLOT SLOT OFF LEN N   one batch of writes over two disks
 *   M SLOT SLOT OFF LEN N   the same, read and compared
 *   t MS                read the serial port for MS milliseconds
 *   e COUNT             COUNT bytes of output
 *   a                   free memory in MiB, taken a MiB at a time
 *   l                   page_lock(), then page_alloc()
 *   k COUNT             COUNT reads of 4 KiB, one by one: ticks for each
 *   K COUNT             the same of 1 MiB, 4 in flight
 */
#include "guest.h"

enum { DIFFERS = 9 };

static char *buf; /* VBLK_IO_MAX */

static uint64_t pattern(uint64_t off, uint64_t n)
{
    return (off + n * 0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd;
}

static void fill(uint64_t *p, uint64_t off, uint64_t len, uint64_t n)
{
    for (uint64_t i = 0; i < len / 8; i++)
        p[i] = pattern(off + i * 8, n);
}

static bool same(const uint64_t *p, uint64_t off, uint64_t len, uint64_t n)
{
    for (uint64_t i = 0; i < len / 8; i++)
        if (p[i] != pattern(off + i * 8, n))
            return false;
    return true;
}

static int one(enum vblk_op op, unsigned slot, uint64_t off, uint64_t len)
{
    const struct vblk_req r = {slot, op, off, len, buf};

    return vblk_run(&r, 1);
}

static int read_zeros(unsigned slot, uint64_t off, uint64_t len)
{
    memset(buf, 0xa5, VBLK_IO_MAX);
    for (uint64_t n; len > 0; off += n, len -= n) {
        int rc = one(VBLK_READ, slot, off, n = len < VBLK_IO_MAX ? len : VBLK_IO_MAX);

        for (uint64_t i = 0; rc == 0 && i < n; i++)
            if (buf[i] != 0)
                rc = DIFFERS;
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int batch(enum vblk_op op, const unsigned slot[2], uint64_t off, uint64_t len, uint64_t n)
{
    struct vblk_req r[VBLK_BATCH];
    int rc;

    if (op == VBLK_WRITE)
        fill((uint64_t *)buf, off, VBLK_BATCH * len, n);
    else
        memset(buf, 0, VBLK_BATCH * len);
    for (unsigned i = 0; i < VBLK_BATCH; i++)
        r[i] = (struct vblk_req){slot[i & 1], op, off + i * len, len, buf + i * len};
    if ((rc = vblk_run(r, VBLK_BATCH)) != 0)
        return rc;
    return op == VBLK_READ && !same((uint64_t *)buf, off, VBLK_BATCH * len, n) ? DIFFERS : 0;
}

static uint64_t speed(uint64_t count, uint64_t len, unsigned depth)
{
    struct vblk_req r[VBLK_BATCH];
    uint64_t start = __builtin_ia32_rdtsc();

    for (uint64_t i = 0; i < count; i++) {
        for (unsigned k = 0; k < depth; k++)
            r[k] = (struct vblk_req){0, VBLK_READ, k * len, len, buf};
        vblk_run(r, depth);
    }
    return (__builtin_ia32_rdtsc() - start) / (count * depth);
}

static uint64_t wait_capacity(unsigned slot, uint64_t len)
{
    struct wait w;

    wait_begin(&w);
    while (vblk_capacity(slot) < len)
        wait_once(&w);
    return vblk_capacity(slot);
}

static uint64_t take_all(void)
{
    uint64_t n = 0;
    char *p;

    for (; (p = page_alloc(1 << 20)) != NULL; n++)
        for (unsigned i = 0; i < 1 << 20; i += 4096)
            if (p[i]++ != 0)
                return UINT64_MAX;
    return n;
}

static uint64_t output(uint64_t count)
{
    for (uint64_t i = 0; i < count; i += 64) {
        char line[65];

        memset(line, 'a' + (char)(i / 64 % 26), 64);
        serial_write(line, count - i < 64 ? count - i : 64);
    }
    return count;
}

static uint64_t locked(void)
{
    page_lock();
    return page_alloc(1) == NULL && page_alloc(1 << 30) == NULL;
}

static uint64_t command(char c, const uint64_t *a)
{
    unsigned slot = (unsigned)a[0], two[2] = {slot, slot}, both[2] = {slot, (unsigned)a[1]};
    uint64_t off = a[1], len = a[2], n = a[3];
    int rc;

    switch (c) {
    case 'p':
        return vblk_present(slot);
    case 's':
        return vblk_sector(slot);
    case 'c':
        return vblk_capacity(slot);
    case 'o':
        return vblk_read_only(slot);
    case 'w':
        fill((uint64_t *)buf, off, len <= VBLK_IO_MAX ? len : 0, n);
        return (uint64_t)one(VBLK_WRITE, slot, off, len);
    case 'r':
        rc = one(VBLK_READ, slot, off, len);
        return rc == 0 && !same((uint64_t *)buf, off, len, n) ? DIFFERS : (uint64_t)rc;
    case 'z':
        return (uint64_t)one(VBLK_ZERO, slot, off, len);
    case 'u':
        return (uint64_t)one(VBLK_ZERO_UNMAP, slot, off, len);
    case 'd':
        return (uint64_t)one(VBLK_DISCARD, slot, off, len);
    case 'n':
        return (uint64_t)read_zeros(slot, off, len);
    case 'f':
        return (uint64_t)vblk_flush(slot);
    case 'g':
        return wait_capacity(slot, a[1]);
    case 'b':
        return (uint64_t)batch(VBLK_WRITE, two, off, len, n);
    case 'B':
        return (uint64_t)batch(VBLK_READ, two, off, len, n);
    case 'm':
        return (uint64_t)batch(VBLK_WRITE, both, a[2], a[3], a[4]);
    case 'M':
        return (uint64_t)batch(VBLK_READ, both, a[2], a[3], a[4]);
    case 't':
        return (uint64_t)serial_read(a[0]);
    case 'e':
        return output(a[0]);
    case 'a':
        return take_all();
    case 'l':
        return locked();
    case 'k':
        return speed(a[0], 4096, 1);
    case 'K':
        return speed(a[0], VBLK_IO_MAX, 4);
    default:
        return UINT64_MAX;
    }
}

void kernel_fault(const struct fault *f)
{
    print_fault(f);
}

int kernel_main(const void *module, size_t module_len)
{
    const char *word = module;
    size_t n;

    buf = page_alloc(VBLK_IO_MAX);
    while ((n = next_word(&word, &module_len)) > 0) {
        char c = *word;
        uint64_t a[5] = {0};

        for (unsigned i = 0;; i++) {
            word += n;
            module_len -= n;
            n = next_word(&word, &module_len);
            if (n == 0 || *word < '0' || *word > '9' || i == 5)
                break;
            for (size_t k = 0; k < n; k++)
                a[i] = a[i] * 10 + (uint64_t)(word[k] - '0');
        }
        print_number(command(c, a), 10);
        print("\n");
    }
    return 0;
}
