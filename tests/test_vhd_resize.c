/* SPDX-License-Identifier: MIT
 *
 * VHD, grown and shrunk: seeded pairs over images of every shape, judged by tests/vhd_judge.c and
 * read back through map(); the crash recorder and I/O number N failing over a list of cases, each
 * broken state resized once more; canaries that must be caught; the largest disk, in bounded
 * memory.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "copy.h"
#include "crc32c.h"
#include "test.h"
#include "vhd_judge.h"
#include "vhd_make.h"
#include "vhd_run.h"

/* ---- one resize, judged ---- */

/* The image as it is: with its hashes up to `upto`. */
static struct vhd_verdict look(const struct blk_mem *m, u64 upto)
{
    struct vhd_verdict v;
    vhd_judge_mem(m, upto, 0, 0, &v);
    if (!CHECK(v.opens) || !CHECK_EQ_U64(v.faults, 0))
        printf("    %s %s\n", v.why ? v.why : "", v.first);
    return v;
}

/* What our own reader shows of [from, to): zeros? And the same bytes as `before`, if given. */
static void read_back(struct blk_mem *m, const u8 *before, u64 upto, u64 zero_from, u64 zero_to)
{
    static u8 buf[64 << 10], none[64 << 10];
    struct image img;
    struct err e = {0};
    if (!CHECK(!vhd_run_open(&m->blk, NULL, &img, &e)))
        return;
    for (u64 voff = 0; voff < upto; voff += sizeof(buf)) {
        u64 n = min_u64(sizeof(buf), upto - voff);
        CHECK(!chain_read(&img, voff, buf, n, &e));
        if (!CHECK(!memcmp(buf, before + voff, n)))
            return;
    }
    for (u64 voff = zero_from; voff < zero_to; voff += sizeof(buf)) {
        u64 n = min_u64(sizeof(buf), zero_to - voff);
        CHECK(!chain_read(&img, voff, buf, n, &e));
        if (!CHECK(!memcmp(buf, none, n)))
            return;
    }
}

static u8 *content(struct blk_mem *m, u64 size)
{
    u8 *all = malloc(size + 1);
    struct image img;
    struct err e = {0};
    CHECK(!vhd_run_open(&m->blk, "vpc", &img, &e) && img.size >= size);
    CHECK(!chain_read(&img, 0, all, size, &e));
    return all;
}

/* Resizes to `want` and checks all that must hold then. Returns the size that it got. */
static u64 resize_checked(struct blk_mem *m, u64 want, bool bytes)
{
    struct vhd_verdict old, new;
    struct err e = {0};
    old = look(m, 0);
    u64 seen = max_u64(max_u64(old.size, old.size_current), old.size_qemu7);
    u64 kept = min_u64(old.size, want);
    old = look(m, kept);
    u8 *before = bytes ? content(m, kept) : NULL;
    vhd_run_mem(m, want, &e);
    if (!CHECK_ERR(&e, OK))
        goto out;
    vhd_judge_mem(m, kept, min_u64(seen, UINT64_MAX), UINT64_MAX, &new);
    if (!CHECK(new.opens && !new.faults))
        printf("    %s %s\n", new.why ? new.why : "", new.first);
    bool stays = new.size == old.size &&want <= old.size;
    CHECK(new.size >= want && (new.size < want + MI(3) || stays || want < seen));
    CHECK(stays || (new.size_qemu7 == new.size &&new.size_current == new.size));
    CHECK(new.tail &&new.tail_same &&new.settled &&new.padded);
    CHECK_EQ_U64(new.hash, old.hash);
    CHECK_EQ_U64(new.hash_raw, old.hash_raw);
    CHECK(new.zero);
    if (want < old.size && !stays) { /* nothing may come back either */
        vhd_judge_mem(m, kept, new.size, UINT64_MAX, &new);
        CHECK(new.zero);
    }
    if (bytes)
        read_back(m, before, kept, old.size, new.size);
out:
    free(before);
    return new.size;
}

/* ---- pairs ---- */

static const char *const creators[] = {"qemu",  "vpc ", "win ", "qem2", "vbox", "wa\0\0",
                                       "tap\0", "vs  ", "CTXS", "d2v ", "????"};

