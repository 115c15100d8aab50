/* SPDX-License-Identifier: MIT
 *
 * Images with an external data file, raw or not, grown and shrunk: content, zeros, what the data
 * file holds and how long it is; crash states over both files at once; faults; what is refused.
 * Both files are parts of one disk, so that the recorder sees one order of requests.
 */
#include "blk_fault.h"
#include "blk_part.h"
#include "blk_record.h"
#include "copy.h"
#include "grow.h"
#include "test.h"

enum { INCOMPAT_DATA_FILE = 4, AUTOCLEAR_RAW = 2 };
#define DATA_AT MI(256) /* where the data file begins on the common disk */

struct data_case {
    const char *name;
    struct make p; /* made empty; incompatible bit 2 is added */
    bool raw;
    u64 holds; /* the first bytes of the disk that are mapped, and hold a pattern */
    u64 length; /* of the data file: 0: the disk's. What is past the disk is not zero */
    u64 new_size;
    enum preallocation how;
};

/* clang-format off */
static const struct data_case cases[] = {
    { "grow", { .refcount_order = 4, .size = MI(1) }, false, KI(130), 0, MI(4), PREALLOC_OFF },
    { "grow, a last cluster with old bytes", { .cluster_bits = 12, .refcount_order = 4,
        .size = MI(1) + 512 }, false, MI(1) + 512, MI(2), MI(3), PREALLOC_OFF },
    { "grow, metadata", { .cluster_bits = 12, .refcount_order = 4, .size = MI(1) + 1536 }, false,
      KI(99), 0, MI(3), PREALLOC_METADATA },
    { "grow, falloc", { .cluster_bits = 9, .refcount_order = 4, .size = KI(99) }, false, KI(9), 0,
      KI(300) + 512, PREALLOC_FALLOC },
    { "grow, full, old bytes", { .refcount_order = 4, .size = KI(99) }, false, KI(99), KI(500),
      MI(1) + 512, PREALLOC_FULL },
    { "grow, raw", { .refcount_order = 4, .size = MI(1) }, true, MI(1), 0, MI(9), PREALLOC_OFF },
    { "grow, raw, not aligned", { .cluster_bits = 12, .refcount_order = 4, .size = KI(99) + 512 },
      true, KI(99) + 512, 0, MI(3) + 1024, PREALLOC_OFF },
    { "grow, raw, data file longer than both", { .cluster_bits = 12, .refcount_order = 4,
        .size = KI(99) + 512 }, true, KI(99) + 512, MI(5), MI(3), PREALLOC_OFF },
    { "grow, raw, extended L2", { .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true,
        .size = KI(99) + 512 }, true, KI(99) + 512, MI(1), MI(3), PREALLOC_OFF },
    { "grow, raw, 512, L1 moves", { .cluster_bits = 9, .refcount_order = 6, .size = KI(65) }, true,
      KI(65), 0, MI(3), PREALLOC_FULL },
    { "shrink", { .refcount_order = 4, .size = MI(4) }, false, MI(3), 0, MI(1), PREALLOC_OFF },
    { "shrink into a cluster", { .cluster_bits = 12, .refcount_order = 4, .size = MI(3) }, false,
      MI(3), 0, MI(1) + 512, PREALLOC_OFF },
    { "shrink, raw", { .cluster_bits = 12, .refcount_order = 4, .size = MI(3) + 512 }, true,
      MI(3) + 512, 0, KI(99) + 512, PREALLOC_OFF },
    { "shrink, raw, extended L2", { .cluster_bits = 14, .refcount_order = 4, .ext_l2 = true,
        .size = MI(3) + 512 }, true, MI(3) + 512, MI(4), MI(1) + 1536, PREALLOC_OFF },
    { "shrink to nothing", { .cluster_bits = 9, .refcount_order = 0, .size = KI(300) }, true,
      KI(300), 0, 0, PREALLOC_OFF },
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0] };

struct files {
    u64 image, data; /* their lengths */
};

static int granted(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)epoch, (void)n, (void)e;
    return 0;
}

/* Runs a resize over the two parts of `disk`; *len gets the lengths afterwards. */
static int data_run(struct blk *disk, struct files *len, u64 new_size, enum preallocation how,
                    struct err *e)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    static u8 copy[BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct plan_host h = {.need = granted, .mem = copy, .mem_len = sizeof copy};
    struct resize_args a = {new_size, how, work, sizeof work};
    struct blk_part part[2];
    struct image img;
    blk_part_init(&part[0], disk, 0, len->image);
    blk_part_init(&part[1], disk, DATA_AT, len->data);
    int rc = image_open(&img, &part[0].blk, "qcow2", mem, e);
    img.file[1] = &part[1].blk;
    img.files = 2;
    if (rc || new_size == img.size)
        return rc;
    rc = plan_resize(&img, &a, &h, e);
    if (!rc)
        *len = (struct files){h.length[0], h.length[1]};
    return rc;
}

