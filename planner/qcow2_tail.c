/* SPDX-License-Identifier: MIT
 *
 * What lies past an end of a qcow2 disk. In a grow the old header cannot reach it, so in-place
 * zeros may precede the commit (P7); in a shrink they follow it, and only copies precede it.
 * Whether something may be changed in place is decided by its refcount, not by its COPIED flag.
 * Source: docs/interop/qcow2.txt, "Cluster mapping".
 */
#include "qcow2_tail.h"
#include "copy.h"

static u64 entry_off(const struct image *img, const struct qcow2_tail *t, u64 idx)
{
    return t->l2 + idx * img->u.qcow2.l2_entry_size;
}

int qcow2_tail_entry(struct image *img, const struct qcow2_tail *t, u64 idx, u64 *entry,
                     u64 *bitmap, struct err *e)
{
    u32 size = img->u.qcow2.l2_entry_size;
    const u8 *p;
    int rc = window_get(&img->win2, img->file[0], entry_off(img, t, idx), size, t->l2 + img->unit,
                        &p, e);
    if (rc)
        return rc;
    *entry = be64(p);
    *bitmap = size == 16 ? be64(p + 8) : 0;
    return 0;
}

/* Entries past the end of the disk that do not read zero. */
static int find_stale(struct image *img, struct qcow2_tail *t, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 zero_flag = q->version == 3 && q->l2_entry_size == 8 ? QCOW2_L2_ZERO : 0;
    for (u64 i = t->idx; i < 1ull << q->l2_bits; i++) {
        u64 entry, bitmap;
        int rc = qcow2_tail_entry(img, t, i, &entry, &bitmap, e);
        if (rc)
            return rc;
        if ((entry & ~zero_flag) || (u32)bitmap) {
            t->stale_first = t->stale_end ? t->stale_first : i;
            t->stale_end = i + 1;
        }
    }
    return 0;
}

/* What the rest of the last cluster holds. */
static int look_at_rest(struct image *img, struct qcow2_tail *t, struct err *e)
{
    u64 end = round_up(t->size, img->unit);
    int rc = qcow2_tail_entry(img, t, t->idx - 1, &t->entry, &t->bitmap, e);
    t->hole = !(t->entry & QCOW2_COMPRESSED) && !qcow2_l2_allocated(&img->u.qcow2, t->entry);
    for (u64 voff = t->size; !rc && voff < end;) {
        struct extent x;
        if ((rc = qcow2_look(img, voff, &x, e)))
            break;
        t->zero |= x.kind == EXTENT_DATA && x.off < t->file_size[x.slot];
        t->beyond |= x.kind == EXTENT_DATA && x.slot == 0 && x.off >= t->file_size[0];
        t->copy_data |= x.kind == EXTENT_PACKED;
        if (x.kind == EXTENT_PACKED)
            t->packed = x;
        voff += x.len;
    }
    return rc;
}

/* Extended L2: which subclusters of an allocated last cluster show the backing file. */
static void look_at_backing(const struct image *img, struct qcow2_tail *t)
{
    u64 sub = img->unit / 32, seen = (u32)(t->bitmap | t->bitmap >> 32);
    if (!t->own_l2 || !img->backing || img->u.qcow2.l2_entry_size != 16 || t->hole ||
        t->packed.packed_len)
        return;
    for (u64 i = t->in / sub; i < 32; i++) {
        bool end_inside = i * sub < t->in;
        if (seen >> i & 1)
            continue;
        t->show |= end_inside;
        t->hide |= end_inside ? 1ull << i : 1ull << (32 + i);
    }
}

static int count_of(struct image *img, u64 off, u64 *count, struct err *e)
{
    int rc = qcow2_refcount_get(img, off >> img->u.qcow2.cluster_bits, count, e);
    return !rc && !*count ? FAIL(e, ERR_INCONSISTENT,
                                 "The cluster at {val} is in use but not counted; run "
                                 "'qemu-img check -r all' on the image",
                                 off, off)
                          : rc;
}

/* A COPIED flag says the same as the count, or one of them is wrong. Without snapshots either way
 * nobody else looks. */
static int check_copied(const struct image *img, u64 off, u64 count, bool copied, struct err *e)
{
    return img->u.qcow2.nb_snapshots && copied != (count == 1)
               ? FAIL(e, ERR_INCONSISTENT,
                      "The cluster at {val} is shared or not, depending on whom one asks; run "
                      "'qemu-img check -r all' on the image",
                      off, off)
               : 0;
}

/* Refuses if [first, first+cnt) or the L2 table is a refcount block: it would be overwritten. */
static int check_no_block(struct image *img, const struct qcow2_tail *t, u64 first, u64 cnt,
                          struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 entries = qcow2_reftable_entries(q);
    for (u64 i = 0; i < entries; i++) {
        u64 off;
        int rc = qcow2_refblock(img, i, &off, e);
        if (rc)
            return rc;
        if (off && (off == t->l2 || (off >> q->cluster_bits) - first < cnt))
            return FAIL(e, ERR_OVERLAY_CORRUPT,
                        "The refcount block at {val} is mapped as something else", i, off);
    }
    return 0;
}

