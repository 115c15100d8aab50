/* SPDX-License-Identifier: MIT
 *
 * Persistent bitmaps through a resize, over memory disks: hand-made shapes and a seeded matrix of
 * grow and shrink pairs. Bits of what stays are what they were, bits of what is gained are clear,
 * the judge finds no leak and no corruption. Then the crash recorder and the fault sweep: data as
 * ever, and bitmaps that are either right or declared stale. Then directories made to do harm:
 * refused in bounded time, with the file byte-identical.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "grow.h"
#include "test.h"

enum { KINDS = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO | MAKE_PACKED, RANDOM_SUBSETS = 4 };

struct resize_case {
    const char *name;
    struct make p;
    u64 new_size;
    enum preallocation how;
    u64 backing;
};

/* Clusters of 512 bytes hold 4096 bits; a table's cluster names 64 of those. */
/* clang-format off */
static const struct resize_case cases[] = {
    { "grow, the header only", { .refcount_order = 4, .size = MI(9), .first = 9, .kinds = KINDS,
        .bitmaps = 3 }, MI(20) },
    { "grow, tables longer in place", { .cluster_bits = 9, .refcount_order = 4, .size = MI(5) + 512,
        .first = 9, .bitmaps = 3, .granularity = 9 }, MI(33) },
    { "grow, tables move", { .cluster_bits = 9, .refcount_order = 4, .size = MI(127) + 512,
        .bitmaps = 2, .granularity = 9, .seed = 1 }, MI(300) },
    { "grow, tables move, more than an epoch has", { .cluster_bits = 9, .refcount_order = 1,
        .size = MI(120), .bitmaps = 7, .granularity = 9 }, GI(9) },
    { "grow, all ones at the old end", { .cluster_bits = 9, .refcount_order = 4, .size = MI(1) + 512,
        .bitmaps = 6, .granularity = 9, .seed = 1 }, MI(3) },
    { "grow, all ones, 2 MiB clusters", { .cluster_bits = 21, .refcount_order = 4, .size = GI(1),
        .bitmaps = 3, .granularity = 10, .seed = 1, .first = 2 }, GI(9) },
    { "grow, 1-bit counts, refcount table moves", { .cluster_bits = 9, .refcount_order = 0,
        .size = MI(127), .bitmaps = 2, .granularity = 9, .rt_clusters = 1, .first = 3,
        .l1_middle = true, .last = true, .end_cluster = 64 * 4096 - 3 }, MI(300) },
    { "grow, 64-bit counts, refcount table moves", { .cluster_bits = 9, .refcount_order = 6,
        .size = MI(127), .bitmaps = 2, .granularity = 9, .rt_clusters = 20 }, MI(400) },
    { "grow, shared last cluster", { .refcount_order = 4, .size = MI(1) + 512, .first = 3,
        .last = true, .stale = true, .snapshots = 1, .bitmaps = 2 }, MI(100) },
    { "grow, shared last cluster, refcount table", { .cluster_bits = 12, .refcount_order = 6,
        .size = MI(3) + 512, .first = 9, .snapshots = 1, .rt_clusters = 1, .last = true,
        .stale = true, .end_cluster = 512 * 512 - 3, .bitmaps = 2, .granularity = 9 }, MI(5) },
    { "grow, extended L2, unknown autoclear bits", { .cluster_bits = 14, .refcount_order = 4,
        .ext_l2 = true, .size = MI(3), .first = 30, .kinds = 31, .autoclear = 1ull << 40,
        .unknown_ext = true, .bitmaps = 2 }, MI(100) },
    { "grow, preallocated", { .cluster_bits = 9, .refcount_order = 4, .size = MI(2) - 512,
        .first = 5, .last = true, .bitmaps = 3, .granularity = 9 }, MI(2) + KI(64),
      PREALLOC_METADATA },
    { "grow, longer backing file", { .cluster_bits = 12, .refcount_order = 4, .size = KI(253),
        .first = 3, .backing = "b", .backing_format = "raw", .bitmaps = 2, .granularity = 9 },
      MI(1), PREALLOC_OFF, KI(384) },
    { "grow, within a bit", { .refcount_order = 4, .size = MI(1), .first = 3, .bitmaps = 2,
        .granularity = 30 }, MI(2) },
    { "shrink to a cluster", { .refcount_order = 4, .size = MI(20), .first = 60, .kinds = KINDS,
        .bitmaps = 3 }, MI(1) },
    { "shrink, entries go", { .cluster_bits = 9, .refcount_order = 4, .size = MI(33), .first = 60,
        .bitmaps = 5, .granularity = 9 }, MI(5) + 512 },
    { "shrink, table clusters go", { .cluster_bits = 9, .refcount_order = 2, .size = MI(300),
        .first = 20, .spread = 9, .bitmaps = 3, .granularity = 9 }, MI(127) + 512 },
    { "shrink to 512 bytes, 64-bit counts", { .cluster_bits = 9, .refcount_order = 6,
        .size = MI(30), .first = 20, .bitmaps = 4, .granularity = 9 }, 512 },
    { "shrink, 1-bit counts", { .cluster_bits = 9, .refcount_order = 0, .size = MI(30),
        .first = 20, .bitmaps = 4, .granularity = 9 }, MI(1) + 512 },
    { "shrink, snapshots", { .cluster_bits = 12, .refcount_order = 4, .size = KI(600), .first = 60,
        .snapshots = 2, .bitmaps = 2, .granularity = 9 }, KI(64) + 512 },
    { "shrink, packed at the new end", { .cluster_bits = 12, .refcount_order = 4, .size = KI(600),
        .first = 60, .kinds = MAKE_PACKED, .bitmaps = 2, .granularity = 9 }, KI(64) + 512 },
    { "shrink within a bit", { .refcount_order = 4, .size = MI(2), .first = 3, .bitmaps = 2,
        .granularity = 29 }, MI(1) },
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0] };

