/* SPDX-License-Identifier: MIT
 *
 * The judge: walk everything that the header names, count what refers to each host cluster, compare
 * with the stored refcounts. Its finds are those of `qemu-img check` (parity C.9); tests hold the
 * two against each other. Names and offsets are the specification's, written down here anew.
 */
#include "qcow2_judge.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "blk_mem.h"

enum kind {
    HEADER = 1,
    REFTABLE = 2,
    REFBLOCK = 4,
    L1 = 8,
    L2 = 16,
    DATA = 32,
    SNAPSHOTS = 64,
    BITMAP = 128
};
enum { CHUNK = 4096 };

#define OFFSET_BITS 0x00fffffffffffe00ull /* bits 9..55 */
#define BIT(n) (1ull << (n))

struct ref {
    uint64_t cluster_1; /* number plus one; 0: free slot */
    uint64_t refs, stored;
    unsigned kinds;
};

struct judge {
    const struct judge_io *io, *data; /* data: the external data file, if there is one */
    struct verdict *v;
    uint64_t cs, size, file_clusters; /* cluster size; guest size */
    uint32_t version, bits, order, rt_clusters, nb_snapshots, l1_size, header_length;
    uint64_t l1_off, rt_off, snap_off;
    bool ext_l2, zstd;
    uint64_t l2_entries;
    uint64_t hash_to, zero_from, zero_to;
    bool bitmaps_valid, bitmaps_ext;
    uint32_t nb_bitmaps;
    uint64_t dir_off, dir_size;
    uint64_t snapshot; /* whose tree is walked: 0 the active one, else a snapshot's number */
    struct ref *map;
    size_t map_cnt, map_used;
};

/* ---- small things ---- */

static uint64_t get(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    while (bytes--)
        v = v << 8 | *p++;
    return v;
}

static void read_at(struct judge *j, uint64_t off, void *buf, size_t len)
{
    j->io->read(j->io->ctx, off, buf, len);
}

static bool hole(const struct judge_io *io, uint64_t off, size_t len)
{
    return off >= io->size || (io->hole && io->hole(io->ctx, off, len));
}

static bool refuse(struct judge *j, const char *why)
{
    j->v->opens = false;
    j->v->why = why;
    return false;
}

__attribute__((format(printf, 3, 4))) static void find(struct judge *j, uint64_t *counter,
                                                       const char *fmt, ...)
{
    if (!j->v->leaks && !j->v->corruptions) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(j->v->first, sizeof(j->v->first), fmt, ap);
        va_end(ap);
    }
    ++*counter;
}
#define CORRUPT(j, ...) find(j, &(j)->v->corruptions, __VA_ARGS__)
#define X(v) ((unsigned long long)(v))

static size_t map_slot(const struct judge *j, uint64_t cluster)
{
    size_t i = (size_t)((cluster * 0x9e3779b97f4a7c15ull) >> 24) & (j->map_cnt - 1);
    while (j->map[i].cluster_1 && j->map[i].cluster_1 != cluster + 1)
        i = (i + 1) & (j->map_cnt - 1);
    return i;
}

static struct ref *ref_of(struct judge *j, uint64_t cluster)
{
    if (j->map_used * 2 >= j->map_cnt) {
        struct ref *old = j->map;
        size_t cnt = j->map_cnt;
        j->map_cnt = cnt ? cnt * 2 : 256;
        j->map = calloc(j->map_cnt, sizeof(*j->map));
        for (size_t i = 0; i < cnt; i++)
            if (old[i].cluster_1)
                j->map[map_slot(j, old[i].cluster_1 - 1)] = old[i];
        free(old);
    }
    struct ref *r = &j->map[map_slot(j, cluster)];
    if (!r->cluster_1) {
        r->cluster_1 = cluster + 1;
        j->map_used++;
    }
    return r;
}

