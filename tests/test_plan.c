/* SPDX-License-Identifier: MIT
 *
 * planner/plan.c and its two sinks. What check proves is a planner's own bug where it is not so,
 * hence an assertion: those are tried in a child process that must die of it. apply performs
 * patches in order, batches nothing over a barrier, and stops before the commit where the stream
 * is not the one that was checked.
 */
#include "blk_record.h"
#include "crc32c.h"
#include "grow.h"
#include "sinks.h"
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

enum { FILE_LEN = 64 << 10 };

static u8 image_mem[IMAGE_MEM], copy_mem[2 * BLK_IO_MAX] __attribute__((aligned(4096)));
static u8 data[1024];
static const struct plan_state first; /* an epoch that is not of P10 */
static struct plan_host copies_in = {.mem = copy_mem, .mem_len = sizeof(copy_mem)};

/* ---- the check sink ---- */

static struct image *raw_image(struct blk *b)
{
    static struct image img;
    struct err e = {0};
    CHECK(!image_open(&img, b, "raw", image_mem, &e));
    return &img;
}

/* clang-format off */
#define LENGTH(n) { .kind = PATCH_LENGTH, .len = (n), .why = "w" }
#define WRITE(o, n) { .kind = PATCH_WRITE, .off = (o), .len = (n), .data = data, .why = "w" }
#define COMMIT(o, n) \
    { .kind = PATCH_WRITE, .off = (o), .len = (n), .data = data, .why = "w", .commit = true }
#define ZERO(o, n) { .kind = PATCH_ZERO, .off = (o), .len = (n), .why = "w" }
#define COPY(o, f, n) { .kind = PATCH_COPY, .off = (o), .from_off = (f), .len = (n), .why = "w" }
#define INSERT(o, n) { .kind = PATCH_INSERT, .off = (o), .len = (n), .why = "w" }
#define BARRIER { .kind = PATCH_BARRIER, .why = "w" }
#define END { .kind = PATCH_BARRIER, .why = NULL, .len = 99 }
/* clang-format on */

static bool is_end(const struct patch *p)
{
    return p->kind == PATCH_BARRIER && p->len == 99;
}

/* Runs the patches through a check sink over a file of FILE_LEN bytes: the error's code, or -1 if
 * an assertion failed. */
static int checked(const struct patch *p)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        struct blk_mem m;
        struct check_sink c;
        struct err e = {0};
        fclose(stderr);
        blk_mem_init(&m, FILE_LEN, 512);
        check_init(&c, raw_image(&m.blk), NULL, &first);
        for (; !is_end(p) && !e.code; p++)
            c.sink.emit(&c.sink, p, &e);
        _exit((int)e.code);
    }
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* clang-format off */
static const struct {
    const char *name;
    int want;
    struct patch p[8];
} streams[] = {
    { "a write", 0, { WRITE(0, 1024), BARRIER, END } },
    { "a write to the last byte", 0, { WRITE(FILE_LEN - 5, 5), BARRIER, END } },
    { "a write past the end", -1, { WRITE(FILE_LEN - 5, 6), BARRIER, END } },
    { "a write past the end, lengthened first", 0,
      { LENGTH(FILE_LEN + 1), WRITE(FILE_LEN - 5, 6), BARRIER, END } },
    { "lengthened too late (P8)", -1, { WRITE(FILE_LEN, 1), LENGTH(FILE_LEN + 1), BARRIER, END } },
    { "zeros past the end", -1, { ZERO(FILE_LEN, 1), BARRIER, END } },
    { "an offset that wraps", -1, { WRITE(UINT64_MAX - 3, 5), BARRIER, END } },
    { "a write of nothing", -1, { WRITE(0, 0), BARRIER, END } },
    { "a write without data", -1, { { .kind = PATCH_WRITE, .len = 5, .why = "w" }, BARRIER, END } },
    { "a patch without a reason", -1, { { .kind = PATCH_ZERO, .len = 5 }, BARRIER, END } },
    { "a patch of another file", -1,
      { { .kind = PATCH_ZERO, .len = 5, .why = "w", .slot = 1 }, BARRIER, END } },
    { "a copy", 0, { COPY(0, 4096, 4096), BARRIER, END } },
    { "a copy onto itself", -1, { COPY(0, 4095, 4096), BARRIER, END } },
    { "a copy from past the end", -1, { COPY(0, FILE_LEN - 1, 2), BARRIER, END } },
    { "a commit", 0, { WRITE(512, 5), BARRIER, COMMIT(24, 36), BARRIER, END } },
    { "a commit first", 0, { COMMIT(24, 36), BARRIER, END } },
    { "a commit without a barrier before it", -1, { WRITE(512, 5), COMMIT(24, 36), BARRIER, END } },
    { "two commits (P5)", -1, { COMMIT(24, 36), BARRIER, COMMIT(24, 36), BARRIER, END } },
    { "a commit over two sectors (P5)", -1, { COMMIT(500, 13), BARRIER, END } },
    { "a commit up to a sector's end", 0, { COMMIT(500, 12), BARRIER, END } },
    { "a commit of zeros", -1,
      { { .kind = PATCH_ZERO, .len = 5, .why = "w", .commit = true }, BARRIER, END } },
    { "an insertion first", 0, { INSERT(4096, 512), WRITE(FILE_LEN, 512), BARRIER, END } },
    { "an insertion later", -1, { WRITE(0, 512), INSERT(4096, 512), BARRIER, END } },
    { "an insertion past the end", -1, { INSERT(FILE_LEN + 1, 512), BARRIER, END } },
    { "a file of more than 2^63", ERR_NO_SPACE, { LENGTH(1ull << 63), BARRIER, END } },
};
/* clang-format on */

