/* SPDX-License-Identifier: MIT
 *
 * The qcow2 shrink planner over memory disks: hand-made shapes and a seeded matrix of shrink and
 * grow pairs. After each: guest data below the new end is there, snapshots hold what they held, the
 * judge finds no leak and no corruption, and a grow shows zeros. Then the crash recorder and the
 * fault sweep: old size with all its data, or new size with all that remains; leaks at most.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "grow.h"
#include "test.h"

enum { KINDS = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO | MAKE_PACKED, RANDOM_SUBSETS = 4 };

struct shrink_case {
    const char *name;
    struct make p;
    u64 new_size;
};

/* clang-format off */
static const struct shrink_case cases[] = {
    { "to a cluster", { .refcount_order = 4, .size = MI(9), .first = 60, .kinds = KINDS }, MI(1) },
    { "into a cluster", { .refcount_order = 4, .size = MI(9), .first = 60 }, MI(1) + 512 },
    { "to 512 bytes", { .refcount_order = 4, .size = MI(9), .first = 60, .kinds = KINDS }, 512 },
    { "many L1 entries", { .cluster_bits = 9, .refcount_order = 4, .size = MI(1), .first = 150,
        .kinds = KINDS, .spread = 50 }, KI(40) + 512 },
    { "1-bit counts", { .cluster_bits = 9, .refcount_order = 0, .size = MI(1), .first = 150,
        .spread = 50 }, KI(40) + 512 },
    { "4-bit counts, packed", { .cluster_bits = 10, .refcount_order = 2, .size = MI(1),
        .first = 150, .kinds = MAKE_DATA | MAKE_PACKED }, KI(41) + 512 },
    { "64-bit counts", { .cluster_bits = 9, .refcount_order = 6, .size = KI(300), .first = 120,
        .spread = 20 }, KI(99) },
    { "snapshots", { .refcount_order = 4, .cluster_bits = 12, .size = KI(600),
        .first = 60, .snapshots = 2 },
      KI(64) + 512 },
    { "snapshots, on a cluster", { .refcount_order = 4, .cluster_bits = 12, .size = KI(600),
        .first = 60,
        .kinds = KINDS, .snapshots = 1 }, KI(64) },
    { "snapshots, many L1 entries", { .cluster_bits = 9, .refcount_order = 3, .size = KI(700),
        .first = 150, .snapshots = 2 }, KI(40) + 512 },
    { "snapshots, refcount table grows", { .cluster_bits = 12, .refcount_order = 6,
        .size = KI(600), .first = 60, .snapshots = 1, .rt_clusters = 1,
        .end_cluster = 512 * 512 - 3 }, KI(64) + 512 },
    { "extended L2", { .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true, .size = MI(9),
        .first = 99, .kinds = KINDS | MAKE_SUB }, MI(1) + 512 * 3 },
    { "extended L2, snapshots", { .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true,
        .size = MI(9), .first = 20, .kinds = MAKE_DATA | MAKE_SUB, .snapshots = 1 },
      KI(200) + 512 * 3 },
    { "packed at the new end", { .refcount_order = 4, .cluster_bits = 12, .size = KI(600),
        .first = 60,
        .kinds = MAKE_PACKED }, KI(64) + 512 },
    { "version 2", { .version = 2, .refcount_order = 4, .cluster_bits = 12, .size = KI(600),
        .first = 60,
        .kinds = MAKE_DATA | MAKE_PACKED }, KI(64) + 512 },
    { "autoclear bits, header_length 104", { .refcount_order = 4, .size = MI(9), .first = 60,
        .header_length = 104, .autoclear = 1ull << 50, .unknown_ext = true }, MI(1) },
    { "empty, large", { .refcount_order = 4, .size = TI(1), .first = 3, .spread = 9 }, GI(1) },
    { "L1 of clusters", { .cluster_bits = 9, .refcount_order = 4, .size = MI(9), .first = 9,
        .spread = 40, .l1_middle = true }, KI(64) },
    { "refcount blocks go", { .cluster_bits = 9, .refcount_order = 6, .size = MI(1),
        .first = 500 }, KI(9) },
    { "refcount table longer than a window", { .cluster_bits = 9, .refcount_order = 6,
        .size = KI(300), .first = 120, .rt_clusters = 64 }, KI(9) },
    { "file ends inside its last data cluster", { .refcount_order = 4, .size = MI(3), .first = 30,
        .l1_middle = true, .end = MAKE_END_SECTOR }, MI(1) + 512 },
    { "file ends in the L1 table", { .cluster_bits = 12, .refcount_order = 4, .size = GI(2),
        .first = 30, .end = MAKE_END_EXACT }, MI(1) },
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0] };

