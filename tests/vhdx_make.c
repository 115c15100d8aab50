/* SPDX-License-Identifier: MIT
 *
 * The maker of VHDX images; see vhdx_make.h. Structures in the order log, BAT, metadata, payload,
 * unless asked otherwise.
 */
#include "vhdx_make.h"

#include "qcow2_make.h"
#include "test.h"

enum { KI = 1 << 10, MI = 1 << 20 };

static const char bat_id[] = "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08";
static const char metadata_id[] =
    "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
static const char other_id[] = "somebody else's!";
static const char parameters_id[] =
    "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
static const char size_id[] = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8";
static const char disk_id[] = "\xab\x12\xca\xbe\xe6\xb2\x23\x45\x93\xef\xc3\x09\xe0\x00\xc7\x46";
static const char logical_id[] = "\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f";
static const char physical_id[] =
    "\xc7\x48\xa3\xcd\x5d\x44\x71\x44\x9c\xc9\xe9\x88\x52\x51\xc5\x56";
static const char locator_id[] = "\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c";

struct maker {
    struct blk_mem *m;
    const struct vhdx_make *p;
    struct vhdx_made *d;
    u64 end; /* of the file so far */
};

u32 vhdx_make_crc(u32 crc, const u8 *p, size_t len)
{
    static u32 table[256];
    for (u32 i = 0; !table[255] && i < 256; i++) {
        table[i] = i;
        for (int k = 0; k < 8; k++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78 : 0);
    }
    crc = ~crc;
    for (size_t i = 0; i < len; i++)
        crc = crc >> 8 ^ table[(crc ^ p[i]) & 255];
    return ~crc;
}

static void put(struct blk_mem *m, u64 off, int bytes, u64 val)
{
    u8 b[8];
    for (int i = 0; i < bytes; i++)
        b[i] = (u8)(val >> 8 * i);
    blk_mem_put(m, off, b, (size_t)bytes);
}

void vhdx_make_sum(struct blk_mem *m, u64 off, u32 len)
{
    u8 *buf = malloc(len);
    put(m, off + 4, 4, 0);
    blk_mem_get(m, off, buf, len);
    put(m, off + 4, 4, vhdx_make_crc(0, buf, len));
    free(buf);
}

/* ---- the structures ---- */

static u64 take(struct maker *k, u64 bytes)
{
    u64 at = k->end;
    k->end += round_up(bytes, MI) + (u64)k->p->gap_mib * MI;
    return at;
}

static void one_header(struct maker *k, u64 off, u64 sequence)
{
    struct blk_mem *m = k->m;
    u8 guid[32];
    blk_mem_put(m, off, "head", 4);
    put(m, off + 8, 8, sequence);
    for (unsigned i = 0; i < sizeof(guid); i++)
        guid[i] = (u8)(i * 5 + 1 + k->p->seed);
    blk_mem_put(m, off + 16, guid, sizeof(guid));
    put(m, off + 66, 2, 1);
    put(m, off + 68, 4, k->d->log_length);
    put(m, off + 72, 8, k->d->log);
    vhdx_make_sum(m, off, 4 * KI);
}

static void headers(struct maker *k)
{
    u64 last = k->p->sequence_number ? k->p->sequence_number : 2;
    u64 other = k->p->same_headers ? last : last - 1;
    bool first = k->p->first_rules;
    one_header(k, 64 * KI, first ? last : other);
    one_header(k, 128 * KI, first ? other : last);
    if (k->p->one_header)
        put(k->m, (first ? 128 : 64) * KI + 4, 4, 0xbad);
}

static void region(struct maker *k, u64 table, u32 i, const char *id, u64 off, u64 len,
                   bool required)
{
    u64 at = table + 16 + i * 32ull;
    blk_mem_put(k->m, at, id, 16);
    put(k->m, at + 16, 8, off);
    put(k->m, at + 24, 4, len);
    put(k->m, at + 28, 4, required);
    put(k->m, table + 8, 4, i + 1);
}

static void region_tables(struct maker *k, u64 other)
{
    for (int i = 0; i < 2; i++) {
        u64 table = (i ? 256 : 192) * KI;
        u32 n = 0;
        blk_mem_put(k->m, table, "regi", 4);
        if (other)
            region(k, table, n++, other_id, other, MI, false);
        region(k, table, n++, metadata_id, k->d->metadata, MI, true);
        region(k, table, n++, bat_id, k->d->bat, k->d->bat_length, true);
        vhdx_make_sum(k->m, table, 64 * KI);
        if (k->p->void_table == i + 1)
            put(k->m, table + 4, 4, 0xbad);
    }
}

static u64 meta_item(struct maker *k, u32 *n, u64 *at, const char *id, u32 len, u32 flags)
{
    u64 table = k->d->metadata, e = table + 32 + *n * 32ull, here = *at;
    blk_mem_put(k->m, e, id, 16);
    put(k->m, e + 16, 4, here - table);
    put(k->m, e + 20, 4, len);
    put(k->m, e + 24, 4, flags);
    put(k->m, table + 10, 2, ++*n);
    *at += round_up(len, 4) + 8;
    return here;
}

