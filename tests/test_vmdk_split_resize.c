/* SPDX-License-Identifier: MIT
 *
 * VMDKs of several files, grown and shrunk: seeded pairs over every kind, judged by
 * tests/vmdk_set_run.c and read back through map(); extents that fill up, come and go; the
 * descriptor's edit; the crash recorder and I/O number N failing over all files at once, each
 * broken state resized once more; canaries that must be caught; what is refused.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "copy.h"
#include "test.h"
#include "vmdk_judge.h"
#include "vmdk_plan.h"
#include "vmdk_set.h"

#define KI(n) ((u64)(n) << 10)
#define MI(n) ((u64)(n) << 20)
#define GI(n) ((u64)(n) << 30)

enum { FULL = 4194304, FULL_VMWARE = 4192256 };

static bool is_flat(const struct vmdk_set_make *p)
{
    return p->type && strstr(p->type, "Flat");
}

static u64 size_of(const struct vmdk_set_make *p)
{
    u64 sum = 0;
    for (unsigned i = 0; i < SET_EXTENTS; i++)
        sum += p->sectors[i] * 512;
    return sum;
}

/* ---- one resize, judged ---- */

static struct vmdk_set_verdict look(const struct blk_mem *box, u64 upto, u64 zero_from)
{
    struct vmdk_set_verdict v;
    vmdk_set_judge(box, upto, zero_from, &v);
    if (!CHECK(v.opens && !v.faults))
        printf("    %s %s\n", v.why, v.first);
    return v;
}

/* Our own reader shows the same. */
static void read_back(struct blk_mem *box, const struct vmdk_set_verdict *v, u64 upto)
{
    static struct vmdk_set s;
    struct err e = {0};
    u8 *all = malloc(upto + 1);
    if (CHECK(!vmdk_set_open(&s, &box->blk, box, NULL, &e)) && CHECK_EQ_U64(s.img.size, v->size)) {
        CHECK(!chain_read(&s.img, 0, all, upto, &e));
        CHECK_EQ_U64(vmdk_judge_plain(all, upto), v->hash);
    }
    free(all);
}

/* Resizes and checks all that must hold then. Returns the size that it got. */
static u64 resize_checked(struct blk_mem *box, u64 want, u64 unit, struct vmdk_set_out *out)
{
    struct vmdk_set_verdict old = look(box, 0, UINT64_MAX), new;
    struct err e = {0};
    u64 size = old.size;
    vmdk_set_resize(box, want, out, &e);
    if (!CHECK_ERR(&e, OK))
        return 0;
    new = look(box, 0, size);
    CHECK(new.size >= want &&new.size < want + unit);
    CHECK(want != size || new.size == size);
    CHECK_EQ_U64(new.line_size, new.size);
    CHECK(new.geometry &&new.zero && !new.stale);
    CHECK(want <= size || !new.absent);
    CHECK_EQ_U64(new.text_hash, old.text_hash);
    return new.size;
}

/* The same, and the data that both sizes have. */
static u64 resize_compared(struct blk_mem *box, u64 want, u64 unit, struct vmdk_set_out *out)
{
    struct blk_mem before;
    blk_mem_over(&before, box);
    struct blk_mem now;
    blk_mem_over(&now, &before);
    u64 to = resize_checked(&now, want, unit, out);
    u64 kept = min_u64(look(&before, 0, UINT64_MAX).size, to);
    struct vmdk_set_verdict old = look(&before, kept, UINT64_MAX);
    struct vmdk_set_verdict new = look(&now, kept, UINT64_MAX);
    CHECK_EQ_U64(new.hash, old.hash);
    if (kept < MI(20))
        read_back(&now, &new, kept);
    /* `now` becomes the box: its pages are moved into it, file by file. */
    for (unsigned i = 0; i < SET_FILES; i++) {
        struct blk_mem file;
        u8 page[MEM_PAGE];
        bool exists = vmdk_set_exists(&now, i);
        vmdk_set_extract(&now, i, &file);
        vmdk_set_remove(box, i);
        if (exists)
            vmdk_set_truncate(box, i, file.length);
        for (size_t k = 0; k < file.slots_cnt; k++) {
            u64 off = (file.slots[k].page - 1) * MEM_PAGE;
            if (!file.slots[k].page || off >= file.length)
                continue;
            u64 n = min_u64(MEM_PAGE, file.length - off);
            blk_mem_get(&file, off, page, n);
            vmdk_set_put(box, i, off, page, n);
        }
        blk_mem_free(&file);
    }
    blk_mem_free(&now);
    blk_mem_free(&before);
    return to;
}

