/* SPDX-License-Identifier: MIT
 *
 * VMDK, grown and shrunk: the query by itself; seeded pairs over images of every shape, judged by
 * tests/vmdk_judge.c and read back through map(); the descriptor's edit; the crash recorder and I/O
 * number N failing over a list of cases, each broken state resized once more; canaries that must be
 * caught; hostile images; a disk of 60 TiB, in bounded memory.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "copy.h"
#include "test.h"
#include "vmdk_judge.h"
#include "vmdk_make.h"
#include "vmdk_plan.h"
#include "vmdk_run.h"

/* ---- the query ---- */

static void query(void)
{
    struct vmdk_grow_in in = {.entries = 32,
                              .have = 32,
                              .want = 128,
                              .end = KI(200) + 512,
                              .grain = KI(64),
                              .span = 2048,
                              .redundant = true};
    struct vmdk_grow g = vmdk_grow_query(&in); /* metadata_only_grow_when_gd_has_slack */
    CHECK(g.action == VMDK_METADATA_ONLY && !g.dir[0] && !g.dir[1]);
    CHECK(g.tables[1] == KI(256) && g.tables[0] == KI(256) + 96 * 2048);
    CHECK_EQ_U64(g.length, KI(256) + KI(384));
    in.want = 129; /* gd_grow_relocate_when_entries_exceed_slack */
    g = vmdk_grow_query(&in);
    CHECK(g.action == VMDK_GD_GROW_RELOCATE && g.dir[1] == KI(256));
    CHECK(g.tables[1] == g.dir[1] + 1024 && g.dir[0] == g.tables[1] + 97 * 2048);
    CHECK(g.tables[0] == g.dir[0] + 1024);
    CHECK_EQ_U64(g.length, round_up(g.tables[0] + 97 * 2048, KI(64)));
    in.redundant = false;
    g = vmdk_grow_query(&in);
    CHECK(g.dir[0] == KI(256) && !g.dir[1] && !g.tables[1]);
    in.want = in.have; /* the last table has room */
    g = vmdk_grow_query(&in);
    CHECK(g.action == VMDK_METADATA_ONLY && !g.length && !g.tables[0]);
    in.have--; /* but is not there */
    g = vmdk_grow_query(&in);
    CHECK(g.action == VMDK_METADATA_ONLY && g.tables[0] == KI(256) && g.length == KI(320));
}

/* ---- one resize, judged ---- */

static struct vmdk_verdict look(const struct blk_mem *m, u64 upto)
{
    struct vmdk_verdict v;
    vmdk_judge_mem(m, upto, 0, 0, &v);
    if (!CHECK(v.opens) || !CHECK_EQ_U64(v.faults, 0))
        printf("    %s %s\n", v.why ? v.why : "", v.first);
    return v;
}

/* Our own reader shows the same. */
static void read_back(struct blk_mem *m, const struct vmdk_verdict *v, u64 upto)
{
    struct image img;
    struct err e = {0};
    u8 *all = malloc(upto + 1);
    if (CHECK(!vmdk_run_open(&m->blk, NULL, &img, &e)) && CHECK_EQ_U64(img.size, v->size)) {
        CHECK(!chain_read(&img, 0, all, upto, &e));
        CHECK_EQ_U64(vmdk_judge_plain(all, upto), v->hash);
    }
    free(all);
}

/* Resizes and checks all that must hold then. Returns the size that it got. */
static u64 resize_checked(struct blk_mem *m, u64 want, u64 grain)
{
    struct vmdk_verdict old = look(m, 0), new;
    struct err e = {0};
    u64 size = old.size, to = round_up(want, grain), length = m->length;
    if (want == size || (want < size && to > size))
        to = size;
    u64 kept = min_u64(size, to);
    old = look(m, kept);
    vmdk_run_mem(m, want, &e);
    if (!CHECK_ERR(&e, OK))
        return 0;
    vmdk_judge_mem(m, kept, size, UINT64_MAX, &new);
    if (!CHECK(new.opens && !new.faults && !new.torn))
        printf("    %s %s\n", new.why ? new.why : "", new.first);
    CHECK_EQ_U64(new.size, to);
    CHECK_EQ_U64(new.text_size, new.size);
    CHECK(new.geometry &&new.zero && !new.stale);
    CHECK(new.absent <= old.absent && (to <= size || !new.absent));
    CHECK_EQ_U64(new.hash, old.hash);
    CHECK_EQ_U64(new.text_hash, old.text_hash);
    CHECK_EQ_U64(new.rest_hash, old.rest_hash);
    CHECK(to > size || m->length <= length);
    if (kept < MI(20))
        read_back(m, &new, kept);
    return to;
}

