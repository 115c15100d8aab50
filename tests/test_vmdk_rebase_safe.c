/* SPDX-License-Identifier: MIT
 *
 * A safe rebase of VMDK overlays: chains by chance, from a seed, whose links are of any format;
 * what the guest sees through the old chain before is what it sees through the new one after. Read
 * back through formats/ in every case, by tests/vmdk_judge.c, and by qemu-img where it can open
 * such chains. What is copied is counted by comparing grain by grain. Then the crash recorder and
 * the faults: each state shows the old content, and a second run ends what the first has begun.
 */
#include <unistd.h>

#include "blk_fault.h"
#include "blk_record.h"
#include "copy.h"
#include "rebase_run.h"
#include "test.h"
#include "vmdk_judge.h"
#include "vmdk_make.h"

enum { LINKS = 4, MOST = 4 << 20, CID = 0x12345678 };

static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));

/* An overlay, and two chains of links, nearest first. */
struct setting {
    struct run_link overlay, link[LINKS];
    struct vmdk_make shape;
    struct vmdk_made made;
    unsigned links, old_cnt, new_cnt;
    unsigned old[LINKS], new[LINKS]; /* indices of links */
    u8 *before;
    u64 expected; /* grains to be copied */
};

static struct setting c; /* large */

/* ---- making ---- */

static struct vmdk_make random_shape(u64 size, u64 *seed)
{
    static const u32 grains[] = {8, 8, 16, 32, 128}, gtes[] = {512, 128, 16, 1, 1, 100};
    struct vmdk_make p = {.size = size, .child = true};
    p.grain = grains[rnd_below(seed, 5)];
    p.gtes = gtes[rnd_below(seed, 6)];
    p.seed = 1 + rnd_below(seed, 3);
    p.version = 1 + (u32)rnd_below(seed, 2);
    p.no_rgd = rnd_below(seed, 4) == 0;
    p.zeroed = rnd_below(seed, 3) == 0;
    p.every = (u32)rnd_below(seed, 9);
    p.last = rnd_below(seed, 3) == 0;
    p.sectors = (u32)rnd_below(seed, 2) * 3;
    p.shuffled = rnd_below(seed, 2);
    p.short_end = rnd_below(seed, 4) == 0;
    p.stale_rest = rnd_below(seed, 2);
    p.stale_entries = rnd_below(seed, 6) == 0;
    p.stale_slack = rnd_below(seed, 2);
    p.tables_last = rnd_below(seed, 4) == 0;
    p.slack = rnd_below(seed, 4) ? 0 : (u32)rnd_below(seed, 999);
    p.pad = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 600);
    return p;
}

static void make_vmdk(struct run_link *l, const struct vmdk_make *p, struct vmdk_made *made,
                      const char *below)
{
    l->format = "vmdk";
    l->blk = &l->disk.blk;
    vmdk_make(&l->disk, p, made);
    vmdk_make_text(&l->disk, "parentCID=87654321",
                   below && !strcmp(below, "vmdk") ? "parentCID=12345678" : "parentCID=ffffffff");
    if (!below)
        vmdk_make_text(&l->disk, "parentFileNameHint=\"parent.vmdk\"\n", "");
}

/* Tables without a grain may be absent: then some of them are. */
static void drop_tables(struct blk_mem *m, const struct vmdk_make *p, const struct vmdk_made *made,
                        u64 *seed)
{
    static const u8 none[4];
    u64 span = round_up(p->gtes * 4ull, 512);
    for (u64 i = 0; i < made->entries; i++) {
        u8 entry[4], table[2048];
        blk_mem_get(m, made->gd + i * 4, entry, 4);
        blk_mem_get(m, le32(entry) * 512ull, table, span);
        bool empty = true;
        for (u64 k = 0; k < span; k++)
            empty &= !table[k];
        if (!empty || rnd_below(seed, 2))
            continue;
        blk_mem_put(m, made->gd + i * 4, none, 4);
        if (made->rgd)
            blk_mem_put(m, made->rgd + i * 4, none, 4);
    }
}

static u64 near(u64 size, u64 *seed)
{
    u64 at = rnd_below(seed, 3);
    u64 other = at == 0 ? size : at == 1 ? size + rnd_below(seed, size) : rnd_below(seed, size);
    return max_u64(512, round_down(other, 512));
}

