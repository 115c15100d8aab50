/* SPDX-License-Identifier: MIT
 *
 * The descriptor of a VMDK is edited, never written anew: only the digits of two numbers change,
 * and what follows them moves if there are more or fewer. The header rules over what it says, so
 * old and new numbers may stand side by side for a while; but a text whose sectors have moved only
 * in part cannot be read, nor can a number that is half the old and half the new one.
 */
#include "vmdk_plan.h"

static const char edit_why[] = "the new size in the descriptor, which the header rules over";

enum { CYLINDERS_CAP = 16383 /* of disks that say no more than an IDE disk can */ };

static void change(struct vmdk_edit *d, const struct vmdk_number *n, u64 val)
{
    char digits[20];
    u32 len = 0, k = d->cnt;
    if (!n->len || n->val == val)
        return;
    do
        digits[sizeof digits - ++len] = (char)('0' + val % 10);
    while (val /= 10);
    if (k && d->part[0].off > n->off) {
        d->part[1] = d->part[0];
        k = 0;
    }
    d->part[k].off = n->off;
    d->part[k].old_len = n->len;
    d->part[k].len = len;
    memcpy(d->part[k].digits, digits + sizeof digits - len, len);
    d->new_len += len - n->len;
    d->shifts |= len != n->len;
    d->cnt++;
}

static bool in_one_sector(u64 off, u64 len)
{
    return off / VMDK_SECTOR == (off + len - 1) / VMDK_SECTOR;
}

int vmdk_edit_init(const struct image *img, u64 capacity, struct vmdk_edit *d, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    const struct vmdk_descriptor *t = &v->text;
    u64 track;
    *d = (struct vmdk_edit){.new_len = t->text_len, .safe = true};
    if (t->sectors.val == capacity)
        return 0;
    change(d, &t->sectors, capacity);
    if (mul_fits(t->heads.val, t->track.val, &track) && track) {
        u64 cylinders = capacity / track;
        bool capped = t->cylinders.val == CYLINDERS_CAP && cylinders > CYLINDERS_CAP;
        change(d, &t->cylinders, capped ? CYLINDERS_CAP : cylinders);
    }
    if (d->new_len > v->descriptor_size)
        return FAIL(e, ERR_DESCRIPTOR_TOO_LARGE,
                    "The descriptor's text would become {val} bytes long, for which its place at "
                    "{off} has no room",
                    v->descriptor_offset, d->new_len);
    d->to = (u32)max_u64(t->text_len, d->new_len);
    if (!d->shifts)
        d->to = d->part[d->cnt - 1].off + d->part[d->cnt - 1].len;
    d->whole = in_one_sector(v->descriptor_offset + d->part[0].off, d->to - d->part[0].off);
    d->safe = d->whole || !d->shifts;
    for (unsigned i = 0; i < d->cnt && !d->shifts; i++)
        d->safe &= in_one_sector(v->descriptor_offset + d->part[i].off, d->part[i].len);
    return 0;
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
            if ((d->part[i].off == v->text.sectors.off) != line)
                continue;
            rc = plan_write(s, v->descriptor_offset + d->part[i].off, d->part[i].digits,
                            d->part[i].len, edit_why, e);
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
    u32 from = d->part[0].off, at = from, n = 0, len = v->text.text_len;
    int rc = 0;
    if (!d->cnt)
        return 0;
    if (!d->whole && !d->shifts)
        return emit_apart(img, d, s, e);
    if ((rc = blk_read(img->file[0], v->descriptor_offset, old, len, e)))
        return rc;
    memset(new, 0, VMDK_PIECE);
    for (unsigned i = 0; i < d->cnt; i++) {
        u32 keep = d->part[i].off - at;
        memcpy(new + n, old + at, keep);
        memcpy(new + n + keep, d->part[i].digits, d->part[i].len);
        n += keep + d->part[i].len;
        at = d->part[i].off + d->part[i].old_len;
    }
    memcpy(new + n, old + at, len - at);
    rc = plan_write(s, v->descriptor_offset + from, new, d->to - from, edit_why, e);
    return rc ? rc : plan_barrier(s, "the descriptor is written", e);
}
