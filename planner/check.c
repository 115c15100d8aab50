/* SPDX-License-Identifier: MIT
 *
 * The sink that proves an epoch legal before a byte is written: bounds and P8, one commit inside
 * one sector (P5), copies that do not overlap. It adds up the lengths that the epoch needs. What it
 * finds is a planner's bug, hence the assertions; only limits that a request can reach are errors.
 */
#include "sinks.h"

enum { COMMIT_SECTOR = 512, ALIVE_BYTES = 64 << 20 };

static void check_range(const struct check_sink *c, u8 slot, u64 off, u64 len)
{
    u64 end;
    assert(slot < c->img->files);
    assert(add_fits(off, len, &end) && end <= c->length[slot]);
}

static void check_commit(struct check_sink *c, const struct patch *p)
{
    assert(!c->committed && p->kind == PATCH_WRITE && c->barrier && !c->state->undo);
    assert(p->off / COMMIT_SECTOR == (p->off + p->len - 1) / COMMIT_SECTOR);
    c->committed = true;
    c->commit_digest = c->digest;
}

static int check_emit(struct sink *s, const struct patch *p, struct err *e)
{
    struct check_sink *c = (struct check_sink *)s;
    assert(p->why);
    switch (p->kind) {
    case PATCH_LENGTH:
        assert(p->slot < c->img->files);
        if (p->len > (u64)INT64_MAX)
            return FAIL(e, ERR_NO_SPACE, "The file would become longer than any file can be", 0,
                        p->len);
        if (p->len > c->length[p->slot]) {
            c->need.length[p->slot] = p->len;
            c->need.room = true;
        }
        c->length[p->slot] = p->len;
        break;
    case PATCH_WRITE:
    case PATCH_ZERO:
    case PATCH_DISCARD:
        assert(p->len && (p->kind != PATCH_WRITE || p->data));
        check_range(c, p->slot, p->off, p->len);
        break;
    case PATCH_COPY:
        assert(p->len);
        check_range(c, p->slot, p->off, p->len);
        check_range(c, p->from, p->from_off, p->len);
        assert(p->slot != p->from || !ranges_overlap(p->off, p->len, p->from_off, p->len));
        break;
    case PATCH_INSERT:
        assert(p->slot < c->img->files && p->len && p->off <= c->length[p->slot]);
        assert(c->digest.cnt == 0 && !c->state->undo);
        c->length[p->slot] += p->len; /* which the host sees to itself, and not as a growth */
        break;
    case PATCH_BARRIER:
        break;
    }
    int rc = c->state->undo ? undo_patch(&c->undo, p, e) : 0;
    if (rc)
        return rc;
    digest_patch(&c->digest, p);
    c->bytes += p->kind == PATCH_WRITE ? p->len : ALIVE_BYTES / 4096;
    if (c->bytes >= ALIVE_BYTES && c->host && c->host->alive) {
        c->bytes = 0;
        c->host->alive(c->host, c->digest.cnt);
    }
    if (p->commit)
        check_commit(c, p);
    c->barrier = p->kind == PATCH_BARRIER;
    return c->host && c->host->show ? c->host->show(c->host, c->state->epoch, p, e) : 0;
}

void check_init(struct check_sink *c, struct image *img, struct plan_host *h,
                const struct plan_state *state)
{
    *c = (struct check_sink){.sink = {check_emit}, .img = img, .barrier = true, .host = h,
                             .state = state};
    if (h && h->mem_len >= UNDO_MEM)
        undo_init(&c->undo, img, h->mem, h->mem_len);
    digest_init(&c->digest);
    for (int i = 0; i < img->files; i++)
        c->length[i] = img->file[i]->size;
}
