/* SPDX-License-Identifier: MIT
 *
 * qcow2_grow_query(): each action at clusters of 4 KiB, 64 KiB and 1 MiB, what is allocated and
 * which refcount blocks count it, against a slow and obvious model; the limits.
 */
#include "grow.h"
#include "test.h"

static u8 none[QCOW2_ALLOC_BLOCKS / 8], all[QCOW2_ALLOC_BLOCKS / 8], one[QCOW2_ALLOC_BLOCKS / 8];

static struct qcow2_grow_in scalars(u32 cluster_bits, u32 order, u64 size, u64 new_size)
{
    struct qcow2_grow_in in = {.alloc = {.cluster_bits = cluster_bits,
                                         .refcount_order = order,
                                         .refcount_table_clusters = 1,
                                         .exists = all},
                               .l2_bits = cluster_bits - 3,
                               .new_size = new_size};
    u64 reach = 1ull << (cluster_bits + in.l2_bits);
    in.l1_size = (u32)div_up(size, reach);
    in.alloc.first_free = 10;
    memset(all, 0xff, sizeof(all));
    memset(one, 0, sizeof(one));
    one[0] = 1;
    return in;
}

/* What must hold of every answer. */
static void check_answer(const struct qcow2_grow_in *in, const struct qcow2_grow *g)
{
    u64 cluster = 1ull << in->alloc.cluster_bits;
    u64 block = 1ull << (in->alloc.cluster_bits + 3 - in->alloc.refcount_order);
    u64 need = div_up(in->new_size, 1ull << (in->alloc.cluster_bits + in->l2_bits));
    CHECK_EQ_U64(g->l1_size, max_u64(need, in->l1_size));
    if (g->action < QCOW2_L1_GROW && !in->extra) {
        CHECK(!g->alloc.refblocks.cnt && !g->alloc.reftable.cnt && !g->alloc.payload.cnt);
        CHECK(!g->l1_clusters);
        return;
    }
    bool moves =
        need > in->l1_size && (!in->l1_size || need * 8 > round_up(in->l1_size * 8ull, cluster));
    CHECK_EQ_U64(g->l1_clusters, moves ? div_up(need * 8, cluster) : 0);
    CHECK_EQ_U64(g->alloc.payload.cnt, g->l1_clusters + in->extra);
    /* one run, from the first free cluster on */
    CHECK_EQ_U64(g->alloc.refblocks.first, in->alloc.first_free);
    CHECK_EQ_U64(g->alloc.reftable.first, g->alloc.refblocks.first + g->alloc.refblocks.cnt);
    CHECK_EQ_U64(g->alloc.payload.first, g->alloc.reftable.first + g->alloc.reftable.cnt);
    CHECK_EQ_U64(g->alloc.end, g->alloc.payload.first + g->alloc.payload.cnt);
    /* exactly the blocks that are missing are made, and all that is new is counted */
    CHECK_EQ_U64(g->alloc.block_first, in->alloc.first_free / block);
    CHECK_EQ_U64(g->alloc.blocks, (g->alloc.end - 1) / block - g->alloc.block_first + 1);
    u64 missing = 0;
    for (u64 i = 0; i < g->alloc.blocks; i++)
        missing += i >= QCOW2_ALLOC_BLOCKS || !(in->alloc.exists[i / 8] >> i % 8 & 1);
    CHECK_EQ_U64(g->alloc.refblocks.cnt, missing);
    u64 entries = in->alloc.refcount_table_clusters * cluster / 8;
    bool outgrown = g->alloc.block_first + g->alloc.blocks > entries;
    CHECK((g->alloc.reftable.cnt != 0) == outgrown);
    CHECK(!outgrown ||
          g->alloc.reftable.cnt * cluster / 8 >= g->alloc.block_first + g->alloc.blocks);
    CHECK_EQ_U64(g->action, outgrown                   ? QCOW2_L1_AND_REFCOUNT_GROW
                            : missing                  ? QCOW2_L1_AND_REFBLOCK
                            : moves                    ? QCOW2_L1_GROW
                            : g->l1_size > in->l1_size ? QCOW2_L1_IN_PLACE
                                                       : QCOW2_HEADER_ONLY);
}

static struct qcow2_grow ask(const struct qcow2_grow_in *in, enum qcow2_grow_action want)
{
    struct qcow2_grow g = {0};
    struct err e = {0};
    CHECK_EQ_U64((u64)qcow2_grow_query(in, &g, &e), 0);
    CHECK_STR(grow_names[g.action], grow_names[want]);
    check_answer(in, &g);
    return g;
}