static void judge_parts(const struct blk_mem *m, const struct files *len, u64 hash_to,
                        u64 zero_from, u64 zero_to, struct verdict *v)
{
    struct judge_part image = {m, 0, len->image}, data = {m, DATA_AT, len->data};
    struct judge_io data_io = judge_part_io(&data), io = judge_part_io(&image);
    io.data = &data_io;
    qcow2_judge(&io, hash_to, zero_from, zero_to, v);
}

/* The case's image on a common disk: made empty, its first part mapped by a grow with metadata of
 * our own, then filled with a pattern, and the data file's rest with other bytes. */
static void make_case(struct blk_mem *m, const struct data_case *c, struct files *len)
{
    struct make p = c->p;
    struct made made;
    struct err e = {0};
    u8 buf[512];
    p.size = 0;
    p.incompatible = INCOMPAT_DATA_FILE;
    qcow2_make(m, &p, &made);
    *len = (struct files){made.length, 0};
    memset(buf, 0, sizeof buf);
    blk_mem_put(m, DATA_AT + MI(16), buf, sizeof buf); /* the common disk is long enough */
    m->blk.size = m->length;
    CHECK(!data_run(&m->blk, len, c->holds, PREALLOC_METADATA, &e));
    CHECK(!data_run(&m->blk, len, c->p.size, PREALLOC_OFF, &e));
    if (c->raw) {
        put_be64(buf, AUTOCLEAR_RAW);
        blk_mem_put(m, QH_AUTOCLEAR_FEATURES, buf, 8);
    }
    len->data = c->length ? c->length : c->p.size;
    for (u64 off = 0; off < len->data; off += sizeof buf) {
        if (off >= c->holds && off < c->p.size)
            continue; /* not mapped: nobody sees what is there */
        make_pattern(77, off, buf, sizeof buf);
        blk_mem_put(m, DATA_AT + off, buf, sizeof buf);
    }
}

struct crash {
    const struct data_case *c;
    struct files before, after;
    u64 hash, states, old, new;
};

/* Old or new, with all data; leaks at most. A file may have either length. */
static const char *wrong(const struct crash *k, const struct blk_mem *m, const struct files *len,
                         struct verdict *v)
{
    u64 old = k->c->p.size, new = k->c->new_size;
    judge_parts(m, len, min_u64(old, new), min_u64(old, new), max_u64(old, new), v);
    if (!v->opens)
        return v->why;
    if (v->size != old && v->size != new)
        return "it has neither the old nor the new size";
    if (v->hash != k->hash)
        return "guest data is lost";
    if (v->size == new && new > old && !v->zero)
        return "the new area does not read zero";
    return v->corruptions ? v->first : NULL;
}

static void begin(struct crash *k, struct blk_mem *m, const struct data_case *c)
{
    struct verdict v;
    *k = (struct crash){.c = c};
    make_case(m, c, &k->before);
    k->after = k->before;
    judge_parts(m, &k->before, min_u64(c->p.size, c->new_size), 0, 0, &v);
    if (!CHECK(v.opens && v.size == c->p.size && !v.leaks && !v.corruptions))
        printf("    %s %s\n", v.why ? v.why : "", v.first);
    k->hash = v.hash;
}

/* After the plan: the right size, no leaks, the data file as long as the disk, where it may be, and
 * equal to the disk where it is raw; then back to a larger size, and zero there again (P11). */
static void check_end(struct crash *k, struct blk_mem *m)
{
    const struct data_case *c = k->c;
    u8 zero[512] = {0}, buf[512];
    struct verdict v;
    struct err e = {0};
    const char *bad = wrong(k, m, &k->after, &v);
    if (!CHECK(!bad && v.size == c->new_size && !v.leaks))
        printf("    %s; %s\n", bad ? bad : "", v.first);
    CHECK_EQ_U64(k->after.data, c->new_size > c->p.size ? max_u64(c->length, c->new_size)
                                                        : c->new_size);
    for (u64 off = c->p.size; c->raw && off < c->new_size; off += sizeof buf) {
        blk_mem_get(m, DATA_AT + off, buf, sizeof buf);
        if (!CHECK(!memcmp(buf, zero, sizeof buf)))
            break;
    }
    blk_mem_clear(m, k->after.image, DATA_AT - k->after.image); /* as the launcher cuts them */
    blk_mem_clear(m, DATA_AT + k->after.data, MI(16) - k->after.data);
    u64 larger = c->new_size + MI(1) + 512;
    data_run(&m->blk, &k->after, larger, PREALLOC_OFF, &e);
    CHECK_ERR(&e, OK);
    judge_parts(m, &k->after, min_u64(c->p.size, c->new_size), c->new_size, larger, &v);
    if (!CHECK(v.opens && v.size == larger && !v.leaks && !v.corruptions && v.zero))
        printf("    %s\n", v.first);
    CHECK_EQ_U64(v.hash, k->hash);
}

