/* SPDX-License-Identifier: MIT
 *
 * Growing qcow2 images whose new area is mapped first: preallocation, and overlays whose backing
 * file is longer than they are. Content, zeros and counts are judged after every run; the crash
 * recorder and the fault sweep go over a few.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "copy.h"
#include "grow.h"
#include "test.h"

enum { KINDS = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO | MAKE_PACKED };

struct fill_case {
    const char *name;
    struct make p;
    u64 new_size;
    enum preallocation how;
    u64 backing; /* bytes of a raw backing file, all 0x5a; 0: none */
};

/* clang-format off */
static const struct fill_case cases[] = {
    { "metadata", { .refcount_order = 4, .size = MI(1), .first = 9, .kinds = KINDS }, MI(4),
      PREALLOC_METADATA, 0 },
    { "metadata, last cluster a hole", { .cluster_bits = 9, .refcount_order = 4,
        .size = KI(20) + 512, .first = 9 }, KI(99), PREALLOC_METADATA, 0 },
    { "metadata, last cluster with old bytes", { .cluster_bits = 12, .refcount_order = 4,
        .size = MI(1) + 512, .first = 9, .last = true, .stale = true }, MI(3), PREALLOC_METADATA,
      0 },
    { "metadata, snapshots", { .cluster_bits = 12, .refcount_order = 4, .size = MI(1) + 512,
        .first = 9, .last = true, .stale = true, .snapshots = 2 }, MI(3), PREALLOC_METADATA, 0 },
    { "metadata, refcount table grows", { .cluster_bits = 9, .refcount_order = 6, .size = KI(99),
        .first = 9, .rt_clusters = 1, .end_cluster = 64 * 64 - 40 }, KI(300), PREALLOC_METADATA,
      0 },
    { "metadata, extended L2", { .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true,
        .size = MI(1), .first = 9, .kinds = KINDS | MAKE_SUB }, MI(3), PREALLOC_METADATA, 0 },
    { "falloc", { .cluster_bits = 12, .refcount_order = 4, .size = MI(1), .first = 9 }, MI(3),
      PREALLOC_FALLOC, 0 },
    { "full, 1-bit counts", { .cluster_bits = 9, .refcount_order = 0, .size = KI(99),
        .first = 9 }, KI(200), PREALLOC_FULL, 0 },
    { "full, v2", { .version = 2, .refcount_order = 4, .size = MI(1), .first = 9 }, MI(4),
      PREALLOC_FULL, 0 },
    { "overlay", { .refcount_order = 4, .size = MI(1), .first = 3, .backing = "b",
        .backing_format = "raw" }, MI(9), PREALLOC_OFF, MI(4) },
    { "overlay, last cluster a hole", { .cluster_bits = 12, .refcount_order = 4,
        .size = KI(253) + 512, .first = 3, .backing = "b", .backing_format = "raw" }, MI(9),
      PREALLOC_OFF, KI(384) },
    { "overlay, last cluster allocated", { .cluster_bits = 12, .refcount_order = 4,
        .size = KI(253) + 512, .first = 3, .last = true, .stale = true, .backing = "b",
        .backing_format = "raw" }, MI(9), PREALLOC_OFF, KI(384) },
    { "overlay, v2", { .version = 2, .cluster_bits = 12, .refcount_order = 4,
        .size = KI(253) + 512, .first = 3, .backing = "b", .backing_format = "raw" }, MI(2),
      PREALLOC_OFF, KI(384) },
    { "overlay, extended L2", { .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true,
        .size = MI(1) + KI(3), .first = 3, .backing = "b", .backing_format = "raw" }, MI(9),
      PREALLOC_OFF, MI(2) },
    { "overlay, extended L2, the end in a subcluster that is absent", { .cluster_bits = 14,
        .refcount_order = 4, .ext_l2 = true, .size = MI(1) + 512 * 2 + 512, .first = 3,
        .last = true, .last_kind = MAKE_SUB, .backing = "b", .backing_format = "raw" }, MI(9),
      PREALLOC_OFF, MI(2) },
    { "overlay, extended L2, 64 KiB, the end in each kind of subcluster", { .refcount_order = 4,
        .ext_l2 = true, .size = MI(1) + KI(4) + 1536, .first = 3, .last = true,
        .last_kind = MAKE_SUB, .backing = "b", .backing_format = "raw" }, MI(3), PREALLOC_OFF,
      MI(2) },
    { "the same, one on", { .refcount_order = 4, .ext_l2 = true, .size = MI(1) + KI(6) + 1536,
        .first = 3, .last = true, .last_kind = MAKE_SUB, .backing = "b",
        .backing_format = "raw" }, MI(3), PREALLOC_OFF, MI(2) },
    { "the same, two on", { .refcount_order = 4, .ext_l2 = true, .size = MI(1) + KI(8) + 1536,
        .first = 3, .last = true, .last_kind = MAKE_SUB, .backing = "b",
        .backing_format = "raw" }, MI(3), PREALLOC_OFF, MI(2) },
    { "the same, shared with snapshots", { .refcount_order = 4, .ext_l2 = true,
        .size = MI(1) + KI(8) + 1536, .first = 3, .last = true, .last_kind = MAKE_SUB,
        .snapshots = 2, .backing = "b", .backing_format = "raw" }, MI(3), PREALLOC_OFF, MI(2) },
    { "the same, shared, one less", { .refcount_order = 4, .ext_l2 = true,
        .size = MI(1) + KI(6) + 1536, .first = 3, .last = true, .last_kind = MAKE_SUB,
        .snapshots = 2, .backing = "b", .backing_format = "raw" }, MI(3), PREALLOC_METADATA,
      MI(2) },
    { "the same, shared, two less", { .refcount_order = 4, .ext_l2 = true,
        .size = MI(1) + KI(4) + 1536, .first = 3, .last = true, .last_kind = MAKE_SUB,
        .snapshots = 2, .backing = "b", .backing_format = "raw" }, MI(3), PREALLOC_OFF, MI(2) },
    { "overlay, preallocated", { .cluster_bits = 12, .refcount_order = 4, .size = KI(253) + 512,
        .first = 3, .backing = "b", .backing_format = "raw" }, MI(1), PREALLOC_METADATA,
      KI(384) },
    { "overlay, last cluster a hole, shared table, refcount table grows", { .cluster_bits = 12,
        .refcount_order = 6, .size = KI(253) + 512, .first = 3, .snapshots = 1, .rt_clusters = 1,
        .end_cluster = 512 * 512 - 2, .backing = "b", .backing_format = "raw" }, MI(1),
      PREALLOC_OFF, KI(384) },
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0] };

