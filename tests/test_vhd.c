/* SPDX-License-Identifier: MIT
 *
 * VHD: geometry and sizes against the values that qemu-img gives, probing, opening, map() and
 * facts; what is refused, with its code, and the file left as it was; and the judge itself, which
 * must notice every kind of damage.
 */
#include "copy.h"
#include "test.h"
#include "vhd_judge.h"
#include "vhd_make.h"
#include "vhd_run.h"
#include "vhd_size.h"

static struct vhd made_by(const char *creator, u64 current, struct vhd_geometry g)
{
    struct vhd v = {.current_size = current, .geometry = g};
    memcpy(v.creator, creator, 4);
    return v;
}

static void geometry(void)
{
    /* what qemu-img 7.2 made of these sizes */
    static const u64 size[][2] = {
        {1, 34816},          {MI(10), 10514432},    {MI(20), 20994048},      {MI(64), 67125248},
        {GI(1), 1073995776}, {GI(20), 21475270656}, {GI(127), 136365219840}, {GI(128), GI(128)},
        {GI(2040), GI(2040)}};
    struct vhd v = made_by("qemu", 0, (struct vhd_geometry){0});
    for (unsigned i = 0; i < sizeof size / sizeof size[0]; i++) {
        struct vhd_size s = vhd_fit(&v, 0, size[i][0]);
        test_note("%llu bytes", (unsigned long long)size[i][0]);
        CHECK_EQ_U64(s.size, size[i][1]);
        CHECK_EQ_U64(s.current_size, s.size);
        CHECK_EQ_U64(vhd_fit(&v, 0, s.size).size, s.size); /* what fits once fits as it is */
    }
    u64 seed = test_seed(0x6a09e667f3bcc908);
    for (int i = 0; i < 20000; i++) {
        u64 sectors = rnd_below(&seed, 1ull << (1 + rnd_below(&seed, 33)));
        struct vhd_geometry g = vhd_chs(sectors);
        test_note("%llu sectors", (unsigned long long)sectors);
        CHECK(g.heads >= 4 && g.heads <= 16 && vhd_chs_sectors(g) <= sectors);
        u64 clamped = min_u64(sectors, VHD_CHS_MAX);
        CHECK(clamped - vhd_chs_sectors(g) < (u64)g.heads * g.sectors);
    }
    struct vhd_geometry g = vhd_chs(MI(20) / 512); /* the specification's own steps, by hand */
    CHECK(g.cylinders == 602 && g.heads == 4 && g.sectors == 17);
    g = vhd_chs(UINT64_MAX);
    CHECK_EQ_U64(vhd_chs_sectors(g), VHD_CHS_MAX);
}

