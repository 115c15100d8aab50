/* SPDX-License-Identifier: MIT
 *
 * Opening VHDX images, the log, and hostile input: the maker's images are clean to the judge and to
 * qemu-img; each mutated copy is found out by the judge; what formats/ refuses is refused whatever
 * is asked, and the file stays as it was.
 */
#include "vhdx_run.h"

#include "test.h"

#include <time.h>
#include <unistd.h>

enum { KI = 1 << 10, MI = 1 << 20 };

static void put(struct blk_mem *m, u64 off, int bytes, u64 val)
{
    u8 b[8];
    for (int i = 0; i < bytes; i++)
        b[i] = (u8)(val >> 8 * i);
    blk_mem_put(m, off, b, (size_t)bytes);
}

static u64 get(const struct blk_mem *m, u64 off, int bytes)
{
    u8 b[8];
    u64 v = 0;
    blk_mem_get(m, off, b, (size_t)bytes);
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | b[i];
    return v;
}

static int qemu_check(const struct blk_mem *m)
{
    const char *path = test_path("a.vhdx");
    CHECK(blk_mem_save(m, path));
    int rc = test_system("qemu-img check -f vhdx %s", path);
    unlink(path);
    return rc;
}

/* clang-format off */
static const struct vhdx_make shapes[] = {
    { .size = 20 * MI, .blocks = 5 },
    { .size = 20 * MI + 512, .block_mib = 8, .blocks = 3, .last = true, .short_end = true },
    { .size = 64 * MI, .fixed = true, .blocks = 7, .log_mib = 3 },
    { .size = TI(2), .block_mib = 32, .blocks = 40, .backwards = true, .metadata_last = true },
    { .size = 300 * MI, .block_mib = 256, .last = true, .gap_mib = 2, .unknown = true },
    { .size = 20 * MI, .blocks = 5, .first_rules = true, .crooked_size = true, .bat_mib = 3 },
    { .size = 20 * MI, .blocks = 5, .one_header = true, .void_table = 2 },
    { .size = 20 * MI, .blocks = 5, .same_headers = true, .stale_entries = 9 },
};
/* clang-format on */
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static void made_images_are_clean(void)
{
    for (unsigned i = 0; i < SHAPES; i++) {
        struct blk_mem m;
        struct vhdx_made made;
        struct vhdx_verdict v;
        struct image img;
        struct err e = {0};
        test_note("shape %u", i);
        vhdx_make(&m, &shapes[i], &made);
        vhdx_judge(&m, 0, 0, 0, &v);
        if (!CHECK(v.opens && v.corruptions == shapes[i].short_end && v.size == shapes[i].size &&
                   !v.dirty))
            printf("    %s %s\n", v.why, v.first);
        CHECK(v.headers == (shapes[i].one_header ? 1u : 2u) &&
              v.tables == (shapes[i].void_table ? 1u : 2u));
        CHECK(qemu_check(&m) == 0);
        CHECK(!vhdx_open_mem(&m.blk, &img, &e) && img.size == v.size && img.unit == made.block);
        CHECK_ERR(&e, OK);
        CHECK(img.u.vhdx.bat_offset == made.bat && img.u.vhdx.size_offset == made.size_item);
        blk_mem_free(&m);
    }
}

static void info_says(void)
{
    static const struct {
        struct vhdx_make p;
        const char *subformat;
    } cases[] = {{{.size = 9 * MI}, "dynamic"},
                 {{.size = 9 * MI, .fixed = true}, "fixed"},
                 {{.size = 9 * MI, .child = true, .sector = 4096}, "differencing"}};
    for (unsigned i = 0; i < 3; i++) {
        static struct facts f;
        struct blk_mem m;
        struct vhdx_made made;
        struct image img;
        struct err e = {0};
        vhdx_make(&m, &cases[i].p, &made);
        memset(&f, 0, sizeof(f));
        CHECK(!vhdx_open_mem(&m.blk, &img, &e) && !img.format->facts(&img, &f, &e));
        CHECK_STR(f.fact[0].text, cases[i].subformat);
        CHECK_STR(f.fact[1].text, "empty");
        CHECK_EQ_U64(f.fact[3].number, i == 2 ? 4096 : 512);
        CHECK_STR(f.fact[5].text, "100b0601-1a15-241f-292e-33383d42474c");
        CHECK(f.cnt == (i == 2 ? 9 : 8) && !f.dirty);
        if (i == 2)
            CHECK_STR(f.fact[8].text, ".\\parent.vhdx");
        blk_mem_free(&m);
    }
}

