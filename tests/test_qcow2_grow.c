/* SPDX-License-Identifier: MIT
 *
 * The qcow2 grow planner over memory disks: every action by hand-made shapes, then a seeded matrix
 * over cluster size, refcount width, version, extended L2, layout, content and sizes. After each:
 * the old content is there, the new area reads zero, the judge finds no leak and no corruption,
 * nothing of the header changed but what must. Refused: the file is as it was.
 */
#include "grow.h"
#include "test.h"

#include <unistd.h>

/* Bytes of the header that a grow must leave alone: all but size, l1_size and l1_table_offset, the
 * refcount table's fields, and autoclear bits. */
static void check_header(const struct blk_mem *a, const struct blk_mem *b, u32 cluster_bits)
{
    u32 cs = 1u << cluster_bits;
    u8 *x = malloc(cs), *y = malloc(cs);
    blk_mem_get(a, 0, x, cs);
    blk_mem_get(b, 0, y, cs);
    CHECK(!memcmp(x, y, 24) && !memcmp(x + 32, y + 32, 4) && !memcmp(x + 60, y + 60, 12));
    if (be32(x + 4) == 2) {
        CHECK(!memcmp(x + 72, y + 72, cs - 72));
    } else {
        CHECK(!memcmp(x + 72, y + 72, 16) && !memcmp(x + 96, y + 96, cs - 96));
        CHECK((be64(y + 88) & ~3ull) == 0); /* unknown autoclear bits are gone */
    }
    free(x);
    free(y);
}

/* Clusters that were counted past the old end of the file are stepped over, and show as leaked once
 * the file is longer: at most so many. */
static u64 leaks_allowed(const struct make *p, const struct made *made, u64 length, u32 bits)
{
    u64 n = 0;
    for (u32 i = 0; i < 64; i++)
        n += p->above_eof >> i & 1 && made->clusters + i < div_up(length, 1ull << bits);
    return n;
}

/* What a grow of this image must have kept and done. */
static bool check_grown(const struct blk_mem *before, const struct blk_mem *after,
                        const struct verdict *old, u64 new_size, u32 cluster_bits, u64 leaks)
{
    struct verdict v, prefix;
    u64 failures = test_failures();
    qcow2_judge_mem(before, old->size, 0, 0, &prefix);
    qcow2_judge_mem(after, old->size, old->size, new_size, &v);
    if (!CHECK(v.opens))
        printf("    %s\n", v.why);
    CHECK_EQ_U64(v.size, new_size);
    CHECK_EQ_U64(v.hash, prefix.hash);
    CHECK_EQ_U64(v.snapshot_hash, prefix.snapshot_hash);
    CHECK(v.zero);
    if (!CHECK(!v.corruptions && v.leaks <= leaks))
        printf("    %llu corruptions, %llu leaks; first: %s\n", (unsigned long long)v.corruptions,
               (unsigned long long)v.leaks, v.first);
    check_header(before, after, cluster_bits);
    CHECK(after->length >= before->length);
    return test_failures() == failures;
}

static void each_action(void)
{
    unsigned seen[5] = {0};
    for (unsigned i = 0; i < grow_cases_cnt; i++) {
        const struct grow_case *c = &grow_cases[i];
        struct blk_mem m, now;
        struct made made;
        struct verdict old, new;
        struct err e = {0};
        test_note("case %u, %s", i, c->name);
        qcow2_make(&m, &c->p, &made);
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &old);
        CHECK(old.opens && !old.leaks && !old.corruptions && old.size == c->p.size);
        blk_mem_over(&now, &m);
        grow_mem(&now, c->new_size, &e);
        if (CHECK_ERR(&e, OK)) {
            qcow2_judge_mem(&now, UINT64_MAX, 0, 0, &new);
            CHECK_STR(grow_names[grow_action(&old, &new)], grow_names[c->action]);
            u32 bits = c->p.cluster_bits ? c->p.cluster_bits : 16;
            if (c->p.above_eof) /* stepped over, each of them */
                CHECK_EQ_U64(new.leaks, leaks_allowed(&c->p, &made, now.length, bits));
            check_grown(&m, &now, &old, c->new_size, bits,
                        leaks_allowed(&c->p, &made, now.length, bits));
            seen[c->action]++;
            /* once more: what the planner leaves behind, it can grow again */
            struct blk_mem again;
            struct err e2 = {0};
            u64 more = c->new_size + (700ull << bits);
            blk_mem_over(&again, &now);
            grow_mem(&again, more, &e2);
            if (CHECK_ERR(&e2, OK))
                check_grown(&now, &again, &new, more, bits,
                            leaks_allowed(&c->p, &made, again.length, bits));
            blk_mem_free(&again);
        }
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    for (int a = 0; a < 5; a++)
        if (!CHECK(seen[a] >= 2))
            printf("    %s\n", grow_names[a]);
}