static void what_check_accepts(void)
{
    for (unsigned i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        test_note("%s", streams[i].name);
        CHECK_EQ_U64((u64)checked(streams[i].p), (u64)streams[i].want);
    }
}

static void needs_add_up(void)
{
    struct blk_mem m;
    struct check_sink c;
    struct err e = {0};
    blk_mem_init(&m, FILE_LEN, 512);
    check_init(&c, raw_image(&m.blk), NULL, &first);
    CHECK(!plan_length(&c.sink, FILE_LEN, "as it is", &e) && !c.need.room);
    CHECK(c.length[0] == FILE_LEN && c.need.length[0] == 0);
    CHECK(!plan_length(&c.sink, 1 << 19, "w", &e) && !plan_length(&c.sink, 1 << 20, "w", &e));
    CHECK(c.need.room && c.need.length[0] == 1 << 20 && c.length[0] == 1 << 20);
    /* a shorter file needs nothing: the launcher cuts it at the end */
    check_init(&c, raw_image(&m.blk), NULL, &first);
    CHECK(!plan_length(&c.sink, 100, "shorter", &e) && !c.need.room && c.length[0] == 100);
    CHECK(m.reads + m.writes + m.grows + m.flushes == 0);
    blk_mem_free(&m);
}

static void digests_tell_streams_apart(void)
{
    struct patch a = WRITE(7, 20), b = a;
    struct digest base, d;
    u8 other[1024] = {1};
    digest_init(&base);
    digest_patch(&base, &a);
    for (int i = 0; i < 8; i++) {
        b = a;
        switch (i) {
        case 0:
            b.off++;
            break;
        case 1:
            b.len--;
            break;
        case 2:
            b.data = other;
            break;
        case 3:
            b.commit = true;
            break;
        case 4:
            b.kind = PATCH_ZERO;
            break;
        case 5:
            b.slot = 1;
            break;
        case 6:
            b.from_off = 1;
            break;
        case 7:
            b.may_unmap = true;
            break;
        }
        digest_init(&d);
        digest_patch(&d, &b);
        test_note("field %d", i);
        CHECK(d.hash != base.hash && d.cnt == 1);
    }
    digest_init(&d);
    digest_patch(&d, &a);
    CHECK(d.hash == base.hash);
    digest_patch(&d, &a);
    CHECK(d.hash != base.hash && d.cnt == 2);
}

/* ---- P10 ---- */

struct journal {
    struct plan_host h;
    u64 off[80];
    u32 crc[80];
    unsigned cnt, runs;
};

static int note_undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n,
                     struct err *e)
{
    struct journal *j = (struct journal *)h;
    (void)slot, (void)e;
    for (unsigned i = 0; i < n && j->cnt < 80; i++, j->cnt++) {
        j->off[j->cnt] = off + i * 512;
        j->crc[j->cnt] = crc[i];
    }
    j->runs++;
    return 0;
}

