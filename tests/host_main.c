/* SPDX-License-Identifier: MIT
 *
 * An operation as a host program: what kernel/ and the rest of ops/ are to op_run() in the VM, this
 * file is over plain files, so that both can be held against each other and sanitizers can look.
 *
 *     host-OP REQUEST DISK...
 *
 * REQUEST is a file that holds an encoded Request; disk N is disk N of it. The Events go to stdout,
 * in the frames of the serial port. Every Need is granted by ftruncate; afterwards the file gets
 * the length that the result names, as from the launcher. Exit status: 0, or 1 for an error, or 2
 * for wrong usage. $INSTAR_SECTOR: 4096 instead of 512.
 */
#define _GNU_SOURCE
#include "op.h"

#include <fcntl.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <unistd.h>

#include "blk_file.h"
#include "frame.h"
#include "test.h"

static instar_Request request;
static instar_Outcome outcome;
static instar_Event event;
static struct blk_file disk[OP_DISKS];
static char **disk_path;
static int disk_args;

static void *held[16]; /* as in the VM there is no free */

void *op_alloc(size_t bytes)
{
    static unsigned cnt;
    assert(cnt < sizeof(held) / sizeof(held[0]));
    void *p = held[cnt++] = aligned_alloc(4096, round_up(bytes, 4096));
    assert(p);
    memset(p, 0xa5, bytes); /* as little to be relied on as in the VM */
    return p;
}

/* ---- disks ---- */

