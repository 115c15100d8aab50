/* SPDX-License-Identifier: MIT
 *
 * The maker. Where refcount blocks lie depends on which clusters are used, and the other way round:
 * the image is laid out again with one more block until it fits. The specification's names and
 * offsets are written down here anew, as in the judge.
 */
#include "qcow2_make.h"

#include "test.h"

enum { ROUNDS = 64, BLOCKS_MAX = 4096 };

struct cluster_ref {
    u64 cluster, refs;
};

struct maker {
    const struct make *p;
    struct blk_mem *m;
    struct made *out;
    u64 cs, l2_entries, block_entries, next, end; /* next: free cluster; end: of the file, bytes */
    u64 packed_at;         /* where the next compressed stream may go; 0: in a new cluster */
    u64 blocks_at, blocks; /* clusters set aside for refcount blocks */
    u64 l1_off, l1_cnt, snap_off, snap_len;
    struct cluster_ref *refs;
    size_t cnt, cap;
    u32 turn; /* of the kinds */
};

void make_pattern(u64 seed, u64 voff, u8 *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        u64 block = (voff + i) / 512, in = (voff + i) % 512;
        buf[i] = (u8)(((block * 2654435761u) >> 7) + seed + in * 7) | 1;
    }
}

static void put(struct maker *k, u64 off, int bytes, u64 val)
{
    u8 b[8];
    for (int i = 0; i < bytes; i++)
        b[i] = (u8)(val >> 8 * (bytes - 1 - i));
    blk_mem_put(k->m, off, b, (size_t)bytes);
}

static u64 get64(struct maker *k, u64 off)
{
    u8 b[8];
    u64 v = 0;
    blk_mem_get(k->m, off, b, 8);
    for (int i = 0; i < 8; i++)
        v = v << 8 | b[i];
    return v;
}

static void ref(struct maker *k, u64 off, u64 refs)
{
    u64 c = off / k->cs;
    for (size_t i = k->cnt; i-- > 0 && i + 64 > k->cnt;)
        if (k->refs[i].cluster == c) {
            k->refs[i].refs += refs;
            return;
        }
    if (k->cnt == k->cap) {
        k->cap = k->cap ? k->cap * 2 : 256;
        k->refs = realloc(k->refs, k->cap * sizeof(*k->refs));
    }
    k->refs[k->cnt++] = (struct cluster_ref){c, refs};
}

/* n clusters in a row, with that refcount; returns their offset. */
static u64 alloc(struct maker *k, u64 n, u64 refs)
{
    u64 off = k->next * k->cs;
    for (u64 i = 0; i < n; i++)
        ref(k, off + i * k->cs, refs);
    k->next += n;
    k->end = max_u64(k->end, k->next * k->cs);
    return off;
}

/* ---- guest clusters ---- */

/* A raw deflate stream of `len` times one byte (fixed Huffman codes), into out; returns its length:
 * a literal, runs of 258 at distance 1, the rest as literals. */
static size_t deflate_run(u8 value, u64 len, u8 *out)
{
    size_t bits = 0;
    u64 todo = len;
    memset(out, 0, 8);
#define BITS(v, n)                                          \
    for (int b_ = 0; b_ < (n); b_++, bits++) {              \
        if (bits % 8 == 0)                                  \
            out[bits / 8] = 0;                              \
        out[bits / 8] |= (u8)(((v) >> b_ & 1) << bits % 8); \
    }
#define CODE(v, n)                      \
    for (int c_ = (n)-1; c_ >= 0; c_--) \
    BITS((v) >> c_ & 1, 1)
    BITS(1 | 1 << 1, 3);   /* last block, fixed codes */
    CODE(0x30 + value, 8); /* value < 144 */
    todo--;
    while (todo >= 258) {
        CODE(0xc5, 8); /* length 258 */
        CODE(0, 5);    /* distance 1 */
        todo -= 258;
    }
    while (todo--)
        CODE(0x30 + value, 8);
    CODE(0, 7);
#undef CODE
#undef BITS
    return (bits + 7) / 8;
}

