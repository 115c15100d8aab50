/* SPDX-License-Identifier: MIT
 *
 * See qcow2_copy.h: the data of an epoch, neighbours in one patch, and what becomes of the entries.
 */
#include "qcow2_copy.h"
#include "qcow2_data.h"

int qcow2_copy_flush(struct qcow2_copy *c, struct err *e)
{
    struct patch p = c->pending;
    c->pending.len = 0;
    return p.len ? plan_emit(c->s, p, e) : 0;
}

/* Data to `off` of a file; what continues what came before it becomes one patch with it. */
int qcow2_copy_put(struct qcow2_copy *c, u8 slot, u64 off, const u8 *bytes, u64 len, struct err *e)
{
    struct patch *p = &c->pending;
    int rc = 0;
    if (p->len && p->slot == slot && p->off + p->len == off &&
        (const u8 *)p->data + p->len == bytes) {
        p->len += len;
        return 0;
    }
    rc = qcow2_copy_flush(c, e);
    *p = (struct patch){.kind = PATCH_WRITE,
                        .slot = slot,
                        .off = off,
                        .len = len,
                        .data = bytes,
                        .kept = true,
                        .why = "what the old chain shows and the new one does not"};
    return rc;
}

/* Takes the lowest run of units out of the mask, which is not 0; how many, from *first on. */
static u32 next_units(u32 *mask, u32 *first)
{
    u32 n = 0;
    *first = (u32)__builtin_ctz(*mask);
    while (*first + n < 32 && *mask >> (*first + n) & 1)
        *mask &= ~(1u << (*first + n++));
    return n;
}

/* Data units of a cluster whose data stands at `host`. In a data file they end with the disk. */
static int put_units(struct qcow2_copy *c, const struct qcow2_touched *t, u64 host, struct err *e)
{
    u8 slot = qcow2_has_data_file(c->q) ? DATA_FILE : 0;
    u64 unit = c->scan.unit;
    const u8 *bytes = t->bytes;
    int rc = 0;
    for (u32 mask = t->data, first, n; !rc && mask; bytes += n * unit) {
        n = next_units(&mask, &first);
        u64 off = host + first * unit;
        rc = qcow2_copy_put(c, slot, off, bytes,
                            slot ? min_u64(n * unit, c->img->size - off) : n * unit, e);
    }
    return rc;
}

/* What a shared cluster holds of the overlay's own, to its copy. */
static int copy_units(struct qcow2_copy *c, u32 mask, u64 from, u64 to, struct err *e)
{
    int rc = qcow2_copy_flush(c, e);
    for (u32 first, n; !rc && mask;) {
        n = next_units(&mask, &first);
        u64 in = first * c->scan.unit;
        rc = plan_copy(c->s, to + in, from + in, n * c->scan.unit,
                       "subclusters of a cluster that a snapshot shares", e);
    }
    return rc;
}

/* Emits one cluster's data, and changes its entry in memory. */
static int put_cluster(struct qcow2_copy *c, const struct qcow2_touched *t, struct err *e)
{
    u8 *p = qcow2_copy_entry(c, t->idx);
    bool extl2 = c->q->l2_entry_size == 16, shared;
    u64 old, host;
    int rc = qcow2_copy_place(c, t, &old, &shared, e);
    if (rc)
        return rc;
    host = qcow2_has_data_file(c->q) ? t->idx << c->q->cluster_bits : t->written ? t->host : old;
    if (qcow2_copy_is_new(c, t, old, shared)) {
        host = c->next++ << c->q->cluster_bits;
        if (shared && (rc = copy_units(c, (u32)be64(p + 8), old, host, e)))
            return rc;
    }
    if (!t->written && (rc = put_units(c, t, host, e)))
        return rc;
    if (t->data || qcow2_copy_is_new(c, t, old, shared))
        put_be64(p, host | QCOW2_COPIED);
    else if (!extl2)
        put_be64(p, QCOW2_L2_ZERO);
    if (extl2)
        put_be64(p + 8, be64(p + 8) | t->data | (u64)t->zero << 32);
    u64 sector = (u64)(p - c->tables) / SECTOR;
    c->changed[sector / 8] |= (u8)(1 << sector % 8);
    return 0;
}

int qcow2_copy_put_clusters(struct qcow2_copy *c, struct err *e)
{
    struct qcow2_cursor at = qcow2_batch_begin(c);
    struct qcow2_touched t;
    int rc = 0;
    while (!rc && qcow2_batch_next(c, &at, &t))
        rc = put_cluster(c, &t, e);
    return rc ? rc : qcow2_copy_flush(c, e);
}
