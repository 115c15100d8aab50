/* SPDX-License-Identifier: MIT
 *
 * The plan of a dry run in words: a line for each patch, in columns that hold offsets up to a
 * petabyte, and the bytes of small writes below it.
 */
#include "plan.h"
#include "outcome.h"
#include "text.h"

#include <string.h>

enum { WHY_COLUMN = 51, BYTES_IN_LINE = 16 };

static const char *kind_name(instar_PatchKind kind)
{
    static const char *const name[] = {
        [instar_PatchKind_LENGTH] = "length",   [instar_PatchKind_WRITE] = "write",
        [instar_PatchKind_ZERO] = "zero",       [instar_PatchKind_COPY] = "copy",
        [instar_PatchKind_DISCARD] = "discard", [instar_PatchKind_INSERT] = "insert",
        [instar_PatchKind_BARRIER] = "barrier",
    };
    return name[kind]; /* the decoder lets no other number in */
}

static bool has_offset(const instar_Patch *p)
{
    return p->kind != instar_PatchKind_LENGTH && p->kind != instar_PatchKind_BARRIER;
}

/* ---- for people ---- */

static void column(uint64_t value, bool shown)
{
    if (shown)
        printf("  %16llu", (unsigned long long)value);
    else
        printf("  %16s", "-");
}

static void bytes(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (i % BYTES_IN_LINE == 0)
            printf("%s%*s", i ? "\n" : "", WHY_COLUMN, "");
        printf(" %02x", p[i]);
    }
    putchar('\n');
}

/* A file that is not the image's own, by what it is to that. Nothing has judged the number. */
static const char *other_file(const instar_Request *r, uint32_t slot)
{
    static char extent[24];
    instar_Role role = slot < r->disks_count ? r->disks[slot].role : instar_Role_ROLE_IMAGE;
    if (role != instar_Role_ROLE_EXTENT)
        return role == instar_Role_ROLE_DATA ? "data file" : "another file";
    snprintf(extent, sizeof extent, "extent %u", (unsigned)slot);
    return extent;
}

static void line(const struct job *job, const instar_Patch *p)
{
    if (job->patches == 0)
        printf("%5s  %-7s  %16s  %16s  %s\n", "epoch", "kind", "offset", "length", "why");
    printf("%5u  %-7s", (unsigned)p->epoch, kind_name(p->kind));
    column(p->off, has_offset(p));
    column(p->len, p->kind != instar_PatchKind_BARRIER);
    printf("  %s", p->commit ? "COMMIT: " : "");
    text_safe(stdout, p->why, strlen(p->why), TEXT_ONE_LINE);
    if (p->kind == instar_PatchKind_COPY)
        printf(" (from %llu)", (unsigned long long)p->from_off);
    if (p->slot)
        printf(" (%s)", other_file(&job->request, p->slot));
    putchar('\n');
    if (p->data.size)
        bytes(p->data.bytes, p->data.size);
}

static void size(const char *label, uint64_t before, uint64_t after)
{
    printf("%-14s", label);
    text_size(stdout, before);
    printf(" (%llu bytes)", (unsigned long long)before);
    if (before != after) {
        printf(" -> ");
        text_size(stdout, after);
        printf(" (%llu bytes)", (unsigned long long)after);
    }
    putchar('\n');
}

/* The lines that are of one operation. */
static void print_change(const struct job *job, const instar_Outcome *out)
{
    const instar_ResizeResult *r = &out->result.resize;
    const instar_RebaseResult *b = &out->result.rebase;
    if (out->which_result == instar_Outcome_resize_tag) {
        size("virtual size:", r->old_virtual_size, r->resolved_new_virtual_size);
        return;
    }
    printf("%-14s", "new backing:");
    text_safe(stdout, job->rebase.backing, strlen(job->rebase.backing), TEXT_ONE_LINE);
    printf("%s\n%-14s%s\n", *job->rebase.backing ? "" : "none", "mode:", b->mode);
    printf("%-14s%llu clusters (%llu bytes)\n", "copied:", (unsigned long long)b->clusters_copied,
           (unsigned long long)b->bytes_copied);
}

void plan_print(const struct job *job, const struct disk *disks, const instar_Outcome *out)
{
    const struct outcome_files f = outcome_files(out);
    if (job->patches)
        putchar('\n');
    printf("%-14s", "image:");
    text_safe(stdout, job->image, strlen(job->image), TEXT_ONE_LINE);
    printf("\n%-14s", "format:");
    text_safe(stdout, f.format, strlen(f.format), TEXT_ONE_LINE);
    printf("%s\n", f.probed ? " (guessed)" : "");
    print_change(job, out);
    size("file length:", f.before, f.after);
    for (unsigned i = 0; i < f.others; i++) {
        char label[32];
        snprintf(label, sizeof label, "%s:", other_file(&job->request, f.other[i].slot));
        size(label, disks[f.other[i].slot].length, f.other[i].length);
    }
    printf("%-14s%llu\n", "patches:", (unsigned long long)job->patches);
    if (f.more)
        puts("More epochs follow; what they depend on is more than a dry run has memory for.");
    puts("Dry run: nothing was written.");
}

/* ---- JSON ---- */

void plan_json_patch(struct json *j, const char *key, const instar_Patch *p)
{
    json_open(j, key, '{');
    json_text(j, "kind", kind_name(p->kind));
    json_number(j, "epoch", p->epoch);
    json_number(j, "slot", p->slot);
    json_number(j, "offset", p->off);
    json_number(j, "length", p->len);
    if (p->data.size)
        json_hex(j, "data", p->data.bytes, p->data.size);
    if (p->kind == instar_PatchKind_COPY) {
        json_number(j, "from_slot", p->from_slot);
        json_number(j, "from_offset", p->from_off);
    }
    if (p->may_unmap)
        json_flag(j, "may_unmap", true);
    if (p->commit)
        json_flag(j, "commit", true);
    json_text(j, "why", p->why);
    json_close(j, '}');
}

static void begin(struct job *job)
{
    json_open(&job->out, NULL, '{');
    json_text(&job->out, "filename", job->image);
    json_flag(&job->out, "dry_run", true);
    json_open(&job->out, "plan", '[');
}

void plan_json_end(struct job *job)
{
    if (job->patches == 0)
        begin(job);
    json_close(&job->out, ']');
}

void plan_show(struct job *job, const instar_Patch *p)
{
    if (!job->json) {
        line(job, p);
    } else {
        if (job->patches == 0)
            begin(job);
        plan_json_patch(&job->out, NULL, p);
    }
    job->patches++;
}
