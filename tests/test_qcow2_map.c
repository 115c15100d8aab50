/* SPDX-License-Identifier: MIT
 *
 * qcow2's map(): what it says of every kind of cluster is held against the pattern that the maker
 * wrote, cluster by cluster, and against the judge's hash of the whole. Entries that no qcow2 may
 * have are refused, never followed.
 */
#include "format.h"
#include "qcow2_judge.h"
#include "qcow2_make.h"
#include "test.h"

static u8 image_mem[IMAGE_MEM], scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));

static bool open_image(struct image *img, struct blk_mem *m)
{
    struct err e = {0};
    CHECK(!image_open(img, &m->blk, "qcow2", image_mem, &e));
    img->scratch = scratch;
    return CHECK_ERR(&e, OK);
}

/* The content hash of the judge, by way of map(): `step` bytes are asked for at a time. */
static u64 hash_by_map(struct image *img, struct blk_mem *m, u64 step, u64 *extents, u64 *packed)
{
    u64 hash = 0;
    *extents = *packed = 0;
    for (u64 voff = 0; voff < img->size;) {
        struct extent x;
        struct err e = {0};
        img->format->map(img, voff, step, &x, &e);
        if (!CHECK_ERR(&e, OK))
            return 0;
        CHECK(x.voff == voff && x.len >= 1 && x.len <= step && voff + x.len <= img->size);
        if (!x.len)
            return 0;
        ++*extents;
        if (x.kind == EXTENT_DATA)
            for (u64 at = 0, n; at < x.len; at += n) {
                u8 b[512];
                n = min_u64(x.len - at, 512 - (voff + at) % 512);
                blk_mem_get(m, x.off + at, b, n);
                hash += judge_hash_block(voff + at, b, n);
            }
        if (x.kind == EXTENT_PACKED && voff % img->unit == 0) {
            ++*packed;
            CHECK(!img->format->unpack(img, &x, scratch, &e));
            for (u64 at = 0; at < x.len; at += 512)
                hash += judge_hash_block(voff + at, scratch + at, min_u64(x.len - at, 512));
        }
        voff += x.len;
    }
    return hash;
}

/* clang-format off */
static const struct make shapes[] = {
    { .refcount_order = 4, .size = 10 << 20, .first = 30, .spread = 20, .kinds = 15 },
    { .refcount_order = 4, .size = (3 << 20) + 512, .first = 9, .last = true, .l1_middle = true },
    { .cluster_bits = 9, .refcount_order = 4, .size = 2 << 20, .first = 900, .kinds = 15 },
    { .cluster_bits = 12, .refcount_order = 1, .size = 64 << 20, .first = 90, .spread = 50,
      .kinds = 15, .version = 3, .snapshots = 1 },
    { .cluster_bits = 12, .version = 2, .size = 64 << 20, .first = 90, .spread = 50, .kinds = 9 },
    { .cluster_bits = 14, .refcount_order = 4, .size = 8 << 20, .first = 60, .ext_l2 = true,
      .kinds = 31 },
    { .cluster_bits = 16, .refcount_order = 4, .size = 8 << 20, .first = 60, .ext_l2 = true,
      .kinds = MAKE_SUB, .last = true, .last_kind = MAKE_SUB },
    { .cluster_bits = 21, .refcount_order = 4, .size = 64 << 20, .first = 5, .kinds = 15 },
    { .refcount_order = 4, .size = 1ull << 41, .first = 5, .spread = 9, .last = true },
};
/* clang-format on */

static void whole_images(void)
{
    for (unsigned i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        struct blk_mem m;
        struct made made;
        struct verdict v;
        struct image img;
        u64 extents, packed, coarse;
        test_note("shape %u", i);
        qcow2_make(&m, &shapes[i], &made);
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &v);
        CHECK(v.opens && v.hash);
        if (!open_image(&img, &m))
            continue;
        CHECK(img.size == shapes[i].size &&
              img.unit == 1u << (shapes[i].cluster_bits ? shapes[i].cluster_bits : 16));
        CHECK_EQ_U64(hash_by_map(&img, &m, UINT64_MAX, &coarse, &packed), v.hash);
        CHECK((packed > 0) == ((shapes[i].kinds & MAKE_PACKED) != 0));
        if (shapes[i].size <= 64 << 20) { /* a cluster at a time, the answers add up to the same */
            CHECK_EQ_U64(hash_by_map(&img, &m, img.unit, &extents, &packed), v.hash);
            CHECK(extents >= coarse);
        }
        blk_mem_free(&m);
    }
}

