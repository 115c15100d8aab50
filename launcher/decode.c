/* SPDX-License-Identifier: MIT
 *
 * The decoder of a run (frames.c), which gives up at the first wrong byte; here it goes on at the
 * next one that may begin a frame. Members that are zero or empty are left out where that is what
 * they are in the contract.
 */
#include "decode.h"
#include "codes.h"
#include "frames.h"
#include "plan.h"
#include "print.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { REPORTS = 20 }; /* stretches of garbage that are told one by one */

/* ---- events ---- */

static void text(struct json *j, const char *key, const char *value)
{
    if (*value)
        json_text(j, key, value);
}

static void number(struct json *j, const char *key, uint64_t value)
{
    if (value)
        json_number(j, key, value);
}

static void show_length(struct json *j, uint32_t slot, uint64_t length)
{
    json_open(j, NULL, '{');
    json_number(j, "slot", slot);
    json_number(j, "length", length);
    json_close(j, '}');
}

static void show_need(struct json *j, const instar_Need *n)
{
    json_number(j, "epoch", n->epoch);
    json_open(j, "lengths", '[');
    for (unsigned i = 0; i < n->lengths_count; i++)
        show_length(j, n->lengths[i].slot, n->lengths[i].length);
    json_close(j, ']');
    if (n->undo)
        json_flag(j, "undo", true);
    if (!n->has_insert)
        return;
    json_open(j, "insert", '{');
    json_number(j, "slot", n->insert.slot);
    json_number(j, "off", n->insert.off);
    json_number(j, "len", n->insert.len);
    json_close(j, '}');
}

static void show_undo(struct json *j, const instar_Undo *u)
{
    json_number(j, "slot", u->slot);
    json_number(j, "off", u->off);
    json_open(j, "crc", '[');
    for (unsigned i = 0; i < u->crc_count; i++)
        json_number(j, NULL, u->crc[i]);
    json_close(j, ']');
}

static void show_fault(struct json *j, const instar_Fault *f)
{
    json_number(j, "vector", f->vector);
    json_number(j, "error_code", f->error_code);
    json_number(j, "rip", f->rip);
    json_number(j, "cr2", f->cr2);
    text(j, "text", f->text);
}

static void show_extent(struct json *j, const instar_Extent *x)
{
    json_number(j, "kind", x->kind);
    json_number(j, "voff", x->voff);
    json_number(j, "len", x->len);
    json_number(j, "slot", x->slot);
    json_number(j, "off", x->off);
    json_number(j, "depth", x->depth);
}

static void show_error(struct json *j, const instar_Error *x)
{
    json_open(j, "error", '{');
    json_text(j, "code", code_row(x->code)->name);
    text(j, "what", x->what);
    number(j, "off", x->off);
    number(j, "val", x->val);
    if (x->name.size)
        json_bytes(j, "name", x->name.bytes, x->name.size);
    text(j, "file", x->file);
    number(j, "line", x->line);
    number(j, "disk", x->disk);
    json_close(j, '}');
}

static void show_info(struct json *j, const instar_InfoResult *r)
{
    json_open(j, "info", '{');
    json_text(j, "format", r->format);
    json_number(j, "virtual_size", r->virtual_size);
    number(j, "cluster_size", r->cluster_size);
    if (r->backing_name.size)
        json_bytes(j, "backing_name", r->backing_name.bytes, r->backing_name.size);
    text(j, "backing_format", r->backing_format);
    json_flag(j, "encrypted", r->encrypted);
    json_flag(j, "dirty", r->dirty);
    json_flag(j, "corrupt", r->corrupt);
    json_flag(j, "probed", r->probed);
    json_open(j, "facts", '{');
    for (unsigned i = 0; i < r->facts_count; i++)
        print_json_fact(j, &r->facts[i]);
    json_close(j, '}');
    if (r->extents_count)
        json_open(j, "extents", '[');
    for (unsigned i = 0; i < r->extents_count; i++) {
        const instar_InfoExtent *x = &r->extents[i];
        json_open(j, NULL, '{');
        json_bytes(j, "name", x->name.bytes, x->name.size);
        text(j, "kind", x->kind);
        json_number(j, "virtual_size", x->virtual_size);
        number(j, "cluster_size", x->cluster_size);
        json_close(j, '}');
    }
    if (r->extents_count)
        json_close(j, ']');
    json_close(j, '}');
}

