/* SPDX-License-Identifier: MIT
 *
 * formats/blk.c over a backend that notes each request: any offset, length and alignment at sectors
 * of 512 and 4096 reads, modifies and writes exactly the right sectors, in order; nothing reaches
 * the backend that is out of range or that a read-only disk must not see; a dead device is an
 * error.
 */
#include "blk_fault.h"
#include "blk_mem.h"
#include "test.h"

enum { SIZE = 5 * 4096 + 1000, NOTES = 64 };

/* ---- a backend that notes requests ---- */

static struct {
    char op; /* r w z d f g */
    u64 off, len;
} notes[NOTES];
static unsigned noted;
static struct blk_mem under;

static void note(char op, u64 off, u64 len)
{
    assert(noted < NOTES);
    notes[noted].op = op;
    notes[noted].off = off;
    notes[noted++].len = len;
}

static int n_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    (void)b;
    note('r', off, len);
    return under.blk.ops->read(&under.blk, off, buf, len, e);
}

static int n_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    (void)b;
    note('w', off, len);
    return under.blk.ops->write(&under.blk, off, buf, len, e);
}

static int n_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    (void)b;
    note(may_unmap ? 'u' : 'z', off, len);
    return under.blk.ops->zero(&under.blk, off, len, may_unmap, e);
}

static int n_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    (void)b, (void)e;
    note('d', off, len);
    return 0;
}

static int n_flush(struct blk *b, struct err *e)
{
    (void)b, (void)e;
    note('f', 0, 0);
    return 0;
}

static int n_grow(struct blk *b, u64 new_size, struct err *e)
{
    (void)b;
    note('g', 0, new_size);
    return under.blk.ops->grow(&under.blk, new_size, e);
}

static int n_batch(struct blk_req *r, unsigned n, struct err *e)
{
    (void)r, (void)e;
    note('b', 0, n);
    return 0;
}

static struct blk_ops ops = {n_read, n_write, n_zero, n_discard, n_flush, n_grow, NULL};

static u8 model[SIZE + 4096];

/* A disk of SIZE bytes full of a pattern, all of it in model[] too. */
static struct blk fresh(u32 sector)
{
    noted = 0;
    memset(model, 0, sizeof(model));
    for (int i = 0; i < SIZE; i++)
        model[i] = (u8)(i * 7 + i / 512 + 1) | 1;
    blk_mem_free(&under);
    blk_mem_init(&under, SIZE, sector);
    blk_mem_put(&under, 0, model, SIZE);
    return (struct blk){.ops = &ops, .size = SIZE, .sector = sector, .writable = true};
}

static bool as_model(void)
{
    static u8 now[sizeof(model)];
    blk_mem_get(&under, 0, now, sizeof(now));
    return !memcmp(now, model, sizeof(now));
}

/* Offsets and lengths around every kind of edge. */
static const u64 edges[] = {0,    1,    511,   512,   513,        1024,     4095, 4096,
                            4097, 8192, 12288, 20480, SIZE - 513, SIZE - 1, SIZE};
enum { EDGES = sizeof(edges) / sizeof(edges[0]) };

/* Requests of a read-modify-write of [off, end): at most one read and one write of a single sector
 * at either end, whole sectors between, ascending, nothing else; exactly the sectors touched. */
static void check_requests(u64 off, u64 end, u32 sector, char whole)
{
    u64 at = round_down(off, sector);
    unsigned i = 0;
    while (at < end) {
        bool partial = at < off || at + sector > end;
        if (partial) {
            CHECK(i + 1 < noted && notes[i].op == 'r' && notes[i].off == at);
            CHECK(notes[i].len == sector && notes[i + 1].op == 'w' && notes[i + 1].off == at);
            CHECK_EQ_U64(notes[i + 1].len, sector);
            at += sector;
            i += 2;
        } else {
            CHECK(i < noted && notes[i].op == whole && notes[i].off == at);
            CHECK(notes[i].len % sector == 0);
            CHECK_EQ_U64(at + notes[i].len, round_down(end, sector));
            at += notes[i++].len;
        }
    }
    CHECK_EQ_U64(i, noted);
}

