/* SPDX-License-Identifier: MIT
 *
 * `resize -f raw`: lengths are exact to the byte, as with qemu-img (parity A.5); growing an empty
 * file is no exception here.
 */
#include "raw.h"
#include "codes.h"
#include "newsize.h"
#include "outcome.h"

#include <string.h>

bool raw_applies(const struct job *job)
{
    return job->request.which_op == instar_Request_resize_tag && job->format &&
           strcmp(job->format, "raw") == 0;
}

int raw_resize(const struct job *job, const struct disk *d, instar_Outcome *out, struct err *e)
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
    if (r->preallocation != instar_Preallocation_PREALLOCATION_OFF)
        return err_set(e, instar_Code_PREALLOCATION_UNSUPPORTED, "%s",
                       code_row(instar_Code_PREALLOCATION_UNSUPPORTED).text);
    if (d->device && size != d->length)
        return err_set(e, instar_Code_INVALID_NEW_SIZE, "Cannot resize device files");
    *out = (instar_Outcome){.which_result = instar_Outcome_resize_tag};
    instar_ResizeResult *result = &out->result.resize;
    strcpy(result->target_format, "raw");
    strcpy(result->action, size > current ? "grow" : size < current ? "shrink" : "noop");
    result->old_virtual_size = current;
    result->resolved_new_virtual_size = size;
    result->file_size_before = d->length;
    result->file_size_after = size;
    return 0;
}
