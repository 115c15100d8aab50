/* SPDX-License-Identifier: MIT
 *
 * The crash recorder over every grow action: whatever sectors of the unflushed writes reached the
 * disk, the image opens with the old or the new size and all guest data, with leaks at most, and a
 * grow can be run on it again. The same for I/O number N failing, for every N. Two canaries, a plan
 * that commits first and a plan whose barriers are left out, must be caught: a recorder that lets
 * them pass proves nothing.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "format.h"
#include "grow.h"
#include "test.h"

#include <unistd.h>

enum { RANDOM_SUBSETS = 24, QEMU_EVERY = 1499, AGAIN_EVERY = 61 };

struct crash {
    u64 old_size, new_size, old_hash, snapshot_hash;
    u64 states, opened_old, opened_new, bad, qemu, again;
    bool canary; /* failures are counted, not reported */
    char first[400];
};

/* Old or new, whole; leaks at most. Returns what is wrong, NULL if nothing is. */
static const char *wrong(const struct crash *c, const struct blk_mem *state, struct verdict *v)
{
    qcow2_judge_mem(state, c->old_size, c->old_size, c->new_size, v);
    if (!v->opens)
        return v->why;
    if (v->size != c->old_size && v->size != c->new_size)
        return "it has neither the old nor the new size";
    if (v->hash != c->old_hash)
        return "guest data is lost";
    if (v->snapshot_hash != c->snapshot_hash)
        return "a snapshot's data is lost";
    if (v->size == c->new_size && !v->zero)
        return "the new area does not read zero";
    return v->corruptions ? v->first : NULL;
}

/* The same, by readers that the judge does not share a line with. */
static void second_opinions(struct crash *c, struct blk_mem *state)
{
    if (c->states % QEMU_EVERY == 7) {
        const char *path = test_path("crash.qcow2");
        if (CHECK(blk_mem_save(state, path))) {
            int rc = test_system("qemu-img check -f qcow2 %s", path);
            CHECK(rc == 0 || rc == 3);
            c->qemu++;
        }
        unlink(path);
    }
    if (c->states % AGAIN_EVERY == 5) {
        struct blk_mem next;
        struct verdict v;
        struct err e = {0};
        blk_mem_over(&next, state);
        grow_mem(&next, c->new_size + (1 << 21), &e);
        CHECK_ERR(&e, OK);
        struct crash again = {.old_size = c->old_size,
                              .new_size = c->new_size + (1 << 21),
                              .old_hash = c->old_hash,
                              .snapshot_hash = c->snapshot_hash};
        const char *what = wrong(&again, &next, &v);
        if (!CHECK(!what && v.size == again.new_size))
            printf("    grown again: %s\n", what ? what : "not grown");
        c->again++;
        blk_mem_free(&next);
    }
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    struct verdict v;
    const char *bad = wrong(c, state, &v);
    c->states++;
    c->opened_old += v.opens && v.size == c->old_size;
    c->opened_new += v.opens && v.size == c->new_size;
    if (bad && !c->bad++)
        snprintf(c->first, sizeof(c->first), "%s: %s", what, bad);
    if (bad && !c->canary) {
        CHECK(!"a crash state is broken");
        printf("    %s\n", c->first);
    }
    if (!bad && !c->canary)
        second_opinions(c, state);
    return c->canary ? !bad : test_failures() < 10; /* one is enough to catch a canary */
}

static void begin(struct crash *c, struct blk_mem *m, const struct grow_case *g)
{
    struct made made;
    struct verdict old;
    *c = (struct crash){.old_size = g->p.size, .new_size = g->new_size};
    qcow2_make(m, &g->p, &made);
    qcow2_judge_mem(m, g->p.size, 0, 0, &old);
    CHECK(old.opens && !old.corruptions && !old.leaks);
    c->old_hash = old.hash;
    c->snapshot_hash = old.snapshot_hash;
}