/* ---- running a resize ---- */

/* Grants everything; holds the plan to what it asked for before it began. */
struct granting {
    struct plan_host h;
    u64 promised;
};

static int granted(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    struct granting *g = (struct granting *)h;
    (void)e;
    if (epoch == 0)
        g->promised = max_u64(n->length[0], n->eventual);
    CHECK(n->length[0] <= g->promised);
    return 0;
}

static int resize(struct blk *b, const struct resize_case *c, u64 *length, struct err *e)
{
    static u8 mem[2][IMAGE_MEM] __attribute__((aligned(4096)));
    static u8 copy[BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct blk_mem below;
    struct image img, under;
    struct granting g = {{.need = granted, .mem = copy, .mem_len = sizeof copy}};
    struct resize_args a = {c->new_size, c->how, work, sizeof work};
    blk_mem_init(&below, c->backing, 512);
    int rc = image_open(&img, b, "qcow2", mem[0], e);
    img.scratch = scratch;
    if (!rc && c->backing) {
        for (u64 off = 0; off < c->backing; off += 512)
            blk_mem_put(&below, off, "backing file", 12);
        rc = image_open(&under, &below.blk, "raw", mem[1], e);
        img.backing = &under;
    }
    g.promised = b->size;
    if (!rc)
        rc = plan_resize(&img, &a, &g.h, e);
    *length = g.h.length[0];
    blk_mem_free(&below);
    return rc;
}

static int resize_mem(struct blk_mem *m, const struct resize_case *c, struct err *e)
{
    u64 length;
    int rc = resize(&m->blk, c, &length, e);
    if (!rc)
        blk_mem_truncate(m, length);
    return rc;
}

/* What must hold after a resize of a sound image of which `old` is the verdict up to where both
 * disks reach. */
static bool check_resized(const struct blk_mem *m, const struct verdict *old, u64 old_size,
                          const struct resize_case *c)
{
    struct verdict v;
    u64 failures = test_failures(), both = min_u64(old_size, c->new_size);
    qcow2_judge_mem(m, both, old_size, c->new_size, &v);
    if (!CHECK(v.opens))
        printf("    %s\n", v.why);
    CHECK_EQ_U64(v.size, c->new_size);
    CHECK(c->backing ||
          v.hash == old->hash); /* the head of the fill is read from the backing file */
    CHECK_EQ_U64(v.snapshot_hash, old->snapshot_hash);
    CHECK_EQ_U64(v.bitmaps, c->p.bitmaps);
    CHECK_EQ_U64(v.bitmap_hash, old->bitmap_hash);
    CHECK(v.bitmap_zero && v.zero);
    if (!CHECK(!v.corruptions && !v.leaks))
        printf("    %llu corruptions, %llu leaks; first: %s\n", (unsigned long long)v.corruptions,
               (unsigned long long)v.leaks, v.first);
    return test_failures() == failures;
}

/* Resizes to c->new_size and back. Returns how many bits the bitmaps had. */
static u64 pair(const struct resize_case *c)
{
    struct blk_mem m;
    struct made made;
    struct verdict old;
    struct err e = {0};
    u64 size = c->p.size, both = min_u64(size, c->new_size), bits;
    struct resize_case back = *c;
    back.new_size = size;
    qcow2_make(&m, &c->p, &made);
    qcow2_judge_mem(&m, both, 0, 0, &old);
    if (!CHECK(old.opens && !old.leaks && !old.corruptions && old.bitmaps == c->p.bitmaps))
        printf("    %s\n", old.first);
    bits = old.bitmap_bits;
    resize_mem(&m, c, &e);
    if (CHECK_ERR(&e, OK) && check_resized(&m, &old, size, c)) {
        resize_mem(&m, &back, &e);
        if (CHECK_ERR(&e, OK))
            check_resized(&m, &old, c->new_size, &back);
    }
    blk_mem_free(&m);
    return bits;
}

static void each_case(void)
{
    for (unsigned i = 0; i < CASES; i++) {
        test_note("case %u, %s", i, cases[i].name);
        pair(&cases[i]);
    }
    test_note("%s", "");
}

/* INSTAR_BITMAPS sets another number. */
static void matrix(void)
{
    u64 seed = test_seed(0x510e527fade682d1), bits = 0;
    const char *n = getenv("INSTAR_BITMAPS");
    for (int i = 0; i < (n ? atoi(n) : 400); i++) {
        struct make p = {.cluster_bits = (u32)(9 + rnd_below(&seed, 8)),
                         .seed = rnd(&seed),
                         .refcount_order = (u32)rnd_below(&seed, 7)};
        if (rnd_below(&seed, 16) == 0)
            p.cluster_bits = (u32)(17 + rnd_below(&seed, 5));
        p.ext_l2 = p.cluster_bits >= 14 && rnd_below(&seed, 2);
        p.size = 512 + 512 * rnd_below(&seed, (rnd_below(&seed, 3) ? MI(40) : MI(700)) / 512);
        p.kinds = rnd_below(&seed, 2) ? MAKE_DATA : 15;
        p.first = (u32)rnd_below(&seed, 30);
        p.spread = (u32)rnd_below(&seed, 10);
        p.last = rnd_below(&seed, 2);
        p.l1_middle = rnd_below(&seed, 2);
        p.snapshots = p.refcount_order >= 2 ? (u32)rnd_below(&seed, 3) : 0;
        p.autoclear = rnd_below(&seed, 4) ? 0 : 0xf0f0f00;
        p.unknown_ext = rnd_below(&seed, 4) == 0;
        p.end = (int)rnd_below(&seed, 3);
        p.bitmaps = (u32)(1 + rnd_below(&seed, 7));
        p.granularity = (u32)(9 + rnd_below(&seed, rnd_below(&seed, 4) ? 4 : 17));
        struct resize_case c = {"", p, 512 + 512 * rnd_below(&seed, p.size / 256)};
        if (rnd_below(&seed, 8) == 0)
            c.new_size = p.size * (2 + rnd_below(&seed, 30));
        if (c.new_size == p.size)
            c.new_size += 512;
        c.how =
            c.new_size > p.size && c.new_size - p.size < MI(2) ? PREALLOC_METADATA : PREALLOC_OFF;
        test_note("pair %d: bits %u order %u ext %d size %llu -> %llu first %u spread %u snap %u "
                  "bitmaps %u of 2^%u.. seed 0x%llx",
                  i, p.cluster_bits, p.refcount_order, p.ext_l2, (unsigned long long)p.size,
                  (unsigned long long)c.new_size, p.first, p.spread, p.snapshots, p.bitmaps,
                  p.granularity, (unsigned long long)p.seed);
        struct resize_case shrink = c;
        if (c.how != PREALLOC_OFF) { /* there is no preallocation on the way back */
            shrink.how = PREALLOC_OFF;
            struct blk_mem m;
            struct made made;
            struct verdict old;
            struct err e = {0};
            qcow2_make(&m, &p, &made);
            qcow2_judge_mem(&m, p.size, 0, 0, &old);
            resize_mem(&m, &c, &e);
            if (CHECK_ERR(&e, OK))
                check_resized(&m, &old, p.size, &c);
            blk_mem_free(&m);
        }
        bits += pair(&shrink);
    }
    test_note("%s", "");
    printf("  %llu bits were set\n", (unsigned long long)bits);
    CHECK(bits > 1000000);
}

static u64 get64(const struct blk_mem *m, u64 off)
{
    u8 b[8];
    blk_mem_get(m, off, b, 8);
    return be64(b);
}

static void put(struct blk_mem *m, u64 off, int len, u64 v)
{
    u8 b[8];
    put_be64(b, v << (64 - 8 * len));
    blk_mem_put(m, off, b, (size_t)len);
}

/* ---- shapes counted by hand ---- */

static const struct resize_case small = {
    "",
    {.cluster_bits = 9,
     .refcount_order = 4,
     .size = MI(1) + 512,
     .bitmaps = 2,
     .granularity = 9,
     .first = 9,
     .seed = 2 /* b0: a cluster of bits in the middle of nothing */},
    MI(2) + 512};

/* 2049 bits, by an entry that stands for ones: they get a cluster, and none more is set. Bits past
 * the end that should not be there do not become a part of the disk. */
static void bits_at_the_old_end(void)
{
    struct blk_mem m;
    struct made made;
    struct verdict v;
    struct err e = {0};
    struct resize_case c = small;
    c.p.bitmaps = 1;
    c.p.seed = 1;
    c.new_size = c.p.size + KI(64);
    qcow2_make(&m, &c.p, &made);
    u64 table = get64(&m, made.dir_offset);
    CHECK_EQ_U64(get64(&m, table), 1);
    CHECK(!resize_mem(&m, &c, &e));
    qcow2_judge_mem(&m, c.p.size, 0, 0, &v);
    CHECK_EQ_U64(v.bitmap_bits, 2049);
    CHECK(!v.corruptions && !v.leaks && get64(&m, table) > 1);
    for (int i = 0; i < 3; i++) { /* the bit next to the end; one farther off; all */
        u64 bits = get64(&m, table), past = v.size / 512;
        u8 ff[512];
        memset(ff, 0xff, sizeof ff);
        if (i == 0)
            put(&m, bits + past / 8, 1, 1u << past % 8);
        else if (i == 1)
            put(&m, bits + 511, 1, 0x80);
        else
            blk_mem_put(&m, bits + past / 8 + 1, ff, 512 - past / 8 - 1);
        c.new_size = v.size + 512 * 9;
        resize_mem(&m, &c, &e);
        CHECK_ERR(&e, OK);
        qcow2_judge_mem(&m, c.new_size, 0, 0, &v);
        CHECK_EQ_U64(v.bitmap_bits, 2049);
        CHECK(!v.corruptions && !v.leaks);
    }
    blk_mem_free(&m);
}

/* Without the autoclear bit the extension is stale: not a byte of it changes, nor does it count. */
static void stale_bitmaps_stay_as_they_are(void)
{
    static const u64 sizes[] = {MI(9), KI(64)};
    for (int i = 0; i < 2; i++) {
        struct blk_mem m, now;
        struct made made;
        struct verdict v, old;
        struct err e = {0};
        struct resize_case c = small;
        u8 a[512], b[512];
        c.new_size = sizes[i];
        qcow2_make(&m, &c.p, &made);
        put(&m, 88, 8, 1ull << 50);
        blk_mem_put(&m, made.dir_offset + 12, "\xff\xff\xff\xff", 4); /* nobody looks */
        qcow2_judge_mem(&m, 0, 0, 0, &old);
        blk_mem_over(&now, &m);
        CHECK(!resize_mem(&now, &c, &e));
        qcow2_judge_mem(&now, 0, 0, 0, &v);
        CHECK(v.opens && v.size == c.new_size && !v.corruptions && v.bitmaps == 0);
        CHECK(old.leaks >= 4 && v.leaks == old.leaks);
        CHECK_EQ_U64(get64(&now, 88), 0);
        for (u64 off = 112; off < 512; off += sizeof a / 8) {
            blk_mem_get(&m, off, a, sizeof a / 8);
            blk_mem_get(&now, off, b, sizeof b / 8);
            CHECK(off + sizeof a / 8 > 512 || !memcmp(a, b, sizeof a / 8));
        }
        u64 places[] = {made.dir_offset, get64(&m, made.dir_offset),
                        get64(&m, made.dir_offset + 32)};
        for (int k = 0; k < 3; k++) {
            blk_mem_get(&m, places[k], a, sizeof a);
            blk_mem_get(&now, places[k], b, sizeof b);
            CHECK(!memcmp(a, b, sizeof a));
        }
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
}

/* The bit without a bitmap: a plain resize in one epoch, and the bit stays. */
static void no_bitmaps(void)
{
    struct blk_mem m;
    struct made made;
    struct err e = {0};
    struct resize_case c = small;
    c.p.bitmaps = 0;
    c.p.autoclear = 1;
    qcow2_make(&m, &c.p, &made);
    u64 flushes = m.flushes;
    CHECK(!resize_mem(&m, &c, &e));
    CHECK_EQ_U64(get64(&m, 88), 1);
    CHECK(m.flushes > flushes);
    blk_mem_free(&m);
}

/* ---- crashes and faults ---- */

struct crash {
    const struct resize_case *c;
    struct verdict old, both;
    u64 states, stale, valid_old, valid_new;
};

static void begin(struct crash *k, struct blk_mem *m, const struct resize_case *c)
{
    struct made made;
    *k = (struct crash){.c = c};
    qcow2_make(m, &c->p, &made);
    qcow2_judge_mem(m, c->p.size, 0, 0, &k->old);
    qcow2_judge_mem(m, min_u64(c->p.size, c->new_size), 0, 0, &k->both);
}

static const char *wrong(struct crash *k, const struct blk_mem *state)
{
    static struct verdict v;
    u64 old = k->c->p.size, new = k->c->new_size;
    qcow2_judge_mem(state, min_u64(old, new), old, new, &v);
    if (!v.opens)
        return v.why;
    if (v.size != old && v.size != new)
        return "it has neither the old nor the new size";
    bool is_new = v.size == new, valid = v.bitmaps == k->c->p.bitmaps;
    if (!is_new && new < old)
        qcow2_judge_mem(state, old, 0, 0, &v);
    const struct verdict *want = is_new || old < new ? &k->both : &k->old;
    if (!k->c->backing && v.hash != want->hash)
        return "guest data is lost";
    if (v.snapshot_hash != k->old.snapshot_hash)
        return "a snapshot's data is lost";
    if (v.corruptions)
        return v.first;
    if (is_new && new > old && !v.zero)
        return "the new area does not read zero";
    if (v.bitmaps && !valid)
        return "some bitmaps are valid and others are not";
    if (is_new && !valid)
        return "the commit came without the bitmaps";
    if (valid && v.bitmap_hash != want->bitmap_hash)
        return "a bitmap is declared valid and is not";
    if (valid && is_new && !v.bitmap_zero)
        return "bits of the new area are set";
    k->stale += !valid;
    k->valid_old += valid && !is_new;
    k->valid_new += valid && is_new;
    return NULL;
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *k = ctx;
    const char *bad = wrong(k, state);
    k->states++;
    if (!CHECK(!bad))
        printf("    %s: %s\n", what, bad);
    return test_failures() < 5;
}

static void crash_states(void)
{
    u64 seed = test_seed(0x1f83d9abfb41bd6b), total = 0, stale = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct blk_record r;
        struct crash k;
        struct err e = {0};
        u64 length;
        test_note("crash, case %u, %s", i, cases[i].name);
        if (cases[i].new_size > GI(1))
            continue; /* as the others, but larger */
        begin(&k, &m, &cases[i]);
        blk_record_init(&r, &m);
        resize(&r.blk, &cases[i], &length, &e);
        CHECK_ERR(&e, OK);
        blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &k);
        CHECK(k.stale && k.valid_old && k.valid_new);
        total += k.states, stale += k.stale;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states, %llu of them with stale bitmaps\n", (unsigned long long)total,
           (unsigned long long)stale);
}