/* Cluster by cluster, at known places. */
static void known_clusters(void)
{
    static const struct make p = {.refcount_order = 4,
                                  .size = (1 << 20) + 512,
                                  .first = 8,
                                  .kinds = 15,
                                  .seed = 3,
                                  .last = true};
    static const enum extent_kind want[] = {EXTENT_ZERO, EXTENT_ZERO, EXTENT_PACKED, EXTENT_DATA};
    struct blk_mem m;
    struct made made;
    struct image img;
    struct extent x;
    struct err e = {0};
    u8 a[512], b[512];
    qcow2_make(&m, &p, &made);
    if (!open_image(&img, &m))
        return;
    for (u64 i = 0; i < 8; i++) {
        test_note("cluster %llu", (unsigned long long)i);
        CHECK(!img.format->map(&img, i << 16, 1 << 16, &x, &e));
        CHECK_EQ_U64(x.kind, want[i % 4]);
        CHECK_EQ_U64(x.len, 1 << 16);
        if (x.kind == EXTENT_ZERO)
            CHECK((x.off != 0) == (i % 4 == 1)); /* preallocated */
    }
    test_note("%s", "");
    CHECK(!img.format->map(&img, (3 << 16) + 1000, 512, &x, &e));
    CHECK(x.kind == EXTENT_DATA && x.len == 512);
    blk_mem_get(&m, x.off, a, 512);
    make_pattern(3, (3 << 16) + 1000, b, 512);
    CHECK(!memcmp(a, b, 512));
    CHECK(!img.format->map(&img, 8 << 16, 1 << 20, &x, &e));
    CHECK(x.kind == EXTENT_HOLE && x.len == 8 << 16 && x.off == 0);
    CHECK(!img.format->map(&img, 1 << 20, 1 << 20, &x, &e));
    CHECK(x.kind == EXTENT_DATA && x.len == 512); /* no more than the disk */
    blk_mem_free(&m);
}

static void sub_clusters(void)
{
    static const struct make p = {.cluster_bits = 16,
                                  .refcount_order = 4,
                                  .ext_l2 = true,
                                  .size = 1 << 20,
                                  .first = 1,
                                  .kinds = MAKE_SUB};
    struct blk_mem m;
    struct made made;
    struct image img;
    u64 map = 0x9249249249249249ull & ~(0x9249249249249249ull << 32);
    qcow2_make(&m, &p, &made);
    if (!open_image(&img, &m))
        return;
    for (u32 i = 0; i < 32; i++) {
        struct extent x;
        struct err e = {0};
        test_note("subcluster %u", i);
        CHECK(!img.format->map(&img, i * 2048 + 5, 2048 - 5, &x, &e));
        CHECK_EQ_U64(x.kind, map >> i & 1          ? EXTENT_DATA
                             : map >> (32 + i) & 1 ? EXTENT_ZERO
                                                   : EXTENT_HOLE);
        if (x.kind == EXTENT_DATA)
            CHECK_EQ_U64(x.off, made.last_data + i * 2048 + 5);
    }
    blk_mem_free(&m);
}

