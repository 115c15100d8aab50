/* SPDX-License-Identifier: MIT
 *
 * See vmdk_stream.h.
 */
#include "vmdk_stream.h"

#include <zlib.h>

#include "test.h"

enum { OVERHEAD = 128 * 512, TABLE_MARKER = 1, DIRECTORY_MARKER = 2, FOOTER_MARKER = 3 };

struct streaming {
    struct blk_mem *m;
    const struct vmdk_stream *p;
    struct vmdk_streamed *made;
    u64 seed, at, gtes, span, grains, entries, dir;
    u32 *entry; /* of all tables */
};

static void fill(struct streaming *k)
{
    u64 grain = k->made->grain, size = k->p->size;
    for (u64 i = 0; i < k->grains; i++) {
        u64 kind = rnd_below(&k->seed, 4), at = i * grain, end = min_u64(at + grain, size);
        if (i == k->grains - 1 && kind == 0)
            kind = 1;
        for (u64 b = at; kind && b < end; b++)
            k->made->plain[b] = kind == 1 ? (u8)(b / 700) : kind == 2 ? (u8)rnd(&k->seed) : 0x41;
    }
}

static void marker(struct streaming *k, u64 sectors, u32 type)
{
    u8 p[512] = {0};
    put_le64(p, sectors);
    put_le32(p + 12, type);
    blk_mem_put(k->m, k->at, p, 512);
    k->at += 512;
}

static void grain(struct streaming *k, u64 i)
{
    static u8 unit[2 << 20], packed[3 << 20];
    u64 len = k->made->grain, have = min_u64(len, k->p->size - i * len);
    uLongf packed_len = sizeof(packed);
    u8 head[12];
    memset(unit, 0, len);
    memcpy(unit, k->made->plain + i * len, have);
    if (compress2(packed, &packed_len, unit, k->p->short_last ? have : len, 6) != Z_OK)
        abort();
    put_le64(head, i * len / 512);
    put_le32(head + 8, (u32)packed_len);
    blk_mem_put(k->m, k->at, head, 12);
    blk_mem_put(k->m, k->at + 12, packed, packed_len);
    if (!k->made->cnt++) {
        k->made->first = k->at, k->made->first_idx = i;
        k->made->first_len = (u32)packed_len;
    }
    k->made->last = k->at;
    k->entry[i] = (u32)(k->at / 512);
    k->at = round_up(k->at + 12 + packed_len, 512);
    blk_mem_truncate(k->m, k->at);
}

static void grains(struct streaming *k)
{
    static const u8 none[512];
    for (u64 i = 0; i < k->grains; i++) {
        u64 at = i * k->made->grain, end = min_u64(at + k->made->grain, k->p->size);
        while (at < end && !memcmp(k->made->plain + at, none, 512))
            at += 512;
        if (at < end)
            grain(k, i);
    }
}

/* The tables that name something, and the directory, from `at` on. */
static void tables(struct streaming *k, u64 *at, bool marked)
{
    u8 *dir = calloc(1, k->dir), *t = calloc(1, k->span);
    for (u64 i = 0; i < k->entries; i++) {
        bool any = false;
        for (u64 j = 0; j < k->gtes; j++) {
            put_le32(t + j * 4, k->entry[i * k->gtes + j]);
            any |= k->entry[i * k->gtes + j];
        }
        if (!any)
            continue;
        if (marked)
            marker(k, k->span / 512, TABLE_MARKER);
        blk_mem_put(k->m, *at, t, k->span);
        put_le32(dir + i * 4, (u32)(*at / 512));
        *at += k->span;
    }
    if (marked)
        marker(k, k->dir / 512, DIRECTORY_MARKER);
    k->made->gd = *at;
    blk_mem_put(k->m, *at, dir, k->dir);
    *at += k->dir;
    free(dir);
    free(t);
}

static void header(struct streaming *k, u64 off, u64 gd, u64 overhead)
{
    u8 p[512] = "KDMV";
    put_le32(p + VMH_VERSION, 3);
    put_le32(p + VMH_FLAGS, VMDK_NEWLINES | VMDK_COMPRESSED | VMDK_MARKERS);
    put_le64(p + VMH_CAPACITY, k->p->size / 512);
    put_le64(p + VMH_GRAIN_SIZE, k->made->grain / 512);
    put_le64(p + VMH_DESCRIPTOR_OFFSET, 1);
    put_le64(p + VMH_DESCRIPTOR_SIZE, 20);
    put_le32(p + VMH_NUM_GTES_PER_GT, (u32)k->gtes);
    put_le64(p + VMH_GD_OFFSET, gd);
    put_le64(p + VMH_OVERHEAD, overhead / 512);
    memcpy(p + VMH_NEWLINES, "\n \r\n", 4);
    p[VMH_COMPRESS_ALGORITHM] = 1;
    blk_mem_put(k->m, off, p, 512);
}

static void text(struct streaming *k)
{
    char buf[1024];
    int n = snprintf(buf, sizeof(buf),
                     "# Disk DescriptorFile\nversion=1\nCID=00c0ffee\nparentCID=%08x\n"
                     "createType=\"streamOptimized\"\n%s\n# Extent description\n"
                     "RW %llu SPARSE \"a.vmdk\"\n\n#DDB\nddb.adapterType = \"ide\"\n",
                     k->p->child_of ? (u32)k->p->child_of : VMDK_NO_PARENT,
                     k->p->child_of ? "parentFileNameHint=\"parent.vmdk\"\n" : "",
                     (unsigned long long)k->p->size / 512);
    blk_mem_put(k->m, 512, buf, (size_t)n);
}

void vmdk_stream(struct blk_mem *m, const struct vmdk_stream *p, struct vmdk_streamed *made)
{
    struct streaming k = {.m = m, .p = p, .made = made, .seed = p->seed ? p->seed : 1};
    *made = (struct vmdk_streamed){.grain = 512ull * (p->grain ? p->grain : 128)};
    made->plain = calloc(1, p->size);
    k.gtes = p->gtes ? p->gtes : 512;
    k.span = round_up(k.gtes * 4, 512);
    k.grains = div_up(p->size, made->grain);
    k.entries = div_up(k.grains, k.gtes);
    k.dir = round_up(k.entries * 4, 512);
    k.entry = calloc(k.entries * k.gtes, sizeof(*k.entry));
    u64 front = OVERHEAD, before = p->front ? k.dir + k.entries * k.span : 0;
    blk_mem_init(m, OVERHEAD, 512);
    fill(&k);
    text(&k);
    k.at = OVERHEAD + before;
    blk_mem_truncate(m, k.at);
    grains(&k);
    if (p->front) {
        tables(&k, &front, false);
    } else {
        tables(&k, &k.at, true);
        marker(&k, 1, FOOTER_MARKER);
        header(&k, k.at, made->gd / 512, OVERHEAD);
        k.at += 512;
        marker(&k, 0, 0);
    }
    header(&k, 0, p->front ? made->gd / 512 : UINT64_MAX, OVERHEAD + before);
    blk_mem_truncate(m, m->length);
    free(k.entry);
}
