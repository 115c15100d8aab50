/* SPDX-License-Identifier: MIT
 *
 * The fuzz targets of VHD, VHDX and VMDK, for libFuzzer or for the replaying main in fuzz_main.c:
 * input bytes become a sparse image and a size (fuzz_input.h), checksums are set right, unless a
 * flag says that they stay wrong, and both go through a change (fuzz_change.h). The mutator knows
 * where this format's metadata stands.
 *
 * In this input the flags mean: FUZZ_NO_SCRATCH that the dry run goes through all epochs;
 * FUZZ_UNDER that the number behind the head says which write fails. There is no second disk.
 *
 * With -DFUZZ_CANARY=1 or 2 it has a bug of its own that must be found: an off-by-one read, in
 * state 1 (reached by the seeds) or 2 (reached only by exploring).
 */
#include "fuzz_change.h"
#include "fuzz_input.h"
#include "test.h"

#define LL(v) ((unsigned long long)(v))

enum { FUZZ_SUMS = 64, /* checksums stay what they are */ FUZZ_INSERT = 128 };

#ifdef FUZZ_CANARY
static void canary(const struct change *c)
{
    bool shrunk = c->changed && c->judged && c->size < c->old_size;
    bool corrupt = c->opened && !c->changed && c->e.code == ERR_OVERLAY_CORRUPT;
    volatile u8 *p = malloc(8);
    memset((u8 *)p, 0, 8);
    if (FUZZ_CANARY == 1 ? shrunk : corrupt)
        printf("%d\n", p[8]);
    free((u8 *)p);
}
#endif

/* With INSTAR_VERBOSE set: what became of it. With INSTAR_SAVE set: the image as a file, there. */
static void tell(const struct change *c, const struct blk_mem *m)
{
    if (getenv("INSTAR_VERBOSE"))
        fprintf(stderr, "  %llu -> %llu (%llu): %s; %s%s%s; %llu requests\n", LL(c->old_size),
                LL(c->new_size), LL(c->size), c->changed ? "changed" : "refused",
                c->e.what ? c->e.what : "", c->judged ? "; judged" : "",
                c->failed ? "; failed" : "", LL(c->requests));
    if (getenv("INSTAR_SAVE"))
        blk_mem_save(m, getenv("INSTAR_SAVE"));
}

static bool decode(const u8 *data, size_t size, struct fuzz_head *h, struct blk_mem *m)
{
    struct blk_mem none;
    if (!fuzz_decode(data, size, h, m, &none))
        return false;
    blk_mem_free(&none);
    if (!(h->flags & FUZZ_SUMS) && fuzz_format.mend)
        fuzz_format.mend(m);
    return true;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    struct fuzz_head h;
    struct blk_mem m;
    if (!decode(data, size, &h, &m))
        return 0;
    struct change c = {.image = &m,
                       .new_size = max_u64(h.new_size, 1), /* ops/newsize.c lets no 0 through */
                       .how = (enum preallocation)(h.flags >> FUZZ_HOW_SHIFT & 3),
                       .insert_unit = h.flags & FUZZ_INSERT ? 4096 : 0,
                       .fail_at = h.flags & FUZZ_UNDER ? h.under : 0,
                       .rehearse = h.flags & FUZZ_NO_SCRATCH};
    bool ok = change_run(&c);
    tell(&c, &m);
    if (!ok) {
        fprintf(stderr, "WRONG: %s (new size %llu, file of %llu bytes)\n", c.wrong, LL(c.new_size),
                LL(m.length));
        abort();
    }
#ifdef FUZZ_CANARY
    canary(&c);
#endif
    blk_mem_free(&m);
    return 0;
}

/* ---- the mutator ---- */

static u64 some_size(const struct blk_mem *m, u64 *rng)
{
    u64 block, size = fuzz_format.size(m, &block);
    u64 unit[] = {1, 512, 4096, 1 << 20, block, block << 9, block << 12};
    u64 by = unit[rnd_below(rng, 7)] * rnd_below(rng, 9);
    if (rnd_below(rng, 10) == 0)
        return rnd(rng) >> (1 + rnd_below(rng, 63));
    return (rnd_below(rng, 2) ? size + by
            : by < size       ? size - by
                              : rnd_below(rng, size | 1)) &
           INT64_MAX;
}