/* A chain of cnt links, from the lowest up. */
static void make_chain(unsigned *chain, unsigned cnt, u64 size, bool plain, u64 *seed)
{
    static const char *const others[] = {"qcow2", "qcow2", "raw", "vpc", "vhdx"};
    const char *below = NULL;
    for (unsigned i = cnt; i-- > 0;) {
        struct run_link *l = &c.link[c.links];
        struct vmdk_made made;
        u64 len = near(size, seed);
        if (plain || rnd_below(seed, 2)) {
            struct vmdk_make p = random_shape(len, seed);
            p.pad = p.slack = 0;
            make_vmdk(l, &p, &made, below);
        } else {
            run_make_link(l, others[rnd_below(seed, below ? 2 : 5)], len, seed);
        }
        below = l->format;
        chain[i] = c.links++;
    }
}

static int open_link(struct run_link *l, struct blk *b, struct err *e)
{
    int rc = image_open(&l->img, b, l->format, l->mem, e);
    l->img.scratch = scratch;
    return rc;
}

static void stand_on(const unsigned *chain, unsigned cnt)
{
    struct run_link *l = &c.overlay;
    for (unsigned i = 0; i < cnt; l = &c.link[chain[i++]])
        l->img.backing = &c.link[chain[i]].img;
    l->img.backing = NULL;
}

/* Opens all, the overlay on `b`; both chains stand, the overlay on one of them. */
static int open_all(struct blk *b, bool on_new, struct err *e)
{
    int rc = open_link(&c.overlay, b, e);
    for (unsigned i = 0; !rc && i < c.links; i++)
        rc = open_link(&c.link[i], c.link[i].blk, e);
    stand_on(on_new ? c.old : c.new, on_new ? c.old_cnt : c.new_cnt);
    stand_on(on_new ? c.new : c.old, on_new ? c.new_cnt : c.old_cnt);
    return rc;
}

/* Grains that the overlay on `b` lacks, and the chains show different. */
static u64 differing(struct blk *b)
{
    static u8 one[MI(4)], two[MI(4)];
    struct image *img = &c.overlay.img;
    struct err e = {0};
    struct extent x;
    u64 cnt = 0;
    CHECK(!open_all(b, false, &e));
    struct image *old = img->backing, *new = c.new_cnt ? &c.link[c.new[0]].img : NULL;
    for (u64 voff = 0, n; voff < img->size; voff += n) {
        n = min_u64(img->unit, img->size - voff);
        CHECK(!vmdk_format.map(img, voff, n, &x, &e));
        if (x.kind != EXTENT_HOLE)
            continue;
        memset(one, 0, n);
        memset(two, 0, n);
        if (old)
            CHECK(!chain_read(old, voff, one, n, &e));
        if (new)
            CHECK(!chain_read(new, voff, two, n, &e));
        cnt += memcmp(one, two, n) != 0;
    }
    CHECK_ERR(&e, OK);
    return cnt;
}

static void make_setting(u64 most, bool plain, u64 *seed)
{
    u64 size = 512 * (1 + rnd_below(seed, most / 512));
    struct err e = {0};
    unsigned old = (unsigned)rnd_below(seed, 3),
             new = (unsigned)rnd_below(seed, old ? 3 : 2) + !old;
    c.links = 0;
    c.old_cnt = plain ? old > 0 : old;
    c.new_cnt = plain ? new > 0 : new;
    make_chain(c.old, c.old_cnt, size, plain, seed);
    if (c.new_cnt && c.old_cnt && rnd_below(seed, 3) == 0) { /* a part of the old chain */
        unsigned skip = (unsigned)rnd_below(seed, c.old_cnt);
        c.new_cnt = c.old_cnt - skip;
        memcpy(c.new, c.old + skip, c.new_cnt * sizeof(c.new[0]));
    } else {
        make_chain(c.new, c.new_cnt, size, plain, seed);
    }
    c.shape = random_shape(size, seed);
    make_vmdk(&c.overlay, &c.shape, &c.made, c.old_cnt ? c.link[c.old[0]].format : NULL);
    if (rnd_below(seed, 3) == 0)
        drop_tables(&c.overlay.disk, &c.shape, &c.made, seed);
    c.expected = differing(c.overlay.blk);
    c.before = malloc(size);
    CHECK(!open_all(c.overlay.blk, false, &e));
    CHECK(!chain_read(&c.overlay.img, 0, c.before, size, &e));
    CHECK_ERR(&e, OK);
}

