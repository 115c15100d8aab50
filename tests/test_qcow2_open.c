/* SPDX-License-Identifier: MIT
 *
 * Opening qcow2: every header field out of range is refused with its code and words (qemu-img's
 * where it has them: parity C.1, C.10), tables beyond the end of the file, on the header or on each
 * other too; what is odd but legal opens. Then seeded mutations by the hundred thousand: an answer
 * or a refusal, nothing else, under the sanitizers.
 */
#include "format.h"
#include "qcow2_judge.h"
#include "qcow2_make.h"
#include "test.h"

static u8 image_mem[IMAGE_MEM];

static int open_as(struct blk_mem *m, const char *name, struct image *img, struct err *e)
{
    *e = (struct err){0};
    return image_open(img, &m->blk, name, image_mem, e);
}

static void put(struct blk_mem *m, u64 off, u32 len, u64 val)
{
    u8 b[8];
    put_be64(b, val << (64 - 8 * len));
    blk_mem_put(m, off, b, len);
}

/* Clusters of 64 KiB: header 0, refcount table 1, block 2, L1 3, L2 and data from 4 on; snapshot
 * tables at the end. */
static const struct make plain = {.refcount_order = 4,
                                  .size = 1 << 20,
                                  .first = 4,
                                  .kinds = 15,
                                  .l1_middle = true,
                                  .unknown_ext = true};

struct field {
    u32 off, len;
    u64 val;
};

