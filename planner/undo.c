/* SPDX-License-Identifier: MIT
 *
 * See undo.h. Sectors are found by a linear search: P10 epochs are rare and small.
 */
#include "undo.h"
#include "crc32c.h"

void undo_init(struct undo *u, struct image *img, void *mem, size_t mem_len)
{
    assert(mem_len >= UNDO_MEM);
    *u = (struct undo){img, mem, (void *)((u8 *)mem + UNDO_SECTORS * UNDO_SECTOR), 0};
}

/* The sector's bytes; read from the file when it is met first. */
static int sector_of(struct undo *u, u8 slot, u64 sector, u8 **p, struct err *e)
{
    unsigned i = 0;
    while (i < u->cnt && (u->at[i].sector != sector || u->at[i].slot != slot))
        i++;
    *p = u->data + (u64)i * UNDO_SECTOR;
    if (i < u->cnt)
        return 0;
    if (i == UNDO_SECTORS)
        return FAIL(e, ERR_INTERNAL_OVERFLOW, "An undo record of more than {val} sectors",
                    sector * UNDO_SECTOR, i);
    u->at[u->cnt++] = (struct undo_at){sector, slot};
    return blk_read(u->img->file[slot], sector * UNDO_SECTOR, *p, UNDO_SECTOR, e);
}

/* Zeros that are written behind the old end change nothing there: preallocation does that. */
static bool appends_zeros(const struct undo *u, const struct patch *p, u64 off, u64 n)
{
    return off >= u->img->file[p->slot]->size &&
           all_zero((const u8 *)p->data + (off - p->off), n);
}

int undo_patch(struct undo *u, const struct patch *p, struct err *e)
{
    if (p->kind != PATCH_WRITE && p->kind != PATCH_ZERO) {
        assert(p->kind == PATCH_LENGTH || p->kind == PATCH_BARRIER);
        return 0;
    }
    u64 end = p->off + p->len;
    if (p->kind == PATCH_ZERO)
        end = min_u64(end, u->img->file[p->slot]->size);
    int rc = 0;
    for (u64 off = p->off, n; !rc && off < end; off += n) {
        u64 in = off % UNDO_SECTOR;
        u8 *to;
        n = min_u64(UNDO_SECTOR - in, end - off);
        if (p->kind == PATCH_WRITE && appends_zeros(u, p, off, n))
            continue;
        rc = sector_of(u, p->slot, off / UNDO_SECTOR, &to, e);
        if (!rc && p->kind == PATCH_WRITE)
            memcpy(to + in, (const u8 *)p->data + (off - p->off), n);
        else if (!rc)
            memset(to + in, 0, n);
    }
    return rc;
}

int undo_show(struct undo *u, struct plan_host *h, struct err *e)
{
    u32 crc[UNDO_SHOW_MAX];
    unsigned runs = 0;
    for (unsigned i = 0, n; i < u->cnt; i += n) {
        for (n = 0; n < UNDO_SHOW_MAX && i + n < u->cnt && u->at[i + n].slot == u->at[i].slot &&
                    u->at[i + n].sector == u->at[i].sector + n;
             n++)
            crc[n] = crc32c(0, u->data + (u64)(i + n) * UNDO_SECTOR, UNDO_SECTOR);
        if (++runs > UNDO_RUNS)
            return FAIL(e, ERR_INTERNAL_OVERFLOW, "An undo record of more than {val} runs", 0,
                        UNDO_RUNS);
        int rc = h->undo(h, (u8)u->at[i].slot, u->at[i].sector * UNDO_SECTOR, crc, n, e);
        if (rc)
            return rc;
    }
    return 0;
}
