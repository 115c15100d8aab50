/* SPDX-License-Identifier: MIT
 *
 * The reference to the backing file. Source: docs/interop/qcow2.txt, "Header", "Header extensions",
 * "Backing file name": the extensions follow the header and end with a marker, the name lies
 * anywhere behind that in the same cluster.
 *
 * Extensions stay in order, byte for byte. What the old header does not reach can be written
 * beforehand, so the commit is the first sector, as long as nothing that the old header reaches
 * changes behind it: hence a backing format that is new comes first, as in images of qemu's, or
 * last if the others cannot move for it; and a name that would overwrite the old one is put behind
 * that. Where even so something must change that is in use, the epoch is one of P10.
 */
#include "qcow2_rebase.h"
#include "qcow2_header.h"

enum { SECTOR = 512, EXT_HEAD = 8, NAME_MAX_LEN = 1023, FORMAT_MAX_LEN = 15 };

/* The header cluster. */
struct layout {
    const struct qcow2 *q;
    u8 *old, *now; /* as it is; as it is to be */
    u32 len;
    u32 old_end, end; /* behind the mark that ends the extensions */
    u32 used;         /* nothing changes behind this */
};

static int no_room(const struct layout *l, u64 need, struct err *e)
{
    return FAIL(e, ERR_BACKING_PATH_TOO_LONG, "No space left in the file header", l->len, need);
}

static u32 name_offset(const struct qcow2 *q)
{
    return q->backing_file_size ? (u32)q->backing_file_offset : 0;
}

static u32 name_size(const struct qcow2 *q)
{
    return q->backing_file_offset ? q->backing_file_size : 0;
}

/* Does the old header lead to this byte? */
static bool reached(const struct layout *l, u32 off)
{
    u32 name = name_offset(l->q);
    return off < l->old_end || (off >= name && off - name < name_size(l->q));
}

/* Would these bytes at `off` change what the old header reaches, behind its first sector? */
static bool clashes(const struct layout *l, u32 off, const void *bytes, u32 len)
{
    for (u32 i = off < SECTOR ? SECTOR - off : 0; i < len; i++)
        if (reached(l, off + i) && l->old[off + i] != ((const u8 *)bytes)[i])
            return true;
    return false;
}

/* ---- the extensions ---- */

/* Appends one; what is between its end and the next one's beginning is zero unless `data` has it.
 */
static int put_extension(struct layout *l, u32 type, u32 len, const void *data, u32 data_len,
                         struct err *e)
{
    u64 whole = EXT_HEAD + round_up(len, 8);
    if (l->end + whole > l->len)
        return no_room(l, l->end + whole, e);
    u8 *p = l->now + l->end;
    memset(p, 0, whole);
    put_be32(p, type);
    put_be32(p + 4, len);
    memcpy(p + EXT_HEAD, data, data_len);
    l->end += (u32)whole;
    return 0;
}

static int put_format(struct layout *l, const char *format, bool *done, struct err *e)
{
    u32 len = (u32)strlen(format);
    if (*done)
        return 0;
    *done = true;
    return put_extension(l, (u32)QEXT_BACKING_FORMAT, len, format, len, e);
}

enum placing { FORMAT_FIRST, FORMAT_LAST };

/* All of them into l->now. `format` takes the place of the one that there was, else first or last.
 */
static int put_extensions(struct layout *l, const char *format, enum placing placing, struct err *e)
{
    u32 off = l->q->header_length, end = name_size(l->q) ? name_offset(l->q) : l->len;
    bool done = !*format;
    int rc = 0;
    l->end = off;
    if (!l->q->backing_format_offset && placing == FORMAT_FIRST)
        rc = put_format(l, format, &done, e);
    while (!rc && off < end) {
        const u8 *p = l->old + off;
        if (end - off < EXT_HEAD || (be32(p) && be32(p + 4) > end - off - EXT_HEAD))
            return FAIL(e, ERR_PARSE_FAILED, "Header extension too large", off, end - off);
        u32 type = be32(p), len = be32(p + 4);
        if (type == QEXT_END) {
            off += EXT_HEAD;
            break;
        }
        u32 room = (u32)min_u64(round_up(len, 8), end - off - EXT_HEAD);
        rc = type == (u32)QEXT_BACKING_FORMAT ? put_format(l, format, &done, e)
                                              : put_extension(l, type, len, p + EXT_HEAD, room, e);
        off += EXT_HEAD + room;
    }
    l->old_end = off;
    if (!rc)
        rc = put_format(l, format, &done, e);
    return rc ? rc : put_extension(l, QEXT_END, 0, "", 0, e);
}

static bool extensions_clash(const struct layout *l)
{
    u32 first = l->q->header_length;
    return clashes(l, first, l->now + first, l->end - first);
}

static int choose_extensions(struct layout *l, const char *format, struct err *e)
{
    int rc = put_extensions(l, format, FORMAT_FIRST, e);
    if (rc || !extensions_clash(l))
        return rc;
    memcpy(l->now, l->old, l->len);
    return put_extensions(l, format, FORMAT_LAST, e);
}

