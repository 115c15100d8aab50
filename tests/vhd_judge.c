/* SPDX-License-Identifier: MIT
 *
 * See vhd_judge.h. Offsets are written out as numbers from the specification's tables.
 */
#include "vhd_judge.h"

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
    struct vhd_verdict *v;
    u64 upto, zero_from, zero_to;
    u64 bat, entries, block, bitmap;
    struct piece *pieces;
    size_t cnt;
};

static u64 get(const u8 *p, int bytes)
{
    u64 v = 0;
    while (bytes--)
        v = v * 256 + *p++;
    return v;
}

static void fault(struct vhd_verdict *v, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (!v->faults++)
        vsnprintf(v->first, sizeof(v->first), fmt, ap);
    va_end(ap);
}

static bool sum_right(const u8 *p, unsigned len, unsigned field)
{
    u32 sum = 0;
    for (unsigned i = 0; i < len; i++)
        if (i < field || i > field + 3)
            sum += p[i];
    return (u32)~sum == get(p + field, 4);
}

static bool footer_at(const struct blk_mem *m, u64 off, u8 *p)
{
    if (m->length < 512)
        return false;
    blk_mem_get(m, off, p, 512);
    return memcmp(p, "conectix", 8) == 0;
}

/* A footer that can be believed. */
static bool valid(const u8 *p)
{
    return sum_right(p, 512, 64) && get(p + 12, 4) >> 16 == 1;
}

static void sizes(struct vhd_verdict *v, const u8 *p)
{
    u64 chs = get(p + 56, 2) * p[58] * p[59], current = get(p + 48, 8) / 512;
    bool max = chs == 267382800; /* 65535 * 16 * 255 */
    static const char *const by_size[] = {"win ", "qem2", "d2v ", "tap\0", "CTXS"};
    bool listed = false;
    for (int i = 0; i < 5; i++)
        listed |= memcmp(p + 28, by_size[i], 4) == 0;
    bool chs10 = memcmp(p + 28, "qemu", 4) == 0 || memcmp(p + 28, "vpc ", 4) == 0;
    v->size_qemu7 = 512 * (listed || max ? current : chs);
    v->size = 512 * (chs10 && !max ? chs : current);
    v->size_current = get(p + 48, 8);
}

static void add(struct judge *j, u64 off, u64 len, const char *what)
{
    j->pieces[j->cnt++] = (struct piece){off, len, what};
    if (off + len > j->v->used_end)
        j->v->used_end = off + len;
}

