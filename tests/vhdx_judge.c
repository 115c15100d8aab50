/* SPDX-License-Identifier: MIT
 *
 * The judge of VHDX images. What keeps an image from being read is `why`; what a reader may survive
 * but the specification forbids is a corruption.
 */
#include "vhdx_judge.h"

#include "qcow2_judge.h"
#include "test.h"

#include <stdint.h>

enum { K = 1024, M = 1048576, RANGES = 8192 };

struct range {
    uint64_t off, len;
};

struct judge {
    struct blk_mem *m;
    struct vhdx_verdict *v;
    uint64_t hash_to, zero_from, zero_to;
    uint64_t log_off, log_len;
    uint8_t log_guid[16];
    uint64_t meta_off, meta_len, block, sector, ratio;
    struct range *used;
    size_t cnt, cap;
};

static uint64_t get(const struct judge *j, uint64_t off, int bytes)
{
    uint8_t b[8] = {0};
    blk_mem_get(j->m, off, b, (size_t)bytes);
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | b[i];
    return v;
}

static bool text(const struct judge *j, uint64_t off, const char *want)
{
    char b[16];
    blk_mem_get(j->m, off, b, strlen(want));
    return !memcmp(b, want, strlen(want));
}

/* CRC-32C, begun with ~0 and inverted by the caller. */
static uint32_t crc_step(uint32_t crc, uint8_t byte)
{
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++)
                c = (c >> 1) ^ ((c & 1) ? 0x82f63b78 : 0);
            table[i] = c;
        }
    return crc >> 8 ^ table[(crc ^ byte) & 255];
}

/* The checksum at off + 4 over len bytes. */
static bool sum_holds(const struct judge *j, uint64_t off, uint64_t len)
{
    uint32_t crc = 0xffffffff;
    uint8_t b[4096];
    for (uint64_t i = 0; i < len; i++) {
        if (i % 4096 == 0) {
            blk_mem_get(j->m, off + i, b, 4096);
            if (i == 0)
                memset(b + 4, 0, 4);
        }
        crc = crc_step(crc, b[i % 4096]);
    }
    return (uint32_t)~crc == get(j, off + 4, 4);
}

static void corrupt(struct judge *j, const char *what, uint64_t at)
{
    if (!j->v->corruptions++) {
        j->v->first = what;
        j->v->first_at = at;
    }
}

static bool refuse(struct judge *j, const char *why)
{
    j->v->why = why;
    return false;
}

static void use(struct judge *j, uint64_t off, uint64_t len)
{
    if (j->cnt == j->cap) {
        j->cap = j->cap ? j->cap * 2 : 64;
        j->used = realloc(j->used, j->cap * sizeof(*j->used));
    }
    j->used[j->cnt++] = (struct range){off, len};
    if (off % M || off < M)
        corrupt(j, "a structure begins where none may", off);
    if (off > j->m->length || off + len > (j->m->length + M - 1) / M * M)
        corrupt(j, "a structure ends past the end of the file", off);
}