/* Every sector that a P10 epoch writes is shown once, with the CRC of what it will hold; what it
 * appends is too, unless it is zeros. */
static void undo_records(void)
{
    const struct plan_state p10 = {.undo = true};
    struct journal j = {.h = {.undo = note_undo, .mem = copy_mem, .mem_len = sizeof(copy_mem)}};
    struct blk_mem m, after;
    struct check_sink c;
    struct apply_sink a;
    struct err e = {0};
    static const u8 zeros[4096];
    u8 sector[512];
    blk_mem_init(&m, FILE_LEN + 100, 512); /* its end is inside a sector */
    memset(data, 0x77, sizeof(data));
    for (u64 off = 0; off < FILE_LEN; off += 512)
        blk_mem_put(&m, off, data, 512);
    blk_mem_over(&after, &m);
    memset(data, 0x31, sizeof(data));
    struct image *img = raw_image(&after.blk);
    check_init(&c, img, &j.h, &p10);
    apply_init(&a, img, &c, &j.h);
    for (int pass = 0; pass < 2; pass++) {
        struct sink *s = pass ? &a.sink : &c.sink;
        CHECK(!plan_length(s, FILE_LEN + 8192, "w", &e));
        CHECK(!plan_write(s, 500, data, 24, "w", &e) && !plan_write(s, 510, "xy", 2, "w", &e));
        CHECK(!plan_zero(s, 4096 + 8, 1024, "w", &e) && !plan_barrier(s, "w", &e));
        CHECK(!plan_write(s, FILE_LEN + 90, data, 1000, "w", &e));
        CHECK(!plan_write(s, FILE_LEN + 2048, zeros, 4096, "w", &e));
        CHECK(!plan_zero(s, FILE_LEN + 2048, 6144, "w", &e) && !plan_barrier(s, "w", &e));
    }
    CHECK(!undo_show(&c.undo, &j.h, &e));
    CHECK(j.cnt == 8 && j.runs == 3);
    for (unsigned i = 0; i < j.cnt; i++) {
        blk_mem_get(&after, j.off[i], sector, 512);
        CHECK(j.crc[i] == crc32c(0, sector, 512));
        for (unsigned k = 0; k < i; k++)
            CHECK(j.off[k] != j.off[i]);
    }
    blk_mem_free(&after);
    blk_mem_free(&m);
}

static void undo_is_bounded(void)
{
    const struct plan_state p10 = {.undo = true};
    struct journal j = {.h = {.undo = note_undo, .mem = copy_mem, .mem_len = sizeof(copy_mem)}};
    struct blk_mem m;
    struct check_sink c;
    struct err e = {0};
    blk_mem_init(&m, 4 << 20, 512);
    check_init(&c, raw_image(&m.blk), &j.h, &p10);
    CHECK(!plan_zero(&c.sink, 0, 1 << 20, "w", &e));
    CHECK(plan_zero(&c.sink, 1 << 20, 1, "w", &e) == ERR_INTERNAL_OVERFLOW);
    e = (struct err){0};
    check_init(&c, raw_image(&m.blk), &j.h, &p10);
    for (u64 i = 0; i < 65; i++)
        CHECK(!plan_zero(&c.sink, i * 4096, 1, "w", &e));
    CHECK(undo_show(&c.undo, &j.h, &e) == ERR_INTERNAL_OVERFLOW);
    blk_mem_free(&m);
}

/* ---- the apply sink ---- */

