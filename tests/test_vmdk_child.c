/* SPDX-License-Identifier: MIT
 *
 * VMDK images that have a parent, grown and shrunk: the disk stays what it is below its old end,
 * and what a longer parent holds is not seen behind it; seeded pairs over chains of two and three,
 * every crash state of some, and what cannot be hidden, or is not the parent, refused.
 */
#include "blk_record.h"
#include "copy.h"
#include "test.h"
#include "vmdk_judge.h"
#include "vmdk_make.h"
#include "vmdk_run.h"
#include "vmdk_stream.h"

/* [0]: the child; each next one is the parent of the one before. */
struct family {
    struct blk_mem m[3];
    struct image img[3];
    unsigned cnt;
    u8 mem[3][IMAGE_MEM] __attribute__((aligned(4096)));
};

static void open_chain(struct family *f, struct blk *child)
{
    struct err e = {0};
    for (unsigned i = 0; i < f->cnt; i++) {
        CHECK(!image_open(&f->img[i], i ? &f->m[i].blk : child, "vmdk", f->mem[i], &e));
        f->img[i].backing = i + 1 < f->cnt ? &f->img[i + 1] : NULL;
    }
    CHECK_ERR(&e, OK);
}

static void make_family(struct family *f, const struct vmdk_make *p, unsigned cnt)
{
    f->cnt = cnt;
    for (unsigned i = 0; i < cnt; i++) {
        struct vmdk_make q = p[i];
        struct vmdk_made made;
        q.seed = p[i].seed + i * 77 + 1; /* no two hold the same */
        q.child = i + 1 < cnt;
        vmdk_make(&f->m[i], &q, &made);
        if (i)
            vmdk_make_text(&f->m[i], "CID=12345678", "CID=87654321");
    }
    open_chain(f, &f->m[0].blk);
}

static void free_family(struct family *f)
{
    for (unsigned i = 0; i < f->cnt; i++)
        blk_mem_free(&f->m[i]);
}

/* What the child's disk holds; free() it. */
static u8 *content(struct family *f)
{
    struct err e = {0};
    u8 *p = malloc(f->img[0].size + 1);
    CHECK(!chain_read(&f->img[0], 0, p, f->img[0].size, &e));
    return p;
}

/* Is the child's disk, which was `old`, now old and zeros, or the beginning of old? */
static bool as_it_was(struct family *f, const u8 *old, u64 old_size)
{
    u64 size = f->img[0].size;
    u8 *now = content(f);
    u64 kept = min_u64(size, old_size);
    bool same = !memcmp(now, old, kept) && all_zero(now + kept, size - kept);
    free(now);
    return same;
}

static bool sound(const struct blk_mem *m)
{
    struct vmdk_verdict v;
    vmdk_judge_mem(m, 0, 0, 0, &v);
    bool ok = v.opens && !v.faults && v.text_size == v.size && v.geometry && !v.stale;
    if (!ok)
        printf("    %s %s\n", v.why ? v.why : "", v.first);
    return ok;
}

static int resize(struct family *f, u64 to, struct err *e)
{
    struct vmdk_run_out out;
    *e = (struct err){0};
    int rc = vmdk_run_child(&f->m[0].blk, f->cnt > 1 ? &f->img[1] : NULL, to, &out, e);
    if (!rc)
        blk_mem_truncate(&f->m[0], out.length);
    return rc;
}

/* ---- pairs ---- */

static struct vmdk_make random_image(u64 *seed, u32 grain)
{
    struct vmdk_make p = {.grain = grain, .gtes = rnd_below(seed, 2) ? 512 : 16};
    p.seed = rnd(seed);
    p.size = grain * 512ull * (1 + rnd_below(seed, 300));
    p.no_rgd = rnd_below(seed, 4) == 0;
    p.every = (u32)rnd_below(seed, 5);
    p.last = rnd_below(seed, 2);
    p.sectors = 3;
    p.shuffled = rnd_below(seed, 2);
    p.stale_rest = rnd_below(seed, 2);
    p.stale_entries = rnd_below(seed, 4) == 0;
    p.no_last_table = rnd_below(seed, 2);
    return p;
}

