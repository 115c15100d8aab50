/* SPDX-License-Identifier: MIT
 *
 * The judge and the maker, held against each other and against qemu-img: images of the maker are
 * clean to both, and each mutated copy is found out by both. Without this, a test that says "the
 * judge found nothing" would say nothing.
 */
#include "qcow2_judge.h"
#include "qcow2_make.h"
#include "test.h"

#include <unistd.h>

enum { CLEAN = 0, CORRUPTIONS = 2, LEAKS = 3 };
enum { ALL_KINDS = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO | MAKE_PACKED | MAKE_SUB };

/* clang-format off */
static const struct make shapes[] = {
    { .refcount_order = 4, .size = 1 << 20, .first = 9, .kinds = ALL_KINDS, .seed = 1 },
    { .version = 2, .refcount_order = 4, .size = 10 << 20, .first = 20, .spread = 9, .seed = 2 },
    { .cluster_bits = 9, .refcount_order = 4, .size = 3 << 20, .first = 500, .seed = 3,
      .kinds = ALL_KINDS },
    { .cluster_bits = 9, .refcount_order = 0, .size = 3 << 20, .first = 70, .seed = 4,
      .kinds = ALL_KINDS, .l1_middle = true },
    { .cluster_bits = 12, .refcount_order = 1, .size = 64 << 20, .first = 70, .seed = 5,
      .spread = 10, .kinds = ALL_KINDS, .snapshots = 2 },
    { .cluster_bits = 12, .refcount_order = 2, .size = 64 << 20, .first = 70, .seed = 6 },
    { .cluster_bits = 14, .refcount_order = 3, .size = 64 << 20, .first = 70, .seed = 7,
      .ext_l2 = true, .kinds = ALL_KINDS, .last = true },
    { .cluster_bits = 16, .refcount_order = 5, .size = (64 << 20) + 512, .first = 7, .seed = 8,
      .last = true, .stale = true, .end_cluster = 9000 },
    { .cluster_bits = 16, .refcount_order = 6, .size = 64 << 20, .first = 7, .seed = 9,
      .snapshots = 3, .kinds = ALL_KINDS, .end_cluster = 20000, .l1_middle = true, .last = true },
    { .cluster_bits = 21, .refcount_order = 4, .size = 1ull << 40, .first = 3, .seed = 10,
      .kinds = ALL_KINDS, .last = true },
    { .cluster_bits = 20, .refcount_order = 4, .size = 1ull << 40, .first = 3, .seed = 11,
      .kinds = ALL_KINDS, .ext_l2 = true, .header_length = 120, .header_fill = 0x5a,
      .unknown_ext = true, .compatible = 1ull << 40, .autoclear = 1ull << 50 },
    { .refcount_order = 4, .size = 1ull << 39, .seed = 12, .above_eof = 0xf5,
      .header_length = 104 },
    { .refcount_order = 4, .size = 5 << 20, .seed = 13, .pad_clusters = 3, .first = 2,
      .rt_clusters = 3, .end = MAKE_END_CLUSTER },
    { .cluster_bits = 9, .refcount_order = 4, .size = 1 << 20, .seed = 14, .first = 5,
      .rt_clusters = 1, .end_cluster = 64 * 256 - 70 },
    { .refcount_order = 4, .size = 5 << 20, .seed = 15, .compression_type = 1, .l1_extra = 3 },
    { .refcount_order = 4, .size = 0, .seed = 16 },
    { .refcount_order = 4, .size = (64 << 20) + 512, .seed = 17, .first = 3, .bitmaps = 3 },
    { .cluster_bits = 9, .refcount_order = 6, .size = 9 << 20, .seed = 18, .first = 3,
      .bitmaps = 7, .granularity = 9, .snapshots = 1 },
    { .cluster_bits = 12, .refcount_order = 0, .size = 99 << 20, .seed = 19, .bitmaps = 4,
      .granularity = 9, .unknown_ext = true },
};
/* clang-format on */
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

/* qemu-img check's exit status for the disk, by way of a file; -1 if qemu-img is not there. */
static int qemu_check(const struct blk_mem *m)
{
    const char *path = test_path("judge.qcow2");
    CHECK(blk_mem_save(m, path));
    int rc = test_system("qemu-img check -f qcow2 %s", path);
    unlink(path);
    return rc;
}

