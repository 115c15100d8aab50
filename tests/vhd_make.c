/* SPDX-License-Identifier: MIT
 *
 * See vhd_make.h.
 */
#include "vhd_make.h"

#include "test.h"

enum { STALE = 0x55 };

struct making {
    struct blk_mem *m;
    const struct vhd_make *p;
    struct vhd_made *made;
    u64 seed, at; /* at: where the next structure goes */
    u32 block_size, bitmap_size;
};

static void put32(struct blk_mem *m, u64 off, u32 v)
{
    u8 p[4];
    put_be32(p, v);
    blk_mem_put(m, off, p, 4);
}

static void put64(struct blk_mem *m, u64 off, u64 v)
{
    u8 p[8];
    put_be64(p, v);
    blk_mem_put(m, off, p, 8);
}

static void sum(struct blk_mem *m, u64 off, u32 len, u32 at)
{
    u8 p[VH_LENGTH];
    u32 s = 0;
    blk_mem_get(m, off, p, len);
    for (u32 i = 0; i < len; i++)
        s += i >= at && i < at + 4 ? 0 : p[i];
    put32(m, off + at, ~s);
}

void vhd_make_footer_sum(struct blk_mem *m, u64 off)
{
    sum(m, off, VF_LENGTH, VF_CHECKSUM);
}

void vhd_make_header_sum(struct blk_mem *m, u64 off)
{
    sum(m, off, VH_LENGTH, VH_CHECKSUM);
}

static void stale(struct blk_mem *m, u64 off, u64 len)
{
    u8 buf[512];
    memset(buf, STALE, sizeof(buf));
    for (u64 i = 0; i < len; i += 512)
        blk_mem_put(m, off + i, buf, (size_t)min_u64(512, len - i));
}

static struct vhd_geometry geometry(const struct vhd_make *p, u64 *size)
{
    u64 sectors = div_up(*size, 512);
    struct vhd_geometry g = vhd_chs(sectors);
    if (p->geometry == GEOMETRY_MAX)
        return (struct vhd_geometry){65535, 16, 255};
    for (u64 i = 1;
         p->geometry == GEOMETRY_UP && sectors < VHD_CHS_MAX && vhd_chs_sectors(g) < sectors; i++)
        g = vhd_chs(sectors + i);
    if (p->geometry == GEOMETRY_UP && vhd_chs_sectors(g) != VHD_CHS_MAX)
        *size = vhd_chs_sectors(g) * 512;
    return g;
}

static void footer(struct making *k, u64 off)
{
    const struct vhd_make *p = k->p;
    struct blk_mem *m = k->m;
    u64 size = p->size;
    struct vhd_geometry g = geometry(p, &size);
    blk_mem_put(m, off, (u8[VF_LENGTH]){0}, VF_LENGTH);
    blk_mem_put(m, off, "conectix", 8);
    put32(m, off + VF_FEATURES, 2);
    put32(m, off + VF_FILE_FORMAT_VERSION, 0x10000);
    put64(m, off + VF_DATA_OFFSET, p->type == VHD_FIXED ? UINT64_MAX : 512);
    put32(m, off + VF_TIME_STAMP, 0x12345678);
    blk_mem_put(m, off + VF_CREATOR_APPLICATION, p->creator ? p->creator : "qemu", 4);
    put64(m, off + VF_ORIGINAL_SIZE, p->size);
    put64(m, off + VF_CURRENT_SIZE, size);
    blk_mem_put(m, off + VF_DISK_GEOMETRY,
                (u8[]){(u8)(g.cylinders >> 8), (u8)g.cylinders, g.heads, g.sectors}, 4);
    put32(m, off + VF_DISK_TYPE, p->type ? p->type : VHD_DYNAMIC);
    blk_mem_put(m, off + VF_UNIQUE_ID, "0123456789abcdef", 16);
    blk_mem_put(m, off + 300, "kept", 4); /* reserved, but it must survive */
    vhd_make_footer_sum(m, off);
    k->made->size = size;
}

static void content(const struct making *k, u64 voff, u64 off)
{
    u8 buf[512];
    u64 state = (k->seed * 0x9e3779b97f4a7c15ull) ^ (voff + 1);
    for (unsigned i = 0; i < 512; i += 8)
        put_be64(buf + i, rnd(&state));
    blk_mem_put(k->m, off, buf, 512);
}