/* ---- mutations ---- */

enum { KNOWN = 20 };

/* Which structures a mutation makes right again. */
static void sums(struct blk_mem *m)
{
    for (u64 off = 64 * KI; off <= 128 * KI; off += 64 * KI)
        vhdx_make_sum(m, off, 4 * KI);
    for (u64 off = 192 * KI; off <= 256 * KI; off += 64 * KI)
        vhdx_make_sum(m, off, 64 * KI);
}

static void both(struct blk_mem *m, u64 off, u64 step, int bytes, u64 val)
{
    put(m, off, bytes, val);
    put(m, off + step, bytes, val);
    sums(m);
}

static void header(struct blk_mem *m, u32 field, int bytes, u64 val)
{
    both(m, 64 * KI + field, 64 * KI, bytes, val);
}

static void region(struct blk_mem *m, u32 i, u32 field, int bytes, u64 val)
{
    both(m, 192 * KI + 16 + i * 32 + field, 64 * KI, bytes, val);
}

/* Field of the metadata entry whose item id begins with these bytes. */
static void item(struct blk_mem *m, const struct vhdx_made *d, u32 id, u32 field, int bytes,
                 u64 val)
{
    for (u64 at = d->metadata + 32;; at += 32)
        if (get(m, at, 4) == id) {
            put(m, at + field, bytes, val);
            return;
        }
}

static u64 item_at(struct blk_mem *m, const struct vhdx_made *d, u32 id)
{
    for (u64 at = d->metadata + 32;; at += 32)
        if (get(m, at, 4) == id)
            return d->metadata + get(m, at + 16, 4);
}

enum {
    PARAMETERS = (int)0xcaa16737,
    SIZE = 0x2fa54224,
    LOGICAL = (int)0x8141bf1d,
    DISK_ID = (int)0xbeca12ab
};

struct evil {
    const char *name;
    void (*mutate)(struct blk_mem *m, const struct vhdx_made *d, u64 n);
    u64 n;
    bool resize_only; /* open may not notice: a planner has to */
};

static void evil_identifier(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    put(m, n, 1, 'x');
}

static void evil_headers(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    if (n == 0) { /* equal numbers, other content */
        put(m, 64 * KI + 8, 8, 2);
        put(m, 64 * KI + 16, 1, 99);
        sums(m);
    } else { /* neither sum holds */
        put(m, 64 * KI + 4, 4, 1);
        put(m, 128 * KI + 4, 4, 2);
    }
}

static void evil_version(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    header(m, n, 2, 7);
}

static void evil_log_length(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    header(m, 68, 4, n);
}

static void evil_log_offset(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    header(m, 72, 8, n ? n : d->bat);
}

static void evil_log_guid(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    header(m, 48, 8, n);
}

static void evil_tables(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    if (n == 0) { /* neither sum holds */
        put(m, 192 * KI + 4, 4, 1);
        put(m, 256 * KI + 4, 4, 2);
    } else if (n == 1) { /* both are valid and differ */
        put(m, 256 * KI + 16 + 32 + 16, 8, d->bat + MI);
        sums(m);
    } else {
        both(m, 192 * KI + 8, 64 * KI, 4, n);
    }
}

static void evil_region_offset(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    region(m, 1, 16, 8, n == 2 ? d->metadata : n == 3 ? d->log : n);
}

static void evil_region_length(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    region(m, 1, 24, 4, n);
}

static void evil_region_guid(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    region(m, (u32)n, 0, 8, 0x1234567); /* the BAT or the metadata becomes a required unknown */
}

static void evil_region_twice(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d, (void)n;
    for (u64 t = 192 * KI; t <= 256 * KI; t += 64 * KI) {
        u8 e[32];
        blk_mem_get(m, t + 48, e, 32);
        blk_mem_put(m, t + 80, e, 32);
        put(m, t + 8, 4, 3);
    }
    sums(m);
}

static void evil_metadata_table(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, d->metadata + (n ? 10 : 0), 2, n);
}

static void evil_item_unknown(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    item(m, d, (u32)n, 0, 4, 0x777);
}