/* A random shape that holds little data, and a size to grow it to. */
static struct make random_shape(u64 *seed, u64 *new_size)
{
    static const u32 all_kinds[] = {0, MAKE_DATA, MAKE_DATA | MAKE_ZERO | MAKE_PREZERO,
                                    MAKE_DATA | MAKE_PACKED, 31};
    struct make p = {.cluster_bits = (u32)(9 + rnd_below(seed, 13)),
                     .version = rnd_below(seed, 5) ? 3 : 2};
    p.refcount_order = p.version == 2 ? 4 : (u32)rnd_below(seed, 7);
    p.ext_l2 = p.version == 3 && p.cluster_bits >= 14 && rnd_below(seed, 3) == 0;
    p.seed = rnd(seed);
    u64 cs = 1ull << p.cluster_bits, reach = cs * cs / (p.ext_l2 ? 16 : 8);
    /* sizes around an L1 entry, around a cluster of L1 table, and anywhere */
    u64 unit[] = {cs, reach, reach * cs / 8, 512};
    u64 limit = min_u64(reach << 22, 1ull << 50);
    p.size = min_u64(unit[rnd_below(seed, 4)] * rnd_below(seed, 40) +
                         512 * (rnd_below(seed, 2) ? rnd_below(seed, 3000) : 0),
                     limit / 2);
    *new_size = p.size + 512 +
                round_down(rnd_below(seed, min_u64(unit[rnd_below(seed, 4)] * 70, limit / 2)), 512);
    p.header_length = p.version == 3 && rnd_below(seed, 2) ? 104 + 8 * (u32)rnd_below(seed, 4) : 0;
    p.header_fill = 0x77;
    p.unknown_ext = rnd_below(seed, 2);
    p.autoclear = rnd_below(seed, 4) ? 0 : 0xf0f0f00;
    p.compatible = rnd_below(seed, 4) ? 0 : 0xff00;
    p.kinds = all_kinds[rnd_below(seed, 5)];
    p.snapshots = p.version == 3 && p.refcount_order >= 2 && rnd_below(seed, 4) == 0
                      ? 1 + (u32)rnd_below(seed, 2)
                      : 0;
    p.first = (u32)rnd_below(seed, 20);
    p.spread = (u32)rnd_below(seed, 8);
    p.last = rnd_below(seed, 2);
    p.last_kind = p.last && rnd_below(seed, 4) == 0 ? MAKE_PACKED : MAKE_DATA;
    p.stale = p.last && rnd_below(seed, 2);
    p.l1_middle = rnd_below(seed, 2);
    p.l1_extra = rnd_below(seed, 4) ? 0 : (u32)rnd_below(seed, 5);
    p.above_eof = rnd_below(seed, 4) ? 0 : rnd(seed) & rnd(seed);
    p.pad_clusters = rnd_below(seed, 5) ? 0 : (u32)rnd_below(seed, 9);
    p.end = (int)rnd_below(seed, 3);
    /* near the end of a refcount block, or of a refcount table of one cluster */
    u64 block = cs * 8 >> p.refcount_order, ends = block * (1 + rnd_below(seed, 3));
    u64 l1 = div_up((div_up(p.size, reach) + p.l1_extra) * 8, cs) * (1 + p.snapshots);
    u64 where = rnd_below(seed, 4);
    if (where == 1 && cs <= 4096) {
        p.rt_clusters = 1;
        ends = block * (cs / 8);
    }
    if (where < 2 && (cs <= 4096 || where == 0) && l1 + 300 < ends) {
        p.end_cluster = ends - l1 - 2 - rnd_below(seed, 6);
        u64 full = reach * (round_up(div_up(p.size, reach) + p.l1_extra, cs / 8) + 1);
        *new_size = max_u64(*new_size, full + reach * rnd_below(seed, cs / 4));
    }
    return p;
}

