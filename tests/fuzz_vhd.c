/* SPDX-License-Identifier: MIT
 *
 * What the fuzz target adds for VHD. Offsets are the specification's, written down here anew.
 */
#include "fuzz_change.h"
#include "test.h"
#include "vhd_judge.h"
#include "vhd_make.h"

static bool footer_at(const struct blk_mem *m, u64 off)
{
    return off + 512 <= m->length && fuzz_get(m, off, 8) == 0x636f6e6563746978;
}

static u64 tail_of(const struct blk_mem *m)
{
    return m->length >= 512 ? m->length - 512 : 0;
}

/* Where the dynamic header lies, as far as it could. */
static u64 header_of(const struct blk_mem *m)
{
    u64 off = fuzz_get(m, 16, 8);
    return footer_at(m, 0) && off < m->length && m->length - off >= 1024 ? off : 0;
}

static void mend(struct blk_mem *m)
{
    if (footer_at(m, 0))
        vhd_make_footer_sum(m, 0);
    if (footer_at(m, tail_of(m)))
        vhd_make_footer_sum(m, tail_of(m));
    if (header_of(m) >= 512)
        vhd_make_header_sum(m, header_of(m));
}

static void footer(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *n, u64 off)
{
    static const struct spot fields[] = {
        {0, 8, "cookie"},        {8, 4, "features"},     {12, 4, "version"},
        {16, 8, "data offset"},  {28, 4, "creator"},     {40, 8, "original size"},
        {48, 8, "current size"}, {56, 2, "cylinders"},   {58, 1, "heads"},
        {59, 1, "sectors"},      {60, 4, "disk type"},   {64, 4, "checksum"},
        {68, 8, "unique id"},    {84, 1, "saved state"},
    };
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        fuzz_spot(m, out, n, off + fields[i].off, fields[i].bytes, fields[i].name);
}

static unsigned spots(const struct blk_mem *m, struct spot out[SPOTS_MAX])
{
    static const struct spot fields[] = {
        {0, 8, "header cookie"}, {16, 8, "table offset"}, {24, 4, "header version"},
        {28, 4, "max entries"},  {32, 4, "block size"},   {36, 4, "header checksum"},
    };
    unsigned n = 0;
    u64 h = header_of(m);
    footer(m, out, &n, tail_of(m));
    if (!h)
        return n;
    footer(m, out, &n, 0);
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        fuzz_spot(m, out, &n, h + fields[i].off, fields[i].bytes, fields[i].name);
    u64 bat = fuzz_get(m, h + 16, 8), entries = fuzz_get(m, h + 28, 4);
    u64 block = fuzz_get(m, h + 32, 4), used = fuzz_get(m, 48, 8) / (block | 1);
    u64 idx[] = {0, 1, 2, 3, 4, used - 1, used, used + 1, entries - 1, entries};
    for (unsigned i = 0; i < sizeof(idx) / sizeof(idx[0]); i++) {
        u64 entry = fuzz_get(m, bat + idx[i] * 4, 4);
        fuzz_spot(m, out, &n, bat + idx[i] * 4, 4, "BAT entry");
        if (entry != 0xffffffff)
            fuzz_spot(m, out, &n, entry * 512 + idx[i] % 8, 1, "block bitmap");
    }
    return n;
}

static unsigned places(const struct blk_mem *m, u64 out[PLACES_MAX])
{
    u64 h = header_of(m), bat = fuzz_get(m, h + 16, 8), entries = fuzz_get(m, h + 28, 4), n = 0;
    u64 block = fuzz_get(m, h + 32, 4);
    u64 at[] = {0,
                512,
                1024,
                1536,
                h,
                h + 1024,
                bat,
                bat + 512,
                bat - 512,
                bat + entries * 4,
                tail_of(m),
                m->length,
                block,
                block * 2,
                block + 512,
                fuzz_get(m, 48, 8),
                fuzz_get(m, tail_of(m) + 48, 8),
                entries,
                entries + 1,
                tail_of(m) - block,
                tail_of(m) - block - 512};
    for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++)
        out[n++] = at[i];
    for (unsigned i = 0; h && i < 8; i++)
        out[n++] = fuzz_get(m, bat + i * 4ull, 4) * 512;
    return (unsigned)n;
}

static u64 size(const struct blk_mem *m, u64 *unit)
{
    u64 h = header_of(m);
    *unit = h ? fuzz_get(m, h + 32, 4) : 1 << 20;
    return fuzz_get(m, (h ? 0 : tail_of(m)) + 48, 8);
}

static bool cheap(const struct image *img)
{
    return img->u.vhd.max_table_entries <= 1 << 20 && (img->unit || img->file[0]->size <= 64 << 20);
}

/* The footer but for size, geometry and checksum. */
static u64 kept(const struct blk_mem *m, u64 off)
{
    u64 h = 1;
    for (u64 i = 0; i < 512; i += 4)
        if (i < 48 || i > 64 || i == 60)
            h = (h ^ fuzz_get(m, off + i, 4)) * 0x100000001b3ull;
    return h;
}

/* Both footers. In all else they may differ: bytes that a resize has no business with. */
static bool same_size(const struct blk_mem *m)
{
    u64 tail = tail_of(m);
    return !header_of(m) || (fuzz_get(m, 48, 8) == fuzz_get(m, tail + 48, 8) &&
                             fuzz_get(m, 56, 4) == fuzz_get(m, tail + 56, 4));
}

static void judge(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                  struct fuzz_verdict *out)
{
    struct vhd_verdict v;
    vhd_judge_mem(m, upto, zero_from, zero_to, &v);
    *out = (struct fuzz_verdict){.opens = v.opens,
                                 .zero = v.zero,
                                 .why = v.why,
                                 .size = v.size,
                                 .hash = v.hash,
                                 .faults = v.faults};
    out->seen = max_u64(v.size, max_u64(v.size_qemu7, v.size_current));
    out->clean = v.tail && same_size(m);
    out->kept = kept(m, header_of(m) ? 0 : tail_of(m));
    memcpy(out->first, v.first, sizeof(out->first));
}

const struct fuzz_format fuzz_format = {.name = "vpc",
                                        .mend = mend,
                                        .spots = spots,
                                        .places = places,
                                        .size = size,
                                        .cheap = cheap,
                                        .judge = judge};
