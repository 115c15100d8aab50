/* SPDX-License-Identifier: MIT
 *
 * streamOptimized VMDK: what qemu-img, 7-Zip and our own reader make of a stream is the same, byte
 * for byte, whoever wrote it; a stream as a link of a chain; grains and markers that lie are
 * refused, within the memory that was lent.
 */
#include <unistd.h>
#include <zlib.h>

#include "copy.h"
#include "test.h"
#include "vmdk_make.h"
#include "vmdk_stream.h"

static u8 scratch[IMAGE_SCRATCH + 4096] __attribute__((aligned(4096)));

static int open_as(struct blk_mem *m, struct image *img, u8 *mem, struct err *e)
{
    int rc = image_open(img, &m->blk, NULL, mem, e);
    img->scratch = scratch;
    return rc;
}

/* ---- what others read ---- */

static bool same_bytes(const char *path, const u8 *want, u64 len)
{
    FILE *f = fopen(path, "rb");
    u8 *got = malloc(len + 1);
    bool ok = f && fread(got, 1, len + 1, f) == len && !memcmp(got, want, len);
    if (f)
        fclose(f);
    free(got);
    return ok;
}

/* qemu-img's reading of the file is `want`, and 7-Zip's, which takes no other streams than such
 * with a footer, of whole grains, with tables of 512 entries (thus none of qemu's). */
static void others_agree(const char *path, const u8 *want, u64 len, bool seven_zip)
{
    char raw[512];
    snprintf(raw, sizeof(raw), "%s", test_path("others.raw"));
    CHECK(test_system("qemu-img convert -f vmdk -O raw %s %s", path, raw) == 0);
    CHECK(same_bytes(raw, want, len));
    if (seven_zip)
        CHECK(test_system("sh -c '7zz e -so -tvmdk %s >%s'", path, raw) == 0);
    CHECK(same_bytes(raw, want, len));
    unlink(raw);
}

/* Our reading, in pieces that begin and end anywhere. */
static void we_agree(struct blk_mem *m, const u8 *want, u64 len)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096))), got[MI(1)];
    u64 seed = 99;
    struct image img;
    struct err e = {0};
    if (!CHECK(!open_as(m, &img, mem, &e)) || !CHECK_EQ_U64(img.size, len))
        return;
    for (u64 at = 0, n; at < len; at += n) {
        n = min_u64(1 + rnd_below(&seed, sizeof(got)), len - at);
        CHECK(!chain_read(&img, at, got, n, &e));
        CHECK(!memcmp(got, want + at, n));
    }
    CHECK_ERR(&e, OK);
}

