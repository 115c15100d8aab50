/* SPDX-License-Identifier: MIT
 *
 * All that goes to stdout, and failures. The layouts of info are qemu-img's (parity G.2), with its
 * keys in its order. Strings of the guest pass through text.h; its numbers are only printed.
 */
#include "print.h"
#include "codes.h"
#include "outcome.h"
#include "plan.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>

static void safe(const void *bytes, size_t len)
{
    text_safe(stdout, bytes, len, TEXT_ONE_LINE);
}

/* "label: value" on a line of its own. */
static void line(const char *label, const void *bytes, size_t len)
{
    printf("%s: ", label);
    safe(bytes, len);
    putchar('\n');
}

/* ---- resize ---- */

void print_rebuilt(void)
{
    fputs("Rebuilding refcount structure\n", stderr);
}

void print_warning(const char *warning)
{
    if (!*warning)
        return;
    fputs("instar-launch: warning: ", stderr);
    text_safe(stderr, warning, strlen(warning), TEXT_ONE_LINE);
    fputc('\n', stderr);
}

void print_resize(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    if (out->result.resize.rebuilt)
        print_rebuilt();
    if (!job->quiet)
        print_warning(out->result.resize.warning);
    if (job->request.dry_run)
        plan_print(job, d, out);
    else if (!job->quiet)
        puts("Image resized.");
}

/* What became of the files of other disks; absent if there are none. */
static void json_files(struct json *j, const struct disk *disks, const instar_ResizeResult *r)
{
    if (!r->files_after_count)
        return;
    json_open(j, "other_files", '[');
    for (unsigned i = 0; i < r->files_after_count; i++) {
        const struct disk *d = &disks[r->files_after[i].slot];
        json_open(j, NULL, '{');
        json_number(j, "slot", r->files_after[i].slot);
        json_text(j, "filename", d->name);
        json_number(j, "old_file_size", d->length);
        json_number(j, "new_file_size", r->files_after[i].length);
        json_close(j, '}');
    }
    json_close(j, ']');
}

/* The extents that the image no longer has; absent if there are none. */
static void json_removed(struct json *j, const struct disk *disks, const instar_ResizeResult *r)
{
    if (!r->dropped_count)
        return;
    json_open(j, "removed_files", '[');
    for (unsigned i = 0; i < r->dropped_count; i++)
        json_text(j, NULL, disks[r->dropped[i]].name);
    json_close(j, ']');
}

void json_resize(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    const instar_ResizeResult *r = &out->result.resize;
    struct json *j = &job->out;
    if (job->request.dry_run) {
        plan_json_end(job);
        json_flag(j, "more", r->more);
    } else {
        json_open(j, NULL, '{');
        json_text(j, "filename", job->image);
    }
    json_text(j, "format", r->target_format);
    json_text(j, "action", r->action);
    json_number(j, "old_virtual_size", r->old_virtual_size);
    json_number(j, "new_virtual_size", r->resolved_new_virtual_size);
    json_number(j, "old_file_size", r->file_size_before);
    json_number(j, "new_file_size", r->file_size_after);
    json_files(j, d, r);
    json_removed(j, d, r);
    if (r->rebuilt)
        json_flag(j, "refcounts_rebuilt", true);
    if (*r->warning)
        json_text(j, "warning", r->warning);
    json_close(j, '}');
}

void print_raw_warning(const struct job *job, const instar_Outcome *out)
{
    const struct outcome_files f = outcome_files(out);
    if (!f.probed || strcmp(f.format, "raw") != 0)
        return;
    fputs("WARNING: Image format was not specified for '", stderr);
    text_safe(stderr, job->image, strlen(job->image), TEXT_ONE_LINE);
    fputs("' and probing guessed raw.\n"
          "         Automatically detecting the format is dangerous for raw images, write "
          "operations on block 0 will be restricted.\n"
          "         Specify the 'raw' format explicitly to remove the restrictions.\n",
          stderr);
}

/* ---- info ---- */

