/* SPDX-License-Identifier: MIT
 *
 * See vmdk_descriptor.h. The text is read line by line through a window; of a line that is longer
 * than VMDK_LINE_MAX, which none of the lines that matter is, the rest is skipped.
 */
#include "vmdk_descriptor.h"

struct line {
    const u8 *p;
    u32 len;   /* without its end */
    u32 off;   /* in the text */
    u32 whole; /* bytes with its end; 0: it is longer than VMDK_LINE_MAX */
};

static bool is_blank(u8 c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static u32 skip_blanks(const struct line *l, u32 i)
{
    while (i < l->len && is_blank(l->p[i]))
        i++;
    return i;
}

/* Does the line hold `word` at `i`? *end: behind it. */
static bool word_at(const struct line *l, u32 i, const char *word, u32 *end)
{
    u32 n = (u32)strlen(word);
    *end = i + n;
    return *end <= l->len && !memcmp(l->p + i, word, n);
}

/* "key = value" or "key=value": *v is the value without its quotes. */
static bool value_of(const struct line *l, const char *key, struct line *v)
{
    u32 i = skip_blanks(l, 0), end = l->len;
    if (!word_at(l, i, key, &i) || (i = skip_blanks(l, i)) >= l->len || l->p[i] != '=')
        return false;
    i = skip_blanks(l, i + 1);
    while (end > i && is_blank(l->p[end - 1]))
        end--;
    if (end > i + 1 && l->p[i] == '"' && l->p[end - 1] == '"')
        i++, end--;
    *v = (struct line){l->p + i, end - i, l->off + i, 0};
    return true;
}

static void copy_text(char *to, size_t cap, const u8 *p, u32 len)
{
    size_t n = min_u64(len, cap - 1);
    memcpy(to, p, n);
    to[n] = 0;
}

static int bad_line(const struct line *l, struct err *e)
{
    int rc =
        FAIL(e, ERR_OVERLAY_CORRUPT,
             "The descriptor's line at byte {off} of it is not understood: {name}", l->off, l->len);
    err_name(e, l->p, l->len);
    return rc;
}

static bool decimal(const struct line *l, u32 i, struct vmdk_number *n)
{
    *n = (struct vmdk_number){.off = l->off + i};
    for (; i < l->len && l->p[i] >= '0' && l->p[i] <= '9'; i++, n->len++)
        if (!mul_fits(n->val, 10, &n->val) || !add_fits(n->val, l->p[i] - '0', &n->val))
            return false;
    return n->len > 0;
}

static int hex_line(const struct line *l, const char *key, bool *has, u32 *val,
                    struct vmdk_span *at, struct err *e)
{
    struct line v;
    u32 sum = 0;
    if (*has || !value_of(l, key, &v))
        return 0;
    *at = (struct vmdk_span){v.off, v.len};
    for (u32 i = 0; i < v.len; i++) {
        u8 c = v.p[i] | 0x20;
        bool digit = c >= '0' && c <= '9' && v.p[i] == c;
        if ((!digit && (c < 'a' || c > 'f')) || i == 8)
            return bad_line(l, e);
        sum = sum << 4 | (u32)(digit ? c - '0' : c - 'a' + 10);
    }
    *val = sum;
    *has = true;
    return v.len ? 0 : bad_line(l, e);
}

static int number_line(const struct line *l, const char *key, struct vmdk_number *n, struct err *e)
{
    struct line v;
    if (n->len || !value_of(l, key, &v))
        return 0;
    return decimal(&v, 0, n) && n->len == v.len ? 0 : bad_line(l, e);
}

static int hint_line(const struct line *l, struct vmdk_descriptor *d, struct err *e)
{
    struct line v;
    if (!value_of(l, "parentFileNameHint", &v))
        return 0;
    if (!l->whole)
        return bad_line(l, e);
    if (d->hints++)
        return 0;
    copy_text(d->parent_hint, sizeof d->parent_hint, v.p, v.len);
    d->hint = (struct vmdk_span){v.off, v.len};
    d->hint_line = (struct vmdk_span){l->off, l->whole};
    return 0;
}

static void type_line(const struct line *l, struct vmdk_descriptor *d)
{
    struct line v;
    if (d->type_line.len || !value_of(l, "createType", &v))
        return;
    copy_text(d->create_type, sizeof d->create_type, v.p, v.len);
    d->type_line = (struct vmdk_span){l->off, l->whole};
}

/* From the name on; what does not look like one is none. */
static void name_and_offset(const struct line *l, u32 i, struct vmdk_line *x)
{
    u32 end;
    if (i >= l->len || l->p[i] != '"')
        return;
    for (end = ++i; end < l->len && l->p[end] != '"'; end++)
        ;
    if (end == l->len)
        return;
    x->name_off = l->off + i;
    x->name_len = end - i;
    i = skip_blanks(l, end + 1);
    if (i > end + 1 && i < l->len && decimal(l, i, &x->offset))
        i = skip_blanks(l, i + x->offset.len);
    x->whole = i == l->len;
}

static int extent_line(const struct line *l, struct vmdk_descriptor *d, struct err *e)
{
    u32 i = skip_blanks(l, 0), end;
    struct vmdk_line x = {.off = l->off, .len = l->len};
    x.writable = word_at(l, i, "RW ", &end);
    if (!x.writable && !word_at(l, i, "RDONLY ", &end) && !word_at(l, i, "NOACCESS ", &end))
        return 0;
    if (!decimal(l, skip_blanks(l, end), &x.sectors))
        return bad_line(l, e);
    i = x.sectors.off - l->off + x.sectors.len;
    if (i >= l->len || !is_blank(l->p[i]))
        return bad_line(l, e);
    i = end = skip_blanks(l, i);
    while (end < l->len && !is_blank(l->p[end]))
        end++;
    copy_text(x.type, sizeof x.type, l->p + i, end - i);
    name_and_offset(l, skip_blanks(l, end), &x);
    if (d->extents < VMDK_EXTENTS_MAX)
        d->line[d->extents] = x;
    d->extents++;
    return 0;
}

static int read_line(const struct line *l, struct vmdk_descriptor *d, struct err *e)
{
    struct vmdk_span at;
    int rc;
    if ((rc = hex_line(l, "CID", &d->has_cid, &d->cid, &at, e)) ||
        (rc = hex_line(l, "parentCID", &d->has_parent_cid, &d->parent_cid, &d->parent_cid_at, e)) ||
        (rc = hint_line(l, d, e)) ||
        (rc = number_line(l, "ddb.geometry.cylinders", &d->cylinders, e)) ||
        (rc = number_line(l, "ddb.geometry.heads", &d->heads, e)) ||
        (rc = number_line(l, "ddb.geometry.sectors", &d->track, e)))
        return rc;
    type_line(l, d);
    return extent_line(l, d, e);
}

int vmdk_descriptor_read(struct blk *b, struct window *win, u64 off, u32 slot,
                         struct vmdk_descriptor *d, struct err *e)
{
    bool fresh = true, more = true; /* fresh: at the beginning of a line */
    *d = (struct vmdk_descriptor){0};
    assert(slot <= VMDK_TEXT_MAX);
    while (more && d->text_len < slot) {
        u32 n = (u32)min_u64(slot - d->text_len, VMDK_LINE_MAX), len = 0;
        const u8 *p;
        int rc = window_get(win, b, off + d->text_len, n, off + slot, &p, e);
        if (rc)
            return rc;
        while (len < n && p[len] && p[len] != '\n')
            len++;
        struct line l = {p, len, d->text_len, len};
        if (len < n)
            l.whole += p[len] == '\n';
        else if (d->text_len + n < slot)
            l.whole = 0;
        if (fresh && (rc = read_line(&l, d, e)))
            return rc;
        more = len == n || p[len];
        fresh = len < n;
        d->text_len += len + (fresh && more);
    }
    return 0;
}

bool vmdk_descriptor_probe(const u8 *text, u32 len)
{
    static const char words[] = "# Disk DescriptorFile";
    if (len >= sizeof words - 1 && !memcmp(text, words, sizeof words - 1))
        return true;
    for (u32 at = 0, end; at < len; at = end + 1) {
        for (end = at; end < len && text[end] != '\n'; end++)
            ;
        struct line l = {text + at, end - at, at, end - at}, v;
        u32 i = skip_blanks(&l, 0);
        if (i == l.len || l.p[i] == '#')
            continue;
        return value_of(&l, "version", &v) && v.len == 1 && v.p[0] >= '1' && v.p[0] <= '3';
    }
    return false;
}
