/* SPDX-License-Identifier: MIT
 *
 * Images that somebody made to do harm: header, refcount table, refcount blocks, L1, L2 and the
 * snapshot table mutated, by hand where a class is known and by seeded chance. A grow refuses them
 * with the file byte-identical, or it grows them; it never faults, and it does not work for ever.
 * What the judge found sound before must be sound and complete after.
 */
#include "grow.h"
#include "test.h"

#include <unistd.h>

/* Requests a grow may make before the watchdog of a user would lose patience. */
enum { READS_MAX = 20000 };

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

static struct {
    unsigned grown, refused, sound;
} tally;

/* Grows a copy and holds it to what the head of this file says. Returns the error's code. */
static enum err_code attack(const struct blk_mem *m, u64 new_size)
{
    struct blk_mem now;
    struct verdict before, after;
    struct err e = {0};
    u64 at, length, says = get64(m, 24);
    if (says >= new_size) /* the header's size was changed: a grow all the same */
        new_size = round_down(min_u64(says, QCOW2_MAX_DISK_SIZE - 4096), 512) + 1024;
    blk_mem_over(&now, m);
    now.limit = m->length + (80u << 20); /* the launcher limits growth, too */
    qcow2_judge_mem(m, UINT64_MAX, 0, 0, &before);
    grow_run(&now.blk, new_size, &length, &e);
    CHECK(now.reads + now.writes < READS_MAX);
    if (e.code) {
        tally.refused++;
        CHECK(e.what && e.what[0]);
        CHECK(blk_mem_equal(m, &now, &at) && now.writes == 0 && now.grows == 0);
    } else {
        tally.grown++;
        bool sound = before.opens && !before.corruptions;
        qcow2_judge_mem(&now, before.size, before.size, sound ? new_size : 0, &after);
        if (!CHECK(after.opens && after.size == new_size))
            printf("    %s; size %llu, wanted %llu\n", after.why, (unsigned long long)after.size,
                   (unsigned long long)new_size);
        if (sound) {
            tally.sound++;
            qcow2_judge_mem(m, before.size, 0, 0, &before);
            if (!CHECK(!after.corruptions && after.hash == before.hash && after.zero))
                printf("    %s\n", after.first);
        }
    }
    blk_mem_free(&now);
    return e.code;
}

/* 4 KiB clusters: header 0, refcount table 1, refcount blocks 2.., then L1 and the rest. */
static const struct make shape = {.cluster_bits = 12,
                                  .refcount_order = 4,
                                  .size = 1 << 30,
                                  .first = 9,
                                  .kinds = 15,
                                  .l1_middle = true,
                                  .last = true};
static const u64 table = 1 << 12, block = 2 << 12, l1_at = 3 << 12;

/* clang-format off */
static const struct {
    const char *name;
    u64 off, val;
    enum err_code code;
} known[] = {
    { "refcount block on the header", 1 << 12, 0, ERR_INCONSISTENT },
    { "refcount block on the refcount table", 1 << 12, 1 << 12, ERR_OVERLAY_CORRUPT },
    { "refcount block on the L1 table", 1 << 12, 3 << 12, ERR_OVERLAY_CORRUPT },
    { "refcount block misaligned", 1 << 12, (2 << 12) + 512, ERR_OVERLAY_CORRUPT },
    { "refcount block at 64 GiB", 1 << 12, 64ull << 30, ERR_OVERLAY_CORRUPT },
    { "refcount block past 2^56", 1 << 12, 1ull << 57, ERR_OVERLAY_CORRUPT },
    { "refcount table entry with reserved bits", 1 << 12, (2 << 12) + 1, ERR_OVERLAY_CORRUPT },
    { "the next refcount block is the first one too", (1 << 12) + 8, 2 << 12, OK },
    { "L1: the last table misaligned", 0, 0, ERR_OVERLAY_CORRUPT }, /* set below */
};
/* clang-format on */

static void known_classes(void)
{
    for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        struct blk_mem m;
        struct made made;
        test_note("%s", known[i].name);
        qcow2_make(&m, &shape, &made);
        CHECK(made.l1_offset == l1_at && get64(&m, table) == block);
        CHECK_EQ_U64(attack(&m, 3ull << 30), OK);
        u64 last = l1_at + (made.l1_size - 1) * 8;
        put64(&m, known[i].off ? known[i].off : last,
              known[i].off ? known[i].val : get64(&m, last) | 512);
        enum err_code code = attack(&m, 3ull << 30);
        if (known[i].code)
            CHECK_EQ_U64(code, known[i].code);
        blk_mem_free(&m);
    }
}

/* The last cluster is what it must not be, and its rest would be zeroed, or show what comes to stand
 * there. */
static void last_cluster_elsewhere(void)
{
    static const char *const where[] = {"its own L2 table", "past the end, not counted",
                                        "past the end, counted"};
    for (unsigned i = 0; i < 3; i++) {
        struct blk_mem m;
        struct made made;
        struct make p = shape;
        p.size += 512;
        p.above_eof = i == 2;
        test_note("the last cluster is %s", where[i]);
        qcow2_make(&m, &p, &made);
        u64 at = made.last_l2 + (p.size >> 12) % 512 * 8;
        CHECK(get64(&m, at) & (1ull << 63));
        put64(&m, at, (i ? made.clusters << 12 : made.last_l2) | 1ull << 63);
        CHECK_EQ_U64(attack(&m, 3ull << 30),
                     i == 2 ? OK : i ? ERR_INCONSISTENT : ERR_OVERLAY_CORRUPT);
        blk_mem_free(&m);
    }
}

