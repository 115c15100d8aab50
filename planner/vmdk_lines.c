/* SPDX-License-Identifier: MIT
 *
 * A descriptor in a file of its own, edited for other extents: the numbers of sectors in the lines
 * that stay, lines that go or come, the geometry's cylinders. Every other byte stays what it is,
 * the ends of lines too. The file may become longer, and gets shorter when all is done.
 */
#include "vmdk_plan.h"

enum { SPLICES = VMDK_EXTENTS_MAX + 2, DIGITS = 20, CYLINDERS_CAP = 16383 };

/* The new text is made of the old one, and of what is put into places of it. */
struct splice {
    u32 off, old_len, len;
    const u8 *data;
};

struct rewriting {
    const struct image *img;
    const struct vmdk_layout *l;
    u8 *old, *new, *room; /* a piece each; room: for what is put in */
    u32 used;             /* of room */
    struct splice at[SPLICES];
    u32 cnt;
};

static void put_text(struct rewriting *r, const void *p, size_t len)
{
    memcpy(r->room + r->used, p, len);
    r->used += (u32)len;
}

static void put_number(struct rewriting *r, u64 val)
{
    char digits[DIGITS];
    u32 len = 0;
    do
        digits[DIGITS - ++len] = (char)('0' + val % 10);
    while (val /= 10);
    put_text(r, digits + DIGITS - len, len);
}

/* What has been put into the room since `from` replaces [off, off + old_len). */
static void splice(struct rewriting *r, u32 off, u32 old_len, u32 from)
{
    u32 i = r->cnt++;
    assert(r->cnt <= SPLICES);
    for (; i && r->at[i - 1].off > off; i--)
        r->at[i] = r->at[i - 1];
    r->at[i] = (struct splice){off, old_len, r->used - from, r->room + from};
}

static void change(struct rewriting *r, const struct vmdk_number *n, u64 val)
{
    u32 from = r->used;
    if (n->val == val)
        return;
    put_number(r, val);
    splice(r, n->off, n->len, from);
}

/* Lines for the new extents, behind the last one, and as it is. */
static void add_lines(struct rewriting *r, const struct vmdk_line *after)
{
    const struct image *img = r->img;
    u32 from = r->used, end = after->off + after->len;
    bool cr = r->old[end - 1] == '\r';
    for (u64 i = 0; i < r->l->add; i++) {
        const char *name = img->file_name[img->parts + 1 + i];
        put_text(r, "\nRW ", 4);
        put_number(r, vmdk_layout_new(r->l, i));
        put_text(r, " ", 1);
        put_text(r, after->type, strlen(after->type));
        put_text(r, " \"", 2);
        put_text(r, name, strlen(name));
        put_text(r, after->offset.len ? "\" 0" : "\"", after->offset.len ? 3 : 1);
        put_text(r, "\r", cr);
    }
    splice(r, end, 0, from);
}

static void collect(struct rewriting *r)
{
    const struct vmdk *v = &r->img->u.vmdk;
    const struct vmdk_descriptor *t = v->text;
    u64 sectors = r->l->size / VMDK_SECTOR, track;
    for (u32 i = 0; i < t->extents; i++) {
        const struct vmdk_line *l = &t->line[i];
        u32 end = l->off + l->len;
        if (i >= r->l->keep)
            splice(r, l->off, l->len + (end < t->text_len), r->used);
        else
            change(r, &l->sectors,
                   i + 1 == r->l->keep ? r->l->last : v->part[i].size / VMDK_SECTOR);
    }
    if (r->l->add)
        add_lines(r, &t->line[t->extents - 1]);
    if (!r->cnt || !t->cylinders.len || !mul_fits(t->heads.val, t->track.val, &track) || !track)
        return;
    u64 cylinders = sectors / track;
    bool capped = t->cylinders.val == CYLINDERS_CAP && cylinders > CYLINDERS_CAP;
    change(r, &t->cylinders, capped ? CYLINDERS_CAP : cylinders);
}

/* Puts the new text together; its length, or VMDK_TEXT_MAX + 1 if it is too long. */
static u32 assemble(struct rewriting *r, u32 old_len)
{
    u32 at = 0, n = 0;
    for (u32 i = 0; i <= r->cnt; i++) {
        const struct splice *x = i < r->cnt ? &r->at[i] : &(struct splice){.off = old_len};
        if (n + (x->off - at) + x->len > VMDK_TEXT_MAX)
            return VMDK_TEXT_MAX + 1;
        memcpy(r->new + n, r->old + at, x->off - at);
        n += x->off - at;
        memcpy(r->new + n, x->data ? x->data : r->old, x->len);
        n += x->len;
        at = x->off + x->old_len;
    }
    return n;
}

/* What differs. Behind a shorter text there are zeros, as far as the old one went, and behind any
 * there is one, unless the file ends there: qemu leaves bytes of longer texts. */
static void compare(const struct rewriting *r, u32 old_len, u32 new_len, u64 size,
                    struct vmdk_rewrite *w)
{
    u32 end = (u32)max_u64(old_len, new_len + (size > new_len));
    memset(r->new + new_len, 0, end - new_len);
    if (size < end)
        memset(r->old + size, 0, end - size);
    for (w->to = end; w->to && r->old[w->to - 1] == r->new[w->to - 1]; w->to--)
        ;
    while (w->from < w->to && r->old[w->from] == r->new[w->from])
        w->from++;
    w->whole = w->from == w->to || w->from / VMDK_SECTOR == (w->to - 1) / VMDK_SECTOR;
}

int vmdk_rewrite_init(const struct image *img, const struct vmdk_layout *l,
                      const struct resize_args *a, struct vmdk_rewrite *w, struct err *e)
{
    u8 *work = a->work;
    struct rewriting r = {img, l, work, work + VMDK_PIECE, work + 2 * VMDK_PIECE, .used = 0};
    u32 len = img->u.vmdk.text->text_len, new_len;
    u64 size = img->file[0]->size;
    assert(a->work_len >= 3 * VMDK_PIECE && size <= VMDK_PIECE);
    *w = (struct vmdk_rewrite){.text = r.new};
    int rc = blk_read(img->file[0], 0, r.old, size, e);
    if (rc)
        return rc;
    collect(&r);
    new_len = assemble(&r, len);
    if (new_len > VMDK_TEXT_MAX)
        return FAIL(e, ERR_DESCRIPTOR_TOO_LARGE, "The descriptor would pass {val} bytes", 0,
                    VMDK_TEXT_MAX);
    bool exact = size - len < VMDK_SECTOR && all_zero(r.old + len, size - len);
    w->length = exact ? new_len : max_u64(size, new_len);
    compare(&r, len, new_len, size, w);
    return 0;
}

int vmdk_rewrite_emit(const struct image *img, const struct vmdk_rewrite *w, struct sink *s,
                      struct err *e)
{
    static const char why[] = "the extents and their sizes in the descriptor";
    bool longer = w->length > img->file[0]->size; /* which it is no more, once that is applied */
    int rc = longer ? plan_length(s, w->length, "the descriptor's text becomes longer", e) : 0;
    if (!rc && longer && w->whole)
        rc = plan_barrier(s, "there is room for it", e);
    if (!rc && w->from < w->to)
        rc = w->whole ? plan_commit(s, w->from, w->text + w->from, w->to - w->from, why, e)
                      : plan_write(s, w->from, w->text + w->from, w->to - w->from, why, e);
    return rc ? rc : plan_barrier(s, "the descriptor is written", e);
}