static u64 packed_entry(struct maker *k, u64 voff, u64 refs)
{
    u8 *buf = malloc(k->cs / 8 + 512);
    size_t len = deflate_run((u8)(1 + voff / k->cs % 100), k->cs, buf);
    u64 off = k->packed_at;
    bool share = k->p->refcount_order >= 3;
    assert(len <= k->cs);
    if (!off || !share || off % k->cs + len > k->cs) {
        off = alloc(k, 1, refs);
    } else {
        ref(k, off, refs);
    }
    blk_mem_put(k->m, off, buf, len);
    k->packed_at = (off + len) % k->cs ? off + len : 0;
    free(buf);
    u32 x = 62 - (k->p->cluster_bits - 8);
    return 1ull << 62 | ((off + len - 1) / 512 - off / 512) << x | off;
}

static u64 data_cluster(struct maker *k, u64 voff, u64 refs, bool stale)
{
    u64 off = alloc(k, 1, refs), valid = k->cs;
    u8 *buf = malloc(k->cs);
    if (!stale && voff < k->p->size)
        valid = min_u64(valid, k->p->size - voff);
    /* big clusters get a little at either end, so that the image stays small in memory */
    make_pattern(k->p->seed, voff, buf, k->cs);
    if (k->cs <= 65536) {
        blk_mem_put(k->m, off, buf, valid);
    } else {
        blk_mem_put(k->m, off, buf, min_u64(valid, 8192));
        if (valid > 16384)
            blk_mem_put(k->m, off + valid - 8192, buf + valid - 8192, 8192);
    }
    free(buf);
    k->out->last_data = off;
    return off;
}

static u64 copied(const struct maker *k)
{
    return k->p->snapshots ? 0 : 1ull << 63;
}

/* Makes guest cluster `idx` be of this kind. */
static void guest_cluster(struct maker *k, u64 idx, u32 kind, bool stale)
{
    u64 refs = 1 + k->p->snapshots, l1_at = k->l1_off + idx / k->l2_entries * 8;
    u32 size = k->p->ext_l2 ? 16 : 8;
    u64 l2 = get64(k, l1_at) & 0x00fffffffffffe00ull;
    if (idx / k->l2_entries >= k->l1_cnt)
        return;
    if (!l2) {
        l2 = alloc(k, 1, refs);
        put(k, l1_at, 8, l2 | copied(k));
    }
    k->out->last_l2 = l2;
    u64 at = l2 + idx % k->l2_entries * size, voff = idx * k->cs;
    if (get64(k, at) || (size == 16 && get64(k, at + 8)))
        return;
    if (k->p->version == 2 && (kind == MAKE_ZERO || kind == MAKE_PREZERO))
        kind = MAKE_DATA;
    if (!k->p->ext_l2 && kind == MAKE_SUB)
        kind = MAKE_DATA;
    u64 entry = 0, map = 0;
    if (kind == MAKE_PACKED) {
        entry = packed_entry(k, voff, refs);
    } else if (kind == MAKE_ZERO) {
        entry = size == 8;
        map = 0xffffffffull << 32;
    } else {
        entry = data_cluster(k, voff, refs, stale) | copied(k);
        map = 0xffffffff;
        if (kind == MAKE_PREZERO) {
            entry |= size == 8;
            map <<= 32;
        }
        if (kind == MAKE_SUB)
            map = 0x9249249249249249ull & ~(0x9249249249249249ull << 32);
    }
    put(k, at, 8, entry);
    if (size == 16)
        put(k, at + 8, 8, map);
}

static u32 next_kind(struct maker *k)
{
    u32 kinds = k->p->kinds ? k->p->kinds : MAKE_DATA;
    do
        k->turn = (k->turn + 1) % 5;
    while (!(kinds >> k->turn & 1));
    return 1u << k->turn;
}

/* ---- layout ---- */

