/* SPDX-License-Identifier: MIT
 *
 * A sector of 512 bytes is written whole or not at all, so each that the journal names holds what
 * it held before the epoch or what the epoch put there. Behind the old end of the file there is
 * what the epoch put there, and zeros. Whatever else is found is somebody's data: then nothing is
 * touched. Sectors are put back first and the file is cut when they are durable; every state in
 * between is one that is rolled back the same way.
 */
#include "recover.h"
#include "frame.h"
#include "locks.h"
#include "text.h"
#include "undo.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum state { OLD, NEW, OTHER, STATES };
static const char *const state_name[STATES] = {"old", "new", "other"};

/* The journal of an image, and what the image holds in its place. */
struct finding {
    struct undo_journal journal;
    enum state state[UNDO_SECTORS];
    unsigned cnt[STATES];
    uint64_t length;  /* of the file, now */
    bool behind;      /* there are bytes behind the old end that are not the epoch's: */
    uint64_t foreign; /* where the first of them is */
};

/* ---- looking ---- */

static bool named(const struct undo_journal *j, uint64_t off)
{
    unsigned low = 0, high = j->cnt;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (j->mark[middle].off <= off)
            low = middle + 1;
        else
            high = middle;
    }
    return low && off - j->mark[low - 1].off < UNDO_SECTOR;
}

/* The first byte in [off, end) that is not zero, and in no sector of the journal; `end` if none. */
static int look_through(struct finding *f, const struct disk *d, uint64_t off, uint64_t end,
                        struct err *e)
{
    static uint8_t buf[128 << 10];
    while (off < end && !f->behind) {
        size_t want = end - off < sizeof buf ? (size_t)(end - off) : sizeof buf;
        ssize_t n = pread(d->fd, buf, want, (off_t)off);
        if (n <= 0)
            return err_set(e, instar_Code_READ_FAILED, "Could not read '%s': %s", d->name,
                           n ? strerror(errno) : "it ends early");
        for (ssize_t i = 0; i < n && !f->behind; i++)
            if (buf[i] && !named(&f->journal, off + (uint64_t)i)) {
                f->behind = true;
                f->foreign = off + (uint64_t)i;
            }
        off += (uint64_t)n;
    }
    return 0;
}

/* What lies behind the old end; holes are passed over. */
static int look_behind(struct finding *f, const struct disk *d, struct err *e)
{
    uint64_t off = f->journal.length;
    while (off < f->length && !f->behind) {
        off_t data = lseek(d->fd, (off_t)off, SEEK_DATA), end = (off_t)f->length;
        if (data < 0 && errno == ENXIO)
            return 0;
        if (data >= 0)
            end = lseek(d->fd, data, SEEK_HOLE);
        if (data < 0 || end <= data) { /* a file system that tells no holes */
            data = (off_t)off;
            end = (off_t)f->length;
        }
        if (look_through(f, d, (uint64_t)data, (uint64_t)end, e) < 0)
            return -1;
        off = (uint64_t)end;
    }
    return 0;
}

static int look(struct finding *f, const struct disk *d, struct err *e)
{
    struct undo_journal *j = &f->journal;
    uint8_t now[UNDO_SECTOR];
    struct stat st;
    if (fstat(d->fd, &st) < 0)
        return err_set(e, instar_Code_READ_FAILED, "Could not look at '%s': %s", d->name,
                       strerror(errno));
    f->length = (uint64_t)st.st_size;
    for (unsigned i = 0; i < j->cnt; i++) {
        if (disk_sector(d, j->mark[i].off, now, e) < 0)
            return -1;
        f->state[i] = memcmp(now, j->data + (size_t)i * UNDO_SECTOR, sizeof now) == 0 ? OLD
                      : crc32c(0, now, sizeof now) == j->mark[i].new                  ? NEW
                                                                                      : OTHER;
        f->cnt[f->state[i]]++;
    }
    return f->length > j->length ? look_behind(f, d, e) : 0;
}

static bool length_fits(const struct finding *f)
{
    return f->length >= f->journal.length && f->length <= f->journal.most;
}