/* clang-format off */
static const struct {
    const char *name;
    struct field f[3];
    enum err_code code;
    const char *what;
    u64 val; /* err.val, or 0 */
} bad[] = {
    { "magic", { { 0, 4, 0x514649fa } }, ERR_PARSE_FAILED, "Image is not in qcow2 format", 0 },
    { "version 1", { { 4, 4, 1 } }, ERR_UNSUPPORTED_SUBFORMAT,
      "Unsupported qcow2 version {val}", 1 },
    { "version 4", { { 4, 4, 4 } }, ERR_UNSUPPORTED_SUBFORMAT,
      "Unsupported qcow2 version {val}", 4 },
    { "cluster_bits 8", { { 20, 4, 8 } }, ERR_PARSE_FAILED,
      "Unsupported cluster size: 2^{val}", 8 },
    { "cluster_bits 22", { { 20, 4, 22 } }, ERR_PARSE_FAILED,
      "Unsupported cluster size: 2^{val}", 22 },
    { "cluster_bits 2^31", { { 20, 4, 1u << 31 } }, ERR_PARSE_FAILED,
      "Unsupported cluster size: 2^{val}", 1u << 31 },
    { "size needs more L1", { { 24, 8, (512ull << 20) + 1 } }, ERR_PARSE_FAILED,
      "L1 table is too small", 1 },
    { "size 2^63", { { 24, 8, 1ull << 63 } }, ERR_PARSE_FAILED, NULL, 0 },
    { "size 2^64 - 1", { { 24, 8, UINT64_MAX } }, ERR_PARSE_FAILED, NULL, 0 },
    { "crypt_method 3", { { 32, 4, 3 } }, ERR_UNSUPPORTED_FEATURE,
      "Unsupported encryption method {val}", 3 },
    { "LUKS without its extension", { { 32, 4, 2 } }, ERR_PARSE_FAILED,
      "Missing CRYPTO header for crypt method 2", 2 },
    { "l1_size 0", { { 36, 4, 0 } }, ERR_PARSE_FAILED, "L1 table is too small", 0 },
    { "l1_size 32 MiB + 8", { { 36, 4, 0x400001 } }, ERR_PARSE_FAILED, "Active L1 table too large",
      0x400001 },
    { "l1_size 2^32 - 1", { { 36, 4, UINT32_MAX } }, ERR_PARSE_FAILED, "Active L1 table too large",
      UINT32_MAX },
    { "L1 unaligned", { { 40, 8, 0x30200 } }, ERR_PARSE_FAILED, "Active L1 table offset invalid",
      0x30200 },
    { "L1 at 2^64 - cluster", { { 40, 8, UINT64_MAX - 65535 } }, ERR_OVERLAY_CORRUPT, NULL, 0 },
    { "L1 beyond the end", { { 40, 8, 1ull << 40 } }, ERR_OVERLAY_CORRUPT,
      "Active L1 table lies beyond the end of the file", 0 },
    { "L1 past 2^56", { { 40, 8, 1ull << 57 } }, ERR_OVERLAY_CORRUPT, NULL, 0 },
    { "L1 on the header", { { 40, 8, 0 } }, ERR_OVERLAY_CORRUPT,
      "Active L1 table overlaps other metadata", 0 },
    { "L1 on the refcount table", { { 40, 8, 0x10000 } }, ERR_OVERLAY_CORRUPT, NULL, 0 },
    { "refcount table unaligned", { { 48, 8, 0x10008 } }, ERR_PARSE_FAILED,
      "Reference count table offset invalid", 0x10008 },
    { "refcount table beyond the end", { { 48, 8, 1ull << 40 } }, ERR_OVERLAY_CORRUPT,
      "Reference count table lies beyond the end of the file", 0 },
    { "refcount table at 0", { { 48, 8, 0 } }, ERR_OVERLAY_CORRUPT,
      "Reference count table overlaps other metadata", 0 },
    { "refcount table on L1", { { 48, 8, 0x30000 } }, ERR_OVERLAY_CORRUPT, NULL, 0 },
    { "refcount table overlaps L1", { { 56, 4, 3 } }, ERR_OVERLAY_CORRUPT, NULL, 0 },
    { "refcount table of 0 clusters", { { 56, 4, 0 } }, ERR_PARSE_FAILED,
      "Image does not contain a reference count table", 0 },
    { "refcount table of more than 8 MiB", { { 56, 4, 129 } }, ERR_PARSE_FAILED,
      "Reference count table too large", 129 },
    { "refcount table of 2^32 - 1 clusters", { { 56, 4, UINT32_MAX } }, ERR_PARSE_FAILED,
      "Reference count table too large", UINT32_MAX },
    { "65537 snapshots", { { 60, 4, 65537 } }, ERR_PARSE_FAILED,
      "Snapshot table too large", 65537 },
    { "snapshot table unaligned", { { 60, 4, 1 }, { 64, 8, 100 } }, ERR_PARSE_FAILED,
      "Snapshot table offset invalid", 100 },
    { "snapshot table beyond the end", { { 60, 4, 1 }, { 64, 8, 1ull << 40 } }, ERR_OVERLAY_CORRUPT,
      "Snapshot table lies beyond the end of the file", 0 },
    { "snapshot table at 2^64 - cluster", { { 60, 4, 1 }, { 64, 8, UINT64_MAX - 65535 } },
      ERR_OVERLAY_CORRUPT, NULL, 0 },
    { "snapshot table on the header", { { 60, 4, 1 }, { 64, 8, 0 } }, (enum err_code)0, NULL, 0 },
    { "unknown incompatible bit", { { 72, 8, 1ull << 40 } }, ERR_UNSUPPORTED_FEATURE,
      "Unknown incompatible feature: {val:x}", 1ull << 40 },
    { "compression bit without type", { { 72, 8, 8 } }, ERR_PARSE_FAILED,
      "Compression type incompatible feature bit must not be set", 0 },
    { "compression type without bit", { { 104, 1, 1 } }, ERR_PARSE_FAILED,
      "Compression type incompatible feature bit must be set", 1 },
    { "compression type 2", { { 104, 1, 2 }, { 72, 8, 8 } }, ERR_UNSUPPORTED_FEATURE,
      "qcow2: unknown compression type: {val}", 2 },
    { "raw data file without a data file", { { 88, 8, 2 } }, ERR_PARSE_FAILED,
      "data-file-raw requires a data file", 0 },
    { "refcount_order 7", { { 96, 4, 7 } }, ERR_PARSE_FAILED,
      "Reference count entry width too large; may not exceed 64 bits", 7 },
    { "refcount_order 2^32 - 1", { { 96, 4, UINT32_MAX } }, ERR_PARSE_FAILED, NULL, 0 },
    { "header_length 103", { { 100, 4, 103 } }, ERR_PARSE_FAILED, "qcow2 header too short", 103 },
    { "header_length 0", { { 100, 4, 0 } }, ERR_PARSE_FAILED, "qcow2 header too short", 0 },
    { "header_length over a cluster", { { 100, 4, 65537 } }, ERR_PARSE_FAILED,
      "qcow2 header exceeds cluster size", 65537 },
    { "backing name too long", { { 8, 8, 4096 }, { 16, 4, 1024 } }, ERR_BACKING_PATH_TOO_LONG,
      "Backing file name too long", 1024 },
    { "backing name past cluster 0", { { 8, 8, 65530 }, { 16, 4, 20 } }, ERR_BACKING_PATH_TOO_LONG,
      NULL, 0 },
    { "backing offset past cluster 0", { { 8, 8, 65537 }, { 16, 4, 2 } }, ERR_PARSE_FAILED,
      "Invalid backing file offset", 65537 },
    { "backing offset in the header", { { 8, 8, 50 }, { 16, 4, 2 } }, ERR_PARSE_FAILED, NULL, 0 },
    { "backing offset 2^64 - 1", { { 8, 8, UINT64_MAX }, { 16, 4, 2 } }, ERR_PARSE_FAILED,
      NULL, 0 },
    { "extension too large", { { 116, 4, 0x10000 } }, ERR_PARSE_FAILED,
      "Header extension too large", 0x10000 },
    { "extension of 2^32 - 1", { { 116, 4, UINT32_MAX } }, ERR_PARSE_FAILED,
      "Header extension too large", UINT32_MAX },
    { "backing format of 16", { { 112, 4, 0xe2792aca }, { 116, 4, 16 } }, ERR_PARSE_FAILED,
      NULL, 0 },
    { "bitmaps extension of 23", { { 112, 4, 0x23852875 }, { 116, 4, 23 } }, ERR_PARSE_FAILED,
      NULL, 0 },
    { "crypto extension without LUKS", { { 112, 4, 0x0537be77 }, { 116, 4, 16 } }, ERR_PARSE_FAILED,
      "CRYPTO header extension only expected with LUKS encryption method", 0 },
    { "ext L2 with clusters of 8 KiB", { { 72, 8, 16 }, { 20, 4, 13 } }, ERR_PARSE_FAILED,
      NULL, 0 },
};
/* clang-format on */

