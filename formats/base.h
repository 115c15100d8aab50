/* SPDX-License-Identifier: MIT
 *
 * Types, errors, byte order and checked arithmetic for the pure code (formats/ and planner/).
 *
 * The error rule: a function returns 0 or an enum err_code, and the first failure wins. `what` is
 * a constant text; numbers travel beside it and the launcher formats them: in `what`, {off} and
 * {val} stand for the numbers (decimal), {val:x} for hexadecimal, {name} for a name that was read
 * from the image. Our own bug is an assert(); disk and request data are never asserted on.
 */
#ifndef FORMATS_BASE_H
#define FORMATS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Equal to `enum Code` of ops/instar.proto, number for number; ops/report.c asserts that. */
enum err_code {
    OK = 0,
    ERR_INVALID_OPTION = 1,
    ERR_INVALID_NEW_SIZE = 2,
    ERR_SHRINK_WITHOUT_FLAG = 3,
    ERR_SHRINK_BELOW_ALLOCATED = 4,
    ERR_UNSUPPORTED_FORMAT = 5,
    ERR_UNSUPPORTED_SUBFORMAT = 6,
    ERR_OVERLAY_CORRUPT = 7, /* the image's metadata contradicts itself */
    ERR_BACKING_PATH_TOO_LONG = 8,
    ERR_SCRATCH_TOO_SMALL = 9, /* reserved: passes, not caps */
    ERR_REFCOUNT_EXHAUSTED = 10,
    ERR_DESCRIPTOR_TOO_LARGE = 11,
    ERR_PARSE_FAILED = 12,
    ERR_INTERNAL_OVERFLOW = 13,
    ERR_UNSUPPORTED_SHRINK = 14,
    ERR_PREALLOCATION_UNSUPPORTED = 15,
    ERR_READ_FAILED = 16,
    ERR_WRITE_FAILED = 17,
    ERR_HEADER_MISMATCH = 18, /* the image changed between the passes: retry */
    ERR_BITMAPS_UNSUPPORTED = 19,
    ERR_NEW_BACKING_INCOMPATIBLE = 20,
    ERR_EXTERNAL_DATA_FILE = 21,
    ERR_LUKS_UNSUPPORTED = 22,
    ERR_CHAIN_DEPTH = 23,
    ERR_UNSUPPORTED_FEATURE = 24,
    ERR_INCONSISTENT = 25,
    ERR_LOCKED = 26,
    ERR_POLICY_REFUSED = 27,
    ERR_LOOP = 28,
    ERR_UNDO_PENDING = 29,
    ERR_TIMEOUT = 30,
    ERR_NO_SPACE = 31,
    ERR_GUEST_FAULT = 32,
    ERR_PROTOCOL = 33,
    ERR_NO_QEMU = 34,
};

struct err {
    enum err_code code;
    const char *file; /* the line of our source that refused */
    int line;
    const char *what;
    u64 off, val;
    char name[64]; /* a name read from the image, NUL-terminated, cut if longer; "" if none */
};

/* Fills *e unless it already holds a failure (the first one wins); returns e->code. */
int err_set(struct err *e, enum err_code code, const char *file, int line, const char *what,
            u64 off, u64 val);
/* Adds the name that `what` calls {name}. Bytes are kept as they are; the launcher escapes them. */
void err_name(struct err *e, const void *name, size_t len);

#define FAIL(e, code, what, off, val) err_set(e, code, __FILE__, __LINE__, what, off, val)

/* A bug of ours: reported as a fault, never returns. Whoever links the pure code supplies it. */
_Noreturn void assert_failed(const char *file, int line, const char *expr);
#define assert(x) ((x) ? (void)0 : assert_failed(__FILE__, __LINE__, #x))

/* What freestanding C and our own code need; kernel/lib.c has them in the guest. */
void *memcpy(void *restrict d, const void *restrict s, size_t n);
void *memmove(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

static inline u16 be16(const u8 *p)
{
    return (u16)(p[0] << 8 | p[1]);
}
static inline u32 be32(const u8 *p)
{
    return (u32)be16(p) << 16 | be16(p + 2);
}
static inline u64 be64(const u8 *p)
{
    return (u64)be32(p) << 32 | be32(p + 4);
}
static inline void put_be32(u8 *p, u32 v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (u8)(v >> (24 - 8 * i));
}
static inline void put_be64(u8 *p, u64 v)
{
    put_be32(p, (u32)(v >> 32));
    put_be32(p + 4, (u32)v);
}

static inline u16 le16(const u8 *p)
{
    return (u16)(p[1] << 8 | p[0]);
}
static inline u32 le32(const u8 *p)
{
    return (u32)le16(p + 2) << 16 | le16(p);
}
static inline u64 le64(const u8 *p)
{
    return (u64)le32(p + 4) << 32 | le32(p);
}
static inline void put_le32(u8 *p, u32 v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (u8)(v >> 8 * i);
}
static inline void put_le64(u8 *p, u64 v)
{
    put_le32(p, (u32)v);
    put_le32(p + 4, (u32)(v >> 32));
}

/* Arithmetic on numbers from a disk: true and *out if the result fits, else false. */
static inline bool add_fits(u64 a, u64 b, u64 *out)
{
    return !__builtin_add_overflow(a, b, out);
}
static inline bool mul_fits(u64 a, u64 b, u64 *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
/* `unit` is a power of two. */
static inline bool round_up_fits(u64 v, u64 unit, u64 *out)
{
    if (!add_fits(v, unit - 1, out))
        return false;
    *out &= ~(unit - 1);
    return true;
}

/* For numbers that a validation has bounded already. */
static inline u64 round_down(u64 v, u64 unit)
{
    return v & ~(unit - 1);
}
static inline u64 round_up(u64 v, u64 unit)
{
    return round_down(v + unit - 1, unit);
}
static inline u64 div_up(u64 v, u64 unit)
{
    return v / unit + (v % unit != 0);
}
static inline u64 min_u64(u64 a, u64 b)
{
    return a < b ? a : b;
}
static inline u64 max_u64(u64 a, u64 b)
{
    return a > b ? a : b;
}
static inline bool is_pow2(u64 v)
{
    return v && !(v & (v - 1));
}
static inline bool all_zero(const void *bytes, u64 len)
{
    typedef u64 word __attribute__((may_alias, aligned(1)));
    const u8 *p = bytes;
    for (; len >= 32; p += 32, len -= 32) {
        const word *w = (const word *)p;
        if (w[0] | w[1] | w[2] | w[3])
            return false;
    }
    while (len && !*p)
        p++, len--;
    return !len;
}
/* Do [a, a+alen) and [b, b+blen) share a byte? Neither may wrap. */
static inline bool ranges_overlap(u64 a, u64 alen, u64 b, u64 blen)
{
    return alen && blen && a < b + blen && b < a + alen;
}

#endif
