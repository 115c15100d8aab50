/* SPDX-License-Identifier: MIT
 *
 * The guest's last word, judged. Its error is a constant text of ours if the guest is what it
 * should be, and anything at all if it is not: {off}, {val}, {val:x} and {name} are replaced in one
 * pass, and the result is escaped as a whole.
 */
#include "outcome.h"
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

int outcome_error(const instar_Error *error, const struct job *job, struct err *e)
{
    char *raw = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&raw, &len);
    if (!to)
        abort();
    expand(to, error);
    fclose(to);
    char *safe = text_safe_copy(raw, len);
    const char *text = *safe ? safe : code_row(error->code).text;
    /* What the read side refuses, it refuses to open. */
    if (strncmp(error->file, "formats/", 8) == 0)
        err_set(e, error->code, "Could not open '%s': %s", job->image, text);
    else
        err_set(e, error->code, "%s", text);
    free(safe);
    free(raw);
    if (job->verbose && *error->file) {
        fputs("refused at ", stderr);
        text_safe(stderr, error->file, strlen(error->file), TEXT_ONE_LINE);
        fprintf(stderr, ":%u\n", (unsigned)error->line);
    }
    return -1;
}

/* The length that the file is to get: never more than was granted, never less than it had unless
 * the user allowed to shrink. In a dry run nothing is granted, and nothing done. */
static bool plausible(const instar_ResizeResult *r, const struct job *job, const struct disk *d)
{
    uint64_t most = d->granted > d->length ? d->granted : d->length;
    if (job->request.dry_run)
        most = UINT64_MAX;
    uint64_t least = job->request.op.resize.shrink ? 0 : d->length;
    return r->error == instar_Code_OK && r->file_size_before == d->length &&
           r->file_size_after >= least && r->file_size_after <= most &&
           (strcmp(r->action, "noop") == 0 || strcmp(r->action, "grow") == 0 ||
            strcmp(r->action, "shrink") == 0);
}

int outcome_check(const instar_Outcome *out, const struct job *job, const struct disk *disks,
                  struct err *e)
{
    /* A request and its result have the same number in the contract. */
    _Static_assert((int)instar_Request_noop_tag == (int)instar_Outcome_noop_tag &&
                       (int)instar_Request_info_tag == (int)instar_Outcome_info_tag &&
                       (int)instar_Request_resize_tag == (int)instar_Outcome_resize_tag,
                   "request and result");
    if (out->has_error && out->error.code != instar_Code_OK)
        return outcome_error(&out->error, job, e);
    if (out->has_need_file && disks[0].granted == 0 &&
        job->request.which_op == instar_Request_resize_tag &&
        job->request.op.resize.kind != instar_SizeKind_MINUS)
        return 0; /* nothing has been done yet: chain.c attaches the file */
    if (out->which_result != job->request.which_op ||
        (out->which_result == instar_Outcome_resize_tag &&
         !plausible(&out->result.resize, job, &disks[0])))
        return err_set(e, instar_Code_PROTOCOL,
                       "The VM's outcome makes no sense, and is not acted on");
    if (job->request.dry_run) /* the Need that would have been refused */
        return growth_within_limit(&disks[0], out->result.resize.file_size_after, e);
    return 0;
}
