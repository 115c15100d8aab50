/* SPDX-License-Identifier: MIT
 *
 * Rebasing a VMDK: two lines of its descriptor say what it stands on, parentCID and
 * parentFileNameHint, and are edited in place. Within one sector that is the commit, else the epoch
 * is one of P10. Source: the "Virtual Disk Format 5.0", "The Header"; parity F.5.
 *
 * parentCID is what the parent's own descriptor says of its content: qemu opens a child of which
 * that is not true, and then fails to read what the child does not hold. A parent that is no VMDK
 * has none; then it is VMDK_NO_PARENT, and the name alone says that there is one.
 */
#include "members.h"
#include "vmdk_plan.h"
#include "vmdk_rebase_copy.h"

static int check_name(const char *name, struct err *e)
{
    u64 len = strlen(name);
    if (len > VMDK_NAME_MAX)
        return FAIL(e, ERR_BACKING_PATH_TOO_LONG, "Invalid argument", 0, len);
    for (u64 i = 0; i < len; i++)
        if (name[i] == '"' || name[i] == '\n' || name[i] == '\r')
            return FAIL(e, ERR_INVALID_OPTION,
                        "A VMDK's descriptor cannot hold a name with a quote or a line's end in it",
                        i, (u8)name[i]);
    return 0;
}

static bool is_vmdk(const char *format)
{
    return strlen(format) == strlen(vmdk_format.name) &&
           !memcmp(format, vmdk_format.name, strlen(format));
}

/* What identifies the new parent. In unsafe mode it may be out of reach: it is taken for the old
 * one at a new place then. */
static int new_parent_cid(const struct image *img, const struct rebase_args *a, u32 *cid,
                          struct err *e)
{
    const struct image *to = a->new_backing;
    *cid = VMDK_NO_PARENT;
    if (!*a->name)
        return 0;
    if (to && to->format) {
        *cid = to->format == &vmdk_format ? to->u.vmdk.text->cid : VMDK_NO_PARENT;
        return 0;
    }
    if (*a->format && !is_vmdk(a->format))
        return 0;
    *cid = img->u.vmdk.text->parent_cid;
    return *cid != VMDK_NO_PARENT
               ? 0
               : FAIL(e, ERR_NEW_BACKING_INCOMPATIBLE,
                      "The new parent cannot be opened, and its CID has to be stored, too", 0, 0);
}

static void put_cid(const struct image *img, u32 cid, struct vmdk_edit *d)
{
    const struct vmdk_descriptor *t = img->u.vmdk.text;
    char *digits = d->digits[0];
    if (cid == t->parent_cid)
        return;
    for (int i = 0; i < 8; i++)
        digits[i] = "0123456789abcdef"[cid >> (28 - 4 * i) & 15];
    vmdk_edit_put(d, t->parent_cid_at.off, t->parent_cid_at.len, digits, 8);
}

/* The whole line, or its value, into `to`; its length. */
static u32 compose(char *to, const char *before, const char *name, const char *behind)
{
    const char *const part[] = {before, name, behind};
    u32 n = 0;
    for (int i = 0; i < 3; i++) {
        memcpy(to + n, part[i], strlen(part[i]));
        n += (u32)strlen(part[i]);
    }
    return n;
}

/* The line behind createType's, where everyone has it, with the same end. */
static int add_line(struct image *img, const char *name, char *room, struct vmdk_edit *d,
                    struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u32 at = v->text->type_line.off + v->text->type_line.len;
    u8 end[2];
    int rc = blk_read(img->file[0], v->descriptor_offset + at - 2, end, 2, e);
    if (rc)
        return rc;
    bool last = end[1] != '\n', crlf = !last && end[0] == '\r';
    u32 n = compose(room, last ? "\nparentFileNameHint=\"" : "parentFileNameHint=\"", name,
                    crlf ? "\"\r\n" : "\"\n");
    vmdk_edit_put(d, at, 0, room, n);
    return 0;
}

static int change_line(struct image *img, const char *name, char *room, struct vmdk_edit *d,
                       struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    const struct vmdk_span *hint = &v->text->hint;
    u64 len = strlen(name), off = v->descriptor_offset + hint->off - 1;
    if (!v->text->hints)
        return add_line(img, name, room, d, e);
    int rc = blk_read(img->file[0], off, room, 1 + min_u64(hint->len, len), e);
    bool quoted = *room == '"';
    if (rc || (quoted && hint->len == len && !memcmp(room + 1, name, len)))
        return rc;
    vmdk_edit_put(d, hint->off, hint->len, room,
                  compose(room, quoted ? "" : "\"", name, quoted ? "" : "\""));
    return 0;
}

static int remove_line(const struct image *img, struct vmdk_edit *d, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    const struct vmdk_span *line = &v->text->hint_line;
    if (v->text->hints > 1) /* the next one would count then */
        return FAIL(e, ERR_OVERLAY_CORRUPT, "The descriptor has {val} lines that name a parent",
                    v->descriptor_offset + line->off, v->text->hints);
    if (v->text->hints)
        vmdk_edit_put(d, line->off, line->len, "", 0);
    return 0;
}

/* The edit that makes the descriptor say a->name; its parts lie in a->work behind what emit uses.
 */
static int reference_edit(struct image *img, const struct rebase_args *a, struct vmdk_edit *d,
                          struct err *e)
{
    u32 cid;
    assert(a->work_len >= VMDK_TEXT_WORK);
    vmdk_edit_begin(img, *a->name ? "what the image stands on" : "the image stands by itself", d);
    d->commit = true;
    int rc = check_name(a->name, e);
    if (rc || (rc = new_parent_cid(img, a, &cid, e)))
        return rc;
    put_cid(img, cid, d);
    rc = *a->name ? change_line(img, a->name, (char *)a->work + 2 * VMDK_PIECE, d, e)
                  : remove_line(img, d, e);
    return rc ? rc : vmdk_edit_end(img, d, e);
}

static int reference_epoch(struct image *img, const struct rebase_args *a, struct plan_state *state,
                           struct sink *s, struct err *e)
{
    struct resize_args same = {.work = a->work, .work_len = a->work_len};
    struct vmdk_edit text;
    int rc = reference_edit(img, a, &text, e);
    if (rc)
        return rc;
    state->undo = text.cnt && !text.whole;
    return text.cnt ? vmdk_edit_emit(img, &text, &same, s, e)
                    : plan_barrier(s, "the descriptor says so already", e);
}

static int check_supported(const struct image *img, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    if (v->kind && !v->kind->sparse)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "A flat VMDK has all of its disk, and can stand on nothing", 0, 0);
    if (v->flags & ~(u32)VMDK_FLAGS)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unknown flags in the header ({val:x})", VMH_FLAGS,
                    v->flags);
    return 0;
}

/* What a safe rebase wants to know before it changes anything, and works for hours. */
static int prepare(struct image *img, const struct rebase_args *a, struct err *e)
{
    struct vmdk_edit text;
    int rc = vmdk_rebase_check(img, a, e);
    return rc ? rc : reference_edit(img, a, &text, e);
}

int vmdk_rebase(struct image *img, const struct rebase_args *a, struct plan_state *state,
                struct sink *s, struct err *e)
{
    bool done = a->unsafe;
    int rc = check_supported(img, e);
    if (!rc && !done && !vmdk_rebase_goes_on(state))
        rc = prepare(img, a, e);
    if (!rc && !done)
        rc = vmdk_rebase_copy(img, a, state, s, &done, e);
    state->confirm = !rc && done && !a->unsafe;
    return rc || !done ? rc : reference_epoch(img, a, state, s, e);
}