static void every_alignment(void (*one)(u32 sector, u64 off, u64 end))
{
    for (u32 sector = 512; sector <= 4096; sector *= 8)
        for (unsigned a = 0; a < EDGES; a++)
            for (unsigned b = a + 1; b < EDGES; b++) {
                test_note("sector %u, [%llu, %llu)", sector, (unsigned long long)edges[a],
                          (unsigned long long)edges[b]);
                one(sector, edges[a], edges[b]);
            }
}

static void one_write(u32 sector, u64 off, u64 end)
{
    static u8 data[SIZE];
    struct blk b = fresh(sector);
    struct err e = {0};
    memset(data, 0xe6, sizeof(data));
    CHECK_EQ_U64((u64)blk_write(&b, off, data, end - off, &e), 0);
    check_requests(off, end, sector, 'w');
    memset(model + off, 0xe6, end - off);
    CHECK(as_model());
}

static void write_byte_range(void)
{
    every_alignment(one_write);
}

static void one_zero(u32 sector, u64 off, u64 end)
{
    struct blk b = fresh(sector);
    struct err e = {0};
    CHECK_EQ_U64((u64)blk_zero(&b, off, end - off, false, &e), 0);
    check_requests(off, end, sector, 'z');
    memset(model + off, 0, end - off);
    CHECK(as_model());
}

static void zero_byte_range(void)
{
    every_alignment(one_zero);
    struct blk b = fresh(512);
    struct err e = {0};
    CHECK(!blk_zero(&b, 512, 1024, true, &e) && noted == 1 && notes[0].op == 'u');
}

static void one_read(u32 sector, u64 off, u64 end)
{
    static u8 buf[SIZE + 4];
    struct blk b = fresh(sector);
    struct err e = {0};
    buf[0] = buf[end - off + 1] = 0x99;
    CHECK_EQ_U64((u64)blk_read(&b, off, buf + 1, end - off, &e), 0);
    CHECK(!memcmp(buf + 1, model + off, end - off));
    CHECK(buf[0] == 0x99 && buf[end - off + 1] == 0x99);
    CHECK(noted >= 1 && notes[0].off == round_down(off, sector));
    for (unsigned i = 0; i < noted; i++)
        CHECK(notes[i].op == 'r' && (!i || notes[i].off == notes[i - 1].off + notes[i - 1].len));
    CHECK_EQ_U64(notes[noted - 1].off + notes[noted - 1].len, round_up(end, sector));
}

static void read_byte_range(void)
{
    every_alignment(one_read);
}

static void one_discard(u32 sector, u64 off, u64 end)
{
    struct blk b = fresh(sector);
    struct err e = {0};
    u64 first = round_up(off, sector), last = round_down(end, sector);
    CHECK_EQ_U64((u64)blk_discard(&b, off, end - off, &e), 0);
    CHECK_EQ_U64(noted, first < last);
    if (first < last)
        CHECK(notes[0].op == 'd' && notes[0].off == first && notes[0].len == last - first);
    CHECK(as_model());
}

static void discard_drops_whole_sectors_only(void)
{
    every_alignment(one_discard);
}

/* No request is longer than BLK_IO_MAX; those between the ends are whole sectors, in order. */
static void big_transfers_are_cut(void)
{
    u64 off = 4091, len = 3 * BLK_IO_MAX + 4096 + 5 + 7, end = off + len;
    u8 *buf = malloc(len), *back = malloc(len);
    struct blk b = fresh(4096);
    struct err e = {0};
    memset(buf, 0x5c, len);
    under.length = under.blk.size = b.size = 8ull << 20;
    CHECK(!blk_write(&b, off, buf, len, &e));
    CHECK_EQ_U64(noted, 2 + 4 + 2);
    u64 at = 4096;
    for (unsigned i = 2; i < noted - 2; i++) {
        CHECK(notes[i].op == 'w' && notes[i].off == at && notes[i].len <= BLK_IO_MAX);
        at += notes[i].len;
    }
    CHECK(notes[0].op == 'r' && notes[0].off == 0 && notes[1].op == 'w' && notes[1].off == 0);
    CHECK_EQ_U64(at, round_down(end, 4096));
    CHECK(notes[noted - 1].op == 'w' && notes[noted - 1].off == at);
    CHECK(!blk_read(&b, off, back, len, &e) && !memcmp(buf, back, len));
    blk_mem_get(&under, off - 1, back, 1);
    CHECK(back[0] == model[off - 1]);
    free(buf);
    free(back);
}

