/* SPDX-License-Identifier: MIT
 *
 * Writes the fuzz target's seeds into a directory: the grow tests' shapes, shrinks, preallocation and
 * overlays, and images that are hostile by themselves and too large for a mutator to find. Each must fit into an input and hold
 * what its name says.
 */
#include "fuzz_input.h"
#include "grow.h"
#include "test.h"

enum { COUNTED_MAX = 4096 };

static const char *dir;
static unsigned written, skipped;
static u64 bytes;

static void write_pair(const struct blk_mem *m, const struct blk_mem *under, u64 new_size, u8 flags,
                       const char *name)
{
    static u8 out[FUZZ_INPUT_MAX];
    char path[1024];
    size_t size = fuzz_encode(m, under, new_size, flags, out, sizeof(out));
    struct fuzz_head h;
    struct blk_mem copy, below;
    if (!size) {
        skipped++;
        return;
    }
    assert(fuzz_decode(out, size, &h, &copy, &below) && h.length == m->length &&
           h.new_size == new_size && h.under == (under ? under->length : 0));
    blk_mem_free(&copy);
    blk_mem_free(&below);
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(out, 1, size, f) != size || fclose(f)) {
        perror(path);
        exit(1);
    }
    bytes += size;
    written++;
}

static void write_seed(const struct blk_mem *m, u64 new_size, u8 flags, const char *name)
{
    write_pair(m, NULL, new_size, flags, name);
}

/* "L1 moves, 4 KiB" -> "07-l1-moves-4-kib" */
static void slug(unsigned i, const char *name, char *out, size_t max)
{
    size_t n = (size_t)snprintf(out, max, "%02u-", i);
    for (; *name && n + 1 < max; name++) {
        bool lower = *name >= 'a' && *name <= 'z', digit = *name >= '0' && *name <= '9';
        bool upper = *name >= 'A' && *name <= 'Z';
        if (lower || digit || upper)
            out[n++] = upper ? (char)(*name | 32) : *name;
        else if (out[n - 1] != '-')
            out[n++] = '-';
    }
    out[n] = 0;
}

static void from_grow_cases(void)
{
    for (unsigned i = 0; i < grow_cases_cnt; i++) {
        struct make p = grow_cases[i].p;
        struct blk_mem m;
        struct made made;
        char name[80];
        p.first = (u32)min_u64(p.first, 4);
        qcow2_make(&m, &p, &made);
        slug(i, grow_cases[i].name, name, sizeof(name));
        write_seed(&m, grow_cases[i].new_size, i % 4 == 3 ? FUZZ_SECTOR_4096 : 0, name);
        blk_mem_free(&m);
    }
}

/* What the grow cases lack: compressed ends, names, features, odd shapes. */
static void of_our_own(void)
{
    static const struct {
        const char *name;
        struct make p;
        u64 new_size;
    } own[] = {
        { "packed-tail", { .refcount_order = 4, .size = (1 << 20) + 512, .first = 2, .last = true,
            .last_kind = MAKE_PACKED }, 9 << 20 },
        { "packed-tail-512", { .cluster_bits = 9, .refcount_order = 4, .size = 5 * 512 * 64 + 512,
            .first = 2, .last = true, .last_kind = MAKE_PACKED, .l1_middle = true }, 9 << 20 },
        { "packed-shared", { .refcount_order = 4, .size = (1 << 20) + 512, .last = true,
            .last_kind = MAKE_PACKED, .snapshots = 1 }, 9 << 20 },
        { "backing", { .refcount_order = 4, .size = 1 << 20, .backing = "base.img",
            .backing_format = "raw", .unknown_ext = true }, 9 << 20 },
        { "dirty", { .refcount_order = 4, .size = 1 << 20, .incompatible = 1, .compatible = 1 },
          9 << 20 },
        { "stale-l2", { .refcount_order = 4, .size = 3 << 20, .first = 2, .stale_l2 = true },
          9 << 20 },
        { "bits-1-4k", { .cluster_bits = 12, .refcount_order = 0, .size = 9 << 20, .first = 3,
            .last = true, .l1_middle = true }, 1ull << 31 },
        { "bits-2", { .cluster_bits = 10, .refcount_order = 1, .size = 9 << 20, .first = 3,
            .snapshots = 2 }, 1ull << 30 },
        { "bits-64-2m", { .cluster_bits = 21, .refcount_order = 6, .size = 1ull << 40, .first = 1 },
          1ull << 50 },
        { "sub-tail", { .cluster_bits = 14, .ext_l2 = true, .refcount_order = 4, .last = true,
            .size = (1 << 20) + 5120, .last_kind = MAKE_SUB, .stale = true }, 9 << 20 },
        { "bitmaps", { .cluster_bits = 9, .refcount_order = 4, .size = (1 << 20) + 512, .first = 2,
            .bitmaps = 2, .granularity = 9 }, 9 << 20 },
        { "tiny", { .cluster_bits = 9, .refcount_order = 4, .size = 512 }, 1024 },
    };
    for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        struct blk_mem m;
        struct made made;
        qcow2_make(&m, &own[i].p, &made);
        write_seed(&m, own[i].new_size, own[i].p.snapshots ? FUZZ_NO_SCRATCH : 0, own[i].name);
        blk_mem_free(&m);
    }
}