int disks_open(struct op *op, struct err *e)
{
    u32 sector = getenv("INSTAR_SECTOR") ? (u32)atoi(getenv("INSTAR_SECTOR")) : 512;
    for (unsigned i = 0; i < op->request->disks_count; i++) {
        const instar_Disk *d = &op->request->disks[i];
        if (i >= OP_DISKS || (int)i >= disk_args)
            return FAIL(e, ERR_READ_FAILED, "Disk {val} of the request is not attached", 0, i);
        int fd = open(disk_path[i], (d->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
        if (fd < 0)
            return FAIL(e, ERR_READ_FAILED, "Disk {val} cannot be opened", 0, i);
        blk_file_init(&disk[i], fd, d->length, sector, d->writable);
        disk[i].blk.slot = (u8)i;
        disk[i].blk.insert_unit = d->insert_unit;
        op->disk[i] = &disk[i].blk;
        op->disks++;
    }
    return 0;
}

int disks_need(u32 epoch, const struct plan_need *need, const u8 disk_of[IMAGE_FILES],
               struct err *e)
{
    report_need(epoch, need, disk_of);
    for (unsigned i = 0; i < IMAGE_FILES; i++)
        if (need->length[i] && lseek(disk[disk_of[i]].fd, 0, SEEK_END) < (off_t)need->length[i] &&
            ftruncate(disk[disk_of[i]].fd, (off_t)need->length[i]))
            return FAIL(e, ERR_NO_SPACE, "No room", 0, need->length[i]);
    return 0;
}

int disks_insert(u32 epoch, u8 slot, u64 off, u64 len, struct err *e)
{
    report_insert(epoch, slot, off, len);
    return fallocate(disk[slot].fd, FALLOC_FL_INSERT_RANGE, (off_t)off, (off_t)len)
               ? FAIL(e, ERR_NO_SPACE, "Nothing can be inserted", off, len)
               : 0;
}

/* ---- reports ---- */

static instar_Event *fresh(pb_size_t which)
{
    memset(&event, 0, sizeof(event));
    event.which_event = which;
    return &event;
}

static void send(void)
{
    static uint8_t frame[FRAME_HEAD + FRAME_MAX + FRAME_TAIL];
    pb_ostream_t out = pb_ostream_from_buffer(frame + FRAME_HEAD, FRAME_MAX);
    bool ok = pb_encode(&out, instar_Event_fields, &event);
    assert(ok);
    u32 len = (u32)out.bytes_written;
    frame_put32(frame, FRAME_MAGIC);
    frame_put32(frame + 4, len);
    frame_put32(frame + FRAME_HEAD + len, crc32c(0, frame + 4, 4 + len));
    fwrite(frame, 1, FRAME_HEAD + len + FRAME_TAIL, stdout);
}

void report_need(u32 epoch, const struct plan_need *need, const u8 disk_of[IMAGE_FILES])
{
    instar_Need *n = &fresh(instar_Event_need_tag)->event.need;
    n->epoch = epoch;
    n->undo = need->undo;
    for (unsigned i = 0; i < IMAGE_FILES; i++)
        if (need->length[i])
            n->lengths[n->lengths_count++] = (instar_NeedLength){disk_of[i], need->length[i]};
    send();
}

void report_insert(u32 epoch, u8 slot, u64 off, u64 len)
{
    instar_Need *n = &fresh(instar_Event_need_tag)->event.need;
    n->epoch = epoch;
    n->has_insert = true;
    n->insert = (instar_Insert){slot, off, len};
    send();
}

void report_undo(u8 slot, u64 off, const u32 *crc, unsigned n)
{
    instar_Undo *out = &fresh(instar_Event_undo_tag)->event.undo;
    out->slot = slot;
    out->off = off;
    for (; out->crc_count < n; out->crc_count++)
        out->crc[out->crc_count] = crc[out->crc_count];
    send();
}

void report_progress(u64 requests, u64 done, u64 total)
{
    fresh(instar_Event_progress_tag)->event.progress = (instar_Progress){requests, done, total};
    send();
}

void report_patch(u32 epoch, const struct patch *p)
{
    instar_Patch *out = &fresh(instar_Event_patch_tag)->event.patch;
    *out = (instar_Patch){.kind = (instar_PatchKind)p->kind,
                          .slot = p->slot,
                          .off = p->off,
                          .len = p->len,
                          .from_slot = p->from,
                          .from_off = p->from_off,
                          .commit = p->commit,
                          .may_unmap = p->may_unmap,
                          .epoch = epoch};
    snprintf(out->why, sizeof(out->why), "%s", p->why);
    if (p->kind == PATCH_WRITE && p->len <= sizeof(out->data.bytes)) {
        out->data.size = (pb_size_t)p->len;
        memcpy(out->data.bytes, p->data, p->len);
    }
    send();
}

void report_outcome(instar_Outcome *out, const struct err *e)
{
    if (e->code) {
        out->has_error = true;
        out->error.code = (instar_Code)e->code;
        out->error.off = e->off;
        out->error.val = e->val;
        out->error.line = (u32)e->line;
        snprintf(out->error.what, sizeof(out->error.what), "%s", e->what);
        snprintf(out->error.file, sizeof(out->error.file), "%s", e->file);
        out->error.name.size = (pb_size_t)strlen(e->name);
        memcpy(out->error.name.bytes, e->name, out->error.name.size);
    }
    fresh(instar_Event_outcome_tag)->event.outcome = *out;
    send();
}

/* ---- main ---- */

static bool read_request(const char *path)
{
    static u8 buf[FRAME_MAX];
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(buf, 1, sizeof(buf), f) : 0;
    pb_istream_t in = pb_istream_from_buffer(buf, n);
    return f && !fclose(f) && pb_decode(&in, instar_Request_fields, &request);
}

static int set_lengths(u64 image, const instar_FileLength *other, unsigned cnt)
{
    if (ftruncate(disk[0].fd, (off_t)image))
        return 1;
    for (unsigned i = 0; i < cnt; i++)
        if (ftruncate(disk[other[i].slot].fd, (off_t)other[i].length))
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    struct op op = {.request = &request};
    struct err e = {0};
    if (argc < 2 || !read_request(argv[1])) {
        fprintf(stderr, "usage: %s REQUEST DISK...\n", argv[0]);
        return 2;
    }
    disk_path = argv + 2;
    disk_args = argc - 2;
    if (!disks_open(&op, &e))
        op_run(&op, &outcome, &e);
    report_outcome(&outcome, &e);
    fflush(stdout);
    if (e.code || request.dry_run || outcome.has_need_file)
        return e.code ? 1 : 0;
    const instar_ResizeResult *resize = &outcome.result.resize;
    const instar_RebaseResult *rebase = &outcome.result.rebase;
    if (outcome.which_result == instar_Outcome_resize_tag)
        return set_lengths(resize->file_size_after, resize->files_after, resize->files_after_count);
    if (outcome.which_result == instar_Outcome_rebase_tag)
        return set_lengths(rebase->file_size_after, rebase->files_after, rebase->files_after_count);
    return 0;
}
