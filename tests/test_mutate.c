/* SPDX-License-Identifier: MIT
 *
 * Every field and table of a qcow2 image, made evil alone and in pairs: the header's fields and
 * extensions, entries of L1, L2, refcount table, refcount blocks and snapshot table (fuzz_evil.h).
 * Each mutant is opened, mapped, grown, a little (with preallocation in turns) or so far that the L1
 * table moves, and shrunk, a little or to a half; it must be refused untouched or resized rightly
 * (fuzz_trial.h). Overlays have a backing image, which is mutated likewise. Deterministic.
 */
#include "fuzz_evil.h"
#include "fuzz_trial.h"
#include "test.h"

enum { EXTENTS = 6, KINDS = MAKE_DATA | MAKE_ZERO | MAKE_PREZERO | MAKE_PACKED };

static const struct base {
    const char *name;
    struct make p;
    struct make under; /* the backing image, if its size is not 0 */
} bases[] = {
    { "32 KiB", { .cluster_bits = 15, .refcount_order = 4, .size = (1 << 20) + 512, .first = 3,
        .kinds = MAKE_PACKED | MAKE_ZERO, .last = true, .stale = true, .unknown_ext = true,
        .backing_format = "raw" } },
    { "512, L1 full", { .cluster_bits = 9, .refcount_order = 4, .size = 2 << 20, .first = 9,
        .kinds = KINDS, .last = true, .l1_middle = true } },
    { "512, refcount block nearly full", { .cluster_bits = 9, .refcount_order = 3, .size = 1 << 20,
        .first = 4, .end_cluster = 512 * 2 - 3 } },
    { "512, refcount table nearly full", { .cluster_bits = 9, .refcount_order = 0, .size = 1 << 20,
        .first = 4, .rt_clusters = 1, .end_cluster = 64 * 4096 - 3 } },
    { "4 KiB, snapshots, shared end", { .cluster_bits = 12, .refcount_order = 5, .snapshots = 2,
        .size = (9 << 20) + 1024, .first = 5, .kinds = KINDS, .last = true, .stale = true } },
    { "16 KiB, extended L2", { .cluster_bits = 14, .ext_l2 = true, .refcount_order = 1,
        .size = (3 << 20) + 512, .first = 4, .kinds = MAKE_SUB | MAKE_PACKED | MAKE_ZERO,
        .last = true, .last_kind = MAKE_SUB, .stale = true } },
    { "4 KiB, compressed end, counted past the file", { .cluster_bits = 12, .refcount_order = 4,
        .size = (9 << 20) + 512, .first = 3, .last = true, .last_kind = MAKE_PACKED,
        .above_eof = 0x35, .end = MAKE_END_SECTOR } },
    { "v2, 1 KiB", { .version = 2, .cluster_bits = 10, .size = (1 << 20) + 1536, .first = 4,
        .last = true, .stale_l2 = true } },
    { "512, bitmaps", { .cluster_bits = 9, .refcount_order = 4, .size = (5 << 20) + 512,
        .first = 4, .bitmaps = 3, .granularity = 9, .l1_middle = true } },
    { "overlay below a longer image", { .cluster_bits = 12, .refcount_order = 4, .last = false,
        .size = (253 << 10) + 512, .first = 3, .backing = "b", .backing_format = "qcow2" },
      { .cluster_bits = 12, .refcount_order = 4, .size = 384 << 10, .first = 70, .kinds = KINDS } },
    { "overlay below a shorter image, extended L2", { .cluster_bits = 14, .ext_l2 = true,
        .refcount_order = 3, .size = (253 << 10) + 512, .first = 3, .kinds = MAKE_SUB,
        .backing = "b", .backing_format = "qcow2" },
      { .cluster_bits = 14, .ext_l2 = true, .refcount_order = 4, .size = (250 << 10) + 512,
        .first = 20, .kinds = MAKE_SUB | MAKE_PACKED, .last = true, .last_kind = MAKE_SUB } },
};
enum { BASES = sizeof(bases) / sizeof(bases[0]) };

static struct { /* totals */
    u64 mutants, unopened, refused, grown, shrunk, filled, sound, worse, unjudged, requests_max;
    u64 codes[64];
} seen;

struct made_base {
    struct blk_mem m, under;
    struct layout l;
    struct spot spots[SPOTS_MAX];
    unsigned cnt, header;
    bool overlay;
    u32 turn; /* of the kinds of preallocation */
};

/* One mutant, one size. */
static void try_size(const struct made_base *b, const struct blk_mem *m, const struct blk_mem *under,
                     u64 new_size, enum preallocation how)
{
    struct trial t = { .image = m, .new_size = new_size, .extents = EXTENTS, .how = how,
                       .under = b->overlay ? under : NULL, .under_format = "qcow2" };
    if (!CHECK(trial_run(&t)))
        printf("    %s\n", t.wrong);
    seen.mutants++;
    seen.unopened += !t.opened;
    seen.refused += t.opened && !t.grown;
    seen.grown += t.grown;
    seen.shrunk += t.grown && t.new_size < t.old_size;
    seen.filled += t.grown && t.new_size > t.old_size && (how || b->overlay);
    seen.sound += t.grown && t.sound;
    seen.worse += t.worse;
    seen.unjudged += t.grown && !t.judged;
    seen.requests_max = max_u64(seen.requests_max, t.requests);
    seen.codes[t.e.code < 64 ? t.e.code : 63]++;
}

