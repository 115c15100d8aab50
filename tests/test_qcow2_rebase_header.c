/* SPDX-License-Identifier: MIT
 *
 * Changing the reference of a qcow2 image, over header clusters of every shape: random extensions,
 * known and not, a name anywhere behind them, what nobody uses filled with garbage. A parser of the
 * test's own compares what was there with what is there: extensions in order and byte for byte, the
 * name, the format, and that nothing else has changed. Then every crash state, with the journal
 * rolled back where there is one: the image says all of the old or all of the new.
 */
#include "blk_fault.h"
#include "blk_record.h"
#include "crc32c.h"
#include "plan.h"
#include "qcow2_make.h"
#include "test.h"

#include <unistd.h>

enum { CLUSTER_MAX = 1 << 16, EXTS_MAX = 12, ROUNDS = 4000, CRASH_EVERY = 8, QEMU_EVERY = 97 };

/* ---- the test's own reading ---- */

struct ext {
    u32 type, len, off;
};

struct view {
    u8 bytes[CLUSTER_MAX];
    u32 cluster, header_length, cnt, end; /* end: of the extensions, with their mark */
    struct ext ext[EXTS_MAX];             /* all but the backing format */
    char format[16], name[1024];
    u32 name_off, name_len;
    bool sane;
};

static void look(struct view *v, const struct blk_mem *m, u32 cluster)
{
    memset(v, 0, sizeof(*v));
    blk_mem_get(m, 0, v->bytes, cluster);
    u32 version = be32(v->bytes + 4);
    v->cluster = cluster;
    v->header_length = version == 2 ? 72 : be32(v->bytes + 100);
    v->name_off = (u32)be64(v->bytes + 8);
    v->name_len = v->name_off ? be32(v->bytes + 16) : 0;
    if (v->name_len > 1023 || v->name_off + v->name_len > cluster)
        return;
    memcpy(v->name, v->bytes + v->name_off, v->name_len);
    u32 off = v->header_length, end = v->name_len ? v->name_off : cluster;
    while (off + 8 <= end && be32(v->bytes + off)) {
        struct ext x = {be32(v->bytes + off), be32(v->bytes + off + 4), off + 8};
        if (x.off + x.len > end || v->cnt == EXTS_MAX)
            return;
        if (x.type != 0xe2792acau)
            v->ext[v->cnt++] = x;
        else if (x.len > 15)
            return;
        else
            memcpy(memset(v->format, 0, sizeof(v->format)), v->bytes + x.off, x.len);
        off = x.off + (x.len + 7) / 8 * 8;
    }
    v->end = off < end ? off + 8 : off;
    v->sane = v->end <= end;
}

static bool same_extensions(const struct view *a, const struct view *b)
{
    bool same = a->cnt == b->cnt;
    for (u32 i = 0; same && i < a->cnt; i++)
        same = a->ext[i].type == b->ext[i].type && a->ext[i].len == b->ext[i].len &&
               memcmp(a->bytes + a->ext[i].off, b->bytes + b->ext[i].off, a->ext[i].len) == 0;
    return same;
}

static bool says(const struct view *v, const char *name, const char *format)
{
    return v->sane && strcmp(v->name, name) == 0 && strcmp(v->format, format) == 0;
}

/* Bytes that are none of the reference's stay what they are (P6). */
static bool rest_kept(const struct view *was, const struct view *is)
{
    for (u32 i = 0; i < is->cluster; i++) {
        bool reference = (i >= 8 && i < 20) || (i >= is->header_length && i < is->end) ||
                         (i >= is->name_off && i - is->name_off < is->name_len);
        if (!reference && was->bytes[i] != is->bytes[i])
            return false;
    }
    return true;
}

/* ---- making ---- */

static u32 put_ext(u8 *c, u32 off, u32 type, const void *data, u32 len)
{
    put_be32(c + off, type);
    put_be32(c + off + 4, len);
    memcpy(c + off + 8, data, len);
    return off + 8 + (len + 7) / 8 * 8;
}

static void random_text(u64 *seed, char *to, u32 len)
{
    for (u32 i = 0; i < len; i++)
        to[i] = (char)('a' + rnd_below(seed, 26));
    to[len] = 0;
}

static u32 random_len(u64 *seed, u32 most)
{
    return (u32)rnd_below(seed, rnd_below(seed, 3) ? min_u64(most, 40) + 1 : most + 1);
}