/* All that lies past the end of the file is counted: neither an endless search nor a fault. */
static void counted_past_the_end(void)
{
    struct blk_mem m;
    struct made made;
    qcow2_make(&m, &shape, &made);
    for (u64 i = made.clusters; i < 2048; i++)
        blk_mem_put(&m, block + 2 * i, "\xff\xff", 2);
    CHECK_EQ_U64(attack(&m, 3ull << 30), OK); /* a new block, behind them */
    blk_mem_free(&m);
    /* and without an end: every entry of the table names the same full block */
    static const struct make tiny = {.cluster_bits = 9,
                                     .refcount_order = 0,
                                     .size = 1 << 20,
                                     .first = 9,
                                     .rt_clusters = 128,
                                     .l1_middle = true};
    qcow2_make(&m, &tiny, &made);
    u64 first = get64(&m, 512);
    for (u64 i = first; i < first + 512; i += 8)
        put64(&m, i, UINT64_MAX);
    for (u64 i = 1; i < 128 * 64; i++)
        put64(&m, 512 + 8 * i, first);
    struct err e = {0};
    u64 length; /* without the judge, who would read each of these blocks */
    CHECK(grow_run(&m.blk, 3 << 20, &length, &e) && m.reads < READS_MAX);
    CHECK_ERR(&e, ERR_INCONSISTENT);
    blk_mem_free(&m);
}

static void huge_files(void)
{
    static const u64 lengths[] = {1ull << 40, 1ull << 50, 1ull << 55,      (1ull << 56) - 4096,
                                  1ull << 56, 1ull << 60, INT64_MAX - 4095};
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct blk_mem m;
        struct made made;
        test_note("a file of %llu bytes", (unsigned long long)lengths[i]);
        qcow2_make(&m, &shape, &made);
        m.length = m.blk.size = lengths[i];
        enum err_code c = attack(&m, 3ull << 30);
        CHECK(lengths[i] < 1ull << 56 || c == ERR_REFCOUNT_EXHAUSTED);
        blk_mem_free(&m);
    }
}

static void mutate(struct blk_mem *m, const struct made *made, u64 cs, u64 *seed)
{
    u64 places[] = {rnd_below(seed, 112),
                    made->rt_offset + 8 * rnd_below(seed, 12),
                    (get64(m, made->rt_offset) & ~511ull) + 8 * rnd_below(seed, cs / 8),
                    made->l1_offset + 8 * rnd_below(seed, made->l1_size + 1),
                    made->last_l2 + 8 * rnd_below(seed, cs / 8),
                    get64(m, 64) + rnd_below(seed, 60),
                    made->l1_offset + 8 * (made->l1_size - 1)};
    u64 offs[] = {0,
                  cs,
                  2 * cs,
                  3 * cs,
                  made->l1_offset,
                  made->last_l2,
                  made->last_data,
                  made->length,
                  made->length - made->length % cs,
                  1ull << 40,
                  1ull << 55,
                  1ull << 56,
                  UINT64_MAX,
                  1,
                  1ull << 62,
                  1ull << 63,
                  3ull << 62};
    for (u64 n = 1 + rnd_below(seed, 3); n; n--) {
        u64 at = places[rnd_below(seed, 7)], v = get64(m, at);
        switch (rnd_below(seed, 4)) {
        case 0:
            v ^= 1ull << rnd_below(seed, 64);
            break;
        case 1:
            v = offs[rnd_below(seed, 17)];
            break;
        case 2:
            v = offs[rnd_below(seed, 17)] | 1ull << 63;
            break;
        default:
            v = rnd(seed) >> rnd_below(seed, 64);
            break;
        }
        put64(m, at, v);
    }
}

/* INSTAR_HOSTILE sets another number. */
static void by_chance(void)
{
    u64 seed = test_seed(0x1f83d9abfb41bd6b);
    const char *text = getenv("INSTAR_HOSTILE");
    memset(&tally, 0, sizeof(tally));
    for (int i = 0; i < (text ? atoi(text) : 4000); i++) {
        struct make p = shape;
        struct blk_mem m, bad;
        struct made made;
        static const u32 bits[] = {9, 12, 14, 16};
        p.cluster_bits = bits[rnd_below(&seed, 4)];
        p.refcount_order = 2 + (u32)rnd_below(&seed, 5);
        p.ext_l2 = p.cluster_bits >= 14 && rnd_below(&seed, 3) == 0;
        p.size = (1ull << (2 * p.cluster_bits - 3)) * (1 + rnd_below(&seed, 9)) + 512;
        p.snapshots = (u32)rnd_below(&seed, 3);
        p.l1_middle = rnd_below(&seed, 2);
        p.stale = rnd_below(&seed, 2);
        p.first = 3;
        if (rnd_below(&seed, 3) == 0)
            p.last_kind = MAKE_PACKED;
        qcow2_make(&m, &p, &made);
        u64 step[] = {512, 1ull << p.cluster_bits, 1ull << (2 * p.cluster_bits + 3),
                      1ull << (3 * p.cluster_bits - 5)};
        for (int k = 0; k < 4; k++) {
            test_note("image %d, mutation %d", i, k);
            blk_mem_over(&bad, &m);
            mutate(&bad, &made, 1ull << p.cluster_bits, &seed);
            attack(&bad, p.size + step[rnd_below(&seed, 4)]);
            blk_mem_free(&bad);
        }
        i += 3;
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u grown (%u of them sound), %u refused\n", tally.grown, tally.sound, tally.refused);
    CHECK(tally.grown > 100 && tally.sound > 50 && tally.refused > 100);
}

int main(void)
{
    RUN(known_classes);
    RUN(last_cluster_elsewhere);
    RUN(counted_past_the_end);
    RUN(huge_files);
    RUN(by_chance);
    return test_end();
}