static void fields_out_of_range(void)
{
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct blk_mem m;
        struct made made;
        struct image img;
        struct err e;
        test_note("%s", bad[i].name);
        qcow2_make(&m, &plain, &made);
        CHECK(!open_as(&m, "qcow2", &img, &e));
        for (int k = 0; k < 3 && bad[i].f[k].len; k++)
            put(&m, bad[i].f[k].off, bad[i].f[k].len, bad[i].f[k].val);
        CHECK(open_as(&m, "qcow2", &img, &e));
        if (bad[i].code)
            CHECK_ERR(&e, bad[i].code);
        CHECK(e.code && e.what && e.file && e.line);
        if (bad[i].what)
            CHECK_STR(e.what, bad[i].what);
        if (bad[i].val)
            CHECK_EQ_U64(e.val, bad[i].val);
        CHECK_EQ_U64(m.writes, 0);
        blk_mem_free(&m);
    }
}

/* The name that the image's own table gives an unknown feature is part of the message. */
static void unknown_feature_by_name(void)
{
    struct blk_mem m;
    struct made made;
    struct image img;
    struct err e;
    static const u8 table[8 + 96] = {0x68, 0x03, 0xf8, 0x57,     0,  0,   0,   96,  [8] = 2,
                                     33,   'n',  'o',  [56] = 0, 33, 'f', 'l', 'u', 'x'};
    qcow2_make(&m, &plain, &made);
    blk_mem_put(&m, 112, table, sizeof(table));
    put(&m, 72, 8, 1ull << 33);
    CHECK(open_as(&m, "qcow2", &img, &e));
    CHECK_ERR(&e, ERR_UNSUPPORTED_FEATURE);
    CHECK_STR(e.what, "Unsupported qcow2 feature(s): {name}");
    CHECK_STR(e.name, "flux");
    blk_mem_free(&m);
}

