/* SPDX-License-Identifier: MIT
 *
 * The guest's last word, judged. Its error is a constant text of ours if the guest is what it
 * should be, and anything at all if it is not: {off}, {val}, {val:x} and {name} are replaced in one
 * pass, and the result is escaped as a whole.
 */
#include "outcome.h"
#include "chain.h"
#include "codes.h"
#include "growth.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>

static bool follows(const char **p, const char *word)
{
    size_t len = strlen(word);
    if (strncmp(*p, word, len) != 0)
        return false;
    *p += len;
    return true;
}

/* error->what, its placeholders replaced, nothing escaped yet. */
static void expand(FILE *to, const instar_Error *error)
{
    const char *p = error->what;
    while (*p) {
        if (follows(&p, "{off}"))
            fprintf(to, "%llu", (unsigned long long)error->off);
        else if (follows(&p, "{val}"))
            fprintf(to, "%llu", (unsigned long long)error->val);
        else if (follows(&p, "{val:x}"))
            fprintf(to, "%llx", (unsigned long long)error->val);
        else if (follows(&p, "{name}"))
            fwrite(error->name.bytes, 1, error->name.size, to);
        else
            putc(*p++, to);
    }
}

/* What the read side refuses, it refuses to open, and so does what names a disk; where there is no
 * way to write a reference down, qemu-img has words for that. */
static void put_context(const instar_Error *error, const struct job *job, const struct disk *disks,
                        unsigned count, struct err *e)
{
    bool rebase = job->request.which_op == instar_Request_rebase_tag;
    if (strncmp(error->file, "formats/", 8) == 0 || error->disk) {
        const struct disk *d = error->disk < count ? &disks[error->disk] : NULL;
        if (rebase && error->disk && error->disk == job->request.op.rebase.new_backing)
            err_prefix(e, "Could not open new backing file '%s': ", job->rebase.backing);
        else if (d && error->disk)
            err_prefix(e, "Could not open '%s': Could not open %s '%s': ", job->image,
                       policy_kind(d->role), d->name);
        else
            err_prefix(e, "Could not open '%s': ", job->image);
    } else if (rebase && (error->code == instar_Code_BACKING_PATH_TOO_LONG ||
                          error->code == instar_Code_DESCRIPTOR_TOO_LARGE ||
                          error->code == instar_Code_UNSUPPORTED_FORMAT)) {
        err_prefix(e, "Could not change the backing file to '%s': ", job->rebase.backing);
    }
}

int outcome_error(const instar_Error *error, const struct job *job, const struct disk *disks,
                  unsigned count, struct err *e)
{
    char *raw = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&raw, &len);
    if (!to)
        abort();
    expand(to, error);
    fclose(to);
    char *safe = text_safe_copy(raw, len);
    const char *text = *safe ? safe : code_row(error->code)->text;
    err_set(e, error->code, "%s", text);
    put_context(error, job, disks, count, e);
    free(safe);
    free(raw);
    if (job->verbose && *error->file) {
        fputs("refused at ", stderr);
        text_safe(stderr, error->file, strlen(error->file), TEXT_ONE_LINE);
        fprintf(stderr, ":%u\n", (unsigned)error->line);
    }
    return -1;
}

/* ---- a file that an image names ---- */

/* May the request need it? Shrinking looks at no backing file, an unsafe rebase at no data. */
static bool may_need(const struct job *job, const instar_NeedFile *need)
{
    const instar_Request *r = &job->request;
    bool data = need->role == instar_Role_ROLE_DATA;
    bool backing = need->role == instar_Role_ROLE_BACKING;
    if (r->which_op == instar_Request_rebase_tag)
        return backing || (data && !r->op.rebase.unsafe);
    return r->which_op == instar_Request_resize_tag &&
           (data || (backing && r->op.resize.kind != instar_SizeKind_MINUS));
}

/* Is it one that disk need->slot can name, and has not been asked for? */
static bool in_turn(const instar_NeedFile *need, const struct disk *disks, unsigned count)
{
    if (need->slot >= count || disks[need->slot].role == instar_Role_ROLE_DATA ||
        disks[need->slot].role == instar_Role_ROLE_EXTENT)
        return false;
    if (need->role == instar_Role_ROLE_BACKING)
        return !disks[need->slot].backing && !disks[need->slot].lost;
    bool asked = false;
    for (unsigned i = 1; i < count; i++)
        asked |= disks[i].of == need->slot && disks[i].role == need->role;
    return !asked;
}