/* One entry replaced by what no qcow2 may hold. */
static void bad_entries(void)
{
    /* clang-format off */
    static const struct {
        bool l1;
        u64 entry, bitmap;
        bool ext;
    } bad[] = {
        { true, 1ull << 63 | 512, 0, false },            /* L2 table misaligned */
        { true, 1ull << 63, 0, false },                  /* none: a hole, legal */
        { true, 1ull << 63 | 1ull << 50, 0, false },     /* beyond the file */
        { true, 1ull << 63 | 1ull << 16, 0, false },     /* on the refcount table */
        { true, 1ull << 57 | 5 << 16, 0, false },        /* reserved bits */
        { true, 1ull << 63 | 3, 0, false },
        { false, 1ull << 63 | 5 << 16 | 512, 0, false }, /* data misaligned */
        { false, 1ull << 60 | 5 << 16, 0, false },         /* reserved bits */
        { false, 1ull << 63 | 5 << 16 | 2, 0, false },
        { false, 3ull << 62 | 5 << 16, 0, false },         /* compressed and COPIED */
        { false, 1ull << 63 | 5 << 16, 1ull << 32 | 1, true }, /* both allocated and zero */
        { false, 0, 1, true },                             /* allocated nowhere */
        { false, 1ull << 63 | 5 << 16 | 1, 1, true },      /* the zero flag of old */
        { false, 1ull << 62 | 5 << 16, 1, true },          /* compressed with a bitmap */
    };
    /* clang-format on */
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct make p = {.refcount_order = 4,
                         .size = 1 << 20,
                         .first = 4,
                         .l1_middle = true,
                         .ext_l2 = bad[i].ext};
        struct blk_mem m;
        struct made made;
        struct image img;
        struct extent x;
        struct err e = {0};
        u8 b[16];
        test_note("entry %u: 0x%llx", i, (unsigned long long)bad[i].entry);
        qcow2_make(&m, &p, &made);
        put_be64(b, bad[i].entry);
        put_be64(b + 8, bad[i].bitmap);
        blk_mem_put(&m, bad[i].l1 ? made.l1_offset : made.last_l2, b, bad[i].ext ? 16 : 8);
        if (!open_image(&img, &m))
            continue;
        int rc = img.format->map(&img, 0, UINT64_MAX, &x, &e);
        if (bad[i].entry == 1ull << 63) {
            CHECK(!rc && x.kind == EXTENT_HOLE);
        } else {
            CHECK(rc);
            CHECK_ERR(&e, ERR_OVERLAY_CORRUPT);
        }
        blk_mem_free(&m);
    }
}

/* Tables full of noise: an answer within bounds or a refusal, for every place asked. */
static void noise(void)
{
    u64 seed = test_seed(0x3c6ef372fe94f82b);
    unsigned refused = 0, answered = 0;
    for (int i = 0; i < 600; i++) {
        struct make p = {.cluster_bits = 9 + (u32)rnd_below(&seed, 8),
                         .refcount_order = 4,
                         .size = 1 << 20,
                         .first = 30,
                         .kinds = 31,
                         .l1_middle = true};
        struct blk_mem m;
        struct made made;
        struct image img;
        p.ext_l2 = p.cluster_bits >= 14 && i % 2;
        test_note("image %d", i);
        qcow2_make(&m, &p, &made);
        for (int k = 0; k < 40; k++) {
            u8 b[8];
            u64 at = rnd_below(&seed, 2) ? made.l1_offset + 8 * rnd_below(&seed, made.l1_size)
                                         : made.last_l2 + 8 * rnd_below(&seed, 64);
            blk_mem_get(&m, at, b, 8);
            u64 v = rnd_below(&seed, 2) ? rnd(&seed) : be64(b) ^ 1ull << rnd_below(&seed, 64);
            put_be64(b, v);
            blk_mem_put(&m, at, b, 8);
        }
        if (!open_image(&img, &m))
            break;
        for (int k = 0; k < 60; k++) {
            struct extent x;
            struct err e = {0};
            u64 voff = rnd_below(&seed, img.size), max = 1 + rnd_below(&seed, 1 << 18);
            if (img.format->map(&img, voff, max, &x, &e)) {
                CHECK_ERR(&e, ERR_OVERLAY_CORRUPT);
                refused++;
            } else {
                CHECK(x.voff == voff && x.len && x.len <= max && voff + x.len <= img.size);
                CHECK(x.kind != EXTENT_PACKED || x.packed_len <= 2 * img.unit + 512);
                answered++;
            }
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u answered, %u refused\n", answered, refused);
    CHECK(refused > 100 && answered > 100);
}

int main(void)
{
    RUN(whole_images);
    RUN(known_clusters);
    RUN(sub_clusters);
    RUN(bad_entries);
    RUN(noise);
    return test_end();
}
