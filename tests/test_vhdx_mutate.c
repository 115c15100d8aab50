/* SPDX-License-Identifier: MIT
 *
 * VHDX images with seeded damage in everything but payload, sums set right again more often than
 * not: open, map and resize either refuse, and not a byte has changed, or what they leave is as
 * sound as what the judge found before, with the same data.
 */
#include "vhdx_run.h"

#include "test.h"

#include <time.h>

enum { KI = 1 << 10, MI = 1 << 20, ROUNDS = 2500 };

static u64 evil_number(u64 *seed, const struct vhdx_made *d)
{
    const u64 some[] = {0,
                        1,
                        2,
                        3,
                        6,
                        7,
                        512,
                        4096,
                        MI - 1,
                        MI,
                        MI + 1,
                        3 * MI,
                        d->log,
                        d->bat,
                        d->metadata,
                        d->payload,
                        d->length,
                        d->length - MI,
                        d->length + MI,
                        d->payload | 6,
                        d->bat | 6,
                        d->length | 6,
                        (d->length - MI) | 6,
                        2047,
                        2048,
                        0xffff,
                        0x7fffffff,
                        0xffffffff,
                        1ull << 40,
                        1ull << 62,
                        UINT64_MAX,
                        0xfffffffffff00006,
                        UINT64_MAX - 5,
                        64ull << 40};
    u64 n = some[rnd_below(seed, sizeof(some) / sizeof(some[0]))];
    return rnd_below(seed, 4) ? n : n + rnd_below(seed, 64) - 32;
}

static void damage(struct blk_mem *m, const struct vhdx_made *d, u64 *seed)
{
    static const u32 header_fields[] = {0, 4, 8, 16, 48, 64, 66, 68, 72, 80, 4090};
    u64 off = 0;
    switch (rnd_below(seed, 7)) {
    case 0:
        off = (1 + rnd_below(seed, 2)) * 64 * KI + header_fields[rnd_below(seed, 11)];
        break;
    case 1:
        off = (3 + rnd_below(seed, 2)) * 64 * KI + 4 * rnd_below(seed, 30);
        break;
    case 2:
        off = d->metadata + 4 * rnd_below(seed, 80);
        break;
    case 3:
        off = d->metadata + 64 * KI + 4 * rnd_below(seed, 40);
        break;
    case 4:
    case 5:
        off = d->bat + 8 * rnd_below(seed, d->entries + 2);
        break;
    default:
        off = d->log + 4096 * rnd_below(seed, 4) + 4 * rnd_below(seed, 60);
    }
    u8 b[8];
    u64 v = evil_number(seed, d);
    memcpy(b, &v, 8);
    blk_mem_put(m, off, b, rnd_below(seed, 2) ? 8 : 4);
}

/* A log with one to four entries, as a crashed writer would leave it. */
static void dirty(struct blk_mem *m, const struct vhdx_made *d, u64 *seed)
{
    static const u8 guid[16] = "mutated logs, 1";
    u8 bat[4 * KI], meta[4 * KI];
    u64 at = round_down(d->size_item, 4 * KI), end = round_down(m->length, MI);
    blk_mem_get(m, d->bat, bat, sizeof(bat));
    blk_mem_get(m, at, meta, sizeof(meta));
    struct vhdx_make_change c[] = {
        {d->bat, 0, bat}, {at, 0, meta}, {d->bat + 8 * KI, 4 * KI, NULL}};
    u32 pos = (u32)rnd_below(seed, d->log_length / 4096) * 4096, tail = pos;
    u64 seq = 1 + rnd_below(seed, 9), n = 1 + rnd_below(seed, 4);
    for (u64 i = 0; i < n; i++)
        pos = (pos + vhdx_make_entry(m, d, pos, tail, seq + i, guid, c, 1 + (u32)rnd_below(seed, 3),
                                     end, end)) %
              d->log_length;
    vhdx_make_log_guid(m, guid);
}