/* Has nothing been granted or written? Then a file may be asked for. */
static bool untouched(const struct disk *disks, unsigned count)
{
    bool touched = false;
    for (unsigned i = 0; i < count; i++)
        touched |= disks[i].granted || disks[i].undo || disk_state(&disks[i]) == DISK_TOUCHED;
    return !touched;
}

static int check_extents(const instar_NeedExtents *need, const struct job *job,
                         const struct disk *disks, unsigned count, struct err *e)
{
    bool asked = false, resize = job->request.which_op == instar_Request_resize_tag;
    for (unsigned i = 1; i < count; i++)
        asked |= disks[i].of == need->slot && disks[i].role == instar_Role_ROLE_EXTENT &&
                 (!need->create || disks[i].made);
    if (!untouched(disks, count) || asked || need->slot >= count ||
        disks[need->slot].role == instar_Role_ROLE_DATA ||
        disks[need->slot].role == instar_Role_ROLE_EXTENT ||
        (need->names_count == 0) != (need->create != 0))
        return err_set(e, instar_Code_PROTOCOL, "The guest asked for extents out of turn");
    bool changes = resize || job->request.which_op == instar_Request_rebase_tag;
    if (need->writable && (need->slot != 0 || !changes || !job->command->writes))
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest asked for extents to write that it may only read");
    if (need->create &&
        (!need->writable || !resize || need->number == 0 || need->number > 999 ||
         (strcmp(need->letter, "s") != 0 && strcmp(need->letter, "f") != 0)))
        return err_set(e, instar_Code_PROTOCOL, "The guest asked for new extents of no sense");
    if (need->names_count > CHAIN_DISKS - count || need->create > CHAIN_DISKS - count)
        return err_set(e, instar_Code_CHAIN_DEPTH,
                       "The image with all its files is more than %d disks", CHAIN_DISKS);
    return 0;
}

static int check_need(const instar_NeedFile *need, const struct job *job, const struct disk *disks,
                      unsigned count, struct err *e)
{
    if (!untouched(disks, count) || !may_need(job, need) || !in_turn(need, disks, count))
        return err_set(e, instar_Code_PROTOCOL, "The guest asked for a file out of turn");
    if (need->writable && (need->role != instar_Role_ROLE_DATA || need->slot != 0 ||
                           !job->command->writes))
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest asked for a file to write that it may only read");
    return 0;
}

/* ---- lengths ---- */

struct outcome_files outcome_files(const instar_Outcome *out)
{
    const instar_ResizeResult *r = &out->result.resize;
    const instar_RebaseResult *b = &out->result.rebase;
    if (out->which_result == instar_Outcome_resize_tag)
        return (struct outcome_files){r->target_format,      r->probed,
                                      r->rebuilt,            r->more,
                                      r->file_size_before,   r->file_size_after,
                                      r->eventual_file_size, r->files_after,
                                      r->files_after_count};
    if (out->which_result == instar_Outcome_rebase_tag)
        return (struct outcome_files){b->overlay_format,     b->probed,
                                      b->rebuilt,            b->more,
                                      b->file_size_before,   b->file_size_after,
                                      b->eventual_file_size, b->files_after,
                                      b->files_after_count};
    return (struct outcome_files){.format = ""};
}

/* The entry for the slot in files_after, or NULL. */
static const instar_FileLength *file_after(const struct outcome_files *f, unsigned slot)
{
    for (unsigned i = 0; i < f->others; i++)
        if (f->other[i].slot == slot)
            return &f->other[i];
    return NULL;
}

uint64_t outcome_length(const instar_Outcome *out, const struct disk *d, unsigned slot)
{
    const struct outcome_files f = outcome_files(out);
    const instar_FileLength *other = slot ? file_after(&f, slot) : NULL;
    return slot == 0 ? f.after : other ? other->length : d->length;
}

/* The length that a file is to get: never more than was granted, never less than it had unless the
 * user allowed to shrink. In a dry run nothing is granted, and nothing done. */
static bool length_plausible(const struct job *job, const struct disk *d, uint64_t length)
{
    const instar_Request *r = &job->request;
    bool shrink = r->which_op == instar_Request_resize_tag && r->op.resize.shrink;
    uint64_t most = d->granted > d->length ? d->granted : d->length;
    if (r->dry_run)
        most = UINT64_MAX;
    return length >= (shrink ? 0 : d->length) && length <= most;
}