static void past_the_end(void)
{
    u8 buf[600];
    for (u32 sector = 512; sector <= 4096; sector *= 8) {
        struct blk b = fresh(sector);
        test_note("sector %u", sector);
        memset(buf, 0xaa, sizeof(buf));
        struct err e = {0};
        CHECK(!blk_read(&b, SIZE - 100, buf, 600, &e));
        CHECK(!memcmp(buf, model + SIZE - 100, 100));
        for (int i = 100; i < 600; i++)
            CHECK(buf[i] == 0);
        noted = 0;
        CHECK(!blk_read(&b, SIZE, buf, 600, &e) && !blk_read(&b, 1ull << 60, buf, 600, &e));
        CHECK(!blk_read(&b, UINT64_MAX, buf, 600, &e) && noted == 0 && buf[0] == 0);
        CHECK(blk_write(&b, SIZE - 1, buf, 2, &e));
        CHECK_ERR(&e, ERR_WRITE_FAILED);
        static const u64 bad[][2] = {{SIZE, 1},
                                     {UINT64_MAX, 1},
                                     {UINT64_MAX - 1, 2},
                                     {SIZE - 1, UINT64_MAX},
                                     {1ull << 63, 1ull << 63}};
        for (unsigned i = 0; i < 5; i++) {
            struct err z = {0}, d = {0};
            CHECK(blk_zero(&b, bad[i][0], bad[i][1], true, &z));
            CHECK_ERR(&z, ERR_WRITE_FAILED);
            CHECK(blk_discard(&b, bad[i][0], bad[i][1], &d));
            CHECK_ERR(&d, ERR_WRITE_FAILED);
        }
        CHECK(noted == 0 && as_model());
    }
}

static void read_only(void)
{
    u8 byte = 1;
    struct blk b = fresh(512);
    b.writable = false;
    struct err e[4] = {{0}};
    CHECK(blk_write(&b, 0, &byte, 1, &e[0]) && blk_zero(&b, 0, 512, true, &e[1]));
    CHECK(blk_discard(&b, 0, 512, &e[2]) && blk_grow(&b, 1 << 20, &e[3]));
    for (int i = 0; i < 4; i++)
        CHECK_ERR(&e[i], ERR_WRITE_FAILED);
    struct err r = {0};
    struct blk_req req = {&b, BLK_WRITE, 0, model, 512};
    CHECK(blk_batch(&req, 1, &r));
    CHECK_ERR(&r, ERR_WRITE_FAILED);
    struct err f = {0};
    CHECK(!blk_flush(&b, &f) && noted == 0 && as_model());
}

static void growing(void)
{
    struct blk b = fresh(512);
    struct err e = {0};
    u8 byte = 0x77;
    CHECK(!blk_grow(&b, SIZE - 5, &e) && b.size == SIZE && noted == 0);
    CHECK(!blk_grow(&b, 1 << 20, &e) && b.size == 1 << 20);
    CHECK(noted == 1 && notes[0].op == 'g' && notes[0].len == 1 << 20);
    under.blk.size = 1 << 20;
    CHECK(!blk_write(&b, (1 << 20) - 1, &byte, 1, &e));
    under.limit = 1 << 20;
    CHECK(blk_grow(&b, 2 << 20, &e));
    CHECK_ERR(&e, ERR_NO_SPACE);
    CHECK_EQ_U64(b.size, 1 << 20);
}

