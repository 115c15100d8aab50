/* SPDX-License-Identifier: MIT
 *
 * Places and values. Offsets are those of docs/interop/qcow2.txt, written down here anew.
 */
#include "fuzz_evil.h"

#define OFFSET_BITS 0x00fffffffffffe00ull

static u64 get(const struct blk_mem *m, u64 off, u8 bytes)
{
    u8 b[8];
    u64 v = 0;
    blk_mem_get(m, off, b, bytes);
    for (u8 i = 0; i < bytes; i++)
        v = v << 8 | b[i];
    return v;
}

u64 spot_get(const struct blk_mem *m, const struct spot *s)
{
    return get(m, s->off, s->bytes);
}

void spot_bytes(u8 bytes, u64 val, u8 out[8])
{
    for (u8 i = 0; i < bytes; i++)
        out[i] = (u8)(val >> 8 * (bytes - 1 - i));
}

void spot_put(struct blk_mem *m, const struct spot *s, u64 val)
{
    u8 b[8];
    spot_bytes(s->bytes, val, b);
    if (s->off < m->length)
        blk_mem_put(m, s->off, b, (size_t)min_u64(s->bytes, m->length - s->off));
}

bool layout_read(const struct blk_mem *m, struct layout *l)
{
    u32 bits = (u32)get(m, 20, 4);
    *l = (struct layout){ .version = (u32)get(m, 4, 4), .length = m->length, .order = 4 };
    if (get(m, 0, 4) != 0x514649fb || l->version < 2 || l->version > 3 || bits < 9 || bits > 21)
        return false;
    l->cs = 1ull << bits;
    l->size = get(m, 24, 8);
    l->l1_size = (u32)get(m, 36, 4);
    l->l1_off = get(m, 40, 8);
    l->rt_off = get(m, 48, 8);
    l->rt_clusters = (u32)get(m, 56, 4);
    l->nb_snapshots = (u32)get(m, 60, 4);
    l->snap_off = get(m, 64, 8);
    l->header_length = 72;
    if (l->version == 3) {
        l->ext_l2 = get(m, 72, 8) & 16;
        l->order = (u32)get(m, 96, 4);
        l->header_length = (u32)get(m, 100, 4);
    }
    if (l->order > 6 || l->header_length > l->cs)
        return false;
    l->l2_entries = l->cs / (l->ext_l2 ? 16 : 8);
    l->block_entries = l->cs * 8 >> l->order;
    l->l1_used = div_up(l->size, l->cs * l->l2_entries);
    return true;
}

/* ---- places ---- */

struct list {
    struct spot *out;
    unsigned cnt;
    u64 length;
};

static void add(struct list *t, u64 off, u8 bytes, const char *name)
{
    if (t->cnt == SPOTS_MAX || off >= t->length || off > 1ull << 60)
        return;
    for (unsigned i = 0; i < t->cnt; i++)
        if (t->out[i].off == off && t->out[i].bytes == bytes)
            return;
    t->out[t->cnt++] = (struct spot){ off, bytes, name };
}

static void add_header(struct list *t, const struct layout *l)
{
    static const struct spot fields[] = {
        { 0, 4, "magic" }, { 4, 4, "version" }, { 8, 8, "backing_file_offset" },
        { 16, 4, "backing_file_size" }, { 20, 4, "cluster_bits" }, { 24, 8, "size" },
        { 32, 4, "crypt_method" }, { 36, 4, "l1_size" }, { 40, 8, "l1_table_offset" },
        { 48, 8, "refcount_table_offset" }, { 56, 4, "refcount_table_clusters" },
        { 60, 4, "nb_snapshots" }, { 64, 8, "snapshots_offset" },
        { 72, 8, "incompatible_features" }, { 80, 8, "compatible_features" },
        { 88, 8, "autoclear_features" }, { 96, 4, "refcount_order" }, { 100, 4, "header_length" },
        { 104, 1, "compression_type" }, { 105, 1, "padding" },
    };
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        if (fields[i].off < l->header_length)
            add(t, fields[i].off, fields[i].bytes, fields[i].name);
}

static void add_extensions(struct list *t, const struct blk_mem *m, const struct layout *l)
{
    u64 off = l->header_length;
    for (unsigned i = 0; i < 5 && off + 8 <= l->cs; i++) {
        u64 len = get(m, off + 4, 4);
        add(t, off, 4, "extension type");
        add(t, off + 4, 4, "extension length");
        for (u64 at = 0; get(m, off, 4) && at < len && at < 32; at += 8)
            add(t, off + 8 + at, 8, "extension data");
        if (!get(m, off, 4) || len > l->cs)
            break;
        off += 8 + round_up(len, 8);
    }
}