static void show_lengths(struct json *j, const instar_FileLength *l, unsigned count)
{
    if (!count)
        return;
    json_open(j, "files_after", '[');
    for (unsigned i = 0; i < count; i++)
        show_length(j, l[i].slot, l[i].length);
    json_close(j, ']');
}

static void show_resize(struct json *j, const instar_ResizeResult *r)
{
    json_open(j, "resize", '{');
    json_text(j, "target_format", r->target_format);
    json_text(j, "action", r->action);
    json_number(j, "old_virtual_size", r->old_virtual_size);
    json_number(j, "resolved_new_virtual_size", r->resolved_new_virtual_size);
    json_number(j, "file_size_before", r->file_size_before);
    json_number(j, "file_size_after", r->file_size_after);
    number(j, "error", r->error);
    json_flag(j, "probed", r->probed);
    if (r->more)
        json_flag(j, "more", true);
    show_lengths(j, r->files_after, r->files_after_count);
    if (r->dropped_count) {
        json_open(j, "dropped", '[');
        for (unsigned i = 0; i < r->dropped_count; i++)
            json_number(j, NULL, r->dropped[i]);
        json_close(j, ']');
    }
    if (*r->warning)
        json_text(j, "warning", r->warning);
    if (r->rebuilt)
        json_flag(j, "rebuilt", true);
    if (r->eventual_file_size)
        json_number(j, "eventual_file_size", r->eventual_file_size);
    json_close(j, '}');
}

static void show_rebase(struct json *j, const instar_RebaseResult *r)
{
    json_open(j, "rebase", '{');
    json_text(j, "overlay_format", r->overlay_format);
    json_text(j, "mode", r->mode);
    json_number(j, "clusters_copied", r->clusters_copied);
    json_number(j, "bytes_copied", r->bytes_copied);
    json_number(j, "file_size_before", r->file_size_before);
    json_number(j, "file_size_after", r->file_size_after);
    number(j, "error", r->error);
    json_flag(j, "probed", r->probed);
    if (r->more)
        json_flag(j, "more", true);
    show_lengths(j, r->files_after, r->files_after_count);
    if (*r->warning)
        json_text(j, "warning", r->warning);
    if (r->rebuilt)
        json_flag(j, "rebuilt", true);
    if (r->eventual_file_size)
        json_number(j, "eventual_file_size", r->eventual_file_size);
    json_close(j, '}');
}

static void show_need_file(struct json *j, const instar_NeedFile *n)
{
    json_open(j, "need_file", '{');
    json_bytes(j, "name", n->name.bytes, n->name.size);
    text(j, "format", n->format);
    json_number(j, "slot", n->slot);
    json_number(j, "role", n->role);
    if (n->writable)
        json_flag(j, "writable", true);
    json_close(j, '}');
}

static void show_need_extents(struct json *j, const instar_NeedExtents *n)
{
    json_open(j, "need_extents", '{');
    json_number(j, "slot", n->slot);
    if (n->writable)
        json_flag(j, "writable", true);
    if (n->create) {
        json_number(j, "create", n->create);
        json_number(j, "number", n->number);
        text(j, "letter", n->letter);
    }
    json_open(j, "names", '[');
    for (unsigned i = 0; i < n->names_count; i++)
        json_bytes(j, NULL, n->names[i].bytes, n->names[i].size);
    json_close(j, ']');
    json_close(j, '}');
}

static void show_outcome(struct json *j, const instar_Outcome *o)
{
    if (o->has_error)
        show_error(j, &o->error);
    if (o->has_need_file)
        show_need_file(j, &o->need_file);
    switch (o->which_result) {
    case instar_Outcome_noop_tag:
        json_open(j, "noop", '{');
        json_number(j, "disks", o->result.noop.disks);
        json_close(j, '}');
        break;
    case instar_Outcome_need_extents_tag:
        show_need_extents(j, &o->result.need_extents);
        break;
    case instar_Outcome_info_tag:
        show_info(j, &o->result.info);
        break;
    case instar_Outcome_resize_tag:
        show_resize(j, &o->result.resize);
        break;
    case instar_Outcome_rebase_tag:
        show_rebase(j, &o->result.rebase);
        break;
    }
}