static void order_is_kept(void)
{
    struct blk_mem m;
    struct blk_record r;
    struct err e = {0};
    blk_mem_init(&m, FILE_LEN, 512);
    memset(data, 0xd7, sizeof(data));
    blk_mem_put(&m, 8192, data, 1024);
    blk_record_init(&r, &m);
    struct image *img = raw_image(&r.blk);
    struct check_sink c;
    struct apply_sink a;
    check_init(&c, img, NULL, &first);
    for (int pass = 0; pass < 2; pass++) {
        struct sink *s = pass ? &a.sink : &c.sink;
        if (pass)
            apply_init(&a, img, &c, &copies_in);
        CHECK(!plan_length(s, FILE_LEN + 4096, "w", &e) && !plan_write(s, 512, data, 512, "w", &e));
        CHECK(!plan_zero(s, FILE_LEN + 512, 1024, "w", &e) && !plan_barrier(s, "w", &e));
        CHECK(!plan_copy(s, FILE_LEN, 8192, 512, "w", &e) && !plan_barrier(s, "w", &e));
        CHECK(!plan_commit(s, 0, data, 512, "w", &e) && !plan_barrier(s, "w", &e));
        if (!pass)
            CHECK_EQ_U64(r.cnt, 0); /* check writes nothing */
    }
    static const struct {
        int kind;
        u64 off, len;
    } want[] = {{REC_GROW, 0, FILE_LEN + 4096},
                {REC_WRITE, 512, 512},
                {REC_ZERO, FILE_LEN + 512, 1024},
                {REC_FLUSH, 0, 0},
                {REC_WRITE, FILE_LEN, 512},
                {REC_FLUSH, 0, 0},
                {REC_WRITE, 0, 512},
                {REC_FLUSH, 0, 0}};
    CHECK_EQ_U64(r.cnt, 8);
    for (unsigned i = 0; i < 8 && i < r.cnt; i++)
        CHECK((int)r.log[i].kind == want[i].kind && r.log[i].off == want[i].off &&
              r.log[i].len == want[i].len);
    CHECK(r.log[4].data && !memcmp(r.log[4].data, data, 512));
    CHECK_EQ_U64(a.digest.hash, c.digest.hash);
    blk_record_free(&r);
    blk_mem_free(&m);
}

/* Copies of every length and alignment, larger than the buffer too. */
static void copies(void)
{
    static const u64 lens[] = {1, 80, 512, 513, 4096, 100000, 2 << 20, (5 << 20) + 7};
    static const u64 from[] = {0, 512, 4096, 1000};
    for (unsigned i = 0; i < 8 * 4 * 2; i++) {
        u64 len = lens[i % 8], off = from[i / 8 % 4], to = (16 << 20) + (i / 32 ? 513 : 0);
        struct blk_mem m;
        struct err e = {0};
        test_note("%llu bytes from %llu to %llu", (unsigned long long)len, (unsigned long long)off,
                  (unsigned long long)to);
        blk_mem_init(&m, 32 << 20, i % 3 ? 512 : 4096);
        u8 *x = malloc(len + 2), *y = malloc(len + 2);
        u64 seed = i + 1;
        for (u64 k = 0; k < len + 2; k++)
            x[k] = (u8)rnd(&seed);
        blk_mem_put(&m, off, x, len);
        blk_mem_put(&m, to - 1, "<", 1);
        blk_mem_put(&m, to + len, ">", 1);
        struct image *img = raw_image(&m.blk);
        struct check_sink c;
        struct apply_sink a;
        check_init(&c, img, NULL, &first);
        apply_init(&a, img, &c, &copies_in);
        CHECK(!plan_copy(&a.sink, to, off, len, "w", &e));
        blk_mem_get(&m, to, y, len);
        CHECK(!memcmp(x, y, len));
        blk_mem_get(&m, to - 1, y, 1);
        blk_mem_get(&m, to + len, y + 1, 1);
        CHECK(y[0] == '<' && y[1] == '>');
        free(x);
        free(y);
        blk_mem_free(&m);
    }
}

/* ---- both, through plan_resize() ---- */

struct meddler {
    struct plan_host h;
    struct blk_mem *m;
    u64 at, needs, shown, commits;
    u8 byte;
};

/* The image changes between check and apply: what is at `at` becomes `byte`. */
static int meddle(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    struct meddler *k = (struct meddler *)h;
    (void)epoch, (void)e;
    k->needs += n->room;
    if (k->at)
        blk_mem_put(k->m, k->at, &k->byte, 1);
    return 0;
}

static int shown(struct plan_host *h, u32 epoch, const struct patch *p, struct err *e)
{
    struct meddler *k = (struct meddler *)h;
    (void)epoch, (void)e;
    k->shown++;
    k->commits += p->commit;
    return 0;
}

static int resize_with(struct meddler *k, struct blk *b, u64 new_size, struct err *e)
{
    struct image img;
    struct resize_args a = {.new_size = new_size};
    k->h.need = meddle;
    k->h.show = shown;
    k->h.mem = copy_mem;
    k->h.mem_len = sizeof(copy_mem);
    int rc = image_open(&img, b, NULL, image_mem, e);
    return rc ? rc : plan_resize(&img, &a, &k->h, e);
}

