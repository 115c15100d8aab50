/* SPDX-License-Identifier: MIT
 *
 * Running a grow on the host, and the list of its cases.
 */
#include "grow.h"

#include "test.h"

enum { KINDS = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO | MAKE_PACKED };

const char *const grow_names[] = {"HEADER_ONLY", "L1_IN_PLACE", "L1_GROW", "L1_AND_REFBLOCK",
                                  "L1_AND_REFCOUNT_GROW"};

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    static u64 promised; /* by the first epoch, for all of them */
    (void)h, (void)e;
    assert(n->room);
    promised = epoch ? promised : max_u64(n->length[0], n->eventual);
    CHECK(n->length[0] <= promised);
    return 0;
}

int grow_run(struct blk *b, u64 new_size, u64 *length, struct err *e)
{
    static u8 image_mem[IMAGE_MEM] __attribute__((aligned(4096)));
    static u8 copy_mem[BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
    struct image img;
    struct plan_host h = {.need = need, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct resize_args a = {.new_size = new_size, .work = work, .work_len = sizeof(work)};
    int rc = image_open(&img, b, "qcow2", image_mem, e);
    img.scratch = scratch;
    if (!rc)
        rc = plan_resize(&img, &a, &h, e);
    *length = h.length[0];
    return rc;
}

int grow_mem(struct blk_mem *m, u64 new_size, struct err *e)
{
    u64 length;
    int rc = grow_run(&m->blk, new_size, &length, e);
    if (!rc)
        blk_mem_truncate(m, length);
    return rc;
}

enum qcow2_grow_action grow_action(const struct verdict *before, const struct verdict *after)
{
    if (before->rt_offset != after->rt_offset)
        return QCOW2_L1_AND_REFCOUNT_GROW;
    if (before->blocks != after->blocks)
        return QCOW2_L1_AND_REFBLOCK;
    if (before->l1_offset != after->l1_offset)
        return QCOW2_L1_GROW;
    return before->l1_entries != after->l1_entries ? QCOW2_L1_IN_PLACE : QCOW2_HEADER_ONLY;
}

/* Sizes: an L1 entry maps cluster^2 / 8 bytes (half of that with extended L2): 32 KiB at clusters
 * of 512, 2 MiB at 4 KiB, 512 MiB at 64 KiB; a cluster of L1 table 64 times, 512 times, 8192 times
 * as much. */
/* clang-format off */
const struct grow_case grow_cases[] = {
    { "header only", { .refcount_order = 4, .size = MI(100), .first = 9, .kinds = KINDS }, MI(200),
      QCOW2_HEADER_ONLY },
    { "header only, old bytes in the last cluster",
      { .refcount_order = 4, .size = MI(1) + 512, .first = 3, .last = true, .stale = true },
      MI(100), QCOW2_HEADER_ONLY },
    { "header only within the last cluster",
      { .refcount_order = 4, .size = MI(1) + 512, .last = true, .stale = true }, MI(1) + 1536,
      QCOW2_HEADER_ONLY },
    { "header only, old bytes in an extended last cluster",
      { .refcount_order = 4, .ext_l2 = true, .size = MI(1) + 512, .first = 3, .last = true,
        .last_kind = MAKE_SUB, .stale = true }, MI(100), QCOW2_HEADER_ONLY },
    { "header only, v2", { .version = 2, .refcount_order = 4, .size = MI(3), .first = 9 }, MI(4),
      QCOW2_HEADER_ONLY },
    { "header only, L1 longer than needed, unknown autoclear bits",
      { .refcount_order = 4, .size = MI(3), .first = 9, .l1_extra = 5, .autoclear = 1ull << 44 },
      GI(2), QCOW2_HEADER_ONLY },
    { "in place, file ends in the L1 table", { .refcount_order = 4, .size = GI(20), .first = 5 },
      GI(25), QCOW2_L1_IN_PLACE },
    { "in place, L1 in the middle",
      { .refcount_order = 4, .size = GI(1), .first = 5, .l1_middle = true, .last = true }, TI(1),
      QCOW2_L1_IN_PLACE },
    { "in place, 512", { .cluster_bits = 9, .refcount_order = 1, .size = KI(64) + 512, .first = 99,
        .kinds = KINDS, .last = true, .stale = true }, KI(200), QCOW2_L1_IN_PLACE },
    { "in place, header_length 104, snapshots, extensions",
      { .refcount_order = 4, .size = GI(1), .first = 12, .kinds = KINDS, .snapshots = 2,
        .header_length = 104, .unknown_ext = true, .autoclear = 1ull << 60 }, GI(99),
      QCOW2_L1_IN_PLACE },
    { "L1 moves, 512", { .cluster_bits = 9, .refcount_order = 4, .size = MI(1), .first = 30,
        .kinds = KINDS }, MI(3), QCOW2_L1_GROW },
    { "L1 moves, 512, in the middle", { .cluster_bits = 9, .refcount_order = 0, .size = MI(1),
        .first = 30, .l1_middle = true, .last = true }, MI(8), QCOW2_L1_GROW },
    { "L1 moves, 4 KiB", { .cluster_bits = 12, .refcount_order = 2, .size = GI(1), .first = 70,
        .kinds = KINDS, .spread = 9 }, GI(3), QCOW2_L1_GROW },
    { "L1 moves, 4 KiB, v2", { .version = 2, .cluster_bits = 12, .size = GI(1), .first = 70 },
      GI(3), QCOW2_L1_GROW },
    { "L1 moves, 64 KiB, snapshots", { .refcount_order = 5, .size = TI(1), .first = 9,
        .snapshots = 1 }, TI(9), QCOW2_L1_GROW },
    { "L1 moves from size 0", { .refcount_order = 4, .size = 0 }, MI(10), QCOW2_L1_GROW },
    { "L1 moves, extended L2", { .cluster_bits = 14, .refcount_order = 3, .ext_l2 = true,
        .size = GI(33), .first = 9, .kinds = KINDS | MAKE_SUB }, GI(99), QCOW2_L1_GROW },
    { "L1 moves over clusters counted past the end", { .cluster_bits = 12, .refcount_order = 4,
        .size = GI(1), .first = 5, .above_eof = 0x16b, .autoclear = 1ull << 9 }, GI(3),
      QCOW2_L1_GROW },
    { "L1 moves behind padding", { .cluster_bits = 12, .refcount_order = 4, .size = GI(1),
        .first = 5, .pad_clusters = 3 }, GI(3), QCOW2_L1_GROW },
    { "L1 moves, last cluster with old bytes", { .cluster_bits = 9, .refcount_order = 4,
        .size = MI(2) + KI(1), .first = 3, .unknown_ext = true, .last = true,
        .stale = true }, MI(5), QCOW2_L1_GROW },
    { "refcount block, 512", { .cluster_bits = 9, .refcount_order = 4, .size = MI(2), .first = 9,
        .end_cluster = 2 * 256 - 2 }, MI(6), QCOW2_L1_AND_REFBLOCK },
    { "refcount block, 4 KiB, the old one full", { .cluster_bits = 12, .refcount_order = 4,
        .size = GI(1), .first = 9, .end_cluster = 2047 }, GI(3), QCOW2_L1_AND_REFBLOCK },
    { "refcount block, 4 KiB, the old one nearly full", { .cluster_bits = 12, .refcount_order = 4,
        .size = GI(1), .first = 9, .end_cluster = 2046, .kinds = KINDS }, GI(3),
      QCOW2_L1_AND_REFBLOCK },
    { "refcount block, 64 KiB, holes in the table", { .refcount_order = 4, .size = TI(4),
        .first = 9, .end_cluster = 32768ull * 5 - 3, .kinds = KINDS }, TI(9),
      QCOW2_L1_AND_REFBLOCK },
    { "refcount block, 1-bit counts", { .cluster_bits = 9, .refcount_order = 0, .size = MI(2),
        .first = 9, .end_cluster = 4096 * 2 - 2 }, MI(6), QCOW2_L1_AND_REFBLOCK },
    { "refcount block, 64-bit counts", { .cluster_bits = 12, .refcount_order = 6, .size = GI(1),
        .first = 9, .end_cluster = 511 }, GI(3), QCOW2_L1_AND_REFBLOCK },
    { "refcount block behind padding", { .cluster_bits = 12, .refcount_order = 4, .size = GI(1),
        .first = 5, .pad_clusters = 5000 }, GI(3), QCOW2_L1_AND_REFBLOCK },
    { "refcount blocks, several", { .cluster_bits = 9, .refcount_order = 6, .size = MI(2),
        .first = 9 }, MI(200), QCOW2_L1_AND_REFBLOCK },
    { "refcount table, 512", { .cluster_bits = 9, .refcount_order = 4, .size = MI(2), .first = 9,
        .rt_clusters = 1, .end_cluster = 64 * 256 - 2 }, MI(9), QCOW2_L1_AND_REFCOUNT_GROW },
    { "refcount table, 512, 1-bit counts, snapshotless", { .cluster_bits = 9, .refcount_order = 0,
        .size = MI(2) + 512, .first = 9, .rt_clusters = 1, .last = true,
        .end_cluster = 64 * 4096 - 3 }, MI(9), QCOW2_L1_AND_REFCOUNT_GROW },
    { "refcount table, 4 KiB, 64-bit counts", { .cluster_bits = 12, .refcount_order = 6,
        .size = GI(1), .first = 9, .rt_clusters = 1, .end_cluster = 512 * 512 - 2 }, GI(3),
      QCOW2_L1_AND_REFCOUNT_GROW },
    { "refcount table, 512, snapshots", { .cluster_bits = 9, .refcount_order = 3, .size = KI(500),
        .first = 9, .snapshots = 1, .rt_clusters = 1, .end_cluster = 64 * 512 - 3 }, MI(4),
      QCOW2_L1_AND_REFCOUNT_GROW },
    { "shared last cluster", { .refcount_order = 4, .size = MI(1) + 512, .first = 3, .last = true,
        .stale = true, .snapshots = 1 }, MI(100), QCOW2_HEADER_ONLY },
    { "shared last cluster, extended L2", { .refcount_order = 4, .ext_l2 = true,
        .size = MI(1) + KI(5), .first = 3, .last = true, .stale = true, .snapshots = 2 }, MI(100),
      QCOW2_HEADER_ONLY },
    { "shared last cluster, in place", { .refcount_order = 4, .size = GI(1) + 512, .first = 3,
        .last = true, .stale = true, .snapshots = 1, .l1_middle = true }, GI(7),
      QCOW2_L1_IN_PLACE },
    { "shared last cluster, L1 moves", { .cluster_bits = 12, .refcount_order = 1, .first = 3,
        .size = GI(1) + 512, .last = true, .stale = true, .snapshots = 1 }, GI(3), QCOW2_L1_GROW },
    { "shared last cluster, refcount block", { .cluster_bits = 12, .refcount_order = 4, .first = 9,
        .size = MI(3) + 512, .last = true, .stale = true, .snapshots = 1, .end_cluster = 2048 - 3 },
      MI(5), QCOW2_L1_AND_REFBLOCK },
    { "shared last cluster, refcount table", { .cluster_bits = 12, .refcount_order = 6,
        .size = MI(3) + 512, .first = 9, .snapshots = 1, .rt_clusters = 1, .last = true,
        .stale = true, .end_cluster = 512 * 512 - 3 }, MI(5), QCOW2_L1_AND_REFCOUNT_GROW },
    { "shared last cluster, refcount table, L1 moves", { .cluster_bits = 12, .refcount_order = 6,
        .size = GI(1) + KI(3), .first = 9, .snapshots = 1, .rt_clusters = 1, .last = true,
        .stale = true, .end_cluster = 512 * 512 - 5 }, GI(3), QCOW2_L1_AND_REFCOUNT_GROW },
    { "compressed last cluster", { .refcount_order = 4, .size = MI(1) + 512, .first = 3,
        .kinds = KINDS, .last = true, .last_kind = MAKE_PACKED }, MI(100), QCOW2_HEADER_ONLY },
    { "compressed last cluster, shared, L1 moves", { .cluster_bits = 12, .refcount_order = 4,
        .size = GI(1) + KI(2), .first = 9, .kinds = MAKE_PACKED, .last = true, .snapshots = 2,
        .last_kind = MAKE_PACKED }, GI(3), QCOW2_L1_GROW },
    { "compressed last cluster, extended L2", { .cluster_bits = 14, .refcount_order = 4,
        .ext_l2 = true, .size = MI(1) + KI(3), .first = 9, .kinds = MAKE_PACKED, .last = true,
        .last_kind = MAKE_PACKED }, MI(9), QCOW2_HEADER_ONLY },
};
/* clang-format on */
const unsigned grow_cases_cnt = sizeof(grow_cases) / sizeof(grow_cases[0]);