/* ---- pairs ---- */

static struct vmdk_set_make random_set(u64 *seed)
{
    static const char *const types[] = {"monolithicFlat", "twoGbMaxExtentFlat",
                                        "twoGbMaxExtentSparse", "twoGbMaxExtentSparse"};
    static const u32 grains[] = {8, 16, 128, 128}, gtes[] = {512, 512, 128, 100};
    struct vmdk_set_make p = {.type = types[rnd_below(seed, 4)]};
    bool flat = is_flat(&p), single = strstr(p.type, "mono") != NULL;
    p.grain = flat ? 0 : grains[rnd_below(seed, 4)];
    p.gtes = gtes[rnd_below(seed, 4)];
    p.cnt = single ? 1 : 1 + (u32)rnd_below(seed, 4);
    for (unsigned i = 0; i < p.cnt; i++)
        p.sectors[i] = 1 + rnd_below(seed, rnd_below(seed, 2) ? 700 : 9000);
    if (!single && rnd_below(seed, 6) == 0)
        p.sectors[0] = rnd_below(seed, 2) ? FULL : FULL_VMWARE;
    p.seed = rnd(seed);
    p.version = 1 + (u32)rnd_below(seed, 3);
    p.no_rgd = rnd_below(seed, 4) == 0;
    p.zeroed = rnd_below(seed, 4) == 0;
    p.every = (u32)rnd_below(seed, 5);
    if (p.sectors[0] >= FULL_VMWARE)
        p.every = 9999;
    p.last = rnd_below(seed, 2);
    p.data = (u32)rnd_below(seed, 4);
    p.shuffled = rnd_below(seed, 2);
    p.short_end = rnd_below(seed, 4) == 0;
    p.stale_rest = rnd_below(seed, 2);
    p.stale_entries = rnd_below(seed, 4) == 0 && p.sectors[0] < FULL_VMWARE;
    p.stale_slack = rnd_below(seed, 2);
    p.tables_last = rnd_below(seed, 4) == 0;
    p.slack = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 99);
    p.offset = rnd_below(seed, 3) || !flat ? 0 : (u32)rnd_below(seed, 99);
    p.pad = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 600);
    p.tail = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 900);
    p.crlf = rnd_below(seed, 3) == 0;
    p.no_ddb = rnd_below(seed, 4) == 0;
    p.last_line = rnd_below(seed, 4) == 0;
    p.between = rnd_below(seed, 4) == 0;
    return p;
}

/* INSTAR_PAIRS sets another number. */
static void pairs(void)
{
    u64 seed = test_seed(0x452821e638d01377), made = 0, dropped = 0, undone = 0;
    const char *n = getenv("INSTAR_PAIRS");
    int cnt = n ? atoi(n) : 240;
    for (int i = 0; i < cnt; i++) {
        struct vmdk_set_make p = random_set(&seed);
        struct vmdk_set_out out;
        struct blk_mem box;
        vmdk_set_build(&box, &p);
        u64 size = size_of(&p), unit = is_flat(&p) ? 512 : p.grain * 512ull;
        u64 larger = size + 1 + rnd_below(&seed, rnd_below(&seed, 2) ? MI(5) : GI(6));
        u64 smaller = 1 + rnd_below(&seed, size);
        test_note("pair %d: %s, %u extents, %llu -> %llu -> %llu grain %u gtes %u no_rgd %d zeroed "
                  "%d every %u last %d short %d stale %d%d%d tables_last %d slack %u offset %u pad "
                  "%u tail %u crlf %d no_ddb %d last_line %d between %d",
                  i, p.type, p.cnt, (unsigned long long)size, (unsigned long long)larger,
                  (unsigned long long)smaller, p.grain, p.gtes, p.no_rgd, p.zeroed, p.every, p.last,
                  p.short_end, p.stale_rest, p.stale_entries, p.stale_slack, p.tables_last, p.slack,
                  p.offset, p.pad, p.tail, p.crlf, p.no_ddb, p.last_line, p.between);
        u64 grown = resize_compared(&box, larger, unit, &out);
        made += out.fresh[0] != 0, undone += out.undo != 0;
        resize_compared(&box, smaller, unit, &out);
        dropped += out.dropped != 0, undone += out.undo != 0;
        resize_compared(&box, grown + unit, unit, &out);
        struct blk_mem before;
        struct err e = {0};
        blk_mem_over(&before, &box); /* nothing is left to do */
        CHECK(!vmdk_set_resize(&before, vmdk_set_length(&box, 0) ? grown + unit : 0, &out, &e));
        blk_mem_free(&before);
        blk_mem_free(&box);
    }
    test_note("%s", "");
    printf("  %d pairs: %llu made files, %llu dropped some, %llu took the journal\n", cnt,
           (unsigned long long)made, (unsigned long long)dropped, (unsigned long long)undone);
    CHECK(made > (u64)cnt / 12 && dropped > (u64)cnt / 12 && undone > (u64)cnt / 12);
}