static void show_progress(struct json *j, const instar_Progress *p)
{
    json_number(j, "requests", p->requests);
    json_number(j, "done", p->done);
    json_number(j, "total", p->total);
}

static void show(const instar_Event *ev)
{
    static const char *const name[] = {
        [instar_Event_log_tag] = "log",         [instar_Event_progress_tag] = "progress",
        [instar_Event_patch_tag] = "patch",     [instar_Event_extent_tag] = "extent",
        [instar_Event_need_tag] = "need",       [instar_Event_fault_tag] = "fault",
        [instar_Event_outcome_tag] = "outcome", [instar_Event_undo_tag] = "undo",
    };
    struct json out = {0}, *j = &out;
    json_open(j, NULL, '{');
    if (ev->which_event == instar_Event_patch_tag) {
        plan_json_patch(j, "patch", &ev->event.patch);
        json_close(j, '}');
        return;
    }
    json_open(j, name[ev->which_event], '{');
    switch (ev->which_event) {
    case instar_Event_log_tag:
        json_text(j, "text", ev->event.log.text);
        break;
    case instar_Event_progress_tag:
        show_progress(j, &ev->event.progress);
        break;
    case instar_Event_extent_tag:
        show_extent(j, &ev->event.extent);
        break;
    case instar_Event_need_tag:
        show_need(j, &ev->event.need);
        break;
    case instar_Event_undo_tag:
        show_undo(j, &ev->event.undo);
        break;
    case instar_Event_fault_tag:
        show_fault(j, &ev->event.fault);
        break;
    case instar_Event_outcome_tag:
        show_outcome(j, &ev->event.outcome);
        break;
    }
    json_close(j, '}');
    json_close(j, '}');
}

/* ---- frames, and what is none ---- */

struct decoder {
    struct frames frames;
    uint64_t off; /* of frames.buf in the input */
    bool lost;    /* among bytes that are no frame, which have been reported */
    unsigned reports;
};

static void report(struct decoder *d, const char *what, struct err *e)
{
    if (d->reports++ == 0)
        err_set(e, instar_Code_PARSE_FAILED, "At offset %llu: %s", (unsigned long long)d->off,
                what);
    else if (d->reports <= REPORTS)
        err_add(e, "At offset %llu: %s", (unsigned long long)d->off, what);
    else if (d->reports == REPORTS + 1)
        err_add(e, "And so on.");
}

/* To the next byte that may begin a frame. */
static void skip(struct decoder *d)
{
    struct frames *f = &d->frames;
    const uint8_t *next = memchr(f->buf + 1, 'I', f->have - 1);
    size_t n = next ? (size_t)(next - f->buf) : f->have;
    f->have -= n;
    memmove(f->buf, f->buf + n, f->have);
    d->off += n;
}

static void take_frames(struct decoder *d, struct err *e)
{
    static instar_Event ev;
    struct err why = {0};
    int r = 1;
    while (r != 0 && d->frames.have) {
        size_t had = d->frames.have;
        r = frames_next(&d->frames, &ev, &why);
        if (r > 0) {
            d->off += had - d->frames.have;
            d->lost = false;
            show(&ev);
        } else if (r < 0) {
            if (!d->lost)
                report(d, why.text, e);
            d->lost = true;
            err_clear(&why);
            skip(d);
        }
    }
}

int decode_stdin(struct job *job, struct err *e)
{
    (void)job;
    static struct decoder d;
    struct frames *f = &d.frames;
    ssize_t n;
    setlinebuf(stdout);
    while ((n = read(STDIN_FILENO, f->buf + f->have, sizeof f->buf - f->have)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(e, instar_Code_READ_FAILED, "Could not read: %s", strerror(errno));
        f->have += (size_t)n;
        take_frames(&d, e);
    }
    if (f->have)
        report(&d, "The last frame is cut off", e);
    return e->code == instar_Code_OK ? 0 : -1;
}