/* What the file, and those that the image consists of, occupy on the host. */
static uint64_t disk_size(const struct job *job, const struct disk *d)
{
    uint64_t blocks = (uint64_t)d->before.st_blocks;
    for (unsigned i = 1; i < job->request.disks_count; i++)
        if (job->request.disks[i].role == instar_Role_ROLE_EXTENT)
            blocks += (uint64_t)d[i].before.st_blocks;
    return blocks * 512;
}

static void print_fact(const instar_Fact *f)
{
    printf("    ");
    safe(f->key, strlen(f->key));
    printf(": ");
    if (f->which_value == instar_Fact_text_tag)
        safe(f->value.text, strlen(f->value.text));
    else if (f->which_value == instar_Fact_flag_tag)
        printf("%s", f->value.flag ? "true" : "false");
    else
        printf("%llu", (unsigned long long)f->value.number);
    putchar('\n');
}

/* Where a name read from the image leads to, were it followed: a relative one is joined to the
 * directory of the image's own name, which is qemu-img's rule. Only words; no file is looked for.
 * The caller frees *path. */
static size_t actual_path(const struct job *job, const instar_InfoResult *r, char **path)
{
    const char *slash = strrchr(job->image, '/');
    const uint8_t *name = r->backing_name.bytes;
    size_t len = r->backing_name.size, dir = slash ? (size_t)(slash - job->image) + 1 : 0;
    const uint8_t *colon = memchr(name, ':', len), *first = memchr(name, '/', len);
    bool protocol = colon && (!first || colon < first);
    if (protocol || name[0] == '/')
        dir = 0;
    *path = malloc(dir + len);
    if (!*path)
        abort();
    memcpy(*path, job->image, dir);
    memcpy(*path + dir, name, len);
    return dir + len;
}

static void print_backing(const struct job *job, const instar_InfoResult *r)
{
    char *path;
    size_t len = actual_path(job, r, &path);
    printf("backing file: ");
    safe(r->backing_name.bytes, r->backing_name.size);
    if (len != r->backing_name.size) {
        printf(" (actual path: ");
        safe(path, len);
        putchar(')');
    }
    putchar('\n');
    free(path);
}

/* The file that holds extent i: one of its own, or the image. */
static const char *extent_file(const struct job *job, const struct disk *d, unsigned i)
{
    bool own = i + 1 < job->request.disks_count &&
               job->request.disks[i + 1].role == instar_Role_ROLE_EXTENT;
    return own ? d[i + 1].name : job->image;
}

static void print_extents(const struct job *job, const struct disk *d, const instar_InfoResult *r)
{
    if (r->extents_count)
        puts("    extents:");
    for (unsigned i = 0; i < r->extents_count; i++) {
        const instar_InfoExtent *x = &r->extents[i];
        printf("        [%u]:\n            virtual size: %llu\n            filename: ", i,
               (unsigned long long)x->virtual_size);
        safe(extent_file(job, d, i), strlen(extent_file(job, d, i)));
        if (x->cluster_size)
            printf("\n            cluster size: %u", (unsigned)x->cluster_size);
        printf("\n            format: ");
        safe(x->kind, strlen(x->kind));
        printf("\n            name: ");
        safe(x->name.bytes, x->name.size);
        putchar('\n');
    }
}

void print_info(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    const instar_InfoResult *r = &out->result.info;
    line("image", job->image, strlen(job->image));
    line("file format", r->format, strlen(r->format));
    printf("virtual size: ");
    text_size(stdout, r->virtual_size);
    printf(" (%llu bytes)\ndisk size: ", (unsigned long long)r->virtual_size);
    text_size(stdout, disk_size(job, d));
    putchar('\n');
    if (r->encrypted)
        puts("encrypted: yes");
    if (r->cluster_size)
        printf("cluster_size: %llu\n", (unsigned long long)r->cluster_size);
    if (r->dirty)
        puts("cleanly shut down: no");
    if (r->backing_name.size)
        print_backing(job, r);
    if (*r->backing_format)
        line("backing file format", r->backing_format, strlen(r->backing_format));
    if (r->facts_count)
        puts("Format specific information:");
    for (unsigned i = 0; i < r->facts_count; i++)
        print_fact(&r->facts[i]);
    print_extents(job, d, r);
}