static int by_offset(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

static void overlaps(struct judge *j, u64 end)
{
    qsort(j->pieces, j->cnt, sizeof(*j->pieces), by_offset);
    for (size_t i = 0; i < j->cnt; i++) {
        const struct piece *p = &j->pieces[i];
        if (p->off + p->len > end)
            fault(j->v, "%s at %llu passes the end", p->what, (unsigned long long)p->off);
        if (i && p[-1].off + p[-1].len > p->off)
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

/* One sector of the guest's, as its bytes lie in the file, `shown` or hidden by its bit. */
static void sector(struct judge *j, u64 voff, u64 off, bool shown)
{
    static const u8 none[512];
    u8 p[512];
    blk_mem_get(j->m, off, p, 512);
    if (memcmp(p, none, 512) == 0)
        return;
    if (voff < j->upto) {
        j->v->hash_raw = mix(j->v->hash_raw, voff, p);
        if (shown)
            j->v->hash = mix(j->v->hash, voff, p);
    }
    if (voff >= j->zero_from && voff < j->zero_to)
        j->v->zero = false;
}

static void block_data(struct judge *j, u64 idx, u64 off)
{
    for (u64 s = 0; s < j->block / 512; s++) {
        u64 at = off + j->bitmap + s * 512;
        u8 bits;
        if (blk_mem_hole(j->m, at, 512))
            continue;
        blk_mem_get(j->m, off + s / 8, &bits, 1);
        sector(j, idx * j->block + s * 512, at, bits >> (7 - s % 8) & 1);
    }
}

static void table(struct judge *j)
{
    for (u64 i = 0; i < j->entries; i++) {
        u8 p[4];
        blk_mem_get(j->m, j->bat + i * 4, p, 4);
        u64 entry = get(p, 4);
        if (entry == 0xffffffff)
            continue;
        add(j, entry * 512, j->bitmap + j->block, "a block");
        j->v->blocks++;
        block_data(j, i, entry * 512);
    }
    for (u64 at = j->bat + j->entries * 4; at % 512; at++) {
        u8 pad;
        blk_mem_get(j->m, at, &pad, 1);
        j->v->padded &= pad == 0xff;
    }
}

static void dynamic(struct judge *j, const u8 *head, u64 end)
{
    u8 h[1024];
    u64 at = get(head + 16, 8);
    struct vhd_verdict *v = j->v;
    if (at % 512 || at < 512 || at + 1024 > end) {
        v->opens = false, v->why = "no dynamic header";
        return;
    }
    blk_mem_get(j->m, at, h, 1024);
    j->bat = get(h + 16, 8);
    j->entries = get(h + 28, 4);
    j->block = get(h + 32, 4);
    if (memcmp(h, "cxsparse", 8) || !sum_right(h, 1024, 36) || get(h + 24, 4) >> 16 != 1) {
        v->opens = false, v->why = "the dynamic header is damaged";
        return;
    }
    if (j->block < 512 || j->block & (j->block - 1) || j->bat % 512 ||
        j->bat + j->entries * 4 > end) {
        v->opens = false, v->why = "the dynamic header names the impossible";
        return;
    }
    if (j->entries * j->block < v->size || j->entries * j->block < v->size_qemu7 ||
        j->entries * j->block < v->size_current)
        fault(v, "the BAT is too short: %llu entries", (unsigned long long)j->entries);
    j->bitmap = (j->block / 4096 + 511) / 512 * 512;
    if (j->bitmap == 0)
        j->bitmap = 512;
    j->pieces = malloc((j->entries + 4) * sizeof(*j->pieces));
    add(j, 0, 512, "the footer at the head");
    add(j, at, 1024, "the dynamic header");
    add(j, j->bat, (j->entries * 4 + 511) / 512 * 512, "the BAT");
    table(j);
    overlaps(j, end);
    free(j->pieces);
}

static void fixed(struct judge *j, u64 end)
{
    if (j->v->size > end || j->v->size_current > end)
        fault(j->v, "the disk passes the end of the file");
    for (u64 voff = 0; voff < end; voff += 512)
        if (!blk_mem_hole(j->m, voff, 512))
            sector(j, voff, voff, true);
    j->v->used_end = j->v->size_current;
}

void vhd_judge_mem(const struct blk_mem *m, u64 upto, u64 zero_from, u64 zero_to,
                   struct vhd_verdict *v)
{
    struct judge j = {.m = m, .v = v, .upto = upto, .zero_from = zero_from, .zero_to = zero_to};
    u8 head[512], tail[512];
    *v = (struct vhd_verdict){.zero = true, .padded = true};
    u64 end = m->length - 512;
    bool at_tail = footer_at(m, end, tail), at_head = footer_at(m, 0, head);
    if (at_tail && !valid(tail)) {
        v->why = "the footer's checksum or version is wrong";
        return;
    }
    bool is_fixed = at_tail && get(tail + 60, 4) == 2;
    const u8 *f = is_fixed ? tail : head;
    if (!is_fixed && (!at_head || !valid(head) || get(head + 60, 4) != 3)) {
        v->why = "no valid footer rules";
        return;
    }
    v->opens = true;
    v->tail = at_tail;
    v->tail_same = at_tail && (is_fixed || memcmp(head, tail, 512) == 0);
    v->tail_size = at_tail ? get(tail + 48, 8) : 0;
    sizes(v, f);
    if (at_tail && memcmp(tail + 60, f + 60, 4))
        fault(v, "the footers name different types");
    if (is_fixed)
        fixed(&j, end);
    else
        dynamic(&j, head, at_tail ? end : m->length);
    v->settled = at_tail && v->used_end == end;
}
