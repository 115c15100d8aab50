/* SPDX-License-Identifier: MIT
 *
 * VMDKs of several files, read: opening, map() and parts of every kind that is supported, COWD
 * among them; what is refused as damaged, with its code; and the judge itself, which must notice
 * every kind of damage.
 */
#include "copy.h"
#include "test.h"
#include "vmdk_judge.h"
#include "vmdk_set.h"

#define KI(n) ((u64)(n) << 10)
#define MI(n) ((u64)(n) << 20)

/* clang-format off */
static const struct vmdk_set_make shapes[] = {
    { .type = "monolithicFlat", .sectors = { 3001 }, .every = 3, .last = true },
    { .type = "monolithicFlat", .sectors = { 77 }, .offset = 9, .every = 1, .slack = 30, .tail = 900,
      .crlf = true },
    { .type = "twoGbMaxExtentFlat", .cnt = 3, .sectors = { 2048, 1, 4097 }, .every = 2,
      .last = true, .between = true },
    { .type = "vmfs", .sectors = { 9000 }, .every = 4, .no_ddb = true },
    { .cnt = 1, .sectors = { 8192 }, .every = 3 },
    { .cnt = 3, .sectors = { 8192, 1024, 3001 }, .every = 3, .last = true, .stale_rest = true,
      .crlf = true },
    { .cnt = 2, .sectors = { 90000, 70000 }, .grain = 8, .gtes = 64, .every = 99, .no_rgd = true,
      .last_line = true },
    { .cnt = 4, .sectors = { 128, 128, 128, 4096 }, .every = 2, .zeroed = true, .version = 2,
      .shuffled = true, .pad = 700, .tail = 9 },
};
/* clang-format on */
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* vmfs is judged as what it is but for the words. */
static struct vmdk_set_verdict judged(struct blk_mem *box, const struct vmdk_set_make *p, u64 size)
{
    struct vmdk_set_verdict v;
    struct blk_mem copy;
    blk_mem_over(&copy, box);
    if (p->type && !strcmp(p->type, "vmfs"))
        vmdk_set_text(&copy, "VMFS \"a-f001.vmdk\"", "FLAT \"a-f001.vmdk\" 0");
    vmdk_set_judge(&copy, size, UINT64_MAX, &v);
    blk_mem_free(&copy);
    return v;
}

static void opens_and_maps(void)
{
    for (unsigned k = 0; k < SHAPES; k++) {
        const struct vmdk_set_make *p = &shapes[k];
        static struct vmdk_set s;
        struct blk_mem box;
        struct err e = {0};
        u64 size = 0;
        test_note("shape %u", k);
        vmdk_set_build(&box, p);
        for (unsigned i = 0; i < SET_EXTENTS; i++)
            size += p->sectors[i] * 512;
        CHECK(!vmdk_set_open(&s, &box.blk, &box, NULL, &e));
        if (!CHECK_ERR(&e, OK))
            continue;
        struct vmdk_set_verdict v = judged(&box, p, size);
        if (!CHECK(v.opens && !v.faults && v.geometry && v.size == size))
            printf("    %s %s\n", v.why, v.first);
        CHECK_EQ_U64(s.img.size, size);
        CHECK_EQ_U64(s.img.parts, p->cnt ? p->cnt : 1);
        u8 *all = malloc(size);
        CHECK(!chain_read(&s.img, 0, all, size, &e));
        CHECK_EQ_U64(vmdk_judge_plain(all, size), v.hash);
        CHECK(v.hash);
        free(all);
        blk_mem_free(&box);
    }
    test_note("%s", "");
}

static void parts_say(void)
{
    struct vmdk_set_make p = {.cnt = 2, .sectors = {8192, 3001}};
    static struct vmdk_set s;
    static struct facts f;
    struct blk_mem box;
    struct image_part part;
    bool more;
    struct err e = {0};
    vmdk_set_build(&box, &p);
    CHECK(!vmdk_set_open(&s, &box.blk, &box, NULL, &e));
    CHECK(!vmdk_format.part(&s.img, 1, &part, &more, &e) && more);
    CHECK(part.len == 3001 * 512 && part.unit == KI(64) && part.name_len == 11);
    CHECK(!memcmp(part.name, "a-s002.vmdk", 11));
    CHECK_STR(part.kind, "SPARSE");
    CHECK(!vmdk_format.part(&s.img, 2, &part, &more, &e) && !more);
    CHECK(!vmdk_format.facts(&s.img, &f, &e) && !f.dirty);
    CHECK_STR(f.fact[0].text, "twoGbMaxExtentSparse");
    vmdk_set_text(&box, "RW 3001", "RW 9001"); /* the header rules */
    CHECK(!vmdk_set_open(&s, &box.blk, &box, NULL, &e) && s.img.size == (8192 + 3001) * 512);
    CHECK(!vmdk_format.facts(&s.img, &f, &e) && f.dirty);
    /* Before its files are attached, the image can say what they are. */
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    struct set_file first = s.file[0];
    struct image img;
    CHECK(!image_open(&img, &first.blk, NULL, mem, &e) && image_lacks(&img) && img.parts == 2);
    CHECK(!vmdk_format.part(&img, 0, &part, &more, &e) && !memcmp(part.name, "a-s001.vmdk", 11));
    CHECK(!vmdk_format.facts(&img, &f, &e));
    CHECK_ERR(&e, OK);
    blk_mem_free(&box);
}