static struct vhd_make random_image(u64 *seed)
{
    static const u32 block_sizes[] = {512, 4096, 16 << 10, 64 << 10, 512 << 10, 2 << 20};
    struct vhd_make p = {.creator = creators[rnd_below(seed, 11)], .seed = rnd(seed)};
    p.block_size = block_sizes[rnd_below(seed, 6)];
    p.size = 512 * (1 + rnd_below(seed, p.block_size / 512 * (rnd_below(seed, 2) ? 30 : 300)));
    p.geometry = (enum make_geometry)rnd_below(seed, 3);
    if (!strcmp(p.creator, "qemu") || !strcmp(p.creator, "vpc "))
        p.geometry = rnd_below(seed, 4) ? GEOMETRY_UP : GEOMETRY_MAX;
    p.every = (u32)rnd_below(seed, 6);
    p.last = rnd_below(seed, 2);
    p.sectors = p.block_size > 64 << 10 ? 64 : (u32)rnd_below(seed, 2) * 4;
    p.shuffled = rnd_below(seed, 2);
    p.holes = rnd_below(seed, 3) ? 0 : 1 + (u32)rnd_below(seed, 5);
    p.gap = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 40);
    p.slack = rnd_below(seed, 4) ? 0 : (u32)rnd_below(seed, 99);
    p.extra_entries = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 20);
    p.stale_entries = p.block_size <= 64 << 10 && rnd_below(seed, 2);
    p.stale_rest = rnd_below(seed, 2);
    p.stale_bits = p.block_size <= 64 << 10 && rnd_below(seed, 4) == 0;
    p.table_last = rnd_below(seed, 4) == 0;
    p.no_tail = rnd_below(seed, 8) == 0;
    return p;
}

/* INSTAR_PAIRS sets another number. */
static void pairs(void)
{
    u64 seed = test_seed(0x510e527fade682d1), stayed = 0;
    const char *n = getenv("INSTAR_PAIRS");
    int cnt = n ? atoi(n) : 300;
    for (int i = 0; i < cnt; i++) {
        struct vhd_make p = random_image(&seed);
        struct vhd_made made;
        struct blk_mem m;
        vhd_make(&m, &p, &made);
        u64 unit = p.block_size, size = made.size;
        u64 larger =
            size + 512 * (1 + rnd_below(&seed, unit / 512 * (rnd_below(&seed, 2) ? 2 : 999)));
        u64 smaller = 512 * (1 + rnd_below(&seed, size / 512));
        test_note("pair %d: '%.4s' block %u size %llu -> %llu -> %llu every %u last %d shuffled %d "
                  "holes %u gap %u slack %u extra %u stale %d%d%d table_last %d no_tail %d geo %d",
                  i, p.creator, p.block_size, (unsigned long long)size, (unsigned long long)larger,
                  (unsigned long long)smaller, p.every, p.last, p.shuffled, p.holes, p.gap, p.slack,
                  p.extra_entries, p.stale_entries, p.stale_rest, p.stale_bits, p.table_last,
                  p.no_tail, p.geometry);
        bool bytes = size < MI(20);
        u64 grown = resize_checked(&m, larger, bytes);
        u64 length = m.length;
        stayed += resize_checked(&m, min_u64(smaller, grown - 512), bytes) == grown;
        CHECK(m.length <= length);
        resize_checked(&m, grown + unit, bytes);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %d pairs, each grown once more; %llu shrinks within what one geometry says\n", cnt,
           (unsigned long long)stayed);
}

/* A shrink gives back all but what is used: no gap of a block's length stays. */
static void shrink_gives_back(void)
{
    const struct vhd_make p = {.creator = "qem2",
                               .geometry = GEOMETRY_MAX,
                               .block_size = 16 << 10,
                               .size = KI(16) * 64,
                               .every = 1,
                               .shuffled = true,
                               .holes = 7};
    struct vhd_made made;
    struct blk_mem m;
    vhd_make(&m, &p, &made);
    resize_checked(&m, KI(16) * 20, true);
    CHECK_EQ_U64(m.length, 1536 + 512 + 20 * (KI(16) + 512) + 512);
    resize_checked(&m, GI(9), true); /* the BAT goes to the end of the file ... */
    CHECK(m.length > 20 * KI(16) + GI(9) / KI(16) * 4);
    resize_checked(&m, KI(16) * 20, true); /* ... and comes back */
    CHECK_EQ_U64(m.length, 1536 + 512 + 20 * (KI(16) + 512) + 512);
    blk_mem_free(&m);
}

