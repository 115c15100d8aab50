/* SPDX-License-Identifier: MIT
 *
 * A safe rebase of VMDK overlays that consist of several sparse extents, over raw parents: what the
 * guest sees stays, whatever lies across the edges of the extents; what a crash leaves shows the
 * old content, and a second run ends what the first has begun. Parents of other formats, and all
 * that does not depend on extents, are test_vmdk_rebase_safe.c's.
 */
#include "blk_record.h"
#include "copy.h"
#include "rebase_run.h"
#include "test.h"
#include "vmdk_set.h"

static struct vmdk_set set;
static struct run_link link[2]; /* the old parent, the new one */
static bool detach;
static u8 *before;
static u64 disk_size, journal;

static const char type_line[] = "createType=\"twoGbMaxExtentSparse\"";

/* ---- making ---- */

static struct vmdk_set_make random_set(u64 *seed, u64 most)
{
    static const u32 grains[] = {8, 8, 16, 128}, gtes[] = {512, 128, 16, 1};
    struct vmdk_set_make p = {.cnt = 1 + (u32)rnd_below(seed, 4), .child = true};
    p.grain = grains[rnd_below(seed, most < MI(1) ? 2 : 4)];
    p.gtes = gtes[rnd_below(seed, 4)];
    for (unsigned i = 0; i < p.cnt; i++) /* only the last may end inside a grain */
        p.sectors[i] = p.grain * (1 + rnd_below(seed, most / 512 / p.grain));
    p.sectors[p.cnt - 1] += rnd_below(seed, p.grain);
    p.seed = 1 + rnd_below(seed, 99);
    p.no_rgd = rnd_below(seed, 4) == 0;
    p.zeroed = rnd_below(seed, 4) == 0;
    p.every = (u32)rnd_below(seed, 6);
    p.last = rnd_below(seed, 2);
    p.shuffled = rnd_below(seed, 2);
    p.short_end = rnd_below(seed, 4) == 0;
    p.stale_rest = rnd_below(seed, 2);
    p.tables_last = rnd_below(seed, 4) == 0;
    p.slack = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 99);
    p.pad = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 600);
    p.tail = rnd_below(seed, 3) ? 0 : (u32)rnd_below(seed, 600);
    return p;
}

static int open_set(struct blk *dev, const struct blk_mem *box, bool on_new, struct err *e)
{
    int rc = vmdk_set_open(&set, dev, box, NULL, e);
    for (int i = 0; !rc && i < 2; i++)
        rc = image_open(&link[i].img, &link[i].disk.blk, "raw", link[i].mem, e);
    set.img.backing = on_new && detach ? NULL : &link[on_new].img;
    return rc;
}

static void make_case(struct blk_mem *box, const struct vmdk_set_make *p, u64 *seed)
{
    struct err e = {0};
    vmdk_set_build(box, p);
    vmdk_set_text(box, "parentCID=87654321", "parentCID=ffffffff");
    vmdk_set_text(box, type_line,
                  "createType=\"twoGbMaxExtentSparse\"\nparentFileNameHint=\"old\"");
    disk_size = 0;
    for (unsigned i = 0; i < p->cnt; i++)
        disk_size += p->sectors[i] * 512;
    for (int i = 0; i < 2; i++)
        run_make_link(&link[i], "raw", rnd_below(seed, 3) ? disk_size : disk_size / 2 + 512, seed);
    detach = rnd_below(seed, 3) == 0;
    before = malloc(disk_size);
    CHECK(!open_set(&box->blk, box, false, &e) && set.img.size == disk_size);
    CHECK(!chain_read(&set.img, 0, before, disk_size, &e));
    CHECK_ERR(&e, OK);
}

static void end_case(struct blk_mem *box)
{
    for (int i = 0; i < 2; i++)
        blk_mem_free(&link[i].disk);
    blk_mem_free(box);
    free(before);
}

/* ---- running ---- */

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    int rc = 0;
    (void)h, (void)epoch;
    for (unsigned i = 0; !rc && i < IMAGE_FILES; i++)
        if (n->length[i])
            rc = vmdk_set_grow(&set.file[i], round_up(n->length[i], 512), e);
    return rc;
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)off, (void)crc, (void)e;
    CHECK(slot == 0);
    journal += n;
    return 0;
}

