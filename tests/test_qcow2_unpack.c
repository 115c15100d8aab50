/* SPDX-License-Identifier: MIT
 *
 * Decompressing clusters: what zlib and zstd made comes back byte for byte, with anything behind
 * it; what is cut short, too long, or noise is refused, within the memory that was lent.
 */
#include <zlib.h>
#include <zstd.h>

#include "blk_mem.h"
#include "format.h"
#include "qcow2_make.h"
#include "test.h"

static u8 image_mem[IMAGE_MEM], scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
static u8 plain[1 << 21], stream[(1 << 21) + 4096], out[1 << 21];

static void open_image(struct image *img, struct blk_mem *m, u32 bits, bool zstd)
{
    struct make p = {.cluster_bits = bits,
                     .refcount_order = 4,
                     .size = 64 << 20,
                     .compression_type = zstd,
                     .pad_clusters = 8};
    struct made made;
    struct err e = {0};
    qcow2_make(m, &p, &made);
    blk_mem_truncate(m, made.length + (8u << 20));
    CHECK(!image_open(img, &m->blk, "qcow2", image_mem, &e));
    img->scratch = scratch;
}

/* Compresses `len` bytes of `plain`; returns the stream's length. */
static size_t pack(bool zstd, size_t len)
{
    if (zstd)
        return ZSTD_compress(stream, sizeof(stream), plain, len, 3);
    z_stream z = {
        .next_in = plain, .avail_in = (uInt)len, .next_out = stream, .avail_out = sizeof(stream)};
    CHECK(deflateInit2(&z, 6, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) == Z_OK);
    CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
    size_t n = z.total_out;
    deflateEnd(&z);
    return n;
}

/* Puts n bytes of `stream` at an odd place and unpacks them, with `more` bytes of noise behind. */
static int try(struct image *img, struct blk_mem *m, size_t n, size_t more, struct err *e)
{
    u64 off = (5u << 20) + 77;
    u8 noise[600];
    memset(noise, 0xa5, sizeof(noise));
    blk_mem_put(m, off, stream, n);
    blk_mem_put(m, off + n, noise, more);
    struct extent x = {
        .kind = EXTENT_PACKED, .len = img->unit, .off = off, .packed_len = (u32)(n + more)};
    memset(out, 0xee, img->unit);
    *e = (struct err){0};
    return img->format->unpack(img, &x, out, e);
}

static void fill(u64 *seed, int kind, size_t len)
{
    for (size_t i = 0; i < len; i++)
        plain[i] = kind == 0 ? 0 : kind == 1 ? (u8)(i / 300) : (u8)(rnd(seed) % 7);
}

static void round_trips(void)
{
    u64 seed = test_seed(0x5be0cd19137e2179);
    for (u32 bits = 9; bits <= 21; bits += 4)
        for (int zstd = 0; zstd < 2; zstd++) {
            struct blk_mem m;
            struct image img;
            struct err e;
            open_image(&img, &m, bits, zstd);
            for (int kind = 0; kind < 3; kind++) {
                test_note("cluster_bits %u, %s, kind %d", bits, zstd ? "zstd" : "zlib", kind);
                fill(&seed, kind, img.unit);
                size_t n = pack(zstd, img.unit);
                for (size_t more = 0; more < 512; more += 511) {
                    CHECK(!try(&img, &m, n, more, &e));
                    CHECK(!memcmp(out, plain, img.unit));
                }
                /* cut short: what is left does not fill the cluster */
                static const size_t cut[] = {1, 2, 5};
                for (int c = 0; c < 3 && n > 30; c++) {
                    try(&img, &m, n / 2 - cut[c], 0, &e);
                    CHECK_ERR(&e, ERR_OVERLAY_CORRUPT);
                }
                /* half a cluster in a perfect stream */
                n = pack(zstd, img.unit / 2);
                CHECK(try(&img, &m, n, 0, &e));
                CHECK_ERR(&e, ERR_OVERLAY_CORRUPT);
                CHECK(out[img.unit - 1] == 0xee);
            }
            blk_mem_free(&m);
        }
}

/* A stream that holds more than a cluster never writes past it (the sanitizer watches `out` and
 * `scratch`; here the cluster is the smallest and the rest of out is ours). */
static void too_long(void)
{
    for (int zstd = 0; zstd < 2; zstd++) {
        struct blk_mem m;
        struct image img;
        struct err e;
        test_note("%s", zstd ? "zstd" : "zlib");
        open_image(&img, &m, 9, zstd);
        memset(plain, 7, sizeof(plain));
        size_t n = pack(zstd, 1 << 20);
        memset(out, 0xee, sizeof(out));
        int rc = try(&img, &m, n < 1024 ? n : 1024, 0, &e);
        CHECK(out[512] == 0xee && out[1023] == 0xee);
        CHECK(rc ? e.code == ERR_OVERLAY_CORRUPT : out[511] == 7);
        blk_mem_free(&m);
    }
}

static void noise(void)
{
    u64 seed = test_seed(0xcbbb9d5dc1059ed8);
    unsigned refused = 0, taken = 0;
    for (int zstd = 0; zstd < 2; zstd++) {
        struct blk_mem m;
        struct image img;
        struct err e;
        open_image(&img, &m, 12, zstd);
        for (int i = 0; i < 6000; i++) {
            fill(&seed, i % 3, img.unit);
            size_t n = pack(zstd, img.unit);
            test_note("%s, stream %d", zstd ? "zstd" : "zlib", i);
            for (u64 k = 1 + rnd_below(&seed, 4); k; k--)
                stream[rnd_below(&seed, i % 2 ? n : min_u64(n, 24))] = (u8)rnd(&seed);
            if (try(&img, &m, n, rnd_below(&seed, 500), &e)) {
                refused++;
                CHECK(e.code == ERR_OVERLAY_CORRUPT);
            } else {
                taken++;
            }
            CHECK(out[img.unit] == out[img.unit + 1]);
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u refused, %u taken\n", refused, taken);
    CHECK(refused > 1000);
}

static void dead_device(void)
{
    struct blk_mem m;
    struct image img;
    struct err e = {0};
    open_image(&img, &m, 16, false);
    struct extent x = {
        .kind = EXTENT_PACKED, .len = img.unit, .off = 1ull << 55, .packed_len = 512};
    CHECK(img.format->unpack(&img, &x, out, &e)); /* past the end of the file: zeros, no stream */
    CHECK_ERR(&e, ERR_OVERLAY_CORRUPT);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(round_trips);
    RUN(too_long);
    RUN(noise);
    RUN(dead_device);
    return test_end();
}
