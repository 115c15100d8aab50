/* SPDX-License-Identifier: MIT
 *
 * See rebase.h. Messages are qemu-img's (parity B.2); that a format is missing is said before any
 * work, not after it. The name is the user's: it may lead anywhere, and in unsafe mode nowhere.
 */
#include "rebase.h"
#include "options.h"
#include "outcome.h"
#include "plan.h"
#include "print.h"
#include "text.h"

#include <errno.h>
#include <string.h>

/* ---- the request ---- */

/* As qemu names them: in unsafe mode a format that no unikernel reads is a reference as good. */
static bool known_format(const char *name)
{
    static const char *const names[] = {"raw",        "qcow2", "vpc",   "vhdx",      "vmdk",
                                        "qed",        "qcow",  "vdi",   "parallels", "luks",
                                        "bochs",      "cloop", "dmg",   "file",      "host_device",
                                        "host_cdrom", "nbd",   "https", "http",      "ssh"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

int rebase_request(struct job *job, struct err *e)
{
    instar_RebaseRequest *r = &job->request.op.rebase;
    const char *name = job->rebase.backing, *format = job->rebase.format;
    if (!name)
        return options_usage(job, e, "Must specify backing file (-b)",
                             "; with -b \"\" the image stands alone afterwards");
    if (format && !known_format(format))
        return err_set(e, instar_Code_INVALID_OPTION, "Invalid format name: '%s'", format);
    if (*name && !format)
        return err_set(e, instar_Code_INVALID_OPTION,
                       "Could not change the backing file to '%s': backing format must be "
                       "specified (-F)",
                       name);
    if (strlen(name) > sizeof r->name.bytes)
        return err_set(e, instar_Code_BACKING_PATH_TOO_LONG,
                       "Could not change the backing file to '%s': Invalid argument", name);
    r->unsafe = job->rebase.unsafe;
    r->check_only = job->rebase.check_only;
    r->name.size = (pb_size_t)strlen(name);
    memcpy(r->name.bytes, name, r->name.size);
    if (*name)
        strcpy(r->format, format);
    job->lenient = r->unsafe;
    job->request.dry_run |= r->check_only;
    return 0;
}

/* ---- the new backing file ---- */

static int cannot_open(const char *name, int error, struct err *e)
{
    if (error)
        return err_set(e, instar_Code_READ_FAILED,
                       "Could not open new backing file '%s': Could not open '%s': %s", name, name,
                       strerror(error));
    /* What is there and can be no backing file is a mistake in unsafe mode, too. */
    return err_set(e, instar_Code_INVALID_OPTION,
                   "Could not open new backing file '%s': 'file' driver requires '%s' to be a "
                   "regular file",
                   name, name);
}

static int attach(struct job *job, struct chain *c, const char *name, struct err *e)
{
    char *path;
    if (job->lenient && strncmp(name, "file:", 5) == 0)
        name += 5; /* what is stored stays; where it leads is looked at */
    if (policy_protocol(name))
        return err_set(e, instar_Code_POLICY_REFUSED,
                       "Could not open new backing file '%s': it is no plain file name, and such "
                       "names are never followed (a file with a colon in its name is './%s')",
                       name, name);
    int fd = policy_open_typed(job->image, name, &path);
    if (fd < 0)
        return cannot_open(name, errno, e);
    unsigned next = c->count;
    if (chain_fork(job, c, fd, path, name, job->rebase.format, e) < 0) {
        if (e->code != instar_Code_LOOP)
            err_prefix(e, "Could not open new backing file '%s': ", name);
        return -1;
    }
    job->request.op.rebase.new_backing = next;
    return 0;
}

int rebase_begin(struct job *job, struct chain *c, struct err *e)
{
    const char *name = job->rebase.backing;
    if (job->request.which_op != instar_Request_rebase_tag)
        return 0;
    if (*name && attach(job, c, name, e) < 0) {
        if (!job->lenient || e->code == instar_Code_LOOP || e->code == instar_Code_INVALID_OPTION)
            return -1;
        if (job->verbose)
            fprintf(stderr, "going on without it: %s\n", e->text);
        err_clear(e);
    }
    rebase_progress(job, 0, 1);
    return 0;
}

/* ---- words ---- */

void rebase_progress(struct job *job, uint64_t done, uint64_t total)
{
    if (!job->rebase.progress || job->quiet || job->json || job->request.dry_run)
        return;
    job->rebase.shown = done < total;
    printf("    (%.2f/100%%)\r%s", 100.0 * ((double)done / (double)total),
           done < total ? "" : "\n");
    fflush(stdout);
}

void rebase_print(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    const instar_RebaseResult *r = &out->result.rebase;
    if (r->rebuilt)
        print_rebuilt();
    rebase_progress(job, 1, 1);
    if (!job->quiet)
        print_warning(r->warning);
    if (job->rebase.check_only) {
        printf("%llu clusters would be copied (%llu bytes). Nothing was written.\n",
               (unsigned long long)r->clusters_copied, (unsigned long long)r->bytes_copied);
    } else if (job->request.dry_run) {
        plan_print(job, d, out);
    }
}

void rebase_json(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    const instar_RebaseResult *r = &out->result.rebase;
    struct json *j = &job->out;
    (void)d;
    if (job->request.dry_run && !job->rebase.check_only) {
        plan_json_end(job);
        json_flag(j, "more", r->more);
    } else {
        json_open(j, NULL, '{');
    }
    json_text(j, "overlay", job->image);
    json_text(j, "overlay_format", r->overlay_format);
    json_text(j, "mode", r->mode);
    json_number(j, "clusters_copied", r->clusters_copied);
    json_number(j, "bytes_copied", r->bytes_copied);
    if (*job->rebase.backing)
        json_text(j, "new_backing", job->rebase.backing);
    else
        json_flag(j, "detached", true);
    if (job->rebase.check_only)
        json_flag(j, "check_only", true);
    if (r->rebuilt)
        json_flag(j, "refcounts_rebuilt", true);
    if (*r->warning)
        json_text(j, "warning", r->warning);
    json_close(j, '}');
}