static void snapshots(struct maker *k)
{
    const struct make *p = k->p;
    u64 off = 0;
    if (!p->snapshots)
        return;
    u64 l1[8];
    assert(p->snapshots <= 8);
    u64 l1_clusters = div_up(k->l1_cnt * 8, k->cs);
    for (u32 i = 0; i < p->snapshots; i++) {
        u8 *buf = malloc(k->l1_cnt * 8 + 8);
        l1[i] = l1_clusters ? alloc(k, l1_clusters, 1) : 0;
        blk_mem_get(k->m, k->l1_off, buf, k->l1_cnt * 8);
        blk_mem_put(k->m, l1[i], buf, k->l1_cnt * 8);
        free(buf);
    }
    k->snap_off = alloc(k, div_up(p->snapshots * 72, k->cs), 1);
    for (u32 i = 0; i < p->snapshots; i++) {
        u64 at = k->snap_off + off;
        u32 extra = p->version == 3 ? 16 + 8 * (i % 2) : 0;
        char id[4] = {(char)('1' + i), 0};
        put(k, at, 8, l1[i]);
        put(k, at + 8, 4, k->l1_cnt);
        put(k, at + 12, 2, 1);
        put(k, at + 14, 2, 3);
        put(k, at + 16, 4, 1700000000 + i);
        put(k, at + 36, 4, extra);
        if (extra)
            put(k, at + 48, 8, p->size);
        blk_mem_put(k->m, at + 40 + extra, id, 1);
        blk_mem_put(k->m, at + 41 + extra, "s0", 2);
        put(k, at + 43 + extra, 1, (u64)id[0]);
        off += round_up(40 + extra + 4, 8);
    }
    k->snap_len = off;
}

/* Clusters of bits in turn: some bits set, all of them, none. Past the end of the disk none is. */
static u64 bits_cluster(struct maker *k, u64 which, u64 idx, u64 bits)
{
    u64 turn = k->p->seed + which * 7 + idx, first = idx * k->cs * 8;
    if (turn % 3)
        return turn % 3 == 1;
    u64 off = alloc(k, 1, 1), n = min_u64(bits - first, k->cs * 8);
    u8 *buf = malloc(k->cs);
    make_pattern(k->p->seed + which, idx * k->cs, buf, k->cs);
    memset(buf + div_up(n, 8), 0, k->cs - div_up(n, 8));
    if (n % 8)
        buf[n / 8] &= (u8)((1 << n % 8) - 1);
    blk_mem_put(k->m, off, buf, k->cs);
    free(buf);
    return off;
}

static void bitmaps(struct maker *k)
{
    const struct make *p = k->p;
    k->out->dir_size = p->bitmaps * 32;
    if (!p->bitmaps)
        return;
    u64 dir = k->out->dir_offset = alloc(k, div_up(k->out->dir_size, k->cs), 1);
    for (u32 i = 0; i < p->bitmaps; i++) {
        u32 g = (p->granularity ? p->granularity : 16) + i;
        u64 bits = div_up(p->size, 1ull << g), cnt = div_up(bits, k->cs * 8);
        u64 table = alloc(k, div_up(cnt * 8, k->cs), 1);
        char name[4] = {'b', (char)('0' + i)};
        for (u64 n = 0; n < cnt; n++)
            put(k, table + n * 8, 8, bits_cluster(k, i, n, bits));
        put(k, dir + i * 32, 8, table);
        put(k, dir + i * 32 + 8, 4, cnt);
        put(k, dir + i * 32 + 12, 4, i % 2 * 2);
        put(k, dir + i * 32 + 16, 1, 1);
        put(k, dir + i * 32 + 17, 1, g);
        put(k, dir + i * 32 + 18, 2, 2);
        blk_mem_put(k->m, dir + i * 32 + 24, name, 2);
    }
}

static void extension(struct maker *k, u64 *off, u32 type, const void *data, u32 len)
{
    put(k, *off, 4, type);
    put(k, *off + 4, 4, len);
    blk_mem_put(k->m, *off + 8, data, len);
    *off += 8 + round_up(len, 8);
}

