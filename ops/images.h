/* SPDX-License-Identifier: MIT
 *
 * The images of a Request: every disk opened as what it is to the others (an image, its backing
 * file, its data file, its extents), and the next files asked for that an image names and the
 * operation depends on. The launcher attaches them, and boots again; nothing has been written by
 * then.
 */
#ifndef OPS_IMAGES_H
#define OPS_IMAGES_H

#include "op.h"

struct images {
    const instar_Request *request;
    struct image img[OP_DISKS]; /* [0]: the one that the user named */
    u8 disk[OP_DISKS];          /* of each: its own disk; img.file[1..] are disks of other roles */
    unsigned cnt;
    bool lenient;  /* all but the first may fail to open; img.format is NULL then */
    u8 *mem;       /* IMAGE_MEM of each, and one more */
    void *scratch; /* lent to all: one image is unpacked at a time */
};

/* Takes memory for the disks of op, before any of them is read. */
void images_alloc(struct images *all, const struct op *op);
/* Opens every disk of the Request; which one cannot be opened, out->error says, too. What the first
 * image's operation may write besides itself must be plain data: EXTERNAL_DATA_FILE. */
int images_open(struct images *all, struct op *op, instar_Outcome *out, struct err *e);
/* The image on the disk, or NULL. */
struct image *images_on(struct images *all, u32 disk);
/* Asks for the files that `img`, one of `all`, consists of, if they are not attached. */
int images_parts(struct images *all, struct image *img, instar_Outcome *out, struct err *e);

enum { FOLLOW_DATA = 1, FOLLOW_BACKING = 2 };
/* What `img`, one of `all`, depends on: its data file or the files that it consists of, and its
 * backing file, so far as they are wanted (a mask). img->backing is the latter; NULL: it has none,
 * or it is not wanted. If one of them is not attached, `out` asks for it. */
int images_follow(struct images *all, struct image *img, unsigned wanted, instar_Outcome *out,
                  struct err *e);
/* The same for img and for all that it stands on. */
int images_follow_chain(struct images *all, struct image *img, unsigned wanted, instar_Outcome *out,
                        struct err *e);
/* Does `out` ask for files? Then there is nothing else to be done. */
static inline bool images_wait(const instar_Outcome *out)
{
    return out->has_need_file || out->which_result == instar_Outcome_need_extents_tag;
}

#endif
