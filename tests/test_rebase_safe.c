/* SPDX-License-Identifier: MIT
 *
 * A safe rebase of qcow2 overlays: whatever the chains are made of, the guest sees the same before
 * and after. The matrix is by chance, from a seed; what the guest sees is read through formats/ in
 * every case, and by qemu-img through chains of its own in some. Then the crash recorder and the
 * faults: whatever happens, the overlay shows its old content on the old chain, or on the new one
 * if its header says so; and a second run ends what the first has begun.
 */
#include <unistd.h>

#include "blk_fault.h"
#include "blk_record.h"
#include "qcow2_judge.h"
#include "rebase_run.h"
#include "test.h"

enum { CASES = 500, QEMU_EVERY = 15, MOST = 5 << 20 };

static struct run_case c; /* large */

/* ---- second opinions ---- */

static void qemu_options(char *out, size_t size, const char *overlay, const unsigned *chain,
                         unsigned cnt)
{
    size_t n = (size_t)snprintf(out, size, "driver=qcow2,file.filename=%s", overlay);
    char prefix[80] = "";
    for (unsigned i = 0; i < cnt; i++) {
        char name[16];
        snprintf(name, sizeof(name), "link%u", chain[i]);
        strcat(prefix, "backing.");
        n += (size_t)snprintf(out + n, size - n, ",%sdriver=%s,%sfile.filename=%s", prefix,
                              c.link[chain[i]].format, prefix, test_path(name));
        if (strcmp(c.link[chain[i]].format, "qcow2"))
            return; /* it has no holes to see others through, and qemu wants none below it */
    }
    snprintf(out + n, size - n, ",%sbacking=", prefix);
}

static void ask_qemu(const struct blk_mem *after)
{
    char before_is[900], after_is[900], before[256], path[256];
    snprintf(before, sizeof(before), "%s", test_path("before.qcow2"));
    snprintf(path, sizeof(path), "%s", test_path("after.qcow2"));
    CHECK(blk_mem_save(&c.overlay.disk, before) && blk_mem_save(after, path));
    for (unsigned i = 0; i < c.links; i++) {
        char name[16];
        snprintf(name, sizeof(name), "link%u", i);
        CHECK(blk_mem_save(&c.link[i].disk, test_path(name)));
    }
    qemu_options(before_is, sizeof(before_is), before, c.old, c.old_cnt);
    qemu_options(after_is, sizeof(after_is), path, c.new, c.new_cnt);
    CHECK(test_system("qemu-img compare --image-opts %s %s", before_is, after_is) == 0);
    int rc = test_system("qemu-img check --image-opts %s", after_is);
    CHECK(rc == 0 || (rc == 3 && c.shape.above_eof));
    for (unsigned i = 0; i < c.links; i++) {
        char name[16];
        snprintf(name, sizeof(name), "link%u", i);
        unlink(test_path(name));
    }
    unlink(before);
    unlink(path);
}

/* ---- the matrix ---- */

static void note(unsigned i)
{
    char text[200] = "";
    for (unsigned k = 0; k < c.old_cnt; k++)
        sprintf(text + strlen(text), " %s:%llu", c.link[c.old[k]].format,
                (unsigned long long)c.link[c.old[k]].img.size);
    strcat(text, " ->");
    for (unsigned k = 0; k < c.new_cnt; k++)
        sprintf(text + strlen(text), " %u:%s:%llu", c.new[k], c.link[c.new[k]].format,
                (unsigned long long)c.link[c.new[k]].img.size);
    test_note("case %u, v%u, %u bits%s, order %u, %llu bytes, %u snapshots:%s", i, c.shape.version,
              c.shape.cluster_bits, c.shape.ext_l2 ? " extended" : "", c.shape.refcount_order,
              (unsigned long long)c.shape.size, c.shape.snapshots, text);
}