static void every_crash_state(void)
{
    u64 seed = test_seed(0x9b05688c2b3e6c1f), total = 0, qemu = 0, again = 0;
    bool recorded[5] = {false};
    for (unsigned i = 0; i < grow_cases_cnt; i++) {
        const struct grow_case *g = &grow_cases[i];
        struct blk_mem m;
        struct blk_record r;
        struct crash c;
        struct err e = {0};
        u64 length;
        test_note("case %u, %s", i, g->name);
        begin(&c, &m, g);
        m.blk.sector = i % 3 == 2 ? 4096 : 512;
        blk_record_init(&r, &m);
        grow_run(&r.blk, g->new_size, &length, &e);
        CHECK_ERR(&e, OK);
        u64 n = blk_record_states(&r, seed + i, RANDOM_SUBSETS, judge, &c);
        CHECK(n == c.states && n >= 3 && c.bad == 0);
        CHECK(c.opened_old > 0 && c.opened_new > 0);
        CHECK_EQ_U64(c.opened_old + c.opened_new, n);
        recorded[g->action] = true;
        total += n, qemu += c.qemu, again += c.again;
        blk_record_free(&r);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu states of %u grows; %llu shown to qemu-img, %llu grown again\n",
           (unsigned long long)total, grow_cases_cnt, (unsigned long long)qemu,
           (unsigned long long)again);
    for (int a = 0; a < 5; a++)
        CHECK(recorded[a]);
    CHECK(qemu >= 3 && again >= 50);
}

/* ---- canaries ---- */

/* Keeps a copy of every patch that a planner emits. */
struct keeper {
    struct sink sink;
    struct patch p[256];
    unsigned cnt;
};

static int keep(struct sink *s, const struct patch *p, struct err *e)
{
    struct keeper *k = (struct keeper *)s;
    (void)e;
    assert(k->cnt < 256);
    k->p[k->cnt] = *p;
    if (p->kind == PATCH_WRITE) {
        void *copy = malloc(p->len);
        memcpy(copy, p->data, p->len);
        k->p[k->cnt].data = copy;
    }
    k->cnt++;
    return 0;
}

static void perform(struct blk *b, const struct patch *p)
{
    struct err e = {0};
    u8 *buf;
    switch (p->kind) {
    case PATCH_LENGTH:
        blk_grow(b, p->len, &e);
        break;
    case PATCH_WRITE:
        blk_write(b, p->off, p->data, p->len, &e);
        break;
    case PATCH_ZERO:
        blk_zero(b, p->off, p->len, false, &e);
        break;
    case PATCH_COPY:
        buf = malloc(p->len);
        blk_read(b, p->from_off, buf, p->len, &e);
        blk_write(b, p->off, buf, p->len, &e);
        free(buf);
        break;
    case PATCH_BARRIER:
        blk_flush(b, &e);
        break;
    default:
        assert(!"a patch that no grow has");
    }
    CHECK_ERR(&e, OK);
}

/* The plan for this case, as its planner gives it. False: its first epoch is not its last. */
static bool plan_of(struct blk_mem *m, u64 new_size, struct keeper *k)
{
    static u8 mem[IMAGE_MEM];
    struct image img;
    struct plan_state state = {0};
    struct resize_args a = {.new_size = new_size};
    struct err e = {0};
    *k = (struct keeper){.sink = {keep}};
    CHECK(!image_open(&img, &m->blk, "qcow2", mem, &e));
    CHECK(!qcow2_planner.resize(&img, &a, &state, &k->sink, &e));
    CHECK_ERR(&e, OK);
    return !state.more;
}

enum canary { AS_PLANNED, COMMIT_FIRST, NO_BARRIERS };

static void fly(struct blk *b, const struct keeper *k, enum canary how)
{
    for (unsigned i = 0; i < k->cnt; i++) /* the length first: it is granted before any write */
        if (k->p[i].kind == PATCH_LENGTH)
            perform(b, &k->p[i]);
    for (unsigned i = 0; how == COMMIT_FIRST && i < k->cnt; i++)
        if (k->p[i].commit) {
            perform(b, &k->p[i]);
            blk_flush(b, &(struct err){0});
        }
    for (unsigned i = 0; i < k->cnt; i++)
        if (k->p[i].kind != PATCH_LENGTH && !(how == COMMIT_FIRST && k->p[i].commit) &&
            !(how == NO_BARRIERS && k->p[i].kind == PATCH_BARRIER))
            perform(b, &k->p[i]);
}