/* One reference of this kind to each cluster that [off, off+len) touches. */
static void refer(struct judge *j, uint64_t off, uint64_t len, unsigned kind, const char *what)
{
    if (!len)
        return;
    if (off + len < off || off + len > BIT(56)) {
        CORRUPT(j, "%s at 0x%llx: no offset of a qcow2", what, X(off));
        return;
    }
    if (off + len > j->file_clusters * j->cs)
        CORRUPT(j, "%s at 0x%llx is a cluster or more behind the end of the file", what, X(off));
    for (uint64_t c = off / j->cs; c <= (off + len - 1) / j->cs; c++) {
        struct ref *r = ref_of(j, c);
        r->refs++;
        r->kinds |= kind;
    }
}

/* ---- header ---- */

static bool open_extensions(struct judge *j, uint64_t end)
{
    uint64_t off = j->header_length;
    while (off < end) {
        uint8_t h[8];
        if (end - off < 8)
            return refuse(j, "header extension cut off");
        read_at(j, off, h, 8);
        if (!get(h, 4))
            return true;
        if (get(h + 4, 4) > end - off - 8)
            return refuse(j, "header extension too large");
        if (get(h, 4) == 0x23852875) {
            uint8_t b[24];
            if (get(h + 4, 4) != 24)
                return refuse(j, "length of the bitmaps extension");
            read_at(j, off + 8, b, 24);
            j->bitmaps_ext = true;
            j->nb_bitmaps = (uint32_t)get(b, 4);
            j->dir_size = get(b + 8, 8);
            j->dir_off = get(b + 16, 8);
        }
        off += 8 + (get(h + 4, 4) + 7) / 8 * 8;
    }
    return true;
}

static bool open_v3(struct judge *j, const uint8_t *h)
{
    uint64_t incompat = get(h + 72, 8);
    j->order = (uint32_t)get(h + 96, 4);
    j->header_length = (uint32_t)get(h + 100, 4);
    j->v->dirty = incompat & 1;
    j->v->corrupt = incompat & 2;
    j->ext_l2 = incompat & 16;
    j->bitmaps_valid = get(h + 88, 8) & 1;
    if (incompat & ~31ull)
        return refuse(j, "unknown incompatible feature");
    if (incompat & 4 && (j->nb_snapshots || !j->io->data))
        return refuse(j, "a data file that is missing, or with snapshots");
    j->data = incompat & 4 ? j->io->data : NULL;
    if (j->order > 6)
        return refuse(j, "refcount width");
    if (j->header_length < 104 || j->header_length > j->cs)
        return refuse(j, "header length");
    uint8_t compression = j->header_length > 104 ? h[104] : 0;
    j->zstd = compression;
    if (compression > 1 || !compression != !(incompat & 8))
        return refuse(j, "compression type");
    if (j->ext_l2 && j->bits < 14)
        return refuse(j, "extended L2 with small clusters");
    return true;
}

static bool open_header(struct judge *j)
{
    uint8_t h[112];
    read_at(j, 0, h, sizeof(h));
    if (get(h, 4) != 0x514649fb)
        return refuse(j, "magic");
    j->version = (uint32_t)get(h + 4, 4);
    j->bits = (uint32_t)get(h + 20, 4);
    if (j->version < 2 || j->version > 3)
        return refuse(j, "version");
    if (j->bits < 9 || j->bits > 21)
        return refuse(j, "cluster size");
    j->cs = BIT(j->bits);
    j->file_clusters = (j->io->size + j->cs - 1) / j->cs;
    uint64_t backing_off = get(h + 8, 8), backing_len = get(h + 16, 4);
    j->v->size = j->size = get(h + 24, 8);
    j->v->l1_entries = j->l1_size = (uint32_t)get(h + 36, 4);
    j->v->l1_offset = j->l1_off = get(h + 40, 8);
    j->v->rt_offset = j->rt_off = get(h + 48, 8);
    j->rt_clusters = (uint32_t)get(h + 56, 4);
    j->nb_snapshots = (uint32_t)get(h + 60, 4);
    j->snap_off = get(h + 64, 8);
    j->order = 4;
    j->header_length = 72;
    if (j->version == 3 && !open_v3(j, h))
        return false;
    if (backing_off &&
        (backing_off > j->cs || backing_len > 1023 || backing_len > j->cs - backing_off))
        return refuse(j, "backing file name");
    j->v->backing = backing_off && backing_len;
    if (!open_extensions(j, j->v->backing ? backing_off : j->cs))
        return false;
    j->l2_entries = j->cs / (j->ext_l2 ? 16 : 8);
    uint64_t reach = j->cs * j->l2_entries;
    if (j->size > INT64_MAX || j->l1_size > 4194304 ||
        j->size / reach + (j->size % reach != 0) > j->l1_size)
        return refuse(j, "L1 table too small or too large");
    if ((j->l1_size && j->l1_off % j->cs) || j->rt_off % j->cs || !j->rt_off || !j->rt_clusters)
        return refuse(j, "table offset");
    if (j->rt_clusters * j->cs > 8u << 20)
        return refuse(j, "refcount table too large");
    if (j->nb_snapshots > 65536 || (j->nb_snapshots && j->snap_off % j->cs))
        return refuse(j, "snapshot table");
    return true;
}

