/* SPDX-License-Identifier: MIT
 *
 * The walk over all references of a qcow2 image: in a sound one, made by the maker or by qemu-img,
 * it finds as many for each cluster as the cluster's refcount says.
 */
#include "grow.h"
#include "qcow2_refcount.h"
#include "qcow2_walk.h"
#include "test.h"

#include <unistd.h>

struct tally {
    struct qcow2_visitor visitor;
    u64 unit, cnt, refs[4096], kinds[4];
};

static int add_up(struct qcow2_visitor *v, const struct qcow2_ref *ref, struct err *e)
{
    struct tally *t = (struct tally *)v;
    (void)e;
    CHECK(ref->len > 0 && ref->kind <= QCOW2_REF_PACKED);
    CHECK((ref->at == 0) == (ref->kind == QCOW2_REF_TABLE));
    for (u64 i = ref->off / t->unit; i < div_up(ref->off + ref->len, t->unit); i++)
        if (CHECK(i < t->cnt))
            t->refs[i]++;
    t->kinds[ref->kind]++;
    return 0;
}

/* In a sound image, the references to each cluster are as many as its refcount says. */
static void counts_agree(struct blk_mem *m, u64 kinds[4])
{
    static u8 mem[IMAGE_MEM];
    static struct tally t;
    struct image img;
    struct err e = {0};
    t = (struct tally){.visitor = {.visit = add_up, .refcounts = true}};
    if (!CHECK(!image_open(&img, &m->blk, "qcow2", mem, &e)))
        return;
    t.unit = img.unit;
    t.cnt = div_up(m->length, img.unit);
    if (t.cnt > 4096)
        return;
    qcow2_walk(&img, &t.visitor, &e);
    CHECK_ERR(&e, OK);
    for (u64 i = 0; i < t.cnt; i++) {
        u64 count;
        CHECK(!qcow2_refcount_get(&img, i, &count, &e));
        if (!CHECK_EQ_U64(t.refs[i], count))
            printf("    cluster %llu\n", (unsigned long long)i);
    }
    for (int k = 0; k < 4; k++)
        kinds[k] += t.kinds[k];
}