/* Shrinks and preallocation, of which the grow cases know nothing: some shapes, each in every way.
 * The preallocated growth is small, so that a trial may do it. */
static void in_other_ways(void)
{
    static const struct {
        const char *name;
        struct make p;
        u64 less, more;
    } own[] = {
        { "64k", { .refcount_order = 4, .size = (3 << 20) + 512, .first = 4, .last = true }, 70144,
          5 << 20 },
        { "512", { .cluster_bits = 9, .refcount_order = 4, .size = 100 << 10, .first = 60,
            .kinds = MAKE_DATA | MAKE_ZERO | MAKE_PACKED }, 20992, 300 << 10 },
        { "512-table-full", { .cluster_bits = 9, .refcount_order = 6, .size = (99 << 10) + 512,
            .first = 9, .rt_clusters = 1, .end_cluster = 64 * 64 - 40 }, 2560, 300 << 10 },
        { "4k-snapshots", { .cluster_bits = 12, .refcount_order = 3, .size = (600 << 10) + 512,
            .first = 20, .snapshots = 2, .last = true, .stale = true }, (64 << 10) + 512, 1 << 20 },
        { "16k-extl2", { .cluster_bits = 14, .ext_l2 = true, .refcount_order = 1,
            .size = (1 << 20) + 3072, .first = 9, .kinds = MAKE_DATA | MAKE_SUB, .last = true,
            .last_kind = MAKE_SUB }, (32 << 10) + 1536, 3 << 20 },
        { "v2", { .version = 2, .cluster_bits = 10, .size = (1 << 20) + 512, .first = 9 }, 5632,
          2 << 20 },
        { "many-tables", { .cluster_bits = 9, .refcount_order = 4, .size = 1 << 20, .first = 2,
            .spread = 9, .l1_middle = true }, 3072, 3 << 20 },
    };
    for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        for (unsigned how = PREALLOC_OFF; how <= PREALLOC_FULL; how++) {
            struct blk_mem m;
            struct made made;
            char name[80];
            qcow2_make(&m, &own[i].p, &made);
            snprintf(name, sizeof(name), "%s-%s", how ? "how" : "shrink", own[i].name);
            if (how)
                snprintf(name + strlen(name), 4, "-%u", how);
            write_seed(&m, how ? own[i].more : own[i].less, (u8)(how << FUZZ_HOW_SHIFT), name);
            blk_mem_free(&m);
        }
    }
}