static void matrix(void)
{
    u64 seed = test_seed(0x5be0cd19137e2179), copied = 0, same = 0, asked = 0, epochs = 0;
    for (unsigned i = 0; i < CASES && test_failures() < 3; i++) {
        struct run_result counted, r, again;
        struct verdict old, v;
        struct blk_mem now;
        struct err e = {0};
        u64 at;
        run_make(&c, MOST, &seed);
        c.overlay.disk.blk.sector = i % 4 == 3 ? 4096 : 512;
        note(i);
        run_look(&c);
        qcow2_judge_mem(&c.overlay.disk, 0, 0, 0, &old);
        CHECK(old.opens && !old.corruptions);
        blk_mem_over(&now, &c.overlay.disk);
        CHECK(!run_rebase(&c, &now.blk, true, &counted, &e));
        CHECK_EQ_U64(now.writes, 0);
        CHECK(!run_rebase(&c, &now.blk, false, &r, &e));
        CHECK_ERR(&e, OK);
        CHECK(run_switched(&now.blk));
        CHECK(r.clusters == counted.clusters && r.bytes == counted.bytes);
        blk_mem_truncate(&now, r.length);
        if (!CHECK(run_same(&c, &now.blk, true, &at) && run_same(&c, &now.blk, false, &at)))
            printf("    at %llu\n", (unsigned long long)at);
        qcow2_judge_mem(&now, 0, 0, 0, &v);
        /* What was counted past the end of the file is seen to leak once the file is longer. */
        u64 leaks = old.leaks + (u64)__builtin_popcountll(c.shape.above_eof);
        if (!CHECK(v.opens && !v.corruptions && v.leaks <= leaks))
            printf("    %s\n", v.opens ? v.first : v.why);
        CHECK(v.snapshot_hash == old.snapshot_hash && v.bitmap_hash == old.bitmap_hash);
        CHECK(!run_rebase(&c, &now.blk, false, &again, &e) && !again.clusters && !again.bytes);
        if (i % QEMU_EVERY == 0 && ++asked)
            ask_qemu(&now);
        copied += r.clusters, same += !r.clusters, epochs += r.epochs;
        blk_mem_free(&now);
        run_free(&c);
    }
    test_note("%s", "");
    printf("  %d rebases: %llu clusters copied, %llu times nothing, %llu epochs; qemu-img asked "
           "%llu times\n",
           CASES, (unsigned long long)copied, (unsigned long long)same, (unsigned long long)epochs,
           (unsigned long long)asked);
    CHECK(copied > 10000 && same > 20 && asked >= CASES / QEMU_EVERY);
}

/* ---- crashes and faults ---- */

/* clang-format off */
static const struct shape {
    const char *name;
    struct make overlay;
    bool detach;
    bool several; /* epochs for one table: the old chain is full of data */
} shapes[] = {
    { "512, nothing of its own", { .version = 3, .cluster_bits = 9, .refcount_order = 4,
        .size = KI(96) }, false },
    { "512, detached", { .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = KI(80) + 512,
        .first = 9, .spread = 20, .kinds = 15, .last = true }, true },
    { "512, version 2", { .version = 2, .cluster_bits = 9, .refcount_order = 4, .size = KI(64),
        .first = 9, .spread = 20 }, false },
    { "4 KiB, tables shared with a snapshot", { .version = 3, .cluster_bits = 12,
        .refcount_order = 2, .size = KI(256), .spread = 20, .kinds = 7, .snapshots = 1 }, false },
    { "512, many tables shared", { .version = 3, .cluster_bits = 9, .refcount_order = 3,
        .size = KI(700), .spread = 99, .snapshots = 2 }, true },
    { "subclusters", { .version = 3, .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true,
        .size = KI(200) + 512, .first = 3, .spread = 9, .kinds = MAKE_SUB, .last = true }, false },
    { "subclusters of clusters that are there", { .version = 3, .cluster_bits = 14,
        .refcount_order = 4, .ext_l2 = true, .size = KI(64), .first = 4, .kinds = MAKE_SUB }, true },
    { "shared subclusters", { .version = 3, .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true,
        .size = KI(320), .first = 18, .kinds = MAKE_SUB, .snapshots = 1 }, true },
    { "1-bit counts", { .version = 3, .cluster_bits = 9, .refcount_order = 0, .size = KI(64),
        .spread = 9, .kinds = 15 }, false },
    { "data is written before it is linked", { .version = 3, .cluster_bits = 12,
        .refcount_order = 4, .size = KI(2600), .spread = 9, .end_cluster = 2048 - 300 }, true, true },
    { "refcount blocks are added", { .version = 3, .cluster_bits = 9, .refcount_order = 6,
        .size = KI(100), .spread = 9, .end_cluster = 64 * 3 - 2 }, false },
    { "the refcount table moves", { .version = 3, .cluster_bits = 9, .refcount_order = 6,
        .size = KI(64), .spread = 9, .rt_clusters = 1, .end_cluster = 64 * 64 - 9,
        .autoclear = 1ull << 40 }, false },
};
/* clang-format on */
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]), RANDOM_SUBSETS = 6, AGAIN_EVERY = 31 };