/* ---- which extents there are ---- */

static void extents_fill_up(void)
{
    struct vmdk_set_make p = {.cnt = 1, .sectors = {9000}, .every = 9};
    struct vmdk_set_out out;
    struct blk_mem box;
    vmdk_set_build(&box, &p);
    CHECK_EQ_U64(resize_compared(&box, GI(2), KI(64), &out), GI(2));
    CHECK(!out.fresh[0] && look(&box, 0, UINT64_MAX).extents == 1);
    resize_compared(&box, GI(2) + 1, KI(64), &out);
    CHECK(out.fresh[0] == 2 && !out.fresh[1]);
    resize_compared(&box, GI(8), KI(64), &out);
    CHECK(out.fresh[0] == 3 && out.fresh[1] == 4 && !out.fresh[2]);
    resize_compared(&box, GI(4) + 512, KI(64), &out);
    CHECK(out.dropped == 1 && !vmdk_set_exists(&box, 4) && vmdk_set_exists(&box, 3));
    resize_compared(&box, GI(4), KI(64), &out);
    CHECK(out.dropped == 1 && !vmdk_set_exists(&box, 3));
    vmdk_set_truncate(&box, 3, 7); /* a stranger: it is stepped over */
    resize_compared(&box, GI(5), KI(64), &out);
    CHECK(out.fresh[0] == 4 && vmdk_set_length(&box, 3) == 7);
    blk_mem_free(&box);
    p = (struct vmdk_set_make){.cnt = 2, .sectors = {FULL_VMWARE, 500}, .every = 99};
    vmdk_set_build(&box, &p); /* VMware's extents have 2047 MiB */
    resize_compared(&box, MI(2047 * 3), KI(64), &out);
    CHECK(out.fresh[0] == 3 && !out.fresh[1] &&
          vmdk_set_length(&box, 3) == vmdk_set_length(&box, 2));
    blk_mem_free(&box);
    p = (struct vmdk_set_make){.type = "monolithicFlat", .cnt = 1, .sectors = {500}, .every = 1};
    vmdk_set_build(&box, &p);
    resize_compared(&box, GI(9) + 512, 512, &out);
    CHECK(!out.fresh[0] && vmdk_set_length(&box, 1) == GI(9) + 512);
    resize_compared(&box, 512, 512, &out);
    CHECK(vmdk_set_length(&box, 1) == 512);
    blk_mem_free(&box);
}

/* ---- the descriptor ---- */

static bool text_has(const struct blk_mem *box, const char *words)
{
    static char text[8192];
    memset(text, 0, sizeof(text));
    vmdk_set_get(box, 0, 0, text, sizeof(text) - 1);
    return strstr(text, words) != NULL;
}