static void each_action_at(u32 bits)
{
    u64 cluster = 1ull << bits, reach = cluster * cluster / 8, l1_cluster = reach * cluster / 8;
    u64 block = cluster * 8 / 16, table = cluster / 8;
    test_note("cluster_bits %u", bits);

    struct qcow2_grow_in in = scalars(bits, 4, reach / 2, reach);
    ask(&in, QCOW2_HEADER_ONLY);
    in = scalars(bits, 4, reach, l1_cluster);
    ask(&in, QCOW2_L1_IN_PLACE);
    in = scalars(bits, 4, l1_cluster, l1_cluster + 512);
    struct qcow2_grow g = ask(&in, QCOW2_L1_GROW);
    CHECK(g.l1_clusters == 2 && g.alloc.end == 12 && g.alloc.blocks == 1 &&
          g.alloc.block_first == 0);
    in = scalars(bits, 4, 0, 512); /* no L1 yet */
    g = ask(&in, QCOW2_L1_GROW);
    CHECK(g.l1_clusters == 1 && g.l1_size == 1);

    in = scalars(bits, 4, l1_cluster, l1_cluster + 512);
    in.alloc.first_free = block - 1;
    in.alloc.exists = one;
    g = ask(&in, QCOW2_L1_AND_REFBLOCK);
    CHECK(g.alloc.refblocks.cnt == 1 && g.alloc.blocks == 2 && g.alloc.end == block + 2);
    in.alloc.first_free = block; /* the old block is full: the new one counts itself */
    in.alloc.exists = none;
    g = ask(&in, QCOW2_L1_AND_REFBLOCK);
    CHECK(g.alloc.refblocks.cnt == 1 && g.alloc.blocks == 1 && g.alloc.block_first == 1);
    in.alloc.first_free = block - 2; /* it just fits */
    in.alloc.exists = one;
    ask(&in, QCOW2_L1_GROW);
    in.alloc.first_free = block - 3; /* a hole further on does not matter */
    ask(&in, QCOW2_L1_GROW);

    in.alloc.refcount_order = 6; /* wide counts, or 1 MiB clusters would pass 2^56 bytes */
    block = cluster / 8;
    in.alloc.first_free = block * table - 1;
    in.alloc.exists = one;
    g = ask(&in, QCOW2_L1_AND_REFCOUNT_GROW);
    CHECK(g.alloc.reftable.cnt == 2 && g.alloc.refblocks.cnt == 1 && g.l1_clusters == 2);
    in.alloc.first_free = block * table * 3 + 5; /* a table that is much too short */
    in.alloc.exists = none;
    g = ask(&in, QCOW2_L1_AND_REFCOUNT_GROW);
    CHECK(g.alloc.reftable.cnt == 4);
}

static void actions_at_three_cluster_sizes(void)
{
    each_action_at(12);
    each_action_at(16);
    each_action_at(20);
}

/* "HEADER_ONLY needs none; at most 4 blocks at 1 TiB / 64 KiB; never more than 16." */
static void few_blocks(void)
{
    struct qcow2_grow_in in = scalars(16, 4, 1ull << 40, 2ull << 40);
    for (u64 first = 1; first < 1 << 20; first = first * 3 + 1) {
        struct qcow2_grow g = {0};
        struct err e = {0};
        in.alloc.first_free = first;
        in.l1_size = 1;
        in.new_size = 1ull << 50;
        in.alloc.exists = none;
        CHECK(!qcow2_grow_query(&in, &g, &e) && g.alloc.blocks <= 2);
        in.new_size = 2ull << 40;
        CHECK(!qcow2_grow_query(&in, &g, &e) && g.alloc.blocks <= 4);
        check_answer(&in, &g);
    }
    u64 most = 0;
    for (u32 bits = 12; bits <= 21; bits++) {
        u64 l1_bytes = min_u64(32 << 20, 1ull << bits << 6);
        u64 size = l1_bytes / 8 << (2 * bits - 3);
        struct qcow2_grow_in x = scalars(bits, 4, 1, min_u64(size, 1ull << 60));
        struct qcow2_grow g = {0};
        struct err e = {0};
        x.alloc.first_free = 12345;
        x.l1_size = 1;
        x.alloc.exists = none;
        CHECK(!qcow2_grow_query(&x, &g, &e));
        most = max_u64(most, g.alloc.blocks);
    }
    CHECK(most >= 1 && most <= 16);
}