/* One extension at `off`, if it fits; where the next one goes. */
static u32 random_ext(u64 *seed, u8 *c, u32 off, u32 room, bool *format)
{
    u8 data[1024];
    u32 len = random_len(seed, 1000), type = 0x71000000 | (u32)rnd_below(seed, 1 << 20);
    for (u32 i = 0; i < len; i++)
        data[i] = (u8)rnd(seed);
    if (!*format && rnd_below(seed, 3) == 0) {
        *format = true;
        type = 0xe2792aca;
        len = 1 + (u32)rnd_below(seed, 15);
        random_text(seed, (char *)data, len);
    } else if (rnd_below(seed, 3) == 0) {
        type = 0x6803f857;
        len = 48 * (1 + (u32)rnd_below(seed, 8));
    }
    return off + 8 + (len + 7) / 8 * 8 + 8 <= room ? put_ext(c, off, type, data, len) : off;
}

/* Extensions and name into the header cluster c; what is left over becomes garbage. */
static void random_header(u64 *seed, u8 *c, u32 cluster)
{
    u32 version = be32(c + 4), off = version == 2 ? 72 : be32(c + 100);
    u32 n = (u32)rnd_below(seed, 6), len = random_len(seed, 1023);
    bool format = false, mark = true;
    memset(c + off, 0, cluster - off);
    for (u32 i = 0; i < n; i++)
        off = random_ext(seed, c, off, cluster, &format);
    u32 room = cluster - off;
    if (len && room > len && rnd_below(seed, 3)) {
        mark = rnd_below(seed, 6) && room - len >= 8;
        u32 gap = mark && rnd_below(seed, 2) ? (u32)rnd_below(seed, room - len - 7) : 0;
        u32 at = off + (mark ? 8 : 0) + gap;
        char name[1024];
        random_text(seed, name, len);
        for (u32 i = off + 8; mark && i < cluster; i++)
            c[i] = (u8)rnd(seed);
        memcpy(c + at, name, len);
        put_be64(c + 8, at);
        put_be32(c + 16, len);
    } else if (room >= 8 && rnd_below(seed, 2)) {
        for (u32 i = off + 8; i < cluster; i++)
            c[i] = (u8)rnd(seed);
    }
}

static u32 random_image(u64 *seed, struct blk_mem *m)
{
    static u8 c[CLUSTER_MAX];
    struct made made;
    struct make p = {.cluster_bits = 9 + (u32)rnd_below(seed, 8),
                     .refcount_order = 4,
                     .version = 2 + (rnd_below(seed, 4) != 0),
                     .size = 1 << 16};
    u32 cluster = 1u << p.cluster_bits;
    if (p.version == 3 && rnd_below(seed, 3) == 0)
        p.header_length = 104 + 8 * (u32)rnd_below(seed, rnd_below(seed, 8) ? 4 : 30);
    if (p.version == 3 && rnd_below(seed, 4) == 0)
        p.autoclear = 1ull << (2 + rnd_below(seed, 60));
    qcow2_make(m, &p, &made);
    blk_mem_get(m, 0, c, cluster);
    random_header(seed, c, cluster);
    blk_mem_put(m, 0, c, cluster);
    return cluster;
}

/* ---- running ---- */

static struct {
    bool asked;
    unsigned cnt;
    u64 off[2048];
    u32 crc[2048];
} journal;

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)e;
    assert(slot == 0 && n && journal.cnt + n <= 2048);
    for (unsigned i = 0; i < n; i++, journal.cnt++) {
        journal.off[journal.cnt] = off + i * 512;
        journal.crc[journal.cnt] = crc[i];
    }
    return 0;
}

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)epoch, (void)e;
    assert(n->undo && !n->room);
    journal.asked = true;
    return 0;
}