/* ---- fixed disks ---- */

/* Nothing is lost, zeros are gained, the file ends with the disk's one footer. */
static void grow_fixed(struct blk_mem *m, u64 larger)
{
    struct vhd_verdict v = look(m, 0), after;
    struct err e = {0};
    u64 length = m->length;
    u64 end = max_u64(v.size, v.size_current); /* what some reader calls the disk's */
    v = look(m, end);
    vhd_run_mem(m, larger, &e);
    CHECK_ERR(&e, OK);
    after = look(m, 0);
    CHECK(after.size >= larger && after.size - larger < MI(1));
    CHECK(m->length == max_u64(after.size + 512, length));
    vhd_judge_mem(m, end, end, after.size, &after);
    CHECK(after.hash == v.hash && after.zero);
}

static void fixed_disks(void)
{
    u64 seed = test_seed(0x5be0cd19137e2179);
    for (int i = 0; i < 60; i++) {
        struct vhd_make p = {.type = VHD_FIXED,
                             .creator = creators[rnd_below(&seed, 11)],
                             .size = 512 * (2 + rnd_below(&seed, 3000)),
                             .seed = rnd(&seed)};
        if (strcmp(p.creator, "qemu") && strcmp(p.creator, "vpc "))
            p.geometry = (enum make_geometry)rnd_below(&seed, 3);
        p.slack = rnd_below(&seed, 3) ? 0 : (u32)rnd_below(&seed, 9);
        struct vhd_made made;
        struct blk_mem m, copy;
        struct err e = {0};
        vhd_make(&m, &p, &made);
        u64 smaller = 512 * (1 + rnd_below(&seed, made.size / 512 - 1));
        test_note("fixed %d: '%.4s' %llu -> %llu", i, p.creator, (unsigned long long)made.size,
                  (unsigned long long)smaller);
        u64 larger = made.size + 512 * (1 + rnd_below(&seed, 3000)), got;
        static const u32 units[] = {0, 512, 4096};
        for (int k = 0; k < 3; k++) {
            blk_mem_over(&copy, &m);
            copy.blk.insert_unit = units[k];
            grow_fixed(&copy, larger);
            blk_mem_free(&copy);
        }
        if (p.slack) { /* the judge calls slack a part of the file */
            struct vhd_verdict v = look(&m, smaller), after;
            vhd_run_mem(&m, smaller, &e);
            CHECK_ERR(&e, OK);
            vhd_judge_mem(&m, smaller, 0, 0, &after);
            CHECK(after.opens && after.size >= smaller && after.hash == v.hash);
            got = after.size;
        } else {
            got = resize_checked(&m, smaller, true);
        }
        CHECK(got >= smaller && got <= made.size);
        CHECK_EQ_U64(m.length, got + 512); /* slack goes, even if the size stays */
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* ---- crashes and faults ---- */

struct resize_case {
    const char *name;
    struct vhd_make p;
    u64 new_size;
};

/* clang-format off */
static const struct resize_case cases[] = {
    { "grow within the BAT", { .block_size = 4096, .creator = "win ", .size = KI(40) + 512,
        .geometry = GEOMETRY_SPEC, .every = 2, .last = true, .stale_rest = true }, KI(43) },
    { "grow in place", { .block_size = 4096, .creator = "qem2", .size = KI(400) + 512,
        .geometry = GEOMETRY_MAX, .every = 3, .last = true, .gap = 9, .stale_rest = true },
      KI(2000) },
    { "grow within the BAT over stale entries", { .block_size = 4096, .creator = "win ",
        .size = KI(40), .geometry = GEOMETRY_SPEC, .every = 2, .extra_entries = 9,
        .stale_entries = true, .shuffled = true }, KI(64) + 512 },
    { "the BAT moves", { .block_size = 4096, .size = KI(400), .every = 3, .last = true,
        .stale_rest = true }, KI(4000) },
    { "the BAT moves into slack", { .block_size = 4096, .size = KI(400), .every = 3, .last = true,
        .slack = 40 }, KI(4000) },
    { "the BAT moves, and stale entries go", { .block_size = 4096, .size = KI(200), .every = 3,
        .extra_entries = 4, .stale_entries = true, .stale_rest = true, .last = true }, KI(4000) },
    { "the BAT of an empty disk moves", { .block_size = 4096, .creator = "vbox", .size = KI(200),
        .geometry = GEOMETRY_SPEC }, KI(4000) },
    { "grow without a footer at the end", { .block_size = 4096, .size = KI(200), .every = 3,
        .no_tail = true }, KI(4000) },
    { "grow in place without a footer at the end", { .block_size = 4096, .creator = "CTXS",
        .size = KI(200), .geometry = GEOMETRY_SPEC, .every = 3, .gap = 4, .no_tail = true },
      KI(700) },
    { "grow with slack", { .block_size = 4096, .creator = "tap\0", .geometry = GEOMETRY_SPEC,
        .size = KI(200), .every = 3, .slack = 5 }, KI(300) },
    { "shrink", { .block_size = 4096, .creator = "win ", .geometry = GEOMETRY_SPEC,
        .size = KI(160), .every = 1 }, KI(40) },
    { "shrink into a block", { .block_size = 4096, .creator = "wa\0\0", .geometry = GEOMETRY_SPEC,
        .size = KI(160), .every = 1, .shuffled = true }, KI(40) + 512 },
    { "shrink, blocks of 64 KiB", { .block_size = 64 << 10, .creator = "qem2", .sectors = 4,
        .geometry = GEOMETRY_MAX, .size = KI(640), .every = 1, .shuffled = true }, KI(321) },
    { "shrink, by geometry", { .block_size = 4096, .size = KI(300), .every = 2, .holes = 3,
        .shuffled = true, .last = true }, KI(140) },
    { "shrink, the BAT behind the blocks", { .block_size = 4096, .creator = "qem2",
        .geometry = GEOMETRY_MAX, .size = KI(160), .every = 1, .table_last = true, .gap = 3 },
      KI(80) },
    { "shrink, stale entries and slack", { .block_size = 4096, .creator = "win ",
        .geometry = GEOMETRY_SPEC, .size = KI(160), .every = 2, .extra_entries = 5, .last = true,
        .stale_entries = true, .slack = 7, .shuffled = true }, KI(81) },
    { "shrink without a footer at the end", { .block_size = 4096, .creator = "win ",
        .geometry = GEOMETRY_SPEC, .size = KI(160), .every = 1, .no_tail = true,
        .shuffled = true }, KI(81) },
    { "shrink, bits clear", { .block_size = 16 << 10, .creator = "win ", .stale_bits = true,
        .geometry = GEOMETRY_SPEC, .size = KI(320), .every = 1, .shuffled = true }, KI(81) },
    { "shrink a fixed disk", { .type = VHD_FIXED, .creator = "win ", .geometry = GEOMETRY_SPEC,
        .size = KI(40) }, KI(21) },
    { "grow a fixed disk into slack", { .type = VHD_FIXED, .creator = "win ",
        .geometry = GEOMETRY_SPEC, .size = KI(40), .slack = 60 }, KI(62) },
    { "grow a fixed disk into all of the slack", { .type = VHD_FIXED, .creator = "qem2",
        .geometry = GEOMETRY_MAX, .size = KI(40), .slack = 4 }, KI(42) },
    { "shrink a fixed disk by one sector", { .type = VHD_FIXED, .creator = "qem2",
        .geometry = GEOMETRY_MAX, .size = KI(40) }, KI(40) - 512 },
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0], RANDOM_SUBSETS = 24, AGAIN_EVERY = 13 };

struct crash {
    const struct resize_case *c;
    u64 old_size, new_size, old_hash, kept_hash, kept_raw;
    u64 states, opened_old, opened_new, again, bad;
    bool canary;
    char first[400];
};

/* A reader that goes by `size`: has it the old data, whole, or the new? */
static const char *wrong_at(const struct crash *c, const struct blk_mem *state, u64 size)
{
    struct vhd_verdict v;
    u64 kept = min_u64(c->old_size, c->new_size);
    if (size != c->old_size && size != c->new_size)
        return "it has neither the old nor the new size";
    vhd_judge_mem(state, kept, c->old_size, size, &v);
    if (v.hash != c->kept_hash || v.hash_raw != c->kept_raw)
        return "guest data is lost";
    if (size > c->old_size && !v.zero)
        return "the new area does not read zero";
    vhd_judge_mem(state, c->old_size, 0, 0, &v);
    return size == c->old_size && v.hash != c->old_hash ? "it has the old size, but not its data"
                                                        : NULL;
}

static const char *wrong(const struct crash *c, const struct blk_mem *state, struct vhd_verdict *v)
{
    static char text[200];
    vhd_judge_mem(state, 0, 0, 0, v);
    if (!v->opens)
        return v->why;
    if (v->faults) {
        snprintf(text, sizeof(text), "%s", v->first);
        return text;
    }
    const char *bad = wrong_at(c, state, v->size);
    return !bad && v->tail ? wrong_at(c, state, v->tail_size) : bad; /* Hyper-V goes by that one */
}

/* The same resize, run again on what a crash left: it finishes, and mends the footers. */
static void run_again(struct crash *c, struct blk_mem *state)
{
    struct blk_mem next;
    struct vhd_verdict v;
    struct err e = {0};
    blk_mem_over(&next, state);
    vhd_run_mem(&next, c->c->new_size, &e);
    CHECK_ERR(&e, OK);
    const char *bad = wrong(c, &next, &v);
    if (!CHECK(!bad))
        printf("    run again: %s\n", bad);
    bool fixed = c->c->p.type == VHD_FIXED; /* there, bytes of nobody's may be left */
    CHECK(v.size == c->new_size && v.tail_same && (v.settled || fixed));
    c->again++;
    blk_mem_free(&next);
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct vhd_verdict v;
    const char *bad = wrong(c, state, &v);
    c->states++;
    c->opened_old += v.opens && v.size == c->old_size;
    c->opened_new += v.opens && v.size == c->new_size;
    if (bad && !c->bad++)
        snprintf(c->first, sizeof(c->first), "%s: %s", what, bad);
    if (c->canary)
        return !bad;
    if (!CHECK(!bad))
        printf("    %s\n", c->first);
    else if (c->states % AGAIN_EVERY == 5)
        run_again(c, state);
    return test_failures() < 8;
}

static void begin(struct crash *c, struct blk_mem *m, const struct resize_case *g)
{
    struct vhd_made made;
    struct blk_mem done;
    struct vhd_verdict v;
    struct err e = {0};
    *c = (struct crash){.c = g};
    vhd_make(m, &g->p, &made);
    v = look(m, made.size);
    c->old_size = v.size;
    c->old_hash = v.hash;
    blk_mem_over(&done, m);
    vhd_run_mem(&done, g->new_size, &e);
    CHECK_ERR(&e, OK);
    c->new_size = look(&done, 0).size;
    CHECK(c->new_size != c->old_size);
    blk_mem_free(&done);
    v = look(m, min_u64(c->old_size, c->new_size));
    c->kept_hash = v.hash;
    c->kept_raw = v.hash_raw;
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0x1f83d9abfb41bd6b), total = 0, again = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct blk_record r;
        struct crash c;
        struct err e = {0};
        u64 length;
        test_note("case %u, %s", i, cases[i].name);
        begin(&c, &m, &cases[i]);
        blk_record_init(&r, &m);
        vhd_run(&r.blk, cases[i].new_size, PREALLOC_OFF, &length, &e);
        CHECK_ERR(&e, OK);
        u64 n = blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &c);
        CHECK(n == c.states && n >= 3 && !c.bad && c.opened_old && c.opened_new);
        CHECK_EQ_U64(c.opened_old + c.opened_new, n);
        total += n, again += c.again;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states of %d resizes, %llu of them resized again\n",
           (unsigned long long)total, (int)CASES, (unsigned long long)again);
}