/* Some bytes more (which & 1), past what a full cluster of L1 table maps (which & 2), some bytes
 * less (which & 4), half (which & 8). */
static void try_pair(struct made_base *b, const struct blk_mem *m, const struct blk_mem *under,
                     unsigned which)
{
    const struct layout *l = &b->l;
    u64 reach = l->cs * l->l2_entries, size = round_up(l->size, 512);
    if (which & 1)
        try_size(b, m, under, size + 1024 + (b->turn % 3 == 0 ? 5 * l->cs : 0),
                 (enum preallocation)(b->turn % 4));
    if (which & 2)
        try_size(b, m, under, b->overlay ? size + 3 * reach / 2
                                         : reach * (round_up(l->l1_size, l->cs / 8) + 1),
                 PREALLOC_OFF);
    if (which & 4)
        try_size(b, m, under, round_down(l->size, 512) - 1024, PREALLOC_OFF);
    if (which & 8)
        try_size(b, m, under, round_down(l->size / 2, 512), PREALLOC_OFF);
    b->turn++;
}

static void try_sizes(struct made_base *b, const struct blk_mem *m, unsigned which)
{
    try_pair(b, m, &b->under, which);
}

static void make_base(const struct base *base, struct made_base *out)
{
    struct made made;
    qcow2_make(&out->m, &base->p, &made);
    out->overlay = base->under.size;
    out->turn = 0;
    blk_mem_init(&out->under, 0, 512);
    if (out->overlay)
        qcow2_make(&out->under, &base->under, &made);
    CHECK(layout_read(&out->m, &out->l));
    out->cnt = layout_spots(&out->m, &out->l, out->spots, &out->header);
    CHECK(out->cnt > 30 && out->cnt < SPOTS_MAX);
    try_sizes(out, &out->m, 15); /* unharmed */
}

static void free_base(struct made_base *b)
{
    blk_mem_free(&b->m);
    blk_mem_free(&b->under);
}

static void each_spot(void)
{
    for (unsigned i = 0; i < BASES; i++) {
        static struct made_base b;
        u64 grown = seen.grown;
        test_note("%s, unharmed", bases[i].name);
        make_base(&bases[i], &b);
        CHECK_EQ_U64(seen.grown, grown + 4);
        for (unsigned s = 0; s < b.cnt; s++) {
            u64 evil[EVIL_MAX];
            const struct spot *at = &b.spots[s];
            unsigned cnt = evil_values(&b.m, &b.l, at->bytes, spot_get(&b.m, at), evil);
            CHECK(cnt && cnt < EVIL_MAX);
            for (unsigned v = 0; v < cnt; v++) {
                struct blk_mem bad;
                test_note("%s, %s at %llu: 0x%llx", bases[i].name, at->name,
                          (unsigned long long)at->off, (unsigned long long)evil[v]);
                blk_mem_over(&bad, &b.m);
                spot_put(&bad, at, evil[v]);
                try_sizes(&b, &bad, (1 + (v + i) % 2) | (v % 2 ? 4u << v / 2 % 2 : 0));
                blk_mem_free(&bad);
            }
        }
        free_base(&b);
    }
}

/* The overlay is sound, what lies below it is not: a shrink has nothing to do with it. */
static void each_spot_below(void)
{
    for (unsigned i = 0; i < BASES; i++) {
        static struct made_base b;
        struct spot spots[SPOTS_MAX];
        struct layout l;
        unsigned header, cnt = 0;
        make_base(&bases[i], &b);
        if (b.overlay && CHECK(layout_read(&b.under, &l)))
            cnt = layout_spots(&b.under, &l, spots, &header);
        for (unsigned s = 0; s < cnt; s++) {
            u64 evil[EVIL_MAX];
            unsigned n = evil_values(&b.under, &l, spots[s].bytes, spot_get(&b.under, &spots[s]),
                                     evil);
            for (unsigned v = 0; v < n; v++) {
                struct blk_mem bad;
                test_note("%s, below it %s at %llu: 0x%llx", bases[i].name, spots[s].name,
                          (unsigned long long)spots[s].off, (unsigned long long)evil[v]);
                blk_mem_over(&bad, &b.under);
                spot_put(&bad, &spots[s], evil[v]);
                try_pair(&b, &b.m, &bad, 1 + v % 2);
                blk_mem_free(&bad);
            }
        }
        free_base(&b);
    }
}

static const struct spot *field(const struct made_base *b, const char *name)
{
    for (unsigned i = 0; i < b->header; i++)
        if (!strcmp(b->spots[i].name, name))
            return &b->spots[i];
    return NULL;
}

/* Two fields that only together are wrong, or right again: all values of the one with a few of the
 * other. */