static void describe(const struct make *p, u64 new_size, int i)
{
    test_note("grow %d: v%u cluster_bits %u order %u ext %d size %llu -> %llu first %u spread %u "
              "kinds %u last %d stale %d snap %u mid %d extra %u end %d end_cluster %llu rt %u "
              "pad %u above 0x%llx hl %u",
              i, p->version, p->cluster_bits, p->refcount_order, p->ext_l2,
              (unsigned long long)p->size, (unsigned long long)new_size, p->first, p->spread,
              p->kinds, p->last, p->stale, p->snapshots, p->l1_middle, p->l1_extra, p->end,
              (unsigned long long)p->end_cluster, p->rt_clusters, p->pad_clusters,
              (unsigned long long)p->above_eof, p->header_length);
}

/* INSTAR_GROWS sets another number. */
static void matrix(void)
{
    u64 seed = test_seed(0x6a09e667f3bcc908);
    const char *n = getenv("INSTAR_GROWS");
    unsigned seen[5] = {0}, refused = 0, done = 0, qemu = 0;
    for (int i = 0; i < (n ? atoi(n) : 700); i++) {
        struct blk_mem m, now;
        struct made made;
        struct verdict old, new;
        struct err e = {0};
        u64 new_size, at;
        struct make p = random_shape(&seed, &new_size);
        describe(&p, new_size, i);
        u64 reach = (1ull << 2 * p.cluster_bits) / (p.ext_l2 ? 16 : 8);
        if (div_up(p.size, reach) > 60000)
            continue; /* such L1 tables are for large_images() */
        qcow2_make(&m, &p, &made);
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &old);
        if (!CHECK(old.opens && !old.leaks && !old.corruptions))
            printf("    the maker: %s %s\n", old.why, old.first);
        blk_mem_over(&now, &m);
        grow_mem(&now, new_size, &e);
        if (e.code == OK) {
            qcow2_judge_mem(&now, UINT64_MAX, 0, 0, &new);
            seen[grow_action(&old, &new)]++;
            u64 leaks = leaks_allowed(&p, &made, now.length, p.cluster_bits);
            check_grown(&m, &now, &old, new_size, p.cluster_bits, leaks);
            done++;
            if (i % 20 == 0 && !leaks) { /* qemu-img's word on some */
                const char *path = test_path("grown.qcow2");
                if (blk_mem_save(&now, path)) {
                    CHECK_EQ_U64((u64)test_system("qemu-img check -f qcow2 %s", path), 0);
                    qemu++;
                }
                unlink(path);
            }
        } else {
            refused++; /* only the limit of the L1 table is a reason */
            CHECK_ERR(&e, ERR_INVALID_NEW_SIZE);
            CHECK(blk_mem_equal(&m, &now, &at));
        }
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u grown (%u %u %u %u %u by action, %u seen by qemu-img), %u refused\n", done,
           seen[0], seen[1], seen[2], seen[3], seen[4], qemu, refused);
    for (int a = 0; a < 5; a++)
        if (!CHECK(seen[a] >= 5))
            printf("    %s\n", grow_names[a]);
    CHECK(refused < done / 5);
}