/* The table that L1 entry `i` names: entries at either end of it and of the disk. */
static void add_l2(struct list *t, const struct blk_mem *m, const struct layout *l, u64 i)
{
    u64 l2 = get(m, l->l1_off + i * 8, 8) & OFFSET_BITS, step = l->ext_l2 ? 16 : 8;
    u64 end = div_up(l->size, l->cs) - i * l->l2_entries;
    u64 idx[] = { 0, 1, 2, end - 1, end, end + 1, l->l2_entries - 1 };
    for (unsigned k = 0; l2 && k < sizeof(idx) / sizeof(idx[0]); k++) {
        if (idx[k] >= l->l2_entries)
            continue;
        add(t, l2 + idx[k] * step, 8, "L2 entry");
        if (l->ext_l2)
            add(t, l2 + idx[k] * step + 8, 8, "subcluster bitmap");
    }
}

static void add_tables(struct list *t, const struct blk_mem *m, const struct layout *l)
{
    u64 idx[] = { 0, 1, l->l1_used - 1, l->l1_used, (u64)l->l1_size - 1 };
    for (unsigned k = 0; k < sizeof(idx) / sizeof(idx[0]); k++)
        if (idx[k] < l->l1_size)
            add(t, l->l1_off + idx[k] * 8, 8, "L1 entry");
    if (l->l1_used && l->l1_used <= l->l1_size) {
        add_l2(t, m, l, 0);
        add_l2(t, m, l, l->l1_used - 1);
    }
}

static void add_count(struct list *t, const struct blk_mem *m, const struct layout *l, u64 cluster)
{
    u64 block = cluster / l->block_entries, bit = cluster % l->block_entries << l->order;
    if (block >= (u64)l->rt_clusters * (l->cs / 8))
        return;
    u64 off = get(m, l->rt_off + block * 8, 8) & ~511ull;
    if (off)
        add(t, off + bit / 8, (u8)(l->order < 3 ? 1 : 1u << (l->order - 3)), "refcount");
}

static void add_refcounts(struct list *t, const struct blk_mem *m, const struct layout *l)
{
    u64 eof = div_up(l->length, l->cs), blk = eof / l->block_entries;
    u64 entries = (u64)l->rt_clusters * (l->cs / 8);
    u64 idx[] = { 0, 1, blk, blk + 1, blk + 2, entries - 1 };
    for (unsigned k = 0; k < sizeof(idx) / sizeof(idx[0]); k++)
        if (idx[k] < entries)
            add(t, l->rt_off + idx[k] * 8, 8, "refcount table entry");
    u64 l2 = l->l1_used ? get(m, l->l1_off + (l->l1_used - 1) * 8, 8) & OFFSET_BITS : 0;
    u64 last = l2 ? get(m, l2 + (div_up(l->size, l->cs) - 1) % l->l2_entries * (l->ext_l2 ? 16 : 8),
                        8) & OFFSET_BITS : 0;
    u64 cluster[] = { 0, l->rt_off / l->cs, get(m, l->rt_off, 8) / l->cs, l->l1_off / l->cs,
                      l->snap_off / l->cs, l2 / l->cs, last / l->cs, eof - 1, eof, eof + 1,
                      eof + 2, l->block_entries - 1 };
    for (unsigned k = 0; k < sizeof(cluster) / sizeof(cluster[0]); k++)
        add_count(t, m, l, cluster[k]);
}

static void add_snapshot(struct list *t, const struct layout *l)
{
    static const struct spot fields[] = {
        { 0, 8, "snapshot l1_table_offset" }, { 8, 4, "snapshot l1_size" },
        { 12, 2, "snapshot id_str_size" }, { 14, 2, "snapshot name_size" },
        { 32, 4, "snapshot vm_state_size" }, { 36, 4, "snapshot extra_data_size" },
        { 40, 8, "snapshot extra data" }, { 48, 8, "snapshot disk size" },
    };
    for (unsigned i = 0; l->nb_snapshots && i < sizeof(fields) / sizeof(fields[0]); i++)
        add(t, l->snap_off + fields[i].off, fields[i].bytes, fields[i].name);
}

bool layout_bitmaps(const struct blk_mem *m, const struct layout *l, u64 *dir, u64 *size, u64 *cnt)
{
    u64 off = l->header_length;
    for (unsigned i = 0; i < 64 && off + 8 <= l->cs && get(m, off, 4); i++) {
        u64 len = get(m, off + 4, 4);
        *cnt = get(m, off + 8, 4);
        *size = get(m, off + 16, 8);
        *dir = get(m, off + 24, 8);
        if (get(m, off, 4) == 0x23852875)
            return true;
        off += 8 + round_up(len, 8);
    }
    return false;
}