static void begin(unsigned i, u64 *seed, struct verdict *old)
{
    const struct shape *s = &shapes[i];
    struct made made;
    test_note("%s", s->name);
    c.shape = s->overlay;
    c.shape.backing = "b0";
    c.shape.backing_format = "raw";
    qcow2_make(&c.overlay.disk, &c.shape, &made);
    c.overlay.blk = &c.overlay.disk.blk;
    c.links = 2;
    c.old_cnt = c.new_cnt = 0;
    run_make_link(&c.link[0], "raw", s->overlay.size - 512 * (i % 3), seed);
    run_make_link(&c.link[1], "raw", s->overlay.size + 512 * (i % 2), seed);
    for (u64 off = 0; s->several && off < s->overlay.size; off += 4096) {
        u8 buf[4096];
        make_pattern(3, off, buf, sizeof(buf));
        blk_mem_put(&c.link[0].disk, off, buf, min_u64(4096, s->overlay.size - off));
    }
    c.old[c.old_cnt++] = 0;
    if (!s->detach)
        c.new[c.new_cnt++] = 1;
    run_look(&c);
    qcow2_judge_mem(&c.overlay.disk, 0, 0, 0, old);
    CHECK(old->opens && !old->corruptions && !old->leaks);
}

struct crash {
    struct verdict old;
    u64 states, switched, again, bytes, least;
};

/* What is wrong with the overlay; NULL: nothing. */
static const char *wrong(struct crash *k, struct blk_mem *m, bool *switched)
{
    struct verdict v;
    u64 at;
    qcow2_judge_mem(m, 0, 0, 0, &v);
    if (!v.opens || v.corruptions)
        return v.opens ? "it is corrupt" : v.why;
    if (v.snapshot_hash != k->old.snapshot_hash)
        return "a snapshot's data is lost";
    *switched = run_switched(&m->blk);
    return run_same(&c, &m->blk, *switched, &at) ? NULL : "the guest sees something else";
}

/* A second run ends what the first has begun. */
static void run_again(struct crash *k, const struct blk_mem *state)
{
    struct blk_mem next;
    struct run_result r;
    struct err e = {0};
    bool switched = false;
    blk_mem_over(&next, state);
    CHECK(!run_rebase(&c, &next.blk, false, &r, &e));
    CHECK_ERR(&e, OK);
    const char *what = wrong(k, &next, &switched);
    if (!CHECK(!what && switched && r.bytes <= k->bytes))
        printf("    again: %s\n", what ? what : "not switched, or more than all has been copied");
    k->least = min_u64(k->least, r.bytes);
    k->again++;
    blk_mem_free(&next);
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *k = ctx;
    bool switched = false;
    const char *bad = wrong(k, state, &switched);
    if (!CHECK(!bad))
        printf("    %s: %s\n", what, bad);
    k->switched += switched;
    if (!bad && !switched && k->states++ % AGAIN_EVERY == 5)
        run_again(k, state);
    return test_failures() < 5;
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0x1f83d9abfb41bd6b), total = 0, again = 0, untouched = 0;
    for (unsigned i = 0; i < SHAPES && test_failures() < 5; i++) {
        struct crash k = {.least = UINT64_MAX};
        struct blk_record rec;
        struct run_result r;
        struct err e = {0};
        begin(i, &seed, &k.old);
        blk_record_init(&rec, &c.overlay.disk);
        CHECK(!run_rebase(&c, &rec.blk, false, &r, &e));
        CHECK_ERR(&e, OK);
        CHECK(r.clusters >= 4 && r.epochs >= (shapes[i].several ? 3 : 2));
        k.bytes = r.bytes;
        total += blk_record_states(&rec, seed, RANDOM_SUBSETS, judge, &k);
        CHECK(k.states > 20 && k.switched > 0 && k.again > 0);
        again += k.again, untouched += k.least == 0;
        blk_record_free(&rec);
        run_free(&c);
    }
    test_note("%s", "");
    printf("  %llu states of %d rebases, %llu of them rebased again\n", (unsigned long long)total,
           SHAPES, (unsigned long long)again);
    CHECK(untouched > 0); /* some of these found all copied already */
}

/* Request n fails, of the overlay's or of the old chain's; until none does. */
static u64 sweep(struct crash *k, bool of_chain, bool stay)
{
    u64 n = 1;
    for (bool failed = true; failed && n < 5000 && test_failures() < 5; n++) {
        struct blk_mem now;
        struct blk_fault f;
        struct run_result r;
        struct err e = {0};
        bool switched = false;
        blk_mem_over(&now, &c.overlay.disk);
        blk_fault_init(&f, of_chain ? &c.link[0].disk.blk : &now.blk, n, stay);
        if (of_chain)
            c.link[0].blk = &f.blk;
        int rc = run_rebase(&c, of_chain ? &now.blk : &f.blk, false, &r, &e);
        c.link[0].blk = &c.link[0].disk.blk;
        const char *bad = wrong(k, &now, &switched);
        failed = f.seen >= n;
        /* What map() reads ahead may fail once, and not when it is wanted. */
        if (!CHECK(!bad && (failed ? rc || !stay : !rc)))
            printf("    request %llu: %s\n", (unsigned long long)n, bad ? bad : "no error");
        if (rc)
            CHECK(e.code == ERR_READ_FAILED || e.code == ERR_WRITE_FAILED ||
                  e.code == ERR_NO_SPACE);
        if (rc && !switched && n % 15 == 0)
            run_again(k, &now);
        blk_mem_free(&now);
    }
    return n;
}

