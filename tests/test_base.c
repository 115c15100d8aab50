/* SPDX-License-Identifier: MIT
 *
 * formats/base.h, err.c and crc32c.c.
 */
#include "crc32c.h"
#include "test.h"

static void arithmetic(void)
{
    u64 v = 7;
    CHECK(add_fits(1, 2, &v) && v == 3);
    CHECK(add_fits(UINT64_MAX, 0, &v) && v == UINT64_MAX);
    CHECK(!add_fits(UINT64_MAX, 1, &v));
    CHECK(!add_fits(1ull << 63, 1ull << 63, &v));
    CHECK(mul_fits(1ull << 32, (1ull << 32) - 1, &v) && v == (UINT64_MAX << 32));
    CHECK(!mul_fits(1ull << 32, 1ull << 32, &v));
    CHECK(mul_fits(0, UINT64_MAX, &v) && v == 0);
    CHECK(round_up_fits(1, 512, &v) && v == 512);
    CHECK(round_up_fits(512, 512, &v) && v == 512);
    CHECK(round_up_fits(0, 512, &v) && v == 0);
    CHECK(round_up_fits(UINT64_MAX - 511, 512, &v) && v == UINT64_MAX - 511);
    CHECK(!round_up_fits(UINT64_MAX - 510, 512, &v));
    CHECK_EQ_U64(round_down(1023, 512), 512);
    CHECK_EQ_U64(round_up(513, 512), 1024);
    CHECK_EQ_U64(div_up(0, 7), 0);
    CHECK_EQ_U64(div_up(UINT64_MAX, 2), 1ull << 63);
    CHECK_EQ_U64(div_up(14, 7), 2);
    CHECK_EQ_U64(div_up(15, 7), 3);
    CHECK_EQ_U64(min_u64(3, 4), 3);
    CHECK_EQ_U64(max_u64(3, 4), 4);
    CHECK(is_pow2(1) && is_pow2(1ull << 63) && !is_pow2(0) && !is_pow2(3));
}

static void overlaps(void)
{
    CHECK(ranges_overlap(0, 10, 9, 1));
    CHECK(!ranges_overlap(0, 10, 10, 1));
    CHECK(ranges_overlap(5, 1, 0, 10));
    CHECK(!ranges_overlap(5, 0, 0, 10));
    CHECK(!ranges_overlap(0, 10, 5, 0));
    /* against the obvious definition */
    for (u64 a = 0; a < 6; a++)
        for (u64 al = 0; al < 4; al++)
            for (u64 b = 0; b < 6; b++)
                for (u64 bl = 0; bl < 4; bl++) {
                    bool share = false;
                    for (u64 i = a; i < a + al; i++)
                        share |= i >= b && i < b + bl;
                    CHECK(ranges_overlap(a, al, b, bl) == share);
                }
}

static void byte_order(void)
{
    const u8 in[8] = {0x81, 2, 3, 4, 0xf5, 6, 7, 8};
    u8 out[8];
    CHECK_EQ_U64(be16(in), 0x8102);
    CHECK_EQ_U64(be32(in), 0x81020304);
    CHECK_EQ_U64(be64(in), 0x81020304f5060708);
    put_be64(out, 0x81020304f5060708);
    CHECK(!memcmp(in, out, 8));
    memset(out, 0xee, 8);
    put_be32(out + 2, 0xdeadbeef);
    CHECK(!memcmp(out, "\xee\xee\xde\xad\xbe\xef\xee\xee", 8));
}

static void first_failure_wins(void)
{
    struct err e = {0};
    static const char a[] = "first", b[] = "second";
    CHECK_EQ_U64((u64)FAIL(&e, ERR_LOOP, a, 5, 6), ERR_LOOP);
    int line = __LINE__ - 1;
    CHECK_EQ_U64((u64)FAIL(&e, ERR_LOCKED, b, 7, 8), ERR_LOOP);
    CHECK(e.what == a && e.off == 5 && e.val == 6 && e.line == line);
    CHECK(strstr(e.file, "test_base.c") != NULL);
    CHECK_STR(e.name, "");
}

static void names_are_cut(void)
{
    struct err e = {0};
    char big[200];
    memset(big, 'x', sizeof(big));
    err_name(&e, big, sizeof(big));
    CHECK_EQ_U64(strlen(e.name), sizeof(e.name) - 1);
    struct err f = {0};
    err_name(&f, "abc\0def", 7);
    CHECK_STR(f.name, "abc");
    err_name(&f, "other", 5);
    CHECK_STR(f.name, "abc");
    struct err g = {0};
    err_name(&g, "abcdef", 3);
    CHECK_STR(g.name, "abc");
}

static void crc_vectors(void)
{
    u8 b[32];
    CHECK_EQ_U64(crc32c(0, "123456789", 9), 0xe3069283);
    CHECK_EQ_U64(crc32c(0, "", 0), 0);
    memset(b, 0, 32); /* RFC 3720, B.4 */
    CHECK_EQ_U64(crc32c(0, b, 32), 0x8a9136aa);
    memset(b, 0xff, 32);
    CHECK_EQ_U64(crc32c(0, b, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        b[i] = (u8)i;
    CHECK_EQ_U64(crc32c(0, b, 32), 0x46dd794e);
    CHECK_EQ_U64(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
}

/* Bit by bit. */
static u32 slow_crc(const u8 *p, size_t len)
{
    u32 crc = ~0u;
    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

/* Runs of zeros are stepped over: of every length, at every place. */
static void crc_of_zeros(void)
{
    u64 seed = test_seed(0x243f6a8885a308d3);
    static u8 b[6000];
    for (int n = 0; n < 300; n++) {
        size_t from = rnd_below(&seed, 700), len = rnd_below(&seed, sizeof(b) - from);
        memset(b, 0, sizeof(b));
        for (u64 k = rnd_below(&seed, 6); k; k--)
            b[rnd_below(&seed, sizeof(b))] = (u8)rnd(&seed);
        CHECK_EQ_U64(crc32c(0, b + from, len), slow_crc(b + from, len));
        CHECK_EQ_U64(crc32c(crc32c(0, b, from), b + from, len), slow_crc(b, from + len));
    }
}

static void little_endian(void)
{
    u8 b[8];
    put_le64(b, 0x0123456789abcdef);
    CHECK(b[0] == 0xef && b[7] == 0x01);
    CHECK_EQ_U64(le64(b), 0x0123456789abcdef);
    CHECK_EQ_U64(le32(b + 4), 0x01234567);
    CHECK_EQ_U64(le16(b + 2), 0x89ab);
}

int main(void)
{
    RUN(crc_of_zeros);
    RUN(little_endian);
    RUN(arithmetic);
    RUN(overlaps);
    RUN(byte_order);
    RUN(first_failure_wins);
    RUN(names_are_cut);
    RUN(crc_vectors);
    return test_end();
}