static void limits(void)
{
    struct qcow2_grow g;
    for (u32 bits = 9; bits <= 21; bits++) {
        u64 reach = 1ull << (2 * bits - 3);
        u64 max = reach << 22; /* 32 MiB of L1 */
        struct qcow2_grow_in in = scalars(bits, 4, 1, max);
        struct err e = {0}, f = {0};
        test_note("cluster_bits %u", bits);
        in.alloc.first_free = 1000;
        in.alloc.refcount_table_clusters = (8u << 20) >> bits;
        CHECK_EQ_U64((u64)qcow2_grow_query(&in, &g, &e), 0);
        check_answer(&in, &g);
        CHECK_EQ_U64(g.l1_size, 1 << 22);
        in.new_size = max + 512;
        CHECK(qcow2_grow_query(&in, &g, &f));
        CHECK_ERR(&f, ERR_INVALID_NEW_SIZE);
        CHECK_STR(f.what, "Failed to grow the L1 table: File too large");
    }
    /* the refcount table of 8 MiB is full */
    struct qcow2_grow_in in = scalars(9, 6, 1 << 20, 1 << 26);
    struct err e = {0};
    in.alloc.refcount_table_clusters = (8u << 20) >> 9;
    in.alloc.first_free = (1ull << 20) * 64;
    in.alloc.exists = none;
    CHECK(qcow2_grow_query(&in, &g, &e));
    CHECK_ERR(&e, ERR_REFCOUNT_EXHAUSTED);
    /* the file would pass 2^56 */
    struct qcow2_grow_in far = scalars(21, 4, 1, 1ull << 61);
    struct err f = {0};
    far.alloc.first_free = (1ull << 35) - 1;
    far.l1_size = 1;
    CHECK(qcow2_grow_query(&far, &g, &f));
    CHECK_ERR(&f, ERR_REFCOUNT_EXHAUSTED);
}

/* Whatever the scalars: an answer that is right, or a refusal; and it ends. */
static void random_scalars(void)
{
    u64 seed = test_seed(0xbb67ae8584caa73b);
    unsigned refused = 0, seen[5] = {0};
    static u8 bits[QCOW2_ALLOC_BLOCKS / 8];
    for (int i = 0; i < 20000; i++) {
        u32 cb = (u32)(9 + rnd_below(&seed, 13));
        bool ext = cb >= 14 && rnd_below(&seed, 3) == 0;
        struct qcow2_grow_in in = {
            .alloc = {.cluster_bits = cb,
                      .refcount_order = (u32)rnd_below(&seed, 7),
                      .refcount_table_clusters = 1 + (u32)rnd_below(&seed, (8u << 20) >> cb),
                      .exists = bits},
            .l2_bits = cb - (ext ? 4 : 3),
            .l1_size = (u32)rnd_below(&seed, 1ull << rnd_below(&seed, 23)),
            .extra = rnd_below(&seed, 3) ? 0 : rnd_below(&seed, 3),
        };
        if (rnd_below(&seed, 2))
            in.alloc.refcount_table_clusters = 1;
        u32 reach_bits = in.alloc.cluster_bits + in.l2_bits;
        in.new_size =
            min_u64((rnd(&seed) >> rnd_below(&seed, 64)) & ~511ull, QCOW2_MAX_DISK_SIZE) | 512;
        in.new_size = max_u64(in.new_size, min_u64((u64)in.l1_size << reach_bits, 1ull << 62));
        in.alloc.first_free = 1 + rnd_below(&seed, 1ull << rnd_below(&seed, 57 - cb));
        memset(bits, rnd_below(&seed, 2) ? 0xff : 0, sizeof(bits));
        for (int k = 0; k < 20; k++)
            bits[rnd_below(&seed, 8)] ^= (u8)(1 << rnd_below(&seed, 8));
        struct qcow2_grow g = {0};
        struct err e = {0};
        test_note("scalars %d", i);
        if (qcow2_grow_query(&in, &g, &e)) {
            refused++;
            CHECK(e.what && (e.code == ERR_INVALID_NEW_SIZE || e.code == ERR_REFCOUNT_EXHAUSTED));
            continue;
        }
        seen[g.action]++;
        check_answer(&in, &g);
    }
    test_note("%s", "");
    printf("  %u %u %u %u %u by action, %u refused\n", seen[0], seen[1], seen[2], seen[3], seen[4],
           refused);
    for (int a = 0; a < 5; a++)
        CHECK(seen[a] > 20);
}

int main(void)
{
    RUN(actions_at_three_cluster_sizes);
    RUN(few_blocks);
    RUN(limits);
    RUN(random_scalars);
    return test_end();
}
