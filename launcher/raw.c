/* SPDX-License-Identifier: MIT
 *
 * `resize -f raw`: lengths are exact to the byte, as with qemu-img (parity A.5); growing an empty
 * file is no exception here. A failed preallocation leaves the old length; a killed one the old
 * (falloc) or the new (full), with less reserved than was asked for.
 */
#include "raw.h"
#include "newsize.h"
#include "outcome.h"
#include "plan.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

bool raw_applies(const struct job *job)
{
    return job->request.which_op == instar_Request_resize_tag && job->format &&
           strcmp(job->format, "raw") == 0;
}

static bool preallocates(const instar_ResizeRequest *r)
{
    return r->preallocation != instar_Preallocation_PREALLOCATION_OFF;
}

/* Its plan, as a guest would send it. */
static void show(struct job *job, uint64_t old, uint64_t length)
{
    const instar_ResizeRequest *r = &job->request.op.resize;
    static instar_Patch p = {
        .kind = instar_PatchKind_LENGTH, .commit = true, .why = "the file is the disk"};
    p.len = length;
    plan_show(job, &p);
    if (!preallocates(r) || length <= old)
        return;
    bool full = r->preallocation == instar_Preallocation_PREALLOCATION_FULL;
    static instar_Patch next;
    next = (instar_Patch){.kind = full ? instar_PatchKind_WRITE : instar_PatchKind_ZERO,
                          .off = old,
                          .len = length - old};
    strcpy(next.why, full ? "preallocated: zeros are written"
                          : "preallocated: the file system reserves the space");
    plan_show(job, &next);
}

/* Zeros from d->length to `size`: the file has its new length from the first of them on. 0 or an
 * errno. */
static int write_zeros(const struct disk *d, uint64_t size)
{
    static const char zeros[1 << 20];
    if (ftruncate(d->fd, (off_t)size) < 0)
        return errno;
    for (uint64_t off = d->length; off < size;) {
        uint64_t left = size - off;
        ssize_t n = pwrite(d->fd, zeros, left < sizeof zeros ? left : sizeof zeros, (off_t)off);
        if (n < 0 && errno != EINTR)
            return errno;
        off += n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

/* Makes the host allocate what the file gains; the length itself is disk_finish()'s. A file system
 * that cannot reserve space gets zeros. */
static int preallocate(const struct disk *d, uint64_t size, bool full, struct err *e)
{
    int error = EOPNOTSUPP;
    if (!full)
        error = fallocate(d->fd, FALLOC_FL_KEEP_SIZE, (off_t)d->length, (off_t)(size - d->length))
                    ? errno
                    : 0;
    if (error == EOPNOTSUPP)
        error = write_zeros(d, size);
    if (!error)
        return 0;
    if (ftruncate(d->fd, (off_t)d->length) < 0)
        return err_set(e, instar_Code_WRITE_FAILED, "Could not take back a preallocation: %s",
                       strerror(errno));
    return err_set(e, error == ENOSPC ? instar_Code_NO_SPACE : instar_Code_WRITE_FAILED,
                   "Could not preallocate data for the new area: %s", strerror(error));
}

/* SHRINK_BELOW_ALLOCATED if the file holds data from `end` on. What a file system does not tell
 * apart it calls data. */
static int check_unallocated(const struct disk *d, uint64_t end, struct err *e)
{
    off_t data = lseek(d->fd, (off_t)end, SEEK_DATA);
    if (data >= 0)
        return err_set(e, instar_Code_SHRINK_BELOW_ALLOCATED,
                       "Data is allocated past the new end (first at byte %llu). --shrink without "
                       "=unallocated discards it.",
                       (unsigned long long)data);
    if (errno != ENXIO)
        return err_set(e, instar_Code_READ_FAILED, "Could not look for data in '%s': %s", d->name,
                       strerror(errno));
    return 0;
}

int raw_resize(struct job *job, const struct disk *d, instar_Outcome *out, struct err *e)
{
    const instar_ResizeRequest *r = &job->request.op.resize;
    uint64_t current = (d->length + 511) / 512 * 512; /* as the block layer sees it */
    uint64_t size = 0, val = 0;
    const char *what = "";
    instar_Code code = newsize(r, d->length, &size, &what, &val);
    if (code != instar_Code_OK) {
        instar_Error error = {.code = code, .val = val};
        strncpy(error.what, what, sizeof error.what - 1);
        return outcome_error(&error, job, NULL, 0, e);
    }
    if (d->device && size != d->length)
        return err_set(e, instar_Code_INVALID_NEW_SIZE, "Cannot resize device files");
    if (r->preallocation == instar_Preallocation_PREALLOCATION_METADATA && size != current)
        return err_set(e, instar_Code_PREALLOCATION_UNSUPPORTED,
                       "Unsupported preallocation mode: metadata");
    if (r->unallocated && size < d->length && check_unallocated(d, size, e) < 0)
        return -1;
    *out = (instar_Outcome){.which_result = instar_Outcome_resize_tag};
    instar_ResizeResult *result = &out->result.resize;
    strcpy(result->target_format, "raw");
    strcpy(result->action, size > current ? "grow" : size < current ? "shrink" : "noop");
    result->old_virtual_size = current;
    result->resolved_new_virtual_size = size;
    result->file_size_before = d->length;
    result->file_size_after = size;
    if (job->request.dry_run && size != d->length)
        show(job, d->length, size);
    return job->request.dry_run || !preallocates(r) || size <= d->length
               ? 0
               : preallocate(d, size, r->preallocation == instar_Preallocation_PREALLOCATION_FULL,
                             e);
}
