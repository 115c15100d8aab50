/* SPDX-License-Identifier: MIT
 *
 * Events as nanopb messages, as frames, as bytes on the serial port; and the two ways in which a
 * guest dies with a word: a fault, and an assertion that does not hold.
 */
#include <pb_encode.h>

#include "frame.h"
#include "kernel.h"
#include "op.h"

/* enum err_code (formats/base.h) is enum Code of the contract. */
_Static_assert((int)ERR_INVALID_OPTION == (int)instar_Code_INVALID_OPTION, "");
_Static_assert((int)ERR_INVALID_NEW_SIZE == (int)instar_Code_INVALID_NEW_SIZE, "");
_Static_assert((int)ERR_SHRINK_WITHOUT_FLAG == (int)instar_Code_SHRINK_WITHOUT_FLAG, "");
_Static_assert((int)ERR_SHRINK_BELOW_ALLOCATED == (int)instar_Code_SHRINK_BELOW_ALLOCATED, "");
_Static_assert((int)ERR_UNSUPPORTED_FORMAT == (int)instar_Code_UNSUPPORTED_FORMAT, "");
_Static_assert((int)ERR_UNSUPPORTED_SUBFORMAT == (int)instar_Code_UNSUPPORTED_SUBFORMAT, "");
_Static_assert((int)ERR_OVERLAY_CORRUPT == (int)instar_Code_OVERLAY_CORRUPT, "");
_Static_assert((int)ERR_BACKING_PATH_TOO_LONG == (int)instar_Code_BACKING_PATH_TOO_LONG, "");
_Static_assert((int)ERR_SCRATCH_TOO_SMALL == (int)instar_Code_SCRATCH_TOO_SMALL, "");
_Static_assert((int)ERR_REFCOUNT_EXHAUSTED == (int)instar_Code_REFCOUNT_EXHAUSTED, "");
_Static_assert((int)ERR_DESCRIPTOR_TOO_LARGE == (int)instar_Code_DESCRIPTOR_TOO_LARGE, "");
_Static_assert((int)ERR_PARSE_FAILED == (int)instar_Code_PARSE_FAILED, "");
_Static_assert((int)ERR_INTERNAL_OVERFLOW == (int)instar_Code_INTERNAL_OVERFLOW, "");
_Static_assert((int)ERR_UNSUPPORTED_SHRINK == (int)instar_Code_UNSUPPORTED_SHRINK, "");
_Static_assert((int)ERR_PREALLOCATION_UNSUPPORTED == (int)instar_Code_PREALLOCATION_UNSUPPORTED,
               "");
_Static_assert((int)ERR_READ_FAILED == (int)instar_Code_READ_FAILED, "");
_Static_assert((int)ERR_WRITE_FAILED == (int)instar_Code_WRITE_FAILED, "");
_Static_assert((int)ERR_HEADER_MISMATCH == (int)instar_Code_HEADER_MISMATCH, "");
_Static_assert((int)ERR_BITMAPS_UNSUPPORTED == (int)instar_Code_BITMAPS_UNSUPPORTED, "");
_Static_assert((int)ERR_NEW_BACKING_INCOMPATIBLE == (int)instar_Code_NEW_BACKING_INCOMPATIBLE, "");
_Static_assert((int)ERR_EXTERNAL_DATA_FILE == (int)instar_Code_EXTERNAL_DATA_FILE, "");
_Static_assert((int)ERR_LUKS_UNSUPPORTED == (int)instar_Code_LUKS_UNSUPPORTED, "");
_Static_assert((int)ERR_CHAIN_DEPTH == (int)instar_Code_CHAIN_DEPTH, "");
_Static_assert((int)ERR_UNSUPPORTED_FEATURE == (int)instar_Code_UNSUPPORTED_FEATURE, "");
_Static_assert((int)ERR_INCONSISTENT == (int)instar_Code_INCONSISTENT, "");
_Static_assert((int)ERR_LOCKED == (int)instar_Code_LOCKED, "");
_Static_assert((int)ERR_POLICY_REFUSED == (int)instar_Code_POLICY_REFUSED, "");
_Static_assert((int)ERR_LOOP == (int)instar_Code_LOOP, "");
_Static_assert((int)ERR_UNDO_PENDING == (int)instar_Code_UNDO_PENDING, "");
_Static_assert((int)ERR_TIMEOUT == (int)instar_Code_TIMEOUT, "");
_Static_assert((int)ERR_NO_SPACE == (int)instar_Code_NO_SPACE, "");
_Static_assert((int)ERR_GUEST_FAULT == (int)instar_Code_GUEST_FAULT, "");
_Static_assert((int)ERR_PROTOCOL == (int)instar_Code_PROTOCOL, "");
_Static_assert((int)ERR_NO_QEMU == (int)instar_Code_NO_QEMU, "");

_Static_assert(instar_Event_size <= FRAME_MAX, "every Event fits a frame");

static instar_Event event; /* too large for a stack; one CPU, one user */
static uint8_t frame[FRAME_HEAD + instar_Event_size + FRAME_TAIL];

static void report_event(const instar_Event *ev)
{
    pb_ostream_t out = pb_ostream_from_buffer(frame + FRAME_HEAD, instar_Event_size);
    bool ok = pb_encode(&out, instar_Event_fields, ev);
    assert(ok);
    u32 len = (u32)out.bytes_written;
    frame_put32(frame, FRAME_MAGIC);
    frame_put32(frame + 4, len);
    frame_put32(frame + FRAME_HEAD + len, crc32c(0, frame + 4, 4 + len));
    serial_write(frame, FRAME_HEAD + len + FRAME_TAIL);
}

