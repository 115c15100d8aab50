/* SPDX-License-Identifier: MIT
 *
 * The descriptor of a VMDK is edited, never written anew: a resize changes the digits of two
 * numbers, a rebase those of one and a line, and what follows them moves if they become longer or
 * shorter. The header rules over what is said of the size, so old and new numbers may stand side by
 * side for a while; but a text whose sectors have moved only in part cannot be read, nor can a
 * number that is half the old and half the new one.
 */
#include "vmdk_plan.h"

enum { CYLINDERS_CAP = 16383 /* of disks that say no more than an IDE disk can */ };

static bool in_one_sector(u64 off, u64 len)
{
    return off / VMDK_SECTOR == (off + len - 1) / VMDK_SECTOR;
}

void vmdk_edit_begin(const struct image *img, const char *why, struct vmdk_edit *d)
{
    *d = (struct vmdk_edit){.new_len = img->u.vmdk.text->text_len, .safe = true, .why = why};
}

void vmdk_edit_put(struct vmdk_edit *d, u32 off, u32 old_len, const char *text, u32 len)
{
    u32 k = d->cnt++;
    assert(k < sizeof d->part / sizeof d->part[0]);
    if (k && d->part[0].off > off) {
        d->part[1] = d->part[0];
        k = 0;
    }
    d->part[k] = (struct vmdk_edit_part){off, old_len, len, text};
    d->new_len += len - old_len;
    d->shifts |= len != old_len;
}

int vmdk_edit_end(const struct image *img, struct vmdk_edit *d, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u32 old_len = v->text->text_len;
    u64 size = v->kind ? img->file[0]->size : v->descriptor_size;
    if (!d->cnt)
        return 0;
    if (d->new_len > (v->kind ? VMDK_TEXT_MAX : size)) /* a file of its own can become longer */
        return FAIL(e, ERR_DESCRIPTOR_TOO_LARGE,
                    "The descriptor's text would become {val} bytes long, for which its place at "
                    "{off} has no room",
                    v->descriptor_offset, d->new_len);
    d->to = d->part[d->cnt - 1].off + d->part[d->cnt - 1].len;
    if (d->shifts && d->new_len > old_len) /* a NUL must end it, whatever stands there */
        d->to = d->new_len + (d->new_len < size);
    else if (d->shifts)
        d->to = old_len;
    d->whole = in_one_sector(v->descriptor_offset + d->part[0].off, d->to - d->part[0].off);
    d->safe = d->whole || !d->shifts;
    for (unsigned i = 0; i < d->cnt && !d->shifts; i++)
        d->safe &= in_one_sector(v->descriptor_offset + d->part[i].off, d->part[i].len);
    return 0;
}

static void change(struct vmdk_edit *d, const struct vmdk_number *n, u64 val)
{
    char *digits = d->digits[d->cnt];
    u32 len = 0;
    if (!n->len || n->val == val)
        return;
    do
        digits[sizeof d->digits[0] - ++len] = (char)('0' + val % 10);
    while (val /= 10);
    vmdk_edit_put(d, n->off, n->len, digits + sizeof d->digits[0] - len, len);
}

int vmdk_edit_init(const struct image *img, u64 capacity, struct vmdk_edit *d, struct err *e)
{
    const struct vmdk_descriptor *t = img->u.vmdk.text;
    u64 track;
    vmdk_edit_begin(img, "the new size in the descriptor, which the header rules over", d);
    if (t->line[0].sectors.val == capacity)
        return 0;
    change(d, &t->line[0].sectors, capacity);
    if (mul_fits(t->heads.val, t->track.val, &track) && track) {
        u64 cylinders = capacity / track;
        bool capped = t->cylinders.val == CYLINDERS_CAP && cylinders > CYLINDERS_CAP;
        change(d, &t->cylinders, capped ? CYLINDERS_CAP : cylinders);
    }
    return vmdk_edit_end(img, d, e);
}

/* Numbers in sectors of their own. The extent's line, which tells the next run whether there is
 * something to mend, is the last. */
static int emit_apart(const struct image *img, const struct vmdk_edit *d, struct sink *s,
                      struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    int rc = 0;
    for (int line = 0; !rc && line < 2; line++)
        for (unsigned i = 0; !rc && i < d->cnt; i++) {
            if ((d->part[i].off == v->text->line[0].sectors.off) != line)
                continue;
            rc = plan_write(s, v->descriptor_offset + d->part[i].off, d->part[i].text,
                            d->part[i].len, d->why, e);
            if (!rc)
                rc = plan_barrier(s, "the descriptor is written", e);
        }
    return rc;
}

int vmdk_edit_emit(const struct image *img, const struct vmdk_edit *d, const struct resize_args *a,
                   struct sink *s, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u8 *old = a->work, *new = old + VMDK_PIECE;
    u32 from = d->part[0].off, at = from, n = 0, len = v->text->text_len;
    int rc = 0;
    if (!d->cnt)
        return 0;
    if (!d->whole && !d->shifts && !d->commit)
        return emit_apart(img, d, s, e);
    if ((rc = blk_read(img->file[0], v->descriptor_offset, old, len, e)))
        return rc;
    memset(new, 0, d->to - from);
    for (unsigned i = 0; i < d->cnt; i++) {
        u32 keep = d->part[i].off - at;
        memcpy(new + n, old + at, keep);
        memcpy(new + n + keep, d->part[i].text, d->part[i].len);
        n += keep + d->part[i].len;
        at = d->part[i].off + d->part[i].old_len;
    }
    memcpy(new + n, old + at, len - at);
    u64 off = v->descriptor_offset + from, end = v->descriptor_offset + d->to;
    bool commit = d->commit && d->whole, longer = end > img->file[0]->size;
    if (longer && ((rc = plan_length(s, end, "the descriptor's text becomes longer", e)) ||
                   (commit && (rc = plan_barrier(s, "there is room for it", e)))))
        return rc;
    rc = commit ? plan_commit(s, off, new, d->to - from, d->why, e)
                               : plan_write(s, off, new, d->to - from, d->why, e);
    return rc ? rc : plan_barrier(s, "the descriptor is written", e);
}