/* UNDO_PENDING unless the image is as the epoch can have left it. */
static int refuse_others(const struct finding *f, const struct disk *d, struct err *e)
{
    if (length_fits(f) && !f->cnt[OTHER] && !f->behind)
        return 0;
    err_set(e, instar_Code_UNDO_PENDING,
            "'%s' has been used since an operation on it was interrupted, and is not rolled back",
            d->name);
    if (!length_fits(f))
        err_add(e, "It is %llu bytes long, and the operation left between %llu and %llu.",
                (unsigned long long)f->length, (unsigned long long)f->journal.length,
                (unsigned long long)f->journal.most);
    if (f->cnt[OTHER])
        err_add(e,
                "%u of %u sectors hold neither what they held before nor what the operation "
                "wrote.",
                f->cnt[OTHER], f->journal.cnt);
    if (f->behind)
        err_add(e, "There is data at %llu, behind what was the end of the file (%llu).",
                (unsigned long long)f->foreign, (unsigned long long)f->journal.length);
    err_add(e,
            "'instar-launch recover --dry-run' shows more. If the image is as it should be, "
            "remove '%s'.",
            d->journal);
    return -1;
}

/* ---- rolling back ---- */

static int cannot_put_back(const struct disk *d, struct err *e)
{
    return err_set(e, instar_Code_WRITE_FAILED, "Could not roll '%s' back: %s", d->name,
                   strerror(errno));
}

static int put_back(const struct finding *f, struct disk *d, struct err *e)
{
    const struct undo_journal *j = &f->journal;
    for (unsigned i = 0; i < j->cnt; i++)
        if (f->state[i] == NEW && j->mark[i].off < j->length &&
            pwrite(d->fd, j->data + (size_t)i * UNDO_SECTOR, UNDO_SECTOR, (off_t)j->mark[i].off) !=
                UNDO_SECTOR)
            return cannot_put_back(d, e);
    if (fdatasync(d->fd) < 0 || ftruncate(d->fd, (off_t)j->length) < 0)
        return cannot_put_back(d, e);
    return undo_retire(d, e); /* which syncs the file */
}

/* What there is to do: 1: something; 0: nothing, though something may lie there; -1: a failure. */
static int find(struct finding *f, const struct disk *d, struct err *e)
{
    *f = (struct finding){0};
    int r = undo_load(&f->journal, d, e);
    return r <= 0 ? r : look(f, d, e) < 0 ? -1 : 1;
}

/* 1: rolled back; 0: there was nothing to do. */
static int roll_back(struct finding *f, struct disk *d, struct err *e)
{
    int r = find(f, d, e);
    if (r == 0 && undo_exists(d)) /* never in force */
        return undo_retire(d, e);
    if (r > 0 && (refuse_others(f, d, e) < 0 || put_back(f, d, e) < 0))
        r = -1;
    return r;
}

static struct finding finding; /* too large for a stack */

int recover_now(struct disk *d, struct err *e)
{
    int r = roll_back(&finding, d, e);
    undo_free(&finding.journal);
    return r < 0 ? -1 : 0;
}

/* ---- words ---- */

static void put_words(FILE *to, const char *words)
{
    text_safe(to, words, strlen(words), TEXT_ONE_LINE);
}

static void put_result(FILE *to, const struct finding *f)
{
    fputs("Rolled back an interrupted operation (", to);
    put_words(to, f->journal.words);
    fprintf(to, "): %u of %u sectors put back", f->cnt[NEW], f->journal.cnt);
    if (f->length != f->journal.length)
        fprintf(to, ", file cut from %llu to %llu bytes", (unsigned long long)f->length,
                (unsigned long long)f->journal.length);
    fputs(".\n", to);
}

static void warn(const struct disk *d)
{
    fputs("instar-launch: warning: an operation on '", stderr);
    put_words(stderr, d->name);
    fputs("' was interrupted, and the image may be half changed: '", stderr);
    put_words(stderr, d->journal);
    fputs("' is there. The next operation that writes the image rolls back, or 'instar-launch "
          "recover'.\n",
          stderr);
}

int recover_first(const struct job *job, struct disk *d, struct err *e)
{
    if (undo_find(d, e) < 0)
        return -1;
    if (!d->writable || job->hand) {
        if (undo_exists(d))
            warn(d);
        undo_leave(d);
        return 0;
    }
    if (!undo_exists(d))
        return 0;
    int r = roll_back(&finding, d, e);
    if (r > 0) {
        fprintf(stderr, "instar-launch: ");
        put_result(stderr, &finding);
    }
    undo_free(&finding.journal);
    return r < 0 ? -1 : disk_measure(d, job->sector, e);
}

