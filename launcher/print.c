/* SPDX-License-Identifier: MIT
 *
 * All that goes to stdout, and failures. The layouts of info are qemu-img's (parity G.2), with its
 * keys in its order. Strings of the guest pass through text.h; its numbers are only printed.
 */
#include "print.h"
#include "codes.h"
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

/* "key": "value", with what separates it from the next member. */
static void member(const char *indent, const char *key, const void *bytes, size_t len,
                   const char *then)
{
    printf("%s", indent);
    text_json(stdout, key, strlen(key));
    printf(": ");
    text_json(stdout, bytes, len);
    printf("%s", then);
}

static void member_number(const char *indent, const char *key, uint64_t value, const char *then)
{
    printf("%s\"%s\": %llu%s", indent, key, (unsigned long long)value, then);
}

static const char *boolean(bool value)
{
    return value ? "true" : "false";
}

/* ---- resize ---- */

void print_resize(const struct job *job, const struct disk *d, const instar_Outcome *out)
{
    (void)d;
    (void)out;
    if (!job->quiet)
        puts("Image resized.");
}

void json_resize(const struct job *job, const struct disk *d, const instar_Outcome *out)
{
    const instar_ResizeResult *r = &out->result.resize;
    (void)d;
    putchar('{');
    member("", "filename", job->image, strlen(job->image), ", ");
    member("", "format", r->target_format, strlen(r->target_format), ", ");
    member("", "action", r->action, strlen(r->action), ", ");
    member_number("", "old_virtual_size", r->old_virtual_size, ", ");
    member_number("", "new_virtual_size", r->resolved_new_virtual_size, ", ");
    member_number("", "old_file_size", r->file_size_before, ", ");
    member_number("", "new_file_size", r->file_size_after, "}\n");
}

void print_raw_warning(const struct job *job, const instar_Outcome *out)
{
    const instar_ResizeResult *r = &out->result.resize;
    if (out->which_result != instar_Outcome_resize_tag || !r->probed ||
        strcmp(r->target_format, "raw") != 0)
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

/* What the file occupies on the host. */
static uint64_t disk_size(const struct disk *d)
{
    return (uint64_t)d->before.st_blocks * 512;
}

static void print_fact(const instar_Fact *f)
{
    printf("    ");
    safe(f->key, strlen(f->key));
    printf(": ");
    if (f->which_value == instar_Fact_text_tag)
        safe(f->value.text, strlen(f->value.text));
    else if (f->which_value == instar_Fact_flag_tag)
        printf("%s", boolean(f->value.flag));
    else
        printf("%llu", (unsigned long long)f->value.number);
    putchar('\n');
}

void print_info(const struct job *job, const struct disk *d, const instar_Outcome *out)
{
    const instar_InfoResult *r = &out->result.info;
    line("image", job->image, strlen(job->image));
    line("file format", r->format, strlen(r->format));
    printf("virtual size: ");
    text_size(stdout, r->virtual_size);
    printf(" (%llu bytes)\ndisk size: ", (unsigned long long)r->virtual_size);
    text_size(stdout, disk_size(d));
    putchar('\n');
    if (r->encrypted)
        puts("encrypted: yes");
    if (r->cluster_size)
        printf("cluster_size: %llu\n", (unsigned long long)r->cluster_size);
    if (r->dirty)
        puts("cleanly shut down: no");
    if (r->backing_name.size)
        line("backing file", r->backing_name.bytes, r->backing_name.size);
    if (*r->backing_format)
        line("backing file format", r->backing_format, strlen(r->backing_format));
    if (r->facts_count)
        puts("Format specific information:");
    for (unsigned i = 0; i < r->facts_count; i++)
        print_fact(&r->facts[i]);
}

/* A key of the human layout is one of JSON with its spaces made hyphens. */
static void json_fact(const instar_Fact *f, const char *then)
{
    char key[sizeof f->key];
    strcpy(key, f->key);
    for (char *p = key; (p = strchr(p, ' ')); p++)
        *p = '-';
    if (f->which_value == instar_Fact_text_tag) {
        member("            ", key, f->value.text, strlen(f->value.text), then);
        return;
    }
    printf("            ");
    text_json(stdout, key, strlen(key));
    if (f->which_value == instar_Fact_flag_tag)
        printf(": %s%s", boolean(f->value.flag), then);
    else
        printf(": %llu%s", (unsigned long long)f->value.number, then);
}

void json_info(const struct job *job, const struct disk *d, const instar_Outcome *out)
{
    static const char in[] = "    ", next[] = ",\n";
    const instar_InfoResult *r = &out->result.info;
    puts("{");
    if (*r->backing_format)
        member(in, "backing-filename-format", r->backing_format, strlen(r->backing_format), next);
    member_number(in, "virtual-size", r->virtual_size, next);
    member(in, "filename", job->image, strlen(job->image), next);
    if (r->cluster_size)
        member_number(in, "cluster-size", r->cluster_size, next);
    member(in, "format", r->format, strlen(r->format), next);
    member_number(in, "actual-size", disk_size(d), next);
    if (r->encrypted)
        printf("    \"encrypted\": true,\n");
    if (r->facts_count) {
        printf("    \"format-specific\": {\n");
        member("        ", "type", r->format, strlen(r->format), next);
        printf("        \"data\": {\n");
        for (unsigned i = 0; i < r->facts_count; i++)
            json_fact(&r->facts[i], i + 1 < r->facts_count ? next : "\n");
        printf("        }\n    },\n");
    }
    if (r->backing_name.size)
        member(in, "backing-filename", r->backing_name.bytes, r->backing_name.size, next);
    printf("    \"dirty-flag\": %s\n}\n", boolean(r->dirty));
}

/* ---- noop ---- */

void print_noop(const struct job *job, const struct disk *d, const instar_Outcome *out)
{
    (void)job;
    (void)d;
    printf("disks: %u\n", (unsigned)out->result.noop.disks);
}

void json_noop(const struct job *job, const struct disk *d, const instar_Outcome *out)
{
    (void)job;
    (void)d;
    printf("{\"disks\": %u}\n", (unsigned)out->result.noop.disks);
}

/* ---- failures ---- */

void print_failure(const struct job *job, const struct err *e)
{
    struct code_row row = code_row(e->code);
    if (job->json) {
        printf("{");
        member("", "error", e->text, strlen(e->text), ", ");
        printf("\"code\": \"%s\"}\n", e->signal ? "INTERRUPTED" : row.name);
        return;
    }
    fputs("instar-launch: ", stderr);
    text_safe(stderr, e->text, strlen(e->text), TEXT_KEEP_LINES);
    fputc('\n', stderr);
    if (row.advice)
        fprintf(stderr, "instar-launch: %s\n", row.advice);
}