static void descriptor_edits(void)
{
    struct vmdk_set_make p = {.cnt = 2, .sectors = {8192, 999 * 128}, .every = 99, .crlf = true};
    struct vmdk_set_out out;
    struct blk_mem box;
    vmdk_set_build(&box, &p);
    u64 length = vmdk_set_length(&box, 0);
    resize_compared(&box, GI(3), KI(64), &out); /* one line more, all in one sector */
    CHECK(!out.undo && vmdk_set_length(&box, 0) == length + 1 + 1 + 33);
    CHECK(text_has(&box, "\r\nRW 4194304 SPARSE \"a-s002.vmdk\"\r\nRW 2088960 SPARSE "
                         "\"a-s003.vmdk\"\r\n\r\n# The end\r\n"));
    CHECK(text_has(&box, "ddb.mine = \"kept  as it is\"\r\n"));
    resize_compared(&box, MI(3), KI(64), &out);
    CHECK(text_has(&box, "description\r\nRW 6144 SPARSE \"a-s001.vmdk\"\r\n\r\n# The end\r\n"));
    CHECK(!text_has(&box, "a-s002") && out.dropped == 2);
    blk_mem_free(&box);
    p.pad = 300; /* across two sectors: under the journal */
    p.last_line = true, p.crlf = false;
    vmdk_set_build(&box, &p);
    resize_compared(&box, GI(3), KI(64), &out);
    CHECK(out.undo == 2 && text_has(&box, "a-s002.vmdk\"\nRW 2088960 SPARSE \"a-s003.vmdk\""));
    blk_mem_free(&box);
    p = (struct vmdk_set_make){.cnt = 1, .sectors = {8192}, .tail = 600};
    vmdk_set_build(&box, &p);
    length = vmdk_set_length(&box, 0);
    resize_compared(&box, MI(90), KI(64), &out); /* there is room; the file keeps its length */
    CHECK(vmdk_set_length(&box, 0) == length);
    static u8 junk[600]; /* as qemu leaves it behind a text that has become shorter */
    memset(junk, 'x', sizeof(junk));
    vmdk_set_put(&box, 0, length - 590, junk, 590);
    resize_compared(&box, GI(9), KI(64), &out);
    CHECK(vmdk_set_length(&box, 0) == length && !text_has(&box, "xxx"));
    resize_compared(&box, MI(3), KI(64), &out);
    CHECK(vmdk_set_length(&box, 0) == length && !text_has(&box, "xxx"));
    blk_mem_free(&box);
}

/* ---- crashes and faults ---- */

struct resize_case {
    const char *name;
    struct vmdk_set_make p;
    u64 new_size;
};

/* clang-format off */
static const struct resize_case cases[] = {
    { "flat grows", { .type = "monolithicFlat", .sectors = { 300 }, .every = 1 }, KI(400) },
    { "flat grows over slack", { .type = "monolithicFlat", .sectors = { 300 }, .every = 1,
        .slack = 50, .offset = 3, .crlf = true }, KI(400) },
    { "flat shrinks", { .type = "monolithicFlat", .sectors = { 300 }, .every = 1 }, KI(50) },
    { "flats grow by a file", { .type = "twoGbMaxExtentFlat", .cnt = 2, .sectors = { 300, 200 },
        .every = 1, .data = 9 }, GI(2) + MI(1) },
    { "flats grow by two files", { .type = "twoGbMaxExtentFlat", .cnt = 1, .sectors = { 300 },
        .every = 2, .data = 9, .slack = 9 }, GI(5) },
    { "flats shrink", { .type = "twoGbMaxExtentFlat", .cnt = 3, .sectors = { 300, 200, 40 },
        .every = 1 }, KI(160) },
    { "flats shrink by whole ones", { .type = "twoGbMaxExtentFlat", .cnt = 3,
        .sectors = { 300, 200, 40 }, .every = 1 }, 500 * 512 },
    { "the last one grows", { .cnt = 2, .sectors = { 80, 81 }, .grain = 8, .gtes = 4, .every = 2,
        .last = true, .stale_rest = true, .stale_slack = true }, KI(400) },
    { "its directories move", { .cnt = 2, .sectors = { 80, 801 }, .grain = 8, .gtes = 1,
        .every = 20, .last = true, .stale_rest = true }, KI(900) },
    { "a new one", { .cnt = 1, .sectors = { 8000 }, .every = 3, .data = 3 }, GI(2) + MI(3) },
    { "a new one behind a full one", { .cnt = 2, .sectors = { 80, FULL }, .every = 9999,
        .data = 3 }, GI(2) + MI(3) },
    { "three new ones, one directory", { .cnt = 1, .sectors = { 8000 }, .every = 3, .data = 3,
        .no_rgd = true }, GI(7) },
    { "the last one shrinks", { .cnt = 2, .sectors = { 80, 160 }, .grain = 8, .gtes = 4,
        .every = 1, .shuffled = true }, KI(90) },
    { "some go", { .cnt = 3, .sectors = { 80, 160, 90 }, .grain = 8, .gtes = 4, .every = 1,
        .slack = 7 }, KI(30) },
    { "some go, the last one stays", { .cnt = 3, .sectors = { 80, 160, 90 }, .grain = 8,
        .every = 2 }, 240 * 512 },
    { "mend what is past the end", { .cnt = 2, .sectors = { 80, 81 }, .grain = 8, .every = 2,
        .stale_entries = true }, 161 * 512 },
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0], RANDOM_SUBSETS = 12, AGAIN_EVERY = 17 };

