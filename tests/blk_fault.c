/* SPDX-License-Identifier: MIT
 *
 * Fault injection at the blk seam. A discard is a hint, but its failure is an error all the same.
 */
#include "blk_fault.h"

static struct blk *pass(struct blk *b)
{
    struct blk_fault *f = (struct blk_fault *)b;
    f->seen++;
    f->inner->size = max_u64(f->inner->size, b->size);
    if (f->fail_at && (f->stay ? f->seen >= f->fail_at : f->seen == f->fail_at))
        return NULL;
    return f->inner;
}

static int fault_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    struct blk *in = pass(b);
    return in ? in->ops->read(in, off, buf, len, e)
              : FAIL(e, ERR_READ_FAILED, "injected", off, len);
}

static int fault_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    struct blk *in = pass(b);
    return in ? in->ops->write(in, off, buf, len, e)
              : FAIL(e, ERR_WRITE_FAILED, "injected", off, len);
}

static int fault_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    struct blk *in = pass(b);
    return in ? in->ops->zero(in, off, len, may_unmap, e)
              : FAIL(e, ERR_WRITE_FAILED, "injected", off, len);
}

static int fault_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    struct blk *in = pass(b);
    return in ? in->ops->discard(in, off, len, e) : FAIL(e, ERR_WRITE_FAILED, "injected", off, len);
}

static int fault_flush(struct blk *b, struct err *e)
{
    struct blk *in = pass(b);
    return in ? in->ops->flush(in, e) : FAIL(e, ERR_WRITE_FAILED, "injected", 0, 0);
}

static int fault_grow(struct blk *b, u64 new_size, struct err *e)
{
    struct blk *in = pass(b);
    return in ? in->ops->grow(in, new_size, e) : FAIL(e, ERR_NO_SPACE, "injected", 0, new_size);
}

static const struct blk_ops fault_ops = {
    .read = fault_read,
    .write = fault_write,
    .zero = fault_zero,
    .discard = fault_discard,
    .flush = fault_flush,
    .grow = fault_grow,
};

void blk_fault_init(struct blk_fault *f, struct blk *inner, u64 fail_at, bool stay)
{
    *f = (struct blk_fault){.blk = *inner, .inner = inner, .fail_at = fail_at, .stay = stay};
    f->blk.ops = &fault_ops;
}