static u64 some_length(const struct blk_mem *m, u64 *rng)
{
    u64 block;
    fuzz_format.size(m, &block);
    u64 unit[] = {1, 512, 4096, 1 << 20, block};
    u64 by = unit[rnd_below(rng, 5)] * rnd_below(rng, 5);
    switch (rnd_below(rng, 6)) {
    case 0:
        return 1ull << rnd_below(rng, 63);
    case 1:
        return m->length > by ? m->length - by : m->length;
    case 2:
        return round_up(m->length & INT64_MAX / 2, 512);
    default:
        return (m->length + by) & INT64_MAX;
    }
}

static u64 some_value(const struct blk_mem *m, const struct spot *s, u64 *rng)
{
    static const u64 plain[] = {0,
                                1,
                                2,
                                3,
                                4,
                                6,
                                7,
                                8,
                                16,
                                255,
                                511,
                                512,
                                513,
                                2047,
                                2048,
                                4095,
                                4096,
                                65535,
                                65536,
                                1 << 20,
                                3 << 20,
                                256 << 20,
                                (1u << 31) - 1,
                                1u << 31,
                                ~0u - 1,
                                ~0u,
                                1ull << 32,
                                1ull << 41,
                                64ull << 30,
                                2040ull << 30,
                                64ull << 40,
                                1ull << 53,
                                (1ull << 63) - 512,
                                1ull << 63,
                                ~0ull - 4095,
                                ~0ull};
    u64 place[PLACES_MAX], now = fuzz_get(m, s->off, s->bytes);
    unsigned cnt = fuzz_format.places(m, place);
    u64 at = cnt ? place[rnd_below(rng, cnt)] : 0;
    switch (rnd_below(rng, 10)) {
    case 0:
        return now ^ 1ull << rnd_below(rng, s->bytes * 8u);
    case 1:
        return now + rnd_below(rng, 9) - 4;
    case 2:
        return rnd(rng) >> rnd_below(rng, 64);
    case 3:
        return at / 512 + rnd_below(rng, 3) - 1;
    case 4:
        return at / 512;
    case 5:
        return at | rnd_below(rng, 8); /* a VHDX block's state */
    case 6:
        return at;
    default:
        return plain[rnd_below(rng, sizeof(plain) / sizeof(plain[0]))];
    }
}

/* One change that means something, appended to the input; returns its new size. */
static size_t mutate_once(u8 *data, size_t size, size_t max, u64 *rng)
{
    static const u8 flags[] = {FUZZ_SECTOR_4096,    FUZZ_NO_SCRATCH, 1 << FUZZ_HOW_SHIFT,
                               2 << FUZZ_HOW_SHIFT, FUZZ_SUMS,       FUZZ_INSERT};
    struct fuzz_head h;
    struct blk_mem m;
    struct spot spots[SPOTS_MAX];
    if (!decode(data, size, &h, &m))
        return size;
    unsigned cnt = fuzz_format.spots(&m, spots);
    u64 what = rnd_below(rng, 12);
    if (what == 0)
        h.new_size = some_size(&m, rng);
    else if (what == 1)
        h.length = some_length(&m, rng);
    else if (what == 2)
        h.flags ^= flags[rnd_below(rng, sizeof(flags))];
    else if (what == 3 && h.flags & FUZZ_UNDER)
        h.under = rnd_below(rng, 40);
    fuzz_put_head(data, &h);
    if (what > 3 && cnt) {
        u8 b[8];
        const struct spot *s = &spots[rnd_below(rng, cnt)];
        u64 val = some_value(&m, s, rng);
        for (u8 i = 0; i < s->bytes; i++)
            b[i] = (u8)(val >> 8 * (fuzz_format.little ? i : s->bytes - 1 - i));
        size = fuzz_append(data, size, max, false, s->off, b, s->bytes);
    }
    blk_mem_free(&m);
    return size;
}

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max, unsigned int seed)
{
    u64 rng = seed * 0x9e3779b97f4a7c15ull | 1;
    if (size < FUZZ_HEAD || rnd_below(&rng, 6) == 0)
        return LLVMFuzzerMutate(data, size, max);
    for (u64 n = 1 + rnd_below(&rng, 3); n--;)
        size = mutate_once(data, size, max, &rng);
    return size;
}