static void fault_sweep(void)
{
    u64 runs = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct crash k;
        int rc = 1;
        if (cases[i].new_size > GI(1))
            continue;
        begin(&k, &m, &cases[i]);
        for (u64 n = 1; rc && n < 50000; n += 1 + n / 16) {
            struct blk_mem now;
            struct blk_fault f;
            struct err e = {0};
            u64 length;
            test_note("case %u, %s; I/O %llu fails", i, cases[i].name, (unsigned long long)n);
            blk_mem_over(&now, &m);
            blk_fault_init(&f, &now.blk, n, runs % 2);
            rc = resize(&f.blk, &cases[i], &length, &e);
            const char *what = wrong(&k, &now);
            if (!CHECK(!what))
                printf("    %s\n", what);
            runs++;
            blk_mem_free(&now);
        }
        CHECK(!rc);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu runs, with an I/O that failed\n", (unsigned long long)runs);
    CHECK(runs > 200);
}

/* ---- made to do harm ---- */

/* Refused both ways, with words, and not a byte written. Returns the code. */
static enum err_code attack(const struct blk_mem *m, u64 new_size)
{
    struct blk_mem now;
    struct err e = {0};
    struct resize_case c = {.new_size = new_size};
    u64 at, length;
    blk_mem_over(&now, m);
    resize(&now.blk, &c, &length, &e);
    CHECK(e.code && e.what && e.what[0]);
    CHECK(blk_mem_equal(m, &now, &at) && now.writes == 0 && now.grows == 0);
    CHECK(now.reads < 20000);
    blk_mem_free(&now);
    return e.code;
}