/* ---- P10 ---- */

struct undone {
    const struct blk_mem *old;
    u64 states, changed;
};

/* What a crash leaves of an epoch with a journal: each sector that was announced is as it was, or
 * as announced; no other is changed, but for zeros behind the old end. */
static bool can_be_undone(void *ctx, struct blk_mem *state, const char *what)
{
    struct undone *u = ctx;
    u64 end = max_u64(state->length, u->old->length);
    bool touched = state->length != u->old->length;
    u->states++;
    CHECK(state->length >= u->old->length);
    for (u64 off = 0; off < end; off += 512) {
        u8 then[512], now[512];
        blk_mem_get(u->old, off, then, 512); /* zeros behind its end */
        blk_mem_get(state, off, now, 512);
        if (!memcmp(then, now, 512))
            continue;
        unsigned i = 0;
        while (i < vhd_undo.cnt && vhd_undo.off[i] != off)
            i++;
        if (!CHECK(i < vhd_undo.cnt && crc32c(0, now, 512) == vhd_undo.crc[i]))
            printf("    %s: sector %llu\n", what, (unsigned long long)off / 512);
        touched = true;
    }
    u->changed += touched;
    return test_failures() < 8;
}

static void what_a_journal_covers(void)
{
    u64 seed = test_seed(0x9b05688c2b3e6c1f), states = 0;
    for (int i = 0; i < 20; i++) {
        struct vhd_make p = {.type = VHD_FIXED,
                             .creator = creators[rnd_below(&seed, 11)],
                             .size = 512 * (2 + rnd_below(&seed, 100)),
                             .seed = rnd(&seed)};
        struct vhd_made made;
        struct blk_mem m;
        struct blk_record r;
        struct err e = {0};
        u64 length;
        vhd_make(&m, &p, &made);
        struct undone u = {.old = &m};
        test_note("fixed %d: '%.4s' %llu", i, p.creator, (unsigned long long)made.size);
        blk_record_init(&r, &m);
        vhd_run(&r.blk, made.size + 512 * (1 + rnd_below(&seed, 200)),
                (enum preallocation)(i % 4 == 1 ? PREALLOC_OFF : i % 4), &length, &e);
        CHECK_ERR(&e, OK);
        CHECK(vhd_undo.cnt == 2 && vhd_undo.off[0] != vhd_undo.off[1]);
        states += blk_record_states(&r, seed, RANDOM_SUBSETS, can_be_undone, &u);
        CHECK(u.changed > 2 && u.changed < u.states);
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states, each with a way back\n", (unsigned long long)states);
}

/* Where qemu puts the next block it takes what is there for zero: is all of it, but for the footer
 * that ends the file and one that it is about to become? */
static bool clean_behind(const struct blk_mem *m)
{
    static const u8 none[512];
    struct vhd_verdict v;
    u8 p[512];
    vhd_judge_mem(m, 0, 0, 0, &v);
    CHECK(v.opens && !v.faults);
    for (u64 at = v.used_end; at + 512 < m->length; at += 512) {
        blk_mem_get(m, at, p, 512);
        if (memcmp(p, none, 512) && (at != v.used_end || memcmp(p, "conectix", 8)))
            return false;
    }
    return true;
}

/* Killed between two barriers, a shrink leaves old bytes there for one step at most. */
static void never_unclean_for_long(void)
{
    unsigned barriers = 0, unclean = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m, now;
        struct blk_record r;
        struct vhd_made made;
        struct err e = {0};
        u64 length;
        bool before = false;
        const struct vhd_make *p = &cases[i].p;
        vhd_make(&m, p, &made);
        if (cases[i].new_size > made.size || p->type == VHD_FIXED || p->slack || p->no_tail) {
            blk_mem_free(&m);
            continue;
        }
        test_note("case %u, %s", i, cases[i].name);
        blk_record_init(&r, &m);
        vhd_run(&r.blk, cases[i].new_size, PREALLOC_OFF, &length, &e);
        CHECK_ERR(&e, OK);
        blk_mem_over(&now, &m);
        for (size_t k = 0; k < r.cnt; k++) {
            const struct record_entry *w = &r.log[k];
            if (w->kind == REC_WRITE)
                blk_mem_put(&now, w->off, w->data, w->len);
            else if (w->kind == REC_ZERO)
                blk_mem_clear(&now, w->off, w->len);
            else if (w->kind == REC_FLUSH) {
                bool bad = !clean_behind(&now);
                CHECK(!bad || !before);
                before = bad, unclean += bad, barriers++;
            }
        }
        CHECK(!before);
        blk_mem_free(&now);
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u barriers, old bytes behind the last structure at %u\n", barriers, unclean);
    CHECK(barriers > 30);
}

/* ---- canaries ---- */

static int no_flush(struct blk *b, struct err *e)
{
    (void)b, (void)e;
    return 0;
}

/* The recorded run once more, its first write to the footer at the head in front. */
static void commit_first(struct blk *b, const struct blk_record *done)
{
    struct err e = {0};
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < done->cnt; i++) {
            const struct record_entry *w = &done->log[i];
            if (w->kind == REC_WRITE && (w->off < 512) == (pass == 0))
                blk_write(b, w->off, w->data, w->len, &e);
            else if (w->kind == REC_ZERO && pass)
                blk_zero(b, w->off, w->len, false, &e);
            else if (w->kind == REC_FLUSH)
                blk_flush(b, &e);
            else if (w->kind == REC_GROW)
                blk_grow(b, w->len, &e);
        }
    CHECK_ERR(&e, OK);
}

