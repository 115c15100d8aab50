/* SPDX-License-Identifier: MIT
 *
 * Where to hurt a qcow2 image: the places of its metadata, and the values that are evil there. The
 * mutation test goes through all of them, the fuzz target's mutator picks. Nothing here trusts the
 * image, and no code is shared with formats/.
 */
#ifndef TESTS_FUZZ_EVIL_H
#define TESTS_FUZZ_EVIL_H

#include "blk_mem.h"

/* What the header says, as far as it makes sense. */
struct layout {
    u32 version, order, rt_clusters, nb_snapshots, l1_size, header_length;
    bool ext_l2;
    u64 cs, size, length, l1_off, rt_off, snap_off; /* bytes; cs: cluster */
    u64 l1_used, l2_entries, block_entries;
};

/* False: no header that one could go by (magic, version, cluster size, refcount width). */
bool layout_read(const struct blk_mem *m, struct layout *l);

/* What the bitmaps extension says: directory, its bytes, how many bitmaps. False: there is none. */
bool layout_bitmaps(const struct blk_mem *m, const struct layout *l, u64 *dir, u64 *size, u64 *cnt);

/* One big-endian number, or the byte that holds a narrow refcount. */
struct spot {
    u64 off;
    u8 bytes; /* 1, 2, 4 or 8 */
    const char *name;
};

enum { SPOTS_MAX = 192, EVIL_MAX = 128 };

/* The header's fields and extensions, then entries of the L1 table, of L2 tables, of the refcount
 * table and blocks, of the snapshot table and the bitmap directory: first, last, and around the end
 * of the disk and of the file. Returns how many; the first *header_cnt of them are the header's
 * fields. */
unsigned layout_spots(const struct blk_mem *m, const struct layout *l, struct spot out[SPOTS_MAX],
                      unsigned *header_cnt);

/* Values for a number of so many bytes that is now `current`: limits, signs, misalignment, every
 * table of this image, the end of the file, far beyond it. None is `current`, none comes twice. */
unsigned evil_values(const struct blk_mem *m, const struct layout *l, u8 bytes, u64 current,
                     u64 out[EVIL_MAX]);

u64 spot_get(const struct blk_mem *m, const struct spot *s);
/* Big endian, into out[bytes]. */
void spot_bytes(u8 bytes, u64 val, u8 out[8]);
void spot_put(struct blk_mem *m, const struct spot *s, u64 val);

#endif