static void fault_sweep(void)
{
    u64 seed = test_seed(0x243f6a8885a308d3), runs = 0;
    for (unsigned i = 0; i < SHAPES && test_failures() < 5; i++) {
        struct crash k = {.bytes = UINT64_MAX};
        begin(i, &seed, &k.old);
        for (int how = 0; how < (c.shape.size < KI(1024) ? 4 : 2); how++)
            runs += sweep(&k, how & 1, how & 2);
        run_free(&c);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way\n", (unsigned long long)runs);
    CHECK(runs > 500);
}

/* ---- refused ---- */

static void put64(u64 off, u64 v)
{
    u8 b[8];
    put_be64(b, v);
    blk_mem_put(&c.overlay.disk, off, b, 8);
}

static u64 get64(u64 off)
{
    u8 b[8];
    blk_mem_get(&c.overlay.disk, off, b, 8);
    return be64(b);
}

/* Breaks an overlay of 4 KiB clusters, with refcounts of 16 bits. */
static void break_it(int how, const struct made *made)
{
    u64 block = get64(made->rt_offset), data = made->last_data;
    if (how == 0) /* marked corrupt */
        put64(72, 2);
    else if (how == 1) /* encrypted */
        put64(32, 1ull << 32 | made->l1_size);
    else if (how == 2) /* two entries name one cluster */
        put64(made->last_l2, data | QCOW2_COPIED), put64(made->last_l2 + 8, data | QCOW2_COPIED);
    else if (how == 3) /* data on the L2 table */
        put64(made->last_l2, made->last_l2 | QCOW2_COPIED);
    else if (how == 4) /* data on a refcount block */
        put64(made->last_l2, block | QCOW2_COPIED);
    else if (how == 5) /* an L2 table past the end */
        put64(made->l1_offset, 1ull << 40 | QCOW2_COPIED);
    else if (how == 6) /* data that is not counted */
        blk_mem_put(&c.overlay.disk, block + data / 4096 * 2, "\0", 2);
}

static void refused_untouched(void)
{
    static const enum err_code want[] = {
        ERR_OVERLAY_CORRUPT, ERR_LUKS_UNSUPPORTED, ERR_OVERLAY_CORRUPT, ERR_OVERLAY_CORRUPT,
        ERR_OVERLAY_CORRUPT, ERR_OVERLAY_CORRUPT,  ERR_INCONSISTENT};
    u64 seed = test_seed(7);
    for (int how = 0; how < 7; how++) {
        struct made made;
        struct run_result r;
        struct err e = {0};
        c.shape = (struct make){.version = 3,
                                .cluster_bits = 12,
                                .refcount_order = 4,
                                .size = 256 << 10,
                                .first = 20,
                                .backing = "b0",
                                .backing_format = "raw"};
        test_note("broken in way %d", how);
        qcow2_make(&c.overlay.disk, &c.shape, &made);
        break_it(how, &made);
        c.overlay.blk = &c.overlay.disk.blk;
        c.links = c.old_cnt = 1;
        c.new_cnt = 0;
        c.old[0] = 0;
        run_make_link(&c.link[0], "raw", c.shape.size, &seed);
        CHECK(run_rebase(&c, c.overlay.blk, false, &r, &e));
        CHECK_ERR(&e, want[how]);
        CHECK_EQ_U64(c.overlay.disk.writes, 0);
        run_free(&c);
    }
}

/* What was not closed cleanly is repaired first. */
static void dirty_is_repaired(void)
{
    u64 seed = test_seed(11);
    struct verdict old, v;
    struct run_result r;
    struct err e = {0};
    u64 at;
    begin(3, &seed, &old);
    put64(72, 1);
    blk_mem_put(&c.overlay.disk, get64(get64(48)), "\0\0\0\0", 4);
    CHECK(!run_rebase(&c, c.overlay.blk, false, &r, &e));
    CHECK_ERR(&e, OK);
    CHECK(r.clusters > 5 && run_same(&c, c.overlay.blk, true, &at));
    qcow2_judge_mem(&c.overlay.disk, 0, 0, 0, &v);
    CHECK(v.opens && !v.dirty && !v.corruptions && v.snapshot_hash == old.snapshot_hash);
    run_free(&c);
}

int main(void)
{
    RUN(refused_untouched);
    RUN(dirty_is_repaired);
    RUN(every_crash_state);
    RUN(fault_sweep);
    RUN(matrix);
    return test_end();
}