/* ---- the name ---- */

/* Where the name goes: where it is, right behind the extensions, or behind all that is in use. */
static int place_name(const struct layout *l, const char *name, u32 len, u32 *at, struct err *e)
{
    u32 old = name_offset(l->q), old_len = name_size(l->q);
    if (old >= l->end && old_len == len && memcmp(l->old + old, name, len) == 0) {
        *at = old;
        return 0;
    }
    *at = l->end;
    if (l->len - *at < len)
        return no_room(l, *at + (u64)len, e);
    u64 behind = max_u64(max_u64(l->end, l->old_end), (u64)old + old_len);
    if (clashes(l, *at, name, len) && behind + len <= l->len)
        *at = (u32)behind;
    return 0;
}

/* ---- the patches ---- */

/* The next run of bytes in [*off, end) that change; it may include some between sectors that don't.
 * Its length; 0: there is none. */
static u32 next_change(const struct layout *l, u32 *off, u32 end)
{
    while (*off < end && l->now[*off] == l->old[*off])
        ++*off;
    u32 last = *off;
    for (u32 i = *off; i < end && i / SECTOR <= last / SECTOR + 1; i++)
        if (l->now[i] != l->old[i])
            last = i;
    return *off < end ? last + 1 - *off : 0;
}

static int write_changes(const struct layout *l, u32 off, const char *why, struct sink *s,
                         struct err *e)
{
    int rc = 0;
    for (u32 n; !rc && (n = next_change(l, &off, l->used)); off += n)
        rc = plan_write(s, off, l->now + off, n, why, e);
    return rc;
}

/* A file may end inside its header cluster. */
static int make_room(const struct image *img, const struct layout *l, struct sink *s, struct err *e)
{
    return img->file[0]->size < l->len
               ? plan_length(s, l->len, "the file ends with a whole header cluster", e)
               : 0;
}

static int change_at_once(const struct image *img, const struct layout *l, struct sink *s,
                          struct err *e)
{
    u32 off = SECTOR, first = 0;
    int rc = qcow2_header_autoclear(img, s, e);
    if (rc)
        return rc;
    if (next_change(l, &off, l->used)) {
        if ((rc = make_room(img, l, s, e)) ||
            (rc = write_changes(l, SECTOR, "where the header does not look yet", s, e)) ||
            (rc = plan_barrier(s, "what the header is about to refer to is in place", e)))
            return rc;
    }
    u32 n = next_change(l, &first, (u32)min_u64(SECTOR, l->used));
    if (!n)
        return 0;
    rc = plan_commit(s, first, l->now + first, n, "what the image stands on", e);
    return rc ? rc : plan_barrier(s, "the new header is durable", e);
}

static int change_under_journal(const struct image *img, const struct layout *l,
                                struct plan_state *state, struct sink *s, struct err *e)
{
    state->undo = true;
    int rc = make_room(img, l, s, e);
    if (!rc)
        rc = write_changes(l, 0, "what the image stands on, and what has to move for it", s, e);
    return rc ? rc : plan_barrier(s, "the new header is durable", e);
}

static int read_cluster(struct image *img, const struct rebase_args *a, struct layout *l,
                        struct err *e)
{
    *l = (struct layout){.q = &img->u.qcow2, .old = a->work, .len = img->unit};
    l->now = l->old + l->len;
    assert(a->work_len >= 2 * (size_t)l->len);
    int rc = 0;
    for (u32 off = 0, n; !rc && off < l->len; off += n) {
        n = (u32)min_u64(l->len - off, BLK_IO_MAX);
        rc = blk_read(img->file[0], off, l->old + off, n, e);
    }
    memcpy(l->now, l->old, l->len);
    return rc;
}

int qcow2_rebase_header(struct image *img, const struct rebase_args *a, struct plan_state *state,
                        struct sink *s, struct err *e)
{
    struct layout l;
    u32 len = (u32)strlen(a->name), at = 0;
    if (len > NAME_MAX_LEN || strlen(a->format) > FORMAT_MAX_LEN)
        return FAIL(e, ERR_BACKING_PATH_TOO_LONG, "Invalid argument", 0, len);
    int rc = read_cluster(img, a, &l, e);
    if (rc || (rc = choose_extensions(&l, len ? a->format : "", e)) ||
        (len && (rc = place_name(&l, a->name, len, &at, e))))
        return rc;
    bool journal = extensions_clash(&l) || clashes(&l, at, a->name, len);
    l.used = (u32)max_u64(l.end, at + len);
    memcpy(l.now + at, a->name, len);
    put_be64(l.now + QH_BACKING_FILE_OFFSET, at);
    put_be32(l.now + QH_BACKING_FILE_SIZE, len);
    if (l.q->version > 2)
        put_be64(l.now + QH_AUTOCLEAR_FEATURES, l.q->autoclear & QCOW2_AUTOCLEAR_KNOWN);
    return journal ? change_under_journal(img, &l, state, s, e) : change_at_once(img, &l, s, e);
}
