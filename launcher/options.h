/* SPDX-License-Identifier: MIT
 *
 * The options: their tables, which make the help too, and the words of a command line read by them.
 */
#ifndef LAUNCHER_OPTIONS_H
#define LAUNCHER_OPTIONS_H

#include "commands.h"

struct option_row {
    int id; /* its letter if it has a short form, else a number of options.c */
    const char *name;
    const char *arg; /* NULL: it takes no value; "[=...]": it may have one */
    const char *help;
};

/* each ends with a row of zeros */
extern const struct option_row resize_options[], rebase_options[], recover_options[],
    no_options[];

enum { MAX_OPERANDS = 3 };

/* The operands: all are counted, the first few kept. */
struct operands {
    char *word[MAX_OPERANDS];
    int count;
};

/* Reads the words after the verb, argv[0], into *job and *operands; *help: -h is among them. */
void options_take(struct job *job, int argc, char **argv, struct operands *operands, bool *help,
                  struct err *e);

/* Prints what the verb takes, a line each. */
void options_print(const struct command *c);

/* A failure of wrong usage, which points at --help. */
int options_usage(const struct job *job, struct err *e, const char *text, const char *what);

#endif