/* ---- guest content ---- */

uint64_t judge_hash_block(uint64_t voff, const uint8_t *block, size_t len)
{
    uint64_t h = voff * 0x9e3779b97f4a7c15ull + 0x1234567, any = 0;
    for (size_t i = 0; i < len; i++)
        any |= block[i];
    if (!any)
        return 0;
    for (size_t i = 0; i < len; i += 8) {
        uint64_t w = 0;
        memcpy(&w, block + i, len - i < 8 ? len - i : 8);
        h = (h ^ w) * 0xff51afd7ed558ccdull;
        h ^= h >> 29;
    }
    return h;
}

static void guest_bytes(struct judge *j, uint64_t voff, const uint8_t *p, size_t len)
{
    if (j->snapshot) {
        j->v->snapshot_hash += judge_hash_block(voff ^ j->snapshot << 60, p, len);
        return;
    }
    if (voff < j->hash_to)
        j->v->hash +=
            judge_hash_block(voff, p, len < j->hash_to - voff ? len : (size_t)(j->hash_to - voff));
    for (size_t i = 0; i < len && j->v->zero; i++)
        if (p[i] && voff + i >= j->zero_from && voff + i < j->zero_to)
            j->v->zero = false;
}

/* Guest bytes [voff, voff+len) lie at `off`. */
static void guest_data(struct judge *j, uint64_t voff, uint64_t off, uint64_t len)
{
    const struct judge_io *io = j->data ? j->data : j->io;
    uint8_t buf[CHUNK];
    uint64_t end = j->hash_to > j->zero_to ? j->hash_to : j->zero_to;
    for (uint64_t at = 0, n; at < len && (j->snapshot || voff + at < end); at += n) {
        n = len - at < CHUNK ? len - at : CHUNK;
        if (hole(io, off + at, (size_t)n))
            continue;
        io->read(io->ctx, off + at, buf, (size_t)n);
        for (uint64_t b = 0; b < n; b += 512)
            guest_bytes(j, voff + at + b, buf + b, n - b < 512 ? (size_t)(n - b) : 512);
    }
}

/* The content of a compressed cluster (raw deflate), n bytes at `in`; false: it has none. */
static bool unpack(struct judge *j, uint8_t *in, uint64_t n, uint8_t *out)
{
    z_stream z = {.next_in = in, .avail_in = (uInt)n, .next_out = out, .avail_out = (uInt)j->cs};
    if (inflateInit2(&z, -15) != Z_OK)
        return false;
    inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return z.avail_out == 0;
}