static void made_images_are_clean(void)
{
    for (unsigned i = 0; i < SHAPES; i++) {
        struct blk_mem m;
        struct made made;
        struct verdict v;
        test_note("shape %u", i);
        qcow2_make(&m, &shapes[i], &made);
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &v);
        if (!CHECK(v.opens))
            printf("    %s\n", v.why);
        CHECK_EQ_U64(v.size, shapes[i].size);
        CHECK_EQ_U64(v.l1_entries, made.l1_size);
        if (!CHECK(!v.leaks && !v.corruptions))
            printf("    %s\n", v.first);
        CHECK_EQ_U64((u64)qemu_check(&m), CLEAN);
        blk_mem_free(&m);
    }
}

static void put64(struct blk_mem *m, u64 off, u64 v)
{
    u8 b[8];
    put_be64(b, v);
    blk_mem_put(m, off, b, 8);
}

static u64 get64(struct blk_mem *m, u64 off)
{
    u8 b[8];
    blk_mem_get(m, off, b, 8);
    return be64(b);
}

static void xor64(struct blk_mem *m, u64 off, u64 bits)
{
    put64(m, off, get64(m, off) ^ bits);
}

/* An image of data clusters with 64 KiB clusters and 16-bit refcounts: header 0, table 1, block 2,
 * then data; `l2` is its only L2 table. */
static void plain(struct blk_mem *m, struct made *made)
{
    static const struct make p = {
        .refcount_order = 4, .size = 1 << 20, .first = 9, .seed = 77, .l1_middle = true};
    qcow2_make(m, &p, made);
}

static u64 l2, l1, refblock;

/* clang-format off */
static void m_leak(struct blk_mem *m) { xor64(m, refblock, 1ull << 40 /* header: 1 -> 257 */); }
static void m_leak_free(struct blk_mem *m) { put64(m, l2, 0); }
static void m_refcount_low(struct blk_mem *m) { xor64(m, refblock + 8, 1); }
static void m_block_low(struct blk_mem *m) { xor64(m, refblock, 1ull << 16); }
static void m_l1_low(struct blk_mem *m) { xor64(m, refblock, 1); }
static void m_table_low(struct blk_mem *m) { xor64(m, refblock, 1ull << 32); }
static void m_copied_l2(struct blk_mem *m) { xor64(m, l2, 1ull << 63); }
static void m_copied_l1(struct blk_mem *m) { xor64(m, l1, 1ull << 63); }
static void m_reserved_l1(struct blk_mem *m) { xor64(m, l1, 1ull << 57); }
static void m_reserved_l2(struct blk_mem *m) { xor64(m, l2, 1ull << 57); }
static void m_twice(struct blk_mem *m) { put64(m, l2 + 8, get64(m, l2)); }
static void m_on_table(struct blk_mem *m) { put64(m, l1, 1ull << 63 | 1 << 16); }
static void m_on_l1(struct blk_mem *m) { put64(m, l2, 1ull << 63 | l1); }
static void m_on_itself(struct blk_mem *m) { put64(m, l2, 1ull << 63 | l2); }
static void m_misaligned(struct blk_mem *m) { xor64(m, l2, 512); }
static void m_misaligned_l2(struct blk_mem *m) { xor64(m, l1, 512); }
static void m_beyond(struct blk_mem *m) { put64(m, l2, 1ull << 63 | 1ull << 40); }
static void m_no_block(struct blk_mem *m) { put64(m, 1 << 16, 0); }
static void m_block_misaligned(struct blk_mem *m) { xor64(m, 1 << 16, 512); }

static const struct mutation {
    const char *name;
    void (*mutate)(struct blk_mem *);
    int found;
} mutations[] = {
    { "header's refcount too high", m_leak, LEAKS },
    { "data cluster dropped from its L2", m_leak_free, LEAKS },
    { "data refcount too low", m_refcount_low, CORRUPTIONS },
    { "refcount of the refcount block 0", m_block_low, CORRUPTIONS },
    { "refcount of the L1 table 0", m_l1_low, CORRUPTIONS },
    { "refcount of the refcount table 0", m_table_low, CORRUPTIONS },
    { "COPIED wrong in L2", m_copied_l2, CORRUPTIONS },
    { "COPIED wrong in L1", m_copied_l1, CORRUPTIONS },
    { "reserved bit in L1", m_reserved_l1, CORRUPTIONS },
    { "reserved bit in L2", m_reserved_l2, CORRUPTIONS },
    { "one cluster mapped twice", m_twice, CORRUPTIONS },
    { "L2 table on the refcount table", m_on_table, CORRUPTIONS },
    { "data on the L1 table", m_on_l1, CORRUPTIONS },
    { "data on the L2 table itself", m_on_itself, CORRUPTIONS },
    { "data cluster misaligned", m_misaligned, CORRUPTIONS },
    { "L2 table misaligned", m_misaligned_l2, CORRUPTIONS },
    { "data cluster beyond the end", m_beyond, CORRUPTIONS },
    { "refcount block unlinked", m_no_block, CORRUPTIONS },
    { "refcount block misaligned", m_block_misaligned, CORRUPTIONS },
};
/* clang-format on */

