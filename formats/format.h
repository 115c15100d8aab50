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
    IMAGE_FILES = 24, /* as many disks as a VM can have */
    IMAGE_WINDOW = 24 << 10,
    IMAGE_OWN = 8 << 10,
    IMAGE_MEM = 2 * IMAGE_WINDOW + IMAGE_OWN,
    IMAGE_UNIT_MAX = 2 << 20, /* the largest unit that can be packed */
    IMAGE_SCRATCH = 7 << 20,  /* what unpack() works in; the first IMAGE_UNIT_MAX bytes of it are
                                 the caller's, to be `out` */
    IMAGE_NAME_MAX = 255, /* bytes of a file's name */
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
    bool parent_lost; /* what it does not hold is a parent's, which this program cannot read */
    unsigned cnt;
    struct fact fact[FACTS_MAX];
};
/* At most FACTS_MAX of them, texts of at most so many bytes: more is a bug of the format's. */
void facts_text(struct facts *f, const char *key, const char *text);
void facts_number(struct facts *f, const char *key, u64 number);
void facts_bool(struct facts *f, const char *key, bool value);

/* One of the pieces that an image says it consists of. */
struct image_part {
    const char *kind; /* the format's word for it; borrowed from the image */
    u64 len;          /* bytes of the disk */
    u32 unit;         /* 0: it has none, or that is not known yet */
    u32 name_len;
    char name[IMAGE_NAME_MAX]; /* of its file, as stored: not ended by a NUL */
};

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
    /* Piece idx, from 0; *more is false: there are so few. NULL: the format has no such list. */
    int (*part)(struct image *img, unsigned idx, struct image_part *p, bool *more, struct err *e);
};

struct image {
    const struct format *format;
    struct blk *file[IMAGE_FILES]; /* [0]: the image itself; then data file or extents */
    u8 files;
    const char *file_name[IMAGE_FILES]; /* of new files (see image_lacks); else NULL */
    u8 parts;    /* that lie in files of their own, which are file[1] and so on (see image_lacks) */
    bool probed; /* the format was guessed from content */
    bool opaque; /* its data is encrypted */
    struct image *backing;
    u64 size; /* of the virtual disk, bytes */
    u32 unit; /* cluster, block or grain, bytes; 0 for raw */
    struct window win, win2; /* win: the table in use (L1, BAT); win2: the second level */
    void *own;               /* IMAGE_OWN bytes for what the format keeps */
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
/* Are there parts whose files are not attached? Then only size, facts() and part() are of use. To
 * attach one, add it to file[]; when none is lacking, image_reopen(). Files behind the last part's
 * are new ones: a plan may make parts of them. */
static inline bool image_lacks(const struct image *img)
{
    return img->files <= img->parts;
}
/* Reads and validates the header once more and forgets every cached table. */
int image_reopen(struct image *img, struct err *e);

#endif