/* In the image of `small`: the directory's entries are 32 bytes each. */
enum place { DIR, EXT, TABLE, BITS, COUNT, RT };

/* clang-format off */
static const struct {
    const char *name;
    enum place place;
    u64 off;
    int len;
    u64 val;
    enum err_code code;
} harms[] = {
    { "in use", DIR, 12, 4, 1, ERR_BITMAPS_UNSUPPORTED },
    { "in use, and enabled", DIR, 32 + 12, 4, 3, ERR_BITMAPS_UNSUPPORTED },
    { "flag for extra data", DIR, 12, 4, 4, ERR_UNSUPPORTED_FEATURE },
    { "unknown flag", DIR, 12, 4, 1u << 31, ERR_UNSUPPORTED_FEATURE },
    { "type 0", DIR, 16, 1, 0, ERR_UNSUPPORTED_FEATURE },
    { "type 2", DIR, 32 + 16, 1, 2, ERR_UNSUPPORTED_FEATURE },
    { "granularity 0", DIR, 17, 1, 0, ERR_UNSUPPORTED_FEATURE },
    { "granularity 8", DIR, 17, 1, 8, ERR_UNSUPPORTED_FEATURE },
    { "granularity 32", DIR, 17, 1, 32, ERR_UNSUPPORTED_FEATURE },
    { "granularity 63", DIR, 17, 1, 63, ERR_UNSUPPORTED_FEATURE },
    { "granularity 255", DIR, 32 + 17, 1, 255, ERR_UNSUPPORTED_FEATURE },
    { "no name", DIR, 18, 2, 0, ERR_OVERLAY_CORRUPT },
    { "name of 1024", DIR, 18, 2, 1024, ERR_OVERLAY_CORRUPT },
    { "name past the directory", DIR, 32 + 18, 2, 9, ERR_OVERLAY_CORRUPT },
    { "name shorter than its entry", DIR, 32 + 18, 2, 65535, ERR_OVERLAY_CORRUPT },
    { "extra data", DIR, 20, 4, 6, ERR_UNSUPPORTED_FEATURE },
    { "extra data of 4 GiB", DIR, 20, 4, 0xffffffff, ERR_OVERLAY_CORRUPT },
    { "two of a name", DIR, 32 + 25, 1, '0', ERR_OVERLAY_CORRUPT },
    { "table misaligned", DIR, 0, 8, 1, ERR_OVERLAY_CORRUPT },
    { "table at 0", DIR, 0, 8, 0, ERR_OVERLAY_CORRUPT },
    { "table on the refcount table", DIR, 0, 8, 512, ERR_OVERLAY_CORRUPT },
    { "table on the refcount block", DIR, 0, 8, 1024, ERR_OVERLAY_CORRUPT },
    { "table past the end", DIR, 0, 8, 1 << 30, ERR_OVERLAY_CORRUPT },
    { "table past 2^56", DIR, 0, 8, 1ull << 60, ERR_OVERLAY_CORRUPT },
    { "table near 2^64", DIR, 0, 8, ~511ull, ERR_OVERLAY_CORRUPT },
    { "table of nothing", DIR, 8, 4, 0, ERR_OVERLAY_CORRUPT },
    { "table too long for the disk", DIR, 8, 4, 2, ERR_OVERLAY_CORRUPT },
    { "table of 32 GiB", DIR, 8, 4, 0xffffffff, ERR_OVERLAY_CORRUPT },
    { "one bitmap too many", EXT, 0, 4, 1, ERR_OVERLAY_CORRUPT },
    { "one bitmap too few", EXT, 0, 4, 3, ERR_OVERLAY_CORRUPT },
    { "2^32 - 1 bitmaps", EXT, 0, 4, 0xffffffff, ERR_OVERLAY_CORRUPT },
    { "directory of 0 bytes", EXT, 8, 8, 0, ERR_OVERLAY_CORRUPT },
    { "directory of 23 bytes", EXT, 8, 8, 23, ERR_OVERLAY_CORRUPT },
    { "directory of 1 GiB", EXT, 8, 8, 1 << 30, ERR_OVERLAY_CORRUPT },
    { "directory near 2^64", EXT, 16, 8, ~511ull, ERR_OVERLAY_CORRUPT },
    { "directory misaligned", EXT, 16, 8, 4097, ERR_OVERLAY_CORRUPT },
    { "entry with reserved bits", TABLE, 0, 8, 1ull << 60, ERR_OVERLAY_CORRUPT },
    { "entry with low reserved bits", TABLE, 0, 8, 2, ERR_OVERLAY_CORRUPT },
    { "entry misaligned", TABLE, 0, 8, 1 << 30, ERR_OVERLAY_CORRUPT },
    { "bits on the refcount table", TABLE, 0, 8, 512, ERR_OVERLAY_CORRUPT },
    { "bits on the refcount block", TABLE, 0, 8, 1024, ERR_OVERLAY_CORRUPT },
    { "refcount of the table 0", COUNT, 0, 2, 0, ERR_INCONSISTENT },
    { "refcount of the table 2", COUNT, 0, 2, 2, ERR_INCONSISTENT },
    { "the refcount block on itself", RT, 8, 8, 1024, ERR_OVERLAY_CORRUPT },
};
/* clang-format on */