static void mutations_are_found(void)
{
    for (unsigned i = 0; i < sizeof(mutations) / sizeof(mutations[0]); i++) {
        struct blk_mem m;
        struct made made;
        struct verdict v;
        test_note("%s", mutations[i].name);
        plain(&m, &made);
        l1 = made.l1_offset;
        l2 = made.last_l2;
        refblock = 2 << 16;
        CHECK_EQ_U64(l1, 3 << 16);
        mutations[i].mutate(&m);
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &v);
        CHECK(v.opens && v.first[0]);
        CHECK_EQ_U64(v.corruptions ? CORRUPTIONS
                     : v.leaks     ? LEAKS
                                   : CLEAN,
                     (u64)mutations[i].found);
        int qemu = qemu_check(&m);
        /* 1: "the check itself failed", which is what qemu makes of a misaligned block */
        CHECK(qemu == mutations[i].found ||
              (qemu == 1 && mutations[i].mutate == m_block_misaligned));
        blk_mem_free(&m);
    }
}

/* Extended L2 and narrow refcounts have faults of their own. */
static void mutations_of_ext_l2(void)
{
    static const struct make p = {.refcount_order = 0,
                                  .cluster_bits = 14,
                                  .ext_l2 = true,
                                  .size = 1 << 20,
                                  .first = 9,
                                  .seed = 5,
                                  .l1_middle = true};
    for (int i = 0; i < 4; i++) {
        struct blk_mem m;
        struct made made;
        struct verdict v;
        test_note("mutation %d", i);
        qcow2_make(&m, &p, &made);
        if (i == 0)
            xor64(&m, made.last_l2 + 8, 1ull << 35); /* allocated and zero */
        else if (i == 1)
            put64(&m, made.last_l2, 0); /* allocated subclusters of no cluster */
        else if (i == 2)
            xor64(&m, 2 << 14, 1ull << 60 /* cluster 4 */);
        else
            xor64(&m, made.last_l2, 1); /* the zero flag is reserved here */
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &v);
        CHECK(v.opens && v.corruptions);
        if (i == 2)
            CHECK_EQ_U64((u64)qemu_check(&m), CORRUPTIONS);
        blk_mem_free(&m);
    }
}

/* Bitmaps: what is wrong with them, and that stale ones leak and are nothing else. */
static void mutations_of_bitmaps(void)
{
    static const struct make p = {.cluster_bits = 9, .refcount_order = 4, .size = (1 << 20) + 512,
                                  .bitmaps = 2, .granularity = 9, .first = 1, .seed = 3};
    for (int i = 0; i < 9; i++) {
        struct blk_mem m;
        struct made made;
        struct verdict v, old;
        test_note("mutation %d", i);
        qcow2_make(&m, &p, &made);
        qcow2_judge_mem(&m, p.size, 0, 0, &old);
        CHECK(old.bitmaps == 2 && old.bitmap_bits > 100 && !old.corruptions && !old.leaks);
        u64 dir = made.dir_offset, table = get64(&m, dir);
        if (i == 0)
            put64(&m, dir + 8, 2ull << 32); /* one entry more than the disk needs */
        else if (i == 1)
            xor64(&m, dir + 8, 8); /* an unknown flag */
        else if (i == 2)
            xor64(&m, table, 4); /* a reserved bit */
        else if (i == 3)
            put64(&m, table, made.last_data); /* a cluster that is something else */
        else if (i == 4)
            put64(&m, dir + 32, table); /* a table that another has */
        else if (i == 5)
            put64(&m, get64(&m, table) + 256, 1ull << 48); /* a bit past the end: number 2057 */
        else if (i == 6)
            xor64(&m, made.ext_offset + 8, 8); /* a directory that ends elsewhere */
        else if (i == 7)
            xor64(&m, get64(&m, table), 1); /* one bit */
        else
            xor64(&m, 88, 1); /* stale */
        qcow2_judge_mem(&m, p.size, 0, 0, &v);
        CHECK(v.opens && (v.corruptions > 0) == (i < 7));
        if (i >= 7)
            CHECK(v.bitmap_hash != old.bitmap_hash && (v.leaks > 0) == (i == 8));
        if (i == 8)
            CHECK(qemu_check(&m) == LEAKS && v.bitmaps == 0);
        blk_mem_free(&m);
    }
}