static void block(struct making *k, u64 idx, u64 off)
{
    const struct vhd_make *p = k->p;
    u64 n = k->block_size / 512, cnt = p->sectors ? min_u64(p->sectors, n) : n;
    put32(k->m, k->made->table_offset + idx * 4, (u32)(off / 512));
    for (u64 i = 0; i < k->bitmap_size; i++)
        blk_mem_put(k->m, off + i, i < div_up(n, 8) ? "\xff" : "", 1);
    for (u64 s = 0; s < n; s++) {
        u64 voff = idx * k->block_size + s * 512, at = off + k->bitmap_size + s * 512;
        bool past = voff >= k->made->size, clear = p->stale_bits && s % 2;
        if (past || clear) {
            if (clear || p->stale_rest)
                stale(k->m, at, 512);
            u8 bits;
            blk_mem_get(k->m, off + s / 8, &bits, 1);
            bits &= clear ? (u8) ~(0x80 >> s % 8) : 0xff;
            blk_mem_put(k->m, off + s / 8, &bits, 1);
        } else if (s < cnt / 2 || s >= n - (cnt + 1) / 2) {
            content(k, voff, at);
        }
    }
}

static u64 span(const struct making *k)
{
    return (u64)k->bitmap_size + k->block_size;
}

/* Which blocks are there, in the order of the file. */
static void blocks(struct making *k)
{
    const struct vhd_make *p = k->p;
    u64 used = div_up(k->made->size, k->block_size), cnt = 0, state = k->seed;
    u64 *idx = malloc((k->made->entries + 1) * sizeof(*idx));
    for (u64 i = 0; i < used; i++)
        if ((p->every && i % p->every == 0) || (p->last && i == used - 1))
            idx[cnt++] = i;
    for (u64 i = used; p->stale_entries && i < k->made->entries; i++)
        idx[cnt++] = i;
    for (u64 i = cnt; p->shuffled && i > 1; i--) {
        u64 j = rnd_below(&state, i), t = idx[j];
        idx[j] = idx[i - 1], idx[i - 1] = t;
    }
    for (u64 i = 0; i < cnt; i++, k->at += span(k)) {
        if (p->holes && i % p->holes == p->holes - 1) {
            stale(k->m, k->at, span(k));
            k->at += span(k);
        }
        if (idx[i] < used) {
            block(k, idx[i], k->at);
        } else {
            put32(k->m, k->made->table_offset + idx[i] * 4, (u32)(k->at / 512));
            stale(k->m, k->at, span(k));
        }
    }
    free(idx);
}

static void dynamic(struct making *k)
{
    const struct vhd_make *p = k->p;
    struct vhd_made *made = k->made;
    struct blk_mem *m = k->m;
    u64 table, used = div_up(made->size, k->block_size), cnt = 0;
    made->header_offset = 512;
    made->entries = (u32)used + p->extra_entries;
    table = round_up(made->entries * 4ull, 512);
    for (u64 i = 0; i < used; i++)
        cnt += (p->every && i % p->every == 0) || (p->last && i == used - 1);
    if (p->stale_entries)
        cnt += p->extra_entries;
    if (p->holes)
        cnt += cnt / p->holes;
    made->table_offset = p->table_last ? 1536 + p->gap * 512ull + cnt * span(k) : 1536;
    k->at = 1536 + (p->table_last ? 0 : table) + p->gap * 512ull;
    stale(m, 1536, k->at - 1536); /* what lies in gaps is garbage */
    blk_mem_put(m, 512, (u8[VH_LENGTH]){0}, VH_LENGTH);
    blk_mem_put(m, 512, "cxsparse", 8);
    put64(m, 512 + 8, UINT64_MAX);
    put64(m, 512 + VH_TABLE_OFFSET, made->table_offset);
    put32(m, 512 + VH_HEADER_VERSION, 0x10000);
    put32(m, 512 + VH_MAX_TABLE_ENTRIES, made->entries);
    put32(m, 512 + VH_BLOCK_SIZE, k->block_size);
    vhd_make_header_sum(m, 512);
    for (u64 i = 0; i < table; i += 4)
        put32(m, made->table_offset + i, VHD_UNUSED);
    blocks(k);
    made->used_end = max_u64(k->at, made->table_offset + table);
    k->at = made->used_end;
}

void vhd_make(struct blk_mem *m, const struct vhd_make *p, struct vhd_made *made)
{
    struct making k = {
        m, p, made, p->seed ? p->seed : 1, 0, p->block_size ? p->block_size : 2u << 20};
    *made = (struct vhd_made){0};
    k.bitmap_size = (u32)round_up(div_up(k.block_size / 512, 8), 512);
    blk_mem_init(m, 0, 512);
    footer(&k, 0);
    if (p->type == VHD_FIXED) {
        for (u64 voff = 0; voff < made->size; voff += 512)
            if (voff / 512 % 7 < 5)
                content(&k, voff, voff);
            else
                blk_mem_put(m, voff, (u8[512]){0}, 512);
        k.at = made->used_end = made->size;
    } else {
        dynamic(&k);
    }
    stale(m, k.at, p->slack * 512ull);
    k.at += p->slack * 512ull;
    if (!p->no_tail)
        footer(&k, k.at);
    blk_mem_truncate(m, k.at + (p->no_tail ? 0 : VF_LENGTH));
}