/* ---- pairs ---- */

static struct vmdk_make random_image(u64 *seed)
{
    static const u32 grains[] = {8, 8, 16, 128, 128, 1024}, gtes[] = {512, 512, 512, 128, 16, 100};
    struct vmdk_make p = {.grain = grains[rnd_below(seed, 6)], .gtes = gtes[rnd_below(seed, 6)]};
    p.seed = rnd(seed);
    p.size = 512 * (1 + rnd_below(seed, p.grain * (rnd_below(seed, 2) ? 40ull : 1500)));
    p.version = 1 + (u32)rnd_below(seed, 3);
    p.no_rgd = rnd_below(seed, 4) == 0;
    p.zeroed = rnd_below(seed, 4) == 0;
    p.every = (u32)rnd_below(seed, 9);
    p.last = rnd_below(seed, 2);
    p.sectors = p.grain > 16 ? 4 : (u32)rnd_below(seed, 2) * 4;
    p.shuffled = rnd_below(seed, 2);
    p.short_end = rnd_below(seed, 4) == 0;
    p.stale_rest = rnd_below(seed, 2);
    p.stale_entries = rnd_below(seed, 4) == 0 && p.grain < 1024;
    p.stale_slack = rnd_below(seed, 2);
    p.no_last_table = rnd_below(seed, 4) == 0;
    p.tables_last = rnd_below(seed, 4) == 0;
    p.slack = rnd_below(seed, 4) ? 0 : (u32)rnd_below(seed, 99);
    p.pad = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 600);
    p.crlf = rnd_below(seed, 3) == 0;
    p.no_ddb = rnd_below(seed, 4) == 0;
    return p;
}