/* ---- the operation ---- */

/* The sectors, in runs of neighbours that are alike. */
static void list_sectors(struct job *job, const struct finding *f)
{
    const struct undo_mark *mark = f->journal.mark;
    if (!job->json)
        printf("\n%16s  %16s  %s\n", "offset", "length", "state");
    for (unsigned i = 0, n; i < f->journal.cnt; i += n) {
        for (n = 1; i + n < f->journal.cnt && f->state[i + n] == f->state[i] &&
                    mark[i + n].off == mark[i].off + n * UNDO_SECTOR;
             n++)
            continue;
        if (!job->json) {
            printf("%16llu  %16u  %s\n", (unsigned long long)mark[i].off, n * UNDO_SECTOR,
                   state_name[f->state[i]]);
            continue;
        }
        json_open(&job->out, NULL, '{');
        json_number(&job->out, "offset", mark[i].off);
        json_number(&job->out, "length", n * UNDO_SECTOR);
        json_text(&job->out, "state", state_name[f->state[i]]);
        json_close(&job->out, '}');
    }
}

static void line(const char *label, const char *text)
{
    printf("%-14s", label);
    put_words(stdout, text);
    putchar('\n');
}

static void tell(struct job *job, const struct disk *d, const struct finding *f)
{
    line("image:", job->image);
    line("journal:", d->journal);
    line("operation:", f->journal.words);
    printf("%-14s%u\n", "epoch:", (unsigned)f->journal.epoch);
    printf("%-14s%llu bytes now, %llu before\n", "file length:", (unsigned long long)f->length,
           (unsigned long long)f->journal.length);
    printf("%-14s%u as before, %u as the operation leaves them, %u neither\n",
           "sectors:", f->cnt[OLD], f->cnt[NEW], f->cnt[OTHER]);
    list_sectors(job, f);
}

/* The object stays open: a refusal may follow. */
static void json_finding(struct job *job, const struct disk *d, const struct finding *f)
{
    struct json *j = &job->out;
    json_text(j, "journal", d->journal);
    json_text(j, "operation", f->journal.words);
    json_number(j, "epoch", f->journal.epoch);
    json_number(j, "file_size", f->length);
    json_number(j, "old_file_size", f->journal.length);
    if (!job->request.dry_run)
        return;
    json_open(j, "sectors", '[');
    list_sectors(job, f);
    json_close(j, ']');
}

static void json_result(struct job *job, const char *action)
{
    if (!job->json)
        return;
    json_text(&job->out, "action", action);
    json_close(&job->out, '}');
}

static void json_begin(struct job *job)
{
    json_open(&job->out, NULL, '{');
    json_text(&job->out, "filename", job->image);
    if (job->request.dry_run)
        json_flag(&job->out, "dry_run", true);
}

static int told(struct job *job, const struct disk *d, struct finding *f, struct err *e)
{
    int r = find(f, d, e);
    if (r < 0)
        return -1;
    if (job->json)
        json_begin(job);
    if (r == 0) {
        json_result(job, "none");
        if (!job->json)
            puts("Nothing to recover.");
        return 0;
    }
    if (job->json)
        json_finding(job, d, f);
    else
        tell(job, d, f);
    if (refuse_others(f, d, e) < 0)
        return -1;
    json_result(job, "roll-back");
    if (!job->json)
        puts("\nDry run: nothing was written. Without --dry-run the image is rolled back.");
    return 0;
}

static int done(struct job *job, struct disk *d, struct finding *f, struct err *e)
{
    int r = roll_back(f, d, e);
    if (r < 0)
        return -1;
    if (job->json) {
        json_begin(job);
        if (r)
            json_finding(job, d, f);
        json_result(job, r ? "rolled-back" : "none");
    } else if (r) {
        put_result(stdout, f);
    } else if (!job->quiet) {
        puts("Nothing to recover.");
    }
    return 0;
}

int recover_image(struct job *job, struct err *e)
{
    struct disk d;
    bool dry_run = job->request.dry_run;
    if (disk_open(&d, job->image, !dry_run, 0, e) < 0 || undo_find(&d, e) < 0)
        return -1;
    int r = dry_run ? told(job, &d, &finding, e) : done(job, &d, &finding, e);
    undo_free(&finding.journal);
    locks_drop(d.fd);
    return r;
}