static void evil_item_user(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    item(m, d, SIZE, 24, 4, n); /* somebody's own item of the same name */
}

static void evil_item_place(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    item(m, d, SIZE, 16, 4, n);
}

static void evil_item_overlap(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)n;
    item(m, d, SIZE, 16, 4, item_at(m, d, DISK_ID) - d->metadata + 8);
}

static void evil_item_length(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    item(m, d, SIZE, 20, 4, n);
}

static void evil_item_twice(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    u8 e[32];
    (void)n;
    for (u64 at = d->metadata + 32; get(m, at, 4); at += 32)
        blk_mem_get(m, at, e, 32);
    u64 cnt = get(m, d->metadata + 10, 2);
    blk_mem_put(m, d->metadata + 32 + cnt * 32, e, 32);
    put(m, d->metadata + 10, 2, cnt + 1);
}

static void evil_block_size(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, item_at(m, d, PARAMETERS), 4, n);
}

static void evil_flags(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, item_at(m, d, PARAMETERS) + 4, 4, n); /* 2: a child without a locator */
}

static void evil_size(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, d->size_item, 8, n);
}

static void evil_sector(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, item_at(m, d, LOGICAL), 4, n);
}

static void evil_state(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, d->bat, 8, (get(m, d->bat, 8) & ~7ull) | n);
}

static void evil_entry(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, d->bat, 8, n == 1 ? d->bat | 6 : n == 2 ? d->log | 6 : n == 3 ? d->metadata | 6 : n);
}

static void evil_duplicate(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    put(m, d->bat + 8 * n, 8, get(m, d->bat, 8));
}

static void evil_truncated(struct blk_mem *m, const struct vhdx_made *d, u64 n)
{
    (void)d;
    blk_mem_truncate(m, n);
}

static const struct evil evils[] = {
    {"identifier", evil_identifier, 0},
    {"identifier, its end", evil_identifier, 7},
    {"headers of one number that differ", evil_headers, 0},
    {"headers, both void", evil_headers, 1},
    {"version", evil_version, 66},
    {"log version", evil_version, 64},
    {"log of no bytes", evil_log_length, 0},
    {"log of half a MiB", evil_log_length, MI / 2},
    {"log of nearly 4 GiB", evil_log_length, 0xfff00000},
    {"log over the header", evil_log_offset, 64 * KI},
    {"log at the end of numbers", evil_log_offset, 0xfffffffffff00000},
    {"log over the BAT", evil_log_offset, 0},
    {"log GUID without a log", evil_log_guid, 5},
    {"region tables, both void", evil_tables, 0},
    {"region tables that differ", evil_tables, 1},
    {"region entries, too many", evil_tables, 2048},
    {"region entries, four billion", evil_tables, 0xffffffff},
    {"region entries that are empty", evil_tables, 2047},
    {"BAT in the header", evil_region_offset, 0},
    {"BAT at half a MiB", evil_region_offset, 9 * MI + MI / 2},
    {"BAT over the metadata", evil_region_offset, 2},
    {"BAT over the log", evil_region_offset, 3},
    {"BAT past the end", evil_region_offset, TI(2)},
    {"BAT at the end of numbers", evil_region_offset, 0xfffffffffff00000},
    {"BAT of no bytes", evil_region_length, 0},
    {"BAT of 4 KiB", evil_region_length, 4 * KI},
    {"BAT over what follows", evil_region_length, 2 * MI},
    {"no BAT, and an unknown region", evil_region_guid, 1},
    {"no metadata, and an unknown region", evil_region_guid, 0},
    {"two BATs", evil_region_twice, 0},
    {"metadata signature", evil_metadata_table, 0},
    {"metadata entries, too many", evil_metadata_table, 2048},
    {"metadata entries, the most", evil_metadata_table, 0xffff},
    {"metadata entries, one", evil_metadata_table, 1},
    {"unknown required item", evil_item_unknown, DISK_ID},
    {"no size", evil_item_unknown, SIZE},
    {"a size of the user's own", evil_item_user, 1},
    {"item in the table", evil_item_place, 32},
    {"item past the region", evil_item_place, MI - 4},
    {"item far away", evil_item_place, 0xfffffff8},
    {"items that overlap", evil_item_overlap, 0},
    {"item of no bytes", evil_item_length, 0},
    {"item too long", evil_item_length, 2 * MI},
    {"item of the wrong length", evil_item_length, 9},
    {"item twice", evil_item_twice, 0},
    {"blocks of no bytes", evil_block_size, 0},
    {"blocks of 3 MiB", evil_block_size, 3 * MI},
    {"blocks of 512 KiB", evil_block_size, MI / 2},
    {"blocks of 512 MiB", evil_block_size, 512 * MI},
    {"unknown flags", evil_flags, 8},
    {"a child without a locator", evil_flags, 2},
    {"no size at all", evil_size, 0},
    {"half a sector", evil_size, 20 * MI + 100},
    {"larger than can be", evil_size, TI(64) + 512},
    {"the largest number", evil_size, UINT64_MAX},
    {"larger than the BAT", evil_size, TI(1)},
    {"sectors of no bytes", evil_sector, 0},
    {"sectors of 1024", evil_sector, 1024},
    {"state 4", evil_state, 4, true},
    {"state 5", evil_state, 5, true},
    {"state 7", evil_state, 7, true},
    {"reserved bits", evil_state, 6 | 8, true},
    {"block on the BAT", evil_entry, 1, true},
    {"block on the log", evil_entry, 2, true},
    {"block on the metadata", evil_entry, 3, true},
    {"block on the header", evil_entry, 6, true},
    {"block past the end", evil_entry, TI(3) | 6, true},
    {"block at the end of numbers", evil_entry, 0xfffffffffff00006, true},
    {"block twice", evil_duplicate, 4, true},
    {"block twice, at the end", evil_duplicate, 19, true},
    {"half of the headers", evil_truncated, 100 * KI},
    {"without a BAT", evil_truncated, 2 * MI},
    {"without payload", evil_truncated, 5 * MI, true},
};
enum { EVILS = sizeof(evils) / sizeof(evils[0]) };