/* The overlay on a raw file and on another, after something was done to it. */
static void make_pair(struct vmdk_make *p)
{
    u64 seed = 5;
    struct err e = {0};
    p->child = true;
    c.links = 0;
    c.old_cnt = c.new_cnt = 1;
    for (unsigned i = 0; i < 2; i++)
        run_make_link(&c.link[c.links++], "raw", p->size, &seed);
    c.old[0] = 0, c.new[0] = 1;
    c.shape = *p;
    make_vmdk(&c.overlay, p, &c.made, "raw");
    c.before = malloc(p->size);
    CHECK(!open_all(c.overlay.blk, false, &e));
    CHECK(!chain_read(&c.overlay.img, 0, c.before, p->size, &e));
    c.expected = differing(c.overlay.blk);
    CHECK_ERR(&e, OK);
}

static void end_setting(void)
{
    for (unsigned i = 0; i < c.links; i++)
        blk_mem_free(&c.link[i].disk);
    blk_mem_free(&c.overlay.disk);
    free(c.before);
}

/* ---- running ---- */

static u64 journal; /* sectors */
static u32 epochs;
static const char *new_name = "new";

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)epoch, (void)n, (void)e;
    return 0;
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)slot, (void)off, (void)crc, (void)e;
    journal += n;
    return 0;
}

static void progress(struct plan_host *h, u64 done, u64 total)
{
    (void)h;
    epochs++;
    CHECK(done <= total);
}