/* In place, or by a copy? */
static int decide(struct image *img, struct qcow2_tail *t, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 l2_count, count, data = t->entry & QCOW2_OFFSET_MASK;
    int rc =
        t->beyond ? count_of(img, data, &count, e) : 0; /* or something new would stand there */
    if (rc)
        return rc;
    if (!t->zero && !t->copy_data && !t->stale_end && !t->own_l2)
        return 0;
    if (q->crypt_method && (t->zero || t->copy_data || t->show))
        return FAIL(e, ERR_LUKS_UNSUPPORTED,
                    "The disk's old or new end lies inside an encrypted cluster, and zeroing its "
                    "rest needs the key (for a shrink, choose a multiple of {val})",
                    t->size, img->unit);
    rc = count_of(img, t->l2, &l2_count, e);
    if (!rc)
        rc = check_copied(img, t->l2, l2_count, t->l2_copied, e);
    bool written = (t->zero || t->show) && !qcow2_has_data_file(q); /* in this file, if at all */
    if (!rc && written && !(rc = count_of(img, data, &count, e)) &&
        !(rc = check_copied(img, data, count, t->entry & QCOW2_COPIED, e)))
        t->copy_data = l2_count > 1 || count > 1;
    t->copy_l2 = l2_count > 1;
    u64 from = 0, cnt = 0; /* the last cluster, if it is written or given back */
    if (!rc && (written || t->copy_data)) {
        u64 end = written ? data + img->unit : t->packed.off + t->packed.packed_len;
        from = (written ? data : t->packed.off) >> q->cluster_bits;
        cnt = div_up(end, img->unit) - from;
        rc = qcow2_check_table(img, from << q->cluster_bits, cnt * img->unit,
                               "The last cluster, at {val}, is misplaced", e);
        if (t->copy_data)
            t->free[t->frees++] = (struct cluster_run){from, cnt};
    }
    if (!rc && (t->l2 >> q->cluster_bits) - from < cnt)
        rc = FAIL(e, ERR_OVERLAY_CORRUPT, "The L2 table at {val} maps itself", t->size, t->l2);
    if (!rc)
        rc = check_no_block(img, t, from, cnt, e);
    if (t->copy_l2)
        t->free[t->frees++] = (struct cluster_run){t->l2 >> q->cluster_bits, 1};
    return rc;
}

int qcow2_tail_look(struct image *img, struct qcow2_tail *t, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    u64 size = t->size, used = qcow2_l1_entries(q, size), per_table = 1ull << q->l2_bits;
    *t = (struct qcow2_tail){
        .size = size,
        .whole = t->whole,
        .own_l2 = t->own_l2,
        .hole = true,
        .file_size = {img->file[0]->size, img->files > 1 ? img->file[1]->size : 0}};
    if (!used)
        return 0;
    t->l1_idx = used - 1;
    struct table l1 = {img->file[0], &img->win, q->l1_table_offset, q->l1_size};
    u64 entry;
    int rc = qcow2_l1_get(img, t->l1_idx, &t->l2, e);
    if (rc || !t->l2 || (rc = table_get(&l1, t->l1_idx, &entry, e)))
        return rc;
    t->l2_copied = entry & QCOW2_COPIED;
    t->idx = div_up(size, img->unit) - t->l1_idx * per_table;
    t->in = size % img->unit;
    if ((rc = find_stale(img, t, e)) || (t->in && (rc = look_at_rest(img, t, e))))
        return rc;
    look_at_backing(img, t);
    if (t->packed.packed_len && (!img->format->unpack || !img->scratch))
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "The disk ends inside a compressed cluster, and this program has no decoder",
                    size, t->packed.off);
    if (t->packed.packed_len && (rc = img->format->unpack(img, &t->packed, img->scratch, e)))
        return rc; /* better now than after an epoch has been applied */
    return decide(img, t, e);
}

u64 qcow2_tail_clusters(const struct qcow2_tail *t)
{
    return (u64)t->copy_l2 + t->copy_data;
}

void qcow2_tail_place(const struct image *img, struct qcow2_tail *t, u64 first)
{
    t->new_l2 = first << img->u.qcow2.cluster_bits;
    t->new_data = t->new_l2 + (t->copy_l2 ? img->unit : 0);
}

/* Zeros in the rest of the last cluster, as far as the file reaches. */
static int zero_rest(struct image *img, const struct qcow2_tail *t, struct sink *s, struct err *e)
{
    u64 end = round_up(t->size, img->unit);
    int rc = 0;
    for (u64 voff = t->size; !rc && voff < end;) {
        struct extent x;
        if ((rc = qcow2_look(img, voff, &x, e)))
            break;
        if (x.kind == EXTENT_DATA && x.off < t->file_size[x.slot])
            rc = plan_emit(s,
                           (struct patch){.kind = PATCH_ZERO,
                                          .slot = x.slot,
                                          .off = x.off,
                                          .len = min_u64(x.len, t->file_size[x.slot] - x.off),
                                          .why = "bytes past the end of the disk"},
                           e);
        voff += x.len;
    }
    return rc;
}