/* Refused, whatever is asked; in no time; and not a byte changes. */
static void refused(struct blk_mem *m, bool resize_only)
{
    static const u64 sizes[] = {99 * MI, TI(1), 3 * MI, 5 * MI + 512};
    struct blk_mem now;
    struct image img;
    struct err e = {0};
    struct timespec t0, t1;
    u64 at;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    vhdx_open_mem(&m->blk, &img, &e);
    CHECK((e.code == OK) == resize_only);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct err why = {0};
        blk_mem_over(&now, m);
        vhdx_resize_mem(&now, sizes[i], 1, &why);
        if (!CHECK(why.code == ERR_OVERLAY_CORRUPT || why.code == ERR_UNSUPPORTED_FEATURE ||
                   why.code == ERR_PARSE_FAILED))
            printf("    to %llu: code %d\n", (unsigned long long)sizes[i], why.code);
        CHECK(blk_mem_equal(&now, m, &at));
        blk_mem_free(&now);
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    CHECK(t1.tv_sec - t0.tv_sec < 20);
}

static void hostile_images(void)
{
    struct vhdx_make p = {.size = 20 * MI, .blocks = 5, .last = true};
    unsigned blind = 0;
    for (unsigned i = 0; i < EVILS; i++) {
        struct blk_mem m;
        struct vhdx_made made;
        struct vhdx_verdict v;
        test_note("%s", evils[i].name);
        vhdx_make(&m, &p, &made);
        evils[i].mutate(&m, &made, evils[i].n);
        refused(&m, evils[i].resize_only);
        vhdx_judge(&m, 0, 0, 0, &v);
        if (v.opens && !v.corruptions && ++blind)
            printf("  the judge lets pass: %s\n", evils[i].name);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u mutations; the judge let %u pass\n", (unsigned)EVILS, blind);
    /* it believes the metadata table: no lengths, no second items, no flags */
    CHECK(blind <= 6);
}

/* What must not be refused: it is only unusual. */
static void unusual_images(void)
{
    struct vhdx_make p = {.size = 20 * MI, .blocks = 5, .unknown = true};
    for (int i = 0; i < 4; i++) {
        struct blk_mem m;
        struct vhdx_made made;
        struct err e = {0};
        test_note("unusual %d", i);
        p.block_mib = i == 3 ? 256 : 1;
        p.size = i == 3 ? TI(1) / 2 : 20 * MI;
        vhdx_make(&m, &p, &made);
        if (i == 0) /* as qemu writes them: nothing is required */
            for (u32 r = 0; r < 3; r++)
                region(&m, r, 28, 4, 0);
        if (i == 1) /* an unused entry of a sector bitmap, as qemu 7.2 may leave it */
            put(&m, made.bat + 3 * 8, 8, 1); /* undefined */
        if (i == 2)
            put(&m, made.bat + 8, 8, 77ull * MI | 3); /* unmapped; its place is reserved */
        if (i == 3)
            put(&m, made.bat + made.ratio * 8, 8, 2);
        vhdx_resize_mem(&m, p.size * 2, 1, &e);
        CHECK_ERR(&e, OK);
        blk_mem_free(&m);
    }
}

/* The judge itself: each mutation of a clean image is found out. */
static void the_judge_sees(void)
{
    struct vhdx_make p = {.size = 20 * MI, .blocks = 5, .last = true, .unknown = true};
    struct blk_mem m, now;
    struct vhdx_made made;
    struct vhdx_verdict v;
    vhdx_make(&m, &p, &made);
    vhdx_judge(&m, p.size, 0, 0, &v);
    CHECK(v.opens && !v.corruptions && v.hash);
    u64 hash = v.hash, unknown = v.unknown_hash;
    const struct {
        u64 off;
        bool changes_content;
    } at[] = {{0, 0},
              {64 * KI + 5, 0},
              {64 * KI + 4000, 0},
              {128 * KI + 20, 0},
              {192 * KI + 30, 0},
              {192 * KI + 65000, 0},
              {256 * KI + 16, 0},
              {256 * KI + 65535, 0},
              {made.metadata, 0},
              {made.bat + 1, 0},
              {made.bat, 0},
              {made.payload + 100, true},
              {made.length - MI + 2, true},
              {made.bat + MI + 77, true}};
    for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        u8 byte;
        test_note("byte at %llu", (unsigned long long)at[i].off);
        blk_mem_over(&now, &m);
        blk_mem_get(&now, at[i].off, &byte, 1);
        byte ^= 0x5b;
        blk_mem_put(&now, at[i].off, &byte, 1);
        vhdx_judge(&now, p.size, 0, 0, &v);
        if (at[i].changes_content)
            CHECK(v.hash != hash || v.unknown_hash != unknown);
        else
            CHECK(!v.opens || v.corruptions || v.headers < 2 || v.tables < 2);
        blk_mem_free(&now);
    }
    blk_mem_free(&m);
}