/* Type, one key: relative_path. */
static void locator(struct maker *k, u64 at)
{
    static const char key[] = "relative_path", value[] = ".\\parent.vhdx";
    put(k->m, at + 18, 2, 1);
    put(k->m, at + 20, 4, 32);
    put(k->m, at + 24, 4, 96);
    put(k->m, at + 28, 2, 2 * strlen(key));
    put(k->m, at + 30, 2, 2 * strlen(value));
    for (unsigned i = 0; key[i]; i++)
        put(k->m, at + 32 + 2 * i, 2, (u8)key[i]);
    for (unsigned i = 0; value[i]; i++)
        put(k->m, at + 96 + 2 * i, 2, (u8)value[i]);
}

static void metadata(struct maker *k)
{
    const struct vhdx_make *p = k->p;
    u64 at = k->d->metadata + 64 * KI, off;
    u32 n = 0;
    blk_mem_put(k->m, k->d->metadata, "metadata", 8);
    off = meta_item(k, &n, &at, physical_id, 4, 6);
    put(k->m, off, 4, 4096);
    off = meta_item(k, &n, &at, parameters_id, 8, 4);
    put(k->m, off, 4, k->d->block);
    put(k->m, off + 4, 4, p->child ? 2 : p->fixed);
    if (p->unknown) {
        off = meta_item(k, &n, &at, other_id, 32, 1);
        blk_mem_put(k->m, off, "whatever they keep here, for ever", 32);
    }
    if (p->child)
        locator(k, meta_item(k, &n, &at, locator_id, 256, 4));
    off = meta_item(k, &n, &at, disk_id, 16, 6);
    blk_mem_put(k->m, off, "the disk's own id", 16);
    off = meta_item(k, &n, &at, logical_id, 4, 6);
    put(k->m, off, 4, p->sector ? p->sector : 512);
    if (p->crooked_size)
        at = round_up(at, 4 * KI) + 4 * KI - 3;
    k->d->size_item = meta_item(k, &n, &at, size_id, 8, 6);
    put(k->m, k->d->size_item, 8, p->size);
}

/* ---- payload ---- */

static void pattern(struct maker *k, u64 voff, u64 off, u64 len)
{
    u8 buf[8 * KI];
    u64 n = min_u64(len, sizeof(buf));
    make_pattern(k->p->seed, voff, buf, n);
    blk_mem_put(k->m, off, buf, n);
    if (len < 2 * n)
        return;
    make_pattern(k->p->seed, voff + len - n, buf, n);
    blk_mem_put(k->m, off + len - n, buf, n);
}

/* Does payload block i hold data? */
static bool holds_data(const struct maker *k, u64 i)
{
    u64 step = k->p->blocks ? max_u64(1, k->d->blocks / k->p->blocks) : 0;
    return (step && i % step == 0 && i / step < k->p->blocks) ||
           (k->p->last && i == k->d->blocks - 1);
}

/* A sector bitmap block: every other run of eight sectors is present. */
static void bitmap_block(struct maker *k, u64 chunk)
{
    u8 bits[4 * KI];
    for (unsigned i = 0; i < sizeof(bits); i++)
        bits[i] = i % 2 ? 0 : 0xff;
    u64 at = take(k, MI);
    for (u64 i = 0; i < MI; i += sizeof(bits))
        blk_mem_put(k->m, at + i, bits, sizeof(bits));
    put(k->m, k->d->bat + ((chunk + 1) * (k->d->ratio + 1ull) - 1) * 8, 8, at | 6);
}

static void payload_block(struct maker *k, u64 i, bool partial)
{
    u64 voff = i * k->d->block, len = min_u64(k->d->block, k->p->size - voff);
    u64 at = take(k, k->d->block);
    if (holds_data(k, i))
        pattern(k, voff, at, len);
    if (k->p->stale_tail && len < k->d->block)
        pattern(k, voff + len, at + len, k->d->block - len);
    put(k->m, k->d->bat + (i + i / k->d->ratio) * 8, 8, at | (partial ? 7 : 6));
    k->d->length = k->p->short_end ? at + len : k->end;
}

/* Block number j of those that are to be in the file; false: there is none. */
static bool choose(const struct maker *k, u64 j, u64 *i)
{
    u64 cnt = k->d->blocks;
    if (k->p->fixed) {
        *i = j;
        return j < cnt;
    }
    bool last = j == k->p->blocks;
    *i = last ? cnt - 1 : j * max_u64(1, cnt / max_u64(1, k->p->blocks));
    return last ? k->p->last : *i < cnt - k->p->last; /* the last one comes once */
}

static void payload(struct maker *k)
{
    u64 wanted = k->p->fixed ? k->d->blocks : k->p->blocks + 1ull, seen = 0, chunk = UINT64_MAX, i;
    for (u64 n = 0; n < wanted; n++) {
        if (!choose(k, k->p->backwards ? wanted - 1 - n : n, &i))
            continue;
        bool partial = k->p->partial && seen++ % 2;
        if (partial && chunk != i / k->d->ratio)
            bitmap_block(k, chunk = i / k->d->ratio);
        payload_block(k, i, partial);
    }
}