/* Overlays, over what is longer or shorter, raw or an image itself. */
static void overlays(void)
{
    static const struct {
        const char *name;
        struct make p, under;
        u64 raw; /* bytes; 0: `under` is what it is */
        u64 new_size;
        enum preallocation how;
    } own[] = {
        { "longer", { .refcount_order = 4, .size = (1 << 20) + 512 },
          { .refcount_order = 4, .size = 2 << 20, .first = 20 }, 0, 4 << 20, PREALLOC_OFF },
        { "shorter", { .refcount_order = 4, .size = (1 << 20) + 512, .first = 2 },
          { .refcount_order = 4, .size = 1 << 20, .first = 2 }, 0, 4 << 20, PREALLOC_OFF },
        { "packed", { .cluster_bits = 12, .refcount_order = 4, .size = (253 << 10) + 512 },
          { .cluster_bits = 16, .refcount_order = 4, .size = 384 << 10, .first = 5,
            .kinds = MAKE_PACKED }, 0, 600 << 10, PREALLOC_OFF },
        { "extl2", { .cluster_bits = 14, .ext_l2 = true, .refcount_order = 4,
            .size = (253 << 10) + 512, .first = 2, .kinds = MAKE_SUB },
          { .cluster_bits = 14, .ext_l2 = true, .refcount_order = 4, .size = 384 << 10, .first = 20,
            .kinds = MAKE_SUB | MAKE_PACKED }, 0, 1 << 20, PREALLOC_OFF },
        { "v2", { .version = 2, .cluster_bits = 12, .size = (53 << 10) + 512, .first = 1 },
          { .version = 2, .cluster_bits = 9, .size = 99 << 10, .first = 120 }, 0, 128 << 10,
          PREALLOC_OFF },
        { "preallocated", { .cluster_bits = 12, .refcount_order = 4, .size = (53 << 10) + 512,
            .last = true, .stale = true },
          { .cluster_bits = 9, .refcount_order = 4, .size = 64 << 10, .first = 120 }, 0, 128 << 10,
          PREALLOC_METADATA },
        { "snapshots-table-full", { .cluster_bits = 12, .refcount_order = 6,
            .size = (253 << 10) + 512, .first = 3, .snapshots = 1, .rt_clusters = 1,
            .end_cluster = 512 * 512 - 2 },
          { .refcount_order = 4, .size = 384 << 10, .first = 5 }, 0, 1 << 20, PREALLOC_OFF },
        { "raw", { .cluster_bits = 12, .refcount_order = 4, .size = (9 << 10) + 512 }, { 0 },
          (11 << 10) + 77, 64 << 10, PREALLOC_FULL },
        { "backing-of-backing", { .refcount_order = 4, .size = (1 << 20) + 512 },
          { .refcount_order = 4, .size = 3 << 20, .backing = "deeper", .backing_format = "raw" }, 0,
          4 << 20, PREALLOC_OFF },
    };
    for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        struct blk_mem m, under;
        struct make p = own[i].p;
        struct made made;
        char name[80];
        u8 flags = (u8)(FUZZ_UNDER | own[i].how << FUZZ_HOW_SHIFT);
        p.backing = "b";
        p.backing_format = own[i].raw ? "raw" : "qcow2";
        qcow2_make(&m, &p, &made);
        if (own[i].raw) {
            static u8 buf[64 << 10];
            make_pattern(7, 0, buf, own[i].raw);
            blk_mem_init(&under, 0, 512);
            blk_mem_put(&under, 0, buf, own[i].raw);
            under.blk.size = own[i].raw;
            flags |= FUZZ_UNDER_RAW;
        } else {
            qcow2_make(&under, &own[i].under, &made);
        }
        snprintf(name, sizeof(name), "overlay-%s", own[i].name);
        write_pair(&m, &under, own[i].new_size, flags, name);
        blk_mem_free(&m);
        blk_mem_free(&under);
    }
}

static void put64(struct blk_mem *m, u64 off, u64 val)
{
    u8 b[8];
    put_be64(b, val);
    blk_mem_put(m, off, b, 8);
}

