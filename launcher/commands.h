/* SPDX-License-Identifier: MIT
 *
 * The command line: commands[], one row per verb, and what a user's words come to, a struct job.
 */
#ifndef LAUNCHER_COMMANDS_H
#define LAUNCHER_COMMANDS_H

#include "err.h"
#include "json.h"
#include "machines.h"
#include "policy.h"

#include <stdbool.h>
#include <stdio.h>

enum accel { ACCEL_AUTO, ACCEL_KVM, ACCEL_TCG };

struct option_row; /* options.h */
struct command;
struct disk;

struct job {
    const struct command *command; /* NULL: only help or version was asked for */
    char **argv;                   /* all words */
    int argc;
    const char *image;             /* the file, or NULL */
    const char *format;            /* what -f says, or NULL */
    instar_Request request;        /* all but the disks */
    bool quiet, json, verbose;
    enum accel accel;
    enum machine_choice machine;
    unsigned sector;  /* --logical-block-size; 0: as the disk has it */
    const char *hand; /* --print-qemu: the directory, or NULL */
    bool gdb;
    struct policy policy; /* for names that an image holds */
    bool lenient;         /* the operation can do without the files that images name */
    unsigned timeout; /* seconds without a frame; 0: for ever */
    const char *qemu, *images;
    bool limited; /* --max-growth was given */
    uint64_t max_growth;

    struct {
        const char *backing, *format; /* -b, -F; NULL: not given */
        bool unsafe, check_only, progress;
        bool shown; /* the line of the progress has not ended yet */
    } rebase;

    struct json out;  /* the object on stdout */
    uint64_t patches; /* of a dry run, printed so far */
};

struct command {
    const char *name;
    const char *image;    /* file name of the unikernel; NULL: it needs no VM */
    const char *operands; /* for the synopsis */
    bool writes;          /* opens the file for writing */
    int (*parse)(struct job *, char **operands, int count, int words, struct err *);
    void (*print)(struct job *, const struct disk *, const instar_Outcome *); /* for people */
    void (*json)(struct job *, const struct disk *, const instar_Outcome *);
    int (*host)(struct job *, struct err *); /* what it does where it needs no VM */
    const struct option_row *own; /* its options besides those of all VMs */
    const char *undone, *either;  /* what is so of an image whose change was rolled back, or was
                                   * interrupted; of verbs that write in a VM */
    const char *about, *examples;
};

/* Fills *job and returns 0; prints help or version itself, and then job->command is NULL. On a
 * failure, job->json is as far known as the words tell. */
int commands_parse(struct job *job, int argc, char **argv, struct err *e);

#endif