struct crash {
    const struct resize_case *c;
    u64 old_size, new_size, old_hash, kept_hash, text_hash;
    u64 states, old, between, new, again, bad;
    bool canary;
    char first[300];
};

static const char *wrong(const struct crash *c, struct blk_mem *state, struct vmdk_set_verdict *v)
{
    static char text[200];
    static struct vmdk_set s;
    struct err e = {0};
    u64 low = min_u64(c->old_size, c->new_size), high = max_u64(c->old_size, c->new_size);
    vmdk_set_judge(state, low, c->old_size, v);
    if (!v->opens)
        return v->why;
    if (v->faults) {
        snprintf(text, sizeof(text), "%s", v->first);
        return text;
    }
    /* A sparse extent and the descriptor cannot change in one write: in between the disk ends where
     * the last extent that stays ended, or will end. */
    if (v->size < low || v->size > high ||
        (is_flat(&c->c->p) && v->size != c->old_size && v->size != c->new_size))
        return "it has neither the old nor the new size";
    if (v->hash != c->kept_hash)
        return "guest data is lost";
    if (!v->zero)
        return "the new area does not read zero";
    if (v->size > c->old_size && v->absent)
        return "the new area has no tables";
    if (v->text_hash != c->text_hash)
        return "more has changed than must";
    if (vmdk_set_open(&s, &state->blk, state, NULL, &e) || s.img.size != v->size)
        return "formats/ does not open it";
    if (v->size < c->old_size)
        return NULL;
    struct vmdk_set_verdict all;
    vmdk_set_judge(state, c->old_size, UINT64_MAX, &all);
    return all.hash == c->old_hash ? NULL : "it does not have the old data";
}

/* The same resize, run again on what a crash left: it finishes. */
static void run_again(struct crash *c, struct blk_mem *state)
{
    struct blk_mem next;
    struct vmdk_set_verdict v;
    struct vmdk_set_out out;
    struct err e = {0};
    blk_mem_over(&next, state);
    vmdk_set_resize(&next, c->c->new_size, &out, &e);
    CHECK_ERR(&e, OK);
    const char *bad = wrong(c, &next, &v);
    if (!CHECK(!bad))
        printf("    run again: %s\n", bad);
    CHECK(v.size == c->new_size && v.line_size == v.size && v.geometry && !v.stale);
    c->again++;
    blk_mem_free(&next);
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct vmdk_set_verdict v;
    const char *bad = wrong(c, state, &v);
    c->states++;
    c->old += v.opens && v.size == c->old_size;
    c->new += v.opens &&v.size == c->new_size;
    c->between += v.opens && v.size != c->old_size && v.size != c->new_size;
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

/* The set, and the new files that the launcher makes before the plan is run. */
static void begin(struct crash *c, struct blk_mem *box, const struct resize_case *g,
                  struct vmdk_set_out *out)
{
    struct err e = {0};
    u64 old = size_of(&g->p),
        unit = is_flat(&g->p) ? 512 : 512ull * (g->p.grain ? g->p.grain : 128);
    struct blk_mem done;
    vmdk_set_build(box, &g->p);
    blk_mem_over(&done, box);
    *c = (struct crash){.c = g, .old_size = old};
    c->new_size = resize_checked(&done, g->new_size, unit, out);
    blk_mem_free(&done);
    struct vmdk_set_verdict v = look(box, old, UINT64_MAX);
    CHECK_EQ_U64(v.size, old);
    CHECK(g->new_size < old + unit || v.absent == 0);
    c->old_hash = v.hash;
    c->text_hash = v.text_hash;
    c->kept_hash = look(box, min_u64(old, c->new_size), UINT64_MAX).hash;
    CHECK(!vmdk_set_prepare(box, g->new_size, out, &e));
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0xbe5466cf34e90c6c), total = 0, again = 0, between = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem box;
        struct blk_record r;
        struct crash c;
        struct vmdk_set_out out;
        struct err e = {0};
        test_note("case %u, %s", i, cases[i].name);
        begin(&c, &box, &cases[i], &out);
        blk_record_init(&r, &box);
        vmdk_set_plan(&r.blk, &box, cases[i].new_size, &out, &e);
        CHECK_ERR(&e, OK);
        CHECK(!out.undo);
        u64 n = blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &c);
        CHECK(n == c.states && n >= 3 && !c.bad && c.old && c.new);
        total += n, again += c.again, between += c.between;
        blk_record_free(&r);
        blk_mem_free(&box);
    }
    test_note("%s", "");
    printf("  %llu crash states of %d resizes, %llu of a size in between, %llu resized again\n",
           (unsigned long long)total, (int)CASES, (unsigned long long)between,
           (unsigned long long)again);
    CHECK(again > 20 && between > 0);
}