static void header(struct maker *k)
{
    const struct make *p = k->p;
    u32 hl = p->version == 2 ? 72 : p->header_length ? p->header_length : 112;
    u64 off = hl;
    put(k, 0, 4, 0x514649fb);
    put(k, 4, 4, p->version);
    put(k, 20, 4, p->cluster_bits);
    put(k, 24, 8, p->size);
    put(k, 36, 4, k->l1_cnt);
    put(k, 40, 8, k->l1_off);
    put(k, 48, 8, k->out->rt_offset);
    put(k, 56, 4, k->out->rt_clusters);
    put(k, 60, 4, p->snapshots);
    put(k, 64, 8, k->snap_off);
    if (p->version == 3) {
        put(k, 72, 8, p->incompatible | (p->ext_l2 ? 16 : 0) | (p->compression_type ? 8 : 0));
        put(k, 80, 8, p->compatible);
        put(k, 88, 8, p->autoclear | (p->bitmaps ? 1 : 0));
        put(k, 96, 4, p->refcount_order);
        put(k, 100, 4, hl);
        if (hl > 104)
            put(k, 104, 1, p->compression_type);
        for (u32 i = 112; i < hl; i++)
            put(k, i, 1, p->header_fill);
    }
    if (p->backing_format)
        extension(k, &off, 0xe2792aca, p->backing_format, (u32)strlen(p->backing_format));
    if (p->bitmaps) {
        u8 data[24] = {0};
        put_be32(data, p->bitmaps);
        put_be64(data + 8, k->out->dir_size);
        put_be64(data + 16, k->out->dir_offset);
        k->out->ext_offset = off + 8;
        extension(k, &off, 0x23852875, data, 24);
    }
    if (p->unknown_ext) {
        static const u8 names[96] = {0, 0, 'd', 'i', 'r', 't', 'y', [48] = 2, 7, 'x'};
        extension(k, &off, 0x12345678, "an extension that nobody knows", 30);
        if (off + 200 < k->cs)
            extension(k, &off, 0x6803f857, names, sizeof(names));
        extension(k, &off, 0xcafe0001, "another", 7);
    }
    put(k, off, 8, 0);
    if (p->backing) {
        blk_mem_put(k->m, off + 8, p->backing, strlen(p->backing));
        put(k, 8, 8, off + 8);
        put(k, 16, 4, strlen(p->backing));
    }
}

/* Everything but the refcounts; false if the first clusters hold not enough refcount blocks. */
static void lay_out(struct maker *k)
{
    const struct make *p = k->p;
    u64 seed = p->seed | 1, cnt = div_up(p->size, k->cs);
    alloc(k, 1, 1);
    k->out->rt_offset = alloc(k, k->out->rt_clusters, 1);
    k->blocks_at = alloc(k, k->blocks, 1);
    k->l1_cnt = div_up(p->size, k->cs * k->l2_entries) + p->l1_extra;
    u64 l1_clusters = div_up(k->l1_cnt * 8, k->cs);
    /* An L1 at the end is filled at the far end of the file first and moved there later. */
    u64 scratch = 1ull << 55;
    k->l1_off = p->l1_middle && l1_clusters ? alloc(k, l1_clusters, 1) : scratch;
    u64 tail = p->end_cluster && p->l1_middle && p->last && cnt ? 1 : 0;
    bitmaps(k);
    for (u64 i = 0; i < p->first && i < cnt - tail; i++)
        guest_cluster(k, i, next_kind(k), false);
    for (u64 i = 0; i < p->spread && cnt > 1 + tail; i++)
        guest_cluster(k, rnd_below(&seed, cnt - 1), next_kind(k), false);
    for (u64 i = cnt; p->stale_l2 && i % k->l2_entries && i < cnt + 3; i++)
        guest_cluster(k, i, next_kind(k), true);
    if (tail)
        k->next = max_u64(k->next, p->end_cluster);
    if (p->last && cnt)
        guest_cluster(k, cnt - 1, p->last_kind ? p->last_kind : MAKE_DATA, p->stale);
    if (k->l1_off == scratch) {
        u8 *buf = malloc(k->l1_cnt * 8 + 8);
        k->next = max_u64(k->next, p->snapshots ? 0 : p->end_cluster);
        u64 to = l1_clusters ? alloc(k, l1_clusters, 1) : 0;
        blk_mem_get(k->m, scratch, buf, k->l1_cnt * 8);
        blk_mem_clear(k->m, scratch, round_up(k->l1_cnt * 8, MEM_PAGE));
        k->m->length = 0;
        if (l1_clusters)
            blk_mem_put(k->m, to, buf, k->l1_cnt * 8);
        k->l1_off = to;
        free(buf);
        if (l1_clusters && p->end != MAKE_END_CLUSTER)
            k->end = to + k->l1_cnt * 8;
    }
    if (p->snapshots) {
        k->packed_at = 0;
        if (!p->l1_middle)
            k->next = max_u64(k->next, p->end_cluster);
        snapshots(k);
        if (p->end != MAKE_END_CLUSTER)
            k->end = k->snap_off + k->snap_len;
    }
    k->end = p->end == MAKE_END_SECTOR ? round_up(k->end, 512) : k->end;
    if (p->pad_clusters)
        k->end = round_up(k->end, k->cs) + p->pad_clusters * k->cs;
}