static void compressed(struct judge *j, uint64_t entry, uint64_t voff, bool content)
{
    unsigned x = 62 - (j->bits - 8);
    uint64_t off = entry & (BIT(x) - 1), more = (entry & (BIT(62) - 1)) >> x;
    uint64_t len = (more + 1) * 512 - off % 512;
    refer(j, off, len, DATA, "compressed cluster");
    if (entry & BIT(63))
        CORRUPT(j, "compressed cluster with COPIED: 0x%llx", X(entry));
    if (!content)
        return;
    uint8_t *in = calloc(1, (size_t)(len + j->cs)), *out = calloc(1, (size_t)j->cs);
    read_at(j, off, in, (size_t)len);
    if (j->zstd) /* not unpacked here: its compressed bytes stand for it */
        memcpy(out, in, (size_t)(len < j->cs ? len : j->cs));
    else if (!unpack(j, in, len, out))
        CORRUPT(j, "compressed cluster at 0x%llx cannot be unpacked", X(off));
    for (uint64_t b = 0; b < j->cs; b += 512)
        guest_bytes(j, voff + b, out + b, 512);
    free(in);
    free(out);
}

/* ---- L1 and L2 ---- */

static bool copied_ok(struct judge *j, uint64_t entry, uint64_t off)
{
    return (ref_of(j, off / j->cs)->stored == 1) == ((entry & BIT(63)) != 0);
}

static void subclusters(struct judge *j, bool allocated, uint64_t off, uint64_t map, uint64_t voff,
                        bool content)
{
    uint64_t sub = j->cs / 32;
    if ((map & map >> 32) & 0xffffffff)
        CORRUPT(j, "subcluster both allocated and zero: 0x%llx", X(map));
    if (!allocated && (map & 0xffffffff))
        CORRUPT(j, "allocated subclusters of no cluster: 0x%llx", X(map));
    for (unsigned i = 0; content && allocated && i < 32; i++)
        if (map >> i & 1)
            guest_data(j, voff + i * sub, off + i * sub, sub);
}

static void l2_entry(struct judge *j, uint64_t entry, uint64_t map, uint64_t voff)
{
    uint64_t off = entry & OFFSET_BITS;
    bool active = !j->snapshot, content = !active || voff < j->size;
    if (entry & BIT(62)) {
        if (map)
            CORRUPT(j, "compressed cluster with a bitmap: 0x%llx", X(map));
        compressed(j, entry, voff, content);
        return;
    }
    if (entry & (0x3f000000000001feull | (j->ext_l2 || j->version == 2)))
        CORRUPT(j, "L2 entry with reserved bits: 0x%llx", X(entry));
    if (off % j->cs) {
        CORRUPT(j, "data cluster not aligned: 0x%llx", X(off));
        return;
    }
    bool allocated = off || (j->data && entry & BIT(63));
    if (allocated && j->data) {
        j->v->data_clusters++;
        if (off != voff || !(entry & BIT(63)))
            CORRUPT(j, "entry 0x%llx for 0x%llx of a data file", X(entry), X(voff));
    } else if (off) {
        j->v->data_clusters++;
        refer(j, off, j->cs, DATA, "data cluster");
        if (active && !copied_ok(j, entry, off))
            CORRUPT(j, "COPIED of data cluster: entry 0x%llx, refcount %llu", X(entry),
                    X(ref_of(j, off / j->cs)->stored));
    } else if (entry & BIT(63)) {
        CORRUPT(j, "COPIED without a cluster: 0x%llx", X(entry));
    }
    if (j->ext_l2)
        subclusters(j, allocated, off, map, voff, content);
    else if (content && allocated && !(entry & 1))
        guest_data(j, voff, off, j->cs);
}

static void l2_table(struct judge *j, uint64_t off, uint64_t voff)
{
    uint8_t buf[CHUNK];
    unsigned size = j->ext_l2 ? 16 : 8;
    for (uint64_t at = 0; at < j->cs; at += sizeof(buf)) {
        size_t n = j->cs - at < sizeof(buf) ? (size_t)(j->cs - at) : sizeof(buf);
        if (hole(j->io, off + at, n))
            continue;
        read_at(j, off + at, buf, n);
        for (size_t i = 0; i < n; i += size) {
            uint64_t entry = get(buf + i, 8), map = size == 16 ? get(buf + i + 8, 8) : 0;
            if (entry || map)
                l2_entry(j, entry, map, voff + (at + i) / size * j->cs);
        }
    }
}