/* Every case whose plan has something to do before its commit. */
static void canaries_are_caught(void)
{
    unsigned flown = 0;
    for (unsigned i = 0; i < grow_cases_cnt; i++) {
        const struct grow_case *g = &grow_cases[i];
        struct blk_mem m;
        struct keeper k;
        struct crash c;
        if (g->action < QCOW2_L1_GROW || g->p.size == 0 || g->p.last)
            continue;
        begin(&c, &m, g);
        bool whole = plan_of(&m, g->new_size, &k);
        for (enum canary how = AS_PLANNED; whole && how <= NO_BARRIERS; how++) {
            struct blk_record r;
            c.states = c.bad = c.opened_old = c.opened_new = 0;
            c.canary = true;
            test_note("case %u, %s; canary %d", i, g->name, how);
            blk_record_init(&r, &m);
            fly(&r.blk, &k, how);
            blk_record_states(&r, 1, RANDOM_SUBSETS, judge, &c);
            CHECK(c.states >= 3);
            CHECK((c.bad > 0) == (how != AS_PLANNED));
            blk_record_free(&r);
            flown += how != AS_PLANNED;
        }
        for (unsigned n = 0; n < k.cnt; n++)
            if (k.p[n].kind == PATCH_WRITE)
                free((void *)k.p[n].data);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u canaries\n", flown);
    CHECK(flown >= 20);
}

/* ---- faults ---- */

static void fault_sweep(void)
{
    u64 runs = 0, before = 0, after = 0;
    for (unsigned i = 0; i < grow_cases_cnt; i++) {
        const struct grow_case *g = &grow_cases[i];
        struct blk_mem m;
        struct crash c;
        begin(&c, &m, g);
        for (int stay = 0; stay < 2; stay++) {
            int rc = 1;
            u64 n = 1;
            for (; rc && n < 5000; n++) {
                struct blk_mem now;
                struct blk_fault f;
                struct verdict v;
                struct err e = {0};
                u64 length;
                test_note("case %u, %s; I/O %llu fails%s", i, g->name, (unsigned long long)n,
                          stay ? " and all after it" : "");
                blk_mem_over(&now, &m);
                blk_fault_init(&f, &now.blk, n, stay);
                rc = grow_run(&f.blk, g->new_size, &length, &e);
                const char *what = wrong(&c, &now, &v);
                if (!CHECK(!what))
                    printf("    %s\n", what);
                CHECK((f.seen >= n) == (rc != 0));
                if (rc) {
                    CHECK(e.code == ERR_READ_FAILED || e.code == ERR_WRITE_FAILED ||
                          e.code == ERR_NO_SPACE);
                    before += v.size == c.old_size;
                    after += v.size == c.new_size;
                } else {
                    CHECK_EQ_U64(v.size, c.new_size);
                }
                runs++;
                blk_mem_free(&now);
            }
            CHECK(!rc && n > 5);
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu runs failed half-way: %llu left the old size, %llu the new\n",
           (unsigned long long)runs, (unsigned long long)before, (unsigned long long)after);
    CHECK(before > 100 && after > 10);
}

/* The recorder itself, over a log whose states can be counted by hand. */
static bool seen_content[256], seen_long[2];

static bool note_state(void *ctx, struct blk_mem *state, const char *what)
{
    u8 a, b;
    (void)ctx, (void)what;
    blk_mem_get(state, 0, &a, 1);
    blk_mem_get(state, 512, &b, 1);
    seen_content[a * 16 + b] = true;
    seen_long[state->length > 4096] = true;
    return true;
}

static void the_recorder_itself(void)
{
    struct blk_mem m;
    struct blk_record r;
    struct err e = {0};
    u8 sector[1024];
    blk_mem_init(&m, 4096, 512);
    memset(sector, 1, sizeof(sector));
    blk_mem_put(&m, 0, sector, 1024);
    blk_record_init(&r, &m);
    memset(sector, 2, sizeof(sector));
    CHECK(!blk_write(&r.blk, 0, sector, 1024, &e) && !blk_flush(&r.blk, &e));
    memset(sector, 3, sizeof(sector));
    CHECK(!blk_write(&r.blk, 0, sector, 512, &e) && !blk_write(&r.blk, 512, sector, 512, &e));
    CHECK(!blk_grow(&r.blk, 8192, &e));
    CHECK(blk_record_states(&r, 1, 8, note_state, NULL) > 10);
    for (int a = 0; a < 16; a++)
        for (int b = 0; b < 16; b++) {
            bool possible = (a == 1 || a == 2) && (b == 1 || b == 2);
            possible |= (a == 2 || a == 3) && (b == 2 || b == 3);
            test_note("state %d %d", a, b);
            CHECK(seen_content[a * 16 + b] == possible);
        }
    CHECK(seen_long[0] && seen_long[1]);
    blk_record_free(&r);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(the_recorder_itself);
    RUN(every_crash_state);
    RUN(canaries_are_caught);
    RUN(fault_sweep);
    return test_end();
}
