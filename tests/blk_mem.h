/* SPDX-License-Identifier: MIT
 *
 * A disk in memory: sparse, so that petabytes cost what is written to them. One may lie over
 * another (frozen) one and see its bytes where it has none of its own: a copy costs nothing.
 */
#ifndef TESTS_BLK_MEM_H
#define TESTS_BLK_MEM_H

#include "blk.h"

enum { MEM_PAGE = 4096 };

struct mem_slot {
    u64 page; /* its number plus one; 0: free */
    u8 *data; /* NULL: all zero */
};

struct blk_mem {
    struct blk blk; /* first: a struct blk * is a struct blk_mem * */
    const struct blk_mem *base;
    u64 length; /* of the file; blk.size is what the code under test believes */
    u64 limit;  /* grow() fails past it; 0: none */
    struct mem_slot *slots;
    size_t slots_cnt, pages;
    u64 bytes_read, bytes_written, reads, writes, flushes, grows;
};

void blk_mem_init(struct blk_mem *m, u64 length, u32 sector);
void blk_mem_over(struct blk_mem *m, const struct blk_mem *base);
void blk_mem_free(struct blk_mem *m);

/* Straight access, not counted, no rules; zeros past the end; put() lengthens the file. */
void blk_mem_get(const struct blk_mem *m, u64 off, void *buf, size_t len);
void blk_mem_put(struct blk_mem *m, u64 off, const void *buf, size_t len);
void blk_mem_clear(struct blk_mem *m, u64 off, u64 len);
/* The file's length becomes exactly this; what is cut off reads zero ever after. */
void blk_mem_truncate(struct blk_mem *m, u64 length);
/* Known to read zero, without looking at bytes? */
bool blk_mem_hole(const struct blk_mem *m, u64 off, size_t len);
/* Same length, same bytes? *at: the first difference. */
bool blk_mem_equal(const struct blk_mem *a, const struct blk_mem *b, u64 *at);
/* Sparse files. False: errno says why. */
bool blk_mem_save(const struct blk_mem *m, const char *path);
bool blk_mem_load(struct blk_mem *m, const char *path, u32 sector);

#endif
