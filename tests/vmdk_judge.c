/* SPDX-License-Identifier: MIT
 *
 * See vmdk_judge.h. Offsets are written out as numbers from the specification's tables.
 */
#include "vmdk_judge.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct piece {
    u64 off, len;
    const char *what;
};

struct judge {
    const struct blk_mem *m;
    struct vmdk_verdict *v;
    u64 first, upto, zero_from, zero_to;
    bool extent;
    u64 grain, gtes, gd, rgd, flags;
    struct piece *pieces;
    size_t cnt, cap;
};

static u64 get(const u8 *p, int bytes)
{
    u64 v = 0;
    while (bytes--)
        v = v * 256 + p[bytes];
    return v;
}

static u64 get_at(const struct blk_mem *m, u64 off, int bytes)
{
    u8 p[8];
    blk_mem_get(m, off, p, (size_t)bytes);
    return get(p, bytes);
}

static void fault(struct vmdk_verdict *v, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (!v->faults++)
        vsnprintf(v->first, sizeof(v->first), fmt, ap);
    va_end(ap);
}

static void add(struct judge *j, u64 off, u64 len, const char *what)
{
    if (j->cnt == j->cap)
        j->pieces = realloc(j->pieces, (j->cap = j->cap * 2 + 64) * sizeof(*j->pieces));
    j->pieces[j->cnt++] = (struct piece){off, len, what};
    if (off + len > j->v->used_end)
        j->v->used_end = off + len;
    if (off >= j->m->length)
        fault(j->v, "%s at %llu passes the end", what, (unsigned long long)off);
}