static int rebase(struct blk *b, const char *name, const char *format, struct err *e)
{
    static u8 mem[IMAGE_MEM], copy_mem[2 * BLK_IO_MAX], work[PLAN_WORK];
    struct image img;
    struct plan_host h = {.need = need, .undo = undo, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    struct rebase_args a = {
        .unsafe = true, .name = name, .format = format, .work = work, .work_len = sizeof(work)};
    journal.cnt = 0;
    journal.asked = false;
    int rc = image_open(&img, b, "qcow2", mem, e);
    return rc ? rc : plan_rebase(&img, &a, &h, e);
}

/* ---- judging ---- */

struct crash {
    const struct blk_mem *old;
    struct view was, state;
    const char *name, *format;
    u64 olds, news, autoclear;
};

/* What recovery does: each sector of the journal as it was, if it is one of the two. */
static bool roll_back(const struct crash *c, struct blk_mem *state)
{
    u8 now[512], then[512];
    for (unsigned i = 0; i < journal.cnt; i++) {
        blk_mem_get(state, journal.off[i], now, 512);
        blk_mem_get(c->old, journal.off[i], then, 512);
        if (memcmp(now, then, 512) && crc32c(0, now, 512) != journal.crc[i])
            return false;
        blk_mem_put(state, journal.off[i], then, 512);
    }
    blk_mem_truncate(state, c->old->length);
    return true;
}

static bool judge(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    u64 at;
    if (journal.cnt)
        return CHECK(roll_back(c, state)) && CHECK(blk_mem_equal(state, c->old, &at));
    look(&c->state, state, c->was.cluster);
    bool old = says(&c->state, c->was.name, c->was.format);
    bool new = says(&c->state, c->name, c->format);
    c->olds += old;
    c->news += new;
    bool fine = (old || new) && same_extensions(&c->was, &c->state);
    if (!CHECK(fine))
        printf("    %s: name '%.40s', format '%s'\n", what, c->state.name, c->state.format);
    return fine;
}

/* What qemu-img reads from it. */
static void show_qemu(const struct blk_mem *m, const char *name, const char *format)
{
    const char *path = test_path("rebase.qcow2");
    if (CHECK(blk_mem_save(m, path))) {
        if (*name)
            CHECK(!test_system("qemu-img info -f qcow2 %s | grep -q '^backing file: .*%s\\b'", path,
                               name));
        else
            CHECK(test_system("qemu-img info -f qcow2 %s | grep -q '^backing file'", path) == 1);
        if (*format)
            CHECK(!test_system("qemu-img info -f qcow2 %s | grep -qx 'backing file format: %s'",
                               path, format));
        CHECK(!test_system("qemu-img info -f qcow2 %s", path));
    }
    unlink(path);
}

struct tally {
    u64 at_once, journaled, no_room, states, faults, qemu, nothing;
};

static void check_room(const struct crash *c, struct tally *t)
{
    u64 need = c->was.header_length + 8 + strlen(c->name);
    for (u32 i = 0; i < c->was.cnt; i++)
        need += 8 + round_up(c->was.ext[i].len, 8);
    need += *c->format ? 8 + round_up(strlen(c->format), 8) : 0;
    CHECK(need > c->was.cluster);
    t->no_room++;
}

/* Request after request fails: what is left is one of the two, or can be rolled back. */
static void every_fault(struct crash *c, u32 sector, struct tally *t)
{
    int rc = 1;
    for (u64 n = 1; rc && n < 200; n++) {
        struct blk_mem now;
        struct blk_fault f;
        struct err e = {0};
        blk_mem_over(&now, c->old);
        now.blk.sector = sector;
        blk_fault_init(&f, &now.blk, n, n % 2);
        rc = rebase(&f.blk, c->name, c->format, &e);
        CHECK(!rc || e.code == ERR_READ_FAILED || e.code == ERR_WRITE_FAILED);
        CHECK((f.seen >= n) == (rc != 0));
        if (!journal.asked)
            journal.cnt = 0; /* nobody has made one: nothing may have been written */
        if (rc)
            judge(c, &now, "a fault");
        t->faults += rc != 0;
        blk_mem_free(&now);
    }
    CHECK(!rc);
}

/* What the plan has made of the image. */
static void check_result(struct crash *c, struct blk_record *r)
{
    static struct view is, was;
    u64 at;
    look(&is, &r->now, c->was.cluster);
    CHECK(says(&is, c->name, c->format));
    CHECK(same_extensions(&c->was, &is));
    was = c->was;
    if (be32(was.bytes + 4) == 3)
        put_be64(was.bytes + 88, be64(was.bytes + 88) & 3); /* the one thing besides */
    CHECK(rest_kept(&was, &is));
    CHECK(journal.asked == (journal.cnt > 0));
    struct blk_mem now;
    blk_mem_over(&now, &r->now);
    blk_mem_put(&now, 0, c->was.bytes, c->was.cluster);
    blk_mem_truncate(&now, c->old->length); /* as the launcher would */
    CHECK(blk_mem_equal(c->old, &now, &at));
    blk_mem_free(&now);
}

static void one(u64 *seed, unsigned round, struct tally *t)
{
    static struct crash c;
    struct blk_mem m;
    struct blk_record r;
    struct err e = {0};
    char name[1024] = "", format[16] = "";
    u32 cluster = random_image(seed, &m);
    c = (struct crash){.old = &m, .name = name, .format = format};
    look(&c.was, &m, cluster);
    CHECK(c.was.sane);
    if (rnd_below(seed, 5)) {
        random_text(seed, name, 1 + random_len(seed, 1022));
        random_text(seed, format, 1 + (u32)rnd_below(seed, 15));
    }
    if (rnd_below(seed, 8) == 0) { /* the same again */
        memcpy(name, c.was.name, sizeof(name));
        memcpy(format, *name ? c.was.format : "", *name ? sizeof(format) : 1);
    }
    m.blk.sector = round % 5 == 4 ? 4096 : 512;
    blk_record_init(&r, &m);
    rebase(&r.blk, name, format, &e);
    if (e.code) {
        CHECK_ERR(&e, ERR_BACKING_PATH_TOO_LONG);
        CHECK(r.cnt == 0);
        check_room(&c, t);
    } else {
        check_result(&c, &r);
        t->at_once += !journal.cnt;
        t->journaled += journal.cnt > 0;
        t->nothing += !r.cnt;
        if (round % CRASH_EVERY == 0) {
            t->states += blk_record_states(&r, *seed | 1, 8, judge, &c);
            CHECK(journal.cnt || c.news > 0);
            every_fault(&c, m.blk.sector, t);
        }
        if (round % QEMU_EVERY == 1) {
            show_qemu(&r.now, name, format);
            t->qemu++;
        }
    }
    blk_record_free(&r);
    blk_mem_free(&m);
}

static void every_header(void)
{
    u64 seed = test_seed(0x3c6ef372fe94f82b);
    struct tally t = {0};
    for (unsigned i = 0; i < ROUNDS && test_failures() < 10; i++) {
        test_note("round %u", i);
        one(&seed, i, &t);
    }
    test_note("%s", "");
    printf("  %llu at once (%llu of them with nothing to do), %llu with a journal, %llu without "
           "room; %llu crash states, %llu faults, %llu shown to qemu-img\n",
           (unsigned long long)t.at_once, (unsigned long long)t.nothing,
           (unsigned long long)t.journaled, (unsigned long long)t.no_room,
           (unsigned long long)t.states, (unsigned long long)t.faults, (unsigned long long)t.qemu);
    CHECK(t.at_once > 500 && t.journaled > 200 && t.no_room > 100 && t.states > 5000 &&
          t.qemu > 20);
}

/* ---- headers that contradict themselves ---- */

static u32 damage(u64 *seed, struct blk_mem *m, u32 cluster)
{
    static const u32 fields[] = {8, 12, 16, 20, 100, 112, 116, 120, 124};
    u32 off = 0;
    for (u64 n = 1 + rnd_below(seed, 3); n; n--) {
        u8 bytes[4];
        off = rnd_below(seed, 2) ? fields[rnd_below(seed, 9)] : (u32)rnd_below(seed, cluster - 4);
        put_be32(bytes, rnd_below(seed, 2) ? (u32)rnd_below(seed, 2 * cluster) : (u32)rnd(seed));
        blk_mem_put(m, off, bytes, 1 + rnd_below(seed, 4));
    }
    return off;
}

/* Refused, or done: then it opens, and says what was asked for. */
static void hostile_headers(void)
{
    u64 seed = test_seed(0x510e527fade682d1), done = 0, refusals = 0;
    static u8 mem[IMAGE_MEM];
    for (unsigned i = 0; i < 4 * ROUNDS && test_failures() < 10; i++) {
        static struct facts facts;
        struct blk_mem m, now;
        struct image img;
        struct err e = {0};
        u32 cluster = random_image(&seed, &m);
        test_note("round %u, damage at %u", i, damage(&seed, &m, cluster));
        blk_mem_over(&now, &m);
        if (rebase(&now.blk, "name", "raw", &e)) {
            refusals++;
        } else {
            CHECK(!image_open(&img, &now.blk, "qcow2", mem, &e));
            memset(&facts, 0, sizeof(facts));
            CHECK(!img.format->facts(&img, &facts, &e));
            CHECK_STR(facts.backing, "name");
            CHECK_STR(facts.backing_format, "raw");
            done++;
        }
        blk_mem_free(&now);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu done, %llu refused\n", (unsigned long long)done, (unsigned long long)refusals);
    CHECK(done > 1000 && refusals > 1000);
}

/* ---- what qemu-img makes ---- */

/* One step over a file of qemu-img's; how many sectors its journal had. */
static unsigned step(struct blk_mem *m, const char *name, const char *format)
{
    struct err e = {0};
    rebase(&m->blk, name, format, &e);
    CHECK_ERR(&e, OK);
    static struct view v;
    look(&v, m, 65536);
    CHECK(says(&v, name, format));
    return journal.cnt;
}

/* Images of qemu-img need no journal: neither to be detached, nor to get another backing file of a
 * format whose name takes as many words, however long the file's name is. */
static void images_of_qemu(void)
{
    const char *path = test_path("made.qcow2");
    static char longest[1024];
    memset(longest, 'l', 1023);
    for (int backing = 0; backing < 2; backing++) {
        struct blk_mem m;
        CHECK(!test_system("qemu-img create -q -f qcow2 %s %s 1M",
                           backing ? "-u -F raw -b base" : "", path));
        if (!CHECK(blk_mem_load(&m, path, 512)))
            return;
        CHECK_EQ_U64(step(&m, "other", "qcow2"), 0);
        CHECK_EQ_U64(step(&m, longest, "raw"), 0);
        CHECK_EQ_U64(step(&m, longest, "raw"), 0);
        CHECK_EQ_U64(step(&m, "x", "vpc"), 0);
        CHECK_EQ_U64(step(&m, "", ""), 0);
        CHECK_EQ_U64(step(&m, "y", "vhdx"), 0);
        blk_mem_free(&m);
    }
    unlink(path);
}

/* ---- what is refused ---- */

static void refused(struct make p, const char *name, enum err_code want, int line)
{
    struct blk_mem m;
    struct blk_record r;
    struct made made;
    struct err e = {0};
    test_note("line %d", line);
    p.size = 1 << 20;
    p.refcount_order = 4;
    qcow2_make(&m, &p, &made);
    blk_record_init(&r, &m);
    rebase(&r.blk, name, *name ? "raw" : "", &e);
    test_check_err(&e, want, __FILE__, line);
    CHECK(!want || r.cnt == 0);
    blk_record_free(&r);
    blk_mem_free(&m);
    test_note("%s", "");
}
#define REFUSED(name, want, ...) refused((struct make){__VA_ARGS__}, name, want, __LINE__)

static void refusals(void)
{
    static char name[1100];
    memset(name, 'n', 1024);
    REFUSED(name, ERR_BACKING_PATH_TOO_LONG, .version = 3);
    name[1023] = 0;
    REFUSED(name, OK, .version = 3);
    REFUSED(name, ERR_BACKING_PATH_TOO_LONG, .cluster_bits = 10);
    /* parity B.5: with clusters of 512 bytes */
    name[376] = 0;
    REFUSED(name, OK, .cluster_bits = 9, .header_length = 112);
    name[376] = 'n', name[377] = 0;
    REFUSED(name, ERR_BACKING_PATH_TOO_LONG, .cluster_bits = 9, .header_length = 112);
    name[377] = 'n', name[416] = 0;
    REFUSED(name, OK, .version = 2, .cluster_bits = 9);
    name[416] = 'n', name[417] = 0;
    REFUSED(name, ERR_BACKING_PATH_TOO_LONG, .version = 2, .cluster_bits = 9);
    REFUSED("b", ERR_OVERLAY_CORRUPT, .incompatible = QCOW2_INCOMPAT_CORRUPT);
    REFUSED("b", OK, .incompatible = QCOW2_INCOMPAT_DIRTY, .compatible = 1);
    REFUSED("", OK, .backing = "b", .backing_format = "raw", .snapshots = 2);
    REFUSED("b", OK, .bitmaps = 2, .autoclear = QCOW2_AUTOCLEAR_BITMAPS);
}

int main(void)
{
    RUN(images_of_qemu);
    RUN(refusals);
    RUN(every_header);
    RUN(hostile_headers);
    return test_end();
}