static void harmful_entries_are_refused(void)
{
    for (unsigned i = 0; i < sizeof harms / sizeof harms[0]; i++) {
        struct blk_mem m;
        struct made made;
        qcow2_make(&m, &small.p, &made);
        CHECK(get64(&m, 512) == 1024);
        u64 table = get64(&m, made.dir_offset),
            at[] = {made.dir_offset, made.ext_offset, table, 0, 1024 + table / 512 * 2, 512};
        put(&m, at[harms[i].place] + harms[i].off, harms[i].len, harms[i].val);
        for (int shrink = 0; shrink < 2; shrink++) {
            test_note("%s; %s", harms[i].name, shrink ? "shrink" : "grow");
            CHECK_EQ_U64(attack(&m, shrink ? KI(256) + 512 : small.new_size), harms[i].code);
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* What the resize itself refuses is found before the bitmaps are touched. */
static void refused_by_the_resize(void)
{
    struct blk_mem m;
    struct made made;
    struct resize_case c = small;
    qcow2_make(&m, &c.p, &made);
    CHECK_EQ_U64(attack(&m, GI(200)), ERR_INVALID_NEW_SIZE); /* the L1 table's limit */
    u64 l2 = get64(&m, made.l1_offset + 32 * 8) & 0xfffffffffffe00;
    CHECK_EQ_U64(l2, 0);
    put(&m, made.l1_offset + 32 * 8, 8, 1ull << 63 | 512); /* on the refcount table */
    CHECK_EQ_U64(attack(&m, small.new_size), ERR_OVERLAY_CORRUPT);
    put(&m, made.l1_offset, 8, 1ull << 63 | 512);
    CHECK_EQ_U64(attack(&m, KI(16)), ERR_OVERLAY_CORRUPT);
    blk_mem_free(&m);
    c.p.cluster_bits = 16; /* 4 TiB by bits of 512 bytes: a bitmap of 1 GiB */
    qcow2_make(&m, &c.p, &made);
    CHECK_EQ_U64(attack(&m, TI(4)), ERR_BITMAPS_UNSUPPORTED);
    blk_mem_free(&m);
}

/* The refcount table is as long as any, and counts `room` clusters more than the file has. The
 * bitmap wants 8 of them for its table, the disk one for a copy of its last L2 table, which a
 * snapshot has too. With 8 there is room for either, not for both. (One more is reckoned with for a
 * refcount block that turns out not to be needed.) */
static void hardly_any_room(void)
{
    for (u64 room = 8; room <= 10; room += 2) {
        struct resize_case c = {"",
                                {.cluster_bits = 9,
                                 .refcount_order = 6,
                                 .size = MI(127) + 512,
                                 .bitmaps = 1,
                                 .granularity = 9,
                                 .l1_middle = true,
                                 .l1_extra = 32768,
                                 .rt_clusters = 16384,
                                 .first = 3,
                                 .last = true,
                                 .stale_l2 = true,
                                 .snapshots = 1,
                                 .end_cluster = (1 << 26) - 5000},
                                GI(1)};
        struct blk_mem m;
        struct made made;
        struct verdict old, v;
        struct err e = {0};
        qcow2_make(&m, &c.p, &made);
        blk_mem_free(&m);
        c.p.end_cluster += (1 << 26) - room - made.clusters;
        qcow2_make(&m, &c.p, &made);
        CHECK_EQ_U64(made.clusters, (1 << 26) - room);
        qcow2_judge_mem(&m, c.p.size, 0, 0, &old);
        if (room == 8) {
            CHECK_EQ_U64(attack(&m, c.new_size), ERR_REFCOUNT_EXHAUSTED);
            put(&m, 88, 8, 0); /* stale: there is nothing to make room for */
        }
        resize_mem(&m, &c, &e);
        CHECK_ERR(&e, OK);
        qcow2_judge_mem(&m, c.p.size, c.p.size, c.new_size, &v);
        CHECK(v.size == c.new_size && !v.corruptions && v.bitmaps == (room != 8));
        CHECK(v.hash == old.hash && (room == 8 || v.bitmap_hash == old.bitmap_hash));
        blk_mem_free(&m);
    }
}

/* A directory of `cnt` bitmaps with names of `name` bytes, behind the end of the file. Each has the
 * first one's table, or one of its own, without a bit. */
static void many(struct blk_mem *m, u64 cnt, u32 name, bool own)
{
    struct resize_case c = small;
    struct made made;
    c.p.bitmaps = 1;
    c.p.end_cluster = 4096;
    c.p.refcount_order = 3;
    c.p.rt_clusters = 30;
    qcow2_make(m, &c.p, &made);
    u64 len = round_up(24 + name, 8), dir = round_up(m->length, 512);
    u64 tables = round_up(dir + cnt * len, 512), table = get64(m, made.dir_offset);
    u8 *e = calloc(1, len);
    for (u64 i = 0; i < cnt; i++) {
        put_be64(e, own ? tables + i * 512 : table);
        put_be32(e + 8, 1);
        e[16] = 1;
        e[17] = 9;
        e[18] = (u8)(name >> 8);
        e[19] = (u8)name;
        put_be64(e + 24, i);
        blk_mem_put(m, dir + i * len, e, len);
    }
    free(e);
    put(m, made.ext_offset, 4, cnt);
    put(m, made.ext_offset + 8, 8, cnt * len);
    put(m, made.ext_offset + 16, 8, dir);
    u64 end = own ? tables + cnt * 512 : tables, blocks = div_up(end / 512, 511) + 1;
    blk_mem_truncate(m, end + blocks * 512);
    for (u64 i = made.clusters; own && i < end / 512 + blocks; i++) { /* counts, a byte each */
        u64 at = 512 + i / 512 * 8;
        if (!get64(m, at))
            put(m, at, 8, end + (i / 512 - made.clusters / 512) * 512);
        put(m, get64(m, at) + i % 512, 1, 1);
    }
}

static void many_bitmaps(void)
{
    struct blk_mem m;
    struct verdict v;
    struct err e = {0};
    many(&m, 65535, 8, false);
    CHECK_EQ_U64(attack(&m, small.new_size), ERR_OVERLAY_CORRUPT);
    CHECK_EQ_U64(attack(&m, KI(64)), ERR_OVERLAY_CORRUPT);
    blk_mem_free(&m);
    many(&m, 65535, 1000, false); /* 64 MiB */
    CHECK_EQ_U64(attack(&m, small.new_size), ERR_OVERLAY_CORRUPT);
    blk_mem_free(&m);
    many(&m, 65536, 8, false);
    CHECK_EQ_U64(attack(&m, small.new_size), ERR_OVERLAY_CORRUPT);
    blk_mem_free(&m);
    many(&m, 300, 8, true); /* and there is nothing wrong with many */
    struct resize_case c = {.new_size = MI(5), .p.bitmaps = 300};
    CHECK(!resize_mem(&m, &c, &e));
    qcow2_judge_mem(&m, 0, 0, 0, &v);
    if (!CHECK(v.bitmaps == 300 && !v.corruptions && v.size == MI(5)))
        printf("    %s\n", v.first);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(each_case);
    RUN(bits_at_the_old_end);
    RUN(stale_bitmaps_stay_as_they_are);
    RUN(no_bitmaps);
    RUN(matrix);
    RUN(crash_states);
    RUN(fault_sweep);
    RUN(harmful_entries_are_refused);
    RUN(refused_by_the_resize);
    RUN(hardly_any_room);
    RUN(many_bitmaps);
    return test_end();
}