static int rebase(struct blk *b, bool dry_run, struct plan_host *h, struct err *e)
{
    static u8 copy_mem[4 * BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[28 << 20] __attribute__((aligned(4096)));
    struct rebase_args a = {.name = c.new_cnt ? new_name : "",
                            .count = dry_run,
                            .work = work,
                            .work_len = sizeof(work)};
    *h = (struct plan_host){.need = need,
                            .undo = undo,
                            .progress = progress,
                            .dry_run = dry_run,
                            .mem = copy_mem,
                            .mem_len = sizeof(copy_mem)};
    journal = epochs = 0;
    int rc = open_all(b, false, e);
    if (rc)
        return rc;
    a.new_backing = c.new_cnt ? &c.link[c.new[0]].img : NULL;
    a.format = c.new_cnt ? c.link[c.new[0]].format : "";
    return plan_rebase(&c.overlay.img, &a, h, e);
}

/* Does the descriptor name what the overlay is to stand on? */
static bool switched(const struct blk_mem *m)
{
    static char text[20 * 512 + 1];
    blk_mem_get(m, 512, text, sizeof(text) - 1);
    return c.new_cnt ? strstr(text, "parentFileNameHint=\"new\"\n") != NULL : !strstr(text, "Hint");
}

/* Does the overlay show what it did? */
static bool shows_same(struct blk *b, bool on_new)
{
    static u8 buf[MI(1)];
    struct err e = {0};
    if (!CHECK(!open_all(b, on_new, &e)))
        return false;
    u64 size = c.overlay.img.size;
    for (u64 off = 0, n; off < size; off += n) {
        n = min_u64(sizeof(buf), size - off);
        if (!CHECK(!chain_read(&c.overlay.img, off, buf, n, &e)) || memcmp(buf, c.before + off, n))
            return false;
    }
    return true;
}

/* ---- second opinions ---- */

static void qemu_options(char *out, size_t size, const char *overlay, const unsigned *chain,
                         unsigned cnt)
{
    size_t n = (size_t)snprintf(out, size, "driver=vmdk,file.filename=%s", overlay);
    if (cnt)
        snprintf(out + n, size - n, ",backing.driver=vmdk,backing.file.filename=%s",
                 test_path(chain[0] ? "link1" : "link0"));
}

/* Chains of at most one VMDK each. */
static void ask_qemu(const struct blk_mem *after)
{
    char before_is[900], after_is[900], before[256], path[256];
    snprintf(before, sizeof(before), "%s", test_path("before.vmdk"));
    snprintf(path, sizeof(path), "%s", test_path("after.vmdk"));
    CHECK(blk_mem_save(&c.overlay.disk, before) && blk_mem_save(after, path));
    for (unsigned i = 0; i < c.links; i++)
        CHECK(blk_mem_save(&c.link[i].disk, test_path(i ? "link1" : "link0")));
    /* qemu would open what the descriptor names, in the directory of the image */
    CHECK(blk_mem_save(&c.link[0].disk, test_path("parent.vmdk")));
    qemu_options(before_is, sizeof(before_is), before, c.old, c.old_cnt);
    qemu_options(after_is, sizeof(after_is), path, c.new, c.new_cnt);
    CHECK(test_system("qemu-img compare --image-opts %s %s", before_is, after_is) == 0);
    CHECK(test_system("qemu-img check --image-opts %s", after_is) == 0);
    unlink(before);
    unlink(path);
    unlink(test_path("link0"));
    unlink(test_path("link1"));
    unlink(test_path("parent.vmdk"));
}

/* ---- the matrix ---- */

static void note(int i)
{
    char text[200] = "";
    for (unsigned k = 0; k < c.old_cnt; k++)
        sprintf(text + strlen(text), " %s:%llu", c.link[c.old[k]].format,
                (unsigned long long)c.link[c.old[k]].img.size);
    strcat(text, " ->");
    for (unsigned k = 0; k < c.new_cnt; k++)
        sprintf(text + strlen(text), " %u:%s:%llu", c.new[k], c.link[c.new[k]].format,
                (unsigned long long)c.link[c.new[k]].img.size);
    test_note("case %d, %llu bytes, grain %u gtes %u no_rgd %d zeroed %d every %u slack %u:%s", i,
              (unsigned long long)c.shape.size, c.shape.grain, c.shape.gtes, c.shape.no_rgd,
              c.shape.zeroed, c.shape.every, c.shape.slack, text);
}

/* All that must hold after a whole run. */
static void check_after(struct blk_mem *m, u64 copied, const struct plan_host *h)
{
    struct vmdk_verdict old, new;
    vmdk_judge_mem(&c.overlay.disk, 0, 0, 0, &old);
    vmdk_judge_mem(m, 0, 0, 0, &new);
    if (!CHECK(new.opens && !new.faults))
        printf("    %s %s\n", new.why ? new.why : "", new.first);
    CHECK(switched(m));
    CHECK(shows_same(&m->blk, true));
    CHECK_EQ_U64(h->clusters_copied, copied);
    CHECK(h->bytes_copied <= copied * c.overlay.img.unit);
    CHECK(new.size == old.size &&new.rest_hash == old.rest_hash &&new.stale == old.stale);
    CHECK(new.absent <= old.absent);
    if (!c.shape.zeroed)
        CHECK_EQ_U64(new.grains, old.grains + c.expected);
}

static void run_setting(u64 *many, u64 *copied)
{
    struct blk_mem m;
    struct plan_host h;
    struct err e = {0};
    u64 at;
    blk_mem_over(&m, &c.overlay.disk);
    CHECK(!rebase(&m.blk, true, &h, &e) && blk_mem_equal(&m, &c.overlay.disk, &at));
    CHECK_EQ_U64(h.clusters_copied, c.expected);
    u64 bytes = h.bytes_copied;
    rebase(&m.blk, false, &h, &e);
    CHECK_ERR(&e, OK);
    CHECK_EQ_U64(h.bytes_copied, bytes);
    blk_mem_truncate(&m, h.length[0]);
    check_after(&m, c.expected, &h);
    *many += epochs > 2;
    *copied += c.expected;
    blk_mem_free(&m);
}

/* INSTAR_CASES sets another number. */
static void matrix(void)
{
    u64 seed = test_seed(0xba7c9045f12c7f99), many = 0, copied = 0;
    const char *n = getenv("INSTAR_CASES");
    int cnt = n ? atoi(n) : 400;
    for (int i = 0; i < cnt; i++) {
        make_setting(MOST, false, &seed);
        note(i);
        run_setting(&many, &copied);
        end_setting();
    }
    test_note("%s", "");
    printf("  %d cases, %llu of more than one batch; %llu grains copied\n", cnt,
           (unsigned long long)many, (unsigned long long)copied);
    CHECK(n || (many > 10 && copied > 10000));
}

/* More data than memory has room for. */
static void large(void)
{
    struct vmdk_make p = {.size = MI(70) + 512, .every = 50, .sectors = 1};
    u64 many = 0, copied = 0;
    make_pair(&p);
    c.new_cnt = 0;
    c.expected = differing(c.overlay.blk);
    run_setting(&many, &copied);
    CHECK(many == 1 && epochs > 3 && copied > 500);
    end_setting();
}

static void by_qemu(void)
{
    u64 seed = test_seed(0x24a19947b3916cf7);
    for (int i = 0; i < 25; i++) {
        struct blk_mem m;
        struct plan_host h;
        struct err e = {0};
        make_setting(MOST, true, &seed);
        c.shape.tables_last = false;
        note(i);
        blk_mem_over(&m, &c.overlay.disk);
        CHECK(!rebase(&m.blk, false, &h, &e));
        blk_mem_truncate(&m, h.length[0]);
        check_after(&m, c.expected, &h);
        ask_qemu(&m);
        blk_mem_free(&m);
        end_setting();
    }
    test_note("%s", "");
}

/* ---- crashes and faults ---- */

struct crash {
    u64 states, on_old, on_new, torn, again, bad;
    bool canary;
};
enum { CRASHES = 14, RANDOM_SUBSETS = 12, AGAIN_EVERY = 29 };

static const char *wrong(struct blk_mem *state, struct vmdk_verdict *v)
{
    vmdk_judge_mem(state, 0, 0, 0, v);
    if (!v->opens)
        return v->why;
    if (v->faults > v->torn)
        return v->first;
    return shows_same(&state->blk, switched(state)) ? NULL : "its content has changed";
}

/* The same again, on what is left: it finishes, and copies what is not yet there. */
static void run_again(const struct blk_mem *state)
{
    struct blk_mem m;
    struct plan_host h;
    struct err e = {0};
    blk_mem_over(&m, state);
    u64 left = differing(&m.blk);
    if (switched(state)) { /* the old chain is not the overlay's any more */
        blk_mem_free(&m);
        return;
    }
    rebase(&m.blk, false, &h, &e);
    CHECK_ERR(&e, OK);
    blk_mem_truncate(&m, h.length[0]);
    check_after(&m, left, &h);
    blk_mem_free(&m);
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *k = ctx;
    struct vmdk_verdict v;
    const char *bad = wrong(state, &v);
    k->states++;
    k->torn += v.torn > 0;
    *(switched(state) ? &k->on_new : &k->on_old) += 1;
    k->bad += bad != NULL;
    if (k->canary)
        return !bad;
    if (!CHECK(!bad))
        printf("    %s: %s\n", what, bad);
    else if (k->states % AGAIN_EVERY == 3)
        run_again(state), k->again++;
    return test_failures() < 8;
}

/* Small, with something to copy, and a descriptor that changes within a sector. */
static void make_small(u64 *seed)
{
    for (;;) {
        struct blk_mem m;
        struct plan_host h;
        struct err e = {0};
        make_setting(KI(200), false, seed);
        blk_mem_over(&m, &c.overlay.disk);
        CHECK(!rebase(&m.blk, false, &h, &e));
        blk_mem_free(&m);
        if (c.expected > 3 && !journal)
            return;
        end_setting();
    }
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0x0801f2e2858efc16), total = 0, torn = 0, again = 0;
    for (int i = 0; i < CRASHES; i++) {
        struct blk_record r;
        struct crash k = {0};
        struct plan_host h;
        struct err e = {0};
        make_small(&seed);
        note(i);
        blk_record_init(&r, &c.overlay.disk);
        rebase(&r.blk, false, &h, &e);
        CHECK_ERR(&e, OK);
        u64 n = blk_record_states(&r, seed, RANDOM_SUBSETS, judge, &k);
        CHECK(n == k.states && !k.bad && k.on_old && k.on_new);
        total += n, torn += k.torn, again += k.again;
        blk_record_free(&r);
        end_setting();
    }
    test_note("%s", "");
    printf("  %llu crash states, %llu of them with directories that differ; %llu rebased again\n",
           (unsigned long long)total, (unsigned long long)torn, (unsigned long long)again);
    CHECK(torn > 20 && again > 40);
}