static void l1_table(struct judge *j, uint64_t off, uint64_t cnt)
{
    uint8_t buf[CHUNK];
    refer(j, off, cnt * 8, L1, "L1 table");
    for (uint64_t at = 0; at < cnt * 8; at += sizeof(buf)) {
        size_t n = cnt * 8 - at < sizeof(buf) ? (size_t)(cnt * 8 - at) : sizeof(buf);
        if (hole(j->io, off + at, n))
            continue;
        read_at(j, off + at, buf, n);
        for (size_t i = 0; i < n; i += 8) {
            uint64_t entry = get(buf + i, 8), l2 = entry & OFFSET_BITS;
            if (entry & 0x7f000000000001ffull)
                CORRUPT(j, "L1 entry with reserved bits: 0x%llx", X(entry));
            if (!l2)
                continue;
            if (l2 % j->cs) {
                CORRUPT(j, "L2 table not aligned: 0x%llx", X(l2));
                continue;
            }
            if (!j->snapshot && !copied_ok(j, entry, l2))
                CORRUPT(j, "COPIED of L2 table: entry 0x%llx, refcount %llu", X(entry),
                        X(ref_of(j, l2 / j->cs)->stored));
            refer(j, l2, j->cs, L2, "L2 table");
            l2_table(j, l2, (at + i) / 8 * j->l2_entries * j->cs);
        }
    }
}

static bool snapshots(struct judge *j)
{
    uint64_t off = j->snap_off;
    for (uint32_t i = 0; i < j->nb_snapshots; i++) {
        uint8_t h[40];
        read_at(j, off, h, sizeof(h));
        uint64_t l1 = get(h, 8), cnt = get(h + 8, 4), extra = get(h + 36, 4);
        if (extra > 1024 || cnt > 4194304 || (cnt && l1 % j->cs))
            return refuse(j, "snapshot table entry");
        off += (40 + extra + get(h + 12, 2) + get(h + 14, 2) + 7) / 8 * 8;
        j->snapshot = i + 1;
        l1_table(j, l1, cnt);
    }
    j->snapshot = 0;
    refer(j, j->snap_off, off - j->snap_off, SNAPSHOTS, "snapshot table");
    return true;
}

/* ---- bitmaps ---- */

/* A byte of a bitmap that is not zero; `at` is its index. The bit that the end of the range to hash
 * falls into counts as inside of it. */
static void bitmap_byte(struct judge *j, uint64_t which, uint32_t g, uint64_t at, uint8_t byte)
{
    for (unsigned i = 0; i < 8; i++) {
        uint64_t bit = at * 8 + i;
        if (!(byte >> i & 1))
            continue;
        if (bit > (j->size - 1) >> g)
            CORRUPT(j, "bitmap %llu: bit %llu is past the end of the disk", X(which), X(bit));
        if (j->hash_to && bit <= (j->hash_to - 1) >> g)
            j->v->bitmap_hash += (bit + 1) * 0x9e3779b97f4a7c15ull ^ (which + 1) << 40;
        if (bit << g >= j->zero_from && bit << g < j->zero_to)
            j->v->bitmap_zero = false;
        j->v->bitmap_bits++;
    }
}

static void bitmap_table(struct judge *j, uint64_t which, uint64_t off, uint64_t cnt, uint32_t g)
{
    uint64_t bytes = ((j->size - 1) >> g) / 8 + 1;
    refer(j, off, cnt * 8, BITMAP, "bitmap table");
    if (!j->size || cnt != (bytes - 1) / j->cs + 1 || cnt * j->cs > 512 << 20) {
        CORRUPT(j, "bitmap %llu: %llu table entries do not fit the disk", X(which), X(cnt));
        return;
    }
    uint8_t *buf = malloc((size_t)j->cs);
    for (uint64_t i = 0; i < cnt; i++) {
        uint8_t e[8];
        read_at(j, off + i * 8, e, 8);
        uint64_t entry = get(e, 8), at = entry & OFFSET_BITS;
        if ((entry & ~OFFSET_BITS & ~1ull) || at % j->cs || (at && (entry & 1)))
            CORRUPT(j, "bitmap %llu: table entry 0x%llx", X(which), X(entry));
        if (at) {
            refer(j, at, j->cs, BITMAP, "cluster of bits");
            read_at(j, at, buf, (size_t)j->cs);
        }
        for (uint64_t b = 0; (at || (entry & 1)) && b < j->cs; b++)
            if (at ? buf[b] : i * j->cs + b < bytes)
                bitmap_byte(j, which, g, i * j->cs + b,
                            at ? buf[b]
                            : i * j->cs + b == bytes - 1
                                ? (uint8_t)(0xff >> (7 - ((j->size - 1) >> g) % 8))
                                : 0xff);
    }
    free(buf);
}