/* A COWD extent by hand: grains of one sector, tables of 4096 entries. */
static void cowd(void)
{
    static struct vmdk_set s;
    struct vmdk_set_make p = {.sectors = {9000}};
    struct blk_mem box;
    struct extent x;
    struct err e = {0};
    u8 h[2048] = "COWD", entry[4];
    vmdk_set_build(&box, &p);
    vmdk_set_truncate(&box, 1, 0);
    put_le32(h + 4, 1), put_le32(h + 8, 3);
    put_le32(h + 12, 9000), put_le32(h + 16, 1), put_le32(h + 20, 4), put_le32(h + 24, 3);
    vmdk_set_put(&box, 1, 0, h, sizeof(h));
    vmdk_set_truncate(&box, 1, 512 * 90);
    put_le32(entry, 5); /* the second table, at sector 5 */
    vmdk_set_put(&box, 1, 2048 + 4, entry, 4);
    put_le32(entry, 40); /* its entries 7 and 8 */
    vmdk_set_put(&box, 1, 5 * 512 + 7 * 4, entry, 4);
    put_le32(entry, 41);
    vmdk_set_put(&box, 1, 5 * 512 + 8 * 4, entry, 4);
    vmdk_set_text(&box, "SPARSE", "VMFSSPARSE");
    vmdk_set_text(&box, "twoGbMaxExtentSparse", "vmfsSparse");
    CHECK(!vmdk_set_open(&s, &box.blk, &box, NULL, &e) && s.img.size == 9000 * 512);
    CHECK_ERR(&e, OK);
    CHECK(!vmdk_format.map(&s.img, 0, UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_HOLE && x.len == 4096 * 512);
    CHECK(!vmdk_format.map(&s.img, 4103 * 512 + 5, UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_DATA && x.slot == 1 && x.off == 40 * 512 + 5 && x.len == 1024 - 5);
    vmdk_set_text(&box, "parentCID=ffffffff", "parentCID=00000001");
    CHECK(!vmdk_set_open(&s, &box.blk, &box, NULL, &e));
    CHECK(!vmdk_format.map(&s.img, 0, UINT64_MAX, &x, &e) && x.kind == EXTENT_HOLE);
    static const struct {
        u32 off, val;
        enum err_code code;
    } bad[] = {{4, 2, ERR_UNSUPPORTED_FEATURE}, {12, 0, ERR_UNSUPPORTED_SUBFORMAT},
               {16, 0, ERR_OVERLAY_CORRUPT},    {16, 3, ERR_OVERLAY_CORRUPT},
               {20, 3, ERR_OVERLAY_CORRUPT},    {20, 0xffffffff, ERR_OVERLAY_CORRUPT},
               {24, 2, ERR_OVERLAY_CORRUPT},    {0, 7, ERR_OVERLAY_CORRUPT}};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct blk_mem copy;
        e = (struct err){0};
        test_note("%u at %u", bad[i].val, bad[i].off);
        blk_mem_over(&copy, &box);
        put_le32(entry, bad[i].val);
        vmdk_set_put(&copy, 1, bad[i].off, entry, 4);
        vmdk_set_open(&s, &copy.blk, &copy, NULL, &e);
        CHECK_ERR(&e, bad[i].code);
        blk_mem_free(&copy);
    }
    test_note("%s", "");
    blk_mem_free(&box);
}

/* ---- what is refused ---- */

/* clang-format off */
static const struct {
    const char *name, *type, *from, *to;
    enum err_code code;
} damages[] = {
    { "no CID", NULL, "\nCID=", "\nXID=", ERR_OVERLAY_CORRUPT },
    { "no parentCID", NULL, "parentCID", "p", ERR_OVERLAY_CORRUPT },
    { "no type", NULL, "createType", "c", ERR_UNSUPPORTED_SUBFORMAT },
    { "seSparse", NULL, "twoGbMaxExtentSparse", "seSparse", ERR_UNSUPPORTED_SUBFORMAT },
    { "fullDevice", NULL, "twoGbMaxExtentSparse", "fullDevice", ERR_UNSUPPORTED_SUBFORMAT },
    { "streamOptimized", NULL, "twoGbMaxExtentSparse", "streamOptimized",
      ERR_UNSUPPORTED_SUBFORMAT },
    { "read-only", NULL, "RW 8192", "RDONLY 8192", ERR_UNSUPPORTED_SUBFORMAT },
    { "no access", NULL, "RW 8192", "NOACCESS 8192", ERR_UNSUPPORTED_SUBFORMAT },
    { "no extent", NULL, "RW 8192 SPARSE \"a-s001.vmdk\"\nRW 1024", "#", ERR_OVERLAY_CORRUPT },
    { "a zero extent", NULL, "SPARSE \"a-s002.vmdk\"", "ZERO", ERR_OVERLAY_CORRUPT },
    { "flat among sparse", NULL, "SPARSE \"a-s002.vmdk\"", "FLAT \"a-s002.vmdk\" 0",
      ERR_OVERLAY_CORRUPT },
    { "no name", NULL, "\"a-s002.vmdk\"", "", ERR_OVERLAY_CORRUPT },
    { "an open name", NULL, "\"a-s002.vmdk\"", "\"a-s002.vmdk", ERR_OVERLAY_CORRUPT },
    { "an empty name", NULL, "\"a-s002.vmdk\"", "\"\"", ERR_OVERLAY_CORRUPT },
    { "an offset", NULL, "\"a-s002.vmdk\"", "\"a-s002.vmdk\" 7", ERR_OVERLAY_CORRUPT },
    { "words behind the name", NULL, "\"a-s002.vmdk\"", "\"a-s002.vmdk\" x", ERR_OVERLAY_CORRUPT },
    { "a negative size", NULL, "RW 8192", "RW -8192", ERR_OVERLAY_CORRUPT },
    { "a size of 0", NULL, "RW 8192", "RW 0", ERR_OVERLAY_CORRUPT },
    { "a huge size", NULL, "RW 8192", "RW 18446744073709551615", ERR_OVERLAY_CORRUPT },
    { "a larger one", NULL, "RW 8192", "RW 99999999999999999999999", ERR_OVERLAY_CORRUPT },
    { "another file", NULL, "a-s002.vmdk", "a-s031.vmdk", ERR_READ_FAILED },
    { "the same file", NULL, "a-s002.vmdk", "a-s001.vmdk", ERR_LOOP },
    { "flat: shorter", "twoGbMaxExtentFlat", "RW 1024", "RW 1025", ERR_OVERLAY_CORRUPT },
    { "flat: no offset", "twoGbMaxExtentFlat", "\"a-f002.vmdk\" 0", "\"a-f002.vmdk\"",
      ERR_OVERLAY_CORRUPT },
    { "flat: another offset", "twoGbMaxExtentFlat", "\"a-f002.vmdk\" 0", "\"a-f002.vmdk\" 1",
      ERR_OVERLAY_CORRUPT },
    { "flat: a negative offset", "twoGbMaxExtentFlat", "\"a-f002.vmdk\" 0", "\"a-f002.vmdk\" -1",
      ERR_OVERLAY_CORRUPT },
    { "flat: a huge offset", "twoGbMaxExtentFlat", "\"a-f002.vmdk\" 0",
      "\"a-f002.vmdk\" 36028797018963967", ERR_OVERLAY_CORRUPT },
    { "flat: huge", "twoGbMaxExtentFlat", "RW 8192", "RW 18014398509481983", ERR_OVERLAY_CORRUPT },
    { "flat: two, of one", "twoGbMaxExtentFlat", "twoGbMaxExtentFlat", "monolithicFlat",
      ERR_OVERLAY_CORRUPT },
};
/* clang-format on */

static void refused_with_a_code(void)
{
    for (unsigned i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        struct vmdk_set_make p = {.type = damages[i].type, .cnt = 2, .sectors = {8192, 1024}};
        static struct vmdk_set s;
        struct blk_mem box;
        struct err e = {0};
        test_note("%s", damages[i].name);
        vmdk_set_build(&box, &p);
        vmdk_set_text(&box, damages[i].from, damages[i].to);
        vmdk_set_open(&s, &box.blk, &box, NULL, &e);
        CHECK_ERR(&e, damages[i].code);
        CHECK(s.img.format == &vmdk_format);
        blk_mem_free(&box);
    }
    test_note("%s", "");
}

/* More extents than disks; a name that is too long; a header that is not the others'. */
static void refused_otherwise(void)
{
    struct vmdk_set_make p = {.type = "twoGbMaxExtentFlat", .sectors = {9}};
    static struct vmdk_set s;
    static char lines[4096], line[400];
    struct blk_mem box;
    struct err e = {0};
    vmdk_set_build(&box, &p);
    for (int i = 0; i < 24; i++)
        strcat(lines, "\nRW 9 FLAT \"a-f001.vmdk\" 0");
    vmdk_set_text(&box, "\nRW 9 FLAT \"a-f001.vmdk\" 0", lines);
    CHECK(vmdk_set_open(&s, &box.blk, &box, NULL, &e) == ERR_UNSUPPORTED_FEATURE);
    CHECK(e.val == 24 && e.off == 23);
    blk_mem_free(&box);
    vmdk_set_build(&box, &p);
    memset(line, 'n', 256);
    vmdk_set_text(&box, "a-f001.vmdk", line);
    e = (struct err){0};
    CHECK(vmdk_set_open(&s, &box.blk, &box, NULL, &e) == ERR_OVERLAY_CORRUPT && e.val == 256);
    blk_mem_free(&box);
    static const struct {
        u32 off, val;
        enum err_code code;
    } bad[] = {{0, 7, ERR_OVERLAY_CORRUPT},           {4, 4, ERR_UNSUPPORTED_FEATURE},
               {8, 0x30003, ERR_UNSUPPORTED_FEATURE}, {12, 0, ERR_UNSUPPORTED_SUBFORMAT},
               {20, 8, ERR_UNSUPPORTED_FEATURE},      {44, 0, ERR_OVERLAY_CORRUPT},
               {44, 513, ERR_OVERLAY_CORRUPT},        {56, 1 << 30, ERR_OVERLAY_CORRUPT}};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct vmdk_set_make q = {.cnt = 2, .sectors = {8192, 1024}};
        u8 val[4];
        e = (struct err){0};
        test_note("%u at %u", bad[i].val, bad[i].off);
        vmdk_set_build(&box, &q);
        put_le32(val, bad[i].val);
        vmdk_set_put(&box, 2, bad[i].off, val, 4);
        vmdk_set_open(&s, &box.blk, &box, NULL, &e);
        CHECK_ERR(&e, bad[i].code);
        blk_mem_free(&box);
    }
    test_note("%s", "");
}

