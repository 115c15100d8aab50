/* SPDX-License-Identifier: MIT
 *
 * See vmdk_make.h.
 */
#include "vmdk_make.h"

#include "test.h"

enum { STALE = 0x55, TEXT = 64 << 10 };

struct making {
    struct blk_mem *m;
    const struct vmdk_make *p;
    struct vmdk_made *made;
    u64 seed, at;                       /* at: where the next structure goes */
    u64 grain, grains, gtes, span, dir; /* bytes: grain, span (a table's), dir (a directory's) */
    u64 tables[2];                      /* where those of gd and rgd begin */
};

static void put32(struct blk_mem *m, u64 off, u64 v)
{
    u8 p[4];
    put_le32(p, (u32)v);
    blk_mem_put(m, off, p, 4);
}

static void put64(struct blk_mem *m, u64 off, u64 v)
{
    u8 p[8];
    put_le64(p, v);
    blk_mem_put(m, off, p, 8);
}

static void stale(struct blk_mem *m, u64 off, u64 len)
{
    u8 buf[512];
    memset(buf, STALE, sizeof(buf));
    for (u64 i = 0; i < len; i += 512)
        blk_mem_put(m, off + i, buf, (size_t)min_u64(512, len - i));
}

static void header(struct making *k)
{
    const struct vmdk_make *p = k->p;
    struct blk_mem *m = k->m;
    blk_mem_put(m, 0, (u8[512]){0}, 512);
    blk_mem_put(m, 0, "KDMV", 4);
    put32(m, VMH_VERSION, p->version ? p->version : 1);
    put32(m, VMH_FLAGS,
          VMDK_NEWLINES | (p->no_rgd ? 0 : VMDK_REDUNDANT) | (p->zeroed ? VMDK_ZEROED_GRAINS : 0));
    put64(m, VMH_CAPACITY, p->size / 512);
    put64(m, VMH_GRAIN_SIZE, k->grain / 512);
    put64(m, VMH_DESCRIPTOR_OFFSET, 1);
    put64(m, VMH_DESCRIPTOR_SIZE, p->slot ? p->slot : 20);
    put32(m, VMH_NUM_GTES_PER_GT, k->gtes);
    put64(m, VMH_RGD_OFFSET, k->made->rgd / 512);
    put64(m, VMH_GD_OFFSET, k->made->gd / 512);
    blk_mem_put(m, VMH_NEWLINES, "\n \r\n", 4);
    blk_mem_put(m, 300, "kept", 4); /* padding, but it must survive */
}

static void text(struct making *k)
{
    const struct vmdk_make *p = k->p;
    static char buf[TEXT];
    const char *nl = p->crlf ? "\r\n" : "\n";
    u64 slot = (p->slot ? p->slot : 20) * 512ull, len = 0;
    memset(buf, 0, sizeof(buf));
    if (p->extent)
        return;
    len += (u64)sprintf(buf, "# Disk DescriptorFile%s", nl);
    if (p->pad)
        len += (u64)sprintf(buf + len, "#%*s%s", (int)p->pad, "x", nl);
    len += (u64)sprintf(buf + len, "version=1%sencoding=\"UTF-8\"%sCID=12345678%sparentCID=%s%s",
                        nl, nl, nl, p->child ? "87654321" : "ffffffff", nl);
    len += (u64)sprintf(buf + len, "createType=\"monolithicSparse\"%s%s", nl,
                        p->child ? "parentFileNameHint=\"parent.vmdk\"\n" : "");
    len += (u64)sprintf(buf + len, "%s# Extent description%sRW %llu SPARSE \"a b.vmdk\"%s", nl, nl,
                        (unsigned long long)p->size / 512, nl);
    if (!p->no_ddb)
        len += (u64)sprintf(buf + len,
                            "%s#DDB%sddb.adapterType = \"ide\"%sddb.geometry.cylinders = \"%llu\"%s"
                            "ddb.geometry.heads = \"16\"%sddb.geometry.sectors = \"63\"%s"
                            "ddb.mine = \"kept  as it is\"%s",
                            nl, nl, nl, (unsigned long long)p->size / 512 / 1008, nl, nl, nl, nl);
    while (p->full && len < slot)
        buf[len++] = '#';
    assert(len <= slot);
    blk_mem_put(k->m, 512, buf, slot);
}

static void content(const struct making *k, u64 voff, u64 off)
{
    u8 buf[512];
    u64 state = (k->seed * 0x9e3779b97f4a7c15ull) ^ (voff + 1);
    for (unsigned i = 0; i < 512; i += 8)
        put_be64(buf + i, rnd(&state));
    blk_mem_put(k->m, off, buf, 512);
}

static void entry(const struct making *k, u64 idx, u64 val)
{
    for (int i = 0; i < (k->p->no_rgd ? 1 : 2); i++)
        put32(k->m, k->tables[i] + idx / k->gtes * k->span + idx % k->gtes * 4, val);
}