/* INSTAR_PAIRS sets another number. */
static void pairs(void)
{
    u64 seed = test_seed(0x243f6a8885a308d3);
    const char *n = getenv("INSTAR_PAIRS");
    int cnt = n ? atoi(n) : 300;
    for (int i = 0; i < cnt; i++) {
        struct vmdk_make p = random_image(&seed);
        struct vmdk_made made;
        struct blk_mem m;
        vmdk_make(&m, &p, &made);
        u64 grain = p.grain * 512ull, far = rnd_below(&seed, 3) ? 900 : 99000;
        u64 larger = p.size + 1 + rnd_below(&seed, grain * (rnd_below(&seed, 2) ? 3 : far));
        u64 smaller = 1 + rnd_below(&seed, p.size);
        test_note(
            "pair %d: size %llu -> %llu -> %llu grain %u gtes %u v%u no_rgd %d zeroed %d every "
            "%u last %d shuffled %d short %d stale %d%d%d no_last %d tables_last %d slack %u "
            "pad %u crlf %d no_ddb %d",
            i, (unsigned long long)p.size, (unsigned long long)larger, (unsigned long long)smaller,
            p.grain, p.gtes, p.version, p.no_rgd, p.zeroed, p.every, p.last, p.shuffled,
            p.short_end, p.stale_rest, p.stale_entries, p.stale_slack, p.no_last_table,
            p.tables_last, p.slack, p.pad, p.crlf, p.no_ddb);
        u64 grown = resize_checked(&m, larger, grain);
        CHECK_EQ_U64(grown, round_up(larger, grain));
        resize_checked(&m, smaller, grain);
        resize_checked(&m, grown + grain, grain);
        resize_checked(&m, grown + grain, grain); /* nothing is left to do */
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %d pairs, each grown once more\n", cnt);
}

/* Equal sizes: no byte changes. A shrink gives back the end of the file. */
static void noop_and_tail(void)
{
    struct vmdk_make p = {.size = MI(8), .every = 1};
    struct vmdk_made made;
    struct blk_mem m, copy;
    struct err e = {0};
    u64 at;
    vmdk_make(&m, &p, &made);
    blk_mem_over(&copy, &m);
    CHECK(!vmdk_run_mem(&copy, MI(8), &e) && blk_mem_equal(&copy, &m, &at));
    blk_mem_free(&copy);
    u64 length = m.length;
    resize_checked(&m, MI(3), KI(64));
    CHECK_EQ_U64(m.length, length - MI(5));
    blk_mem_free(&m);
}

/* ---- the descriptor ---- */

static void descriptor_edits(void)
{
    struct vmdk_make p = {.size = 99999 * 512, .every = 50, .sectors = 1, .grain = 8};
    struct vmdk_made made;
    struct vmdk_run_out out;
    struct blk_mem m;
    struct err e = {0};
    vmdk_make(&m, &p, &made); /* 99999 becomes 100000: the text moves, within its sector */
    CHECK(!vmdk_run(&m.blk, 100000 * 512, PREALLOC_OFF, &out, &e) && !out.undo);
    blk_mem_free(&m);
    p.pad = 250; /* ... across two, under the journal, which is shown just those */
    vmdk_make(&m, &p, &made);
    CHECK(!vmdk_run(&m.blk, 100000 * 512, PREALLOC_OFF, &out, &e));
    CHECK(out.undo == 2 && out.undo_at[0] == 512 && out.undo_at[1] == 1024);
    struct vmdk_verdict v = look(&m, 0);
    CHECK(v.size == 100000 * 512 && v.text_size == v.size && v.geometry);
    CHECK(!vmdk_run(&m.blk, 90000 * 512, PREALLOC_OFF, &out, &e)); /* and back */
    CHECK(out.undo == 2 && look(&m, 0).text_size == 90000 * 512);
    CHECK(!vmdk_run(&m.blk, 95000 * 512, PREALLOC_OFF, &out, &e) && !out.undo); /* as many digits */
    CHECK_ERR(&e, OK);
    blk_mem_free(&m);
    p.size = 90000 * 512; /* the two numbers lie in two sectors, but keep their digits */
    p.pad = 270;
    vmdk_make(&m, &p, &made);
    CHECK(!vmdk_run(&m.blk, 92000 * 512, PREALLOC_OFF, &out, &e) && !out.undo);
    v = look(&m, 0);
    CHECK(v.text_size == 92000 * 512 && v.geometry);
    blk_mem_free(&m);
    p.size = 99999 * 512;
    p.pad = 0, p.full = true; /* no room for a digit */
    vmdk_make(&m, &p, &made);
    struct blk_mem copy;
    u64 at;
    blk_mem_over(&copy, &m);
    CHECK(vmdk_run(&copy.blk, 100000 * 512, PREALLOC_OFF, &out, &e) == ERR_DESCRIPTOR_TOO_LARGE);
    CHECK(blk_mem_equal(&copy, &m, &at));
    blk_mem_free(&copy);
    blk_mem_free(&m);
    p = (struct vmdk_make){.size = MI(8), .every = 9}; /* what a killed grow leaves is mended */
    vmdk_make(&m, &p, &made);
    vmdk_make_text(&m, "RW 16384", "RW 999999");
    e = (struct err){0};
    CHECK(!vmdk_run_mem(&m, MI(8), &e));
    v = look(&m, 0);
    CHECK(v.text_size == MI(8) && v.geometry);
    blk_mem_free(&m);
}

/* ---- crashes and faults ---- */

struct resize_case {
    const char *name;
    struct vmdk_make p;
    u64 new_size;
};

/* clang-format off */
static const struct resize_case cases[] = {
    { "grow within the table", { .size = KI(40) + 512, .grain = 8, .every = 2, .last = true,
        .stale_rest = true }, KI(80) },
    { "grow over stale entries", { .size = KI(40), .grain = 8, .every = 2, .gtes = 16,
        .stale_entries = true, .shuffled = true }, KI(60) },
    { "new tables", { .size = KI(40) + 512, .grain = 8, .gtes = 4, .every = 3, .last = true,
        .stale_rest = true, .stale_slack = true, .stale_entries = true }, KI(400) },
    { "directories move", { .size = KI(400) + 512, .grain = 8, .gtes = 1, .every = 20,
        .last = true, .stale_rest = true }, KI(900) },
    { "one directory moves", { .size = KI(400), .grain = 8, .gtes = 1, .every = 20,
        .no_rgd = true }, KI(900) },
    { "a table that is not there", { .size = KI(90), .grain = 8, .gtes = 16, .every = 20,
        .no_last_table = true }, KI(99) },
    { "such a table, and others", { .size = KI(90), .grain = 8, .gtes = 16, .every = 20,
        .no_last_table = true, .short_end = true }, KI(2900) },
    { "behind slack", { .size = KI(90), .grain = 8, .gtes = 16, .every = 7, .slack = 9,
        .zeroed = true }, KI(900) },
    { "much larger", { .size = MI(2), .every = 7, .sectors = 2 }, GI(6) },
    { "shrink", { .size = KI(160), .grain = 8, .every = 1 }, KI(40) },
    { "shrink by tables", { .size = KI(160), .grain = 8, .every = 1, .gtes = 4,
        .shuffled = true }, KI(40) },
    { "shrink, one directory", { .size = KI(160), .grain = 8, .every = 2, .gtes = 5,
        .no_rgd = true, .tables_last = true }, KI(83) },
    { "shrink with slack", { .size = KI(160) + 512, .grain = 8, .every = 2, .gtes = 8,
        .slack = 7, .last = true, .stale_rest = true, .stale_entries = true }, KI(155) },
    { "shrink, zeroed grains", { .size = MI(3), .every = 3, .zeroed = true, .sectors = 2,
        .version = 2, .shuffled = true }, MI(1) },
    { "numbers in two sectors", { .size = KI(4000), .grain = 8, .every = 99, .pad = 270 },
      KI(1000) },
    { "such numbers, grown", { .size = KI(640), .grain = 8, .every = 9, .pad = 270 }, KI(4000) },
    { "mend what is past the end", { .size = KI(41), .grain = 8, .every = 2,
        .stale_entries = true }, KI(41) },
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0], RANDOM_SUBSETS = 24, AGAIN_EVERY = 13 };