/* What must hold of `m` after a shrink from a disk of which `old` is the verdict up to new_size. */
static bool check_shrunk(const struct blk_mem *m, const struct verdict *old, u64 new_size)
{
    struct verdict v;
    u64 failures = test_failures();
    qcow2_judge_mem(m, new_size, 0, 0, &v);
    if (!CHECK(v.opens))
        printf("    %s\n", v.why);
    CHECK_EQ_U64(v.size, new_size);
    CHECK_EQ_U64(v.hash, old->hash);
    CHECK_EQ_U64(v.snapshot_hash, old->snapshot_hash);
    if (!CHECK(!v.corruptions && !v.leaks))
        printf("    %llu corruptions, %llu leaks; first: %s\n", (unsigned long long)v.corruptions,
               (unsigned long long)v.leaks, v.first);
    return test_failures() == failures;
}

/* Grown back, the disk must show zeros where it had been cut. */
static void grow_back(struct blk_mem *m, const struct verdict *old, u64 from, u64 to)
{
    struct verdict v;
    struct err e = {0};
    grow_mem(m, to, &e);
    if (!CHECK_ERR(&e, OK))
        return;
    qcow2_judge_mem(m, from, from, to, &v);
    CHECK(v.opens && v.zero && !v.corruptions && !v.leaks);
    CHECK_EQ_U64(v.hash, old->hash);
    CHECK_EQ_U64(v.snapshot_hash, old->snapshot_hash);
}

static void pair(const struct make *p, u64 new_size)
{
    struct blk_mem m;
    struct made made;
    struct verdict old;
    struct err e = {0};
    qcow2_make(&m, p, &made);
    qcow2_judge_mem(&m, new_size, 0, 0, &old);
    CHECK(old.opens && !old.leaks && !old.corruptions);
    u64 length = m.length;
    grow_mem(&m, new_size, &e);
    if (CHECK_ERR(&e, OK) && check_shrunk(&m, &old, new_size)) {
        u64 cluster = 1ull << (p->cluster_bits ? p->cluster_bits : 16);
        CHECK(m.length <= round_up(length, cluster) + 8 * cluster); /* copies at the new end */
        grow_back(&m, &old, new_size, p->size + 512 * 8192);
    }
    blk_mem_free(&m);
}

static void each_case(void)
{
    for (unsigned i = 0; i < CASES; i++) {
        test_note("case %u, %s", i, cases[i].name);
        pair(&cases[i].p, cases[i].new_size);
    }
    test_note("%s", "");
}

/* INSTAR_SHRINKS sets another number. */
static void matrix(void)
{
    static const u32 kinds[] = {0, MAKE_DATA, MAKE_DATA | MAKE_ZERO | MAKE_PREZERO,
                                MAKE_DATA | MAKE_PACKED, 31};
    u64 seed = test_seed(0xbb67ae8584caa73b);
    const char *n = getenv("INSTAR_SHRINKS");
    for (int i = 0; i < (n ? atoi(n) : 2000); i++) {
        struct make p = {.version = rnd_below(&seed, 5) ? 3 : 2,
                         .cluster_bits = (u32)(9 + rnd_below(&seed, 8)), .seed = rnd(&seed)};
        p.refcount_order = p.version == 2 ? 4 : (u32)rnd_below(&seed, 7);
        p.ext_l2 = p.version == 3 && p.cluster_bits >= 14 && rnd_below(&seed, 2);
        u64 cs = 1ull << p.cluster_bits, reach = cs * cs / (p.ext_l2 ? 16 : 8);
        u64 span = rnd_below(&seed, 2) ? min_u64(reach * 9, MI(600)) : 99 * cs;
        p.size = 1024 + 512 * rnd_below(&seed, span / 512);
        p.kinds = kinds[rnd_below(&seed, 5)];
        p.first = (u32)rnd_below(&seed, 60);
        p.spread = (u32)rnd_below(&seed, 30);
        p.last = rnd_below(&seed, 2);
        p.l1_middle = rnd_below(&seed, 2);
        p.l1_extra = rnd_below(&seed, 4) ? 0 : (u32)rnd_below(&seed, 5);
        p.snapshots = p.version == 3 && p.refcount_order >= 2 ? (u32)rnd_below(&seed, 3) : 0;
        p.pad_clusters = rnd_below(&seed, 5) ? 0 : (u32)rnd_below(&seed, 9);
        p.autoclear = rnd_below(&seed, 4) ? 0 : 0xf0f0f00;
        p.end = (int)rnd_below(&seed, 3);
        u64 new_size = 512 + 512 * rnd_below(&seed, p.size / 512 - 1);
        if (rnd_below(&seed, 3) == 0)
            new_size = max_u64(512, min_u64(p.size - 512, round_down(new_size, cs)));
        test_note("pair %d: v%u bits %u order %u ext %d size %llu -> %llu kinds %u first %u spread "
                  "%u snap %u seed 0x%llx",
                  i, p.version, p.cluster_bits, p.refcount_order, p.ext_l2,
                  (unsigned long long)p.size, (unsigned long long)new_size, p.kinds, p.first,
                  p.spread, p.snapshots, (unsigned long long)p.seed);
        pair(&p, new_size);
    }
    test_note("%s", "");
}