static void add_bitmaps(struct list *t, const struct blk_mem *m, const struct layout *l)
{
    static const struct spot fields[] = {
        { 0, 8, "bitmap_table_offset" }, { 8, 4, "bitmap_table_size" }, { 12, 4, "bitmap flags" },
        { 16, 1, "bitmap type" }, { 17, 1, "granularity_bits" }, { 18, 2, "bitmap name_size" },
        { 20, 4, "bitmap extra_data_size" }, { 24, 1, "bitmap name" },
    };
    u64 dir, size, cnt;
    if (!layout_bitmaps(m, l, &dir, &size, &cnt))
        return;
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        add(t, dir + fields[i].off, fields[i].bytes, fields[i].name);
    u64 table = get(m, dir, 8), last = table + (get(m, dir + 8, 4) - 1) * 8;
    add(t, table, 8, "bitmap table entry");
    add(t, last, 8, "last bitmap table entry");
    add_count(t, m, l, dir / l->cs);
    add_count(t, m, l, table / l->cs);
    add_count(t, m, l, get(m, last, 8) / l->cs);
}

unsigned layout_spots(const struct blk_mem *m, const struct layout *l, struct spot out[SPOTS_MAX],
                      unsigned *header_cnt)
{
    struct list t = { out, 0, m->length };
    add_header(&t, l);
    *header_cnt = t.cnt;
    add_extensions(&t, m, l);
    add_tables(&t, m, l);
    add_refcounts(&t, m, l);
    add_snapshot(&t, l);
    add_bitmaps(&t, m, l);
    return t.cnt;
}

/* ---- values ---- */

struct values {
    u64 *out, mask, current;
    unsigned cnt;
};

static void value(struct values *v, u64 val)
{
    val &= v->mask;
    if (val == v->current || v->cnt == EVIL_MAX)
        return;
    for (unsigned i = 0; i < v->cnt; i++)
        if (v->out[i] == val)
            return;
    v->out[v->cnt++] = val;
}

/* Values that mean an offset: where something of this image stands, or its file ends. */
static void offsets(struct values *v, const struct blk_mem *m, const struct layout *l)
{
    u64 l2 = get(m, l->l1_off, 8) & OFFSET_BITS, eof = round_up(l->length, l->cs);
    u64 at[] = { l->cs, l->l1_off, l->rt_off, l->snap_off, get(m, l->rt_off, 8), l2,
                 l2 ? get(m, l2, 8) & OFFSET_BITS : 0, round_down(l->length - 1, l->cs), eof,
                 eof + l->cs, 2ull << 40, 1ull << 55, (1ull << 56) - l->cs, 64ull << 30 };
    for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        value(v, at[i]);
        value(v, at[i] | 1ull << 63);
    }
    value(v, l2 + 512);
    value(v, l->cs / 2 | 1ull << 63);
    value(v, v->current + l->cs);
    value(v, 1ull << 62 | l2);
    value(v, 1ull << 62 | (l->length - 1));
    value(v, ((1ull << 62) - 1) | 1ull << 62);
}

unsigned evil_values(const struct blk_mem *m, const struct layout *l, u8 bytes, u64 current,
                     u64 out[EVIL_MAX])
{
    static const u64 plain[] = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 21, 22, 31, 32, 63, 64, 72, 103, 104, 105, 111, 128,
        255, 512, 1023, 1024, 1025, 16384, 16385, 32767, 65535, 65536, 65537, 4194304, 4194305,
        1ull << 31, (1ull << 31) - 1, (1ull << 32) - 1, 1ull << 32, (1ull << 56) - 512, 1ull << 56,
        1ull << 62, 1ull << 63, (1ull << 63) - 1, (1ull << 63) - 512, (1ull << 63) - (1ull << 30),
        ~0ull, ~0ull - 511,
    };
    struct values v = { out, bytes == 8 ? ~0ull : (1ull << bytes * 8) - 1, current, 0 };
    value(&v, current + 1);
    value(&v, current - 1);
    value(&v, current * 2);
    for (u32 b = 0; b < bytes * 8; b += b % 8 == 0 && b < 56 ? 1 : 7)
        value(&v, current ^ 1ull << b);
    if (bytes == 8)
        offsets(&v, m, l);
    for (unsigned i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        value(&v, plain[i]);
    return v.cnt;
}