void print_json_fact(struct json *j, const instar_Fact *f)
{
    char key[sizeof f->key];
    strcpy(key, f->key);
    for (char *p = key; (p = strchr(p, ' ')); p++)
        *p = '-';
    if (f->which_value == instar_Fact_text_tag)
        json_text(j, key, f->value.text);
    else if (f->which_value == instar_Fact_flag_tag)
        json_flag(j, key, f->value.flag);
    else
        json_number(j, key, f->value.number);
}

static void json_extents(struct json *j, const struct job *job, const struct disk *d,
                         const instar_InfoResult *r)
{
    json_open(j, "extents", '[');
    for (unsigned i = 0; i < r->extents_count; i++) {
        const instar_InfoExtent *x = &r->extents[i];
        json_open(j, NULL, '{');
        json_number(j, "virtual-size", x->virtual_size);
        json_text(j, "filename", extent_file(job, d, i));
        if (x->cluster_size)
            json_number(j, "cluster-size", x->cluster_size);
        json_text(j, "format", x->kind);
        json_bytes(j, "name", x->name.bytes, x->name.size);
        json_close(j, '}');
    }
    json_close(j, ']');
}

static void json_facts(struct json *j, const struct job *job, const struct disk *d,
                       const instar_InfoResult *r)
{
    json_open(j, "format-specific", '{');
    json_text(j, "type", r->format);
    json_open(j, "data", '{');
    for (unsigned i = 0; i < r->facts_count; i++)
        print_json_fact(j, &r->facts[i]);
    if (r->extents_count)
        json_extents(j, job, d, r);
    json_close(j, '}');
    json_close(j, '}');
}

static void json_backing(struct json *j, const struct job *job, const instar_InfoResult *r)
{
    char *path;
    size_t len = actual_path(job, r, &path);
    json_bytes(j, "full-backing-filename", path, len);
    json_bytes(j, "backing-filename", r->backing_name.bytes, r->backing_name.size);
    free(path);
}

void json_info(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    const instar_InfoResult *r = &out->result.info;
    struct json *j = &job->out;
    j->pretty = true;
    json_open(j, NULL, '{');
    if (*r->backing_format)
        json_text(j, "backing-filename-format", r->backing_format);
    json_number(j, "virtual-size", r->virtual_size);
    json_text(j, "filename", job->image);
    if (r->cluster_size)
        json_number(j, "cluster-size", r->cluster_size);
    json_text(j, "format", r->format);
    json_number(j, "actual-size", disk_size(job, d));
    if (r->encrypted)
        json_flag(j, "encrypted", true);
    if (r->facts_count)
        json_facts(j, job, d, r);
    if (r->backing_name.size)
        json_backing(j, job, r);
    json_flag(j, "dirty-flag", r->dirty);
    json_close(j, '}');
}

/* ---- noop ---- */

void print_noop(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    (void)job;
    (void)d;
    printf("disks: %u\n", (unsigned)out->result.noop.disks);
}

void json_noop(struct job *job, const struct disk *d, const instar_Outcome *out)
{
    (void)d;
    json_open(&job->out, NULL, '{');
    json_number(&job->out, "disks", out->result.noop.disks);
    json_close(&job->out, '}');
}

/* ---- failures ---- */

/* In an object that was begun, as by a dry run, the error is one more member. */
static void json_failure(struct job *job, const struct err *e, const char *code)
{
    if (job->patches)
        plan_json_end(job);
    else if (job->out.depth == 0)
        json_open(&job->out, NULL, '{');
    json_text(&job->out, "error", e->text);
    json_text(&job->out, "code", code);
    json_close(&job->out, '}');
}

void print_failure(struct job *job, const struct err *e)
{
    const struct code_row *row = code_row(e->code);
    if (job->json) {
        json_failure(job, e, e->signal ? "INTERRUPTED" : row->name);
        return;
    }
    if (job->rebase.shown)
        putchar('\n');
    fflush(stdout); /* what a dry run printed comes before */
    fputs("instar-launch: ", stderr);
    text_safe(stderr, e->text, strlen(e->text), TEXT_KEEP_LINES);
    fputc('\n', stderr);
    if (row->advice)
        fprintf(stderr, "instar-launch: %s\n", row->advice);
}