static void headers_are_refused(void)
{
    /* clang-format off */
    static const struct {
        u32 off, len;
        u64 val;
    } bad[] = {
        { 0, 4, 0x514649fa }, { 4, 4, 4 },           { 4, 4, 1 },          { 20, 4, 8 },
        { 20, 4, 22 },        { 24, 8, 1ull << 40 }, { 36, 4, 0 },         { 36, 4, 0x400001 },
        { 40, 8, 513 },       { 48, 8, 77 },         { 48, 8, 0 },         { 56, 4, 0 },
        { 56, 4, 0x1000 },    { 60, 4, 65537 },      { 72, 8, 1ull << 20 }, { 72, 8, 8 },
        { 96, 4, 7 },         { 100, 4, 96 },        { 100, 4, 1 << 17 },  { 104, 1, 1 },
        { 8, 8, 1 << 20 },    { 112, 4, 0x1234 },
    };
    /* clang-format on */
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct blk_mem m;
        struct made made;
        struct verdict v;
        u8 b[8];
        test_note("field at %u := %llu", bad[i].off, (unsigned long long)bad[i].val);
        plain(&m, &made);
        put_be64(b, bad[i].val << (64 - 8 * bad[i].len));
        blk_mem_put(&m, bad[i].off, b, bad[i].len);
        if (bad[i].off == 8)
            put64(&m, 16, 0x00000200ffffffff);
        if (bad[i].off == 112)
            put64(&m, 116, 0xffffffff00000000);
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &v);
        CHECK(!v.opens && v.why[0]);
        blk_mem_free(&m);
    }
}

/* The content hash sees one bit, and where it is; the zero area too. */
static void content_is_seen(void)
{
    struct blk_mem m;
    struct made made;
    struct verdict a, b;
    u8 byte;
    plain(&m, &made);
    u64 data = made.last_data, voff = 8 << 16; /* guest cluster 8 is the last made */
    qcow2_judge_mem(&m, UINT64_MAX, 9 << 16, 1 << 20, &a);
    CHECK(a.hash != 0 && a.zero);
    CHECK_EQ_U64(a.data_clusters, 9);
    blk_mem_get(&m, data + 1000, &byte, 1);
    byte ^= 1;
    blk_mem_put(&m, data + 1000, &byte, 1);
    qcow2_judge_mem(&m, UINT64_MAX, voff + 1000, voff + 1001, &b);
    CHECK(b.hash != a.hash && !b.zero == (byte != 0));
    qcow2_judge_mem(&m, voff + 1000, voff + 65536, 1 << 20, &b);
    byte ^= 1;
    blk_mem_put(&m, data + 1000, &byte, 1);
    qcow2_judge_mem(&m, voff + 1000, voff + 65535, 1 << 20, &a);
    CHECK_EQ_U64(a.hash, b.hash); /* past what is hashed */
    CHECK(!a.zero && b.zero);     /* its last byte is not zero */
    /* two guest clusters exchanged */
    u64 e0 = get64(&m, made.last_l2), e1 = get64(&m, made.last_l2 + 8);
    put64(&m, made.last_l2, e1);
    put64(&m, made.last_l2 + 8, e0);
    qcow2_judge_mem(&m, voff + 1000, 0, 0, &b);
    CHECK(a.hash != b.hash && !b.corruptions);
    blk_mem_free(&m);
}

/* A snapshot's data is seen apart from the active disk's. */
static void snapshots_are_seen(void)
{
    static const struct make p = {.refcount_order = 4,
                                  .size = 1 << 20,
                                  .first = 3,
                                  .seed = 9,
                                  .snapshots = 1,
                                  .l1_middle = true};
    struct blk_mem m;
    struct made made;
    struct verdict a, b;
    u8 byte;
    qcow2_make(&m, &p, &made);
    qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &a);
    CHECK(a.snapshot_hash && a.hash && !a.corruptions);
    blk_mem_get(&m, made.last_data + 7, &byte, 1);
    byte ^= 1;
    blk_mem_put(&m, made.last_data + 7, &byte, 1);
    qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &b);
    CHECK(b.snapshot_hash != a.snapshot_hash && b.hash != a.hash);
    put64(&m, made.l1_offset, 0); /* the active disk is empty now: leaks, the snapshot stands */
    qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &a);
    CHECK(a.hash == 0 && a.snapshot_hash == b.snapshot_hash && a.leaks == 4 && !a.corruptions);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(made_images_are_clean);
    RUN(mutations_are_found);
    RUN(mutations_of_ext_l2);
    RUN(mutations_of_bitmaps);
    RUN(headers_are_refused);
    RUN(content_is_seen);
    RUN(snapshots_are_seen);
    return test_end();
}