static int by_offset(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

static void overlaps(struct judge *j)
{
    qsort(j->used, j->cnt, sizeof(*j->used), by_offset);
    for (size_t i = 1; i < j->cnt; i++)
        if (j->used[i - 1].off + j->used[i - 1].len > j->used[i].off)
            corrupt(j, "two structures overlap", j->used[i].off);
}

/* ---- headers ---- */

static bool header(struct judge *j)
{
    uint64_t at[2] = {64 * K, 128 * K}, now = 0;
    for (int i = 0; i < 2; i++) {
        if (!text(j, at[i], "head") || !sum_holds(j, at[i], 4 * K))
            continue;
        j->v->headers++;
        if (!now || get(j, at[i] + 8, 8) > get(j, now + 8, 8))
            now = at[i];
    }
    if (!now)
        return refuse(j, "no header is valid");
    uint8_t a[72], b[72];
    blk_mem_get(j->m, at[0] + 16, a, 64);
    blk_mem_get(j->m, at[1] + 16, b, 64);
    j->v->headers_agree = j->v->headers == 2 && !memcmp(a, b, 64);
    if (j->v->headers == 2 && get(j, at[0] + 8, 8) == get(j, at[1] + 8, 8) && !j->v->headers_agree)
        return refuse(j, "two headers of one sequence number differ");
    j->v->sequence_number = get(j, now + 8, 8);
    blk_mem_get(j->m, now + 16, j->v->file_guid, 16);
    blk_mem_get(j->m, now + 32, j->v->data_guid, 16);
    blk_mem_get(j->m, now + 48, j->log_guid, 16);
    j->log_len = get(j, now + 68, 4);
    j->log_off = get(j, now + 72, 8);
    if (get(j, now + 64, 2) || get(j, now + 66, 2) != 1)
        return refuse(j, "versions that nobody knows");
    if (!j->log_len || j->log_len % M || j->log_off % M || j->log_off < M ||
        j->log_off > j->m->length || j->log_off + j->log_len > j->m->length)
        return refuse(j, "the log lies where it cannot");
    return true;
}

/* ---- the log ---- */

static uint64_t in_log(const struct judge *j, uint64_t at)
{
    return j->log_off + at % j->log_len;
}

/* The entry at `at`: copied out, whole, if it is one. */
static uint8_t *entry(const struct judge *j, uint64_t at)
{
    uint8_t guid[16];
    uint64_t off = in_log(j, at), len = get(j, off + 8, 4), data = 0, cnt = get(j, off + 24, 4);
    blk_mem_get(j->m, off + 32, guid, 16);
    if (!text(j, off, "loge") || memcmp(guid, j->log_guid, 16) || !len || len % 4096 ||
        len > j->log_len || cnt * 32 + 64 > len)
        return NULL;
    uint8_t *e = malloc(len);
    for (uint64_t i = 0; i < len; i += 4096)
        blk_mem_get(j->m, in_log(j, at + i), e + i, 4096);
    uint32_t crc = 0xffffffff;
    for (uint64_t i = 0; i < len; i++)
        crc = crc_step(crc, i >= 4 && i < 8 ? 0 : e[i]);
    bool ok = (uint32_t)~crc == get(j, off + 4, 4);
    uint64_t first = (64 + cnt * 32 + 4095) / 4096;
    for (uint64_t i = 0; ok && i < cnt; i++) {
        const uint8_t *d = e + 64 + i * 32;
        bool zero = !memcmp(d, "zero", 4);
        ok = (zero || !memcmp(d, "desc", 4)) && !memcmp(d + 24, e + 16, 8);
        if (!zero && ok)
            ok =
                (first + ++data) * 4096 <= len && !memcmp(e + (first + data - 1) * 4096, "data", 4);
    }
    if (ok && (first + data) * 4096 == len)
        return e;
    free(e);
    return NULL;
}

static uint64_t le(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static void apply(struct judge *j, const uint8_t *e)
{
    uint64_t cnt = le(e + 24, 4), data = (64 + cnt * 32 + 4095) / 4096;
    for (uint64_t i = 0; i < cnt; i++) {
        const uint8_t *d = e + 64 + i * 32;
        uint64_t off = le(d + 16, 8), room = off < j->m->length ? j->m->length - off : 0;
        if (!memcmp(d, "zero", 4)) {
            if (off < 192 * K || le(d + 8, 8) > room)
                corrupt(j, "the log clears what it may not", off);
            else
                blk_mem_clear(j->m, off, le(d + 8, 8));
            continue;
        }
        uint8_t s[4096];
        memcpy(s, e + data++ * 4096, 4096);
        memcpy(s, d + 8, 8);
        memcpy(s + 4092, d + 4, 4);
        if (off < 192 * K || room < 4096)
            corrupt(j, "the log writes where it may not", off);
        else
            blk_mem_put(j->m, off, s, 4096);
    }
}

/* The run of entries from `at` on, as far as its numbers go up by one. Returns how many; *head:
 * where the last one begins; *len: bytes of all. */
static uint64_t run(const struct judge *j, uint64_t at, uint64_t *head, uint64_t *len,
                    uint64_t *seq)
{
    uint64_t cnt = 0;
    *len = 0;
    for (;;) {
        uint8_t *e = entry(j, at + *len);
        uint64_t n = e ? le(e + 8, 4) : 0, s = e ? le(e + 16, 8) : 0;
        free(e);
        if (!n || *len + n > j->log_len || (cnt && s != *seq + 1))
            return cnt;
        *head = (at + *len) % j->log_len;
        *len += n;
        *seq = s;
        cnt++;
    }
}

static bool replay(struct judge *j)
{
    uint64_t best = 0, best_tail = 0, best_head = 0;
    for (uint64_t at = 0; at < j->log_len; at += 4096) {
        uint64_t head, len, seq = 0;
        if (!text(j, in_log(j, at), "loge") || !run(j, at, &head, &len, &seq) || seq <= best)
            continue;
        uint64_t tail = get(j, in_log(j, head) + 12, 4), i = 0;
        for (; i < len && (at + i) % j->log_len != tail; i += get(j, in_log(j, at + i) + 8, 4))
            ;
        if (i < len)
            best = seq, best_tail = tail, best_head = head;
    }
    if (!best)
        return refuse(j, "the log is not empty, and holds nothing that is valid");
    if (get(j, in_log(j, best_head) + 48, 8) > j->m->length)
        return refuse(j, "the file is shorter than its log says");
    uint64_t last = (get(j, in_log(j, best_head) + 56, 8) + M - 1) / M * M;
    if (last > j->m->length)
        blk_mem_truncate(j->m, last);
    for (uint64_t at = best_tail;;) {
        uint8_t *e = entry(j, at);
        if (!e)
            return refuse(j, "a log entry is gone");
        apply(j, e);
        uint64_t len = le(e + 8, 4);
        free(e);
        if (at == best_head)
            return true;
        at = (at + len) % j->log_len;
    }
}

/* ---- regions and metadata ---- */

static void hash_region(struct judge *j, uint64_t off, uint64_t len)
{
    uint8_t b[512];
    for (uint64_t i = 0, n; i < len; i += n) {
        n = len - i < sizeof(b) ? len - i : sizeof(b);
        blk_mem_get(j->m, off + i, b, n);
        j->v->unknown_hash += judge_hash_block(i, b, n);
    }
}

static bool region_table(struct judge *j)
{
    uint64_t at[2] = {192 * K, 256 * K}, t = 0;
    for (int i = 1; i >= 0; i--)
        if (text(j, at[i], "regi") && sum_holds(j, at[i], 64 * K)) {
            j->v->tables++;
            t = at[i];
        }
    if (!t)
        return refuse(j, "no region table is valid");
    if (j->v->tables == 2 && get(j, at[0] + 4, 4) != get(j, at[1] + 4, 4))
        return refuse(j, "the region tables differ");
    for (uint64_t i = 0, n = get(j, t + 8, 4); i < n; i++) {
        uint64_t e = t + 16 + i * 32, off = get(j, e + 16, 8), len = get(j, e + 24, 4);
        if (len % M || !len)
            corrupt(j, "a region of no whole MiB", e);
        use(j, off, len);
        if (get(j, e, 8) == 0x4200f6232dc27766 && get(j, e + 8, 8) == 0x084afd9b5e11649d)
            j->v->bat_offset = off, j->v->bat_length = len;
        else if (get(j, e, 8) == 0x4b9a47908b7ca206 && get(j, e + 8, 8) == 0x6e880f055f57feb8)
            j->meta_off = off, j->meta_len = len;
        else if (get(j, e + 28, 4))
            return refuse(j, "a required region of others");
        else
            hash_region(j, off, len);
    }
    return j->v->bat_length && j->meta_len ? true : refuse(j, "no BAT, or no metadata");
}

static bool metadata(struct judge *j)
{
    static const uint64_t id[6] = {0x4d43fa36caa16737, 0x4876cd1b2fa54224, 0x4523b2e6beca12ab,
                                   0x4709a96f8141bf1d, 0x4471445dcda348c7, 0x454db30ba8d35f2d};
    uint64_t t = j->meta_off, at[6] = {0}, n = get(j, t + 10, 2);
    if (!text(j, t, "metadata") || n > 2047)
        return refuse(j, "no metadata table");
    for (uint64_t i = 0; i < n; i++) {
        uint64_t e = t + 32 + i * 32, off = get(j, e + 16, 4), len = get(j, e + 20, 4);
        int which = -1;
        for (int k = 0; k < 6; k++)
            which = get(j, e, 8) == id[k] ? k : which;
        if (which < 0 && !off && !len)
            continue; /* an item without content */
        if (off < 64 * K || off + len > j->meta_len)
            return refuse(j, "an item outside of the metadata");
        if (which < 0) {
            if (get(j, e + 24, 4) & 4)
                return refuse(j, "a required item of others");
            hash_region(j, t + off, len);
        } else {
            at[which] = t + off;
        }
    }
    for (int k = 0; k < 5; k++)
        if (!at[k])
            return refuse(j, "a required item is missing");
    j->block = get(j, at[0], 4);
    j->v->fixed = get(j, at[0] + 4, 4) & 1;
    j->v->child = get(j, at[0] + 4, 4) & 2;
    j->v->size = get(j, at[1], 8);
    blk_mem_get(j->m, at[2], j->v->disk_guid, 16);
    j->sector = get(j, at[3], 4);
    if (j->block < M || j->block > 256 * M || j->block & (j->block - 1) ||
        (j->sector != 512 && j->sector != 4096) || !j->v->size || j->v->size % j->sector ||
        j->v->size > 64ull << 40)
        return refuse(j, "sizes that cannot be");
    j->ratio = (j->sector << 23) / j->block;
    return true;
}

/* ---- BAT ---- */

/* `len` bytes of guest data from voff on lie at off. */
static void guest(struct judge *j, uint64_t voff, uint64_t off, uint64_t len)
{
    uint8_t b[4096];
    len = voff + len > j->v->size ? j->v->size - voff : len;
    for (uint64_t i = 0, n; i < len; i += n) {
        n = len - i < sizeof(b) ? len - i : sizeof(b);
        if (blk_mem_hole(j->m, off + i, (size_t)n))
            continue;
        blk_mem_get(j->m, off + i, b, (size_t)n);
        for (uint64_t k = 0; k < n; k += 512)
            if (voff + i + k < j->hash_to) {
                uint64_t part = j->hash_to - (voff + i + k);
                part = part > n - k ? n - k : part;
                j->v->hash +=
                    judge_hash_block(voff + i + k, b + k, part > 512 ? 512 : (size_t)part);
            }
        for (uint64_t k = 0; k < n; k++)
            if (b[k] && voff + i + k >= j->zero_from && voff + i + k < j->zero_to)
                j->v->zero = false;
    }
}

/* A block that is present in part: the sectors that its bitmap names. */
static void guest_in_part(struct judge *j, uint64_t block, uint64_t off)
{
    uint64_t at = j->v->bat_offset + ((block / j->ratio + 1) * (j->ratio + 1) - 1) * 8;
    uint64_t map = get(j, at, 8);
    if ((map & 7) != 6) {
        corrupt(j, "a block present in part has no bitmap", at);
        return;
    }
    map &= ~(uint64_t)0xfffff;
    for (uint64_t in = 0; in < j->block && block * j->block + in < j->v->size; in += j->sector) {
        uint64_t bit = (block % j->ratio * j->block + in) / j->sector;
        if (get(j, map + bit / 8, 1) >> bit % 8 & 1)
            guest(j, block * j->block + in, off + in, j->sector);
    }
}

static void bat_entry(struct judge *j, uint64_t idx, uint64_t entry)
{
    uint64_t chunk = idx / (j->ratio + 1), in = idx % (j->ratio + 1), state = entry & 7;
    uint64_t block = chunk * j->ratio + in, off = entry & ~(uint64_t)0xfffff;
    bool bitmap = in == j->ratio;
    if (!bitmap && block * j->block >= j->v->size) {
        if (entry)
            corrupt(j, "an entry past the end of the disk", idx); /* of a child's last chunk */
        return;
    }
    if (entry & 0xffff8)
        corrupt(j, "reserved bits in the BAT", idx);
    if (state == 4 || state == 5 || (state == 7 && (!j->v->child || bitmap)) ||
        (bitmap && state != 0 && (state != 6 || !j->v->child)))
        corrupt(j, "a state that cannot be", idx);
    bool hidden = j->v->child && (state == 0 || state == 7); /* shows its parent */
    uint64_t from = block * j->block, to = from + j->block;
    if (!bitmap && hidden && from < j->zero_to && to > j->zero_from)
        j->v->zero = false;
    if (state < 6) {
        if (j->v->child && !bitmap) { /* which of both it is counts as content */
            uint8_t mark[8] = {(uint8_t)(state + 1)};
            j->v->hash += from < j->hash_to ? judge_hash_block(from + 1, mark, 8) : 0;
        }
        return;
    }
    use(j, off, bitmap ? M : j->block);
    j->v->present += !bitmap;
    if (!bitmap && state == 6)
        guest(j, from, off, j->block);
    else if (!bitmap)
        guest_in_part(j, block, off);
}

static void bat(struct judge *j)
{
    uint64_t blocks = (j->v->size + j->block - 1) / j->block,
             chunks = (blocks + j->ratio - 1) / j->ratio;
    uint64_t n = j->v->child ? chunks * (j->ratio + 1) : blocks + (blocks - 1) / j->ratio;
    j->v->entries = n;
    if (n * 8 > j->v->bat_length) {
        corrupt(j, "the BAT is too small", j->v->bat_offset);
        return;
    }
    for (uint64_t at = 0; at < j->v->bat_length; at += 4096) {
        uint8_t b[4096];
        bool hole = blk_mem_hole(j->m, j->v->bat_offset + at, 4096);
        if (hole && !(j->v->child && at < n * 8))
            continue;
        blk_mem_get(j->m, j->v->bat_offset + at, b, 4096);
        for (uint64_t i = at / 8; i < at / 8 + 512; i++) {
            uint64_t e = le(b + i % 512 * 8, 8);
            if (i < n)
                bat_entry(j, i, e);
            else
                j->v->stale += e != 0;
        }
    }
    if (j->v->fixed && !j->v->child && j->v->present != blocks)
        corrupt(j, "a fixed disk without some of its blocks", j->v->present);
}

void vhdx_judge(const struct blk_mem *m, u64 hash_to, u64 zero_from, u64 zero_to,
                struct vhdx_verdict *v)
{
    struct blk_mem copy;
    static const uint8_t none[16];
    *v = (struct vhdx_verdict){.zero = true, .length = m->length, .first = ""};
    struct judge j = {
        .m = &copy, .v = v, .hash_to = hash_to, .zero_from = zero_from, .zero_to = zero_to};
    blk_mem_over(&copy, m);
    if (!text(&j, 0, "vhdxfile"))
        refuse(&j, "no VHDX");
    else if (header(&j)) {
        v->dirty = memcmp(j.log_guid, none, 16);
        use(&j, j.log_off, j.log_len);
        v->opens = (!v->dirty || replay(&j)) && region_table(&j) && metadata(&j);
        if (v->opens) {
            bat(&j);
            overlaps(&j);
        }
    }
    free(j.used);
    blk_mem_free(&copy);
}

bool vhdx_judge_clean(const struct vhdx_verdict *v)
{
    return v->opens && !v->corruptions && v->headers == 2 && v->headers_agree && v->tables == 2 &&
           !v->dirty;
}