/* ---- the epoch of a descriptor that spans sectors ---- */

/* clang-format off */
static const struct resize_case journalled[] = {
    { "flats grow", { .type = "twoGbMaxExtentFlat", .cnt = 2, .sectors = { 300, 200 }, .every = 1,
        .data = 9, .pad = 320 }, GI(7) },
    { "one flat grows", { .type = "monolithicFlat", .sectors = { 9999 }, .every = 9, .pad = 320,
        .crlf = true }, 100000 * 512 },
    { "sparse ones grow", { .cnt = 2, .sectors = { 80, 8000 }, .every = 3, .data = 3,
        .pad = 320, .last_line = true }, GI(5) },
    { "sparse ones shrink", { .cnt = 4, .sectors = { 8000, 1600, 900, 9000 }, .grain = 8,
        .every = 40, .pad = 320, .tail = 40 }, MI(3) },
};
/* clang-format on */
enum { JOURNALLED = sizeof journalled / sizeof journalled[0] };

struct rollback {
    struct crash *c;
    const struct blk_mem *before;
    const struct vmdk_set_out *out;
    u64 needed; /* states that nobody could read without it */
};

/* Only what was announced has changed; once it is put back, all is well. */
static bool judge_journalled(void *ctx, struct blk_mem *state, const char *what)
{
    struct rollback *k = ctx;
    struct vmdk_set_verdict v;
    struct blk_mem back;
    u64 length = vmdk_set_length(k->before, 0);
    k->needed += wrong(k->c, state, &v) != NULL;
    blk_mem_over(&back, state);
    for (unsigned i = 0; i < k->out->undo; i++) {
        u8 old[512];
        vmdk_set_get(k->before, 0, k->out->undo_at[i], old, 512);
        vmdk_set_put(&back, 0, k->out->undo_at[i], old, 512);
    }
    vmdk_set_truncate(&back, 0, length);
    struct blk_mem then, now;
    u64 at;
    vmdk_set_extract(k->before, 0, &then);
    vmdk_set_extract(&back, 0, &now);
    if (!CHECK(blk_mem_equal(&then, &now, &at)))
        printf("    %s: more has changed than was announced\n", what);
    blk_mem_free(&then);
    blk_mem_free(&now);
    bool more = judge(k->c, &back, what);
    blk_mem_free(&back);
    return more;
}

static void replay(struct blk *b, const struct blk_record *done, size_t from, size_t to)
{
    struct err e = {0};
    for (size_t i = from; i < to; i++) {
        const struct record_entry *w = &done->log[i];
        if (w->kind == REC_WRITE)
            blk_write(b, w->off, w->data, w->len, &e);
        else if (w->kind == REC_ZERO)
            blk_zero(b, w->off, w->len, false, &e);
        else if (w->kind == REC_DISCARD)
            blk_discard(b, w->off, w->len, &e);
        else if (w->kind == REC_FLUSH)
            blk_flush(b, &e);
    }
    CHECK_ERR(&e, OK);
}

/* The states of one stretch of the log. */
static u64 states_of(const struct blk_mem *box, const struct blk_record *done, size_t from,
                     size_t to, record_judge *fn, struct rollback *k)
{
    struct blk_mem before;
    struct blk_record r;
    blk_mem_over(&before, box);
    replay(&before.blk, done, 0, from);
    blk_record_init(&r, &before);
    replay(&r.blk, done, from, to);
    u64 n = blk_record_states(&r, 7, RANDOM_SUBSETS, fn, fn == judge ? (void *)k->c : k);
    blk_record_free(&r);
    blk_mem_free(&before);
    return n;
}