static void fix_sums(struct blk_mem *m)
{
    for (u64 off = 64 * KI; off <= 128 * KI; off += 64 * KI)
        vhdx_make_sum(m, off, 4 * KI);
    for (u64 off = 192 * KI; off <= 256 * KI; off += 64 * KI)
        vhdx_make_sum(m, off, 64 * KI);
}

/* map() over the whole disk: what it says lies in the file. */
static void walk(struct blk_mem *m)
{
    struct image img;
    struct err e = {0};
    if (vhdx_open_mem(&m->blk, &img, &e))
        return;
    u64 steps = 0;
    for (u64 voff = 0; voff < img.size && steps < 3000; steps++) {
        struct extent x;
        if (img.format->map(&img, voff, UINT64_MAX, &x, &e))
            break;
        assert(x.voff == voff && x.len && x.len <= img.size - voff);
        assert(x.kind != EXTENT_DATA || x.off >= MI);
        voff += x.len;
    }
    CHECK(e.code == OK || e.code == ERR_OVERLAY_CORRUPT);
}

struct tally {
    u64 refused, done, sound;
};

static void one_round(u64 *seed, struct tally *t)
{
    struct vhdx_make p = {.size = 12 * MI + 512 * rnd_below(seed, 2),
                          .blocks = 4,
                          .last = true,
                          .unknown = rnd_below(seed, 2),
                          .child = rnd_below(seed, 5) == 0,
                          .seed = rnd_below(seed, 50)};
    p.fixed = !p.child && rnd_below(seed, 5) == 0;
    p.partial = p.child;
    struct vhdx_made made;
    struct vhdx_verdict before, after;
    struct blk_mem m, now;
    struct err e = {0};
    u64 at, to = 512 * (1 + rnd_below(seed, rnd_below(seed, 2) ? 24000 : 24000000));
    vhdx_make(&m, &p, &made);
    if (rnd_below(seed, 3) == 0)
        dirty(&m, &made, seed);
    bool right = rnd_below(seed, 5);
    for (u64 n = 1 + rnd_below(seed, 3); n; n--)
        damage(&m, &made, seed);
    if (right)
        fix_sums(&m);
    blk_mem_over(&now, &m);
    walk(&now);
    vhdx_judge(&m, 512, 0, 0, &before); /* for the size */
    vhdx_judge(&m, min_u64(before.size, to), 0, 0, &before);
    vhdx_resize_mem(&now, to, 7, &e);
    if (e.code) {
        t->refused++;
        CHECK(e.code != ERR_HEADER_MISMATCH && e.code != ERR_READ_FAILED &&
              e.code != ERR_WRITE_FAILED);
        CHECK(blk_mem_equal(&now, &m, &at));
    } else if (!CHECK(before.opens)) {
        printf("    the judge does not open it: %s\n", before.why);
    } else if (before.size != to) {
        t->done++;
        vhdx_judge(&now, min_u64(before.size, to), before.size, to, &after);
        CHECK(after.opens && after.size == to);
        if (!before.corruptions) {
            t->sound++;
            if (!CHECK(vhdx_judge_clean(&after) && after.hash == before.hash && after.zero))
                printf("    %s %s at %llu\n", after.why, after.first,
                       (unsigned long long)after.first_at);
        }
    }
    blk_mem_free(&now);
    blk_mem_free(&m);
}

static void mutations(void)
{
    u64 seed = test_seed(0x510e527fade682d1);
    struct tally t = {0};
    time_t slowest = 0;
    for (unsigned n = 0; n < ROUNDS; n++) {
        time_t t0 = time(NULL);
        test_note("round %u", n);
        one_round(&seed, &t);
        slowest = time(NULL) - t0 > slowest ? time(NULL) - t0 : slowest;
    }
    test_note("%s", "");
    printf(
        "  %u rounds: %llu refused, %llu done, %llu of these on what the judge had found sound\n",
        (unsigned)ROUNDS, (unsigned long long)t.refused, (unsigned long long)t.done,
        (unsigned long long)t.sound);
    CHECK(t.refused > 500 && t.sound > 300 && slowest < 20);
}

int main(void)
{
    RUN(mutations);
    return test_end();
}
