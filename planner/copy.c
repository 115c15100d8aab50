/* SPDX-License-Identifier: MIT
 *
 * Format-neutral reading, by walking map(): data is read where it lies, holes are looked up in the
 * backing image, packed units are unpacked. A loop, no recursion: each piece goes down the chain by
 * itself.
 */
#include "copy.h"

/* The first piece of [voff, voff+max) that one image of the chain answers for. */
static int find_piece(struct image *img, u64 voff, u64 max, struct chain_piece *p, struct err *e)
{
    u64 len = max;
    *p = (struct chain_piece){0};
    /* An image that ends inside the range does not answer for what lies past its end, and its map()
     * says so; what lies past the end of an image is zero, whatever is below it. */
    for (; img && voff < img->size; img = img->backing) {
        int rc = img->format->map(img, voff, len, &p->x, e);
        if (rc)
            return rc;
        len = p->x.len;
        if (p->x.kind == EXTENT_ZERO)
            break;
        if (p->x.kind == EXTENT_HOLE)
            continue;
        p->img = img;
        if (img->opaque)
            return FAIL(e, ERR_LUKS_UNSUPPORTED,
                        "Data of an encrypted image must be read, which needs its key", voff, 0);
        if (p->x.slot >= img->files)
            return FAIL(e, ERR_EXTERNAL_DATA_FILE,
                        "Data of an external data file must be read, which is not yet supported",
                        voff, 0);
        return 0;
    }
    p->x = (struct extent){.kind = EXTENT_ZERO, .voff = voff, .len = len};
    return 0;
}

static int unpack(struct image *img, const struct extent *x, void *out, struct err *e)
{
    return img->format->unpack && img->scratch
               ? img->format->unpack(img, x, out, e)
               : FAIL(e, ERR_UNSUPPORTED_FEATURE,
                      "Compressed data must be read, and this program has no decoder", x->voff,
                      x->len);
}

int chain_read(struct image *img, u64 voff, void *buf, u64 len, struct err *e)
{
    struct chain_piece p;
    int rc = 0;
    for (u8 *to = buf, *end = to + len; !rc && to < end; to += p.x.len, voff += p.x.len) {
        if ((rc = find_piece(img, voff, (u64)(end - to), &p, e)))
            break;
        if (!p.img) {
            memset(to, 0, p.x.len);
        } else if (p.x.kind == EXTENT_DATA) {
            rc = blk_read(p.img->file[p.x.slot], p.x.off, to, p.x.len, e);
        } else if (!(rc = unpack(p.img, &p.x, p.img->scratch, e))) {
            memcpy(to, (u8 *)p.img->scratch + (voff & (p.img->unit - 1)), p.x.len);
        }
    }
    return rc;
}

/* ---- from the beginning to the end ---- */

void chain_init(struct chain *c, struct image *top, u8 *unit)
{
    *c = (struct chain){.top = top, .unit = unit};
}

int chain_look(struct chain *c, u64 voff, u64 max, struct chain_piece *p, struct err *e)
{
    struct extent *x = &c->piece.x;
    if (voff < x->voff || voff - x->voff >= x->len) {
        int rc = find_piece(c->top, voff, max, &c->piece, e);
        if (rc) {
            x->len = 0; /* nothing is remembered */
            return rc;
        }
    }
    u64 skip = voff - x->voff;
    *p = c->piece;
    p->x.voff = voff;
    p->x.len = min_u64(x->len - skip, max);
    if (x->kind == EXTENT_DATA)
        p->x.off += skip;
    return 0;
}

/* As many whole sectors of the piece as the file has are queued, the rest is read at once. */
static int queue_data(const struct chain_piece *p, u8 *buf, struct chain_reads *r, struct err *e)
{
    struct blk *b = p->img->file[p->x.slot];
    u64 off = p->x.off, left = p->x.len, part, last = off + left - 1;
    int rc = 0;
    if (p->img->unit && !p->x.slot && last - last % p->img->unit >= b->size)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "A backing file has been truncated: data of it should stand at {off}", off,
                    b->size);
    for (; left; off += part, buf += part, left -= part) {
        part = off % b->sector || off >= b->size
                   ? 0
                   : min_u64(round_down(min_u64(left, b->size - off), b->sector), BLK_IO_MAX);
        if (!part)
            return blk_read(b, off, buf, left, e);
        if (r->cnt == BLK_BATCH_MAX && (rc = chain_wait(r, e)))
            return rc;
        r->req[r->cnt++] = (struct blk_req){b, BLK_READ, off, buf, part};
    }
    return 0;
}

static int copy_packed(struct chain *c, const struct chain_piece *p, u8 *buf, struct err *e)
{
    u64 in = p->x.voff & (p->img->unit - 1);
    if (c->unpacked != p->img || c->unpacked_off != p->x.off) {
        c->unpacked = NULL;
        int rc = unpack(p->img, &p->x, c->unit, e);
        if (rc)
            return rc;
        c->unpacked = p->img;
        c->unpacked_off = p->x.off;
    }
    memcpy(buf, c->unit + in, p->x.len);
    return 0;
}

int chain_queue(struct chain *c, u64 voff, u8 *buf, u64 len, bool *zero, struct chain_reads *r,
                struct err *e)
{
    struct chain_piece p;
    int rc = 0;
    *zero = true;
    for (u64 done = 0; !rc && done < len; done += p.x.len) {
        if ((rc = chain_look(c, voff + done, len - done, &p, e)))
            break;
        if (*zero && p.img) /* what is not known to be zero begins here */
            memset(buf, 0, done);
        *zero &= !p.img;
        if (!p.img && !*zero)
            memset(buf + done, 0, p.x.len);
        else if (p.img)
            rc = p.x.kind == EXTENT_DATA ? queue_data(&p, buf + done, r, e)
                                         : copy_packed(c, &p, buf + done, e);
    }
    return rc;
}

int chain_wait(struct chain_reads *r, struct err *e)
{
    unsigned n = r->cnt;
    r->cnt = 0;
    return n ? blk_batch(r->req, n, e) : 0;
}