static void each_case(void)
{
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct crash k;
        struct err e = {0};
        test_note("case %u, %s", i, cases[i].name);
        begin(&k, &m, &cases[i]);
        data_run(&m.blk, &k.after, cases[i].new_size, cases[i].how, &e);
        if (CHECK_ERR(&e, OK))
            check_end(&k, &m);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

/* The files' lengths are not the recorder's: a crash leaves each as the last grant made it, or as
 * it was, and both are shown. */
static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *k = ctx;
    struct files longest = {max_u64(k->before.image, k->after.image),
                            max_u64(k->before.data, k->after.data)};
    longest.image = max_u64(longest.image, DATA_AT / 2); /* room that epochs asked for */
    struct verdict v;
    const char *bad = wrong(k, state, &longest, &v);
    k->states++;
    k->old += v.size == k->c->p.size;
    k->new += v.size == k->c->new_size;
    if (!CHECK(!bad))
        printf("    %s: %s\n", what, bad);
    return test_failures() < 5;
}

static void crash_states(void)
{
    u64 seed = test_seed(0x510e527fade682d1), total = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct blk_record r;
        struct crash k;
        struct err e = {0};
        test_note("crash, case %u, %s", i, cases[i].name);
        begin(&k, &m, &cases[i]);
        blk_record_init(&r, &m);
        data_run(&r.blk, &k.after, cases[i].new_size, cases[i].how, &e);
        CHECK_ERR(&e, OK);
        blk_record_states(&r, seed + i, 4, judge, &k);
        CHECK(k.states > 3 && k.old && k.new);
        total += k.states;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu crash states of %d resizes\n", (unsigned long long)total, (int)CASES);
}

static void fault_sweep(void)
{
    u64 runs = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct blk_mem m;
        struct crash k;
        int rc = 1;
        begin(&k, &m, &cases[i]);
        for (u64 n = 1; rc && n < 20000; n += 1 + n / 16) {
            struct blk_mem now;
            struct blk_fault f;
            struct verdict v;
            struct err e = {0};
            struct files len = k.before, most = {DATA_AT / 2, MI(16)};
            test_note("case %u, %s; I/O %llu fails", i, cases[i].name, (unsigned long long)n);
            blk_mem_over(&now, &m);
            blk_fault_init(&f, &now.blk, n, true);
            rc = data_run(&f.blk, &len, cases[i].new_size, cases[i].how, &e);
            const char *bad = wrong(&k, &now, &most, &v);
            if (!CHECK(!bad))
                printf("    %s\n", bad);
            runs++;
            blk_mem_free(&now);
        }
        CHECK(!rc);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way\n", (unsigned long long)runs);
}

/* Each patched into a sound image, and refused with the disk as it was. */
static void refused(void)
{
    static const struct {
        const char *what;
        u64 off; /* of a 64-bit field; 0: the first L2 entry */
        u64 value;
        enum err_code code;
        u64 new_size;
    } t[] = {
        {"an entry that is not the guest's offset", 0, QCOW2_COPIED | KI(128), ERR_OVERLAY_CORRUPT,
         KI(99)},
        {"a compressed cluster", 0, QCOW2_COMPRESSED | 512, ERR_OVERLAY_CORRUPT, KI(99)},
        {"snapshots", QH_REFCOUNT_TABLE_CLUSTERS, 0x0000000100000001, ERR_OVERLAY_CORRUPT, MI(9)},
        {"a raw data file and a backing file", QH_BACKING_FILE_OFFSET, 0x180, ERR_OVERLAY_CORRUPT,
         MI(9)},
        {"a data file that the bit denies", QH_INCOMPATIBLE_FEATURES, 0, ERR_PARSE_FAILED, MI(9)},
    };
    for (unsigned i = 0; i < sizeof t / sizeof t[0]; i++) {
        struct blk_mem m, now;
        struct crash k;
        struct err e = {0};
        u8 field[8];
        u64 at, l1, l2;
        const struct data_case c = {"", {.refcount_order = 4, .size = KI(100)}, true, KI(100), 0, 0,
                                    PREALLOC_OFF};
        test_note("%s", t[i].what);
        begin(&k, &m, &c);
        blk_mem_get(&m, QH_L1_TABLE_OFFSET, field, 8);
        l1 = be64(field);
        blk_mem_get(&m, l1, field, 8);
        l2 = be64(field) & QCOW2_OFFSET_MASK;
        put_be64(field, t[i].value);
        blk_mem_put(&m, t[i].off ? t[i].off : l2 + 8, field, 8);
        blk_mem_over(&now, &m);
        struct files len = k.before;
        data_run(&now.blk, &len, t[i].new_size, PREALLOC_OFF, &e);
        CHECK_ERR(&e, t[i].code);
        CHECK(blk_mem_equal(&now, &m, &at));
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
    test_note("%s", "");
}

int main(void)
{
    RUN(each_case);
    RUN(crash_states);
    RUN(fault_sweep);
    RUN(refused);
    return test_end();
}