/* Whom each creator's size belongs to, and what a resize writes for it. */
static void creators(void)
{
    static const struct {
        const char *name;
        bool chs;
        u64 size;        /* of a disk that is asked to get 1 GiB */
        u64 chs_product; /* in sectors, that its footer then names */
    } want[] = {
        {"qemu", true, 1073995776, 2097648}, {"vpc ", true, 1073995776, 2097648},
        {"win ", false, GI(1), 2096640},     {"tap\0", false, GI(1), 2096640},
        {"CTXS", false, GI(1), 2096640},     {"d2v ", false, GI(1), 2096640},
        {"vbox", false, GI(1), VHD_CHS_MAX}, {"wa\0\0", false, GI(1), VHD_CHS_MAX},
        {"vs  ", false, GI(1), VHD_CHS_MAX}, {"\1\2\3\4", false, GI(1), VHD_CHS_MAX},
    };
    for (unsigned i = 0; i < sizeof want / sizeof want[0]; i++) {
        struct vhd v = made_by(want[i].name, MI(20), vhd_chs(MI(20) / 512));
        test_note("%.4s", want[i].name);
        CHECK(vhd_by_chs(&v) == want[i].chs);
        struct vhd_size s = vhd_fit(&v, MI(20), GI(1));
        CHECK_EQ_U64(s.size, want[i].size);
        CHECK_EQ_U64(vhd_chs_sectors(s.geometry), want[i].chs_product);
        v.geometry = (struct vhd_geometry){65535, 16, 255};
        CHECK(!vhd_by_chs(&v));
    }
    struct vhd v = made_by("qem2", MI(20), (struct vhd_geometry){65535, 16, 255});
    CHECK_EQ_U64(vhd_chs_sectors(vhd_fit(&v, MI(20), GI(1)).geometry), VHD_CHS_MAX);
    /* exact by either rule where a geometry says it */
    v = made_by("vbox", MI(20), vhd_chs(MI(20) / 512));
    CHECK_EQ_U64(vhd_chs_sectors(vhd_fit(&v, MI(20), 10514432).geometry) * 512, 10514432);
    /* an odd geometry of somebody's: a shrink never grows it; a grow covers current_size */
    v = made_by("vpc ", GI(3), (struct vhd_geometry){1000, 8, 33});
    u64 now = 1000ull * 8 * 33 * 512;
    CHECK_EQ_U64(vhd_fit(&v, now, now - 512).size, now);
    CHECK_EQ_U64(vhd_fit(&v, now, now - 512).current_size, GI(3));
    CHECK(vhd_fit(&v, now, now + 512).size < now + MI(3)); /* GI(3) is not rounding */
    v.current_size = now + MI(1);
    CHECK(vhd_fit(&v, now, now + 512).size >= now + MI(1));
    CHECK(vhd_fit(&v, now, now / 2).size >= now / 2);
    CHECK(vhd_fit(&v, now, now / 2).size < now);
}

static void grow_query(void)
{
    struct vhd_grow_in in = {10, 10, 1536, 2048, 99 * 512, 99 * 512};
    CHECK(vhd_grow_query(&in).action == VHD_TABLE_ENOUGH);
    in.want = 128;
    CHECK(vhd_grow_query(&in).action == VHD_TABLE_IN_PLACE);
    in.want = 129;
    struct vhd_grow g = vhd_grow_query(&in);
    CHECK(g.action == VHD_TABLE_MOVES && g.entries == 129);
    CHECK_EQ_U64(g.table_offset, 100 * 512); /* behind the footer */
    in.tail = 102 * 512;
    CHECK_EQ_U64(vhd_grow_query(&in).table_offset, 99 * 512); /* in front of it */
    in.tail = 100 * 512;
    CHECK_EQ_U64(vhd_grow_query(&in).table_offset, 101 * 512);
    in.tail = 0;
    in.used_end = 99 * 512 - 7;
    CHECK_EQ_U64(vhd_grow_query(&in).table_offset, 99 * 512);
    in.want = 1, in.entries = 0, in.next = 1536 + 512;
    CHECK(vhd_grow_query(&in).action == VHD_TABLE_IN_PLACE);
}

/* ---- opening ---- */

static const struct vhd_make small = {.block_size = 4096,
                                      .size = KI(400),
                                      .every = 3,
                                      .last = true,
                                      .creator = "qem2",
                                      .geometry = GEOMETRY_MAX};