static void every_crash_state_of_a_journal(void)
{
    u64 total = 0, needed = 0;
    for (unsigned i = 0; i < JOURNALLED; i++) {
        struct blk_mem box;
        struct blk_record r;
        struct crash c;
        struct vmdk_set_out out;
        struct err e = {0};
        size_t from = 0, to;
        test_note("case %u, %s", i, journalled[i].name);
        begin(&c, &box, &journalled[i], &out);
        blk_record_init(&r, &box);
        vmdk_set_plan(&r.blk, &box, journalled[i].new_size, &out, &e);
        CHECK_ERR(&e, OK);
        if (!CHECK(out.undo > 1 && out.undo < 64))
            break;
        for (to = 0; r.log[to].kind != REC_WRITE || r.log[to].off >= KI(64); to++)
            if (r.log[to].kind == REC_FLUSH)
                from = to + 1;
        while (r.log[to].kind != REC_FLUSH)
            to++;
        struct rollback k = {.c = &c, .before = &box, .out = &out};
        total += states_of(&box, &r, 0, from, judge, &k);
        total += states_of(&box, &r, from, to, judge_journalled, &k);
        total += states_of(&box, &r, to + 1, r.cnt, judge, &k);
        CHECK(!c.bad && c.old && c.new);
        needed += k.needed;
        blk_record_free(&r);
        blk_mem_free(&box);
    }
    test_note("%s", "");
    printf("  %llu crash states, %llu of which the journal alone mends\n",
           (unsigned long long)total, (unsigned long long)needed);
    CHECK(needed > 30);
}

static int no_flush(struct blk *b, struct err *e)
{
    (void)b, (void)e;
    return 0;
}

/* The recorded run once more, what it wrote to the descriptor in front. */
static void text_first(struct blk *b, const struct blk_record *done)
{
    struct err e = {0};
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < done->cnt; i++) {
            const struct record_entry *w = &done->log[i];
            if (w->kind == REC_WRITE && (w->off < KI(64)) == (pass == 0))
                blk_write(b, w->off, w->data, w->len, &e);
            else if (w->kind == REC_ZERO && pass)
                blk_zero(b, w->off, w->len, false, &e);
            else if (w->kind == REC_FLUSH)
                blk_flush(b, &e);
        }
    CHECK_ERR(&e, OK);
}

/* Plans whose barriers do nothing, and grows that write the descriptor first. */
static void canaries_are_caught(void)
{
    unsigned flown = 0, caught = 0;
    for (unsigned i = 0; i < CASES; i++)
        for (int how = 0; how < 2; how++) {
            struct blk_mem box;
            struct crash c;
            struct blk_record r, done;
            struct vmdk_set_out out;
            struct err e = {0};
            test_note("case %u, %s; canary %d", i, cases[i].name, how);
            begin(&c, &box, &cases[i], &out);
            struct blk_ops lazy;
            c.canary = true;
            blk_record_init(&r, &box);
            lazy = *r.blk.ops;
            lazy.flush = no_flush;
            if (c.new_size <= c.old_size && how) {
                blk_record_free(&r), blk_mem_free(&box);
                continue;
            }
            if (how == 0) {
                r.blk.ops = &lazy;
                vmdk_set_plan(&r.blk, &box, cases[i].new_size, &out, &e);
            } else {
                blk_record_init(&done, &box);
                vmdk_set_plan(&done.blk, &box, cases[i].new_size, &out, &e);
                text_first(&r.blk, &done);
                blk_record_free(&done);
            }
            CHECK_ERR(&e, OK);
            blk_record_states(&r, 1, RANDOM_SUBSETS, judge, &c);
            flown++, caught += c.bad > 0;
            blk_record_free(&r);
            blk_mem_free(&box);
        }
    test_note("%s", "");
    printf("  %u canaries, %u caught\n", flown, caught);
    CHECK(caught >= 16);
}

static void fault_sweep(void)
{
    u64 runs = 0, old = 0, new = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem box;
        struct crash c;
        struct vmdk_set_out made;
        begin(&c, &box, &cases[i], &made);
        for (int stay = 0; stay < 2; stay++) {
            int rc = 1;
            for (u64 n = 1; rc && n < 5000; n++) {
                struct blk_mem now;
                struct blk_fault f;
                struct vmdk_set_verdict v;
                struct vmdk_set_out out = made;
                struct err e = {0};
                test_note("case %u, %s; I/O %llu fails, stay %d", i, cases[i].name,
                          (unsigned long long)n, stay);
                blk_mem_over(&now, &box);
                blk_fault_init(&f, &now.blk, n, stay);
                rc = vmdk_set_plan(&f.blk, &now, cases[i].new_size, &out, &e);
                const char *bad = wrong(&c, &now, &v);
                if (!CHECK(!bad))
                    printf("    %s\n", bad);
                CHECK((f.seen >= n) == (rc != 0));
                CHECK(!rc || e.code == ERR_READ_FAILED || e.code == ERR_WRITE_FAILED ||
                      e.code == ERR_NO_SPACE || e.code == ERR_UNSUPPORTED_FORMAT);
                old += rc && v.size == c.old_size, new += rc &&v.size == c.new_size;
                if (rc && n % 5 == 0)
                    run_again(&c, &now);
                runs++;
                blk_mem_free(&now);
            }
            CHECK(!rc);
        }
        blk_mem_free(&box);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way: %llu left the old size, %llu the new\n",
           (unsigned long long)runs, (unsigned long long)old, (unsigned long long)new);
    CHECK(old > 50 && new > 50);
}

