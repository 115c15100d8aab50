/* SPDX-License-Identifier: MIT
 *
 * What the fuzz target adds for VHDX. Offsets are those of [MS-VHDX], written down here anew.
 */
#include "fuzz_change.h"
#include "test.h"
#include "vhdx_judge.h"
#include "vhdx_make.h"

enum {
    K = 1024,
    M = 1 << 20,
    HEADER = 64 * K,
    TABLE = 192 * K,
    LOG_ENTRIES = 16,
    LOG_MAX = 1 << 20
};

static const u64 bat_id = 0x4200f6232dc27766, metadata_id = 0x4b9a47908b7ca206,
                 size_id = 0x4876cd1b2fa54224, parameters_id = 0x4d43fa36caa16737;

static bool text_at(const struct blk_mem *m, u64 off, const char *want)
{
    char b[4];
    if (off >= m->length || m->length - off < 4096)
        return false;
    blk_mem_get(m, off, b, 4);
    return !memcmp(b, want, 4);
}

/* Where log entries stand, by the headers. */
static unsigned log_entries(const struct blk_mem *m, u64 out[LOG_ENTRIES])
{
    unsigned n = 0;
    for (int i = 0; i < 2; i++) {
        u64 off = fuzz_get(m, HEADER * (i + 1ull) + 72, 8);
        u64 len = min_u64(fuzz_get(m, HEADER * (i + 1ull) + 68, 4), LOG_MAX);
        for (u64 at = 0; n < LOG_ENTRIES && off % M == 0 && at < len; at += 4096)
            if (text_at(m, off + at, "loge") && (!n || out[n - 1] < off + at))
                out[n++] = off + at;
    }
    return n;
}

/* An entry's checksum; it may go on at the beginning of the log. */
static void sum_entry(struct blk_mem *m, u64 at)
{
    u64 log = fuzz_get(m, HEADER + 72, 8), log_len = fuzz_get(m, HEADER + 68, 4);
    u64 len = fuzz_get(m, at + 8, 4);
    if (len % 4096 || len > log_len || !len || len > LOG_MAX || at < log || at - log >= log_len)
        return;
    u8 b[4096], sum[4] = {0};
    u32 crc = 0;
    blk_mem_put(m, at + 4, sum, 4);
    for (u64 i = 0; i < len; i += 4096) {
        blk_mem_get(m, log + (at - log + i) % log_len, b, 4096);
        crc = vhdx_make_crc(crc, b, 4096);
    }
    put_le32(sum, crc);
    blk_mem_put(m, at + 4, sum, 4);
}

static void mend(struct blk_mem *m)
{
    u64 entry[LOG_ENTRIES];
    for (u64 i = 1; i <= 2; i++)
        if (text_at(m, i * HEADER, "head"))
            vhdx_make_sum(m, i * HEADER, 4 * K);
    for (u64 off = TABLE; off <= TABLE + HEADER; off += HEADER)
        if (text_at(m, off, "regi") && m->length - off >= HEADER)
            vhdx_make_sum(m, off, 64 * K);
    unsigned cnt = log_entries(m, entry);
    for (unsigned i = 0; i < cnt; i++)
        sum_entry(m, entry[i]);
}

/* The region of this GUID, by the first table. */
static u64 region(const struct blk_mem *m, u64 id, u64 *entry)
{
    u64 off = 0;
    *entry = 0;
    for (u64 i = 0; i < 8; i++)
        if (fuzz_get(m, TABLE + 16 + i * 32, 8) == id) {
            *entry = TABLE + 16 + i * 32;
            off = fuzz_get(m, *entry + 16, 8);
        }
    return off < m->length ? off : 0;
}

static u64 item(const struct blk_mem *m, u64 id)
{
    u64 entry, meta = region(m, metadata_id, &entry);
    for (u64 i = 0; meta && i < 8; i++)
        if (fuzz_get(m, meta + 32 + i * 32, 8) == id)
            return meta + fuzz_get(m, meta + 32 + i * 32 + 16, 4);
    return 0;
}

static void all(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *n, u64 off,
                const struct spot *fields, unsigned cnt)
{
    for (unsigned i = 0; i < cnt; i++)
        fuzz_spot(m, out, n, off + fields[i].off, fields[i].bytes, fields[i].name);
}

static u64 size(const struct blk_mem *m, u64 *unit)
{
    u64 at = item(m, size_id), parameters = item(m, parameters_id);
    *unit = parameters ? fuzz_get(m, parameters, 4) : M;
    return at ? fuzz_get(m, at, 8) : M;
}

static void bat_spots(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *n)
{
    u64 entry, bat = region(m, bat_id, &entry), unit, used = size(m, &unit);
    used = div_up(used, unit | 1);
    u64 ratio = unit ? (4096ull << 20) / unit : 1;
    u64 idx[] = {0, 1, 2, 3, used - 1, used, used + 1, ratio, ratio + 1, used + used / (ratio | 1)};
    for (unsigned i = 0; bat && i < sizeof(idx) / sizeof(idx[0]); i++)
        fuzz_spot(m, out, n, bat + idx[i] * 8, 8, "BAT entry");
}