static void probing(void)
{
    struct vhd_make p = small;
    struct vhd_made made;
    struct blk_mem m;
    struct image img;
    struct err e = {0};
    vhd_make(&m, &p, &made);
    CHECK(!vhd_run_open(&m.blk, NULL, &img, &e) && img.format == &vhd_format && img.probed);
    CHECK(!vhd_run_open(&m.blk, "raw", &img, &e) && img.format == &raw_format);
    CHECK(!vhd_run_open(&m.blk, "vpc", &img, &e) && !img.probed);
    CHECK(img.size == made.size && img.unit == 4096);
    blk_mem_free(&m);
    p = (struct vhd_make){.type = VHD_FIXED, .size = KI(100)};
    vhd_make(&m, &p, &made);
    CHECK(!vhd_run_open(&m.blk, NULL, &img, &e) && img.format == &vhd_format);
    CHECK(img.size == made.size && !img.unit && m.length == made.size + 512);
    /* even a footer that is damaged is not raw */
    blk_mem_put(&m, m.length - 100, "x", 1);
    CHECK(vhd_run_open(&m.blk, NULL, &img, &e) && img.format == &vhd_format);
    CHECK_ERR(&e, ERR_OVERLAY_CORRUPT);
    blk_mem_put(&m, m.length - 512, "\0\0\0\0\0\0\0", 8);
    e = (struct err){0};
    CHECK(!vhd_run_open(&m.blk, NULL, &img, &e) && img.format == &raw_format);
    CHECK(vhd_run_open(&m.blk, "vpc", &img, &e));
    CHECK_ERR(&e, ERR_PARSE_FAILED);
    blk_mem_put(&m, m.length - 511, "conectix", 8);
    e = (struct err){0};
    CHECK(vhd_run_open(&m.blk, NULL, &img, &e));
    CHECK_ERR(&e, ERR_UNSUPPORTED_SUBFORMAT);
    blk_mem_free(&m);
    blk_mem_init(&m, 511, 512);
    e = (struct err){0};
    CHECK(vhd_run_open(&m.blk, "vpc", &img, &e));
    CHECK_STR(e.what, "File too small for a VHD header");
    blk_mem_free(&m);
}