/* ---- what is refused ---- */

static void refused_untouched(struct blk_mem *box, u64 to, enum err_code code)
{
    struct blk_mem copy;
    struct vmdk_set_out out;
    struct err e = {0};
    blk_mem_over(&copy, box);
    vmdk_set_resize(&copy, to, &out, &e);
    CHECK_ERR(&e, code);
    CHECK(vmdk_set_same(&copy, box));
    blk_mem_free(&copy);
}

static void requests(void)
{
    struct vmdk_set_make p = {.cnt = 2, .sectors = {8192, 1024}, .every = 3};
    struct blk_mem box;
    vmdk_set_build(&box, &p);
    refused_untouched(&box, GI(47), ERR_INVALID_NEW_SIZE); /* more extents than disks */
    refused_untouched(&box, 1ull << 63, ERR_INVALID_NEW_SIZE);
    blk_mem_free(&box);
    p.child = true;
    vmdk_set_build(&box, &p);
    refused_untouched(&box, MI(9), ERR_UNSUPPORTED_SUBFORMAT);
    refused_untouched(&box, MI(1), ERR_UNSUPPORTED_SUBFORMAT);
    refused_untouched(&box, 9216 * 512, OK);
    blk_mem_free(&box);
    p = (struct vmdk_set_make){.type = "vmfs", .cnt = 1, .sectors = {8192}};
    vmdk_set_build(&box, &p);
    refused_untouched(&box, MI(9), ERR_UNSUPPORTED_SUBFORMAT);
    refused_untouched(&box, MI(1), ERR_UNSUPPORTED_SUBFORMAT);
    refused_untouched(&box, MI(4), OK);
    blk_mem_free(&box);
}

/* Random bytes over descriptor and tables: what is refused is left as it was, nothing asserts.
 * INSTAR_HARM sets another number. */
static void random_harm(void)
{
    u64 seed = test_seed(0xc0ac29b7c97c50dd), refused = 0;
    const char *number = getenv("INSTAR_HARM");
    int cnt = number ? atoi(number) : 1500;
    for (int i = 0; i < cnt; i++) {
        struct vmdk_set_make p = {
            .cnt = 2, .sectors = {900, 3000}, .grain = 8, .gtes = 64, .every = 5, .data = 1};
        struct vmdk_set_out out;
        struct blk_mem box, copy;
        struct err e = {0};
        test_note("harm %d", i);
        if (i % 3 == 0)
            p.type = "twoGbMaxExtentFlat";
        vmdk_set_build(&box, &p);
        for (u64 n = 1 + rnd_below(&seed, 3); n; n--) {
            static const u32 end[] = {80, 1400, 14000};
            u8 byte = rnd_below(&seed, 2) ? (u8)rnd(&seed) : (u8)('0' + rnd_below(&seed, 10));
            unsigned file = (unsigned)rnd_below(&seed, i % 3 ? 3 : 1);
            u64 at = rnd_below(&seed, file ? end[rnd_below(&seed, 3)] : vmdk_set_length(&box, 0));
            vmdk_set_put(&box, file, at, &byte, 1);
        }
        blk_mem_over(&copy, &box);
        int rc = vmdk_set_resize(&copy, i % 2 ? GI(3) : KI(700), &out, &e);
        refused += rc != 0;
        CHECK(!rc || vmdk_set_same(&copy, &box));
        blk_mem_free(&copy);
        blk_mem_free(&box);
    }
    test_note("%s", "");
    printf("  %llu of %d refused\n", (unsigned long long)refused, cnt);
    CHECK(refused > (u64)cnt / 5);
}

int main(void)
{
    RUN(pairs);
    RUN(extents_fill_up);
    RUN(descriptor_edits);
    RUN(every_crash_state);
    RUN(every_crash_state_of_a_journal);
    RUN(canaries_are_caught);
    RUN(fault_sweep);
    RUN(requests);
    RUN(random_harm);
    return test_end();
}