static void log_spots(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *n)
{
    static const struct spot fields[] = {
        {8, 4, "entry length"},        {12, 4, "tail"},         {16, 8, "sequence number"},
        {24, 4, "descriptor count"},   {32, 8, "log guid"},     {48, 8, "flushed file offset"},
        {56, 8, "last file offset"},   {64, 4, "descriptor"},   {72, 8, "leading bytes"},
        {80, 8, "descriptor offset"},  {88, 8, "its sequence"}, {96, 4, "second descriptor"},
        {104, 8, "its leading bytes"}, {112, 8, "its offset"},  {4096, 4, "data sector"},
        {4100, 4, "sequence high"},    {4104, 8, "its bytes"},  {8188, 4, "sequence low"},
    };
    u64 entry[LOG_ENTRIES];
    unsigned cnt = log_entries(m, entry);
    for (unsigned i = 0; i < min_u64(cnt, 3); i++)
        all(m, out, n, entry[i], fields, sizeof(fields) / sizeof(fields[0]));
}

static unsigned spots(const struct blk_mem *m, struct spot out[SPOTS_MAX])
{
    static const struct spot header[] = {
        {0, 4, "head"},        {8, 8, "sequence number"}, {16, 8, "file write guid"},
        {48, 8, "log guid"},   {64, 2, "log version"},    {66, 2, "version"},
        {68, 4, "log length"}, {72, 8, "log offset"},
    };
    static const struct spot entry[] = {
        {0, 8, "guid"}, {16, 8, "offset"}, {24, 4, "length"}, {28, 4, "required"}};
    static const struct spot metadata[] = {
        {0, 8, "item"}, {16, 4, "item offset"}, {20, 4, "item length"}, {24, 4, "item flags"}};
    unsigned n = 0;
    u64 ignored, meta = region(m, metadata_id, &ignored);
    for (u64 i = 1; i <= 2; i++) {
        all(m, out, &n, i * HEADER, header, 8);
        fuzz_spot(m, out, &n, TABLE + (i - 1) * HEADER + 8, 4, "regions");
    }
    for (u64 i = 0; i < 4; i++) {
        all(m, out, &n, TABLE + 16 + i * 32, entry, 4);
        if (i < 2)
            all(m, out, &n, TABLE + HEADER + 16 + i * 32, entry, 4);
    }
    bat_spots(m, out, &n);
    fuzz_spot(m, out, &n, meta + 10, 2, "items");
    for (u64 i = 0; meta && i < 7; i++) {
        all(m, out, &n, meta + 32 + i * 32, metadata, 4);
        u64 off = fuzz_get(m, meta + 32 + i * 32 + 16, 4);
        fuzz_spot(m, out, &n, meta + off, i % 2 ? 8 : 4, "an item");
        fuzz_spot(m, out, &n, meta + off + 4, 4, "an item's second half");
    }
    log_spots(m, out, &n);
    return n;
}

static unsigned places(const struct blk_mem *m, u64 out[PLACES_MAX])
{
    u64 entry, bat = region(m, bat_id, &entry), meta = region(m, metadata_id, &entry), unit, n = 0;
    u64 disk = size(m, &unit), log = fuzz_get(m, HEADER + 72, 8);
    u64 at[] = {0,
                HEADER,
                TABLE,
                TABLE + HEADER,
                M,
                2 * M,
                log,
                bat,
                meta,
                meta + HEADER,
                bat + M,
                m->length,
                disk,
                unit,
                fuzz_get(m, HEADER + 8, 8),
                item(m, size_id),
                item(m, parameters_id),
                log + M,
                round_down(m->length, M),
                round_up(m->length & INT64_MAX / 2, M),
                bat_id,
                metadata_id,
                size_id,
                parameters_id,
                TABLE + 2 * HEADER,
                fuzz_get(m, HEADER + 48, 8)};
    for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++)
        out[n++] = at[i];
    for (unsigned i = 0; bat && i < 8; i++)
        out[n++] = fuzz_get(m, bat + i * 8ull, 8);
    return (unsigned)n;
}

static bool cheap(const struct image *img)
{
    const struct vhdx *v = &img->u.vhdx;
    return v->log.length <= 16 << 20 && v->bat_length <= 64 << 20 && v->log.entries <= 64 &&
           v->regions_end <= 256 << 20 && img->file[0]->size <= 1ull << 44;
}

static void judge(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                  struct fuzz_verdict *out)
{
    struct vhdx_verdict v;
    vhdx_judge(m, upto, zero_from, zero_to, &v);
    *out = (struct fuzz_verdict){.opens = v.opens,
                                 .zero = v.zero,
                                 .why = v.why,
                                 .size = v.size,
                                 .seen = v.size,
                                 .hash = v.hash,
                                 .faults = v.corruptions,
                                 .kept = v.unknown_hash};
    out->clean = vhdx_judge_clean(&v);
    snprintf(out->first, sizeof(out->first), "%s at %llu", v.first ? v.first : "",
             (unsigned long long)v.first_at);
}

const struct fuzz_format fuzz_format = {.name = "vhdx",
                                        .little = true,
                                        .mend = mend,
                                        .spots = spots,
                                        .places = places,
                                        .size = size,
                                        .cheap = cheap,
                                        .judge = judge};