static void walk_agrees_with_the_maker(void)
{
    u64 kinds[4] = {0};
    for (unsigned i = 0; i < grow_cases_cnt; i++) {
        struct make p = grow_cases[i].p;
        struct blk_mem m;
        struct made made;
        test_note("case %u, %s", i, grow_cases[i].name);
        p.above_eof = 0;
        qcow2_make(&m, &p, &made);
        counts_agree(&m, kinds);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    for (int k = 0; k < 4; k++)
        CHECK(kinds[k] > 20);
}

static int run_script(const char *text)
{
    const char *path = test_path("walk.sh");
    FILE *f = fopen(path, "w");
    int rc = f && fputs(text, f) >= 0 && !fclose(f) ? test_system("sh %s", path) : -1;
    unlink(path);
    return rc;
}

/* What the maker cannot make: bitmaps, a LUKS header, an external data file. */
static void walk_agrees_with_qemu(void)
{
    static const struct {
        const char *name, *create, *then;
        u64 tables; /* at least so many clusters that only one thing refers to */
    } image[] = {
        {"bitmaps", "qemu-img create -q -f qcow2 -o cluster_size=4k %s 64M",
         "qemu-img bitmap --add -g 512 %1$s a && qemu-img bitmap --add --disable %1$s b &&"
         "qemu-io -c 'write 1M 3M' -c 'write 40M 64k' %1$s",
         9},
        /* LUKS times its key derivation, and fails now and then where the machine is busy */
        {"encrypted",
         "for i in 1 2 3 4 5 6 7 8 9; do qemu-img create -q -f qcow2 --object secret,id=s,data=x "
         "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 %s 1M && exit 0; "
         "done; exit 1",
         "true %s", 5},
        {"data file", "qemu-img create -q -f qcow2 -o data_file=%1$s.data %1$s 9M",
         "qemu-io -c 'write 1M 3M' %s", 4},
        {"snapshots", "qemu-img create -q -f qcow2 -o cluster_size=1k,refcount_bits=8 %s 1M",
         "qemu-io -c 'write 11k 99k' -c 'write -z 300k 5k' %1$s && qemu-img snapshot -c a %1$s &&"
         "qemu-io -c 'write 20k 9k' %1$s && qemu-img snapshot -c b %1$s && qemu-img snapshot -c c "
         "%1$s && qemu-io -c 'write 50k 80k' %1$s",
         8},
    };
    for (unsigned i = 0; i < sizeof(image) / sizeof(image[0]); i++) {
        const char *path = test_path("walk.qcow2"); /* good for some calls more, not for all */
        struct blk_mem m;
        u64 kinds[4] = {0};
        char command[800], then[600];
        test_note("%s", image[i].name);
        snprintf(command, sizeof(command), image[i].create, path);
        snprintf(then, sizeof(then), image[i].then, path);
        CHECK(run_script(command) == 0 && run_script(then) == 0);
        if (CHECK(blk_mem_load(&m, path, 512))) {
            counts_agree(&m, kinds);
            CHECK(kinds[QCOW2_REF_TABLE] >= image[i].tables);
            CHECK((kinds[QCOW2_REF_DATA] > 0) == (i % 3 == 0));
            blk_mem_free(&m);
        }
        unlink(path);
    }
    unlink(test_path("walk.qcow2.data"));
    test_note("%s", "");
}

/* The order that a visitor may rely on, and what is left out on request. */
struct order {
    struct qcow2_visitor visitor;
    u64 seen[4], stop_at;
    bool wrong;
};

static int note_order(struct qcow2_visitor *v, const struct qcow2_ref *ref, struct err *e)
{
    struct order *o = (struct order *)v;
    bool late = o->seen[QCOW2_REF_DATA] || o->seen[QCOW2_REF_PACKED];
    o->wrong |= ref->kind == QCOW2_REF_L2 && late;
    o->wrong |= ref->kind == QCOW2_REF_TABLE && (late || o->seen[QCOW2_REF_L2]);
    o->seen[ref->kind]++;
    return --o->stop_at ? 0 : FAIL(e, ERR_INCONSISTENT, "stop", 0, 0);
}

static void order_and_options(void)
{
    static u8 mem[IMAGE_MEM];
    const struct make p = {.cluster_bits = 9,
                           .refcount_order = 4,
                           .size = 1 << 20,
                           .first = 200,
                           .kinds = MAKE_DATA | MAKE_PACKED,
                           .snapshots = 2};
    struct blk_mem m;
    struct made made;
    struct image img;
    struct err e = {0};
    struct order all = {.visitor = {.visit = note_order, .refcounts = true}};
    struct order tables = {.visitor = {.visit = note_order, .tables_only = true}};
    struct order some = {.visitor = {.visit = note_order}, .stop_at = 9};
    qcow2_make(&m, &p, &made);
    CHECK(!image_open(&img, &m.blk, "qcow2", mem, &e));
    CHECK(!qcow2_walk(&img, &all.visitor, &e) && !all.wrong);
    CHECK(all.seen[QCOW2_REF_DATA] == 300 && all.seen[QCOW2_REF_PACKED] == 300);
    u64 reads = m.reads;
    CHECK(!qcow2_walk(&img, &tables.visitor, &e) && !tables.wrong);
    CHECK(!tables.seen[QCOW2_REF_DATA] && !tables.seen[QCOW2_REF_PACKED] && m.reads < reads + 12);
    CHECK_EQ_U64(tables.seen[QCOW2_REF_L2], all.seen[QCOW2_REF_L2]);
    CHECK_EQ_U64(tables.seen[QCOW2_REF_TABLE] + 1 + made.blocks, all.seen[QCOW2_REF_TABLE]);
    CHECK(qcow2_walk(&img, &some.visitor, &e) == ERR_INCONSISTENT && some.stop_at == 0);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(walk_agrees_with_the_maker);
    RUN(walk_agrees_with_qemu);
    RUN(order_and_options);
    return test_end();
}