/* Valid bitmaps; stale ones are nothing, and what they had leaks. */
static void bitmaps(struct judge *j)
{
    uint64_t at = 0;
    j->v->bitmap_zero = true;
    if (!j->bitmaps_valid || !j->bitmaps_ext)
        return;
    refer(j, j->dir_off, j->dir_size, BITMAP, "bitmap directory");
    for (uint32_t i = 0; i < j->nb_bitmaps; i++) {
        uint8_t h[24];
        if (at + 24 > j->dir_size)
            break;
        read_at(j, j->dir_off + at, h, 24);
        uint64_t off = get(h, 8), name = get(h + 18, 2);
        if (off % j->cs || !off || get(h + 12, 4) > 3 || h[16] != 1 || h[17] < 9 || h[17] > 31 ||
            !name || name > 1023 || get(h + 20, 4) || get(h + 8, 4) > 1 << 20) {
            CORRUPT(j, "bitmap %u: a directory entry that none can have", i);
            return;
        }
        bitmap_table(j, i, off, get(h + 8, 4), h[17]);
        at += (24 + name + 7) / 8 * 8;
        j->v->bitmaps++;
    }
    if (j->v->bitmaps != j->nb_bitmaps || at != j->dir_size)
        CORRUPT(j, "bitmap directory of %llu bytes ends at %llu", X(j->dir_size), X(at));
}

/* ---- refcounts ---- */

static uint64_t width_get(const uint8_t *block, uint64_t i, uint32_t order)
{
    if (order >= 3)
        return get(block + (i << (order - 3)), 1 << (order - 3));
    unsigned per_byte = 8u >> order, w = 1u << order;
    return block[i / per_byte] >> (i % per_byte * w) & ((1u << w) - 1);
}

static void refcount_block(struct judge *j, uint64_t off, uint64_t first)
{
    uint8_t buf[CHUNK];
    for (uint64_t at = 0; at < j->cs; at += sizeof(buf)) {
        size_t n = j->cs - at < sizeof(buf) ? (size_t)(j->cs - at) : sizeof(buf);
        if (hole(j->io, off + at, n))
            continue;
        read_at(j, off + at, buf, n);
        uint64_t per_chunk = (uint64_t)n * 8 >> j->order, base = first + (at * 8 >> j->order);
        for (size_t b = 0; b < n; b += 8) {
            static const uint8_t none[8];
            if (!memcmp(buf + b, none, 8))
                continue;
            uint64_t per_word = 64 >> j->order, from = b * 8 >> j->order;
            for (uint64_t i = from; i < from + per_word && i < per_chunk; i++) {
                uint64_t val = width_get(buf, i, j->order);
                if (val)
                    ref_of(j, base + i)->stored = val;
            }
        }
    }
}

