/* SPDX-License-Identifier: MIT
 *
 * What an image format is to the rest of the house: it says where bytes live; it moves none.
 * After open() the header fields in struct image are validated; table entries never are: map()
 * checks each one that it follows. Everything in struct image is borrowed from the caller.
 */
#ifndef FORMATS_FORMAT_H
#define FORMATS_FORMAT_H

#include "table.h"
#include "qcow2.h"
#include "vhd.h"
#include "vhdx.h"
#include "vmdk.h"

enum {
    IMAGE_FILES = 8,
    IMAGE_MEM = 48 << 10,
    IMAGE_UNIT_MAX = 2 << 20, /* the largest unit that can be packed */
    IMAGE_SCRATCH = 7 << 20,  /* what unpack() works in; the first IMAGE_UNIT_MAX bytes of it are
                                 the caller's, to be `out` */
    FACTS_MAX = 24,
    FACT_KEY_MAX = 32,  /* bytes, with the NUL */
    FACT_TEXT_MAX = 64, /* likewise */
};

enum extent_kind { EXTENT_DATA, EXTENT_ZERO, EXTENT_HOLE /* see backing */, EXTENT_PACKED };

/* [voff, voff+len) of the virtual disk. DATA: at `off` of file `slot`. PACKED: the compressed
 * stream lies in [off, off+packed_len) and holds one whole unit. ZERO: off != 0 if preallocated. */
struct extent {
    enum extent_kind kind;
    u64 voff, len;
    u8 slot;
    u64 off;
    u32 packed_len;
};

/* One line of what `info` shows under "Format specific information"; texts are borrowed. */
struct fact {
    const char *key;
    enum { FACT_TEXT, FACT_NUMBER, FACT_BOOL } kind;
    const char *text;
    u64 number;
};

struct facts {
    bool encrypted, dirty, corrupt;
    char backing[1024], backing_format[16]; /* as stored, NUL-terminated; "" if none */
    u32 backing_len;
    char data_file[1024]; /* the external data file's name, likewise */
    u32 data_file_len;
    bool has_data_file; /* its guest data is in another file, named or not */
    unsigned cnt;
    struct fact fact[FACTS_MAX];
};
/* At most FACTS_MAX of them, texts of at most so many bytes: more is a bug of the format's. */
void facts_text(struct facts *f, const char *key, const char *text);
void facts_number(struct facts *f, const char *key, u64 number);
void facts_bool(struct facts *f, const char *key, bool value);

struct image;

struct format {
    const char *name; /* qemu's driver name */
    bool (*probe)(struct blk *);
    /* Decodes and validates the header of img->file[0]; sets size, unit and u. */
    int (*open)(struct image *img, struct err *e);
    /* The extent that begins at voff (< img->size), at least one byte and at most max long. */
    int (*map)(struct image *img, u64 voff, u64 max, struct extent *x, struct err *e);
    /* The bytes of a PACKED extent's whole unit into out[img->unit]; needs img->scratch. NULL: this
     * program has no decoder, or the format knows no compression. */
    int (*unpack)(struct image *img, const struct extent *x, void *out, struct err *e);
    int (*facts)(struct image *img, struct facts *f, struct err *e);
};

struct image {
    const struct format *format;
    struct blk *file[IMAGE_FILES]; /* [0]: the image itself; then data file or extents */
    u8 files;
    bool probed; /* the format was guessed from content */
    bool opaque; /* its data is encrypted */
    struct image *backing;
    u64 size; /* of the virtual disk, bytes */
    u32 unit; /* cluster, block or grain, bytes; 0 for raw */
    struct window win, win2; /* win: the table in use (L1, BAT); win2: the second level */
    void *scratch;           /* IMAGE_SCRATCH bytes for unpack(), lent after open; NULL: none */
    union {
        struct qcow2 qcow2;
        struct vhd vhd;
        struct vhdx vhdx;
        struct vmdk vmdk;
    } u;
};

extern const struct format raw_format, qcow2_format, vhd_format, vhdx_format, vmdk_format;

/* The registry, in probing order; NULL-terminated. raw takes what nobody else claims. */
extern const struct format *const formats[];

/* Opens the image on `b` as `name`, or as what it looks like if name is NULL or "". `mem` is
 * IMAGE_MEM bytes that img uses from then on. ERR_UNSUPPORTED_FORMAT: no such format. */
int image_open(struct image *img, struct blk *b, const char *name, void *mem, struct err *e);
/* Reads and validates the header once more and forgets every cached table. */
int image_reopen(struct image *img, struct err *e);

#endif
