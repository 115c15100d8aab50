/* SPDX-License-Identifier: MIT
 *
 * VMDK images with seeded damage in header, footer, descriptor, directories, tables and markers:
 * whatever is asked of them is refused, and not a byte has changed, or what it leaves is as sound
 * as what was there, with the same data below both sizes and zeros behind.
 */
#include "copy.h"
#include "test.h"
#include "vmdk_judge.h"
#include "vmdk_make.h"
#include "vmdk_run.h"
#include "vmdk_stream.h"

#define KI(n) ((u64)(n) << 10)
#define MI(n) ((u64)(n) << 20)

enum { LOOK = 4 << 20 /* bytes of a disk that are compared */ };

struct mutant {
    struct blk_mem *m;
    u64 *seed;
    u64 header, footer; /* bytes; footer 0: none */
    u64 gd, rgd, table, entries;
    char what[200];
};

static void note(struct mutant *k, const char *what, u64 off, u64 val)
{
    size_t n = strlen(k->what);
    snprintf(k->what + n, sizeof(k->what) - n, " %s %llu=%llx", what, (unsigned long long)off,
             (unsigned long long)val);
}

static void put(struct mutant *k, const char *what, u64 off, u64 val, unsigned len)
{
    u8 p[8];
    put_le64(p, val);
    if (off + len <= k->m->length)
        blk_mem_put(k->m, off, p, len);
    note(k, what, off, val);
}

static u64 evil_number(struct mutant *k)
{
    const u64 sectors = k->m->length / 512, some[] = {0,
                                                      1,
                                                      2,
                                                      3,
                                                      7,
                                                      8,
                                                      20,
                                                      21,
                                                      22,
                                                      100,
                                                      511,
                                                      512,
                                                      513,
                                                      4096,
                                                      1 << 21,
                                                      1 << 22,
                                                      sectors - 1,
                                                      sectors,
                                                      sectors + 1,
                                                      sectors * 2,
                                                      k->gd / 512,
                                                      k->rgd / 512,
                                                      k->table / 512,
                                                      0x7fffffff,
                                                      0xffffffff,
                                                      1ull << 32,
                                                      1ull << 40,
                                                      1ull << 55,
                                                      1ull << 62,
                                                      1ull << 63,
                                                      UINT64_MAX};
    u64 n = some[rnd_below(k->seed, sizeof(some) / sizeof(some[0]))];
    return rnd_below(k->seed, 4) ? n : n + rnd_below(k->seed, 16) - 8;
}

/* ---- the ways of damage ---- */

static void harm_header(struct mutant *k)
{
    static const struct {
        u32 off, len;
    } field[] = {{VMH_MAGIC, 4},           {VMH_VERSION, 4},           {VMH_FLAGS, 4},
                 {VMH_CAPACITY, 8},        {VMH_GRAIN_SIZE, 8},        {VMH_DESCRIPTOR_OFFSET, 8},
                 {VMH_DESCRIPTOR_SIZE, 8}, {VMH_NUM_GTES_PER_GT, 4},   {VMH_RGD_OFFSET, 8},
                 {VMH_GD_OFFSET, 8},       {VMH_OVERHEAD, 8},          {VMH_UNCLEAN_SHUTDOWN, 1},
                 {VMH_NEWLINES, 4},        {VMH_COMPRESS_ALGORITHM, 2}};
    unsigned i = (unsigned)rnd_below(k->seed, sizeof(field) / sizeof(field[0]));
    u64 at = k->footer && rnd_below(k->seed, 2) ? k->footer : k->header;
    u8 old[8] = {0};
    blk_mem_get(k->m, at + field[i].off, old, field[i].len);
    u64 val = rnd_below(k->seed, 3)   ? evil_number(k)
              : rnd_below(k->seed, 2) ? le64(old) ^ 1ull << rnd_below(k->seed, 8 * field[i].len)
                                      : le64(old) + rnd_below(k->seed, 5) - 2;
    put(k, "header", at + field[i].off, val, field[i].len);
}