static void every_fault(void)
{
    u64 seed = test_seed(0x636920d871574e69), total = 0;
    for (int i = 0; i < 8; i++) {
        bool done = false;
        make_small(&seed);
        note(i);
        for (u64 n = 1; !done && test_failures() < 8; n++) {
            struct blk_mem m;
            struct blk_fault f;
            struct plan_host h;
            struct vmdk_verdict v;
            struct err e = {0};
            blk_mem_over(&m, &c.overlay.disk);
            blk_fault_init(&f, &m.blk, n, n % 2);
            done = !rebase(&f.blk, false, &h, &e);
            const char *bad = wrong(&m, &v);
            if (!CHECK(!bad))
                printf("    request %llu: %s\n", (unsigned long long)n, bad);
            if (!done)
                run_again(&m);
            total++;
            blk_mem_free(&m);
        }
        end_setting();
    }
    test_note("%s", "");
    printf("  %llu requests failed\n", (unsigned long long)total);
    CHECK(total > 100);
}

static int no_flush(struct blk *b, struct err *e)
{
    (void)b, (void)e;
    return 0;
}

/* Without its barriers, a rebase must be caught. */
static void canary(void)
{
    u64 seed = test_seed(0x71574e69a458fea3), caught = 0;
    for (int i = 0; i < 5; i++) {
        struct blk_record r;
        struct crash k = {.canary = true};
        struct plan_host h;
        struct err e = {0};
        make_small(&seed);
        blk_record_init(&r, &c.overlay.disk);
        struct blk_ops ops = *r.blk.ops;
        ops.flush = no_flush;
        r.blk.ops = &ops;
        CHECK(!rebase(&r.blk, false, &h, &e));
        blk_record_states(&r, seed, RANDOM_SUBSETS, judge, &k);
        caught += k.bad > 0;
        blk_record_free(&r);
        end_setting();
    }
    CHECK_EQ_U64(caught, 5);
}