static void odd_but_legal(void)
{
    /* clang-format off */
    static const struct {
        const char *name;
        struct make p;
        struct field f[2];
    } ok[] = {
        { "size 0, no L1", { .refcount_order = 4 }, { { 0, 0, 0 } } },
        { "size 0, L1 offset 0", { .refcount_order = 4 }, { { 40, 8, 0 } } },
        { "version 2", { .version = 2, .size = 1 << 20 }, { { 0, 0, 0 } } },
        { "header_length 104", { .refcount_order = 4, .size = 1 << 20, .header_length = 104 },
          { { 0, 0, 0 } } },
        { "header_length 105", { .refcount_order = 4, .size = 1 << 20 }, { { 100, 4, 105 } } },
        { "a long header", { .refcount_order = 4, .size = 1 << 20, .header_length = 4096,
            .header_fill = 1 }, { { 0, 0, 0 } } },
        { "1-bit counts", { .refcount_order = 0, .size = 1 << 20 }, { { 0, 0, 0 } } },
        { "a size that is no multiple of 512", { .refcount_order = 4, .size = 1000 },
          { { 0, 0, 0 } } },
        { "L1 longer than needed", { .refcount_order = 4, .size = 1 << 20, .l1_extra = 9000 },
          { { 0, 0, 0 } } },
        { "unknown compatible and autoclear bits", { .refcount_order = 4, .size = 1 << 20,
            .compatible = UINT64_MAX << 1, .autoclear = UINT64_MAX << 2 }, { { 0, 0, 0 } } },
        { "backing name of 1023 bytes", { .refcount_order = 4, .size = 1 << 20 },
          { { 8, 8, 4096 }, { 16, 4, 1023 } } },
        { "8 snapshots", { .refcount_order = 4, .size = 1 << 20, .snapshots = 8, .first = 3 },
          { { 0, 0, 0 } } },
        { "the file ends inside the L1 table's cluster",
          { .refcount_order = 4, .size = 20ull << 30 },
          { { 0, 0, 0 } } },
        { "corrupt and dirty", { .refcount_order = 4, .size = 1 << 20, .incompatible = 3 },
          { { 0, 0, 0 } } },
        { "unknown extension", { .refcount_order = 4, .size = 1 << 20, .unknown_ext = true },
          { { 0, 0, 0 } } },
    };
    /* clang-format on */
    for (unsigned i = 0; i < sizeof(ok) / sizeof(ok[0]); i++) {
        struct blk_mem m;
        struct made made;
        struct image img;
        struct facts facts = {0};
        struct err e;
        test_note("%s", ok[i].name);
        qcow2_make(&m, &ok[i].p, &made);
        for (int k = 0; k < 2 && ok[i].f[k].len; k++)
            put(&m, ok[i].f[k].off, ok[i].f[k].len, ok[i].f[k].val);
        open_as(&m, "qcow2", &img, &e);
        if (CHECK_ERR(&e, OK)) {
            CHECK(img.size == ok[i].p.size && !img.probed && img.unit == 65536);
            CHECK(!img.format->facts(&img, &facts, &e) && facts.cnt >= 2);
            CHECK(facts.corrupt == (ok[i].p.incompatible == 3) && facts.dirty == facts.corrupt);
        }
        blk_mem_free(&m);
    }
}

static void snapshot_entries(void)
{
    /* clang-format off */
    static const struct {
        const char *name;
        struct field f;
        enum err_code code;
    } bad_entry[] = {
        { "L1 unaligned", { 0, 8, 513 }, ERR_OVERLAY_CORRUPT },
        { "L1 beyond the end", { 0, 8, 1ull << 40 }, ERR_OVERLAY_CORRUPT },
        { "L1 on the header", { 0, 8, 0 }, ERR_OVERLAY_CORRUPT },
        { "L1 on the active L1", { 0, 8, 0x30000 }, ERR_OVERLAY_CORRUPT },
        { "L1 of more than 32 MiB", { 8, 4, 0x400001 }, ERR_PARSE_FAILED },
        { "extra data of 1025", { 36, 4, 1025 }, ERR_PARSE_FAILED },
        { "extra data of 2^32 - 1", { 36, 4, UINT32_MAX }, ERR_PARSE_FAILED },
    };
    /* clang-format on */
    struct make p = plain;
    p.snapshots = 2;
    for (unsigned i = 0; i < sizeof(bad_entry) / sizeof(bad_entry[0]); i++) {
        struct blk_mem m;
        struct made made;
        struct image img;
        struct err e;
        u8 b[8];
        test_note("%s", bad_entry[i].name);
        qcow2_make(&m, &p, &made);
        CHECK(!open_as(&m, "qcow2", &img, &e) && img.u.qcow2.nb_snapshots == 2);
        blk_mem_get(&m, 64, b, 8);
        put(&m, be64(b) + bad_entry[i].f.off, bad_entry[i].f.len, bad_entry[i].f.val);
        CHECK(open_as(&m, "qcow2", &img, &e));
        CHECK_ERR(&e, bad_entry[i].code);
        blk_mem_free(&m);
    }
}