/* The first epoch asks for all that later ones may need, or a refusal would come too late. */
static int granted(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    static u64 promised;
    (void)h, (void)e;
    if (epoch == 0)
        promised = max_u64(n->length[0], n->eventual);
    CHECK(n->length[0] <= promised);
    return 0;
}

/* The backing file: c->backing bytes of 0x5a on a memory disk of its own. */
static void make_backing(struct blk_mem *m, u64 size)
{
    u8 buf[4096];
    blk_mem_init(m, size, 512);
    memset(buf, 0x5a, sizeof buf);
    for (u64 off = 0; off < size; off += sizeof buf)
        blk_mem_put(m, off, buf, (size_t)min_u64(sizeof buf, size - off));
}

static int fill_run(struct blk *b, const struct fill_case *c, struct blk *backing, u64 *length,
                    struct err *e)
{
    static u8 mem[2][IMAGE_MEM] __attribute__((aligned(4096)));
    static u8 copy[BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct image img, under;
    struct plan_host h = {.need = granted, .mem = copy, .mem_len = sizeof copy};
    struct resize_args a = {c->new_size, c->how, work, sizeof work};
    int rc = image_open(&img, b, "qcow2", mem[0], e);
    img.scratch = scratch;
    if (!rc && c->backing) {
        rc = image_open(&under, backing, "raw", mem[1], e);
        img.backing = &under;
    }
    if (!rc)
        rc = plan_resize(&img, &a, &h, e);
    *length = h.length[0];
    return rc;
}

struct crash {
    const struct fill_case *c;
    struct blk_mem *backing;
    u64 old_hash, snapshot_hash, seen_hash /* with the backing file below */, states;
};

/* What the guest sees below the old end, backing file included. */
static u64 seen(struct blk_mem *m, const struct fill_case *c, struct blk_mem *backing)
{
    static u8 mem[2][IMAGE_MEM] __attribute__((aligned(4096)));
    static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
    struct image img, under;
    struct err e = {0};
    u8 buf[512];
    u64 hash = 0;
    CHECK(!image_open(&img, &m->blk, "qcow2", mem[0], &e));
    img.scratch = scratch;
    if (c->backing && !image_open(&under, &backing->blk, "raw", mem[1], &e))
        img.backing = &under;
    for (u64 off = round_down(c->p.size, KI(64)); off < c->p.size; off += sizeof buf) {
        CHECK(!chain_read(&img, off, buf, sizeof buf, &e));
        hash += judge_hash_block(off, buf, sizeof buf);
    }
    return hash;
}

static const char *wrong(const struct crash *k, struct blk_mem *m, struct verdict *v)
{
    u64 old = k->c->p.size;
    qcow2_judge_mem(m, old, old, k->c->new_size, v);
    if (!v->opens)
        return v->why;
    if (v->size != old && v->size != k->c->new_size)
        return "it has neither the old nor the new size";
    if (v->snapshot_hash != k->snapshot_hash)
        return "a snapshot's data is lost";
    if (seen(m, k->c, k->backing) != k->seen_hash)
        return "guest data is lost";
    if (v->size != old && !v->zero)
        return "the new area does not read zero";
    return v->corruptions ? v->first : NULL;
}

static void begin(struct crash *k, struct blk_mem *m, struct blk_mem *backing,
                  const struct fill_case *c)
{
    struct made made;
    struct verdict v;
    qcow2_make(m, &c->p, &made);
    make_backing(backing, c->backing ? c->backing : 512);
    qcow2_judge_mem(m, c->p.size, 0, 0, &v);
    CHECK(v.opens && !v.leaks && !v.corruptions);
    *k = (struct crash){c, backing, v.hash, v.snapshot_hash, seen(m, c, backing), 0};
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *k = ctx;
    struct verdict v;
    const char *bad = wrong(k, state, &v);
    k->states++;
    if (!CHECK(!bad))
        printf("    %s: %s\n", what, bad);
    return test_failures() < 5;
}

/* Is every cluster of [size, new_size) mapped by the image itself, preallocated if asked for? */
static bool covered(struct blk_mem *m, const struct fill_case *c)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    struct image img;
    struct err e = {0};
    struct extent x;
    if (image_open(&img, &m->blk, "qcow2", mem, &e))
        return false;
    for (u64 voff = c->p.size; voff < c->new_size; voff += x.len)
        if (img.format->map(&img, voff, c->new_size - voff, &x, &e) ||
            x.kind == EXTENT_HOLE || (c->how && !x.off))
            return false;
    return true;
}

