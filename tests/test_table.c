/* SPDX-License-Identifier: MIT
 *
 * formats/table.c: a window over a table far larger than itself reads rightly, at any place, and
 * cheaply where it is walked in order.
 */
#include "blk_fault.h"
#include "blk_mem.h"
#include "table.h"
#include "test.h"

enum { ENTRIES = 5000, OFF = 3 * 512 };

static u8 win_mem[3 * BLK_SECTOR_MAX];

static u64 value(u64 i)
{
    return i * 0x9e3779b97f4a7c15ull + 1;
}

static void fill(struct blk_mem *m, u32 sector)
{
    blk_mem_init(m, OFF + ENTRIES * 8, sector);
    for (u64 i = 0; i < ENTRIES; i++) {
        u8 b[8];
        put_be64(b, value(i));
        blk_mem_put(m, OFF + i * 8, b, 8);
    }
}

static void walk(void)
{
    for (u32 sector = 512; sector <= 4096; sector *= 8) {
        struct blk_mem m;
        struct window w;
        struct err e = {0};
        fill(&m, sector);
        window_init(&w, win_mem, sizeof(win_mem));
        struct table t = {&m.blk, &w, OFF, ENTRIES};
        for (u64 i = 0; i < ENTRIES; i++) {
            u64 v;
            CHECK(!table_get(&t, i, &v, &e) && v == value(i));
        }
        /* one request per window, and one more for the sector that two of them share; the last
         * may be cut at the last whole sector */
        CHECK(m.reads <= ENTRIES * 8 / (sizeof(win_mem) - sector) + 3);
        blk_mem_free(&m);
    }
}

static void anywhere(void)
{
    struct blk_mem m;
    struct window w;
    struct err e = {0};
    u64 seed = test_seed(0x7ab1e);
    fill(&m, 512);
    window_init(&w, win_mem, sizeof(win_mem));
    struct table t = {&m.blk, &w, OFF, ENTRIES};
    for (int i = 0; i < 20000; i++) {
        u64 idx = rnd_below(&seed, ENTRIES), v;
        CHECK(!table_get(&t, idx, &v, &e) && v == value(idx));
    }
    blk_mem_free(&m);
}

static void past_the_count(void)
{
    struct blk_mem m;
    struct window w;
    struct err e = {0};
    u64 v = 5;
    fill(&m, 512);
    window_init(&w, win_mem, sizeof(win_mem));
    struct table t = {&m.blk, &w, OFF, 100};
    CHECK(!table_get(&t, 100, &v, &e) && v == 0);
    v = 5;
    CHECK(!table_get(&t, UINT64_MAX, &v, &e) && v == 0 && m.reads == 0);
    /* the table goes on past the end of the file: zeros */
    t.cnt = 2 * ENTRIES;
    CHECK(!table_get(&t, ENTRIES - 1, &v, &e) && v == value(ENTRIES - 1));
    CHECK(!table_get(&t, ENTRIES, &v, &e) && v == 0);
    CHECK(!table_get(&t, 2 * ENTRIES - 1, &v, &e) && v == 0);
    blk_mem_free(&m);
}

/* A dropped window reads the disk again; one that was not need not. Two disks do not mix. */
static void drop_and_switch(void)
{
    struct blk_mem a, b;
    struct window w;
    struct err e = {0};
    const u8 *p;
    fill(&a, 512);
    blk_mem_init(&b, 8192, 512);
    blk_mem_put(&b, OFF, "other", 5);
    window_init(&w, win_mem, sizeof(win_mem));
    CHECK(!window_get(&w, &a.blk, OFF, 8, OFF + 8, &p, &e) && be64(p) == value(0));
    CHECK(!window_get(&w, &b.blk, OFF, 8, OFF + 8, &p, &e) && !memcmp(p, "other", 5));
    blk_mem_put(&b, OFF, "OTHER", 5);
    window_drop(&w);
    CHECK(!window_get(&w, &b.blk, OFF, 8, OFF + 8, &p, &e) && !memcmp(p, "OTHER", 5));
    /* the longest run that a window promises, at the worst alignment */
    u32 len = sizeof(win_mem) - BLK_SECTOR_MAX;
    CHECK(!window_get(&w, &a.blk, OFF + 511, len, OFF + 511 + len, &p, &e));
    u8 *want = malloc(len);
    blk_mem_get(&a, OFF + 511, want, len);
    CHECK(!memcmp(p, want, len));
    free(want);
    blk_mem_free(&a);
    blk_mem_free(&b);
}

/* After a failed read the window holds nothing: its buffer may hold anything. */
static void failure_is_not_cached(void)
{
    struct blk_mem m;
    struct blk_fault f;
    struct window w;
    struct err e = {0}, e2 = {0};
    u64 v;
    fill(&m, 512);
    blk_fault_init(&f, &m.blk, 2, false);
    window_init(&w, win_mem, sizeof(win_mem));
    struct table t = {&f.blk, &w, OFF, ENTRIES};
    CHECK(!table_get(&t, 7, &v, &e) && v == value(7));
    CHECK(table_get(&t, ENTRIES - 1, &v, &e));
    CHECK_ERR(&e, ERR_READ_FAILED);
    CHECK(w.blk == NULL && v == 0);
    CHECK(!table_get(&t, 7, &v, &e2) && v == value(7) && f.seen == 3);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(walk);
    RUN(anywhere);
    RUN(past_the_count);
    RUN(drop_and_switch);
    RUN(failure_is_not_cached);
    return test_end();
}
