/* SPDX-License-Identifier: MIT
 *
 * The qcow2 fuzz target, for libFuzzer or for the replaying main in fuzz_main.c: input bytes become
 * a sparse image, perhaps with one below it, and a request to grow, with or without preallocation,
 * or to shrink (fuzz_input.h), which go through a trial (fuzz_trial.h). The mutator
 * knows where an image's metadata stands and what is evil there (fuzz_evil.h), so that most of what
 * it makes gets past the header.
 *
 * With -DFUZZ_CANARY=1 or 2 it has a bug of its own that must be found: an off-by-one read, in
 * state 1 (reached by the seeds) or 2 (reached only by exploring).
 */
#include "fuzz_evil.h"
#include "fuzz_input.h"
#include "fuzz_trial.h"
#include "test.h"

enum { EXTENTS = 200 };

#ifdef FUZZ_CANARY
static void canary(const struct trial *t)
{
    bool moved = t->grown && t->judged && t->before.rt_offset != t->after.rt_offset;
    bool uncounted = t->opened && t->e.code == ERR_INCONSISTENT && t->old_size % 4096;
    volatile u8 *p = malloc(8);
    memset((u8 *)p, 0, 8);
    if (FUZZ_CANARY == 1 ? moved : uncounted)
        printf("%d\n", p[8]);
    free((u8 *)p);
}
#endif

/* With INSTAR_VERBOSE set: what became of it. */
static void tell(const struct trial *t)
{
    if (getenv("INSTAR_VERBOSE"))
        fprintf(stderr, "  %s; %s%s%s; %llu requests\n", t->grown ? "grown" : "refused",
                t->e.what ? t->e.what : "", t->judged ? "; judged" : "",
                t->sound ? "; sound before" : "", (unsigned long long)t->requests);
}

/* With INSTAR_SAVE set: the images as files, there and with ".under" behind it. */
static void save(const struct blk_mem *m, const struct blk_mem *under)
{
    const char *path = getenv("INSTAR_SAVE");
    char name[1024];
    if (!path)
        return;
    blk_mem_save(m, path);
    snprintf(name, sizeof(name), "%s.under", path);
    if (under->length)
        blk_mem_save(under, name);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    struct fuzz_head h;
    struct blk_mem m, under;
    if (!fuzz_decode(data, size, &h, &m, &under))
        return 0;
    struct trial t = { .image = &m, .new_size = h.new_size, .extents = EXTENTS,
                       .no_scratch = h.flags & FUZZ_NO_SCRATCH,
                       .how = (enum preallocation)(h.flags >> FUZZ_HOW_SHIFT & 3),
                       .under = h.flags & FUZZ_UNDER ? &under : NULL,
                       .under_format = h.flags & FUZZ_UNDER_RAW ? "raw" : "qcow2" };
    save(&m, &under);
    bool ok = trial_run(&t);
    tell(&t);
    if (!ok) {
        fprintf(stderr, "WRONG: %s (new size %llu, file of %llu bytes)\n", t.wrong,
                (unsigned long long)t.new_size, (unsigned long long)m.length);
        abort();
    }
#ifdef FUZZ_CANARY
    canary(&t);
#endif
    blk_mem_free(&m);
    blk_mem_free(&under);
    return 0;
}

/* ---- the mutator ---- */

/* A new size around where something changes: the old one, a cluster, an L1 entry, a cluster of L1
 * table, the limits. */
static u64 some_size(const struct layout *l, u64 *rng)
{
    u64 reach = l->cs * l->l2_entries;
    u64 unit[] = { 512, l->cs, reach, reach * (l->cs / 8), reach << 12, reach << 22 };
    u64 by = unit[rnd_below(rng, 6)] * rnd_below(rng, 6), size = l->size + by;
    if (rnd_below(rng, 3) == 0)
        return round_down(by < l->size ? l->size - by : rnd_below(rng, l->size | 1), 512);
    return rnd_below(rng, 20) ? round_up(size, 512) & INT64_MAX : rnd(rng) >> rnd_below(rng, 64);
}

/* A file that ends elsewhere: by some bytes, sectors or clusters, at a power of two. */
static u64 some_length(const struct layout *l, u64 *rng)
{
    u64 unit[] = { 1, 512, l->cs, l->cs * l->block_entries };
    u64 by = unit[rnd_below(rng, 4)] * rnd_below(rng, 5);
    switch (rnd_below(rng, 5)) {
    case 0:
        return 1ull << rnd_below(rng, 63);
    case 1:
        return l->length > by ? l->length - by : l->length;
    case 2:
        return l->cs * l->block_entries * (l->rt_clusters * l->cs / 8) - l->cs * rnd_below(rng, 4);
    default:
        return l->length + by;
    }
}

/* An evil value, or a few bits of what is there, or anything. */
static u64 some_value(const struct blk_mem *m, const struct layout *l, const struct spot *s,
                      u64 *rng)
{
    u64 evil[EVIL_MAX], now = spot_get(m, s);
    unsigned cnt = evil_values(m, l, s->bytes, now, evil);
    switch (rnd_below(rng, 8)) {
    case 0:
        return now ^ 1ull << rnd_below(rng, s->bytes * 8u);
    case 1:
        return now + l->cs * rnd_below(rng, 8);
    case 2:
        return rnd(rng) >> rnd_below(rng, 64);
    default:
        return cnt ? evil[rnd_below(rng, cnt)] : 0;
    }
}

/* One change that means something, appended to the input; returns its new size. */
static size_t mutate_once(u8 *data, size_t size, size_t max, u64 *rng)
{
    struct fuzz_head h;
    struct blk_mem disk[2];
    struct layout l;
    if (!fuzz_decode(data, size, &h, &disk[0], &disk[1]))
        return size;
    bool under = h.flags & FUZZ_UNDER && rnd_below(rng, 3) == 0;
    const struct blk_mem *m = &disk[under];
    if (layout_read(m, &l)) {
        struct spot spots[SPOTS_MAX];
        unsigned header, cnt = layout_spots(m, &l, spots, &header);
        u64 what = rnd_below(rng, 12);
        if (what == 0)
            h.new_size = some_size(&l, rng);
        else if (what == 1)
            *(under ? &h.under : &h.length) = some_length(&l, rng);
        else if (what == 2)
            h.flags ^= (u8)(1u << rnd_below(rng, 4)); /* the sector, a decoder, preallocation */
        fuzz_put_head(data, &h);
        if (what > 2 && cnt) {
            u8 b[8];
            const struct spot *s = &spots[rnd_below(rng, what < 5 && header ? header : cnt)];
            spot_bytes(s->bytes, some_value(m, &l, s, rng), b);
            size = fuzz_append(data, size, max, under, s->off, b, s->bytes);
        }
    }
    blk_mem_free(&disk[0]);
    blk_mem_free(&disk[1]);
    return size;
}

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max, unsigned int seed)
{
    u64 rng = seed * 0x9e3779b97f4a7c15ull | 1;
    if (size < FUZZ_HEAD || rnd_below(&rng, 4) == 0)
        return LLVMFuzzerMutate(data, size, max);
    for (u64 n = 1 + rnd_below(&rng, 3); n--;)
        size = mutate_once(data, size, max, &rng);
    return size;
}