static void pairs(void)
{
    u64 seed = test_seed(0x3f84d5b5b5470917);
    unsigned refused = 0, hidden = 0;
    for (int i = 0; i < 200; i++) {
        static const u32 grains[] = {8, 16, 128};
        static struct family f;
        struct vmdk_make p[3];
        struct err e;
        unsigned cnt = 2 + (unsigned)rnd_below(&seed, 2);
        for (unsigned k = 0; k < cnt; k++)
            p[k] = random_image(&seed, grains[rnd_below(&seed, 3)]);
        p[0].zeroed = rnd_below(&seed, 3) > 0;
        if (rnd_below(&seed, 3) == 0)
            p[0].size -= 512;
        test_note("pair %d: %llu over %llu, grain %u gtes %u zeroed %d", i,
                  (unsigned long long)p[0].size, (unsigned long long)p[1].size, p[0].grain,
                  p[0].gtes, p[0].zeroed);
        make_family(&f, p, cnt);
        u8 *old = content(&f);
        u64 larger = p[0].size + 1 + rnd_below(&seed, MI(2));
        struct blk_mem before;
        u64 at;
        blk_mem_over(&before, &f.m[0]);
        if (resize(&f, larger, &e)) {
            CHECK_ERR(&e, ERR_UNSUPPORTED_SUBFORMAT);
            CHECK((!p[0].zeroed || p[0].size % (p[0].grain * 512)) && p[1].size > p[0].size);
            CHECK(blk_mem_equal(&before, &f.m[0], &at));
            refused++;
        } else {
            hidden += p[1].size > p[0].size && p[0].zeroed;
            open_chain(&f, &f.m[0].blk);
            CHECK(f.img[0].size >= larger && as_it_was(&f, old, p[0].size) && sound(&f.m[0]));
        }
        u64 smaller = 1 + rnd_below(&seed, p[0].size);
        CHECK(!resize(&f, smaller, &e)); /* the parent is not asked */
        open_chain(&f, &f.m[0].blk);
        CHECK(f.img[0].size >= smaller && as_it_was(&f, old, p[0].size) && sound(&f.m[0]));
        u64 small = f.img[0].size;
        if (p[0].zeroed && small % (p[0].grain * 512) == 0) { /* what was cut off stays away */
            CHECK(!resize(&f, larger, &e));
            open_chain(&f, &f.m[0].blk);
            CHECK(as_it_was(&f, old, small) && sound(&f.m[0]));
        }
        free(old);
        blk_mem_free(&before);
        free_family(&f);
    }
    test_note("%s", "");
    printf("  200 pairs: %u grows refused, %u hid a longer parent\n", refused, hidden);
    CHECK(refused > 10 && hidden > 30);
}

/* A longer parent that holds nothing there, as one that was grown before: there is nothing to
 * hide, so that no flag is wanted; nor is a stream's short tail seen. */
static void nothing_to_hide(void)
{
    static struct family f;
    struct vmdk_make p[2] = {{.size = MI(2), .every = 3}, {.size = MI(2), .every = 2}};
    struct err e;
    make_family(&f, p, 2);
    u8 *old = content(&f);
    f.cnt = 1;
    CHECK(!vmdk_run_mem(&f.m[1], MI(9), &e));
    f.cnt = 2;
    open_chain(&f, &f.m[0].blk);
    CHECK(f.img[1].size == MI(9));
    CHECK(!resize(&f, MI(20), &e));
    CHECK_ERR(&e, OK);
    open_chain(&f, &f.m[0].blk);
    CHECK(as_it_was(&f, old, MI(2)) && sound(&f.m[0]));
    free(old);
    free_family(&f);
}

/* ---- refusals ---- */

static void refused(struct family *f, enum err_code code, const char *words)
{
    struct blk_mem before;
    struct err e;
    u64 at;
    blk_mem_over(&before, &f->m[0]);
    CHECK(resize(f, MI(9), &e) == (int)code);
    CHECK_ERR(&e, code);
    CHECK(e.what && strstr(e.what, words));
    CHECK(blk_mem_equal(&before, &f->m[0], &at));
    CHECK(!resize(f, MI(2), &e)); /* as it is */
    CHECK(blk_mem_equal(&before, &f->m[0], &at));
    CHECK(!resize(f, MI(1), &e)); /* nobody asks the parent */
    CHECK_ERR(&e, OK);
    blk_mem_free(&before);
}