static void pairs(void)
{
    static const char *const pair[][2] = {
        { "size", "l1_size" }, { "l1_table_offset", "l1_size" },
        { "refcount_table_offset", "refcount_table_clusters" },
        { "snapshots_offset", "nb_snapshots" }, { "backing_file_offset", "backing_file_size" },
        { "l1_table_offset", "refcount_table_offset" }, { "cluster_bits", "refcount_order" },
        { "incompatible_features", "compression_type" },
        { "incompatible_features", "autoclear_features" }, { "header_length", "version" },
    };
    u64 rng = test_seed(0xbb67ae8584caa73b);
    for (unsigned i = 0; i < BASES; i++) {
        static struct made_base b;
        make_base(&bases[i], &b);
        for (unsigned p = 0; p < sizeof(pair) / sizeof(pair[0]); p++) {
            const struct spot *x = field(&b, pair[p][0]), *y = field(&b, pair[p][1]);
            u64 xs[EVIL_MAX], ys[EVIL_MAX];
            if (!x || !y)
                continue;
            unsigned nx = evil_values(&b.m, &b.l, x->bytes, spot_get(&b.m, x), xs);
            unsigned ny = evil_values(&b.m, &b.l, y->bytes, spot_get(&b.m, y), ys);
            for (unsigned k = 0; k < nx; k++) {
                struct blk_mem bad;
                u64 yv = ys[rnd_below(&rng, ny)];
                test_note("%s, %s 0x%llx, %s 0x%llx", bases[i].name, x->name,
                          (unsigned long long)xs[k], y->name, (unsigned long long)yv);
                blk_mem_over(&bad, &b.m);
                spot_put(&bad, x, xs[k]);
                spot_put(&bad, y, yv);
                try_sizes(&b, &bad, 15);
                blk_mem_free(&bad);
            }
        }
        free_base(&b);
    }
}

/* Any two to four places at once. */
static void several(void)
{
    u64 rng = test_seed(0x3c6ef372fe94f82b);
    for (unsigned i = 0; i < BASES; i++) {
        static struct made_base b;
        make_base(&bases[i], &b);
        for (unsigned n = 0; n < 500; n++) {
            struct blk_mem bad;
            test_note("%s, mutant %u of several places", bases[i].name, n);
            blk_mem_over(&bad, &b.m);
            for (u64 k = 2 + rnd_below(&rng, 3); k--;) {
                u64 evil[EVIL_MAX];
                const struct spot *at = &b.spots[rnd_below(&rng, b.cnt)];
                unsigned cnt = evil_values(&b.m, &b.l, at->bytes, spot_get(&b.m, at), evil);
                spot_put(&bad, at, evil[rnd_below(&rng, cnt)]);
            }
            try_sizes(&b, &bad, 15);
            blk_mem_free(&bad);
        }
        free_base(&b);
    }
}

/* The file is cut at every kilobyte, and around each table. */
static void cut_short(void)
{
    for (unsigned i = 0; i < BASES; i++) {
        static struct made_base b;
        make_base(&bases[i], &b);
        u64 steps = min_u64(b.m.length / 512, 150), step = b.m.length / steps;
        for (u64 len = 0; len < b.m.length; len += step) {
            struct blk_mem bad;
            test_note("%s, %llu of %llu bytes", bases[i].name, (unsigned long long)len,
                      (unsigned long long)b.m.length);
            blk_mem_over(&bad, &b.m);
            blk_mem_truncate(&bad, len);
            try_sizes(&b, &bad, 15);
            blk_mem_free(&bad);
        }
        free_base(&b);
    }
}

static void counts(void)
{
#define LL(v) ((unsigned long long)(v))
    printf("  %llu trials: %llu not opened, %llu refused, %llu resized: %llu shrunk, %llu grown by "
           "what is mapped\n", LL(seen.mutants), LL(seen.unopened), LL(seen.refused),
           LL(seen.grown), LL(seen.shrunk), LL(seen.filled));
    printf("  of the resized %llu were sound before; of the rest %llu are worse now; %llu were too "
           "large to judge\n", LL(seen.sound), LL(seen.worse), LL(seen.unjudged));
    printf("  at most %llu requests\n", LL(seen.requests_max));
#undef LL
    printf("  by code:");
    for (unsigned i = 0; i < 64; i++)
        if (seen.codes[i])
            printf(" %u: %llu", i, (unsigned long long)seen.codes[i]);
    printf("\n");
    CHECK(seen.unopened > seen.mutants / 10 && seen.refused > seen.mutants / 50 &&
          seen.grown > seen.mutants / 10);
    CHECK(seen.shrunk > seen.mutants / 10 && seen.filled > seen.mutants / 50);
    CHECK(seen.sound > 1000 && seen.unjudged < seen.grown / 20);
    CHECK(seen.worse < seen.grown / 500);
}

int main(void)
{
    RUN(each_spot);
    RUN(each_spot_below);
    RUN(pairs);
    RUN(several);
    RUN(cut_short);
    RUN(counts);
    return test_end();
}