static void put_refcount(struct maker *k, u64 c, u64 val, bool add)
{
    u64 block = get64(k, k->out->rt_offset + c / k->block_entries * 8), i = c % k->block_entries;
    u32 order = k->p->refcount_order;
    assert(block && c / k->block_entries < k->out->rt_entries);
    if (order >= 3) {
        u8 b[8] = {0};
        int bytes = 1 << (order - 3);
        u64 at = block + i * (u64)bytes, old = 0;
        blk_mem_get(k->m, at, b, (size_t)bytes);
        for (int n = 0; n < bytes; n++)
            old = old << 8 | b[n];
        put(k, at, bytes, add ? old + val : val);
        return;
    }
    u32 w = 1u << order, per = 8 / w;
    u8 b;
    u64 at = block + i / per;
    blk_mem_get(k->m, at, &b, 1);
    u32 shift = (u32)(i % per) * w, old = b >> shift & ((1u << w) - 1);
    u64 sum = add ? old + val : val;
    assert(sum < 1u << w);
    b = (u8)((b & ~(((1u << w) - 1) << shift)) | sum << shift);
    blk_mem_put(k->m, at, &b, 1);
}

/* The refcount blocks that are needed, into the table. Returns how many. */
static u64 link_blocks(struct maker *k)
{
    u64 n = 0, highest = 0;
    for (size_t i = 0; i < k->cnt; i++) {
        u64 idx = k->refs[i].cluster / k->block_entries, at = k->out->rt_offset + idx * 8;
        highest = max_u64(highest, idx);
        if (idx >= k->out->rt_entries)
            continue;
        if (!get64(k, at)) {
            put(k, at, 8, n < k->blocks ? (k->blocks_at + n * k->cs) : 1ull << 40);
            n++;
        }
    }
    if (highest >= k->out->rt_entries) {
        assert(!k->p->rt_clusters); /* the caller's table is too small for his end_cluster */
        k->out->rt_clusters = div_up((highest + 1) * 8, k->cs);
        return 0;
    }
    return n;
}

void qcow2_make(struct blk_mem *m, const struct make *given, struct made *out)
{
    struct make p = *given;
    struct maker k = {.p = &p, .m = m, .out = out, .blocks = 1};
    p.version = p.version ? p.version : 3;
    p.cluster_bits = p.cluster_bits ? p.cluster_bits : 16;
    if (p.version == 2)
        p.refcount_order = 4;
    *out = (struct made){.rt_clusters = p.rt_clusters ? p.rt_clusters : 1};
    for (int round = 0;; round++) {
        assert(round < ROUNDS);
        blk_mem_init(m, 0, 512);
        k = (struct maker){.p = &p, .m = m, .out = out, .blocks = k.blocks};
        k.cs = 1ull << p.cluster_bits;
        k.l2_entries = k.cs / (p.ext_l2 ? 16 : 8);
        k.block_entries = k.cs * 8 >> p.refcount_order;
        out->rt_entries = out->rt_clusters * k.cs / 8;
        out->last_l2 = out->last_data = 0;
        lay_out(&k);
        u64 need = link_blocks(&k);
        if (need == k.blocks)
            break;
        k.blocks = need ? need : k.blocks;
        free(k.refs);
        blk_mem_free(m);
    }
    for (size_t i = 0; i < k.cnt; i++)
        put_refcount(&k, k.refs[i].cluster, k.refs[i].refs, true);
    u64 eof = div_up(k.end, k.cs);
    for (u32 i = 0; i < 64; i++)
        if (p.above_eof >> i & 1 && (eof + i) / k.block_entries < out->rt_entries &&
            get64(&k, out->rt_offset + (eof + i) / k.block_entries * 8))
            put_refcount(&k, eof + i, 1, false);
    header(&k);
    blk_mem_truncate(m, k.end);
    out->length = k.end;
    out->clusters = eof;
    out->l1_offset = k.l1_off;
    out->l1_size = k.l1_cnt;
    out->blocks = k.blocks;
    out->block_entries = k.block_entries;
    free(k.refs);
}
