/* SPDX-License-Identifier: MIT
 *
 * The crash recorder over VHDX resizes and log replays: whatever sectors of the unflushed writes
 * reached the disk, the image has, once its log is replayed, the old or the new size and all guest
 * data, to the judge and to formats/ alike, and can be resized again. The same for I/O number N
 * failing, for every N. Two canaries, a run whose flushes are left out and one whose commit comes
 * first, must be caught.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "vhdx_run.h"

#include "test.h"

#include <unistd.h>

enum { KI = 1 << 10, MI = 1 << 20, RANDOM_SUBSETS = 12, AGAIN_EVERY = 97, QEMU_EVERY = 701 };

struct shape {
    const char *name;
    struct vhdx_make p;
    u64 new_size;
    bool dirty; /* a log that must be replayed first */
};

/* clang-format off */
static const struct shape shapes[] = {
    { "grow in place", { .size = 20 * MI + 512, .blocks = 5, .last = true, .stale_tail = true,
                         .stale_entries = 700, .crooked_size = true, .unknown = true }, 99 * MI },
    { "grow, the BAT moves", { .size = 20 * MI + 512, .block_mib = 4, .blocks = 3, .last = true,
                               .stale_tail = true, .unknown = true }, TI(1) },
    { "grow into the rest of the file", { .size = 20 * MI + 512, .block_mib = 4, .blocks = 3,
        .last = true, .slack_mib = 3, .slack_odd = 1536 }, TI(1) },
    { "shrink before the rest of the file", { .size = 20 * MI, .blocks = 20, .slack_mib = 2,
        .slack_odd = 512 }, 9 * MI },
    { "grow, one header, one table", { .size = 9 * MI, .blocks = 5, .one_header = true,
                                       .void_table = 1 }, 30 * MI },
    { "grow, equal headers, the file ends in a block", { .size = 9 * MI + 512, .block_mib = 2,
        .last = true, .short_end = true, .same_headers = true }, TI(1) },
    { "grow a fixed disk", { .size = 6 * MI + 512, .block_mib = 2, .fixed = true, .blocks = 2,
                             .stale_tail = true, .last = true }, 17 * MI },
    { "grow a child", { .size = 8 * MI, .blocks = 4, .child = true, .partial = true }, 40 * MI },
    { "shrink", { .size = 40 * MI, .blocks = 40, .stale_tail = true, .first_rules = true },
      9 * MI + 512 },
    { "shrink backwards", { .size = 40 * MI, .block_mib = 4, .blocks = 9, .backwards = true,
                            .metadata_last = true, .void_table = 2 }, 13 * MI },
    { "shrink a large BAT", { .size = TI(1), .blocks = 9 }, 5 * MI + 1024 },
    { "shrink a fixed disk", { .size = 24 * MI, .blocks = 9, .fixed = true }, 9 * MI + 512 },
    { "shrink a child", { .size = 40 * MI, .blocks = 20, .child = true, .partial = true },
      9 * MI + 512 },
    { "replay and grow", { .size = 20 * MI, .blocks = 5 }, 99 * MI, true },
    { "replay and shrink", { .size = 20 * MI, .blocks = 20 }, 9 * MI + 512, true },
};
/* clang-format on */
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

struct crash {
    u64 old_size, new_size, hash;
    u64 states, opened_old, opened_new, dirty, bad, again, qemu;
    bool canary, no_qemu; /* no_qemu: it reads region table 1 only */
    const char *what;
};

/* A log with two entries, the second over the first, and more file than there is. */
static void dirty_log(struct blk_mem *m, const struct vhdx_made *d)
{
    static const u8 guid[16] = "the log is full";
    u8 bat[4 * KI], size[4 * KI];
    u64 at = round_down(d->size_item, 4 * KI);
    blk_mem_get(m, d->bat, bat, sizeof(bat));
    blk_mem_get(m, at, size, sizeof(size));
    struct vhdx_make_change junk[] = {{at, 0, bat}, {d->bat, 4 * KI, NULL}};
    struct vhdx_make_change good[] = {{at, 0, size}, {d->bat, 0, bat}};
    u32 first = d->log_length - 8 * KI; /* it wraps around */
    u64 end = round_up(m->length, MI);
    u32 len = vhdx_make_entry(m, d, first, first, 7, guid, junk, 2, end, end + MI);
    vhdx_make_entry(m, d, (first + len) % d->log_length, first, 8, guid, good, 2, end, end + MI);
    blk_mem_put(m, at, bat, sizeof(bat)); /* none of it may be believed before */
    blk_mem_clear(m, d->bat, 4 * KI);
    vhdx_make_log_guid(m, guid);
}