static void refusals(void)
{
    static struct family f;
    struct vmdk_make p[2] = {{.size = MI(2), .every = 3}, {.size = MI(3), .every = 2}};
    make_family(&f, p, 2);
    refused(&f, ERR_UNSUPPORTED_SUBFORMAT, "flag for zeroed grains");
    free_family(&f);
    p[0].zeroed = true;
    make_family(&f, p, 2);
    vmdk_make_text(&f.m[1], "CID=87654321", "CID=87654320");
    open_chain(&f, &f.m[0].blk);
    refused(&f, ERR_OVERLAY_CORRUPT, "has changed");
    free_family(&f);
    make_family(&f, p, 2);
    f.img[1].format = &raw_format;
    refused(&f, ERR_OVERLAY_CORRUPT, "not in VMDK format");
    free_family(&f);
    make_family(&f, p, 2);
    f.cnt = 1; /* a child that names nobody */
    refused(&f, ERR_OVERLAY_CORRUPT, "does not name");
    f.cnt = 2;
    free_family(&f);
    p[0].size = 23 * KI(64) - 512; /* and its last grain is the parent's */
    p[1].every = 1;
    make_family(&f, p, 2);
    struct err e;
    CHECK(resize(&f, MI(9), &e) == ERR_UNSUPPORTED_SUBFORMAT);
    CHECK(e.what && strstr(e.what, "inside a grain"));
    free_family(&f);
}

/* ---- crashes ---- */

struct crash {
    struct family *f;
    const u8 *old;
    u64 old_size, new_size, opened_old, opened_new;
};

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct vmdk_verdict v;
    vmdk_judge_mem(state, 0, 0, 0, &v);
    open_chain(c->f, &state->blk);
    u64 size = c->f->img[0].size;
    if (!CHECK(v.opens && !v.faults) || !CHECK(size == c->old_size || size == c->new_size) ||
        !CHECK(as_it_was(c->f, c->old, c->old_size)))
        printf("    %s: %s\n", what, v.first);
    c->opened_old += size == c->old_size, c->opened_new += size == c->new_size;
    return test_failures() < 8;
}

static void every_crash_state(void)
{
    static const struct vmdk_make children[] = {
        {.size = KI(256), .grain = 8, .every = 3, .zeroed = true},
        {.size = KI(256), .grain = 8, .every = 3, .zeroed = true, .gtes = 16, .no_rgd = true},
        {.size = KI(100), .grain = 8, .gtes = 16, .every = 20, .zeroed = true, .stale_slack = true},
        {.size = KI(420), .grain = 8, .gtes = 1, .every = 3, .zeroed = true},
        {.size = KI(93), .grain = 8, .gtes = 16, .stale_entries = true, .zeroed = true},
    };
    u64 seed = test_seed(0x9216d5d98979fb1b), total = 0;
    for (unsigned i = 0; i < sizeof children / sizeof children[0]; i++)
        for (int grow = 0; grow < 2; grow++) {
            static struct family f;
            struct vmdk_make p[2] = {children[i], {.size = KI(640), .every = 2, .grain = 16}};
            struct blk_record r;
            struct vmdk_run_out out;
            struct err e = {0};
            test_note("child %u, grow %d", i, grow);
            make_family(&f, p, 2);
            u8 *old = content(&f);
            struct crash c = {&f, old, p[0].size, grow ? KI(700) : KI(64), 0, 0};
            if (i == 4 && grow)
                c.new_size = KI(960); /* the last table is new, too */
            blk_record_init(&r, &f.m[0]);
            CHECK(!vmdk_run_child(&r.blk, &f.img[1], c.new_size, &out, &e) && !out.undo);
            CHECK_ERR(&e, OK);
            u64 n = blk_record_states(&r, seed, 16, judge, &c);
            CHECK(n > 3 && c.opened_old && c.opened_new);
            total += n;
            free(old);
            blk_record_free(&r);
            free_family(&f);
        }
    test_note("%s", "");
    printf("  %llu crash states\n", (unsigned long long)total);
}

int main(void)
{
    RUN(pairs);
    RUN(nothing_to_hide);
    RUN(refusals);
    RUN(every_crash_state);
    return test_end();
}