/* ---- what is refused, what is mended ---- */

static void refused(enum err_code code)
{
    struct blk_mem m;
    struct plan_host h;
    struct err e = {0};
    u64 at;
    blk_mem_over(&m, &c.overlay.disk);
    rebase(&m.blk, false, &h, &e);
    CHECK_ERR(&e, code);
    CHECK(blk_mem_equal(&m, &c.overlay.disk, &at));
    blk_mem_free(&m);
}

static void refusals(void)
{
    struct vmdk_make p = {.size = MI(1), .grain = 8, .every = 3, .full = true};
    u8 entry[4];
    make_pair(&p);
    new_name = "longer than parent.vmdk";
    refused(ERR_DESCRIPTOR_TOO_LARGE);
    new_name = "new";
    end_setting();
    p.full = false;
    p.grain = 8192;
    p.size = MI(8);
    make_pair(&p);
    refused(ERR_UNSUPPORTED_FEATURE);
    end_setting();
    p.grain = 8;
    p.size = MI(1);
    make_pair(&p); /* two grains at one place */
    blk_mem_get(&c.overlay.disk, c.made.table, entry, 4);
    blk_mem_put(&c.overlay.disk, c.made.table + 4, entry, 4);
    blk_mem_put(&c.overlay.disk, c.made.rgd + 512 + 4, entry, 4);
    refused(ERR_OVERLAY_CORRUPT);
    end_setting();
    make_pair(&p); /* one grain at two places */
    put_le32(entry, 9999);
    blk_mem_put(&c.overlay.disk, c.made.rgd + 512, entry, 4);
    refused(ERR_OVERLAY_CORRUPT);
    end_setting();
    make_pair(&p); /* a table that is the first directory's only */
    put_le32(entry, 0);
    blk_mem_put(&c.overlay.disk, c.made.rgd, entry, 4);
    refused(ERR_OVERLAY_CORRUPT);
    end_setting();
    make_pair(&p); /* a parent that has been changed */
    c.link[0].img.backing = NULL;
    blk_mem_free(&c.link[0].disk);
    struct vmdk_make q = {.size = MI(1), .grain = 8, .child = true};
    struct vmdk_made made;
    make_vmdk(&c.link[0], &q, &made, NULL);
    refused(ERR_OVERLAY_CORRUPT);
    end_setting();
}

static void torn(void)
{
    struct vmdk_make p = {.size = MI(1), .grain = 8, .every = 3, .gtes = 16, .slack = 40};
    static const u8 none[4];
    u64 many = 0, copied = 0, span = 512;
    u8 entry[4];
    make_pair(&p);
    u64 second = c.made.rgd + 512;
    blk_mem_put(&c.overlay.disk, second + 12, none, 4); /* grain 3 is the first directory's */
    put_le32(entry, 7777);
    blk_mem_put(&c.overlay.disk, second + span + 12, entry, 4); /* 19 is not */
    blk_mem_put(&c.overlay.disk, c.made.gd + 8, none, 4);       /* the third table is neither */
    struct err e = {0};
    CHECK(!open_all(c.overlay.blk, false, &e));
    CHECK(!chain_read(&c.overlay.img, 0, c.before, p.size, &e));
    c.expected = differing(c.overlay.blk);
    run_setting(&many, &copied);
    end_setting();
}

int main(void)
{
    RUN(matrix);
    RUN(large);
    RUN(by_qemu);
    RUN(every_crash_state);
    RUN(every_fault);
    RUN(canary);
    RUN(refusals);
    RUN(torn);
    return test_end();
}