static void batches(void)
{
    struct blk b = fresh(512);
    static u8 in[4][512];
    struct err e = {0};
    struct blk_req r[4];
    for (unsigned i = 0; i < 4; i++)
        r[i] = (struct blk_req){&b, i % 2 ? BLK_WRITE : BLK_READ, i * 1024, in[i], 512};
    memset(in[1], 0x42, 512), memset(in[3], 0x43, 512);
    CHECK(!blk_batch(r, 4, &e) && noted == 4);
    CHECK(!memcmp(in[0], model, 512) && !memcmp(in[2], model + 2048, 512));
    memset(model + 1024, 0x42, 512), memset(model + 3072, 0x43, 512);
    CHECK(as_model());
    /* the last, partial sector may be named; what lies behind it may not */
    r[0] = (struct blk_req){&b, BLK_READ, round_down(SIZE, 512), in[0], 512};
    CHECK(!blk_batch(r, 1, &e));
    r[0].off += 512;
    CHECK(blk_batch(r, 1, &e));
    CHECK_ERR(&e, ERR_READ_FAILED);
    struct err w = {0};
    r[0].op = BLK_WRITE;
    noted = 0;
    CHECK(blk_batch(r, 1, &w) && noted == 0);
    CHECK_ERR(&w, ERR_WRITE_FAILED);
    struct err o = {0};
    r[0].off = UINT64_MAX - 511;
    CHECK(blk_batch(r, 1, &o) && noted == 0);
    /* a backend that takes batches gets them whole */
    ops.batch = n_batch;
    r[0].off = 0;
    struct err k = {0};
    CHECK(!blk_batch(r, 4, &k) && noted == 1 && notes[0].op == 'b' && notes[0].len == 4);
    ops.batch = NULL;
}

/* A device that is missing or dead: an error of the right kind from each call, at each request. */
static void fail_closed(void)
{
    u8 buf[3000] = {0};
    for (u64 n = 1; n < 12; n++) {
        struct blk b = fresh(512);
        struct blk_fault f;
        struct err e = {0};
        test_note("request %llu", (unsigned long long)n);
        blk_fault_init(&f, &b, n, true);
        int rc = blk_write(&f.blk, 100, buf, sizeof(buf), &e);
        CHECK((rc != 0) == (n <= 5)); /* r w | w | r w */
        CHECK(!rc || (e.code == (n == 1 || n == 4 ? ERR_READ_FAILED : ERR_WRITE_FAILED)));
        CHECK_EQ_U64(noted, min_u64(n - 1, 5));
    }
    struct blk b = fresh(512);
    struct blk_fault f;
    struct err r = {0}, z = {0}, fl = {0}, g = {0}, d = {0};
    test_note("%s", "");
    blk_fault_init(&f, &b, 1, true);
    CHECK(blk_read(&f.blk, 0, buf, 512, &r) && blk_zero(&f.blk, 0, 512, false, &z));
    CHECK(blk_flush(&f.blk, &fl) && blk_grow(&f.blk, 1 << 20, &g));
    CHECK(blk_discard(&f.blk, 0, 512, &d));
    CHECK_ERR(&r, ERR_READ_FAILED);
    CHECK_ERR(&z, ERR_WRITE_FAILED);
    CHECK_ERR(&fl, ERR_WRITE_FAILED);
    CHECK_ERR(&g, ERR_NO_SPACE);
    CHECK(noted == 0 && as_model());
}

/* The memory disk itself: petabytes, copies, equality. */
/* ---- the cache ---- */

static struct blk_cache cache;

static struct blk fresh_cached(u32 sector)
{
    struct blk b = fresh(sector);
    b.cache = &cache;
    blk_forget(&b);
    return b;
}

/* What it saves, and that it can be told to forget. */
static void cached_requests(void)
{
    struct blk b = fresh_cached(512);
    struct err e = {0};
    u8 p[1024];
    CHECK(!blk_read(&b, 3, p, 8, &e) && !blk_read(&b, 512, p, 1024, &e) && noted == 1);
    CHECK(notes[0].op == 'r' && notes[0].off == 0 && notes[0].len == 4096);
    CHECK(!blk_write(&b, 600, "x", 1, &e) && noted == 2 && notes[1].op == 'w');
    CHECK(!blk_read(&b, 600, p, 1, &e) && p[0] == 'x' && noted == 2);
    CHECK(!blk_read(&b, SIZE - 1, p, 9, &e) && noted == 3 && notes[2].len == 1024);
    blk_mem_put(&under, 600, "y", 1);
    CHECK(!blk_read(&b, 600, p, 1, &e) && p[0] == 'x');
    blk_forget(&b);
    CHECK(!blk_read(&b, 600, p, 1, &e) && p[0] == 'y');
}

