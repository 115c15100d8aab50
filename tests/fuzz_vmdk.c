/* SPDX-License-Identifier: MIT
 *
 * What the fuzz target adds for VMDK, of one file. Offsets are the specification's, written down
 * here anew.
 */
#include "fuzz_change.h"
#include "test.h"
#include "vmdk_judge.h"

static u64 sectors_at(const struct blk_mem *m, u64 off)
{
    return fuzz_get(m, off, 8) & ((1ull << 40) - 1);
}

static void table_spots(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *n, u64 table,
                        u64 gtes, u64 rest)
{
    u64 idx[] = {0, 1, 2, rest - 1, rest, rest + 1, gtes - 1};
    for (unsigned i = 0; table && i < sizeof(idx) / sizeof(idx[0]); i++)
        if (idx[i] < 512)
            fuzz_spot(m, out, n, table + idx[i] * 4, 4, "grain table entry");
}

/* Numbers and words of the descriptor, byte by byte: the first of each line and what follows '='.
 */
static void text_spots(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *n)
{
    u64 off = sectors_at(m, 28) * 512, end = off + min_u64(sectors_at(m, 36) * 512, 2048);
    u64 before = '\n';
    for (; off < end && *n < SPOTS_MAX - 40; off++) {
        u64 c = fuzz_get(m, off, 1);
        if (c && (before == '\n' || before == '=' || before == ' '))
            fuzz_spot(m, out, n, off, 1 + 3 * (off % 2), "descriptor");
        before = c;
    }
}

static unsigned spots(const struct blk_mem *m, struct spot out[SPOTS_MAX])
{
    static const struct spot header[] = {
        {0, 4, "magic"},
        {4, 4, "version"},
        {8, 4, "flags"},
        {12, 8, "capacity"},
        {20, 8, "grain size"},
        {28, 8, "descriptor offset"},
        {36, 8, "descriptor size"},
        {44, 4, "num gtes"},
        {48, 8, "rgd offset"},
        {56, 8, "gd offset"},
        {64, 8, "overhead"},
        {72, 1, "unclean"},
        {73, 4, "newlines"},
        {77, 2, "compression"},
    };
    unsigned n = 0;
    for (unsigned i = 0; i < sizeof(header) / sizeof(header[0]); i++)
        fuzz_spot(m, out, &n, header[i].off, header[i].bytes, header[i].name);
    u64 gtes = fuzz_get(m, 44, 4), grain = sectors_at(m, 20), cap = sectors_at(m, 12);
    u64 reach = grain * gtes | 1, entries = div_up(cap, reach), rest = cap % reach / (grain | 1);
    for (unsigned which = 0; which < 2; which++) {
        u64 gd = sectors_at(m, which ? 48 : 56) * 512, idx[] = {0, 1, entries - 1, entries};
        for (unsigned i = 0; i < 4; i++) {
            fuzz_spot(m, out, &n, gd + idx[i] * 4, 4, "directory entry");
            if (i != 1)
                table_spots(m, out, &n, fuzz_get(m, gd + idx[i] * 4, 4) * 512, gtes, i ? rest : 3);
        }
    }
    text_spots(m, out, &n);
    return n;
}

static unsigned places(const struct blk_mem *m, u64 out[PLACES_MAX])
{
    u64 gd = sectors_at(m, 56) * 512, rgd = sectors_at(m, 48) * 512, n = 0;
    u64 table = fuzz_get(m, gd, 4) * 512, grain = sectors_at(m, 20) * 512;
    u64 at[] = {0,
                512,
                gd,
                gd + 512,
                rgd,
                rgd + 512,
                table,
                table + 512,
                table + 2048,
                fuzz_get(m, rgd, 4) * 512,
                sectors_at(m, 64) * 512,
                m->length,
                m->length - 512,
                m->length - grain,
                grain,
                grain * 2,
                sectors_at(m, 12) * 512,
                sectors_at(m, 28) * 512,
                sectors_at(m, 36) * 512};
    for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++)
        out[n++] = at[i];
    for (unsigned i = 0; table && i < 8; i++)
        out[n++] = fuzz_get(m, table + i * 4ull, 4) * 512;
    return (unsigned)n;
}

static u64 size(const struct blk_mem *m, u64 *unit)
{
    *unit = sectors_at(m, 20) * 512;
    return sectors_at(m, 12) * 512;
}

static bool cheap(const struct image *img)
{
    const struct vmdk *v = &img->u.vmdk;
    return img->files == 1 && v->entries && v->entries <= 1 << 12 && !(v->flags & VMDK_COMPRESSED);
}

static void judge(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                  struct fuzz_verdict *out)
{
    struct vmdk_verdict v;
    vmdk_judge_mem(m, upto, zero_from, zero_to, &v);
    *out = (struct fuzz_verdict){.opens = v.opens,
                                 .zero = v.zero,
                                 .why = v.why,
                                 .size = v.size,
                                 .seen = v.size,
                                 .hash = v.hash,
                                 .faults = v.faults,
                                 .kept = v.text_hash ^ v.rest_hash};
    out->clean = v.text_size == v.size && !v.stale;
    memcpy(out->first, v.first, sizeof(out->first));
}

const struct fuzz_format fuzz_format = {.name = "vmdk",
                                        .little = true,
                                        .spots = spots,
                                        .places = places,
                                        .size = size,
                                        .cheap = cheap,
                                        .judge = judge};