/* The overlay's last cluster is its own L2 table, or lies uncounted where new tables will stand. */
static void last_cluster_elsewhere(void)
{
    struct make p = { .cluster_bits = 12, .refcount_order = 4, .size = (253 << 10) + 512,
                      .first = 3, .backing = "b", .backing_format = "qcow2" };
    struct make below = { .cluster_bits = 12, .refcount_order = 4, .size = 384 << 10, .first = 70 };
    struct blk_mem m, under;
    struct made made, ignored;
    qcow2_make(&under, &below, &ignored);
    qcow2_make(&m, &p, &made);
    u64 at = made.last_l2 + (p.size >> 12) * 8;
    put64(&m, at, made.last_l2);
    write_pair(&m, &under, p.size + (3 << 20), FUZZ_UNDER, "last-cluster-its-own-table");
    put64(&m, at, made.clusters << 12);
    write_pair(&m, &under, p.size + (3 << 20), FUZZ_UNDER, "last-cluster-behind-the-file");
    blk_mem_free(&m);
    blk_mem_free(&under);
}

/* Every cluster for 256 MiB and more behind the file is counted, by one block that the whole
 * refcount table names; `every`: each so many. */
static void counted_behind_the_end(const char *name, u64 every)
{
    struct make p = { .cluster_bits = 9, .refcount_order = 4, .size = 2 << 20, .first = 1,
                      .rt_clusters = COUNTED_MAX * 8 / 512 };
    struct blk_mem m;
    struct made made;
    qcow2_make(&m, &p, &made);
    u64 block = m.length = round_up(m.length, 512);
    for (u64 i = 0; i < 256; i += every)
        blk_mem_put(&m, block + i * 2, (const u8 *)"\0\1", 2);
    for (u64 i = 3; i < COUNTED_MAX; i++)
        put64(&m, made.rt_offset + i * 8, block);
    blk_mem_truncate(&m, 3 * 256 * 512);
    write_seed(&m, 4 << 20, 0, name);
    blk_mem_free(&m);
}

/* The disk ends inside a compressed cluster, stored as it is, that begins in the file's last bytes:
 * the rest of it would lie where the new L1 table goes. */
static void packed_past_the_end(void)
{
    struct make p = { .cluster_bits = 12, .refcount_order = 4, .size = (1ull << 30) - 4096 + 512,
                      .last = true, .last_kind = MAKE_PACKED, .pad_clusters = 1 };
    struct blk_mem m;
    struct made made;
    qcow2_make(&m, &p, &made);
    u64 off = made.length - 16, sectors = 9;
    blk_mem_put(&m, off, (const u8 *)"\1\0\x10\xff\xef", 5); /* stored, 4096 bytes */
    put64(&m, made.last_l2 + 511 * 8, 1ull << 62 | (sectors - 1) << 58 | off);
    write_seed(&m, 5ull << 30, 0, "packed-past-the-end");
    blk_mem_free(&m);
}

/* The disk ends inside a compressed cluster that is none, and a longer refcount table is needed to
 * copy it: that must be noticed before the table moves. */
static void packed_broken(void)
{
    struct make p = { .cluster_bits = 12, .refcount_order = 6, .size = (3 << 20) + 512,
                      .snapshots = 1, .rt_clusters = 1, .last = true, .last_kind = MAKE_PACKED,
                      .end_cluster = 512 * 512 - 3 };
    struct blk_mem m;
    struct made made;
    u8 entry[8];
    qcow2_make(&m, &p, &made);
    blk_mem_get(&m, made.last_l2 + (p.size >> 12) % 512 * 8, entry, 8);
    blk_mem_put(&m, be64(entry) & ((1ull << 58) - 1), (const u8 *)"\xff", 1);
    write_seed(&m, 5 << 20, 0, "packed-broken");
    blk_mem_free(&m);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 1;
    }
    dir = argv[1];
    from_grow_cases();
    of_our_own();
    in_other_ways();
    overlays();
    packed_past_the_end();
    packed_broken();
    last_cluster_elsewhere();
    counted_behind_the_end("slow-counted-all", 1);
    counted_behind_the_end("counted-some", 8);
    printf("%u seeds, %llu bytes; %u too large\n", written, (unsigned long long)bytes, skipped);
    return !written;
}