static void mapping(void)
{
    struct vhd_make p = small;
    struct vhd_made made;
    struct blk_mem m;
    struct image img;
    struct extent x;
    struct err e = {0};
    p.stale_bits = true;
    vhd_make(&m, &p, &made);
    CHECK(!vhd_run_open(&m.blk, NULL, &img, &e));
    CHECK(!img.format->map(&img, 0, UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_DATA && x.len == 512 && x.off == made.table_offset + 512 + 512);
    CHECK(!img.format->map(&img, 512, UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_ZERO && x.len == 512 && x.off == 0);
    CHECK(!img.format->map(&img, 1024 + 7, 100, &x, &e));
    CHECK(x.kind == EXTENT_DATA && x.len == 100 && x.off == made.table_offset + 1024 + 1024 + 7);
    CHECK(!img.format->map(&img, 4096 + 1, UINT64_MAX, &x, &e));
    CHECK(x.kind == EXTENT_ZERO && x.len == 2 * 4096 - 1);
    CHECK(!img.format->map(&img, 4096, 5000, &x, &e) && x.len == 5000);
    struct facts f = {0};
    CHECK(!img.format->facts(&img, &f, &e) && f.cnt == 9 && !f.dirty);
    CHECK_STR(f.fact[0].text, "dynamic");
    CHECK_STR(f.fact[1].text, "qem2");
    CHECK_EQ_U64(f.fact[7].number, 4096);
    blk_mem_free(&m);
}

/* A child's footer is of type 4; what is not there is its parent's. */
static void differencing(void)
{
    struct vhd_make p = small;
    struct vhd_made made;
    struct blk_mem m;
    struct image img;
    struct extent x;
    struct err e = {0};
    struct facts f = {0};
    u64 length;
    p.type = VHD_DIFFERENCING;
    vhd_make(&m, &p, &made);
    CHECK(!vhd_run_open(&m.blk, NULL, &img, &e) && img.size == made.size);
    CHECK(!img.format->facts(&img, &f, &e));
    CHECK_STR(f.fact[0].text, "differencing");
    CHECK(!img.format->map(&img, 4096, UINT64_MAX, &x, &e) && x.kind == EXTENT_HOLE);
    for (int i = 0; i < 2; i++) {
        e = (struct err){0};
        vhd_run(&m.blk, i ? KI(40) : MI(4), PREALLOC_OFF, &length, &e);
        CHECK_ERR(&e, ERR_UNSUPPORTED_SUBFORMAT);
    }
    blk_mem_free(&m);
}

/* ---- what a killed run leaves ---- */

static void unfinished(void)
{
    struct vhd_make p = small;
    struct vhd_made made;
    struct blk_mem m;
    struct image img;
    struct vhd_verdict v, old;
    struct err e = {0};
    struct facts f = {0};
    for (int how = 0; how < 3; how++) {
        u8 footer[VF_LENGTH];
        f = (struct facts){0};
        vhd_make(&m, &p, &made);
        blk_mem_get(&m, 0, footer, VF_LENGTH);
        vhd_judge_mem(&m, made.size, 0, 0, &old);
        if (how == 0) { /* the file got longer */
            blk_mem_truncate(&m, m.length + 3000);
        } else if (how == 1) { /* the footer is gone */
            blk_mem_truncate(&m, m.length - 512);
        } else { /* only the head says the new size */
            put_be64(footer + VF_CURRENT_SIZE, made.size - 512);
            blk_mem_put(&m, 0, footer, VF_LENGTH);
            vhd_make_footer_sum(&m, 0);
        }
        test_note("how %d", how);
        CHECK(!vhd_run_open(&m.blk, NULL, &img, &e));
        CHECK_EQ_U64(img.size, how == 2 ? made.size - 512 : made.size);
        CHECK(!img.format->facts(&img, &f, &e) && f.dirty);
        f = (struct facts){0};
        u64 size = img.size;
        CHECK(!vhd_run_mem(&m, size, &e)); /* to the size that it has */
        vhd_judge_mem(&m, made.size, size, UINT64_MAX, &v);
        CHECK(v.opens && !v.faults && v.tail_same && v.settled && v.size == size && v.zero);
        CHECK(how == 2 || v.hash == old.hash);
        CHECK(!vhd_run_open(&m.blk, NULL, &img, &e) && !img.format->facts(&img, &f, &e) &&
              !f.dirty);
        blk_mem_free(&m);
    }
}

/* A resize to the size that a disk has writes nothing where there is nothing to mend. */
static void nothing_to_do(void)
{
    for (int i = 0; i < 3; i++) {
        struct vhd_make p = small;
        struct vhd_made made;
        struct blk_mem m, now;
        struct err e = {0};
        u64 at;
        p.size -= 512;
        p.stale_rest = true;
        p.extra_entries = 4;
        p.type = (u32[]){0, VHD_FIXED, VHD_DIFFERENCING}[i];
        vhd_make(&m, &p, &made);
        blk_mem_over(&now, &m);
        test_note("%d", i);
        CHECK(!vhd_run_mem(&now, made.size, &e));
        CHECK_ERR(&e, OK);
        CHECK(now.writes == 0 && blk_mem_equal(&now, &m, &at));
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
}

/* ---- what is refused ---- */

enum sums { SUM_NONE, SUM_HEAD = 1, SUM_TAIL = 2, SUM_HEADER = 4, SUM_BOTH = 3 };

struct damage {
    const char *name;
    enum { IN_HEAD, IN_TAIL, IN_BOTH, IN_HEADER, IN_TABLE } where;
    u32 off, len;
    u64 value;
    enum sums sums; /* which checksums are set right afterwards */
    enum err_code code;
};

static const struct damage damages[] = {
    {"head checksum", IN_HEAD, 200, 1, 1, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"tail checksum", IN_TAIL, 200, 1, 1, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"both checksums", IN_BOTH, VF_CHECKSUM, 4, 7, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"head cookie", IN_HEAD, 0, 1, 'C', SUM_HEAD, ERR_OVERLAY_CORRUPT},
    {"footer version", IN_BOTH, VF_FILE_FORMAT_VERSION, 4, 0x20000, SUM_BOTH,
     ERR_UNSUPPORTED_FEATURE},
    {"type 0", IN_BOTH, VF_DISK_TYPE, 4, 0, SUM_BOTH, ERR_UNSUPPORTED_SUBFORMAT},
    {"type 1", IN_BOTH, VF_DISK_TYPE, 4, 1, SUM_BOTH, ERR_UNSUPPORTED_SUBFORMAT},
    {"type 2 at the head", IN_BOTH, VF_DISK_TYPE, 4, 2, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"type 4", IN_BOTH, VF_DISK_TYPE, 4, 4, SUM_BOTH, ERR_UNSUPPORTED_SUBFORMAT},
    {"type 5", IN_BOTH, VF_DISK_TYPE, 4, 5, SUM_BOTH, ERR_UNSUPPORTED_SUBFORMAT},
    {"type 6", IN_BOTH, VF_DISK_TYPE, 4, 6, SUM_BOTH, ERR_UNSUPPORTED_SUBFORMAT},
    {"type 2 at the tail only", IN_TAIL, VF_DISK_TYPE, 4, 2, SUM_TAIL, ERR_OVERLAY_CORRUPT},
    {"another disk's tail", IN_TAIL, VF_UNIQUE_ID, 4, 2, SUM_TAIL, ERR_OVERLAY_CORRUPT},
    {"saved state", IN_BOTH, VF_SAVED_STATE, 1, 1, SUM_BOTH, ERR_UNSUPPORTED_FEATURE},
    {"saved state in the tail", IN_TAIL, VF_SAVED_STATE, 1, 1, SUM_TAIL, ERR_UNSUPPORTED_FEATURE},
    {"too large", IN_BOTH, VF_CURRENT_SIZE, 8, 2040ull << 30 | 512, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"size of all ones", IN_BOTH, VF_CURRENT_SIZE, 8, UINT64_MAX, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"tail too large", IN_TAIL, VF_CURRENT_SIZE, 8, 1ull << 62, SUM_TAIL, ERR_OVERLAY_CORRUPT},
    {"more than the BAT", IN_BOTH, VF_CURRENT_SIZE, 8, 1 << 30, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"data offset 0", IN_BOTH, VF_DATA_OFFSET, 8, 0, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"data offset odd", IN_BOTH, VF_DATA_OFFSET, 8, 520, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"data offset all ones", IN_BOTH, VF_DATA_OFFSET, 8, UINT64_MAX, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"data offset far", IN_BOTH, VF_DATA_OFFSET, 8, 1ull << 40, SUM_BOTH, ERR_OVERLAY_CORRUPT},
    {"header cookie", IN_HEADER, 0, 1, 'C', SUM_HEADER, ERR_PARSE_FAILED},
    {"header checksum", IN_HEADER, 900, 1, 7, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"header version", IN_HEADER, VH_HEADER_VERSION, 4, 0, SUM_HEADER, ERR_UNSUPPORTED_FEATURE},
    {"block size 0 (or 4 GiB)", IN_HEADER, VH_BLOCK_SIZE, 4, 0, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"block size 256", IN_HEADER, VH_BLOCK_SIZE, 4, 256, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"block size 511", IN_HEADER, VH_BLOCK_SIZE, 4, 511, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"block size 3 MiB", IN_HEADER, VH_BLOCK_SIZE, 4, 3 << 20, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"block size all ones", IN_HEADER, VH_BLOCK_SIZE, 4, UINT32_MAX, SUM_HEADER,
     ERR_OVERLAY_CORRUPT},
    {"block size 2 GiB", IN_HEADER, VH_BLOCK_SIZE, 4, 1u << 31, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"BAT at 0", IN_HEADER, VH_TABLE_OFFSET, 8, 0, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"BAT on the header", IN_HEADER, VH_TABLE_OFFSET, 8, 1024, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"BAT odd", IN_HEADER, VH_TABLE_OFFSET, 8, 1540, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"BAT past the end", IN_HEADER, VH_TABLE_OFFSET, 8, 1 << 30, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"BAT wraps", IN_HEADER, VH_TABLE_OFFSET, 8, 0xfffffffffffffe00, SUM_HEADER,
     ERR_OVERLAY_CORRUPT},
    {"BAT over the blocks", IN_HEADER, VH_MAX_TABLE_ENTRIES, 4, 1000, SUM_HEADER,
     ERR_OVERLAY_CORRUPT},
    {"entries of all ones", IN_HEADER, VH_MAX_TABLE_ENTRIES, 4, UINT32_MAX, SUM_HEADER,
     ERR_OVERLAY_CORRUPT},
    {"entries too few", IN_HEADER, VH_MAX_TABLE_ENTRIES, 4, 99, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"no entries", IN_HEADER, VH_MAX_TABLE_ENTRIES, 4, 0, SUM_HEADER, ERR_OVERLAY_CORRUPT},
    {"block at 0", IN_TABLE, 4, 4, 0, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block on the header", IN_TABLE, 4, 4, 1, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block on the BAT", IN_TABLE, 4, 4, 3, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block past the end", IN_TABLE, 4, 4, 0x7fffffff, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block at the far end", IN_TABLE, 4, 4, 0xfffffffe, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block on the footer", IN_TABLE, 4, 4, 4 + 33 * 9 + 9, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block twice", IN_TABLE, 4, 4, 4, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block over the next", IN_TABLE, 4, 4, 12, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"block over the previous", IN_TABLE, 4, 4, 5, SUM_NONE, ERR_OVERLAY_CORRUPT},
    {"the last block twice", IN_TABLE, 99 * 4, 4, 4, SUM_NONE, ERR_OVERLAY_CORRUPT},
};

static void inflict(struct blk_mem *m, const struct vhd_made *made, const struct damage *d)
{
    u64 tail = m->length - 512;
    const u64 base[][2] = {
        {0, 0}, {tail, tail}, {0, tail}, {made->header_offset, 0}, {made->table_offset, 0}};
    u8 value[8];
    put_be64(value, d->value);
    for (int i = 0; i < (d->where == IN_BOTH ? 2 : 1); i++)
        blk_mem_put(m, base[d->where][i] + d->off, value + 8 - d->len, d->len);
    if (d->sums & SUM_HEAD)
        vhd_make_footer_sum(m, 0);
    if (d->sums & SUM_TAIL)
        vhd_make_footer_sum(m, tail);
    if (d->sums & SUM_HEADER)
        vhd_make_header_sum(m, made->header_offset);
}

static void hostile(void)
{
    const u64 sizes[] = {KI(4), KI(399), KI(404), MI(40)};
    for (unsigned i = 0; i < sizeof damages / sizeof damages[0]; i++)
        for (unsigned k = 0; k < 4; k++) {
            struct vhd_made made;
            struct blk_mem m, copy;
            struct err e = {0};
            u64 length, at;
            test_note("%s, to %llu", damages[i].name, (unsigned long long)sizes[k]);
            vhd_make(&m, &small, &made);
            CHECK(made.entries == 100 && made.table_offset == 1536);
            inflict(&m, &made, &damages[i]);
            blk_mem_over(&copy, &m);
            CHECK(vhd_run(&copy.blk, sizes[k], PREALLOC_OFF, &length, &e));
            CHECK_ERR(&e, damages[i].code);
            CHECK(copy.writes == 0 && copy.grows == 0 && blk_mem_equal(&copy, &m, &at));
            blk_mem_free(&copy);
            blk_mem_free(&m);
        }
}

static void requests(void)
{
    static const struct {
        u64 size;
        enum preallocation preallocation;
        enum err_code code;
    } bad[] = {
        {MI(1) + 1, PREALLOC_OFF, OK}, /* the next whole sector */
        {GI(2040) + 512, PREALLOC_OFF, ERR_INVALID_NEW_SIZE},
        {1ull << 62, PREALLOC_OFF, ERR_INVALID_NEW_SIZE},
        {GI(2040) - 512, PREALLOC_OFF, OK},
        {MI(9), PREALLOC_FALLOC, ERR_PREALLOCATION_UNSUPPORTED},
        {MI(9), PREALLOC_FULL, ERR_PREALLOCATION_UNSUPPORTED},
        {MI(9), PREALLOC_METADATA, ERR_PREALLOCATION_UNSUPPORTED},
    };
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct vhd_make p = small;
        struct vhd_made made;
        struct blk_mem m;
        struct err e = {0};
        u64 length;
        p.block_size = 2 << 20;
        vhd_make(&m, &p, &made);
        test_note("request %u", i);
        vhd_run(&m.blk, bad[i].size, bad[i].preallocation, &length, &e);
        CHECK_ERR(&e, bad[i].code);
        blk_mem_free(&m);
    }
    struct vhd_make p = {.creator = "qem2",
                         .geometry = GEOMETRY_MAX,
                         .size = KI(10),
                         .block_size = 512}; /* more blocks than qemu can open */
    struct vhd_made made;
    struct blk_mem m;
    struct err e = {0};
    u64 length;
    vhd_make(&m, &p, &made);
    vhd_run(&m.blk, GI(1024), PREALLOC_OFF, &length, &e);
    CHECK_ERR(&e, ERR_INVALID_NEW_SIZE);
    blk_mem_put(&m, m.length, "x", 1); /* an odd length, and a footer that ends the file */
    u8 footer[VF_LENGTH];
    blk_mem_get(&m, 0, footer, VF_LENGTH);
    blk_mem_put(&m, m.length, footer, VF_LENGTH);
    blk_mem_truncate(&m, m.length);
    e = (struct err){0};
    vhd_run(&m.blk, KI(20), PREALLOC_OFF, &length, &e);
    CHECK_ERR(&e, ERR_UNSUPPORTED_SUBFORMAT);
    blk_mem_free(&m);
}

/* A geometry far below current_size: only a grow past both, or a shrink, means the same to all. */
static void two_sizes(void)
{
    static const struct {
        u64 size;
        enum err_code code;
    } tries[] = {{MI(9), ERR_OVERLAY_CORRUPT}, {MI(70), OK}, {MI(2), OK}};
    for (unsigned i = 0; i < 3; i++) {
        struct vhd_make p = {.creator = "vpc ", .block_size = 4096, .size = MI(4), .every = 3};
        const struct damage d = {"", IN_BOTH, VF_CURRENT_SIZE, 8, MI(64), SUM_BOTH, OK};
        struct vhd_made made;
        struct blk_mem m, now;
        struct vhd_verdict v;
        struct err e = {0};
        u64 at;
        vhd_make(&m, &p, &made);
        inflict(&m, &made, &d);
        blk_mem_over(&now, &m);
        test_note("to %llu", (unsigned long long)tries[i].size);
        vhd_run_mem(&now, tries[i].size, &e);
        CHECK_ERR(&e, tries[i].code);
        if (e.code) {
            CHECK(blk_mem_equal(&now, &m, &at));
        } else {
            vhd_judge_mem(&now, 0, 0, 0, &v);
            CHECK(v.opens && !v.faults && v.settled && v.size == v.size_current);
            CHECK(v.size >= tries[i].size && v.size < tries[i].size + MI(1));
        }
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
}

/* Whatever bytes of the metadata change, nothing but a refusal or a sound image may follow. */
static void mutations(void)
{
    u64 seed = test_seed(0xa54ff53a5f1d36f1), refused = 0, done = 0;
    for (int i = 0; i < 1500; i++) {
        struct vhd_make p = small;
        struct vhd_made made;
        struct blk_mem m, copy;
        struct vhd_verdict v;
        struct err e = {0};
        u64 at;
        p.table_last = rnd_below(&seed, 2);
        vhd_make(&m, &p, &made);
        for (u64 n = 1 + rnd_below(&seed, 3); n; n--) {
            const u64 base[] = {0, m.length - 512, 512, made.table_offset};
            const u64 span[] = {96, 96, 64, 400};
            u64 k = rnd_below(&seed, 4);
            u8 b = rnd_below(&seed, 2) ? (u8)rnd(&seed) : (u8)(1 << rnd_below(&seed, 8));
            blk_mem_put(&m, base[k] + rnd_below(&seed, span[k]), &b, 1);
        }
        vhd_make_footer_sum(&m, 0);
        vhd_make_footer_sum(&m, m.length - 512);
        vhd_make_header_sum(&m, 512);
        blk_mem_over(&copy, &m);
        test_note("mutation %d", i);
        vhd_run_mem(&copy, rnd_below(&seed, 2) ? KI(100) : MI(9), &e);
        if (e.code) {
            CHECK(blk_mem_equal(&copy, &m, &at));
            refused++;
        } else {
            vhd_judge_mem(&copy, 0, 0, 0, &v);
            if (!CHECK(v.opens && !v.faults && v.tail && v.tail_size == v.size_current))
                printf("    %s %s\n", v.why ? v.why : "", v.first);
            done++;
        }
        blk_mem_free(&copy);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu refused, %llu resized\n", (unsigned long long)refused, (unsigned long long)done);
    CHECK(refused > 400 && done > 200);
}

/* ---- the judge ---- */

static bool noticed(const struct blk_mem *m, const struct vhd_verdict *good, u64 size)
{
    struct vhd_verdict v;
    vhd_judge_mem(m, size, size, UINT64_MAX, &v);
    return !v.opens || v.faults || !v.tail_same || !v.settled || !v.padded || !v.zero ||
           v.hash != good->hash || v.hash_raw != good->hash_raw || v.size != good->size ||
           v.size_current != good->size_current || v.size_qemu7 != good->size_qemu7;
}

/* Every byte of every structure, each bit of some; then what no checksum covers. */
static void the_judge_itself(void)
{
    struct vhd_make p = small;
    struct vhd_made made;
    struct blk_mem m;
    struct vhd_verdict good;
    u64 seed = test_seed(0xcbbb9d5dc1059ed8);
    vhd_make(&m, &p, &made);
    vhd_judge_mem(&m, made.size, made.size, UINT64_MAX, &good);
    CHECK(!noticed(&m, &good, made.size) && good.blocks == 34);
    u64 end = made.table_offset + 400;
    for (u64 i = 0; i < end + 1200; i++) {
        struct blk_mem bad;
        u64 at = i < end         ? i
                 : i < end + 512 ? m.length - 512 + (i - end)
                                 : end + rnd_below(&seed, m.length - end);
        u8 b, bit = (u8)(1 << rnd_below(&seed, 8));
        blk_mem_over(&bad, &m);
        blk_mem_get(&bad, at, &b, 1);
        b ^= bit;
        blk_mem_put(&bad, at, &b, 1);
        test_note("bit 0x%x of byte %llu", bit, (unsigned long long)at);
        u64 in = at >= 2048 ? (at - 2048) % (512 + 4096) : 512;
        bool unused = at >= 2048 && in >= 1 && in < 512; /* bits of a bitmap that no sector has */
        CHECK(unused || at >= m.length - 512 || noticed(&bad, &good, made.size));
        CHECK(at < m.length - 512 || noticed(&bad, &good, made.size));
        blk_mem_free(&bad);
    }
    for (unsigned i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        struct blk_mem bad;
        vhd_make(&bad, &p, &made);
        inflict(&bad, &made, &damages[i]);
        test_note("%s", damages[i].name);
        CHECK(noticed(&bad, &good, made.size) || damages[i].off == VF_SAVED_STATE);
        blk_mem_free(&bad);
    }
    blk_mem_free(&m);
}

int main(void)
{
    RUN(geometry);
    RUN(creators);
    RUN(grow_query);
    RUN(probing);
    RUN(mapping);
    RUN(differencing);
    RUN(unfinished);
    RUN(nothing_to_do);
    RUN(hostile);
    RUN(requests);
    RUN(two_sizes);
    RUN(mutations);
    RUN(the_judge_itself);
    return test_end();
}