/* clang-format off */
static const struct vmdk_stream shapes[] = {
    { .size = MI(9) },
    { .size = MI(9) + 512, .short_last = true },
    { .size = MI(9) + 512 * 77, .front = true },
    { .size = MI(3), .grain = 8, .gtes = 100, .seed = 3 },
    { .size = MI(3) + 1024, .grain = 16, .gtes = 1, .seed = 4, .short_last = true },
    { .size = MI(40), .grain = 4096, .seed = 5 },
    { .size = MI(70), .seed = 6 },
    { .size = 512, .short_last = true },
};
/* clang-format on */
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void streams_by_us(void)
{
    for (unsigned i = 0; i < SHAPES; i++) {
        const struct vmdk_stream *p = &shapes[i];
        struct vmdk_streamed made;
        struct blk_mem m;
        char path[512];
        test_note("shape %u", i);
        vmdk_stream(&m, p, &made);
        we_agree(&m, made.plain, p->size);
        snprintf(path, sizeof(path), "%s", test_path("ours.vmdk"));
        CHECK(blk_mem_save(&m, path));
        others_agree(path, made.plain, p->size, !p->front && !p->gtes && p->size % made.grain == 0);
        unlink(path);
        free(made.plain);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

static void streams_by_qemu(void)
{
    u64 seed = test_seed(0x452821e638d01377);
    char raw[512], path[512];
    snprintf(raw, sizeof(raw), "%s", test_path("plain.raw"));
    snprintf(path, sizeof(path), "%s", test_path("qemus.vmdk"));
    for (int i = 0; i < 6; i++) {
        u64 sectors = 1 + rnd_below(&seed, i < 4 ? 9000 : 99000);
        u64 size = i == 0 ? 512 : sectors * 512;
        u8 *plain = calloc(1, size);
        struct blk_mem m;
        test_note("%llu bytes", (unsigned long long)size);
        for (u64 at = 0; at < size; at += KI(4))
            for (u64 k = at; rnd_below(&seed, 3) == 0 && k < min_u64(size, at + KI(4)); k++)
                plain[k] = rnd_below(&seed, 2) ? (u8)rnd(&seed) : 7;
        FILE *f = fopen(raw, "wb");
        CHECK(f && fwrite(plain, 1, size, f) == size && !fclose(f));
        CHECK(!test_system("qemu-img convert -f raw -O vmdk -o subformat=streamOptimized %s %s",
                           raw, path));
        others_agree(path, plain, size, false);
        if (CHECK(blk_mem_load(&m, path, 512)))
            we_agree(&m, plain, size);
        blk_mem_free(&m);
        free(plain);
        unlink(raw), unlink(path);
    }
    test_note("%s", "");
}

/* A stream below a sparse child, and a stream that is a child itself: what a rebase reads. */
static void in_a_chain(void)
{
    static u8 mem[3][IMAGE_MEM] __attribute__((aligned(4096))), got[MI(4)], want[MI(4)];
    struct vmdk_stream low = {.size = MI(3), .seed = 8},
                       mid = {.size = MI(4), .seed = 9, .child_of = 0x00c0ffee};
    struct vmdk_make top = {.size = MI(4), .every = 3, .child = true};
    struct vmdk_streamed a, b;
    struct vmdk_made made;
    struct blk_mem m[3];
    struct image img[3];
    struct err e = {0};
    vmdk_stream(&m[0], &low, &a);
    vmdk_stream(&m[1], &mid, &b);
    vmdk_make(&m[2], &top, &made);
    for (int i = 0; i < 3; i++) {
        CHECK(!open_as(&m[i], &img[i], mem[i], &e));
        img[i].backing = i ? &img[i - 1] : NULL;
    }
    CHECK_ERR(&e, OK);
    for (u64 at = 0; at < MI(4); at += KI(64)) { /* absent grains of a child are its parent's */
        struct extent x;
        CHECK(!vmdk_format.map(&img[1], at, KI(64), &x, &e));
        CHECK(x.kind == EXTENT_PACKED || x.kind == EXTENT_HOLE);
        if (x.kind == EXTENT_PACKED)
            memcpy(want + at, b.plain + at, KI(64));
        else if (at < MI(3))
            memcpy(want + at, a.plain + at, KI(64));
    }
    CHECK(!chain_read(&img[1], 0, got, MI(4), &e) && !memcmp(got, want, MI(4)));
    for (u64 i = 0; i < MI(4) / KI(64); i += 3)
        CHECK(!chain_read(&img[2], i * KI(64), want + i * KI(64), KI(64), &e));
    CHECK(!chain_read(&img[2], 0, got, MI(4), &e) && !memcmp(got, want, MI(4)));
    img[1].scratch = NULL;
    CHECK(chain_read(&img[2], 0, got, MI(4), &e) == ERR_UNSUPPORTED_FEATURE);
    free(a.plain), free(b.plain);
    for (int i = 0; i < 3; i++)
        blk_mem_free(&m[i]);
}

/* ---- what lies ---- */

struct lie {
    const char *name;
    u64 lba; /* added to the marker's */
    int len; /* added to the marker's; HUGE, NONE */
    int how; /* of the stream: see make_lie() */
    bool fine;
};
enum { HUGE = 1 << 30, NONE = -HUGE };
enum { AS_IT_IS, TOO_SHORT, TOO_LONG, BOMB, RAW, BAD_SUM, CUT, TRAILED, NOISE };

/* Compresses `len` bytes of one value at the first grain's place. Returns the stream's length. */
static uLongf put_stream(struct blk_mem *m, u64 at, u64 len)
{
    static u8 plain[64 << 20], packed[1 << 20];
    uLongf n = sizeof(packed);
    memset(plain, 0x33, len);
    CHECK(compress2(packed, &n, plain, len, 9) == Z_OK);
    blk_mem_put(m, at + 12, packed, n);
    return n;
}

static u32 make_lie(struct blk_mem *m, const struct vmdk_streamed *made, int how)
{
    u64 at = made->first, seed = 5;
    uLongf n = how == TOO_LONG    ? put_stream(m, at, made->grain + 1)
               : how == TOO_SHORT ? put_stream(m, at, made->grain - 1)
               : how == BOMB      ? put_stream(m, at, 64 << 20)
               : how != AS_IT_IS  ? put_stream(m, at, made->grain)
                                  : made->first_len;
    u8 bytes[64];
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (u8)rnd(&seed);
    if (how == RAW)
        blk_mem_put(m, at + 12, "\0\0", 2);
    if (how == BAD_SUM)
        blk_mem_put(m, at + 12 + n - 4, "\x12", 1);
    if (how == NOISE)
        blk_mem_put(m, at + 12 + 2, bytes, sizeof(bytes));
    if (how == TRAILED)
        blk_mem_put(m, at + 12 + n, bytes, sizeof(bytes));
    return (u32)(how == CUT ? n - 1 : how == TRAILED ? n + sizeof(bytes) : n);
}

static void grains_that_lie(void)
{
    static const struct lie lies[] = {
        {"sound", 0, 0, AS_IT_IS, true},
        {"followed by noise", 0, 0, TRAILED, true},
        {"the next grain's", 128, 0, AS_IT_IS, false},
        {"a sector off", 1, 0, AS_IT_IS, false},
        {"far off", 1ull << 63, 0, AS_IT_IS, false},
        {"of no size", 0, NONE, AS_IT_IS, false},
        {"past the end", 0, HUGE, AS_IT_IS, false},
        {"cut in the middle", 0, -9, AS_IT_IS, false},
        {"cut by a byte", 0, 0, CUT, false},
        {"a byte too short", 0, 0, TOO_SHORT, false},
        {"a byte too long", 0, 0, TOO_LONG, false},
        {"a bomb", 0, 0, BOMB, false},
        {"raw deflate", 0, 0, RAW, false},
        {"of a wrong sum", 0, 0, BAD_SUM, false},
        {"noise", 0, 0, NOISE, false},
    };
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    for (unsigned i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct vmdk_stream p = {.size = MI(5), .seed = 2};
        struct vmdk_streamed made;
        struct blk_mem m;
        struct image img;
        struct err e = {0};
        u8 head[12], got[512];
        test_note("%s", lies[i].name);
        vmdk_stream(&m, &p, &made);
        u32 len = make_lie(&m, &made, lies[i].how);
        put_le64(head, made.first_idx * 128 + lies[i].lba);
        put_le32(head + 8, lies[i].len == NONE ? 0 : len + (u32)lies[i].len);
        blk_mem_put(&m, made.first, head, 12);
        memset(scratch + IMAGE_UNIT_MAX - 512, 0xee, 512);
        memset(scratch + IMAGE_SCRATCH, 0xee, 4096);
        CHECK(!open_as(&m, &img, mem, &e));
        int rc = chain_read(&img, made.first_idx * KI(64) + 99, got, 512, &e);
        CHECK(lies[i].fine ? !rc : rc == ERR_OVERLAY_CORRUPT);
        CHECK(lies[i].fine || e.off == made.first || e.off == made.first + 12);
        CHECK(scratch[IMAGE_UNIT_MAX - 1] == 0xee && scratch[IMAGE_SCRATCH] == 0xee);
        free(made.plain);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* Grains larger than any program packs: 7 MiB of scratch do not hold them. */
static void grains_too_large(void)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    struct vmdk_stream p = {.size = MI(5), .grain = 4096};
    struct vmdk_streamed made;
    struct blk_mem m;
    struct image img;
    struct err e = {0};
    u8 n[8];
    vmdk_stream(&m, &p, &made);
    put_le64(n, 8192);
    blk_mem_put(&m, m.length - 1024 + VMH_GRAIN_SIZE, n, 8);
    CHECK(open_as(&m, &img, mem, &e) == ERR_UNSUPPORTED_FEATURE);
    free(made.plain);
    blk_mem_free(&m);
}

static void noise(void)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096))), got[MI(1)];
    u64 seed = test_seed(0xbe5466cf34e90c6c), refused = 0, same = 0;
    for (int i = 0; i < 800; i++) {
        struct vmdk_stream p = {.size = MI(1), .grain = 16, .seed = rnd(&seed)};
        struct vmdk_streamed made;
        struct blk_mem m;
        struct image img;
        struct err e = {0};
        test_note("stream %d", i);
        vmdk_stream(&m, &p, &made);
        for (u64 k = 1 + rnd_below(&seed, 3); k; k--) {
            u8 byte = (u8)rnd(&seed);
            u64 from = i % 2 ? made.first : m.length - 6 * 512;
            blk_mem_put(&m, from + rnd_below(&seed, m.length - from), &byte, 1);
        }
        if (open_as(&m, &img, mem, &e) || chain_read(&img, 0, got, min_u64(img.size, MI(1)), &e))
            refused++;
        else /* what zlib's sum covers is what it was; a grain may have gone */
            same += !memcmp(got, made.plain, MI(1));
        free(made.plain);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu refused, %llu read as they were\n", (unsigned long long)refused,
           (unsigned long long)same);
    CHECK(refused > 250 && refused + same > 780);
}

int main(void)
{
    RUN(streams_by_us);
    RUN(streams_by_qemu);
    RUN(in_a_chain);
    RUN(grains_that_lie);
    RUN(grains_too_large);
    RUN(noise);
    return test_end();
}
