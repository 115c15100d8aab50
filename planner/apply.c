/* SPDX-License-Identifier: MIT
 *
 * The sink that performs patches: the one file that writes. Nothing is batched across a barrier,
 * and a barrier returns only when everything before it is durable. Copies go through the buffer
 * that the operation lends, several requests in flight.
 */
#include "sinks.h"

/* One round of a copy: up to mem_len bytes, whole sectors, read together and written together. */
static int copy_round(struct apply_sink *a, struct blk *from, u64 from_off, struct blk *to, u64 off,
                      u64 len, struct err *e)
{
    struct blk_req in[BLK_BATCH_MAX], out[BLK_BATCH_MAX];
    unsigned n = 0;
    for (u64 done = 0; done < len; n++) {
        size_t part = (size_t)min_u64(len - done, BLK_IO_MAX);
        u8 *buf = (u8 *)a->host->mem + done;
        assert(n < BLK_BATCH_MAX);
        in[n] = (struct blk_req){from, BLK_READ, from_off + done, buf, part};
        out[n] = (struct blk_req){to, BLK_WRITE, off + done, buf, part};
        done += part;
    }
    int rc = blk_batch(in, n, e);
    return rc ? rc : blk_batch(out, n, e);
}

static int copy(struct apply_sink *a, const struct patch *p, struct err *e)
{
    struct blk *from = a->img->file[p->from], *to = a->img->file[p->slot];
    u64 sector = max_u64(from->sector, to->sector);
    u64 max = min_u64(a->host->mem_len, (u64)BLK_BATCH_MAX * BLK_IO_MAX);
    bool aligned = p->off % sector == 0 && p->from_off % sector == 0;
    int rc = 0;
    for (u64 done = 0; !rc && done < p->len;) {
        u64 part = min_u64(p->len - done, max);
        if (aligned && part >= sector) {
            part = round_down(part, sector);
            rc = copy_round(a, from, p->from_off + done, to, p->off + done, part, e);
        } else {
            rc = blk_read(from, p->from_off + done, a->host->mem, (size_t)part, e);
            if (!rc)
                rc = blk_write(to, p->off + done, a->host->mem, (size_t)part, e);
        }
        done += part;
    }
    return rc;
}

/* A long write goes in several requests at once, if it is one of whole sectors. */
static int write(struct blk *b, u64 off, const u8 *data, u64 len, struct err *e)
{
    int rc = 0;
    if (len <= BLK_IO_MAX || off % b->sector || len % b->sector || off + len > b->size)
        return blk_write(b, off, data, len, e);
    for (u64 done = 0; !rc && done < len;) {
        struct blk_req out[BLK_BATCH_MAX];
        unsigned n = 0;
        for (u64 part; n < BLK_BATCH_MAX && done < len; n++, done += part) {
            part = min_u64(len - done, BLK_IO_MAX);
            out[n] = (struct blk_req){b, BLK_WRITE, off + done, (void *)(uintptr_t)(data + done),
                                      part};
        }
        rc = blk_batch(out, n, e);
    }
    return rc;
}

/* What a file gains reads zero by itself; what an image gains of its device does not. */
static int lengthen(struct blk *b, u64 len, struct err *e)
{
    u64 old = b->size;
    int rc = blk_grow(b, len, e);
    return rc || !b->device || len <= old ? rc : blk_zero(b, old, len - old, true, e);
}

static int flush_all(struct image *img, struct err *e)
{
    int rc = 0;
    for (int i = 0; !rc && i < img->files; i++)
        rc = blk_flush(img->file[i], e);
    return rc;
}

static int apply_emit(struct sink *s, const struct patch *p, struct err *e)
{
    struct apply_sink *a = (struct apply_sink *)s;
    struct blk *b = a->img->file[p->slot];
    int rc;
    digest_patch(&a->digest, p);
    if (p->commit &&
        (a->digest.hash != a->commit_digest.hash || a->digest.cnt != a->commit_digest.cnt))
        return plan_changed(p->off, 0, e);
    switch (p->kind) {
    case PATCH_LENGTH:
        return lengthen(b, p->len, e);
    case PATCH_WRITE:
        return write(b, p->off, p->data, p->len, e);
    case PATCH_ZERO:
        return blk_zero(b, p->off, p->len, p->may_unmap, e);
    case PATCH_COPY:
        return copy(a, p, e);
    case PATCH_DISCARD:
        return blk_discard(b, p->off, p->len, e);
    case PATCH_INSERT:
        if (a->host->dry_run)
            return FAIL(e, ERR_SCRATCH_TOO_SMALL, "An insertion cannot be rehearsed", p->off,
                        p->len);
        blk_forget(b);
        rc = a->host->insert(a->host, a->epoch, p->slot, p->off, p->len, e);
        b->size += rc ? 0 : p->len;
        return rc;
    case PATCH_BARRIER:
        return flush_all(a->img, e);
    }
    assert(!"a patch of no kind");
    return 0;
}

void apply_init(struct apply_sink *a, struct image *img, const struct check_sink *checked,
                struct plan_host *h)
{
    assert(h->mem_len >= BLK_IO_MAX);
    *a = (struct apply_sink){{apply_emit}, img, {0}, checked->commit_digest, h,
                             checked->state->epoch};
    digest_init(&a->digest);
}