/* Reads all stored refcounts into the map, before anything else is walked. */
static void refcount_table(struct judge *j)
{
    uint8_t buf[CHUNK];
    uint64_t per_block = j->cs * 8 >> j->order;
    refer(j, j->rt_off, j->rt_clusters * j->cs, REFTABLE, "refcount table");
    size_t n = j->cs < sizeof(buf) ? (size_t)j->cs : sizeof(buf);
    for (uint64_t at = 0; at < j->rt_clusters * j->cs; at += n) {
        if (hole(j->io, j->rt_off + at, n))
            continue;
        read_at(j, j->rt_off + at, buf, n);
        for (size_t i = 0; i < n; i += 8) {
            uint64_t entry = get(buf + i, 8), block = entry & ~511ull;
            if (entry & 511)
                CORRUPT(j, "refcount table entry with reserved bits: 0x%llx", X(entry));
            if (!block)
                continue;
            if (block % j->cs || block >= BIT(56)) {
                CORRUPT(j, "refcount block not aligned: 0x%llx", X(block));
                continue;
            }
            j->v->blocks++;
            refer(j, block, j->cs, REFBLOCK, "refcount block");
            refcount_block(j, block, (at + i) / 8 * per_block);
        }
    }
}

static void compare(struct judge *j)
{
    for (size_t i = 0; i < j->map_cnt; i++) {
        const struct ref *r = &j->map[i];
        uint64_t c = r->cluster_1 - 1;
        if (!r->cluster_1)
            continue;
        if (r->stored < r->refs)
            CORRUPT(j, "cluster %llu: refcount %llu, references %llu", X(c), X(r->stored),
                    X(r->refs));
        else if (r->stored > r->refs && c < j->file_clusters)
            find(j, &j->v->leaks, "cluster %llu: refcount %llu, references %llu", X(c),
                 X(r->stored), X(r->refs));
        bool mixed = r->kinds & (r->kinds - 1);
        bool once = r->kinds & (HEADER | REFTABLE | REFBLOCK | L1 | SNAPSHOTS | BITMAP);
        if (mixed || (once && r->refs > 1))
            CORRUPT(j, "cluster %llu is metadata and something else (kinds 0x%x, references %llu)",
                    X(c), r->kinds, X(r->refs));
    }
}

void qcow2_judge(const struct judge_io *io, uint64_t hash_to, uint64_t zero_from, uint64_t zero_to,
                 struct verdict *v)
{
    struct judge j = {.io = io, .v = v};
    *v = (struct verdict){.opens = true, .zero = true, .why = ""};
    if (open_header(&j)) {
        j.hash_to = hash_to < j.size ? hash_to : j.size;
        j.zero_from = zero_from;
        j.zero_to = zero_to < j.size ? zero_to : j.size;
        refer(&j, 0, j.cs, HEADER, "header");
        refcount_table(&j);
        l1_table(&j, j.l1_off, j.l1_size);
        bitmaps(&j);
        if (snapshots(&j))
            compare(&j);
    }
    free(j.map);
}

static void mem_read(void *ctx, uint64_t off, void *buf, size_t len)
{
    const struct blk_mem *m = ctx;
    blk_mem_get(m, off, buf, len);
    if (off + len > m->length) {
        uint64_t have = off < m->length ? m->length - off : 0;
        memset((uint8_t *)buf + have, 0, len - have);
    }
}

static bool mem_hole(void *ctx, uint64_t off, size_t len)
{
    return blk_mem_hole(ctx, off, len);
}

static void part_read(void *ctx, uint64_t off, void *buf, size_t len)
{
    const struct judge_part *p = ctx;
    size_t have = off < p->size ? (size_t)(p->size - off < len ? p->size - off : len) : 0;
    memset(buf, 0, len);
    mem_read((void *)p->m, p->base + off, buf, have);
}

static bool part_hole(void *ctx, uint64_t off, size_t len)
{
    const struct judge_part *p = ctx;
    return blk_mem_hole(p->m, p->base + off, len);
}

struct judge_io judge_part_io(const struct judge_part *part)
{
    return (struct judge_io){(void *)part, part->size, part_read, part_hole, NULL};
}

void qcow2_judge_mem(const struct blk_mem *m, uint64_t hash_to, uint64_t zero_from,
                     uint64_t zero_to, struct verdict *v)
{
    struct judge_io io = {(void *)m, m->length, mem_read, mem_hole, NULL};
    qcow2_judge(&io, hash_to, zero_from, zero_to, v);
}
