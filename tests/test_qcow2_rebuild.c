/* SPDX-License-Identifier: MIT
 *
 * Images that were not closed cleanly, and the stage that rebuilds their refcounts. Refcounts and
 * COPIED flags of images of every shape are destroyed; a grow or a shrink must leave an image that
 * the judge finds clean, with all guest data. Then the crash recorder and the fault sweep, little
 * work memory (many windows), and images that are corrupt besides, which must be refused, untouched
 * and soon.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "grow.h"
#include "test.h"

#include <unistd.h>

enum { KINDS = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO | MAKE_PACKED, RANDOM_SUBSETS = 8 };

#define OFFSET 0x00fffffffffffe00ull
#define COPIED (1ull << 63)

static u64 get64(const struct blk_mem *m, u64 off)
{
    u8 b[8];
    blk_mem_get(m, off, b, 8);
    return be64(b);
}

static void put64(struct blk_mem *m, u64 off, u64 v)
{
    u8 b[8];
    put_be64(b, v);
    blk_mem_put(m, off, b, 8);
}

/* ---- running ---- */

static bool repaired, begun;

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    static u64 most;
    (void)h, (void)e;
    assert(n->room);
    if (epoch == 0)
        most = max_u64(n->eventual, n->length[0]);
    CHECK(n->length[0] <= most); /* what is asked for later has been announced */
    return 0;
}