/* A file of every length up to the whole: never more than a refusal. */
static void truncated(void)
{
    static const u64 lens[] = {0,   1,    4,     71,    72,    103,    104,    112,    511,
                               512, 4096, 65535, 65536, 65537, 131072, 196608, 200000, 262144};
    unsigned opened = 0;
    for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        struct blk_mem m;
        struct made made;
        struct image img;
        struct err e;
        test_note("%llu bytes", (unsigned long long)lens[i]);
        qcow2_make(&m, &plain, &made);
        blk_mem_truncate(&m, lens[i]);
        if (!open_as(&m, "qcow2", &img, &e)) {
            opened++;
            CHECK(lens[i] > 3 << 16); /* L1 is the last named table, in cluster 3 */
        } else {
            CHECK(lens[i] <= 200000 && e.what[0]);
            CHECK(lens[i] >= 72 || e.code == ERR_PARSE_FAILED);
            if (lens[i] < 72)
                CHECK_STR(e.what, "Image is not in qcow2 format");
        }
        /* without a name, too short a file is simply raw */
        CHECK((open_as(&m, NULL, &img, &e) == 0) == (lens[i] < 8 || lens[i] > 3 << 16));
        CHECK(img.probed);
        blk_mem_free(&m);
    }
    CHECK(opened >= 1);
}

static void by_name_and_by_probe(void)
{
    struct blk_mem m;
    struct made made;
    struct image img;
    struct err e;
    qcow2_make(&m, &plain, &made);
    CHECK(!open_as(&m, NULL, &img, &e) && img.probed && img.format == &qcow2_format);
    CHECK(!open_as(&m, "", &img, &e) && img.probed);
    CHECK(!open_as(&m, "raw", &img, &e) && !img.probed && img.format == &raw_format);
    CHECK_EQ_U64(img.size, m.length);
    CHECK(open_as(&m, "qcow", &img, &e));
    CHECK_ERR(&e, ERR_UNSUPPORTED_FORMAT);
    CHECK_STR(e.what, "Unknown driver '{name}'");
    CHECK_STR(e.name, "qcow");
    put(&m, 4, 4, 1); /* qcow, version 1: not ours, and not raw either */
    CHECK(open_as(&m, NULL, &img, &e));
    CHECK_ERR(&e, ERR_UNSUPPORTED_FORMAT);
    CHECK_STR(e.name, "qcow");
    static const char *const foreign[] = {"WithouFreSpacExt", "WithoutFreeSpace"};
    static const char *const vmdk[] = {"KDMV", "COWD", "# Disk DescriptorFile"};
    for (unsigned i = 0; i < sizeof vmdk / sizeof vmdk[0]; i++) {
        blk_mem_put(&m, 0, vmdk[i], strlen(vmdk[i]));
        CHECK(open_as(&m, NULL, &img, &e) && img.format == &vmdk_format);
        CHECK(!open_as(&m, "raw", &img, &e));
    }
    for (unsigned i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        blk_mem_put(&m, 0, foreign[i], strlen(foreign[i]));
        CHECK(open_as(&m, NULL, &img, &e));
        CHECK_ERR(&e, ERR_UNSUPPORTED_FORMAT);
        CHECK(!open_as(&m, "raw", &img, &e));
    }
    for (u64 off = 0; off < 64; off += 8)
        put(&m, off, 8, 0);
    CHECK(!open_as(&m, NULL, &img, &e) && img.format == &raw_format);
    CHECK(open_as(&m, "qcow2", &img, &e));
    blk_mem_put(&m, m.length - 512, "conectix", 8);
    CHECK(open_as(&m, NULL, &img, &e) && img.format == &vhd_format);
    CHECK(!open_as(&m, "raw", &img, &e));
    blk_mem_free(&m);
}

