/* SPDX-License-Identifier: MIT
 *
 * planner/scratch.c: whatever is done to scratch disks reads back as it would from a real one, and
 * what lies below them never changes.
 */
#include "blk_mem.h"
#include "scratch.h"
#include "test.h"

enum { SIZE = 1 << 20, GROWN = 3 << 20, STEPS = 4000 };

static u8 memory[6 << 20] __attribute__((aligned(8)));

static void fill(struct blk_mem *m, u64 *seed)
{
    u8 buf[4096];
    for (u64 off = 0; off < m->length; off += sizeof buf) {
        for (unsigned i = 0; i < sizeof buf; i++)
            buf[i] = (u8)rnd(seed);
        blk_mem_put(m, off, buf, (size_t)min_u64(sizeof buf, m->length - off));
    }
}

/* Two disks of one pool, each beside a memory disk to which the same is done. */
static void like_a_real_one(void)
{
    u64 seed = test_seed(0x1f83d9abfb41bd6b);
    struct blk_mem below[2], frozen[2], model[2];
    struct scratch s[2];
    struct scratch_pool pool;
    struct err e = {0};
    static u8 a[9000], b[9000];
    u64 at;
    scratch_pool_init(&pool, memory, sizeof memory);
    for (u8 i = 0; i < 2; i++) {
        blk_mem_init(&below[i], SIZE + 100, i ? 4096 : 512);
        fill(&below[i], &seed);
        blk_mem_over(&frozen[i], &below[i]);
        blk_mem_over(&model[i], &below[i]);
        scratch_init(&s[i], &below[i].blk, i, &pool);
        CHECK(!blk_grow(&s[i].blk, GROWN, &e) && !blk_grow(&model[i].blk, GROWN, &e));
    }
    for (unsigned n = 0; n < STEPS && !e.code; n++) {
        unsigned i = rnd(&seed) % 2, what = rnd(&seed) % 4;
        u64 len = 1 + rnd(&seed) % sizeof a, off = rnd(&seed) % (GROWN - len);
        for (u64 k = 0; k < len; k++)
            a[k] = what == 1 ? 0 : (u8)rnd(&seed);
        if (what == 2)
            len = min_u64(len * 20, GROWN - off);
        if (what == 3) {
            CHECK(!blk_read(&s[i].blk, off, a, len, &e) && !blk_read(&model[i].blk, off, b, len, &e));
            if (!CHECK(!memcmp(a, b, len)))
                break;
            continue;
        }
        CHECK(what == 2 ? !blk_zero(&s[i].blk, off, len, true, &e) &&
                              !blk_zero(&model[i].blk, off, len, true, &e)
                        : !blk_write(&s[i].blk, off, a, len, &e) &&
                              !blk_write(&model[i].blk, off, a, len, &e));
    }
    CHECK_ERR(&e, OK);
    for (u8 i = 0; i < 2; i++) {
        CHECK(below[i].writes == 0 && blk_mem_equal(&below[i], &frozen[i], &at));
        for (u64 off = 0; off < GROWN; off += 4096) {
            CHECK(!blk_read(&s[i].blk, off, a, 4096, &e) &&
                  !blk_read(&model[i].blk, off, b, 4096, &e));
            if (!CHECK(!memcmp(a, b, 4096)))
                break;
        }
        blk_mem_free(&model[i]);
        blk_mem_free(&frozen[i]);
        blk_mem_free(&below[i]);
    }
}

/* Memory that does not suffice is an error; zeros behind the end of the disk cost none. */
static void memory_ends(void)
{
    struct blk_mem below;
    struct scratch s;
    struct scratch_pool pool;
    struct err e = {0};
    u8 byte = 1;
    blk_mem_init(&below, SIZE, 512);
    scratch_pool_init(&pool, memory, 16 << 12);
    scratch_init(&s, &below.blk, 0, &pool);
    CHECK(!blk_grow(&s.blk, 1ull << 50, &e));
    CHECK(!blk_zero(&s.blk, SIZE, (1ull << 50) - SIZE, false, &e) && pool.used_slots == 0);
    for (u64 i = 0; !blk_write(&s.blk, SIZE + i * 4096, &byte, 1, &e); i++)
        CHECK(i < 16);
    CHECK_ERR(&e, ERR_SCRATCH_TOO_SMALL);
    blk_mem_free(&below);
}

int main(void)
{
    RUN(like_a_real_one);
    RUN(memory_ends);
    return test_end();
}