static int rebase(struct blk *dev, const struct blk_mem *box, struct plan_host *h, struct err *e)
{
    static u8 copy_mem[4 * BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[28 << 20] __attribute__((aligned(4096)));
    struct rebase_args a = {.name = detach ? "" : "new",
                            .format = detach ? "" : "raw",
                            .work = work,
                            .work_len = sizeof(work)};
    *h = (struct plan_host){
        .need = need, .undo = undo, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    journal = 0;
    int rc = open_set(dev, box, false, e);
    a.new_backing = detach ? NULL : &link[1].img;
    return rc ? rc : plan_rebase(&set.img, &a, h, e);
}

static bool switched(const struct blk_mem *box)
{
    char text[8192] = "";
    vmdk_set_get(box, 0, 0, text, sizeof(text) - 1);
    return detach ? !strstr(text, "Hint") : strstr(text, "parentFileNameHint=\"new\"\n") != NULL;
}

static bool shows_same(struct blk_mem *box, bool on_new)
{
    struct err e = {0};
    u8 *now = malloc(disk_size);
    bool same = CHECK(!open_set(&box->blk, box, on_new, &e)) && set.img.size == disk_size &&
                CHECK(!chain_read(&set.img, 0, now, disk_size, &e)) &&
                !memcmp(now, before, disk_size);
    free(now);
    return same;
}

/* The whole of it in the box, and all that must hold then. */
static void run_checked(struct blk_mem *box, u64 *copied)
{
    struct vmdk_set_verdict old, new;
    struct plan_host h;
    struct err e = {0};
    vmdk_set_judge(box, 0, 0, &old);
    rebase(&box->blk, box, &h, &e);
    CHECK_ERR(&e, OK);
    for (unsigned i = 0; i < set.img.files; i++)
        vmdk_set_truncate(box, set.file[i].i, h.length[i]);
    vmdk_set_judge(box, 0, 0, &new);
    if (!CHECK(new.opens && !new.faults))
        printf("    %s %s\n", new.why, new.first);
    CHECK(new.size == old.size &&new.extents == old.extents &&new.absent <= old.absent);
    CHECK(new.grains >= old.grains &&new.grains <= old.grains + h.clusters_copied);
    CHECK(switched(box) && shows_same(box, true));
    *copied += h.clusters_copied;
}

static void pairs(void)
{
    u64 seed = test_seed(0xc0ac29b7c97c50dd), copied = 0, undone = 0;
    for (int i = 0; i < 150; i++) {
        struct vmdk_set_make p = random_set(&seed, MI(1));
        struct blk_mem box;
        make_case(&box, &p, &seed);
        test_note("pair %d: %u extents, grain %u gtes %u no_rgd %d zeroed %d every %u pad %u tail "
                  "%u detach %d",
                  i, p.cnt, p.grain, p.gtes, p.no_rgd, p.zeroed, p.every, p.pad, p.tail, detach);
        run_checked(&box, &copied);
        undone += journal > 0;
        end_case(&box);
    }
    test_note("%s", "");
    printf("  %llu grains copied, %llu took the journal\n", (unsigned long long)copied,
           (unsigned long long)undone);
    CHECK(copied > 5000 && undone > 5);
}

/* ---- crashes ---- */

struct crash {
    u64 states, on_new, again, torn;
};

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *k = ctx;
    struct vmdk_set_verdict v;
    u64 copied = 0;
    bool now = switched(state);
    vmdk_set_judge(state, 0, 0, &v);
    k->states++;
    k->on_new += now;
    k->torn += v.torn > 0;
    if (!CHECK(v.opens && v.faults == v.torn) || !CHECK(shows_same(state, now)))
        printf("    %s: %s\n", what, v.first);
    else if (!now && k->states % 31 == 3) {
        struct blk_mem next;
        blk_mem_over(&next, state);
        run_checked(&next, &copied);
        blk_mem_free(&next);
        k->again++;
    }
    return test_failures() < 8;
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0x3f84d5b5b5470917), states = 0, again = 0, torn = 0;
    for (int done = 0; done < 8;) {
        struct vmdk_set_make p = random_set(&seed, 60 << 10);
        struct blk_mem box;
        struct blk_record r;
        struct plan_host h;
        struct crash k = {0};
        struct err e = {0};
        p.pad = 0;
        make_case(&box, &p, &seed);
        blk_record_init(&r, &box);
        rebase(&r.blk, &box, &h, &e);
        CHECK_ERR(&e, OK);
        if (!journal && h.clusters_copied > 3) {
            test_note("case %d", done++);
            blk_record_states(&r, seed, 10, judge, &k);
            CHECK(k.on_new && k.on_new < k.states);
            states += k.states, again += k.again, torn += k.torn;
        }
        blk_record_free(&r);
        end_case(&box);
    }
    test_note("%s", "");
    printf("  %llu states, %llu with directories that differ, %llu rebased again\n",
           (unsigned long long)states, (unsigned long long)torn, (unsigned long long)again);
    CHECK(again > 10 && torn > 10);
}

/* An extent that does not begin with a grain. */
static void askew(void)
{
    struct vmdk_set_make p = {.cnt = 2, .sectors = {99, 80}, .grain = 8, .child = true};
    struct blk_mem box, copy;
    struct plan_host h;
    struct err e = {0};
    u64 seed = 3;
    make_case(&box, &p, &seed);
    blk_mem_over(&copy, &box);
    CHECK(rebase(&copy.blk, &copy, &h, &e) == ERR_UNSUPPORTED_SUBFORMAT);
    CHECK(vmdk_set_same(&copy, &box));
    blk_mem_free(&copy);
    end_case(&box);
}

int main(void)
{
    RUN(pairs);
    RUN(every_crash_state);
    RUN(askew);
    return test_end();
}
