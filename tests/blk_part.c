/* SPDX-License-Identifier: MIT
 *
 * See blk_part.h: every request goes on, at another offset.
 */
#include "blk_part.h"

static int part_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    struct blk_part *p = (struct blk_part *)b;
    return p->inner->ops->read(p->inner, p->base + off, buf, len, e);
}

static int part_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    struct blk_part *p = (struct blk_part *)b;
    return p->inner->ops->write(p->inner, p->base + off, buf, len, e);
}

static int part_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    struct blk_part *p = (struct blk_part *)b;
    return p->inner->ops->zero(p->inner, p->base + off, len, may_unmap, e);
}

static int part_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    struct blk_part *p = (struct blk_part *)b;
    return p->inner->ops->discard(p->inner, p->base + off, len, e);
}

static int part_flush(struct blk *b, struct err *e)
{
    struct blk_part *p = (struct blk_part *)b;
    return p->inner->ops->flush(p->inner, e);
}

static int part_grow(struct blk *b, u64 new_size, struct err *e)
{
    (void)b, (void)new_size, (void)e; /* the bytes are there, and zero */
    return 0;
}

static const struct blk_ops part_ops = {part_read,  part_write, part_zero, part_discard,
                                        part_flush, part_grow,  NULL};

void blk_part_init(struct blk_part *p, struct blk *inner, u64 base, u64 size)
{
    *p = (struct blk_part){{&part_ops, size, inner->sector, inner->slot, inner->writable}, inner,
                           base};
}