/* ---- the log ---- */

static const u8 log_guid[16] = "a log's own guid";

struct log_case {
    struct blk_mem m;
    struct vhdx_made made;
    u8 size[4 * KI], bat[4 * KI]; /* sectors as they must become: another size, block 3 gone */
    u64 size_at, end;
};

static void log_begin(struct log_case *c)
{
    struct vhdx_make p = {.size = 20 * MI, .blocks = 20};
    vhdx_make(&c->m, &p, &c->made);
    c->size_at = round_down(c->made.size_item, 4 * KI);
    c->end = c->m.length;
    blk_mem_get(&c->m, c->size_at, c->size, 4 * KI);
    blk_mem_get(&c->m, c->made.bat, c->bat, 4 * KI);
    memset(c->bat + 24, 0, 8);
    memcpy(c->size + c->made.size_item % (4 * KI), "\0\0\x50\0", 4); /* 5 MiB */
    vhdx_make_log_guid(&c->m, log_guid);
}

static u32 log_entry(struct log_case *c, u32 at, u32 tail, u64 seq, bool size, bool bat)
{
    struct vhdx_make_change ch[2] = {{c->size_at, 0, c->size}, {c->made.bat, 0, c->bat}};
    return vhdx_make_entry(&c->m, &c->made, at, tail, seq, log_guid, size ? ch : ch + 1,
                           (u32)size + bat, c->end, c->end);
}

/* The image opens dirty, with this size, and block 3 present or not; a resize replays it, and what
 * the judge says of both is the same. */