struct crash {
    u64 old_size, new_size, old_hash, new_hash, snapshot_hash, states, opened_old, opened_new;
};

static const char *wrong(const struct crash *c, const struct blk_mem *state, struct verdict *v)
{
    qcow2_judge_mem(state, c->new_size, 0, 0, v);
    if (!v->opens)
        return v->why;
    if (v->hash != c->new_hash)
        return "guest data is lost";
    if (v->snapshot_hash != c->snapshot_hash)
        return "a snapshot's data is lost";
    if (v->corruptions)
        return v->first;
    if (v->size == c->new_size)
        return NULL;
    if (v->size != c->old_size)
        return "it has neither the old nor the new size";
    qcow2_judge_mem(state, c->old_size, 0, 0, v);
    return v->hash == c->old_hash ? NULL : "it has the old size, but not its data";
}

static void begin(struct crash *c, struct blk_mem *m, const struct shrink_case *g)
{
    struct made made;
    struct verdict v;
    *c = (struct crash){.old_size = g->p.size, .new_size = g->new_size};
    qcow2_make(m, &g->p, &made);
    qcow2_judge_mem(m, g->new_size, 0, 0, &v);
    c->new_hash = v.hash;
    c->snapshot_hash = v.snapshot_hash;
    qcow2_judge_mem(m, g->p.size, 0, 0, &v);
    c->old_hash = v.hash;
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct verdict v;
    const char *bad = wrong(c, state, &v);
    c->states++;
    c->opened_old += v.opens && v.size == c->old_size;
    c->opened_new += v.opens && v.size == c->new_size;
    if (!CHECK(!bad))
        printf("    %s: %s\n", what, bad);
    return test_failures() < 5;
}

static void crash_states(void)
{
    u64 seed = test_seed(0x3c6ef372fe94f82b), total = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct blk_record r;
        struct crash c;
        struct err e = {0};
        u64 length;
        test_note("crash, case %u, %s", i, cases[i].name);
        begin(&c, &m, &cases[i]);
        blk_record_init(&r, &m);
        grow_run(&r.blk, cases[i].new_size, &length, &e);
        CHECK_ERR(&e, OK);
        blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &c);
        CHECK(c.opened_old > 0 && c.opened_new > 0);
        total += c.states;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states of %d shrinks\n", (unsigned long long)total, (int)CASES);
}

static void fault_sweep(void)
{
    u64 runs = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct crash c;
        int rc = 1;
        begin(&c, &m, &cases[i]);
        for (u64 n = 1; rc && n < 20000; n += 1 + n / 64) {
            struct blk_mem now;
            struct blk_fault f;
            struct verdict v;
            struct err e = {0};
            u64 length;
            test_note("case %u, %s; I/O %llu fails", i, cases[i].name, (unsigned long long)n);
            blk_mem_over(&now, &m);
            blk_fault_init(&f, &now.blk, n, true);
            rc = grow_run(&f.blk, cases[i].new_size, &length, &e);
            const char *what = wrong(&c, &now, &v);
            if (!CHECK(!what))
                printf("    %s\n", what);
            runs++;
            blk_mem_free(&now);
        }
        CHECK(!rc);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way\n", (unsigned long long)runs);
}

/* No L2 table is made for a hole: an empty disk of 2 PiB shrinks in few requests and no growth. */
static void holes_cost_nothing(void)
{
    const struct make p = {.refcount_order = 4, .size = TI(2048), .first = 1};
    struct blk_mem m;
    struct made made;
    struct err e = {0};
    qcow2_make(&m, &p, &made);
    u64 length = m.length;
    grow_mem(&m, GI(1), &e);
    CHECK_ERR(&e, OK);
    CHECK(m.length <= length);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(each_case);
    RUN(holes_cost_nothing);
    RUN(matrix);
    RUN(crash_states);
    RUN(fault_sweep);
    return test_end();
}