/* A resize with so much work memory. */
static int resize(struct blk *b, u64 new_size, size_t work_len, u64 *length, struct err *e)
{
    static u8 image_mem[IMAGE_MEM] __attribute__((aligned(4096)));
    static u8 copy_mem[BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct image img;
    struct plan_host h = {.need = need, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    struct resize_args a = {.new_size = new_size, .work = work, .work_len = work_len};
    memset(work, 0xa5, 1 << 20);
    int rc = image_open(&img, b, "qcow2", image_mem, e);
    img.scratch = scratch;
    if (!rc)
        rc = plan_resize(&img, &a, &h, e);
    repaired = h.repaired;
    begun = h.begun;
    *length = h.length[0];
    return rc;
}

static int resize_mem(struct blk_mem *m, u64 new_size, size_t work_len, struct err *e)
{
    u64 length;
    int rc = resize(&m->blk, new_size, work_len, &length, e);
    if (!rc)
        blk_mem_truncate(m, length);
    return rc;
}

/* ---- damage ---- */

enum damage { SOUND, COUNTS_ZERO, COUNTS_RANDOM, TABLE_ZERO, TABLE_RANDOM, DAMAGES };
static const char *const damage_names[] = {"sound", "counts zero", "counts random", "table zero",
                                           "table random"};

static void set_dirty(struct blk_mem *m)
{
    put64(m, QH_INCOMPATIBLE_FEATURES, get64(m, QH_INCOMPATIBLE_FEATURES) | 1);
    put64(m, QH_COMPATIBLE_FEATURES, get64(m, QH_COMPATIBLE_FEATURES) | 1);
}

static void damage_counts(struct blk_mem *m, const struct make *p, const struct made *made,
                          enum damage how, u64 *seed)
{
    u64 cs = 1ull << (p->cluster_bits ? p->cluster_bits : 16);
    for (u64 i = 0; i < made->rt_entries && how != SOUND; i++) {
        u64 at = made->rt_offset + i * 8, block = get64(m, at);
        u8 noise[512];
        for (u64 b = 0; block && b < cs && how <= COUNTS_RANDOM; b += 512) {
            for (int k = 0; k < 512; k++)
                noise[k] = how == COUNTS_ZERO ? 0 : (u8)rnd(seed);
            if (how == COUNTS_ZERO || rnd_below(seed, 4) == 0)
                blk_mem_put(m, block + b, noise, sizeof noise);
        }
        if (how == TABLE_ZERO && block)
            put64(m, at, 0);
        if (how == TABLE_RANDOM && (block || i < 8))
            put64(m, at, rnd_below(seed, 2) ? rnd(seed) : rnd_below(seed, m->length / cs) * cs);
    }
}

/* Some COPIED flags of the active L1 table and what it names become wrong. */
static u64 damage_flags(struct blk_mem *m, const struct make *p, const struct made *made, u64 *seed)
{
    u64 cs = 1ull << (p->cluster_bits ? p->cluster_bits : 16), size = p->ext_l2 ? 16 : 8, n = 0;
    for (u64 i = 0; i < made->l1_size; i++) {
        u64 at = made->l1_offset + i * 8, l1 = get64(m, at), l2 = l1 & OFFSET;
        for (u64 k = 0; l2 && k < cs; k += size) {
            u64 entry = get64(m, l2 + k);
            if (!(entry & OFFSET) || (entry & 1ull << 62) || rnd_below(seed, 3))
                continue;
            put64(m, l2 + k, entry ^ COPIED);
            n++;
        }
        if (l2 && rnd_below(seed, 2))
            put64(m, at, l1 ^ COPIED);
    }
    return n;
}

/* ---- rebuilding ---- */

static struct {
    unsigned resized, flags;
} done;

/* Damaged so, the image is resized, and is clean and complete. */
static void rebuild(const struct make *p, u64 new_size, enum damage how, bool flags, size_t work,
                    u64 *seed)
{
    struct blk_mem m;
    struct made made;
    struct verdict before, after;
    struct err e = {0};
    u64 keep = min_u64(p->size, new_size);
    qcow2_make(&m, p, &made);
    qcow2_judge_mem(&m, keep, 0, 0, &before);
    if (!CHECK(before.opens && !before.corruptions))
        printf("    %s\n", before.first);
    damage_counts(&m, p, &made, how, seed);
    done.flags += flags ? (unsigned)damage_flags(&m, p, &made, seed) : 0;
    set_dirty(&m);
    resize_mem(&m, new_size, work, &e);
    CHECK_ERR(&e, OK);
    CHECK(repaired);
    qcow2_judge_mem(&m, keep, keep, new_size, &after);
    if (!CHECK(after.opens && !after.dirty && !after.corruptions && !after.leaks))
        printf("    %s: %s %s\n", damage_names[how], after.why, after.first);
    CHECK(after.size == new_size && after.hash == before.hash && after.zero);
    CHECK_EQ_U64(after.snapshot_hash, before.snapshot_hash);
    CHECK(get64(&m, QH_COMPATIBLE_FEATURES) & 1);
    done.resized++;
    if (done.resized % 40 == 0) {
        const char *path = test_path("rebuilt.qcow2");
        if (CHECK(blk_mem_save(&m, path)))
            CHECK(test_system("qemu-img check -f qcow2 %s", path) == 0);
        unlink(path);
    }
    blk_mem_free(&m);
}

static void each_case(void)
{
    u64 seed = test_seed(0x510e527fade682d1);
    for (unsigned i = 0; i < grow_cases_cnt; i++) {
        const struct grow_case *g = &grow_cases[i];
        struct make p = g->p;
        if (p.version == 2)
            continue;
        for (enum damage how = SOUND; how < DAMAGES; how++) {
            test_note("case %u, %s; %s", i, g->name, damage_names[how]);
            rebuild(&p, g->new_size, how, how & 1, PLAN_WORK, &seed);
            if (p.size >= 2048)
                rebuild(&p, round_down(p.size / 3, 512) + 512, how, !(how & 1), PLAN_WORK, &seed);
        }
    }
    test_note("%s", "");
    printf("  %u resized, %u flags had been wrong\n", done.resized, done.flags);
    CHECK(done.resized > 300 && done.flags > 500);
}

/* INSTAR_REBUILDS sets another number. */
static void matrix(void)
{
    static const u32 kinds[] = {0, MAKE_DATA, MAKE_DATA | MAKE_ZERO | MAKE_PREZERO,
                                MAKE_DATA | MAKE_PACKED, 31};
    u64 seed = test_seed(0x1f83d9abfb41bd6b);
    const char *n = getenv("INSTAR_REBUILDS");
    for (int i = 0; i < (n ? atoi(n) : 600); i++) {
        struct make p = {.cluster_bits = (u32)(9 + rnd_below(&seed, i % 16 ? 8 : 13)),
                         .refcount_order = (u32)rnd_below(&seed, 7),
                         .seed = rnd(&seed)};
        p.ext_l2 = p.cluster_bits >= 14 && rnd_below(&seed, 2);
        u64 cs = 1ull << p.cluster_bits, reach = cs * cs / (p.ext_l2 ? 16 : 8);
        u64 span = rnd_below(&seed, 2) ? min_u64(reach * 9, MI(600)) : 99 * cs;
        p.size = 1024 + 512 * rnd_below(&seed, span / 512);
        p.kinds = kinds[rnd_below(&seed, 5)];
        p.first = (u32)rnd_below(&seed, p.cluster_bits > 16 ? 9 : 60);
        p.spread = (u32)rnd_below(&seed, p.cluster_bits > 16 ? 5 : 30);
        p.last = rnd_below(&seed, 2);
        p.l1_middle = rnd_below(&seed, 2);
        p.l1_extra = rnd_below(&seed, 4) ? 0 : (u32)rnd_below(&seed, 5);
        p.snapshots = p.refcount_order >= 2 ? (u32)rnd_below(&seed, 3) : 0;
        p.pad_clusters = rnd_below(&seed, 5) ? 0 : (u32)rnd_below(&seed, 9);
        p.autoclear = rnd_below(&seed, 4) ? 0 : 0xf0f0f00;
        p.end = (int)rnd_below(&seed, 3);
        u64 new_size = 512 + 512 * rnd_below(&seed, 2 * p.size / 512);
        new_size += new_size == p.size ? 512 : 0;
        test_note("%d: bits %u order %u ext %d size %llu -> %llu kinds %u first %u spread %u "
                  "snap %u seed 0x%llx",
                  i, p.cluster_bits, p.refcount_order, p.ext_l2, (unsigned long long)p.size,
                  (unsigned long long)new_size, p.kinds, p.first, p.spread, p.snapshots,
                  (unsigned long long)p.seed);
        rebuild(&p, new_size, (enum damage)rnd_below(&seed, DAMAGES), rnd_below(&seed, 2),
                PLAN_WORK, &seed);
    }
    test_note("%s", "");
}

enum { LITTLE = 128 << 10 /* of the work memory, for which blocks exist */ };

/* With room for one to three refcount blocks at a time, the result is the same, byte by byte. */
static void many_windows(void)
{
    u64 seed = test_seed(0x5be0cd19137e2179), slow = 0;
    const struct make shapes[] = {
        {.cluster_bits = 9, .refcount_order = 6, .size = MI(4), .first = 900, .kinds = KINDS},
        {.cluster_bits = 9,
         .refcount_order = 5,
         .size = MI(3),
         .first = 99,
         .spread = 600,
         .snapshots = 2,
         .kinds = KINDS,
         .last = true},
        {.cluster_bits = 9,
         .refcount_order = 4,
         .size = MI(3),
         .first = 700,
         .l1_middle = true,
         .end_cluster = 9000,
         .last = true},
        {.cluster_bits = 12,
         .refcount_order = 6,
         .size = MI(64),
         .first = 30,
         .kinds = KINDS,
         .spread = 99,
         .end_cluster = 512 * 300,
         .snapshots = 1},
    };
    for (unsigned i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        u64 cs = 1ull << shapes[i].cluster_bits;
        for (unsigned blocks = 1; blocks <= 3; blocks++) {
            struct blk_mem m, one, many;
            struct made made;
            struct err e = {0};
            u64 at = 0, room = blocks * (cs + (cs * 2 >> shapes[i].refcount_order));
            test_note("shape %u, %u blocks", i, blocks);
            qcow2_make(&m, &shapes[i], &made);
            damage_counts(&m, &shapes[i], &made, COUNTS_RANDOM, &seed);
            damage_flags(&m, &shapes[i], &made, &seed);
            set_dirty(&m);
            blk_mem_over(&one, &m);
            blk_mem_over(&many, &m);
            resize_mem(&one, shapes[i].size + KI(32), PLAN_WORK, &e);
            resize_mem(&many, shapes[i].size + KI(32), LITTLE + room, &e);
            CHECK_ERR(&e, OK);
            if (!CHECK(blk_mem_equal(&one, &many, &at)))
                printf("    they differ at %llu\n", (unsigned long long)at);
            CHECK(many.reads > one.reads && many.reads < 60000);
            slow += many.reads > 3 * one.reads;
            blk_mem_free(&one);
            blk_mem_free(&many);
            blk_mem_free(&m);
            rebuild(&shapes[i], shapes[i].size + KI(32), TABLE_RANDOM, true, LITTLE + room, &seed);
        }
    }
    test_note("%s", "");
    CHECK(slow > 0);
}

/* A file of a pebibyte with little in it: as many passes as there are places, no more. */
static void large_and_sparse(void)
{
    const struct make p = {
        .refcount_order = 4, .size = GI(9), .first = 9, .kinds = KINDS, .spread = 20, .last = true};
    struct blk_mem m;
    struct made made;
    struct verdict before, after;
    struct err e = {0};
    u64 at;
    qcow2_make(&m, &p, &made);
    qcow2_judge_mem(&m, p.size, 0, 0, &before);
    set_dirty(&m);
    blk_mem_truncate(&m, 1ull << 50);
    resize_mem(&m, GI(10), PLAN_WORK, &e);
    CHECK_ERR(&e, OK);
    CHECK(m.reads < 500 && m.bytes_written < 4 << 20);
    qcow2_judge_mem(&m, p.size, p.size, GI(10), &after);
    CHECK(after.opens && !after.dirty && !after.corruptions && !after.leaks);
    CHECK(after.hash == before.hash && after.zero);
    blk_mem_free(&m);

    qcow2_make(&m, &p, &made);
    set_dirty(&m);
    blk_mem_truncate(&m, 1ull << 52); /* more than 8 MiB of table can count */
    struct blk_mem now;
    blk_mem_over(&now, &m);
    e = (struct err){0};
    resize_mem(&now, GI(10), PLAN_WORK, &e);
    CHECK_ERR(&e, ERR_REFCOUNT_EXHAUSTED);
    CHECK(now.reads < 9 && blk_mem_equal(&now, &m, &at));
    blk_mem_free(&now);
    blk_mem_free(&m);
}

/* ---- crashes and faults ---- */

struct crash {
    u64 old_size, new_size, old_hash, kept_hash, snapshot_hash;
    u64 states, dirty, clean, resized, again;
};

/* NULL if the state is the old image, dirty, or a clean one; with all data. */
static const char *wrong(const struct crash *c, const struct blk_mem *state, struct verdict *v)
{
    u64 keep = min_u64(c->old_size, c->new_size);
    qcow2_judge_mem(state, keep, keep, c->new_size, v);
    if (!v->opens)
        return v->why;
    if (v->size != c->old_size && v->size != c->new_size)
        return "it has neither the old nor the new size";
    if (v->hash != c->kept_hash || v->snapshot_hash != c->snapshot_hash)
        return "data is lost";
    if (v->dirty)
        return v->size == c->old_size ? NULL : "it is dirty and has the new size";
    if (v->corruptions)
        return v->first;
    if (v->size == c->new_size)
        return v->zero ? NULL : "the new area does not read zero";
    qcow2_judge_mem(state, c->old_size, 0, 0, v);
    return v->hash == c->old_hash ? NULL : "it has the old size, but not its data";
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct verdict v;
    const char *bad = wrong(c, state, &v);
    if (!CHECK(!bad))
        printf("    %s: %s\n", what, bad);
    c->states++;
    c->dirty += v.dirty;
    c->clean += !v.dirty && v.size == c->old_size;
    c->resized += v.size == c->new_size;
    if (!bad && c->states % 7 == 3 && v.size == c->old_size) { /* what is left can be resized */
        struct blk_mem next;
        struct err e = {0};
        blk_mem_over(&next, state);
        resize_mem(&next, c->new_size, PLAN_WORK, &e);
        CHECK_ERR(&e, OK);
        CHECK(repaired == v.dirty);
        bad = wrong(c, &next, &v);
        if (!CHECK(!bad && v.size == c->new_size && !v.dirty))
            printf("    resized again: %s\n", bad ? bad : "not resized");
        c->again++;
        blk_mem_free(&next);
    }
    return test_failures() < 5;
}

static void begin(struct crash *c, struct blk_mem *m, const struct make *p, u64 new_size, u64 *seed)
{
    struct made made;
    struct verdict v;
    *c = (struct crash){.old_size = p->size, .new_size = new_size};
    qcow2_make(m, p, &made);
    qcow2_judge_mem(m, p->size, 0, 0, &v);
    c->old_hash = v.hash;
    c->snapshot_hash = v.snapshot_hash;
    qcow2_judge_mem(m, min_u64(p->size, new_size), 0, 0, &v);
    c->kept_hash = v.hash;
    damage_counts(m, p, &made, 1 + (enum damage)rnd_below(seed, DAMAGES - 1), seed);
    damage_flags(m, p, &made, seed);
    set_dirty(m);
}

static const struct make crash_shapes[] = {
    {.refcount_order = 4, .size = MI(1) + 512, .first = 9, .kinds = KINDS, .last = true},
    {.cluster_bits = 9, .refcount_order = 1, .size = KI(200), .first = 99, .kinds = KINDS},
    {.cluster_bits = 9,
     .refcount_order = 6,
     .size = KI(100) + 512,
     .first = 99,
     .kinds = KINDS,
     .snapshots = 2,
     .last = true,
     .stale = true},
    {.cluster_bits = 12,
     .refcount_order = 3,
     .size = MI(3),
     .first = 30,
     .kinds = KINDS,
     .snapshots = 1,
     .autoclear = 1ull << 40},
    {.cluster_bits = 14,
     .refcount_order = 0,
     .size = MI(9),
     .first = 9,
     .ext_l2 = true,
     .kinds = MAKE_DATA | MAKE_SUB | MAKE_ZERO},
    {.cluster_bits = 12,
     .refcount_order = 6,
     .size = MI(3) + 512,
     .first = 9,
     .last = true,
     .end_cluster = 512 * 512 - 2},
};
enum { CRASHES = sizeof(crash_shapes) / sizeof(crash_shapes[0]) };

static void crash_states(void)
{
    u64 seed = test_seed(0x9b05688c2b3e6c1f), states = 0, again = 0;
    for (unsigned i = 0; i < 2 * CRASHES; i++) {
        const struct make *p = &crash_shapes[i / 2];
        struct blk_mem m;
        struct blk_record r;
        struct crash c;
        struct err e = {0};
        u64 length;
        test_note("crash, shape %u, %s", i / 2, i % 2 ? "shrink" : "grow");
        begin(&c, &m, p, i % 2 ? KI(50) + 512 : p->size + MI(9), &seed);
        m.blk.sector = i % 3 == 2 ? 4096 : 512;
        blk_record_init(&r, &m);
        resize(&r.blk, c.new_size, PLAN_WORK, &length, &e);
        CHECK_ERR(&e, OK);
        blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &c);
        if (!CHECK(c.dirty > 3 && c.clean > 0 && c.resized > 0))
            printf("    %llu dirty, %llu clean, %llu resized\n", (unsigned long long)c.dirty,
                   (unsigned long long)c.clean, (unsigned long long)c.resized);
        states += c.states, again += c.again;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states, %llu resized again\n", (unsigned long long)states,
           (unsigned long long)again);
    CHECK(again > 100);
}

static void fault_sweep(void)
{
    u64 seed = test_seed(0x3c6ef372fe94f82b), runs = 0;
    for (unsigned i = 0; i < 2 * CRASHES; i++) {
        const struct make *p = &crash_shapes[i / 2];
        struct blk_mem m;
        struct crash c;
        int rc = 1;
        begin(&c, &m, p, i % 2 ? KI(50) + 512 : p->size + MI(9), &seed);
        for (u64 n = 1; rc && n < 20000; n += 1 + n / 64) {
            struct blk_mem now;
            struct blk_fault f;
            struct verdict v;
            struct err e = {0};
            u64 length;
            test_note("shape %u, I/O %llu fails", i, (unsigned long long)n);
            blk_mem_over(&now, &m);
            blk_fault_init(&f, &now.blk, n, n % 2);
            rc = resize(&f.blk, c.new_size, PLAN_WORK, &length, &e);
            const char *what = wrong(&c, &now, &v);
            if (!CHECK(!what))
                printf("    %s\n", what);
            if (rc && !v.dirty) /* the operation knows what it has done */
                CHECK(repaired || now.flushes > 0);
            if (v.dirty)
                CHECK(!repaired);
            if (rc && repaired && !begun)
                CHECK(!v.dirty && v.size == c.old_size);
            runs++;
            blk_mem_free(&now);
        }
        CHECK(!rc);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way\n", (unsigned long long)runs);
}

/* ---- corrupt besides ---- */

/* 4 KiB clusters: header 0, refcount table 1, block 2, L1 3, then an L2 table and the data. */
static const struct make victim = {.cluster_bits = 12,
                                   .refcount_order = 4,
                                   .size = MI(1),
                                   .first = 40,
                                   .kinds = MAKE_DATA,
                                   .l1_middle = true};

static enum err_code attack(struct blk_mem *m, u64 reads_max, size_t work)
{
    struct blk_mem now;
    struct err e = {0};
    u64 at;
    set_dirty(m);
    blk_mem_over(&now, m);
    resize_mem(&now, MI(64), work, &e);
    if (!CHECK(now.reads <= reads_max))
        printf("    %llu reads\n", (unsigned long long)now.reads);
    if (e.code)
        CHECK(blk_mem_equal(m, &now, &at) && now.writes == 0 && now.grows == 0);
    blk_mem_free(&now);
    return e.code;
}

static void corrupt_besides(void)
{
    const u64 l1 = 3 << 12, l2 = 4 << 12, flag = COPIED;
    const struct {
        const char *name;
        u64 off, val;
        enum err_code code;
    } wrongs[] = {
        {"nothing", l2 + 8 * 100, 0, OK},
        {"L1 names the L1 table", l1, l1 | flag, ERR_OVERLAY_CORRUPT},
        {"L1 names the header", l1, 512, ERR_OVERLAY_CORRUPT},
        {"L1 names the refcount table", l1, 1 << 12 | flag, ERR_OVERLAY_CORRUPT},
        {"L1 names a data cluster", l1, 6 << 12 | flag, ERR_OVERLAY_CORRUPT},
        {"L1 beyond the file", l1, 1ull << 40 | flag, ERR_OVERLAY_CORRUPT},
        {"L1 misaligned", l1, (l2 + 512) | flag, ERR_OVERLAY_CORRUPT},
        {"L1 reserved bits", l1, l2 | 1 | flag, ERR_OVERLAY_CORRUPT},
        {"L2 names itself", l2 + 8, l2 | flag, ERR_OVERLAY_CORRUPT},
        {"L2 names the header", l2 + 8, 1, OK}, /* no: that is the zero flag */
        {"L2 names the L1 table", l2 + 8, l1 | flag, ERR_OVERLAY_CORRUPT},
        {"L2 names the refcount table", l2 + 8, 1 << 12 | flag, ERR_OVERLAY_CORRUPT},
        {"L2 names the refcount block", l2 + 8, 2 << 12 | flag, OK}, /* that is free by now */
        {"L2 names a cluster twice", l2 + 8, 7 << 12 | flag, ERR_OVERLAY_CORRUPT},
        {"L2 beyond the file", l2 + 8, 1ull << 40 | flag, ERR_OVERLAY_CORRUPT},
        {"L2 misaligned", l2 + 8, (7 << 12 | 512) | flag, ERR_OVERLAY_CORRUPT},
        {"L2 reserved bits", l2 + 8, (6 << 12 | 4) | flag, ERR_OVERLAY_CORRUPT},
        {"compressed over data", l2 + 8 * 90, 1ull << 62 | 7 << 12, ERR_OVERLAY_CORRUPT},
        {"compressed into data", l2 + 8, 1ull << 62 | 1ull << 58 | ((7 << 12) - 512),
         ERR_OVERLAY_CORRUPT},
        {"compressed on the header", l2 + 8, 1ull << 62 | 17, ERR_OVERLAY_CORRUPT},
        {"compressed beyond the file", l2 + 8, 1ull << 62 | 1ull << 40, ERR_OVERLAY_CORRUPT},
        {"compressed with COPIED", l2 + 8, 3ull << 62 | 6 << 12, ERR_OVERLAY_CORRUPT},
    };
    for (unsigned i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
        struct blk_mem m;
        struct made made;
        test_note("%s", wrongs[i].name);
        qcow2_make(&m, &victim, &made);
        CHECK(made.l1_offset == l1 && (get64(&m, l1) & OFFSET) == l2);
        put64(&m, wrongs[i].off, wrongs[i].val);
        enum err_code got = attack(&m, 400, PLAN_WORK);
        if (!CHECK(got == wrongs[i].code))
            printf("    code %d\n", got);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* Counts that the image's width cannot hold: streams that share a cluster. */
static void too_many_references(void)
{
    static const enum err_code want[] = {ERR_REFCOUNT_EXHAUSTED, ERR_REFCOUNT_EXHAUSTED, OK};
    for (u32 order = 0; order < 3; order++) {
        struct make p = victim;
        struct blk_mem m;
        struct made made;
        p.refcount_order = order;
        qcow2_make(&m, &p, &made);
        for (u64 i = 0; i < 9; i++)
            put64(&m, (4 << 12) + (90 + i) * 8, 1ull << 62 | (64 << 12));
        blk_mem_truncate(&m, 65 << 12);
        CHECK(attack(&m, 400, PLAN_WORK) == want[order]);
        blk_mem_free(&m);
    }
}

/* Tables that are named over and over: refused before they are read over and over. */
static void aliases(void)
{
    for (int kind = 0; kind < 4; kind++) {
        struct make p = {.cluster_bits = 9,
                         .refcount_order = 6,
                         .size = KI(300),
                         .first = 300,
                         .l1_middle = true,
                         .snapshots = kind == 3 ? 8 : 0};
        struct blk_mem m;
        struct made made;
        test_note("kind %d", kind);
        p.l1_extra = kind == 3 ? 0 : 1 << 18;
        qcow2_make(&m, &p, &made);
        u64 a = get64(&m, made.l1_offset), b = get64(&m, made.l1_offset + 8);
        for (u64 i = 2; kind < 2 && i < made.l1_size; i++)
            put64(&m, made.l1_offset + i * 8, kind && i % 2 ? a : b);
        u8 head[40];
        u64 snapshots = get64(&m, QH_SNAPSHOTS_OFFSET), pos = 0;
        for (int i = 0; kind == 3 && i < 8; i++) { /* all snapshots have the first one's L1 */
            blk_mem_get(&m, snapshots + pos, head, sizeof head);
            if (i)
                put64(&m, snapshots + pos, get64(&m, snapshots));
            pos += round_up(40 + be32(head + 36) + be16(head + 12) + be16(head + 14), 8);
        }
        if (kind == 2) /* L2 tables in a hole, all different, all empty: sound */
            for (u64 i = 0; i < 1000; i++)
                put64(&m, made.l1_offset + (made.l1_size - 1 - i) * 8, (GI(1) + i * 512) | COPIED);
        if (kind == 2)
            blk_mem_truncate(&m, GI(2));
        for (int little = 0; little < 2; little++) {
            enum err_code got =
                attack(&m, kind == 2 ? 100000 : 9000, little ? LITTLE + 9000 : PLAN_WORK);
            CHECK(got == (kind == 2 ? OK : ERR_OVERLAY_CORRUPT));
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* Words of L1, L2 and snapshot tables changed by chance: refused, or clean afterwards. */
static void mutations(void)
{
    u64 seed = test_seed(0xa54ff53a5f1d36f1);
    unsigned resized = 0, refused = 0;
    for (int i = 0; i < 3000; i++) {
        struct make p = {.cluster_bits = (u32)(9 + rnd_below(&seed, 5)),
                         .refcount_order = 4,
                         .size = KI(256),
                         .first = 60,
                         .last = true,
                         .kinds = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO,
                         .snapshots = (u32)rnd_below(&seed, 3),
                         .l1_middle = rnd_below(&seed, 2)};
        struct blk_mem m, now;
        struct made made;
        struct verdict v;
        struct err e = {0};
        u64 at, cs = 1ull << p.cluster_bits;
        qcow2_make(&m, &p, &made);
        for (u64 n = 1 + rnd_below(&seed, 3); n; n--) {
            u64 l2 = get64(&m, made.l1_offset + rnd_below(&seed, made.l1_size) * 8) & OFFSET;
            u64 snapshots = get64(&m, QH_SNAPSHOTS_OFFSET);
            u64 where[] = {made.l1_offset + rnd_below(&seed, made.l1_size) * 8,
                           (l2 ? l2 : made.last_l2) + rnd_below(&seed, cs / 8) * 8,
                           snapshots ? snapshots + rnd_below(&seed, 12) * 8 : made.last_l2};
            u64 what[] = {rnd_below(&seed, made.clusters + 2) * cs, rnd(&seed), 0, COPIED | cs * 5,
                          get64(&m, where[0]) ^ 1ull << rnd_below(&seed, 63)};
            put64(&m, where[rnd_below(&seed, 3)], what[rnd_below(&seed, 5)]);
        }
        test_note("mutation %d", i);
        set_dirty(&m);
        blk_mem_over(&now, &m);
        resize_mem(&now, MI(1), PLAN_WORK, &e);
        CHECK(now.reads < 5000);
        if (e.code && !repaired) {
            refused++;
            CHECK(blk_mem_equal(&m, &now, &at) && now.writes == 0);
        } else {
            resized += !e.code;
            qcow2_judge_mem(&now, 0, 0, 0, &v);
            bool flag = strstr(v.first, "COPIED without a cluster"); /* which nobody minds */
            if (!CHECK(v.opens && !v.dirty && (!v.corruptions || flag)))
                printf("    %s %s\n", v.why, v.first);
        }
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u resized, %u refused\n", resized, refused);
    CHECK(resized > 200 && refused > 500);
}

int main(void)
{
    RUN(each_case);
    RUN(matrix);
    RUN(many_windows);
    RUN(large_and_sparse);
    RUN(crash_states);
    RUN(fault_sweep);
    RUN(corrupt_besides);
    RUN(too_many_references);
    RUN(aliases);
    RUN(mutations);
    return test_end();
}