static void each_case(void)
{
    for (unsigned i = 0; i < CASES; i++) {
        const struct fill_case *c = &cases[i];
        struct blk_mem m, backing;
        struct crash k;
        struct verdict v;
        struct err e = {0};
        u64 length;
        test_note("case %u, %s", i, c->name);
        begin(&k, &m, &backing, c);
        fill_run(&m.blk, c, &backing.blk, &length, &e);
        if (CHECK_ERR(&e, OK)) {
            blk_mem_truncate(&m, length);
            const char *bad = wrong(&k, &m, &v);
            if (!CHECK(!bad && v.size == c->new_size && !v.leaks))
                printf("    %s; %s\n", bad ? bad : "leaks", v.first);
            CHECK(covered(&m, c));
        }
        blk_mem_free(&m);
        blk_mem_free(&backing);
    }
    test_note("%s", "");
}

static void crash_states(void)
{
    u64 seed = test_seed(0xa54ff53a5f1d36f1), total = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m, backing;
        struct blk_record r;
        struct crash k;
        struct err e = {0};
        u64 length;
        test_note("crash, case %u, %s", i, cases[i].name);
        begin(&k, &m, &backing, &cases[i]);
        blk_record_init(&r, &m);
        fill_run(&r.blk, &cases[i], &backing.blk, &length, &e);
        CHECK_ERR(&e, OK);
        blk_record_states(&r, seed + i, 2, judge, &k);
        CHECK(k.states > 3);
        total += k.states;
        blk_record_free(&r);
        blk_mem_free(&m);
        blk_mem_free(&backing);
    }
    test_note("%s", "");
    printf("  %llu crash states of %d grows\n", (unsigned long long)total, (int)CASES);
}