static void log_holds(struct log_case *c, u64 size, bool block3)
{
    struct vhdx_verdict before, after;
    struct image img;
    struct extent x;
    struct err e = {0};
    struct vhdx_run dry = {.new_size = 40 * MI, .dry_run = true};
    vhdx_judge(&c->m, min_u64(size, 5 * MI), 0, 0, &before);
    CHECK(before.opens && before.dirty && before.size == size && !before.corruptions);
    CHECK(!vhdx_open_mem(&c->m.blk, &img, &e) && img.u.vhdx.log.dirty);
    CHECK_EQ_U64(img.size, size);
    CHECK(!img.format->map(&img, 3 * MI, MI, &x, &e) && (x.kind == EXTENT_DATA) == block3);
    CHECK(!vhdx_run_mem(&c->m, &dry, &e) && dry.more);
    vhdx_resize_mem(&c->m, 40 * MI, 1, &e);
    CHECK_ERR(&e, OK);
    vhdx_judge(&c->m, min_u64(size, 5 * MI), size, 40 * MI, &after);
    CHECK(vhdx_judge_clean(&after) && after.size == 40 * MI && after.hash == before.hash);
    CHECK(after.zero);
    CHECK_EQ_U64(after.sequence_number, before.sequence_number + 4 + 6);
    blk_mem_free(&c->m);
}

static void dirty_logs(void)
{
    static struct log_case c;
    const u32 ring = MI;
    log_begin(&c); /* one entry */
    log_entry(&c, 0, 0, 1, true, true);
    log_holds(&c, 5 * MI, false);
    log_begin(&c); /* anywhere */
    log_entry(&c, 40 * KI, 40 * KI, 99, false, true);
    log_holds(&c, 20 * MI, false);
    log_begin(&c); /* an entry that wraps around */
    log_entry(&c, ring - 8 * KI, ring - 8 * KI, 7, true, true);
    log_holds(&c, 5 * MI, false);
    log_begin(&c); /* the tail in the middle: the first entry counts no more */
    u32 at = log_entry(&c, 0, 0, 1, true, false);
    log_entry(&c, at, at, 2, false, true);
    log_holds(&c, 20 * MI, false);
    log_begin(&c); /* the last one is torn: those before it count, with their own tail */
    at = log_entry(&c, 0, 0, 1, true, false);
    put(&c.m, c.made.log + at + log_entry(&c, at, at, 2, false, true) - 4, 4, 99);
    log_holds(&c, 5 * MI, true);
    log_begin(&c); /* two sequences: the one with the higher head */
    log_entry(&c, 0, 0, 50, true, false);
    log_entry(&c, 512 * KI, 512 * KI, 60, false, true);
    log_holds(&c, 20 * MI, false);
    log_begin(&c); /* a gap in the numbers ends a sequence */
    at = log_entry(&c, 0, 0, 50, true, false);
    log_entry(&c, at, 0, 52, false, true);
    log_holds(&c, 5 * MI, true);
    log_begin(&c); /* an entry of somebody else's */
    log_entry(&c, 0, 0, 50, true, false);
    put(&c.m, c.made.log + 32 * KI, 4, 0x65676f6c);
    log_holds(&c, 5 * MI, true);
    log_begin(&c); /* an empty entry that moves the tail */
    at = log_entry(&c, 0, 0, 1, true, false);
    vhdx_make_entry(&c.m, &c.made, at, at, 2, log_guid, NULL, 0, c.end, c.end);
    log_holds(&c, 20 * MI, true);
    log_begin(&c); /* the whole ring, one entry behind the other: a loop, if one let it */
    for (u32 i = 0; i < ring; i += 4 * KI)
        vhdx_make_entry(&c.m, &c.made, i, 0, 1 + i / (4 * KI), log_guid, NULL, 0, c.end, c.end);
    log_holds(&c, 20 * MI, true);
    log_begin(&c); /* the file must become longer */
    vhdx_make_entry(&c.m, &c.made, 0, 0, 1, log_guid,
                    &(struct vhdx_make_change){c.size_at, 0, c.size}, 1, c.end, c.end + 5 * MI);
    log_holds(&c, 5 * MI, true);
    log_begin(&c); /* offsets of no whole MiB, as qemu writes them */
    vhdx_make_entry(&c.m, &c.made, 0, 0, 1, log_guid,
                    &(struct vhdx_make_change){c.size_at, 0, c.size}, 1, c.end - 512,
                    c.end + 3 * MI + 512);
    log_holds(&c, 5 * MI, true);
    CHECK(c.m.length % MI == 0);
    log_begin(&c); /* more descriptors than a sector holds */
    struct vhdx_make_change many[200];
    for (int i = 0; i < 200; i++)
        many[i] = (struct vhdx_make_change){c.made.bat + 8 * KI + 4 * KI * (i % 5), 4 * KI, NULL};
    many[199] = (struct vhdx_make_change){c.size_at, 0, c.size};
    vhdx_make_entry(&c.m, &c.made, 0, 0, 1, log_guid, many, 200, c.end, c.end);
    log_holds(&c, 5 * MI, true);
    log_begin(&c); /* the last sequence number that there is */
    log_entry(&c, 0, 0, UINT64_MAX, true, false);
    log_holds(&c, 5 * MI, true);
}

