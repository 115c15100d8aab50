/* SPDX-License-Identifier: MIT
 *
 * VMDK: probing, opening, map() and facts; the descriptor's text; which kinds are refused by their
 * names; what is refused as damaged, with its code; and the judge itself, which must notice every
 * kind of damage.
 */
#include "copy.h"
#include "test.h"
#include "vmdk_judge.h"
#include "vmdk_make.h"

static int open_as(struct blk_mem *m, const char *name, struct image *img, struct err *e)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    return image_open(img, &m->blk, name, mem, e);
}

static const struct vmdk_make shapes[] = {
    {.size = MI(5), .every = 3},
    {.size = MI(5) + 512, .every = 2, .last = true, .stale_rest = true, .no_rgd = true},
    {.size = MI(70), .every = 7, .sectors = 2, .shuffled = true, .stale_entries = true},
    {.size = KI(900), .grain = 8, .gtes = 16, .every = 2, .zeroed = true, .version = 2},
    {.size = KI(900), .grain = 8, .gtes = 100, .every = 3, .crlf = true, .version = 3},
    {.size = MI(3) + 1024, .grain = 64, .gtes = 1, .every = 5, .tables_last = true, .slack = 9},
    {.size = MI(40), .every = 9, .sectors = 1, .no_last_table = true, .short_end = true},
    {.size = MI(2), .every = 1, .full = true, .slot = 2, .no_ddb = true},
    {.size = MI(2), .grain = 2048, .every = 1, .pad = 700, .zeroed = true},
    {.size = 512},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void opens_and_maps(void)
{
    for (unsigned i = 0; i < SHAPES; i++) {
        const struct vmdk_make *p = &shapes[i];
        struct vmdk_made made;
        struct blk_mem m;
        struct image img;
        struct vmdk_verdict v;
        struct err e = {0};
        test_note("shape %u", i);
        vmdk_make(&m, p, &made);
        vmdk_judge_mem(&m, p->size, 0, 0, &v);
        if (!CHECK(v.opens && !v.faults && v.geometry))
            printf("    %s %s\n", v.why ? v.why : "", v.first);
        CHECK(!open_as(&m, NULL, &img, &e) && img.format == &vmdk_format);
        if (!CHECK_ERR(&e, OK))
            continue;
        CHECK_EQ_U64(img.size, p->size);
        CHECK_EQ_U64(img.unit, 512 * (p->grain ? p->grain : 128));
        CHECK_EQ_U64(img.u.vmdk.entries, made.entries);
        CHECK_EQ_U64(img.u.vmdk.text->cid, 0x12345678);
        CHECK_EQ_U64(img.u.vmdk.text->line[0].sectors.val, p->size / 512);
        struct image_part part;
        bool more;
        CHECK(!vmdk_format.part(&img, 0, &part, &more, &e) && more && part.len == p->size);
        CHECK(part.name_len == 8 && !memcmp(part.name, "a b.vmdk", 8) && part.unit == img.unit);
        CHECK(!vmdk_format.part(&img, 1, &part, &more, &e) && !more);
        u8 *all = malloc(p->size);
        CHECK(!chain_read(&img, 0, all, p->size, &e));
        CHECK_EQ_U64(vmdk_judge_plain(all, p->size), v.hash);
        CHECK(v.hash || !p->every);
        free(all);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* Runs of extents: as long as what they describe, of the right kind. */
static void maps_runs(void)
{
    struct vmdk_make p = {.size = MI(70), .every = 1, .zeroed = true};
    struct vmdk_made made;
    struct blk_mem m;
    struct image img;
    struct extent x;
    struct err e = {0};
    vmdk_make(&m, &p, &made);
    CHECK(!open_as(&m, "vmdk", &img, &e));
    CHECK(!vmdk_format.map(&img, 100, UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_DATA && x.len == MI(32) - 100 && x.voff == 100);
    CHECK(!vmdk_format.map(&img, MI(64), MI(1), &x, &e) && x.len == MI(1));
    blk_mem_free(&m);
    p = (struct vmdk_make){.size = MI(70), .child = true};
    vmdk_make(&m, &p, &made);
    CHECK(!open_as(&m, "vmdk", &img, &e));
    CHECK(!vmdk_format.map(&img, MI(33), UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_HOLE && x.len == MI(31));
    CHECK_ERR(&e, OK);
    blk_mem_free(&m);
}

static const struct fact *fact(const struct facts *f, const char *key)
{
    for (unsigned i = 0; i < f->cnt; i++)
        if (!strcmp(f->fact[i].key, key))
            return &f->fact[i];
    return NULL;
}

static void facts_say(void)
{
    static struct facts f;
    struct vmdk_make p = {.size = MI(5), .child = true};
    struct vmdk_made made;
    struct blk_mem m;
    struct image img;
    struct err e = {0};
    vmdk_make(&m, &p, &made);
    CHECK(!open_as(&m, NULL, &img, &e) && !vmdk_format.facts(&img, &f, &e));
    CHECK(fact(&f, "cid")->number == 0x12345678 && fact(&f, "parent cid")->number == 0x87654321);
    CHECK_STR(fact(&f, "create type")->text, "monolithicSparse");
    CHECK_STR(fact(&f, "parent file name hint")->text, "parent.vmdk");
    CHECK(fact(&f, "grain size")->number == 65536);
    CHECK(!f.dirty && f.backing_len == 11);
    CHECK_STR(f.backing, "parent.vmdk");
    CHECK_STR(f.backing_format, "vmdk");
    vmdk_make_text(&m, "parentCID=87654321", "parentCID=FFFFFFFF"); /* a parent that is no VMDK */
    f = (struct facts){0};
    CHECK(!open_as(&m, NULL, &img, &e) && !vmdk_format.facts(&img, &f, &e));
    CHECK(f.backing_len == 11 && !f.backing_format[0]);
    blk_mem_put(&m, VMH_UNCLEAN_SHUTDOWN, "\1", 1);
    f = (struct facts){0};
    CHECK(!open_as(&m, NULL, &img, &e) && !vmdk_format.facts(&img, &f, &e) && f.dirty);
    blk_mem_free(&m);
}

/* ---- other kinds ---- */

static void other_kinds(void)
{
    static const struct {
        const char *text, *name;
    } kind[] = {
        {"# Disk DescriptorFile\nversion=1\nCID=1\ncreateType=\"fullDevice\"\n", "fullDevice"},
        {"# c\r\n\r\n  version = 3\r\ncreateType=\"partitionedDevice\"\r\n",
         "partitionedDevice"},
        {"version=2\ncreateType=\"vmfsRaw\"\nRW 99 VMFSRAW \"x-flat.vmdk\"\n", "vmfsRaw"},
        {"version=1\n", "(none)"},
        {"COWD\1\0\0\0", "vmfsSparse (COWD), without its descriptor"},
        {"\xbe\xba\xfe\xca", "seSparse"},
    };
    for (unsigned i = 0; i < sizeof kind / sizeof kind[0]; i++) {
        struct blk_mem m;
        struct image img;
        struct err e = {0};
        test_note("%s", kind[i].name);
        blk_mem_init(&m, 0, 512);
        blk_mem_put(&m, 0, kind[i].text, strlen(kind[i].text));
        blk_mem_truncate(&m, i < 4 ? m.length : 4096);
        CHECK(open_as(&m, NULL, &img, &e) && img.format == &vmdk_format);
        CHECK_ERR(&e, ERR_UNSUPPORTED_SUBFORMAT);
        CHECK_STR(e.name, kind[i].name);
        blk_mem_free(&m);
    }
    static const char *const none[] = {"version=4\n", "# c\nCID=1\nversion=1\n", "version=11\n",
                                       "# only comments\n", "versions=1\n"};
    for (unsigned i = 0; i < sizeof none / sizeof none[0]; i++) {
        struct blk_mem m;
        struct image img;
        struct err e = {0};
        test_note("%s", none[i]);
        blk_mem_init(&m, 0, 512);
        blk_mem_put(&m, 0, none[i], strlen(none[i]));
        CHECK(!open_as(&m, NULL, &img, &e) && img.format == &raw_format);
        CHECK(open_as(&m, "vmdk", &img, &e) == ERR_PARSE_FAILED);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* A stream: its directory is named by a footer, its grains are packed. */
static void streams(void)
{
    struct vmdk_make p = {.size = MI(5), .every = 4};
    struct vmdk_made made;
    struct blk_mem m;
    struct image img;
    struct extent x;
    struct err e = {0};
    u8 h[512], sector[512] = {0}, off[4];
    vmdk_make(&m, &p, &made);
    vmdk_make_text(&m, "monolithicSparse", "streamOptimized");
    blk_mem_get(&m, 0, h, 512);
    put_le32(h + VMH_VERSION, 3);
    put_le32(h + VMH_FLAGS, VMDK_NEWLINES | VMDK_COMPRESSED | VMDK_MARKERS);
    h[VMH_COMPRESS_ALGORITHM] = 1;
    u64 end = round_up(m.length, 512);
    blk_mem_truncate(&m, end + 1536);
    sector[0] = 1, sector[12] = 3;
    blk_mem_put(&m, end, sector, 512);
    blk_mem_put(&m, end + 512, h, 512);
    blk_mem_put(&m, end + 1024, (u8[512]){0}, 512);
    put_le64(h + VMH_GD_OFFSET, UINT64_MAX);
    blk_mem_put(&m, 0, h, 512);
    blk_mem_get(&m, made.table + 4 * 4, off, 4); /* the fifth grain, which is there */
    memset(sector, 0, sizeof(sector));
    put_le64(sector, 4 * 128);
    put_le32(sector + 8, 1000);
    blk_mem_put(&m, le32(off) * 512ull, sector, 512);
    CHECK(!open_as(&m, NULL, &img, &e) && img.size == MI(5));
    CHECK_ERR(&e, OK);
    CHECK(!vmdk_format.map(&img, 4 * KI(64) + 9, UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_PACKED && x.packed_len == 1000 && x.off == le32(off) * 512ull + 12);
    CHECK(x.len == KI(64) - 9);
    CHECK(!vmdk_format.map(&img, KI(64), UINT64_MAX, &x, &e) && x.kind == EXTENT_HOLE);
    CHECK(vmdk_format.map(&img, 8 * KI(64), UINT64_MAX, &x, &e) == ERR_OVERLAY_CORRUPT);
    e = (struct err){0};
    blk_mem_put(&m, end + 12, "\4", 1);
    CHECK(open_as(&m, NULL, &img, &e) == ERR_OVERLAY_CORRUPT);
    CHECK_STR(e.what, "Invalid footer");
    blk_mem_free(&m);
}

/* ---- damage ---- */

struct damage {
    const char *name;
    u32 off, len; /* in the header; len 0: none */
    u64 val;
    const char *from, *to; /* in the descriptor */
    enum err_code code;
};

/* clang-format off */
static const struct damage damages[] = {
    { "version 0", VMH_VERSION, 4, 0, NULL, NULL, ERR_UNSUPPORTED_FEATURE },
    { "version 4", VMH_VERSION, 4, 4, NULL, NULL, ERR_UNSUPPORTED_FEATURE },
    { "no newlines", VMH_NEWLINES, 4, 0, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "newlines of text mode", VMH_NEWLINES, 4, 0x0a0d0a20, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "gtes 0", VMH_NUM_GTES_PER_GT, 4, 0, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "gtes 513", VMH_NUM_GTES_PER_GT, 4, 513, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "gtes all ones", VMH_NUM_GTES_PER_GT, 4, 0xffffffff, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "grain 0", VMH_GRAIN_SIZE, 8, 0, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "grain 1", VMH_GRAIN_SIZE, 8, 1, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "grain 3", VMH_GRAIN_SIZE, 8, 3, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "grain 100", VMH_GRAIN_SIZE, 8, 100, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "grain over 1 GiB", VMH_GRAIN_SIZE, 8, 1 << 22, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "grain 2^63", VMH_GRAIN_SIZE, 8, 1ull << 63, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "capacity 0", VMH_CAPACITY, 8, 0, NULL, NULL, ERR_UNSUPPORTED_SUBFORMAT },
    { "capacity huge", VMH_CAPACITY, 8, 1ull << 62, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "capacity all ones", VMH_CAPACITY, 8, UINT64_MAX, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "capacity past the directory", VMH_CAPACITY, 8, 1ull << 40, NULL, NULL,
      ERR_OVERLAY_CORRUPT },
    { "capacity past the file", VMH_CAPACITY, 8, 1ull << 36, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "directory 0", VMH_GD_OFFSET, 8, 0, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "directory past the end", VMH_GD_OFFSET, 8, 1 << 30, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "directory at the end, no stream", VMH_GD_OFFSET, 8, UINT64_MAX, NULL, NULL,
      ERR_OVERLAY_CORRUPT },
    { "directory on the descriptor", VMH_GD_OFFSET, 8, 20, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "directories are one", VMH_GD_OFFSET, 8, 21, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "redundant directory 0", VMH_RGD_OFFSET, 8, 0, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "redundant directory far", VMH_RGD_OFFSET, 8, 1ull << 60, NULL, NULL,
      ERR_OVERLAY_CORRUPT },
    { "descriptor on the header", VMH_DESCRIPTOR_OFFSET, 8, 1ull << 55, NULL, NULL,
      ERR_OVERLAY_CORRUPT },
    { "no descriptor", VMH_DESCRIPTOR_OFFSET, 8, 0, NULL, NULL, ERR_UNSUPPORTED_SUBFORMAT },
    { "descriptor of no size", VMH_DESCRIPTOR_SIZE, 8, 0, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "descriptor of 2 MiB", VMH_DESCRIPTOR_SIZE, 8, 4096, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "overhead past the end", VMH_OVERHEAD, 8, 1 << 30, NULL, NULL, ERR_OVERLAY_CORRUPT },
    { "compressed, no markers", VMH_FLAGS, 4, VMDK_COMPRESSED, NULL, NULL,
      ERR_UNSUPPORTED_FEATURE },
    { "no CID", 0, 0, 0, "CID=12345678\n", "", ERR_OVERLAY_CORRUPT },
    { "no parentCID", 0, 0, 0, "parentCID=ffffffff\n", "", ERR_OVERLAY_CORRUPT },
    { "CID of nine digits", 0, 0, 0, "CID=1234", "CID=12345", ERR_OVERLAY_CORRUPT },
    { "CID empty", 0, 0, 0, "CID=12345678", "CID=", ERR_OVERLAY_CORRUPT },
    { "CID no number", 0, 0, 0, "CID=1", "CID=g", ERR_OVERLAY_CORRUPT },
    { "CID with a control character", 0, 0, 0, "CID=1", "CID=\x11", ERR_OVERLAY_CORRUPT },
    { "another type", 0, 0, 0, "monolithicSparse", "monolithicFlat",
      ERR_UNSUPPORTED_SUBFORMAT },
    { "no type", 0, 0, 0, "createType", "creatorType", ERR_UNSUPPORTED_SUBFORMAT },
    { "negative sectors", 0, 0, 0, "RW 1", "RW -1", ERR_OVERLAY_CORRUPT },
    { "huge sectors", 0, 0, 0, "RW 1", "RW 99999999999999999991", ERR_OVERLAY_CORRUPT },
    { "large sectors", 0, 0, 0, "RW 1", "RW 9999999999999991", ERR_OVERLAY_CORRUPT },
    { "no sectors", 0, 0, 0, "RW 10240", "RW", ERR_OVERLAY_CORRUPT },
    { "sectors and letters", 0, 0, 0, "RW 10240", "RW 10240x", ERR_OVERLAY_CORRUPT },
    { "no extent", 0, 0, 0, "RW 10240", "# 10240", ERR_OVERLAY_CORRUPT },
    { "a flat extent", 0, 0, 0, " SPARSE ", " FLAT ", ERR_OVERLAY_CORRUPT },
    { "two extents", 0, 0, 0, "RW 1", "RW 5 SPARSE \"b\"\nRW 1", ERR_OVERLAY_CORRUPT },
    { "bad cylinders", 0, 0, 0, "cylinders = \"", "cylinders = \"-", ERR_OVERLAY_CORRUPT },
    { "empty text", 0, 0, 0, "# Disk DescriptorFile", "", ERR_UNSUPPORTED_SUBFORMAT },
};
/* clang-format on */

static void refused_with_a_code(void)
{
    for (unsigned i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        const struct damage *d = &damages[i];
        struct vmdk_make p = {.size = MI(5), .every = 3};
        struct vmdk_made made;
        struct blk_mem m;
        struct image img;
        struct err e = {0};
        u8 val[8];
        test_note("%s", d->name);
        vmdk_make(&m, &p, &made);
        put_le64(val, d->val);
        if (d->len)
            blk_mem_put(&m, d->off, val, d->len);
        else if (!strcmp(d->name, "empty text"))
            blk_mem_clear(&m, 512, 20 * 512);
        else
            vmdk_make_text(&m, d->from, d->to);
        open_as(&m, NULL, &img, &e);
        CHECK_ERR(&e, d->code);
        CHECK(img.format == &vmdk_format && e.what);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* Entries are followed by map() only where they lead to bytes that can be the guest's. */
static void entries_that_lie(void)
{
    static const u32 bad[] = {1, 2, 20, 21, 0x7fffffff, 0xffffffff};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        for (int where = 0; where < 2; where++) {
            struct vmdk_make p = {.size = MI(5), .every = 3};
            struct vmdk_made made;
            struct blk_mem m;
            struct image img;
            struct extent x;
            struct err e = {0};
            u8 val[4];
            test_note("%u in a %s", bad[i], where ? "table" : "directory");
            vmdk_make(&m, &p, &made);
            put_le32(val, bad[i]);
            blk_mem_put(&m, where ? made.table : made.gd, val, 4);
            CHECK(!open_as(&m, NULL, &img, &e));
            CHECK(vmdk_format.map(&img, 0, UINT64_MAX, &x, &e) == ERR_OVERLAY_CORRUPT);
            blk_mem_free(&m);
        }
    test_note("%s", "");
}

static void judge_notices(void)
{
    static const struct {
        u32 which, val; /* 0: first table, 1: directory, 2: second directory, 3: header */
        u32 off;
    } harm[] = {
        {0, 1, 0}, {0, 77, 12}, {0, 0x7ffffff, 4},          {1, 77, 0},   {1, 21, 0},
        {2, 0, 0}, {2, 23, 0},  {3, 0x10000, VMH_CAPACITY}, {0, 9999, 8}, {3, 1, VMH_GD_OFFSET}};
    for (unsigned i = 0; i < sizeof harm / sizeof harm[0]; i++) {
        struct vmdk_make p = {.size = MI(5), .every = 3};
        struct vmdk_made made;
        struct blk_mem m;
        struct vmdk_verdict v;
        u8 val[4];
        test_note("harm %u", i);
        vmdk_make(&m, &p, &made);
        const u64 at[] = {made.table, made.gd, made.rgd, 0};
        put_le32(val, harm[i].val);
        blk_mem_put(&m, at[harm[i].which] + harm[i].off, val, 4);
        vmdk_judge_mem(&m, 0, 0, 0, &v);
        CHECK(!v.opens || v.faults || v.torn || v.text_size != v.size || v.absent);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

int main(void)
{
    RUN(opens_and_maps);
    RUN(maps_runs);
    RUN(facts_say);
    RUN(other_kinds);
    RUN(streams);
    RUN(refused_with_a_code);
    RUN(entries_that_lie);
    RUN(judge_notices);
    return test_end();
}