/* Each file but the image's own once, if it may be written; what has grown is not forgotten. */
static bool files_plausible(const struct outcome_files *f, const struct job *job,
                            const struct disk *disks, unsigned count)
{
    for (unsigned i = 0; i < f->others; i++) {
        const instar_FileLength *l = &f->other[i];
        if (l->slot == 0 || l->slot >= count || !disks[l->slot].target ||
            file_after(f, l->slot) != l || !length_plausible(job, &disks[l->slot], l->length))
            return false;
    }
    for (unsigned i = 1; i < count; i++)
        if (disks[i].granted > disks[i].length && !file_after(f, i))
            return false;
    return f->before == disks[0].length && length_plausible(job, &disks[0], f->after);
}

/* Extents of the image itself, each once, that get no length besides. */
static bool dropped_plausible(const instar_ResizeResult *r, const struct outcome_files *f,
                              const struct job *job, const struct disk *disks, unsigned count)
{
    uint32_t seen = 0;
    for (unsigned i = 0; i < r->dropped_count; i++) {
        unsigned slot = r->dropped[i];
        if (slot >= count || disks[slot].role != instar_Role_ROLE_EXTENT || disks[slot].of ||
            !disks[slot].target || disks[slot].made || file_after(f, slot) || seen & 1u << slot)
            return false;
        seen |= 1u << slot;
    }
    return !seen || job->request.op.resize.shrink;
}

static bool plausible(const instar_Outcome *out, const struct job *job, const struct disk *disks,
                      unsigned count)
{
    const instar_ResizeResult *r = &out->result.resize;
    const instar_RebaseResult *b = &out->result.rebase;
    const struct outcome_files f = outcome_files(out);
    switch (out->which_result) {
    case instar_Outcome_resize_tag:
        return r->error == instar_Code_OK && files_plausible(&f, job, disks, count) &&
               dropped_plausible(r, &f, job, disks, count) &&
               (strcmp(r->action, "noop") == 0 || strcmp(r->action, "grow") == 0 ||
                strcmp(r->action, "shrink") == 0);
    case instar_Outcome_rebase_tag:
        return b->error == instar_Code_OK && files_plausible(&f, job, disks, count) &&
               strcmp(b->mode, job->rebase.unsafe ? "unsafe" : "safe") == 0;
    }
    return true;
}

/* Of a raw image the planner asks for nothing but a length, which a device cannot be given. */
static bool resizes_device(const instar_Outcome *out, const struct disk *d)
{
    const instar_ResizeResult *r = &out->result.resize;
    return out->which_result == instar_Outcome_resize_tag && d->device &&
           strcmp(r->target_format, "raw") == 0 && strcmp(r->action, "noop") != 0;
}

int outcome_check(const instar_Outcome *out, const struct job *job, const struct disk *disks,
                  unsigned count, struct err *e)
{
    /* A request and its result have the same number in the contract. */
    _Static_assert((int)instar_Request_noop_tag == (int)instar_Outcome_noop_tag &&
                       (int)instar_Request_info_tag == (int)instar_Outcome_info_tag &&
                       (int)instar_Request_resize_tag == (int)instar_Outcome_resize_tag &&
                       (int)instar_Request_rebase_tag == (int)instar_Outcome_rebase_tag,
                   "request and result");
    int r = 0;
    if (out->has_error && out->error.code != instar_Code_OK)
        return outcome_error(&out->error, job, disks, count, e);
    if (out->which_result == instar_Outcome_need_extents_tag)
        return check_extents(&out->result.need_extents, job, disks, count, e);
    if (out->has_need_file)
        return check_need(&out->need_file, job, disks, count, e);
    if (out->which_result != job->request.which_op || !plausible(out, job, disks, count))
        return err_set(e, instar_Code_PROTOCOL,
                       "The VM's outcome makes no sense, and is not acted on");
    if (r == 0 && resizes_device(out, &disks[0]))
        return err_set(e, instar_Code_INVALID_NEW_SIZE, "Cannot resize device files");
    for (unsigned i = 0; job->request.dry_run && r == 0 && i < count; i++) {
        uint64_t now = outcome_length(out, &disks[i], i);
        uint64_t then = i == 0 ? outcome_files(out).eventual : 0;
        r = growth_within_limit(&disks[i], now > then ? now : then, e);
    }
    return r; /* of a dry run: the Need that would have been refused */
}
