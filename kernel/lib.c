/* SPDX-License-Identifier: MIT
 *
 * What the compiler, freestanding C and the static libraries in an image (nanopb, zlib, zstd) take
 * from a C library. Copies go by 64-bit words: QEMU's TCG is several times slower at both SSE and
 * `rep movs` than at plain loads and stores; for filling, `rep stosq` is best everywhere.
 * Never call any of this on device memory.
 */
#include "kernel.h"

typedef uint64_t word __attribute__((may_alias, aligned(1)));

/* Keeps the compiler from turning these loops into SSE, or into calls of themselves. */
#define PLAIN_LOOPS                                                       \
    __attribute__((optimize("no-tree-vectorize", "no-tree-slp-vectorize", \
                            "no-tree-loop-distribute-patterns")))

PLAIN_LOOPS void *memcpy(void *restrict d, const void *restrict s, size_t n)
{
    char *to = d;
    const char *from = s;

    for (; n >= 32; n -= 32, to += 32, from += 32) {
        const word *f = (const word *)from;
        word a0 = f[0], a1 = f[1], a2 = f[2], a3 = f[3], *t = (word *)to;

        t[0] = a0;
        t[1] = a1;
        t[2] = a2;
        t[3] = a3;
    }
    for (; n >= 8; n -= 8, to += 8, from += 8)
        *(word *)to = *(const word *)from;
    while (n--)
        *to++ = *from++;
    return d;
}

PLAIN_LOOPS void *memmove(void *d, const void *s, size_t n)
{
    char *to = d;
    const char *from = s;

    /* Every block is loaded before it is stored: up is right unless d is inside [s, s + n). */
    if ((uintptr_t)to - (uintptr_t)from >= n)
        return memcpy(d, s, n);
    for (; n >= 8; n -= 8)
        *(word *)(to + n - 8) = *(const word *)(from + n - 8);
    while (n--)
        to[n] = from[n];
    return d;
}

PLAIN_LOOPS void *memset(void *d, int c, size_t n)
{
    char *to = d;
    size_t words = n / 8;

    __asm__ volatile("rep stosq"
                     : "+D"(to), "+c"(words)
                     : "a"((uint8_t)c * 0x0101010101010101u)
                     : "memory");
    for (n %= 8; n > 0; n--)
        *to++ = (char)c;
    return d;
}

PLAIN_LOOPS int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *p = a, *q = b;

    for (; n >= 8 && *(const word *)p == *(const word *)q; n -= 8)
        p += 8, q += 8;
    for (; n > 0; n--, p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}

PLAIN_LOOPS size_t strlen(const char *s)
{
    size_t n = 0;

    while (s[n])
        n++;
    return n;
}

/* ---- for static libraries only ---- */

_Noreturn void __stack_chk_fail(void);

/* A smashed stack is a fault like any other. */
_Noreturn void __stack_chk_fail(void)
{
    __builtin_trap();
}

/* A stack of blocks: what is freed is had again once all that was allocated after it is freed. */
struct block {
    struct block *below;
    size_t len;
    bool freed;
    char data[] __attribute__((aligned(16)));
};

enum { ARENA = 1 << 18 };
static char *arena, *arena_end;
static struct block *top;

void *malloc(size_t len)
{
    struct block *b;

    if (!arena && (arena = page_alloc_raw(ARENA)))
        arena_end = arena + ARENA;
    b = top ? (struct block *)(top->data + top->len) : (struct block *)arena;
    if (len > ARENA || (size_t)(arena_end - (char *)b) < sizeof *b + len + 15)
        return NULL;
    *b = (struct block){.below = top, .len = (len + 15) & -(size_t)16};
    top = b;
    return b->data;
}

void *calloc(size_t cnt, size_t len)
{
    size_t bytes;
    void *p;

    if (__builtin_mul_overflow(cnt, len, &bytes) || !(p = malloc(bytes)))
        return NULL;
    return memset(p, 0, bytes);
}

void free(void *p)
{
    if (!p)
        return;
    ((struct block *)p - 1)->freed = true;
    while (top && top->freed)
        top = top->below;
}

void *realloc(void *p, size_t len)
{
    size_t old = p ? ((struct block *)p - 1)->len : 0;
    void *q;

    if (len <= old)
        return p;
    if (!(q = malloc(len)))
        return NULL;
    memcpy(q, p, old);
    free(p);
    return q;
}