struct crash {
    const struct resize_case *c;
    u64 old_size, new_size, old_hash, kept_hash, text_hash, rest_hash;
    u64 states, opened_old, opened_new, again, bad;
    bool canary;
    char first[400];
};

static const char *wrong(const struct crash *c, struct blk_mem *state, struct vmdk_verdict *v)
{
    static char text[200];
    struct image img;
    struct err e = {0};
    vmdk_judge_mem(state, min_u64(c->old_size, c->new_size), c->old_size, UINT64_MAX, v);
    if (!v->opens)
        return v->why;
    if (v->faults) {
        snprintf(text, sizeof(text), "%s", v->first);
        return text;
    }
    if (v->torn)
        return "the directories differ";
    if (v->size != c->old_size && v->size != c->new_size)
        return "it has neither the old nor the new size";
    if (v->hash != c->kept_hash)
        return "guest data is lost";
    if (!v->zero)
        return "the new area does not read zero";
    if (v->size > c->old_size && (v->absent || v->stale))
        return "the new area has no tables, or old ones";
    if (v->text_hash != c->text_hash || v->rest_hash != c->rest_hash)
        return "more has changed than must";
    if (vmdk_run_open(&state->blk, NULL, &img, &e) || img.size != v->size)
        return "formats/ does not open it";
    if (v->size < c->old_size)
        return NULL;
    vmdk_judge_mem(state, c->old_size, 0, 0, v);
    return v->hash == c->old_hash ? NULL : "it does not have the old data";
}

/* The same resize, run again on what a crash left: it finishes. */
static void run_again(struct crash *c, struct blk_mem *state)
{
    struct blk_mem next;
    struct vmdk_verdict v;
    struct err e = {0};
    blk_mem_over(&next, state);
    vmdk_run_mem(&next, c->c->new_size, &e);
    CHECK_ERR(&e, OK);
    const char *bad = wrong(c, &next, &v);
    if (!CHECK(!bad))
        printf("    run again: %s\n", bad);
    CHECK(v.size == c->new_size && v.text_size == v.size && v.geometry && !v.stale);
    c->again++;
    blk_mem_free(&next);
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct vmdk_verdict v;
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
    struct vmdk_made made;
    u64 grain = 512ull * (g->p.grain ? g->p.grain : 128);
    *c = (struct crash){.c = g, .old_size = g->p.size, .new_size = round_up(g->new_size, grain)};
    if (g->new_size == g->p.size)
        c->new_size = g->p.size;
    vmdk_make(m, &g->p, &made);
    struct vmdk_verdict v = look(m, c->old_size);
    CHECK_EQ_U64(v.size, c->old_size);
    c->old_hash = v.hash;
    c->text_hash = v.text_hash;
    c->rest_hash = v.rest_hash;
    c->kept_hash = look(m, min_u64(c->old_size, c->new_size)).hash;
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0x13198a2e03707344), total = 0, again = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct blk_record r;
        struct crash c;
        struct vmdk_run_out out;
        struct err e = {0};
        test_note("case %u, %s", i, cases[i].name);
        begin(&c, &m, &cases[i]);
        blk_record_init(&r, &m);
        vmdk_run(&r.blk, cases[i].new_size, PREALLOC_OFF, &out, &e);
        CHECK_ERR(&e, OK);
        CHECK(!out.undo);
        u64 n = blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &c);
        CHECK(n == c.states && n >= 3 && !c.bad && c.opened_old && c.opened_new);
        total += n, again += c.again;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states of %d resizes, %llu of them resized again\n",
           (unsigned long long)total, (int)CASES, (unsigned long long)again);
    CHECK(again > 30);
}

/* ---- P10: a text that moves across sectors ---- */