/* Sectors of the descriptor, text and all. */
static void harm_text(struct mutant *k)
{
    static const struct {
        const char *from, *to;
    } edit[] = {
        {"CID=", "XID="},
        {"parentCID=", "parentXID="},
        {"parentCID=ffffffff", "parentCID=12345678"},
        {"CID=12345678", "CID=123456789"},
        {"RW ", "RW -"},
        {"RW ", "RW 0 SPARSE \"b\"\nRW "},
        {"RW ", "RW 99999999999999999999"},
        {"RW ", "RW 9"},
        {"RW ", "RDONLY "},
        {"RW ", "NOACCESS "},
        {"RW ", "rw "},
        {" SPARSE ", " FLAT "},
        {" SPARSE ", " ZERO "},
        {" SPARSE ", " SPARSESPARSESPARSESPARSE "},
        {"\"a b.vmdk\"", "\"../../etc/passwd\""},
        {"\"a b.vmdk\"", "a b.vmdk"},
        {"\"a b.vmdk\"", "\"a b.vmdk\" 128"},
        {"cylinders = \"", "cylinders = \"-"},
        {"cylinders = \"", "cylinders = \"99999999999999999999"},
        {"heads = \"16\"", "heads = \"0\""},
        {"heads = \"16\"", "heads = \"18446744073709551615\""},
        {"sectors = \"63\"", "sectors = \"\""},
        {"createType=", "createType=\"monolithicFlat\"\ncreateType="},
        {"monolithicSparse", "custom"},
        {"# Disk DescriptorFile", ""},
        {"# Disk DescriptorFile\n", "# Disk DescriptorFile\r\r\n\t\n = \n=\n\"\n"},
        {"version=1", "version=9"},
    };
    unsigned i = (unsigned)rnd_below(k->seed, sizeof(edit) / sizeof(edit[0]));
    char text[20 * 512 + 1] = {0};
    u8 size[8];
    blk_mem_get(k->m, k->header + VMH_DESCRIPTOR_SIZE, size, 8);
    if (le64(size) != 20)
        return;
    blk_mem_get(k->m, 512, text, 20 * 512);
    if (!strstr(text, edit[i].from) || strlen(text) > 9000)
        return;
    vmdk_make_text(k->m, edit[i].from, edit[i].to);
    note(k, edit[i].to, i, 0);
}

static void harm_text_bytes(struct mutant *k)
{
    static const char *const end[] = {"\0", "\n", "\r\n", "\x1b[", "\xff", "\"", "="};
    char text[20 * 512];
    u64 kind = rnd_below(k->seed, 3), at = 512 + rnd_below(k->seed, 420);
    blk_mem_get(k->m, 512, text, sizeof(text));
    if (kind == 0) { /* no NUL ends it */
        for (size_t i = 0; i < sizeof(text); i++)
            text[i] = text[i] ? text[i] : i % 70 ? '#' : '\n';
        blk_mem_put(k->m, 512, text, sizeof(text));
        note(k, "no NUL", 0, 0);
    } else if (kind == 1) {
        const char *p = end[rnd_below(k->seed, 7)];
        blk_mem_put(k->m, at, p, strlen(p) + !*p);
        note(k, "text", at, (u8)*p);
    } else { /* a line that is longer than any buffer */
        memset(text, 'a', 3000);
        blk_mem_put(k->m, at, text, 3000);
        note(k, "long line", at, 0);
    }
}

static void harm_directory(struct mutant *k)
{
    u64 at =
        (rnd_below(k->seed, 2) && k->rgd ? k->rgd : k->gd) + rnd_below(k->seed, k->entries) * 4;
    u8 other[4];
    blk_mem_get(k->m, k->gd + rnd_below(k->seed, k->entries) * 4, other, 4);
    put(k, "directory", at, rnd_below(k->seed, 2) ? evil_number(k) : le32(other), 4);
}

/* One entry, more often than not in both copies. */
static void harm_table(struct mutant *k)
{
    u64 idx = rnd_below(k->seed, k->entries), in = rnd_below(k->seed, 64) * 4;
    u8 one[4], two[4], other[4];
    blk_mem_get(k->m, k->gd + idx * 4, one, 4);
    blk_mem_get(k->m, (k->rgd ? k->rgd : k->gd) + idx * 4, two, 4);
    blk_mem_get(k->m, le32(one) * 512ull + rnd_below(k->seed, 64) * 4, other, 4);
    u64 val = rnd_below(k->seed, 2) ? evil_number(k) : le32(other) + rnd_below(k->seed, 3) - 1;
    put(k, "table", le32(one) * 512ull + in, val, 4);
    if (rnd_below(k->seed, 4))
        put(k, "table", le32(two) * 512ull + in, val, 4);
}

static void harm_length(struct mutant *k)
{
    u64 len = k->m->length, cut = rnd_below(k->seed, 3) ? 512 * rnd_below(k->seed, len / 512)
                                                        : rnd_below(k->seed, 2000);
    len = rnd_below(k->seed, 4) ? len - min_u64(cut, len) : len + cut;
    blk_mem_truncate(k->m, len);
    note(k, "length", 0, len);
}

/* Footer, markers and what lies between them. */
static void harm_stream(struct mutant *k)
{
    u64 from = rnd_below(k->seed, 2) ? k->m->length - 1536 : k->table;
    u64 at = from + rnd_below(k->seed, min_u64(1536, k->m->length - from)) / 4 * 4;
    put(k, "stream", at, evil_number(k), 4);
}

static void harm(struct mutant *k, bool stream)
{
    static void (*const way[])(struct mutant *) = {harm_header,    harm_text,  harm_text_bytes,
                                                   harm_directory, harm_table, harm_table,
                                                   harm_length,    harm_stream};
    for (u64 n = 1 + rnd_below(k->seed, 3); n && k->m->length > 16384; n--)
        way[rnd_below(k->seed, stream ? 8 : 7)](k);
}

/* ---- what must hold ---- */

/* The beginning of the disk as our reader has it; false: it cannot. */
static bool contents(struct blk_mem *m, u8 *to, u64 *size)
{
    static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
    struct image img;
    struct err e = {0};
    static struct facts f;
    memset(&f, 0, sizeof(f));
    *size = 0;
    if (vmdk_run_open(&m->blk, "vmdk", &img, &e) || img.format->facts(&img, &f, &e))
        return false;
    img.scratch = scratch;
    *size = img.size;
    return !chain_read(&img, 0, to, min_u64(img.size, LOOK), &e);
}