/* 500 GiB, 130 GiB and the like: sparse in memory, nothing read but what is needed. */
static void qcow2_grow_large(void)
{
    /* clang-format off */
    static const struct {
        u64 size, new_size;
        u32 bits;
    } big[] = {
        { 500ull << 30, 1ull << 40, 16 }, { 130ull << 30, 131ull << 30, 16 },
        { 127ull << 30, 130ull << 30, 16 }, { 1ull << 40, 2ull << 40, 16 },
        { 200ull << 30, 512ull << 30, 16 }, { 1ull << 40, 2ull << 40, 12 },
        { 1ull << 40, 1ull << 50, 16 },   { 1ull << 50, 2ull << 50, 16 },
        { 1ull << 60, 1ull << 61, 21 },   { 64ull << 30, 128ull << 30, 9 },
    };
    /* clang-format on */
    for (unsigned i = 0; i < sizeof(big) / sizeof(big[0]); i++) {
        struct make p = {.size = big[i].size,
                         .cluster_bits = big[i].bits,
                         .refcount_order = 4,
                         .first = 3,
                         .last = true,
                         .seed = i};
        struct blk_mem m, now;
        struct made made;
        struct verdict old;
        struct err e = {0};
        test_note("%llu -> %llu", (unsigned long long)big[i].size,
                  (unsigned long long)big[i].new_size);
        qcow2_make(&m, &p, &made);
        qcow2_judge_mem(&m, UINT64_MAX, 0, 0, &old);
        blk_mem_over(&now, &m);
        grow_mem(&now, big[i].new_size, &e);
        if (CHECK_ERR(&e, OK))
            check_grown(&m, &now, &old, big[i].new_size, big[i].bits, 0);
        /* an L1 table that moves is looked at by each pass, and copied; beyond that, a few windows */
        u64 l1_bytes = made.l1_size * 8;
        CHECK(now.bytes_read < 3 * l1_bytes + (1 << 20));
        if (big[i].size == 1ull << 40 && big[i].new_size == 2ull << 40 && big[i].bits == 16)
            CHECK(now.bytes_read < 1 << 20);
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
}

/* Refused, with the code and the words, and not a byte of the file changed. */
static void refusals(void)
{
    /* clang-format off */
    static const struct {
        struct make p;
        u64 new_size;
        enum err_code code;
        const char *what;
    } bad[] = {
        { { .size = 1 << 20, .backing = "base.img", .backing_format = "raw" }, 2 << 20,
          OK /* any: it is not attached */, NULL },
        { { .size = 1 << 20, .incompatible = 2 }, 2 << 20, ERR_OVERLAY_CORRUPT,
          "qcow2: Image is corrupt; cannot be opened read/write" },
        { { .size = 1 << 20, .incompatible = 1 << 9 }, 2 << 20, ERR_UNSUPPORTED_FEATURE,
          "Unknown incompatible feature: {val:x}" },
        { { .size = 1 << 20, .version = 2, .refcount_order = 4, .snapshots = 1 }, 2 << 20,
          ERR_UNSUPPORTED_FEATURE, "Can't resize a v2 image which has snapshots" },
        { { .size = 1 << 20 }, (1 << 20) + 1, ERR_INVALID_NEW_SIZE,
          "The new size must be a multiple of 512" },
        { { .size = 1 << 20, .cluster_bits = 9 }, (128ull << 30) + 512, ERR_INVALID_NEW_SIZE,
          "Failed to grow the L1 table: File too large" },
        { { .size = 1 << 20, .cluster_bits = 16 }, (2ull << 50) + 512, ERR_INVALID_NEW_SIZE,
          "Failed to grow the L1 table: File too large" },
        { { .size = 1 << 20, .incompatible = 4 }, 2 << 20, ERR_EXTERNAL_DATA_FILE, NULL },
    };
    /* clang-format on */
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct blk_mem m, now;
        struct made made;
        struct err e = {0};
        struct make p = bad[i].p;
        u64 at;
        test_note("refusal %u", i);
        p.refcount_order = 4;
        p.first = 5;
        p.autoclear = p.version == 2 ? 0 : 1ull << 55; /* must survive a refusal */
        qcow2_make(&m, &p, &made);
        blk_mem_over(&now, &m);
        CHECK(grow_mem(&now, bad[i].new_size, &e));
        if (bad[i].code)
            CHECK_ERR(&e, bad[i].code);
        if (bad[i].what)
            CHECK_STR(e.what, bad[i].what);
        CHECK(e.what && e.what[0] && blk_mem_equal(&m, &now, &at) && now.writes == 0);
        CHECK_EQ_U64(now.grows, 0);
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
}

/* Entries past the end of the disk must not become visible, in L2 and in L1. */
static void stale_entries_stay_hidden(void)
{
    /* clang-format off */
    static const struct make p[] = {
        { .refcount_order = 4, .size = 3 << 20, .first = 5, .stale_l2 = true },
        { .refcount_order = 4, .size = (3 << 20) + 512, .first = 5, .last = true, .stale = true,
          .stale_l2 = true },
        { .cluster_bits = 14, .ext_l2 = true, .refcount_order = 4, .size = 3 << 20, .first = 5,
          .stale_l2 = true },
        { .version = 2, .cluster_bits = 12, .size = (1 << 20) + 8192, .first = 5,
          .stale_l2 = true },
    };
    /* clang-format on */
    for (unsigned i = 0; i < sizeof(p) / sizeof(p[0]); i++)
        for (int far = 0; far < 2; far++) {
            struct blk_mem m, now;
            struct made made;
            struct verdict old, v;
            struct err e = {0};
            u64 new_size = far ? 900ull << 30 : p[i].size + (64 << 10);
            test_note("shape %u to %llu", i, (unsigned long long)new_size);
            qcow2_make(&m, &p[i], &made);
            qcow2_judge_mem(&m, p[i].size, 0, 0, &old);
            CHECK(old.opens && !old.corruptions && !old.leaks);
            blk_mem_over(&now, &m);
            grow_mem(&now, new_size, &e);
            CHECK_ERR(&e, OK);
            qcow2_judge_mem(&now, p[i].size, p[i].size, new_size, &v);
            CHECK(v.opens && v.size == new_size && v.hash == old.hash && v.zero && !v.corruptions);
            if (!CHECK(v.leaks <= 3)) /* what was hidden is not counted down */
                printf("    %s\n", v.first);
            blk_mem_free(&now);
            blk_mem_free(&m);
        }
}

/* The same for whole L2 tables: the header of an image says that its disk ends far before its L1
 * table does, as after a crash in the middle of a shrink. */
static void stale_tables_stay_hidden(void)
{
    static const u64 new_sizes[] = {450ull << 20, 900ull << 20, 1 << 30, 3ull << 30, 5ull << 40};
    for (unsigned i = 0; i < sizeof(new_sizes) / sizeof(new_sizes[0]); i++)
        for (int snapshot = 0; snapshot < 2; snapshot++) {
            struct make p = {.refcount_order = 4,
                             .size = 1 << 30,
                             .first = 5,
                             .last = true,
                             .snapshots = (u32)snapshot};
            struct blk_mem m, now;
            struct made made;
            struct verdict old, v;
            struct err e = {0};
            u64 size = 400ull << 20;
            u8 b[8];
            test_note("to %llu, snapshots %d", (unsigned long long)new_sizes[i], snapshot);
            qcow2_make(&m, &p, &made);
            CHECK_EQ_U64(made.l1_size, 2);
            put_be64(b, size);
            blk_mem_put(&m, 24, b, 8);
            qcow2_judge_mem(&m, size, 0, 0, &old);
            CHECK(old.opens && !old.corruptions && !old.leaks);
            blk_mem_over(&now, &m);
            grow_mem(&now, new_sizes[i], &e);
            CHECK_ERR(&e, OK);
            qcow2_judge_mem(&now, size, size, new_sizes[i], &v);
            CHECK(v.opens && v.size == new_sizes[i] && v.hash == old.hash && v.zero);
            CHECK(v.snapshot_hash == old.snapshot_hash);
            if (!CHECK(!v.corruptions && v.leaks <= 2)) /* the table and its cluster */
                printf("    %s\n", v.first);
            blk_mem_free(&now);
            blk_mem_free(&m);
        }
}

int main(void)
{
    RUN(each_action);
    RUN(matrix);
    RUN(qcow2_grow_large);
    RUN(refusals);
    RUN(stale_entries_stay_hidden);
    RUN(stale_tables_stay_hidden);
    return test_end();
}