/* clang-format off */
static const struct resize_case journalled[] = {
    { "a digit more", { .size = 99999 * 512, .grain = 8, .every = 500, .sectors = 1, .pad = 250 },
        100000 * 512 },
    { "and directories that move", { .size = 9999 * 512, .grain = 8, .gtes = 4, .every = 50,
        .sectors = 1, .pad = 250, .last = true, .stale_rest = true }, 100000 * 512 },
    { "a digit less", { .size = 100000 * 512, .grain = 8, .every = 500, .sectors = 1,
        .pad = 250 }, 90000 * 512 },
    { "numbers in two sectors", { .size = 9992 * 512, .grain = 8, .every = 70, .sectors = 1,
        .pad = 270, .shuffled = true }, 80 * 512 },
    { "a number across two", { .size = 9992 * 512, .grain = 8, .every = 70, .sectors = 1,
        .pad = 372 }, 8000 * 512 },
    { "a text of many sectors", { .size = 9992 * 512, .grain = 8, .every = 70, .sectors = 1,
        .pad = 250, .full = true, .no_ddb = true, .slot = 12 }, 900 * 512 },
};
/* clang-format on */
enum { JOURNALLED = sizeof journalled / sizeof journalled[0] };

/* Entries [from, to) of a log once more, onto b. */
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
        else
            blk_grow(b, w->len, &e);
    }
    CHECK_ERR(&e, OK);
}

struct rollback {
    struct crash *c;
    const struct blk_mem *before;   /* the epoch */
    const struct vmdk_run_out *out; /* what the journal was shown */
    u64 needed;                     /* states that nobody could read without it */
};

/* Only what was announced has changed; once it is put back, all is well. */
static bool judge_journalled(void *ctx, struct blk_mem *state, const char *what)
{
    struct rollback *k = ctx;
    struct vmdk_verdict v;
    struct blk_mem back;
    bool same = state->length == k->before->length;
    k->needed += wrong(k->c, state, &v) != NULL;
    for (u64 off = 0; same && off < state->length; off += 512) {
        u8 then[512], now[512];
        unsigned i = 0;
        if (blk_mem_hole(state, off, 512) && blk_mem_hole(k->before, off, 512))
            continue;
        blk_mem_get(k->before, off, then, 512);
        blk_mem_get(state, off, now, 512);
        while (i < k->out->undo && k->out->undo_at[i] != off)
            i++;
        same = i < k->out->undo || !memcmp(then, now, 512);
    }
    if (!CHECK(same))
        printf("    %s: more has changed than was announced\n", what);
    blk_mem_over(&back, state);
    for (unsigned i = 0; i < k->out->undo; i++) {
        u8 old[512];
        blk_mem_get(k->before, k->out->undo_at[i], old, 512);
        blk_mem_put(&back, k->out->undo_at[i], old, 512);
    }
    bool more = judge(k->c, &back, what);
    run_again(k->c, &back);
    blk_mem_free(&back);
    return more;
}

/* The states of one stretch of the log. */
static u64 states_of(const struct blk_mem *m, const struct blk_record *done, size_t from, size_t to,
                     record_judge *fn, struct rollback *k)
{
    struct blk_mem before;
    struct blk_record r;
    blk_mem_over(&before, m);
    replay(&before.blk, done, 0, from);
    blk_record_init(&r, &before);
    replay(&r.blk, done, from, to);
    k->before = &before;
    u64 n = blk_record_states(&r, 7, RANDOM_SUBSETS, fn, fn == judge ? (void *)k->c : k);
    blk_record_free(&r);
    blk_mem_free(&before);
    return n;
}

static void every_crash_state_of_a_journal(void)
{
    u64 total = 0, needed = 0;
    for (unsigned i = 0; i < JOURNALLED; i++) {
        struct blk_mem m;
        struct blk_record r;
        struct crash c;
        struct vmdk_run_out out;
        struct err e = {0};
        size_t from = 0, to;
        test_note("case %u, %s", i, journalled[i].name);
        begin(&c, &m, &journalled[i]);
        blk_record_init(&r, &m);
        vmdk_run(&r.blk, journalled[i].new_size, PREALLOC_OFF, &out, &e);
        CHECK_ERR(&e, OK);
        if (!CHECK(out.undo > 1 && out.undo < 64))
            break;
        while (from < r.cnt && (r.log[from].kind != REC_WRITE ||
                                r.log[from].off / 512 != out.undo_at[0] / 512))
            from++;
        for (to = from; to < r.cnt && r.log[to].kind != REC_FLUSH;)
            to++;
        struct rollback k = {.c = &c, .out = &out};
        total += states_of(&m, &r, 0, from, judge, &k);
        total += states_of(&m, &r, from, to + 1, judge_journalled, &k);
        total += states_of(&m, &r, to + 1, r.cnt, judge, &k);
        CHECK(!c.bad && c.opened_old && c.opened_new && c.again > 9);
        needed += k.needed;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states, %llu of which the journal alone mends\n",
           (unsigned long long)total, (unsigned long long)needed);
    CHECK(needed > 100);
}

