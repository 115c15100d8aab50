/* SPDX-License-Identifier: MIT
 *
 * The block interface: the one seam between the pure code and whatever holds the bytes (virtio in
 * the guest; memory, files, fault injection and crash recording in host tests).
 *
 * Bounds, alignment and read-only are checked here and nowhere else: a backend sees only ranges
 * that are aligned to blk->sector and lie below the device's capacity, which is `size` rounded up
 * to a sector. A file's length need not be a multiple of 512: a write into the last partial sector
 * may lengthen the file to the sector's end. With sectors of 4096 bytes it must be one of those.
 */
#ifndef FORMATS_BLK_H
#define FORMATS_BLK_H

#include "base.h"

enum { BLK_SECTOR_MAX = 4096, BLK_BATCH_MAX = 16, BLK_IO_MAX = 1 << 20 /* bytes a request */ };

struct blk;

struct blk_req {
    struct blk *b;
    enum { BLK_READ, BLK_WRITE, BLK_ZERO, BLK_DISCARD } op;
    u64 off;
    void *buf;
    size_t len;
};

struct blk_ops {
    int (*read)(struct blk *, u64 off, void *buf, size_t len, struct err *);
    int (*write)(struct blk *, u64 off, const void *buf, size_t len, struct err *);
    int (*zero)(struct blk *, u64 off, u64 len, bool may_unmap, struct err *);
    int (*discard)(struct blk *, u64 off, u64 len, struct err *);
    int (*flush)(struct blk *, struct err *);
    /* Re-reads the capacity after a grant; fails unless it reaches new_size. */
    int (*grow)(struct blk *, u64 new_size, struct err *);
    /* All requests in flight at once; NULL: they are performed one after another. */
    int (*batch)(struct blk_req *, unsigned n, struct err *);
};

/* What was read last, in lines. A request costs more than its bytes do, and headers are looked at
 * again and again: when a format is guessed, by open(), by planners, by read-modify-write. */
enum { BLK_LINE = 4096, BLK_LINES = 8 };
struct blk_cache {
    u8 data[BLK_LINES][BLK_LINE];
    u64 off[BLK_LINES]; /* BLK_NO_LINE: not in use */
    unsigned next;      /* which one is used next */
};
#define BLK_NO_LINE UINT64_MAX

struct blk {
    const struct blk_ops *ops;
    u64 size;   /* exact length in bytes */
    u32 sector; /* logical block size: 512 or 4096 */
    u8 slot;
    bool writable;
    bool device; /* a block device: `size` may be less than what it has (planner/plan.h) */
    u32 insert_unit; /* PATCH_INSERT: multiples of this many bytes; 0: the host cannot */
    struct blk_cache *cache; /* borrowed, and blk_forget() has been called; NULL: none */
};

/* From here on, what is read comes from the device, as it is then. */
void blk_forget(struct blk *b);

/* Any offset, length and alignment; bytes past `size` read as zero. ERR_READ_FAILED. */
int blk_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e);
/* Any alignment, by read-modify-write of the sectors at the ends; past `size` or read-only is
 * ERR_WRITE_FAILED. blk_discard is a hint: only whole sectors inside the range are dropped. */
int blk_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e);
int blk_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e);
int blk_discard(struct blk *b, u64 off, u64 len, struct err *e);
/* All completed writes are durable when this returns 0. */
int blk_flush(struct blk *b, struct err *e);
/* b->size becomes new_size (never less than before) once the backend has that much room. */
int blk_grow(struct blk *b, u64 new_size, struct err *e);
/* Up to BLK_BATCH_MAX sector-aligned requests of at most BLK_IO_MAX bytes, in flight together;
 * returns when all are done. They must not overlap: their order is not defined. */
int blk_batch(struct blk_req *r, unsigned n, struct err *e);

#endif