static void fault_sweep(void)
{
    u64 runs = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m, backing;
        struct crash k;
        int rc = 1;
        begin(&k, &m, &backing, &cases[i]);
        for (u64 n = 1; rc && n < 20000; n += 1 + n / 32) {
            struct blk_mem now;
            struct blk_fault f;
            struct verdict v;
            struct err e = {0};
            u64 length;
            test_note("case %u, %s; I/O %llu fails", i, cases[i].name, (unsigned long long)n);
            blk_mem_over(&now, &m);
            blk_fault_init(&f, &now.blk, n, true);
            rc = fill_run(&f.blk, &cases[i], &backing.blk, &length, &e);
            const char *bad = wrong(&k, &now, &v);
            if (!CHECK(!bad))
                printf("    %s\n", bad);
            runs++;
            blk_mem_free(&now);
        }
        CHECK(!rc);
        blk_mem_free(&m);
        blk_mem_free(&backing);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way\n", (unsigned long long)runs);
}

/* What the backing file shows in the last cluster cannot be read: that is found out in time. */
static void backing_that_cannot_be_read(void)
{
    unsigned refused = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m, backing;
        struct blk_fault f;
        struct crash k;
        struct err e = {0};
        u64 length;
        test_note("case %u, %s; its backing file fails", i, cases[i].name);
        begin(&k, &m, &backing, &cases[i]);
        m.writes = m.grows = 0;
        blk_fault_init(&f, &backing.blk, 1, true);
        if (fill_run(&m.blk, &cases[i], &f.blk, &length, &e)) {
            CHECK_ERR(&e, ERR_READ_FAILED);
            CHECK(!m.writes && !m.grows);
            refused++;
        }
        CHECK(!e.code || f.seen);
        blk_mem_free(&m);
        blk_mem_free(&backing);
    }
    test_note("%s", "");
    CHECK_EQ_U64(refused, 7);
}

/* Of what only later epochs would come to, the first one must know: entries of the refcount table,
 * and clusters that are counted where the file does not reach yet. */
static void what_later_epochs_would_meet(void)
{
    static const struct {
        const char *name;
        u64 entry; /* of the refcount table, or the mask of what is counted past the end */
        enum err_code code;
    } bad[] = {
        { "reserved bits", 0x201, ERR_OVERLAY_CORRUPT },
        { "misplaced", 1ull << 40, ERR_OVERLAY_CORRUPT },
        { "the first block once more", 0, ERR_OVERLAY_CORRUPT },
        { "not counted", 300 * 512, ERR_INCONSISTENT },
        { "clusters counted", 0x30005a5, OK },
    };
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct fill_case c = { bad[i].name, { .cluster_bits = 9, .refcount_order = 4,
            .size = KI(99) + 512, .first = 9, .rt_clusters = 1, .pad_clusters = 290 }, MI(4),
            PREALLOC_METADATA, 0 };
        struct blk_mem m, backing;
        struct made made;
        struct verdict v;
        struct err e = {0};
        u64 length;
        u8 entry[8];
        test_note("refcount blocks: %s", bad[i].name);
        c.p.above_eof = bad[i].code ? 0 : bad[i].entry;
        qcow2_make(&m, &c.p, &made);
        make_backing(&backing, 512);
        blk_mem_get(&m, made.rt_offset, entry, 8);
        if (bad[i].entry)
            put_be64(entry, bad[i].entry);
        if (bad[i].code)
            blk_mem_put(&m, made.rt_offset + 20 * 8, entry, 8);
        m.writes = m.grows = 0;
        fill_run(&m.blk, &c, &backing.blk, &length, &e);
        CHECK_ERR(&e, bad[i].code);
        CHECK(!e.code || (!m.writes && !m.grows));
        qcow2_judge_mem(&m, 0, c.p.size, c.new_size, &v);
        CHECK(e.code || (v.size == c.new_size && !v.corruptions && v.zero));
        blk_mem_free(&m);
        blk_mem_free(&backing);
    }
    test_note("%s", "");
}

int main(void)
{
    RUN(each_case);
    RUN(backing_that_cannot_be_read);
    RUN(what_later_epochs_would_meet);
    RUN(crash_states);
    RUN(fault_sweep);
    return test_end();
}