static void mutate(struct blk_mem *m, u64 *seed, u64 snapshots_at)
{
    static const u64 values[] = {
        0,          1,          2,          8,          9,          21,
        22,         63,         64,         103,        104,        512,
        65535,      65536,      1 << 20,    1u << 31,   UINT32_MAX, 1ull << 32,
        1ull << 55, 1ull << 56, 1ull << 62, 1ull << 63, UINT64_MAX, UINT64_MAX - 511};
    u64 n = 1 + rnd_below(seed, 4);
    while (n--) {
        u8 b[8];
        u64 at = rnd_below(seed, 240), len = 1ull << rnd_below(seed, 4);
        if (rnd_below(seed, 6) == 0)
            at = snapshots_at + rnd_below(seed, 140);
        if (rnd_below(seed, 2))
            at &= ~3ull;
        blk_mem_get(m, at, b, 8);
        switch (rnd_below(seed, 3)) {
        case 0:
            b[0] ^= (u8)(1 << rnd_below(seed, 8));
            break;
        case 1:
            put_be64(b, values[rnd_below(seed, 24)] << (64 - 8 * len));
            break;
        default:
            put_be64(b, rnd(seed));
            break;
        }
        blk_mem_put(m, at, b, len);
    }
}

/* What opens must be within the limits that formats/ promises to its callers. */
static void check_opened(const struct image *img, const struct blk_mem *m)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 cs = 1ull << q->cluster_bits, end = round_up(m->length, cs);
    CHECK(q->cluster_bits >= 9 && q->cluster_bits <= 21 && q->refcount_order <= 6);
    CHECK(img->size <= QCOW2_MAX_DISK_SIZE && qcow2_l1_entries(q, img->size) <= q->l1_size);
    CHECK(q->l1_size * 8ull <= QCOW2_MAX_L1_BYTES);
    CHECK(!q->l1_size || q->l1_table_offset + q->l1_size * 8ull <= end);
    CHECK((u64)q->refcount_table_clusters << q->cluster_bits <= QCOW2_MAX_REFTABLE_BYTES);
    CHECK(q->refcount_table_offset + ((u64)q->refcount_table_clusters << q->cluster_bits) <= end);
    CHECK(q->refcount_table_offset >= cs && q->refcount_table_offset % cs == 0);
    CHECK(q->header_length <= cs && q->backing_file_offset <= cs);
}

/* INSTAR_MUTATIONS sets another number. */
static void mutated_headers(void)
{
    u64 seed = test_seed(0x510e527fade682d1);
    const char *text = getenv("INSTAR_MUTATIONS");
    int n = text ? atoi(text) : 100000;
    unsigned opened = 0, refused = 0;
    struct make p = plain;
    struct blk_mem base;
    struct made made;
    u8 b[8];
    p.snapshots = 2;
    qcow2_make(&base, &p, &made);
    blk_mem_get(&base, 64, b, 8);
    for (int i = 0; i < n; i++) {
        struct blk_mem m;
        struct image img;
        struct facts facts = {0};
        struct extent x;
        struct err e, e2 = {0}, e3 = {0};
        test_note("mutation %d", i);
        blk_mem_over(&m, &base);
        mutate(&m, &seed, be64(b));
        if (open_as(&m, "qcow2", &img, &e)) {
            refused++;
            if (!e.what || !e.what[0] || !e.code)
                CHECK(!"a refusal without words");
        } else {
            opened++;
            check_opened(&img, &m);
            img.format->facts(&img, &facts, &e2);
            if (img.size)
                img.format->map(&img, rnd_below(&seed, img.size), 1 << 16, &x, &e3);
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u opened, %u refused\n", opened, refused);
    CHECK(opened > (unsigned)n / 50 && refused > (unsigned)n / 10);
    blk_mem_free(&base);
}

int main(void)
{
    RUN(fields_out_of_range);
    RUN(unknown_feature_by_name);
    RUN(odd_but_legal);
    RUN(snapshot_entries);
    RUN(truncated);
    RUN(by_name_and_by_probe);
    RUN(mutated_headers);
    return test_end();
}