/* The recorded run once more, its first write to the header in front. */
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

static int no_flush(struct blk *b, struct err *e)
{
    (void)b, (void)e;
    return 0;
}

/* Plans whose barriers do nothing, and grows that commit first, leave broken states. */
static void canaries_are_caught(void)
{
    unsigned flown = 0, caught = 0;
    for (unsigned i = 0; i < CASES; i++)
        for (int how = 0; how < 2; how++) {
            struct blk_mem m;
            struct crash c;
            struct blk_record r, done;
            struct vmdk_run_out out;
            struct err e = {0};
            test_note("case %u, %s; canary %d", i, cases[i].name, how);
            begin(&c, &m, &cases[i]);
            struct blk_ops lazy;
            c.canary = true;
            blk_record_init(&r, &m);
            lazy = *r.blk.ops;
            lazy.flush = no_flush;
            if (c.new_size <= c.old_size && how) {
                blk_record_free(&r), blk_mem_free(&m);
                continue;
            }
            if (how == 0) {
                r.blk.ops = &lazy;
                vmdk_run(&r.blk, cases[i].new_size, PREALLOC_OFF, &out, &e);
            } else {
                blk_record_init(&done, &m);
                vmdk_run(&done.blk, cases[i].new_size, PREALLOC_OFF, &out, &e);
                commit_first(&r.blk, &done);
                blk_record_free(&done);
            }
            CHECK_ERR(&e, OK);
            blk_record_states(&r, 1, RANDOM_SUBSETS, judge, &c);
            flown++, caught += c.bad > 0;
            blk_record_free(&r);
            blk_mem_free(&m);
        }
    test_note("%s", "");
    printf("  %u canaries, %u caught\n", flown, caught);
    CHECK(caught >= 16);
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
                struct vmdk_verdict v;
                struct vmdk_run_out out;
                struct err e = {0};
                test_note("case %u, %s; I/O %llu fails, stay %d", i, cases[i].name,
                          (unsigned long long)n, stay);
                blk_mem_over(&now, &m);
                blk_fault_init(&f, &now.blk, n, stay);
                rc = vmdk_run(&f.blk, cases[i].new_size, PREALLOC_OFF, &out, &e);
                const char *bad = wrong(&c, &now, &v);
                if (!CHECK(!bad))
                    printf("    %s\n", bad);
                CHECK((f.seen >= n) == (rc != 0));
                CHECK(!rc || e.code == ERR_READ_FAILED || e.code == ERR_WRITE_FAILED ||
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
    CHECK(old > 50 && new > 50);
}

/* ---- what is refused ---- */

static void refused_untouched(struct blk_mem *m, u64 to, enum preallocation how, enum err_code code)
{
    struct blk_mem copy;
    struct vmdk_run_out out;
    struct err e = {0};
    u64 at;
    blk_mem_over(&copy, m);
    vmdk_run(&copy.blk, to, how, &out, &e);
    CHECK_ERR(&e, code);
    CHECK(blk_mem_equal(&copy, m, &at));
    blk_mem_free(&copy);
}

/* Entries of directories and tables that lie: a resize either way changes nothing. */
static void hostile_tables(void)
{
    enum { GD, RGD, GT, RGT };
    static const struct {
        int where;
        u32 idx, val; /* val 0xfffe....: the entry at that index's value, plus 0 or 1 */
    } harm[] = {{GD, 0, 1},   {GD, 0, 0},          {GD, 1, 0xffffffff}, {GD, 0, 22},
                {GD, 1, 21},  {RGD, 0, 0},         {RGD, 1, 0x7fffff},  {RGD, 0, 23},
                {GT, 0, 1},   {GT, 0, 5},          {GT, 3, 0x7fffffff}, {GT, 6, 0},
                {RGT, 3, 0},  {GT, 1, 0xfffe0000}, {GT, 1, 0xfffe0001}, {GT, 1, 21},
                {RGT, 1, 99}, {GD, 1, 0xfffe0000}};
    for (unsigned i = 0; i < sizeof harm / sizeof harm[0]; i++) {
        struct vmdk_make p = {.size = MI(40), .every = 3, .sectors = 1};
        struct vmdk_made made;
        struct blk_mem m;
        u8 val[4];
        test_note("harm %u", i);
        vmdk_make(&m, &p, &made);
        const u64 at[] = {made.gd, made.rgd, made.table - 2048, made.rgd + 512};
        blk_mem_get(&m, at[harm[i].where], val, 4);
        bool same = harm[i].val >> 16 == 0xfffe;
        put_le32(val, same ? le32(val) + (harm[i].val & 1) : harm[i].val);
        blk_mem_put(&m, at[harm[i].where] + harm[i].idx * 4, val, 4);
        if (harm[i].where == GT && harm[i].idx != 6) /* both copies agree, but for the sixth */
            blk_mem_put(&m, at[RGT] + harm[i].idx * 4, val, 4);
        refused_untouched(&m, MI(50), PREALLOC_OFF, ERR_OVERLAY_CORRUPT);
        refused_untouched(&m, MI(7), PREALLOC_OFF, ERR_OVERLAY_CORRUPT);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

static void requests(void)
{
    struct vmdk_make p = {.size = MI(5), .every = 3};
    struct vmdk_made made;
    struct blk_mem m;
    u8 flags[4];
    vmdk_make(&m, &p, &made);
    for (int how = PREALLOC_METADATA; how <= PREALLOC_FULL; how++)
        refused_untouched(&m, MI(9), (enum preallocation)how, ERR_PREALLOCATION_UNSUPPORTED);
    refused_untouched(&m, TI(3000), PREALLOC_OFF, ERR_INVALID_NEW_SIZE);
    refused_untouched(&m, 1ull << 63, PREALLOC_OFF, ERR_INVALID_NEW_SIZE);
    put_le32(flags, VMDK_NEWLINES | VMDK_REDUNDANT | 1 << 9);
    blk_mem_put(&m, VMH_FLAGS, flags, 4);
    refused_untouched(&m, MI(9), PREALLOC_OFF, ERR_UNSUPPORTED_FEATURE);
    blk_mem_free(&m);
    p = (struct vmdk_make){.size = MI(5)}; /* a stream */
    vmdk_make(&m, &p, &made);
    vmdk_make_text(&m, "monolithicSparse", "streamOptimized");
    put_le32(flags, VMDK_NEWLINES | VMDK_COMPRESSED | VMDK_MARKERS);
    blk_mem_put(&m, VMH_FLAGS, flags, 4);
    blk_mem_put(&m, VMH_COMPRESS_ALGORITHM, "\1", 1);
    refused_untouched(&m, MI(9), PREALLOC_OFF, ERR_UNSUPPORTED_SUBFORMAT);
    refused_untouched(&m, MI(2), PREALLOC_OFF, ERR_UNSUPPORTED_SUBFORMAT);
    blk_mem_free(&m);
}

/* Random bytes over the metadata: whatever is refused is left as it was, and nothing asserts. */
static void random_harm(void)
{
    u64 seed = test_seed(0xa4093822299f31d0), refused = 0;
    for (int i = 0; i < 1500; i++) {
        struct vmdk_make p = {.size = MI(3), .grain = 8, .gtes = 64, .every = 5, .sectors = 1};
        struct vmdk_made made;
        struct blk_mem m, copy;
        struct vmdk_run_out out;
        struct err e = {0};
        u64 at;
        test_note("harm %d", i);
        vmdk_make(&m, &p, &made);
        for (u64 n = 1 + rnd_below(&seed, 3); n; n--) {
            static const u32 end[] = {80, 1400, 14000};
            u8 byte = (u8)rnd(&seed);
            blk_mem_put(&m, rnd_below(&seed, end[rnd_below(&seed, 3)]), &byte, 1);
        }
        blk_mem_over(&copy, &m);
        int rc = vmdk_run(&copy.blk, i % 2 ? MI(9) : MI(1), PREALLOC_OFF, &out, &e);
        refused += rc != 0;
        CHECK(!rc || blk_mem_equal(&copy, &m, &at));
        blk_mem_free(&copy);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu of 1500 refused\n", (unsigned long long)refused);
    CHECK(refused > 300);
}

/* ---- limits ---- */

static void sixty_tib(void)
{
    struct vmdk_make p = {.size = MI(70), .every = 300, .sectors = 1};
    struct vmdk_made made;
    struct blk_mem m;
    struct err e = {0};
    vmdk_make(&m, &p, &made);
    struct vmdk_verdict v = look(&m, MI(70));
    m.bytes_read = m.bytes_written = m.reads = 0;
    CHECK(!vmdk_run_mem(&m, TI(60), &e));
    CHECK_ERR(&e, OK);
    CHECK(m.bytes_read < MI(2) && m.bytes_written < 2 * TI(60) / MI(32) * 4 + MI(1));
    struct image img;
    struct extent x;
    CHECK(!vmdk_run_open(&m.blk, NULL, &img, &e) && img.size == TI(60));
    CHECK(!vmdk_format.map(&img, TI(60) - 512, 512, &x, &e) && x.kind == EXTENT_HOLE);
    u64 length = m.length; /* 4 GiB of tables in each directory, and they are not read again */
    m.bytes_read = m.bytes_written = m.reads = 0;
    CHECK(!vmdk_run_mem(&m, TI(61), &e) && m.length < length + MI(160));
    printf("  60 TiB to 61: %llu KiB read\n", (unsigned long long)m.bytes_read >> 10);
    CHECK(m.bytes_read < MI(32) && m.bytes_written < MI(17));
    m.bytes_read = 0;
    CHECK(!vmdk_run_mem(&m, TI(61), &e) && m.bytes_read < MI(10));
    blk_mem_free(&m);
    vmdk_make(&m, &p, &made); /* a shrink reads what it drops */
    CHECK(!vmdk_run_mem(&m, TI(1), &e) && !vmdk_run_mem(&m, MI(70), &e));
    CHECK_ERR(&e, OK);
    struct vmdk_verdict after = look(&m, MI(70));
    CHECK(after.size == v.size && after.hash == v.hash && after.text_size == v.size);
    blk_mem_free(&m);
}

/* More tables than a grow looks at. Where it clears what was in use, it looks at all of them. */
static void many_tables(void)
{
    enum { FIRST, LAST, STALE, ODD, WAYS };
    for (int way = 0; way < WAYS; way++) {
        struct vmdk_make p = {.size = MI(200) + (way == ODD ? 512 : 0),
                              .grain = 8,
                              .gtes = way == STALE ? 3 : 1,
                              .every = 99,
                              .sectors = 1,
                              .stale_entries = way == STALE};
        struct vmdk_made made;
        struct blk_mem m, copy;
        struct err e = {0};
        u64 tables[2];
        u8 twice[4];
        test_note("way %d", way);
        vmdk_make(&m, &p, &made);
        CHECK(made.entries > VMDK_LOOK / 512 + 99);
        for (int c = 0; c < 2; c++)
            tables[c] = c ? made.rgd + round_up(made.entries * 4, 512)
                          : made.table - (made.entries - 1) * 512;
        u64 at = round_up(m.length, KI(4)) + KI(4) - 512; /* the file ends in the first grain */
        put_le32(twice, (u32)(at / 512));
        blk_mem_put(&m, at, "data", 4);
        blk_mem_truncate(&m, at + 512);
        for (int c = 0; c < 2; c++)
            blk_mem_put(&m, tables[c], twice, 4);
        blk_mem_over(&copy, &m);
        resize_checked(&copy, p.size + MI(3), KI(4));
        resize_checked(&copy, p.size + MI(9), KI(4));
        resize_checked(&copy, p.size / 2, KI(4));
        resize_checked(&copy, p.size, KI(4));
        blk_mem_free(&copy);
        /* two grains at one place: in the first tables, or in the last */
        u64 n = way == LAST ? (p.size / KI(4) / 99 - 1) * 99 : 0;
        for (int c = 0; c < 2; c++) {
            blk_mem_get(&m, tables[c] + n / p.gtes * 512 + n % p.gtes * 4, twice, 4);
            blk_mem_put(&m, tables[c] + (n + 2) / p.gtes * 512 + (n + 2) % p.gtes * 4, twice, 4);
            CHECK(le32(twice));
        }
        refused_untouched(&m, MI(3), PREALLOC_OFF, ERR_OVERLAY_CORRUPT);
        if (way != FIRST)
            refused_untouched(&m, p.size + MI(3), PREALLOC_OFF, ERR_OVERLAY_CORRUPT);
        else
            CHECK(!vmdk_run_mem(&m, p.size + MI(3), &e));
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

int main(void)
{
    RUN(query);
    RUN(pairs);
    RUN(noop_and_tail);
    RUN(descriptor_edits);
    RUN(every_crash_state);
    RUN(every_crash_state_of_a_journal);
    RUN(canaries_are_caught);
    RUN(fault_sweep);
    RUN(hostile_tables);
    RUN(requests);
    RUN(random_harm);
    RUN(sixty_tib);
    RUN(many_tables);
    return test_end();
}