/* Bytes of the last cluster that its copy holds. */
static u64 kept_bytes(const struct image *img, const struct qcow2_tail *t)
{
    return t->whole ? img->unit : t->in;
}

/* Does the last cluster's entry change? */
static bool entry_changes(const struct qcow2_tail *t)
{
    return t->copy_data || t->hide;
}

/* The last cluster's entry as it will be. Subclusters that a copy does not keep read zero. */
static u32 new_entry(const struct image *img, const struct qcow2_tail *t, u8 out[16])
{
    u64 keep = t->copy_data ? div_up(kept_bytes(img, t), img->unit / 32) : 32;
    u64 low = (1ull << keep) - 1, high = 0xffffffff & ~low;
    u64 bitmap = t->packed.packed_len ? 0xffffffff : t->bitmap;
    put_be64(out, t->copy_data ? t->new_data | QCOW2_COPIED : t->entry);
    put_be64(out + 8, (bitmap & (low | low << 32)) | high << 32 | t->hide);
    return img->u.qcow2.l2_entry_size;
}

/* The copy of a shared L2 table. */
static int copy_l2(struct image *img, const struct qcow2_tail *t, struct sink *s, struct err *e)
{
    static const char why[] = "an L2 table of our own, for the one that a snapshot shares";
    u64 keep = entry_changes(t) ? t->idx - 1 : t->idx, size = img->u.qcow2.l2_entry_size;
    u64 rest = t->whole ? img->unit - t->idx * size : 0;
    u8 entry[16];
    int rc = keep ? plan_copy(s, t->new_l2, t->l2, keep * size, why, e) : 0;
    if (!rc && entry_changes(t))
        rc = plan_write(s, t->new_l2 + keep * size, entry, new_entry(img, t, entry),
                        "the last cluster, in it", e);
    if (!rc && rest)
        rc = plan_copy(s, t->new_l2 + t->idx * size, entry_off(img, t, t->idx), rest, why, e);
    return rc;
}

static int copy_data(struct image *img, const struct qcow2_tail *t, struct sink *s, struct err *e)
{
    if (t->packed.packed_len) {
        int rc = img->format->unpack(img, &t->packed, img->scratch, e);
        return rc ? rc
                  : plan_write(s, t->new_data, img->scratch, kept_bytes(img, t),
                               "the last cluster, decompressed", e);
    }
    /* What qcow2_tail_show() writes is not copied: the order of the two is not defined. */
    u64 len = t->show ? round_down(t->in, img->unit / 32) : kept_bytes(img, t);
    return len ? plan_copy(s, t->new_data, t->entry & QCOW2_OFFSET_MASK, len,
                           "a copy of the last cluster, which a snapshot shares", e)
               : 0;
}

int qcow2_tail_copy(struct image *img, const struct qcow2_tail *t, struct sink *s, struct err *e)
{
    int rc = t->copy_data ? copy_data(img, t, s, e) : 0;
    return rc || !t->copy_l2 ? rc : copy_l2(img, t, s, e);
}

int qcow2_tail_show(struct image *img, const struct qcow2_tail *t, u8 *buf, struct sink *s,
                    struct err *e)
{
    u64 sub = img->unit / 32, at = round_down(t->in, sub);
    u64 voff = round_down(t->size, img->unit) + at;
    u8 slot = qcow2_has_data_file(&img->u.qcow2);
    if (!t->show)
        return 0;
    memset(buf, 0, sub);
    int rc = chain_read(img, voff, buf, t->size - voff, e);
    if (rc)
        return rc;
    return plan_emit(
        s,
        (struct patch){.kind = PATCH_WRITE,
                       .slot = slot,
                       .off = (t->copy_data ? t->new_data : t->entry & QCOW2_OFFSET_MASK) + at,
                       .len = slot ? t->size - voff : sub, /* a data file is zero past its end */
                       .data = buf,
                       .why = "what the backing file shows before the old end of the disk"},
        e);
}

int qcow2_tail_zero(struct image *img, const struct qcow2_tail *t, struct sink *s, struct err *e)
{
    int rc = 0;
    if (t->stale_end && !t->copy_l2)
        rc = plan_zero(s, entry_off(img, t, t->stale_first),
                       (t->stale_end - t->stale_first) * img->u.qcow2.l2_entry_size,
                       "L2 entries past the end of the disk", e);
    return !rc && t->zero && !t->copy_data ? zero_rest(img, t, s, e) : rc;
}

int qcow2_tail_link(struct image *img, const struct qcow2_tail *t, bool l1_moves, struct sink *s,
                    struct err *e)
{
    u8 entry[16];
    if (t->copy_l2) {
        put_be64(entry, t->new_l2 | QCOW2_COPIED);
        return l1_moves ? 0
                        : plan_write(s, img->u.qcow2.l1_table_offset + t->l1_idx * 8, entry, 8,
                                     "link the L2 table of our own", e);
    }
    return entry_changes(t)
               ? plan_write(s, entry_off(img, t, t->idx - 1), entry, new_entry(img, t, entry),
                            t->copy_data ? "link the copied cluster"
                                         : "subclusters past the end read zero",
                            e)
               : 0;
}