static void judge_notices(void)
{
    static const struct {
        unsigned file;
        u32 off, val;
    } harm[] = {{1, 0, 7},   {1, 12, 99},   {1, 21 * 512, 0}, {1, 21 * 512, 1},
                {2, 56, 21}, {2, 12, 8192}, {2, 22 * 512, 1}, {2, 22 * 512, 22}};
    static const char *const edit[][2] = {{"RW 8192", "RW 8191"},
                                          {"a-s002", "a-s001"},
                                          {"a-s002", "a-s003"},
                                          {"\nRW 1024 SPARSE \"a-s002.vmdk\"", ""},
                                          {"cylinders = \"9\"", "cylinders = \"8\""},
                                          {"kept  as", "kept as"},
                                          {"CID=1", "CiD=1"}};
    struct vmdk_set_make p = {.cnt = 2, .sectors = {8192, 1024}, .every = 3};
    struct blk_mem box;
    struct vmdk_set_verdict good, v;
    u8 val[4];
    vmdk_set_build(&box, &p);
    vmdk_set_judge(&box, MI(5), UINT64_MAX, &good);
    CHECK(good.opens && !good.faults && good.size == good.line_size && good.geometry);
    for (unsigned i = 0; i < 8 + 7; i++) {
        struct blk_mem copy;
        test_note("harm %u", i);
        blk_mem_over(&copy, &box);
        if (i < 8) {
            put_le32(val, harm[i].val);
            vmdk_set_put(&copy, harm[i].file, harm[i].off, val, 4);
        } else {
            vmdk_set_text(&copy, edit[i - 8][0], edit[i - 8][1]);
        }
        vmdk_set_judge(&copy, MI(5), UINT64_MAX, &v);
        CHECK(!v.opens || v.faults || v.size != v.line_size || !v.geometry || v.absent ||
              v.text_hash != good.text_hash || v.hash != good.hash);
        blk_mem_free(&copy);
    }
    test_note("%s", "");
    blk_mem_free(&box);
}

int main(void)
{
    RUN(opens_and_maps);
    RUN(parts_say);
    RUN(cowd);
    RUN(refused_with_a_code);
    RUN(refused_otherwise);
    RUN(judge_notices);
    return test_end();
}
