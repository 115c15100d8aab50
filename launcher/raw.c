/* SPDX-License-Identifier: MIT
 *
 * `resize -f raw`: lengths are exact to the byte, as with qemu-img (parity A.5); growing an empty
 * file is no exception here.
 */
#include "raw.h"
#include "newsize.h"
#include "outcome.h"
#include "plan.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

bool raw_applies(const struct job *job)
{
    return job->request.which_op == instar_Request_resize_tag && job->format &&
           strcmp(job->format, "raw") == 0 &&
           job->request.op.resize.preallocation == instar_Preallocation_PREALLOCATION_OFF;
}

/* Its plan, as a guest would send it. */
static void show(struct job *job, uint64_t length)
{
    static instar_Patch p = {
        .kind = instar_PatchKind_LENGTH, .commit = true, .why = "the file is the disk"};
    p.len = length;
    plan_show(job, &p);
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
        return outcome_error(&error, job, e);
    }
    if (d->device && size != d->length)
        return err_set(e, instar_Code_INVALID_NEW_SIZE, "Cannot resize device files");
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
        show(job, size);
    return 0;
}