struct evil_log {
    const char *name;
    struct vhdx_make_change change;
    u32 tail;
    u64 seq, flushed, last; /* flushed, last: added to the file's length */
    u32 field;              /* of the entry: set to `value` afterwards, sum right */
    int bytes;
    u64 value;
};

static void hostile_logs(void)
{
    static struct log_case c;
    static const u8 junk[4 * KI] = {1};
    static const struct evil_log logs[] = {
        {"64 GiB of zeros", {4 * MI, 64ull << 30, NULL}, 0, 1, 0, 0},
        {"64 GiB of zeros in a file that long", {4 * MI, 64ull << 30, NULL}, 0, 1, 0, TI(1)},
        {"zeros past all numbers", {4 * MI, 0xfffffffffffff000, NULL}, 0, 1},
        {"a header", {64 * KI, 0, junk}, 0, 1},
        {"the identifier", {0, 4 * KI, NULL}, 0, 1},
        {"the log itself", {MI + 4 * KI, 0, junk}, 0, 1},
        {"zeros over the log", {MI / 2, 4 * MI, NULL}, 0, 1},
        {"past the end", {TI(1), 0, junk}, 0, 1},
        {"past the largest file", {0x7ffffffffffff000, 0, junk}, 0, 1},
        {"half a sector", {4 * MI + 512, 0, junk}, 0, 1},
        {"the tail elsewhere", {4 * MI, 0, junk}, 8 * KI, 1},
        {"the tail outside", {4 * MI, 0, junk}, 4 * MI, 1},
        {"number 0", {4 * MI, 0, junk}, 0, 0},
        {"a file that was longer", {4 * MI, 0, junk}, 0, 1, MI, MI},
        {"as long as no file can be", {4 * MI, 0, junk}, 0, 1, 0, 0, 56, 8, UINT64_MAX - 5},
        {"no descriptor", {4 * MI, 0, junk}, 0, 1, 0, 0, 24, 4, 0},
        {"two descriptors", {4 * MI, 0, junk}, 0, 1, 0, 0, 24, 4, 2},
        {"four billion descriptors", {4 * MI, 0, junk}, 0, 1, 0, 0, 24, 4, 0xffffffff},
        {"no length", {4 * MI, 0, junk}, 0, 1, 0, 0, 8, 4, 0},
        {"longer than the log", {4 * MI, 0, junk}, 0, 1, 0, 0, 8, 4, 2 * MI},
        {"as long as can be", {4 * MI, 0, junk}, 0, 1, 0, 0, 8, 4, 0xfffff000},
        {"another signature", {4 * MI, 0, junk}, 0, 1, 0, 0, 64, 4, 0x1234},
        {"another number in the descriptor", {4 * MI, 0, junk}, 0, 1, 0, 0, 88, 8, 9},
        {"another number in the data", {4 * MI, 0, junk}, 0, 1, 0, 0, 8188, 4, 9},
        {"another signature of the data", {4 * MI, 0, junk}, 0, 1, 0, 0, 4096, 4, 9},
    };
    for (unsigned i = 0; i < sizeof(logs) / sizeof(logs[0]); i++) {
        const struct evil_log *l = &logs[i];
        test_note("log: %s", l->name);
        log_begin(&c);
        u32 len = vhdx_make_entry(&c.m, &c.made, 0, l->tail, l->seq, log_guid, &l->change, 1,
                                  c.end + l->flushed, c.end + l->last);
        if (l->bytes) {
            u8 buf[8 * KI];
            put(&c.m, c.made.log + l->field, l->bytes, l->value);
            put(&c.m, c.made.log + 4, 4, 0);
            blk_mem_get(&c.m, c.made.log, buf, len);
            put(&c.m, c.made.log + 4, 4, vhdx_make_crc(0, buf, len));
        }
        refused(&c.m, false);
        blk_mem_free(&c.m);
    }
}