struct tally {
    u64 refused, done, unread;
};

static void resize(struct blk_mem *m, u64 to, const u8 *old, u64 old_size, bool readable,
                   struct tally *t)
{
    static u8 now[LOOK];
    struct vmdk_verdict was, is;
    struct blk_mem copy;
    struct err e = {0};
    u64 at, size;
    blk_mem_over(&copy, m);
    if (vmdk_run_mem(&copy, to, &e)) {
        CHECK(e.code && e.what);
        CHECK(blk_mem_equal(&copy, m, &at));
        t->refused++;
    } else if (blk_mem_equal(&copy, m, &at)) { /* nothing to do, in whole grains */
        CHECK(to <= old_size);
    } else {
        vmdk_judge_mem(m, 0, 0, 0, &was);
        vmdk_judge_mem(&copy, 0, old_size, UINT64_MAX, &is);
        CHECK(contents(&copy, now, &size));
        u64 kept = min_u64(old_size, size);
        CHECK(size >= to || (to > size && to <= old_size && size == old_size));
        CHECK(readable); /* all tables are looked at: what is sound can be read */
        CHECK(!memcmp(now, old, min_u64(kept, LOOK)));
        CHECK(kept >= LOOK || all_zero(now + kept, min_u64(size, LOOK) - kept));
        if (!CHECK(!is.opens || is.faults <= was.faults))
            printf("    %s\n", is.first);
        t->done += size != old_size;
    }
    blk_mem_free(&copy);
}

static void attack(struct mutant *k, bool stream, struct tally *t)
{
    static u8 old[LOOK];
    u64 size, sizes[4];
    harm(k, stream);
    test_note("%s:%s", stream ? "stream" : "sparse", k->what);
    bool readable = contents(k->m, old, &size);
    u64 base = size ? min_u64(size, MI(64)) : MI(3);
    sizes[0] = base + KI(4);
    sizes[1] = base * 3 + 512;
    sizes[2] = max_u64(base / 2, 1);
    sizes[3] = size ? size : MI(1);
    t->unread += !readable;
    for (int i = 0; i < 4; i++)
        if (size == base || i == 3)
            resize(k->m, sizes[i], old, size, readable, t);
}

static u64 rounds(u64 n)
{
    const char *more = getenv("INSTAR_MUTANTS");
    return more ? strtoull(more, NULL, 10) : n;
}

static void sparse_images(void)
{
    u64 seed = test_seed(0xc97c50dd3f84d5b5), n = rounds(900);
    struct tally t = {0};
    for (u64 i = 0; i < n; i++) {
        struct vmdk_make p = {.size = KI(700) + 512 * rnd_below(&seed, 9),
                              .grain = 8,
                              .gtes = rnd_below(&seed, 3) ? 64 : 512,
                              .every = 2 + (u32)rnd_below(&seed, 5),
                              .sectors = 1,
                              .version = 1 + (u32)rnd_below(&seed, 3),
                              .no_rgd = rnd_below(&seed, 4) == 0,
                              .zeroed = rnd_below(&seed, 3) == 0,
                              .stale_entries = rnd_below(&seed, 4) == 0,
                              .shuffled = rnd_below(&seed, 2),
                              .crlf = rnd_below(&seed, 3) == 0,
                              .seed = rnd(&seed)};
        struct vmdk_made made;
        struct blk_mem m;
        vmdk_make(&m, &p, &made);
        struct mutant k = {&m, &seed, 0, 0, made.gd, made.rgd, made.table, made.entries, ""};
        attack(&k, false, &t);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu images, %llu unreadable; %llu requests refused, %llu carried out\n",
           (unsigned long long)n, (unsigned long long)t.unread, (unsigned long long)t.refused,
           (unsigned long long)t.done);
    CHECK(t.refused > n && t.done > n / 4);
}

static void streams(void)
{
    u64 seed = test_seed(0xb5470917d98979fb), n = rounds(300);
    struct tally t = {0};
    for (u64 i = 0; i < n; i++) {
        struct vmdk_stream p = {.size = KI(300),
                                .grain = 16,
                                .gtes = 16,
                                .front = rnd_below(&seed, 3) == 0,
                                .seed = rnd(&seed)};
        struct vmdk_streamed made;
        struct blk_mem m;
        vmdk_stream(&m, &p, &made);
        struct mutant k = {&m,         &seed, 0, p.front ? 0 : m.length - 1024, made.gd, 0,
                           made.first, 3,     ""};
        attack(&k, true, &t);
        free(made.plain);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu images, %llu unreadable; %llu requests refused\n", (unsigned long long)n,
           (unsigned long long)t.unread, (unsigned long long)t.refused);
    CHECK(t.unread > n / 4 && t.unread < n && t.refused > n && t.done == 0);
}

int main(void)
{
    RUN(sparse_images);
    RUN(streams);
    return test_end();
}