static void begin(struct crash *c, struct blk_mem *m, const struct shape *s)
{
    struct vhdx_made made;
    struct vhdx_verdict v;
    *c = (struct crash){
        .old_size = s->p.size, .new_size = s->new_size, .no_qemu = s->p.void_table == 1};
    vhdx_make(m, &s->p, &made);
    if (s->dirty)
        dirty_log(m, &made);
    vhdx_judge(m, min_u64(s->p.size, s->new_size), 0, 0, &v);
    if (!CHECK(v.opens && !v.corruptions && v.size == s->p.size && v.dirty == s->dirty))
        printf("    %s %s\n", v.why, v.first);
    c->hash = v.hash;
}

static const char *wrong(const struct crash *c, const struct blk_mem *state, struct vhdx_verdict *v)
{
    vhdx_judge(state, min_u64(c->old_size, c->new_size), c->old_size, c->new_size, v);
    if (!v->opens)
        return v->why;
    if (v->size != c->old_size && v->size != c->new_size)
        return "it has neither the old nor the new size";
    if (v->hash != c->hash)
        return "guest data is lost";
    if (v->size == c->new_size && !v->zero)
        return "the new area does not read zero";
    return v->corruptions ? v->first : NULL;
}

/* By formats/: the same size, read through the log. */
static const char *opens(struct blk_mem *state, const struct vhdx_verdict *v)
{
    struct image img;
    struct err e = {0};
    if (vhdx_open_mem(&state->blk, &img, &e))
        return e.what;
    return img.size == v->size && img.u.vhdx.log.dirty == v->dirty ? NULL : "another size";
}

static void again(struct crash *c, const struct blk_mem *state)
{
    struct blk_mem next;
    struct vhdx_verdict v;
    struct err e = {0};
    u64 to = max_u64(c->old_size, c->new_size) + 8 * MI;
    blk_mem_over(&next, state);
    vhdx_resize_mem(&next, to, 0x77, &e);
    if (e.code == ERR_UNSUPPORTED_FEATURE && c->new_size < c->old_size) {
        blk_mem_free(&next);
        return; /* a child that ends inside a block */
    }
    CHECK_ERR(&e, OK);
    vhdx_judge(&next, min_u64(c->old_size, c->new_size), max_u64(c->old_size, c->new_size), to, &v);
    if (!CHECK(vhdx_judge_clean(&v) && v.size == to && v.hash == c->hash && v.zero))
        printf("    resized again: %s %s\n", v.why, v.first);
    c->again++;
    blk_mem_free(&next);
}

/* qemu-img replays the log, if need be, and finds nothing wrong. */
static void by_qemu(struct crash *c, const struct blk_mem *state)
{
    const char *path = test_path("crash.vhdx");
    struct blk_mem after;
    struct vhdx_verdict v;
    if (!CHECK(blk_mem_save(state, path)))
        return;
    CHECK(test_system("qemu-img check -f vhdx -r all %s", path) == 0);
    CHECK(test_system("qemu-img check -f vhdx %s", path) == 0);
    if (CHECK(blk_mem_load(&after, path, 512))) {
        const char *bad = wrong(c, &after, &v);
        if (!CHECK(!bad && !v.dirty))
            printf("    after qemu-img: %s\n", bad ? bad : "the log is not empty");
        blk_mem_free(&after);
    }
    unlink(path);
    c->qemu++;
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct vhdx_verdict v;
    const char *bad = wrong(c, state, &v);
    if (!bad)
        bad = opens(state, &v);
    c->states++;
    c->opened_old += v.opens && v.size == c->old_size;
    c->opened_new += v.opens && v.size == c->new_size;
    c->dirty += v.dirty;
    if (bad && !c->bad++)
        c->what = bad;
    if (bad && !c->canary) {
        CHECK(!"a crash state is broken");
        printf("    %s: %s\n", what, bad);
    }
    if (!bad && !c->canary && c->states % AGAIN_EVERY == 5)
        again(c, state);
    if (!bad && !c->canary && c->states % QEMU_EVERY == 50 && !v.child && !c->no_qemu &&
        v.size < TI(2))
        by_qemu(c, state);
    return c->canary ? !bad : test_failures() < 10;
}

