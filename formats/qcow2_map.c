/* SPDX-License-Identifier: MIT
 *
 * qcow2: where the bytes of the virtual disk lie. L1, then L2, one cluster or (extended L2)
 * subcluster at a time; neighbours that continue each other are merged. Sources: docs/interop/
 * qcow2.txt, "Cluster mapping" and "Extended L2 Entries". Table entries are not trusted: reserved
 * bits, misalignment and offsets that no qcow2 can have are ERR_OVERLAY_CORRUPT.
 */
#include "format.h"

enum { MERGE_MAX = 1 << 16 /* pieces looked at per call, so that a call's time is bounded */ };

int qcow2_l1_entry(const struct image *img, u64 l1_idx, u64 entry, u64 *l2_offset, struct err *e)
{
    *l2_offset = entry & QCOW2_OFFSET_MASK;
    if (entry & QCOW2_L1_RESERVED)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "L1 entry {off} has reserved bits set: {val:x}",
                    l1_idx, entry);
    if (*l2_offset)
        return qcow2_check_table(img, *l2_offset, img->unit, "L2 table at {val} is misplaced", e);
    return 0;
}

int qcow2_l1_get(struct image *img, u64 l1_idx, u64 *l2_offset, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    struct table l1 = {img->file[0], &img->win, q->l1_table_offset, q->l1_size};
    u64 entry;
    int rc = table_get(&l1, l1_idx, &entry, e);
    return rc ? rc : qcow2_l1_entry(img, l1_idx, entry, l2_offset, e);
}

u64 qcow2_l2_reserved(const struct qcow2 *q)
{
    return QCOW2_L2_RESERVED | (q->l2_entry_size == 16 || q->version == 2 ? QCOW2_L2_ZERO : 0);
}

bool qcow2_l2_allocated(const struct qcow2 *q, u64 entry)
{
    return (entry & QCOW2_OFFSET_MASK) || (qcow2_has_data_file(q) && (entry & QCOW2_COPIED));
}

int qcow2_packed(struct image *img, u64 entry, struct extent *x, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    u32 bits = 62 - (q->cluster_bits - 8);
    u64 off = entry & ((1ull << bits) - 1);
    u64 sectors = (entry & (QCOW2_COMPRESSED - 1)) >> bits;
    if ((entry & QCOW2_COPIED) || qcow2_has_data_file(q) ||
        off >= QCOW2_MAX_OFFSET)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Compressed cluster entry is invalid: {val:x}", off,
                    entry);
    x->kind = EXTENT_PACKED;
    x->off = off;
    x->packed_len = (u32)((sectors + 1) * 512 - (off & 511));
    return 0;
}

/* What an allocated or zero entry says about byte `in` of its cluster; sets kind, off and how many
 * bytes from there on are alike. */
static int plain(struct image *img, u64 entry, u64 bitmap, u64 in, struct extent *x, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    bool extl2 = q->l2_entry_size == 16, data_file = qcow2_has_data_file(q);
    bool allocated = qcow2_l2_allocated(q, entry);
    u64 off = entry & QCOW2_OFFSET_MASK;
    if ((entry & qcow2_l2_reserved(q)) || off % img->unit ||
        (data_file && allocated && off != x->voff - in))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "L2 entry for {off} is invalid: {val:x}", x->voff,
                    entry);
    x->slot = data_file ? 1 : 0;
    x->off = allocated ? off + in : 0;
    x->len = img->unit - in;
    if (!extl2) {
        x->kind = entry & QCOW2_L2_ZERO ? EXTENT_ZERO : allocated ? EXTENT_DATA : EXTENT_HOLE;
        return 0;
    }
    u32 sub = img->unit / 32, i = (u32)(in / sub);
    bool alloc_bit = bitmap >> i & 1, zero_bit = bitmap >> (32 + i) & 1;
    if ((alloc_bit && zero_bit) || (alloc_bit && !allocated))
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Subcluster bitmap for {off} is invalid: {val:x}",
                    x->voff, bitmap);
    x->kind = zero_bit ? EXTENT_ZERO : alloc_bit ? EXTENT_DATA : EXTENT_HOLE;
    x->len = sub - in % sub;
    return 0;
}

int qcow2_look(struct image *img, u64 voff, struct extent *x, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    u32 l2_shift = q->cluster_bits + q->l2_bits;
    u64 l2, in = voff & (img->unit - 1);
    const u8 *p;
    *x = (struct extent){.kind = EXTENT_HOLE, .voff = voff};
    int rc = qcow2_l1_get(img, voff >> l2_shift, &l2, e);
    if (rc)
        return rc;
    if (!l2) {
        x->len = (1ull << l2_shift) - (voff & ((1ull << l2_shift) - 1));
        return 0;
    }
    u64 idx = voff >> q->cluster_bits & ((1ull << q->l2_bits) - 1);
    rc = window_get(&img->win2, img->file[0], l2 + idx * q->l2_entry_size, q->l2_entry_size,
                    l2 + img->unit, &p, e);
    if (rc)
        return rc;
    u64 entry = be64(p), bitmap = q->l2_entry_size == 16 ? be64(p + 8) : 0;
    if (!(entry & QCOW2_COMPRESSED))
        return plain(img, entry, bitmap, in, x, e);
    if (bitmap)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "Compressed cluster at {off} has a bitmap: {val:x}",
                    voff, bitmap);
    x->len = img->unit - in;
    return qcow2_packed(img, entry, x, e);
}

static bool continues(const struct extent *a, const struct extent *b)
{
    return a->kind == b->kind && a->kind != EXTENT_PACKED &&
           (a->off ? b->off == a->off + a->len : !b->off);
}

int qcow2_map(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e)
{
    u64 end = voff + min_u64(max, img->size - voff);
    assert(voff < img->size && max);
    int rc = qcow2_look(img, voff, x, e);
    for (int i = 0; !rc && voff + x->len < end && i < MERGE_MAX; i++) {
        struct extent next;
        struct err later = {0}; /* what is wrong behind this extent is the next call's */
        if (qcow2_look(img, voff + x->len, &next, &later) || !continues(x, &next))
            break;
        x->len += next.len;
    }
    x->len = min_u64(x->len, end - voff);
    return rc;
}