/* Plans whose barriers do nothing, and grows that commit first, leave broken states. */
static void canaries_are_caught(void)
{
    unsigned flown = 0, caught = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct crash c;
        u64 length;
        begin(&c, &m, &cases[i]);
        bool grows = c.new_size > c.old_size;
        for (int how = 0; how < 2; how++) {
            struct blk_record r, done;
            struct blk_ops lazy;
            struct err e = {0};
            test_note("case %u, %s; canary %d", i, cases[i].name, how);
            c.canary = true, c.bad = c.states = 0;
            blk_record_init(&r, &m);
            if (how == 0) {
                lazy = *r.blk.ops;
                lazy.flush = no_flush;
                r.blk.ops = &lazy;
                vhd_run(&r.blk, cases[i].new_size, PREALLOC_OFF, &length, &e);
            } else if (grows) {
                blk_record_init(&done, &m);
                vhd_run(&done.blk, cases[i].new_size, PREALLOC_OFF, &length, &e);
                commit_first(&r.blk, &done);
                blk_record_free(&done);
            }
            CHECK_ERR(&e, OK);
            blk_record_states(&r, 1, RANDOM_SUBSETS, judge, &c);
            bool must = cases[i].p.type != VHD_FIXED && (how == 0 || grows);
            CHECK(!must || c.bad || strstr(cases[i].name, "without") ||
                  strstr(cases[i].name, "within the BAT") || strstr(cases[i].name, "slack"));
            flown += must, caught += must && c.bad;
            blk_record_free(&r);
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u canaries, %u caught\n", flown, caught);
    CHECK(caught >= 18);
}

static void fault_sweep(void)
{
    u64 runs = 0, old = 0, new = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct crash c;
        begin(&c, &m, &cases[i]);
        for (int stay = 0; stay < 2; stay++) {
            int rc = 1;
            for (u64 n = 1; rc && n < 5000; n++) {
                struct blk_mem now;
                struct blk_fault f;
                struct vhd_verdict v;
                struct err e = {0};
                u64 length;
                test_note("case %u, %s; I/O %llu fails, stay %d", i, cases[i].name,
                          (unsigned long long)n, stay);
                blk_mem_over(&now, &m);
                blk_fault_init(&f, &now.blk, n, stay);
                rc = vhd_run(&f.blk, cases[i].new_size, PREALLOC_OFF, &length, &e);
                const char *bad = wrong(&c, &now, &v);
                if (!CHECK(!bad))
                    printf("    %s\n", bad);
                CHECK((f.seen >= n) == (rc != 0));
                if (rc)
                    CHECK(e.code == ERR_READ_FAILED || e.code == ERR_WRITE_FAILED ||
                          e.code == ERR_NO_SPACE);
                old += rc && v.size == c.old_size, new += rc &&v.size == c.new_size;
                if (rc && n % 5 == 0)
                    run_again(&c, &now);
                runs++;
                blk_mem_free(&now);
            }
            CHECK(!rc);
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way: %llu left the old size, %llu the new\n",
           (unsigned long long)runs, (unsigned long long)old, (unsigned long long)new);
    CHECK(old > 100 && new > 100);
}

/* ---- limits ---- */

static void the_largest(void)
{
    const u64 max = GI(2040);
    struct vhd_make p = {.creator = "qem2",
                         .geometry = GEOMETRY_MAX,
                         .size = max - GI(1),
                         .sectors = 1,
                         .every = 300000};
    struct vhd_made made;
    struct blk_mem m;
    struct err e = {0};
    vhd_make(&m, &p, &made);
    resize_checked(&m, max, false);
    u64 table = made.entries * 4ull;
    m.bytes_read = m.bytes_written = m.reads = 0;
    vhd_run_mem(&m, max - MI(2), &e);
    CHECK_ERR(&e, OK);
    CHECK(m.bytes_read < 8 * table + MI(9) && m.reads < 300 && m.bytes_written < MI(9));
    vhd_run_mem(&m, max + 512, &e);
    CHECK_ERR(&e, ERR_INVALID_NEW_SIZE);
    blk_mem_free(&m);
    /* a small disk that becomes the largest, and small again */
    p = (struct vhd_make){.size = MI(20), .sectors = 9, .every = 1};
    vhd_make(&m, &p, &made);
    CHECK_EQ_U64(resize_checked(&m, max, false), max);
    CHECK(m.length < MI(30));
    resize_checked(&m, MI(4), false);
    CHECK(m.length < MI(7));
    blk_mem_free(&m);
}

/* Windows over the file, where memory for the buckets of all of it is lacking. */
static void many_small_blocks(void)
{
    struct vhd_make p = {.creator = "qem2",
                         .geometry = GEOMETRY_MAX,
                         .size = GI(8),
                         .block_size = 512,
                         .every = 1u << 19,
                         .last = true};
    struct vhd_made made;
    struct blk_mem m;
    struct err e = {0};
    u64 length, at;
    struct blk_mem copy;
    vhd_make(&m, &p, &made);
    blk_mem_truncate(&m, made.used_end); /* far blocks, and a footer behind them */
    u8 footer[VF_LENGTH], entry[4];
    blk_mem_get(&m, 0, footer, VF_LENGTH);
    for (u64 i = 0; i < 3; i++) {
        u64 off = GI(8) + i * GI(1);
        put_be32(entry, (u32)(off / 512));
        blk_mem_put(&m, made.table_offset + 4 * (1 + i), entry, 4);
        blk_mem_put(&m, off, "\xff", 1);
        blk_mem_put(&m, off + 512, "guest", 5);
    }
    blk_mem_put(&m, GI(11), footer, VF_LENGTH);
    blk_mem_truncate(&m, GI(11) + VF_LENGTH);
    struct vhd_verdict v = look(&m, GI(4)), after;
    vhd_run_mem(&m, GI(4), &e);
    CHECK_ERR(&e, OK);
    after = look(&m, GI(4));
    CHECK(after.hash == v.hash && after.settled && after.tail_same && after.size == GI(4));
    blk_mem_over(&copy, &m);
    put_be32(entry,
             (u32)(GI(10) / 512 + 1)); /* on the last of them, a window away from the first */
    blk_mem_put(&copy, made.table_offset + 4 * 9, entry, 4);
    blk_mem_put(&m, made.table_offset + 4 * 9, entry, 4);
    CHECK(vhd_run(&copy.blk, GI(3), PREALLOC_OFF, &length, &e));
    CHECK_ERR(&e, ERR_OVERLAY_CORRUPT);
    CHECK(blk_mem_equal(&copy, &m, &at));
    blk_mem_free(&copy);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(pairs);
    RUN(shrink_gives_back);
    RUN(fixed_disks);
    RUN(every_crash_state);
    RUN(what_a_journal_covers);
    RUN(never_unclean_for_long);
    RUN(canaries_are_caught);
    RUN(fault_sweep);
    RUN(the_largest);
    RUN(many_small_blocks);
    return test_end();
}