static instar_Event *fresh(pb_size_t which)
{
    memset(&event, 0, sizeof event);
    event.which_event = which;
    return &event;
}

static void copy_text(char *to, size_t cap, const char *from)
{
    size_t len = strlen(from);
    len = len < cap ? len : cap - 1;
    memcpy(to, from, len);
    to[len] = 0;
}

void report_progress(u64 requests, u64 done, u64 total)
{
    instar_Event *ev = fresh(instar_Event_progress_tag);
    ev->event.progress = (instar_Progress){requests, done, total};
    report_event(ev);
}

void report_need(u32 epoch, const struct plan_need *need, const u8 disk_of[IMAGE_FILES])
{
    instar_Event *ev = fresh(instar_Event_need_tag);
    instar_Need *out = &ev->event.need;
    out->epoch = epoch;
    out->undo = need->undo;
    for (unsigned i = 0; i < IMAGE_FILES; i++)
        if (need->length[i] || (i == 0 && need->eventual))
            out->lengths[out->lengths_count++] =
                (instar_NeedLength){disk_of[i], need->length[i], i == 0 ? need->eventual : 0};
    report_event(ev);
}

void report_insert(u32 epoch, u8 slot, u64 off, u64 len)
{
    instar_Event *ev = fresh(instar_Event_need_tag);
    ev->event.need.epoch = epoch;
    ev->event.need.has_insert = true;
    ev->event.need.insert = (instar_Insert){slot, off, len};
    report_event(ev);
}

void report_undo(u8 slot, u64 off, const u32 *crc, unsigned n)
{
    instar_Event *ev = fresh(instar_Event_undo_tag);
    instar_Undo *out = &ev->event.undo;
    assert(n <= sizeof out->crc / sizeof out->crc[0]);
    out->slot = slot;
    out->off = off;
    out->crc_count = (pb_size_t)n;
    memcpy(out->crc, crc, n * sizeof *crc);
    report_event(ev);
}

void report_patch(u32 epoch, const struct patch *p)
{
    static const instar_PatchKind kind[] = {
        [PATCH_LENGTH] = instar_PatchKind_LENGTH,   [PATCH_WRITE] = instar_PatchKind_WRITE,
        [PATCH_ZERO] = instar_PatchKind_ZERO,       [PATCH_COPY] = instar_PatchKind_COPY,
        [PATCH_DISCARD] = instar_PatchKind_DISCARD, [PATCH_INSERT] = instar_PatchKind_INSERT,
        [PATCH_BARRIER] = instar_PatchKind_BARRIER,
    };
    instar_Event *ev = fresh(instar_Event_patch_tag);
    instar_Patch *out = &ev->event.patch;
    out->kind = kind[p->kind];
    out->slot = p->slot;
    out->off = p->off;
    out->len = p->len;
    out->from_slot = p->from;
    out->from_off = p->from_off;
    out->commit = p->commit;
    out->may_unmap = p->may_unmap;
    out->epoch = epoch;
    copy_text(out->why, sizeof out->why, p->why);
    if (p->kind == PATCH_WRITE && p->len <= sizeof out->data.bytes) {
        out->data.size = (pb_size_t)p->len;
        memcpy(out->data.bytes, p->data, p->len);
    }
    report_event(ev);
}

void report_outcome(instar_Outcome *out, const struct err *e)
{
    instar_Event *ev = fresh(instar_Event_outcome_tag);
    if (e->code) {
        instar_Error *x = &out->error;
        out->has_error = true;
        x->code = (instar_Code)e->code;
        x->off = e->off;
        x->val = e->val;
        x->line = (u32)e->line;
        copy_text(x->what, sizeof x->what, e->what);
        copy_text(x->file, sizeof x->file, e->file);
        x->name.size = (pb_size_t)strlen(e->name);
        memcpy(x->name.bytes, e->name, x->name.size);
    }
    ev->event.outcome = *out;
    report_event(ev);
}

/* The stack is a small one of its own; what happened last is in `event`, and is given up. */
void kernel_fault(const struct fault *f)
{
    instar_Event *ev = fresh(instar_Event_fault_tag);
    ev->event.fault.vector = f->vector;
    ev->event.fault.error_code = f->error_code;
    ev->event.fault.rip = f->rip;
    ev->event.fault.cr2 = f->cr2;
    report_event(ev);
}

static void add_text(instar_Fault *f, const char *more)
{
    size_t used = strlen(f->text);
    copy_text(f->text + used, sizeof f->text - used, more);
}

_Noreturn void assert_failed(const char *file, int line, const char *expr)
{
    instar_Event *ev = fresh(instar_Event_fault_tag);
    instar_Fault *f = &ev->event.fault;
    char digits[12] = "", *p = &digits[11];
    do
        *--p = (char)('0' + line % 10);
    while (line /= 10);
    f->rip = (u64)(uintptr_t)__builtin_return_address(0);
    add_text(f, file);
    add_text(f, ":");
    add_text(f, p);
    add_text(f, ": ");
    add_text(f, expr);
    report_event(ev);
    kernel_exit(KERNEL_EXIT_FAULT);
}