static void grain(struct making *k, u64 idx)
{
    const struct vmdk_make *p = k->p;
    u64 n = k->grain / 512, cnt = p->sectors ? min_u64(p->sectors, n) : n;
    entry(k, idx, k->at / 512);
    for (u64 s = 0; s < n; s++) {
        u64 voff = idx * k->grain + s * 512;
        if (voff >= p->size) {
            if (p->stale_rest || idx >= k->grains)
                stale(k->m, k->at + s * 512, 512);
        } else if (s < cnt / 2 || s >= n - (cnt + 1) / 2) {
            content(k, p->first + voff, k->at + s * 512);
        }
    }
    k->at += k->grain;
}

static bool present(const struct making *k, u64 idx)
{
    const struct vmdk_make *p = k->p;
    return (p->every && idx % p->every == 0) || (p->last && idx == k->grains - 1);
}

static void grains(struct making *k)
{
    const struct vmdk_make *p = k->p;
    u64 all = k->made->entries * k->gtes, cnt = 0, state = k->seed;
    u64 *idx = malloc((all + 1) * sizeof(*idx));
    for (u64 i = 0; i < all; i++)
        if (i < k->grains ? present(k, i) : p->stale_entries)
            idx[cnt++] = i;
        else if (p->zeroed && i % 2 && i < k->grains)
            entry(k, i, VMDK_ZEROED);
    for (u64 i = cnt; p->shuffled && i > 1; i--) {
        u64 j = rnd_below(&state, i), t = idx[j];
        idx[j] = idx[i - 1], idx[i - 1] = t;
    }
    for (u64 i = 0; i < cnt; i++)
        grain(k, idx[i]);
    free(idx);
}

/* A directory and its tables, at k->at. */
static u64 directory(struct making *k, u64 *tables)
{
    u64 dir = k->at;
    if (k->p->stale_slack)
        stale(k->m, dir, k->dir);
    *tables = dir + k->dir;
    for (u64 i = 0; i < k->made->entries; i++)
        put32(k->m, dir + i * 4, (*tables + i * k->span) / 512);
    k->at = *tables + k->made->entries * k->span;
    return dir;
}

static void directories(struct making *k)
{
    if (!k->p->no_rgd)
        k->made->rgd = directory(k, &k->tables[1]);
    k->made->gd = directory(k, &k->tables[0]);
}

static void drop_last_table(struct making *k)
{
    u64 last = k->made->entries - 1;
    for (u64 i = last * k->gtes; i < k->grains; i++)
        if (present(k, i))
            return;
    put32(k->m, k->made->gd + last * 4, 0);
    if (k->made->rgd)
        put32(k->m, k->made->rgd + last * 4, 0);
}

void vmdk_make(struct blk_mem *m, const struct vmdk_make *p, struct vmdk_made *made)
{
    struct making k = {m, p, made, p->seed ? p->seed : 1, 0};
    *made = (struct vmdk_made){0};
    k.grain = 512ull * (p->grain ? p->grain : 128);
    k.gtes = p->gtes ? p->gtes : 512;
    k.grains = div_up(p->size, k.grain);
    k.span = round_up(k.gtes * 4, 512);
    made->entries = div_up(k.grains, k.gtes);
    k.dir = round_up(made->entries * 4, 512);
    blk_mem_init(m, 0, 512);
    k.at = 512 + 512ull * (p->slot ? p->slot : 20);
    u64 first = k.at, cnt = 0;
    if (p->tables_last) { /* the grains are put first, so their number must be known */
        for (u64 i = 0; i < made->entries * k.gtes; i++)
            cnt += i < k.grains ? present(&k, i) : p->stale_entries;
        k.at = round_up(first, k.grain) + cnt * k.grain;
    }
    directories(&k);
    u64 end = k.at;
    k.at = round_up(p->tables_last ? first : k.at, k.grain);
    blk_mem_truncate(m, max_u64(m->length, k.at));
    header(&k);
    put64(m, VMH_OVERHEAD, (p->tables_last ? first : k.at) / 512);
    text(&k);
    grains(&k);
    k.at = made->used_end = max_u64(k.at, end);
    made->table = k.tables[0] + (made->entries - 1) * k.span;
    if (p->no_last_table && !p->stale_entries && !p->zeroed)
        drop_last_table(&k);
    stale(m, k.at, p->slack * 512ull);
    blk_mem_truncate(m, k.at + p->slack * 512ull);
    if (p->short_end && !p->slack && m->length > end + k.grain)
        blk_mem_truncate(m, m->length - k.grain + 512);
}

void vmdk_make_text(struct blk_mem *m, const char *from, const char *to)
{
    static char buf[TEXT], out[TEXT];
    u8 n[8];
    blk_mem_get(m, VMH_DESCRIPTOR_SIZE, n, 8);
    u64 slot = le64(n) * 512;
    memset(buf, 0, sizeof(buf));
    memset(out, 0, sizeof(out));
    blk_mem_get(m, 512, buf, slot);
    char *p = strstr(buf, from);
    assert(p);
    memcpy(out, buf, (size_t)(p - buf));
    strcat(out, to);
    strcat(out, p + strlen(from));
    blk_mem_put(m, 512, out, slot);
}