/* A grow that moves the L1 table, at 4 KiB clusters: header 0, table 1, block 2. */
static void moving_image(struct blk_mem *m, struct made *made)
{
    static const struct make p = {
        .cluster_bits = 12, .refcount_order = 4, .size = 1 << 30, .first = 5};
    qcow2_make(m, &p, made);
}

static void a_changed_image_is_not_committed(void)
{
    /* a count that the plan rewrites, the header's l1 fields, the reftable, an autoclear bit */
    static const u64 at[] = {2 * 4096 + 2 * 14, 90, 60};
    for (unsigned i = 0; i < 3; i++) {
        struct blk_mem m, now;
        struct made made;
        struct verdict v, old;
        struct err e = {0};
        struct meddler k = {.m = &now, .at = at[i], .byte = 0x11};
        test_note("byte %llu", (unsigned long long)at[i]);
        moving_image(&m, &made);
        if (i ==
            0) /* a neighbour of what is rewritten, in the same patch: none; the count itself */
            k.at = 2 * 4096 + 2 * made.clusters + 1;
        qcow2_judge_mem(&m, 1 << 30, 0, 0, &old);
        blk_mem_over(&now, &m);
        CHECK(resize_with(&k, &now.blk, 3ull << 30, &e));
        CHECK(k.needs == 1 && k.commits == 1);
        CHECK(e.code == ERR_HEADER_MISMATCH || i == 2);
        if (i == 2) /* nb_snapshots: the header is not even valid any more */
            CHECK(e.code != OK);
        u8 size[8];
        blk_mem_get(&now, 24, size, 8);
        CHECK_EQ_U64(be64(size), 1 << 30); /* not committed */
        if (i == 1) {
            qcow2_judge_mem(&now, 1 << 30, 0, 0, &v);
            CHECK(v.opens && v.hash == old.hash && !v.corruptions);
        }
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
}

static void dry_run_writes_nothing(void)
{
    struct blk_mem m, now;
    struct made made;
    struct err e = {0};
    struct meddler k = {.m = &now, .h.dry_run = true};
    u64 at;
    moving_image(&m, &made);
    blk_mem_over(&now, &m);
    now.blk.writable = false;
    CHECK(!resize_with(&k, &now.blk, 3ull << 30, &e));
    CHECK(k.needs == 0 && k.shown > 5 && k.commits == 1);
    CHECK(k.h.length[0] > m.length && blk_mem_equal(&m, &now, &at));
    CHECK(now.writes + now.grows + now.flushes == 0);
    blk_mem_free(&now);
    blk_mem_free(&m);
}

static void a_refused_need_writes_nothing(void)
{
    struct blk_mem m, now;
    struct made made;
    struct err e = {0};
    u64 at, length;
    moving_image(&m, &made);
    blk_mem_over(&now, &m);
    now.limit = m.length; /* the grant is given, yet the room is not there */
    CHECK(grow_run(&now.blk, 3ull << 30, &length, &e));
    CHECK_ERR(&e, ERR_NO_SPACE);
    CHECK(blk_mem_equal(&m, &now, &at));
    blk_mem_free(&now);
    blk_mem_free(&m);
}

static void raw_images(void)
{
    struct blk_mem m;
    struct err e = {0}, f = {0};
    struct meddler k = {.m = &m};
    blk_mem_init(&m, 1000, 512);
    blk_mem_put(&m, 0, "hello", 5);
    CHECK(!resize_with(&k, &m.blk, 5001, &e));
    CHECK(k.h.length[0] == 5001 && k.needs == 1 && m.blk.size == 5001 && m.writes == 0);
    k.needs = 0;
    CHECK(!resize_with(&k, &m.blk, 1000, &f)); /* the launcher cuts the file afterwards */
    CHECK(k.h.length[0] == 1000 && k.needs == 0 && m.writes == 0 && m.length == 5001);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(what_check_accepts);
    RUN(needs_add_up);
    RUN(digests_tell_streams_apart);
    RUN(undo_records);
    RUN(undo_is_bounded);
    RUN(order_is_kept);
    RUN(copies);
    RUN(a_changed_image_is_not_committed);
    RUN(dry_run_writes_nothing);
    RUN(a_refused_need_writes_nothing);
    RUN(raw_images);
    return test_end();
}