void vhdx_make(struct blk_mem *m, const struct vhdx_make *p, struct vhdx_made *out)
{
    struct maker k = {m, p, out, MI};
    u32 sector = p->sector ? p->sector : 512;
    *out = (struct vhdx_made){.block = (p->block_mib ? p->block_mib : 1) * MI};
    out->ratio = (u32)(((u64)sector << 23) / out->block);
    out->blocks = (p->size + out->block - 1) / out->block;
    out->entries = p->child ? (out->blocks + out->ratio - 1) / out->ratio * (out->ratio + 1ull)
                            : out->blocks + (out->blocks - 1) / out->ratio;
    out->log_length = (p->log_mib ? p->log_mib : 1) * MI;
    out->bat_length = (u32)max_u64(round_up(out->entries * 8, MI), (u64)p->bat_mib * MI);
    blk_mem_init(m, 0, 512);
    blk_mem_put(m, 0, "vhdxfile", 8);
    blk_mem_put(m, 8, "i\0n\0s\0t\0a\0r\0", 12);
    out->log = take(&k, out->log_length);
    out->bat = take(&k, out->bat_length);
    u64 other = p->unknown ? take(&k, MI) : 0;
    if (other)
        blk_mem_put(m, other + 77, "a region of others", 18);
    if (!p->metadata_last)
        out->metadata = take(&k, MI);
    out->payload = out->length = k.end;
    payload(&k);
    if (p->metadata_last) {
        out->metadata = take(&k, MI);
        out->length = k.end;
    }
    u64 past = out->blocks + out->blocks / out->ratio; /* the first entry past the end */
    for (u64 i = past; i < past + p->stale_entries && i < out->bat_length / 8; i++)
        if (i % (out->ratio + 1ull) != out->ratio)
            put(m, out->bat + i * 8, 8, (i + 1) * 7 * MI | 6);
    if (p->slack_mib) { /* old bytes, of nobody */
        u8 junk[4 * KI];
        memset(junk, 0x66, sizeof(junk));
        for (u64 at = out->length; at < out->length + (u64)p->slack_mib * MI; at += 64 * KI)
            blk_mem_put(m, at, junk, sizeof(junk));
        out->length += (u64)p->slack_mib * MI + p->slack_odd;
    }
    headers(&k);
    region_tables(&k, other);
    metadata(&k);
    blk_mem_truncate(m, out->length);
}

/* ---- the log ---- */

void vhdx_make_log_guid(struct blk_mem *m, const u8 guid[16])
{
    for (u64 off = 64 * KI; off <= 128 * KI; off += 64 * KI) {
        u8 sum[4];
        blk_mem_put(m, off + 48, guid, 16);
        blk_mem_get(m, off + 4, sum, 4);
        if (sum[0] != 0xad || sum[1] != 0x0b || sum[2] || sum[3]) /* it was void before */
            vhdx_make_sum(m, off, 4 * KI);
    }
}

static void store(u8 *p, int bytes, u64 val)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (u8)(val >> 8 * i);
}

u32 vhdx_make_entry(struct blk_mem *m, const struct vhdx_made *d, u32 at, u32 tail, u64 sequence,
                    const u8 guid[16], const struct vhdx_make_change *c, u32 cnt, u64 flushed,
                    u64 last)
{
    u32 descs = (64 + cnt * 32 + 4095) / 4096, data = 0;
    for (u32 i = 0; i < cnt; i++)
        data += c[i].data != NULL;
    u32 len = (descs + data) * 4 * KI, n = descs;
    u8 *buf = calloc(1, len);
    memcpy(buf, "loge", 4);
    store(buf + 8, 4, len);
    store(buf + 12, 4, tail);
    store(buf + 16, 8, sequence);
    store(buf + 24, 4, cnt);
    memcpy(buf + 32, guid, 16);
    store(buf + 48, 8, flushed);
    store(buf + 56, 8, last);
    for (u32 i = 0; i < cnt; i++) {
        u8 *e = buf + 64 + i * 32, *s = buf + n * 4 * KI;
        memcpy(e, c[i].data ? "desc" : "zero", 4);
        store(e + 16, 8, c[i].off);
        store(e + 24, 8, sequence);
        if (!c[i].data) {
            store(e + 8, 8, c[i].zero);
            continue;
        }
        memcpy(e + 8, c[i].data, 8);
        memcpy(e + 4, c[i].data + 4092, 4);
        memcpy(s, c[i].data, 4 * KI);
        memcpy(s, "data", 4);
        store(s + 4, 4, sequence >> 32);
        store(s + 4092, 4, sequence);
        n++;
    }
    store(buf + 4, 4, vhdx_make_crc(0, buf, len));
    for (u32 i = 0; i < len; i += 4 * KI)
        blk_mem_put(m, d->log + (at + i) % d->log_length, buf + i, 4 * KI);
    free(buf);
    return len;
}