static int by_offset(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

static void overlaps(struct judge *j)
{
    qsort(j->pieces, j->cnt, sizeof(*j->pieces), by_offset);
    for (size_t i = 1; i < j->cnt; i++) {
        const struct piece *p = &j->pieces[i];
        if (p[-1].off + p[-1].len > p->off)
            fault(j->v, "%s at %llu overlaps %s at %llu", p->what, (unsigned long long)p->off,
                  p[-1].what, (unsigned long long)p[-1].off);
    }
}

static u64 mix(u64 hash, u64 voff, const u8 *p)
{
    u64 h = voff * 0x9e3779b97f4a7c15ull + 77;
    for (int i = 0; i < 512; i += 8)
        h = (h ^ get(p + i, 8)) * 0x100000001b3ull, h ^= h >> 29;
    return hash + h; /* the order does not matter */
}

static u64 mix_bytes(u64 h, const void *data, size_t n)
{
    const u8 *p = data;
    while (n--)
        h = (h ^ *p++) * 0x100000001b3ull;
    return h;
}

/* The sector at `off` of the file is the one at `voff` of the disk. */
static void sector_data(struct judge *j, u64 voff, u64 off)
{
    static const u8 none[512];
    u8 p[512];
    if (voff - j->first >= j->v->size || blk_mem_hole(j->m, off, 512))
        return;
    blk_mem_get(j->m, off, p, 512);
    if (memcmp(p, none, 512) == 0)
        return;
    if (voff < j->upto)
        j->v->hash = mix(j->v->hash, voff, p);
    if (voff >= j->zero_from && voff < j->zero_to)
        j->v->zero = false;
}

static void grain_data(struct judge *j, u64 idx, u64 off)
{
    for (u64 s = 0; s < j->grain; s += 512)
        sector_data(j, j->first + idx * j->grain + s, off + s);
}

static int by_value(const void *a, const void *b)
{
    const u64 *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Whatever was ever written is in some page of the disk, or of one below it. */
void vmdk_judge_flat(const struct blk_mem *m, u64 off, u64 len, u64 first, u64 upto, u64 zero_from,
                     u64 zero_to, struct vmdk_verdict *v)
{
    struct judge j = {m, v, first, upto, zero_from, zero_to, .grain = 512};
    size_t cnt = 0, cap = 0;
    u64 *page = NULL;
    for (const struct blk_mem *b = m; b; b = b->base)
        for (size_t i = 0; i < b->slots_cnt; i++) {
            if (!b->slots[i].page)
                continue;
            if (cnt == cap)
                page = realloc(page, (cap = cap * 2 + 64) * sizeof(*page));
            page[cnt++] = b->slots[i].page - 1;
        }
    if (cnt)
        qsort(page, cnt, sizeof(*page), by_value);
    v->size = len;
    for (size_t i = 0; i < cnt; i++)
        for (u64 at = page[i] * MEM_PAGE; at < (page[i] + 1) * MEM_PAGE; at += 512)
            if ((i == 0 || page[i] != page[i - 1]) && at >= off && at < off + len)
                sector_data(&j, first + at - off, at);
    free(page);
}

/* Both copies of one table. */
static void table(struct judge *j, u64 idx, u64 first, u64 second)
{
    struct vmdk_verdict *v = j->v;
    u64 len = j->gtes * 4;
    add(j, first, (len + 511) / 512 * 512, "a table");
    if (second)
        add(j, second, (len + 511) / 512 * 512, "a table of the second directory");
    if (blk_mem_hole(j->m, first, len) && (!second || blk_mem_hole(j->m, second, len)))
        return;
    for (u64 i = 0; i < j->gtes; i++) {
        u64 n = idx * j->gtes + i, e = get_at(j->m, first + i * 4, 4);
        u64 other = second ? get_at(j->m, second + i * 4, 4) : e;
        if (n * j->grain >= v->size) {
            v->stale += e || other;
            continue;
        }
        v->torn += e != other && (!e || !other);
        if (e != other)
            fault(v, "tables disagree about grain %llu", (unsigned long long)n);
        if (e == 0 || (e == 1 && j->flags & 4))
            continue;
        add(j, e * 512, j->grain, "a grain");
        v->grains++;
        grain_data(j, n, e * 512);
    }
}

static void directories(struct judge *j)
{
    struct vmdk_verdict *v = j->v;
    u64 dir = (v->entries * 4 + 511) / 512 * 512;
    add(j, j->gd, dir, "the directory");
    if (j->rgd)
        add(j, j->rgd, dir, "the second directory");
    for (u64 i = 0; i < v->entries; i++) {
        u64 first = get_at(j->m, j->gd + i * 4, 4) * 512;
        u64 second = j->rgd ? get_at(j->m, j->rgd + i * 4, 4) * 512 : 0;
        v->absent += !first || (j->rgd && !second);
        v->torn += j->rgd && !first && second;
        if (j->rgd && !first != !second)
            fault(v, "only one directory has table %llu", (unsigned long long)i);
        else if (first)
            table(j, i, first, second);
    }
}

/* The number behind `key`; *at and *len: its digits. */
static bool number(const char *text, const char *key, u64 *val, size_t *at, size_t *len)
{
    const char *p = strstr(text, key);
    char *end;
    if (!p)
        return false;
    p += strlen(key);
    *val = strtoull(p, &end, 10);
    *at = (size_t)(p - text), *len = (size_t)(end - p);
    return *len > 0;
}

static void descriptor(struct judge *j, u64 off, u64 slot)
{
    struct vmdk_verdict *v = j->v;
    char *text = calloc(1, slot + 1);
    u64 sectors, cylinders, heads = 1, track = 1;
    size_t at, len, cat, clen, x, y;
    blk_mem_get(j->m, off, text, slot);
    if (!number(text, "\nRW ", &sectors, &at, &len) || !strstr(text, "CID=") ||
        !strstr(text, "createType=\"monolithicSparse\"")) {
        v->opens = false, v->why = "the descriptor is damaged";
        free(text);
        return;
    }
    size_t end = strlen(text);
    v->text_size = sectors * 512;
    v->geometry = true;
    v->text_hash = mix_bytes(7, text, at);
    if (number(text, "ddb.geometry.cylinders = \"", &cylinders, &cat, &clen) &&
        number(text, "ddb.geometry.heads = \"", &heads, &x, &y) &&
        number(text, "ddb.geometry.sectors = \"", &track, &x, &y)) {
        v->geometry = !heads || !track || cylinders == sectors / heads / track;
        v->text_hash = mix_bytes(v->text_hash, text + at + len, cat - at - len);
        at = cat, len = clen;
    }
    v->text_hash = mix_bytes(v->text_hash, text + at + len, end - at - len);
    for (size_t i = end; i < slot; i++)
        if (text[i])
            fault(v, "bytes behind the descriptor's text");
    free(text);
}

static void judge_file(struct judge *given)
{
    struct judge j = *given;
    const struct blk_mem *m = j.m;
    struct vmdk_verdict *v = j.v;
    u8 h[512];
    *v = (struct vmdk_verdict){.zero = true};
    blk_mem_get(m, 0, h, 512);
    if (m->length < 512 || memcmp(h, "KDMV", 4)) {
        v->why = "no header";
        return;
    }
    v->opens = true;
    v->size = get(h + 12, 8) * 512;
    v->rest_hash = mix_bytes(mix_bytes(1, h, 12), h + 20, 28);
    v->rest_hash = mix_bytes(v->rest_hash, h + 64, 448);
    j.flags = get(h + 8, 4);
    j.grain = get(h + 20, 8) * 512;
    j.gtes = get(h + 44, 4);
    j.gd = get(h + 56, 8) * 512;
    j.rgd = j.flags & 2 ? get(h + 48, 8) * 512 : 0;
    if (get(h + 64, 8) * 512 > m->length) {
        v->opens = false, v->why = "qemu takes the file for truncated";
        return;
    }
    v->entries = (v->size / 512 + j.grain / 512 * j.gtes - 1) / (j.grain / 512 * j.gtes);
    add(&j, 0, 512, "the header");
    if (!j.extent || get(h + 36, 8))
        add(&j, get(h + 28, 8) * 512, get(h + 36, 8) * 512, "the descriptor");
    if (!j.extent)
        descriptor(&j, get(h + 28, 8) * 512, get(h + 36, 8) * 512);
    directories(&j);
    overlaps(&j);
    free(j.pieces);
}

void vmdk_judge_mem(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                    struct vmdk_verdict *v)
{
    judge_file(&(struct judge){m, v, 0, upto, zero_from, zero_to, .extent = false});
}

void vmdk_judge_extent(const struct blk_mem *m, u64 first, u64 upto, u64 zero_from, u64 zero_to,
                       struct vmdk_verdict *v)
{
    judge_file(&(struct judge){m, v, first, upto, zero_from, zero_to, .extent = true});
}

u64 vmdk_judge_plain(const u8 *p, u64 len)
{
    static const u8 none[512];
    u64 hash = 0;
    for (u64 at = 0; at < len; at += 512)
        if (memcmp(p + at, none, 512))
            hash = mix(hash, at, p + at);
    return hash;
}