/* A log of 64 MiB, full of what looks like entries: the time is the log's, not its square. */
static void large_hostile_log(void)
{
    struct vhdx_make p = {.size = 20 * MI, .log_mib = 64};
    struct vhdx_made made;
    struct blk_mem m;
    struct image img;
    struct timespec t0, t1;
    struct err e = {0};
    vhdx_make(&m, &p, &made);
    vhdx_make_log_guid(&m, log_guid);
    for (u32 i = 0; i < made.log_length; i += 4 * KI) { /* each claims all that there is */
        put(&m, made.log + i, 4, 0x65676f6c);
        put(&m, made.log + i + 8, 4, made.log_length);
        put(&m, made.log + i + 16, 8, 1);
        blk_mem_put(&m, made.log + i + 32, log_guid, 16);
        for (u32 k = 0; k < 126 && i < 40 * MI; k++) {
            put(&m, made.log + i + 64 + k * 32, 4, 0x63736564);
            put(&m, made.log + i + 64 + k * 32 + 16, 8, 4 * MI);
            put(&m, made.log + i + 64 + k * 32 + 24, 8, 1);
        }
        put(&m, made.log + i + 24, 4, i < 40 * MI ? 16255 : 0);
    }
    clock_gettime(CLOCK_MONOTONIC, &t0);
    CHECK(vhdx_open_mem(&m.blk, &img, &e) == ERR_OVERLAY_CORRUPT);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    printf("  64 MiB of log: %.2f s, %llu bytes read\n",
           (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9,
           (unsigned long long)m.bytes_read);
    CHECK(m.bytes_read < 12ull * made.log_length && t1.tv_sec - t0.tv_sec < 20);
    blk_mem_free(&m);
}

/* Seeded logs of many entries: formats/ and the judge read the same. */
static void random_logs(void)
{
    u64 seed = test_seed(0x3c6ef372fe94f82b);
    unsigned replayed = 0, none = 0;
    static struct log_case c;
    for (unsigned n = 0; n < 150; n++) {
        struct vhdx_verdict v;
        struct image img;
        struct err e = {0};
        test_note("log %u", n);
        log_begin(&c);
        u32 at = (u32)rnd_below(&seed, 256) * 4 * KI, start = at;
        u64 seq = 1 + rnd_below(&seed, 1000);
        u32 tail = at, left = 256 - 8;
        for (unsigned k = 1 + (unsigned)rnd_below(&seed, 30); k && left > 8; k--) {
            if (rnd_below(&seed, 6) == 0)
                tail = at;
            u32 len = log_entry(&c, at, tail, seq, rnd_below(&seed, 2), true);
            if (rnd_below(&seed, 12) == 0) /* damaged */
                put(&c.m, c.made.log + (at + 8) % MI, 1, 0x77);
            seq += rnd_below(&seed, 15) ? 1 : 2;
            at = (at + len) % MI;
            left -= len / (4 * KI);
        }
        (void)start;
        vhdx_judge(&c.m, 5 * MI, 0, 0, &v);
        vhdx_open_mem(&c.m.blk, &img, &e);
        CHECK((e.code == OK) == v.opens);
        if (v.opens) {
            CHECK(img.size == v.size);
            replayed++;
            u64 hash = v.hash;
            vhdx_resize_mem(&c.m, 30 * MI, 1, &e);
            CHECK_ERR(&e, OK);
            vhdx_judge(&c.m, 5 * MI, 0, 0, &v);
            CHECK(vhdx_judge_clean(&v) && v.hash == hash);
        }
        none += !v.opens;
        blk_mem_free(&c.m);
    }
    test_note("%s", "");
    printf("  %u replayed, %u refused\n", replayed, none);
    CHECK(replayed > 80 && none > 3);
}

int main(void)
{
    RUN(made_images_are_clean);
    RUN(info_says);
    RUN(the_judge_sees);
    RUN(hostile_images);
    RUN(unusual_images);
    RUN(dirty_logs);
    RUN(hostile_logs);
    RUN(large_hostile_log);
    RUN(random_logs);
    return test_end();
}