static void record(struct blk_record *r, struct blk_mem *m, const struct shape *s, unsigned i)
{
    struct err e = {0};
    struct vhdx_run run = {.new_size = s->new_size, .random = 9};
    m->blk.sector = i % 3 == 2 && m->length % 4096 == 0 ? 4096 : 512;
    blk_record_init(r, m);
    vhdx_run(&r->blk, &run, &e);
    CHECK_ERR(&e, OK);
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0xbb67ae8584caa73b), total = 0, more = 0, qemu = 0, dirty = 0;
    for (unsigned i = 0; i < SHAPES; i++) {
        struct blk_mem m;
        struct blk_record r;
        struct crash c;
        test_note("case %u, %s", i, shapes[i].name);
        begin(&c, &m, &shapes[i]);
        record(&r, &m, &shapes[i], i);
        u64 n = blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &c);
        CHECK(n == c.states && n > 100 && c.bad == 0);
        CHECK(c.opened_old > 0 && c.opened_new > 0 && c.dirty > 0);
        CHECK_EQ_U64(c.opened_old + c.opened_new, n);
        total += n, more += c.again, qemu += c.qemu, dirty += c.dirty;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu states, %llu with a log to replay; %llu resized again, %llu shown to qemu-img\n",
           (unsigned long long)total, (unsigned long long)dirty, (unsigned long long)more,
           (unsigned long long)qemu);
    CHECK(more > 50 && qemu > 5);
}

/* The commit is the write of 80 bytes, one sector, to a header that follows the second flush. */
static void commit_first(struct blk_record *r)
{
    size_t i = 0;
    for (unsigned flushes = 0; flushes < 2; i++)
        flushes += r->log[i].kind == REC_FLUSH;
    struct record_entry commit = r->log[i], flush = r->log[i + 1];
    CHECK(commit.kind == REC_WRITE && commit.len == r->blk.sector && flush.kind == REC_FLUSH);
    memmove(r->log + 2, r->log, i * sizeof(*r->log));
    r->log[0] = commit;
    r->log[1] = flush;
}

static void no_flushes(struct blk_record *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->cnt; i++)
        if (r->log[i].kind != REC_FLUSH)
            r->log[n++] = r->log[i];
    r->cnt = n;
}

static void canaries_are_caught(void)
{
    unsigned flown = 0;
    for (unsigned i = 0; i < SHAPES; i++)
        for (int how = 0; how < 2 && !shapes[i].dirty; how++) {
            struct blk_mem m;
            struct blk_record r;
            struct crash c;
            test_note("canary %d, case %u, %s", how, i, shapes[i].name);
            begin(&c, &m, &shapes[i]);
            record(&r, &m, &shapes[i], i);
            c.canary = true;
            if (how)
                commit_first(&r);
            else
                no_flushes(&r);
            blk_record_states(&r, 1, 200, judge, &c);
            CHECK(c.bad > 0);
            flown++;
            blk_record_free(&r);
            blk_mem_free(&m);
        }
    test_note("%s", "");
    printf("  %u canaries\n", flown);
    CHECK(flown > 20);
}

static void fault_sweep(void)
{
    u64 runs = 0, before = 0, after = 0;
    for (unsigned i = 0; i < SHAPES; i++) {
        struct blk_mem m;
        struct crash c;
        if (shapes[i].p.size > TI(1) / 2 || shapes[i].new_size > TI(1) / 2)
            continue; /* one more of the kind, and many reads */
        begin(&c, &m, &shapes[i]);
        for (int stay = 0; stay < 2; stay++) {
            int rc = 1;
            u64 n = 1;
            for (; rc && n < 5000; n++) {
                struct blk_mem now;
                struct blk_fault f;
                struct vhdx_verdict v;
                struct err e = {0};
                test_note("%s; I/O %llu fails%s", shapes[i].name, (unsigned long long)n,
                          stay ? " and all after it" : "");
                blk_mem_over(&now, &m);
                blk_fault_init(&f, &now.blk, n, stay);
                rc = vhdx_run(&f.blk, &(struct vhdx_run){.new_size = c.new_size, .random = 3}, &e);
                const char *bad = wrong(&c, &now, &v);
                if (!CHECK(!bad))
                    printf("    %s\n", bad);
                CHECK((f.seen >= n) == (rc != 0));
                CHECK(!rc || e.code == ERR_READ_FAILED || e.code == ERR_WRITE_FAILED ||
                      e.code == ERR_NO_SPACE);
                before += rc && v.size == c.old_size;
                after += rc && v.size == c.new_size;
                CHECK(rc || v.size == c.new_size);
                runs++;
                blk_mem_free(&now);
            }
            CHECK(!rc && n > 20);
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way: %llu left the old size, %llu the new\n",
           (unsigned long long)runs, (unsigned long long)before, (unsigned long long)after);
    CHECK(before > 100 && after > 10);
}

int main(void)
{
    RUN(every_crash_state);
    RUN(canaries_are_caught);
    RUN(fault_sweep);
    return test_end();
}