static int n_fail(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    (void)buf;
    blk_mem_put(&under, off, "?", 1); /* it got there, or not */
    return FAIL(e, ERR_WRITE_FAILED, "as it was told", off, len + b->sector);
}

static void cached_write_that_fails(void)
{
    struct blk b = fresh_cached(512);
    struct err e = {0};
    u8 p[8];
    CHECK(!blk_read(&b, 0, p, 8, &e));
    ops.write = n_fail;
    CHECK(blk_write(&b, 0, p, 8, &e));
    ops.write = n_write;
    CHECK(!blk_read(&b, 0, p, 8, &(struct err){0}) && p[0] == '?');
}

/* Any mixture of requests: it reads what a disk without a cache would. */
static void cached_like_uncached(void)
{
    static u8 want[2 * SIZE], got[2 * SIZE];
    u64 seed = test_seed(4711);
    struct blk b;
    for (int i = 0; i < 20000; i++) {
        struct err e = {0};
        if (i % 500 == 0)
            b = fresh_cached(i % 1000 ? 512 : 4096);
        u64 off = rnd_below(&seed, SIZE), len = rnd_below(&seed, i % 3 ? 700 : SIZE - off);
        len = min_u64(len, SIZE - off);
        u64 what = rnd_below(&seed, 6);
        noted = 0;
        for (u64 k = 0; k < len; k++)
            want[k] = (u8)rnd(&seed);
        if (what == 0)
            CHECK(!blk_write(&b, off, want, len, &e));
        else if (what == 1)
            CHECK(!blk_zero(&b, off, len, false, &e));
        noted = 0;
        off = rnd_below(&seed, SIZE), len = rnd_below(&seed, i % 2 ? 5000 : 600);
        blk_mem_get(&under, off, want, len);
        CHECK(!blk_read(&b, off, got, len, &e));
        if (!CHECK(!memcmp(got, want, off + len > SIZE ? SIZE - off : len)))
            return;
    }
}

static void memory_disk(void)
{
    struct blk_mem m, over;
    u64 at;
    u8 b[16];
    blk_mem_init(&m, 1ull << 50, 4096);
    blk_mem_put(&m, (1ull << 49) + 4090, "0123456789abcdef", 16);
    blk_mem_over(&over, &m);
    CHECK(blk_mem_equal(&m, &over, &at) && m.pages == 2);
    blk_mem_put(&over, (1ull << 49) + 4091, "X", 1);
    CHECK(!blk_mem_equal(&m, &over, &at) && at == (1ull << 49) + 4091);
    blk_mem_get(&over, (1ull << 49) + 4090, b, 16);
    CHECK(!memcmp(b, "0X23456789abcdef", 16));
    blk_mem_get(&m, (1ull << 49) + 4090, b, 16);
    CHECK(!memcmp(b, "0123456789abcdef", 16));
    blk_mem_clear(&over, (1ull << 49) + 4096, 4096);
    CHECK(blk_mem_hole(&over, (1ull << 49) + 4096, 10) && !blk_mem_hole(&over, 1ull << 49, 4096));
    blk_mem_truncate(&over, 100);
    CHECK(!blk_mem_equal(&m, &over, &at) && over.blk.size == 100);
    blk_mem_free(&over);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(write_byte_range);
    RUN(zero_byte_range);
    RUN(read_byte_range);
    RUN(discard_drops_whole_sectors_only);
    RUN(big_transfers_are_cut);
    RUN(past_the_end);
    RUN(read_only);
    RUN(growing);
    RUN(batches);
    RUN(fail_closed);
    RUN(cached_requests);
    RUN(cached_write_that_fails);
    RUN(cached_like_uncached);
    RUN(memory_disk);
    blk_mem_free(&under);
    return test_end();
}
