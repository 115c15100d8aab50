/* SPDX-License-Identifier: MIT
 *
 * getopt_long does the parsing, and thus knows prefixes of long names and --name=value; options may
 * follow operands. One rule is ours: an argument that begins with "-" and goes on with neither a
 * letter nor another "-" is an operand, for no option looks like that, and sizes like -1G do.
 *
 * The first thing wrong is what gets reported, but parsing goes on to the end, so that a later
 * --output=json is known when it is.
 */
#include "options.h"
#include "size.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 32 };

enum {
    OPT_OUTPUT = 256,
    OPT_OBJECT,
    OPT_IMAGE_OPTS,
    OPT_ACCEL,
    OPT_TIMEOUT,
    OPT_QEMU,
    OPT_IMAGES,
    OPT_SHRINK,
    OPT_PREALLOCATION,
    OPT_MAX_GROWTH,
    OPT_ALIGN,
    OPT_DRY_RUN,
    OPT_MACHINE,
    OPT_BLOCK_SIZE,
    OPT_PRINT_QEMU,
    OPT_GDB,
    OPT_BACKING_DIR,
    OPT_NO_BACKING,
    OPT_CHECK_ONLY,
};

/* Of every verb that runs a VM. */
static const struct option_row vm_options[] = {
    {'f', "format", "FMT", "the image's format, as qemu names it; else it is guessed"},
    {OPT_OUTPUT, "output", "human|json", "how to print the result, and errors"},
    {OPT_ACCEL, "accel", "auto|kvm|tcg", "how to run the VM; auto: KVM where it works"},
    {OPT_MACHINE, "machine", "auto|microvm|q35|pc", "QEMU's machine; auto: the first that it has"},
    {OPT_BLOCK_SIZE, "logical-block-size", "512|4096", "of the VM's disk; 512, or a device's own"},
    {OPT_TIMEOUT, "timeout", "SEC", "stop a VM that is silent for SEC seconds (30; 0: never)"},
    {OPT_QEMU, "qemu", "PATH", "the qemu-system-x86_64 to use"},
    {OPT_IMAGES, "images", "DIR", "where the unikernels are (resize.elf, ...)"},
    {OPT_PRINT_QEMU, "print-qemu", "DIR", "only print how to run it by hand, with files in DIR"},
    {OPT_GDB, "gdb", NULL, "with --print-qemu: under gdb"},
    {OPT_OBJECT, "object", "OBJDEF", "not yet supported"},
    {OPT_IMAGE_OPTS, "image-opts", NULL, "not yet supported"},
    {'v', "verbose", NULL, "say on stderr what happens: what is run, what it says, times"},
    {0},
};

static const struct option_row help_options[] = {{'h', "help", NULL, "print this"}, {0}};

const struct option_row resize_options[] = {
    {OPT_DRY_RUN, "dry-run", NULL, "print the plan, patch by patch, and write nothing"},
    {OPT_SHRINK, "shrink", "[=unallocated]", "allow a smaller size; unallocated: if no data goes"},
    {OPT_PREALLOCATION, "preallocation", "off|metadata|falloc|full", "of what the file gains"},
    {OPT_ALIGN, "align", "SIZE", "round the new size up to a multiple of SIZE (1M for Azure)"},
    {OPT_MAX_GROWTH, "max-growth", "SIZE", "let the file grow by at most SIZE on the host"},
    {OPT_BACKING_DIR, "backing-dir", "DIR", "files that it names may lie below DIR (repeatable)"},
    {OPT_NO_BACKING, "no-backing", NULL, "open no file that the image names"},
    {'q', "quiet", NULL, "do not print \"Image resized.\""},
    {0},
};

const struct option_row rebase_options[] = {
    {'b', "backing", "BACKING", "what IMAGE is to stand on; an empty name: on nothing"},
    {'F', "backing-format", "FMT", "the format of that file: raw, qcow2, vpc, vhdx or vmdk"},
    {'u', "backing-unsafe", NULL, "change the reference only, and believe that all is the same"},
    {OPT_CHECK_ONLY, "check-only", NULL, "tell how much would be copied, and write nothing"},
    {OPT_DRY_RUN, "dry-run", NULL, "print the plan, patch by patch, and write nothing"},
    {OPT_MAX_GROWTH, "max-growth", "SIZE", "let the file grow by at most SIZE on the host"},
    {OPT_BACKING_DIR, "backing-dir", "DIR", "files that it names may lie below DIR (repeatable)"},
    {OPT_NO_BACKING, "no-backing", NULL, "open no file that an image names"},
    {'p', "progress", NULL, "show how far it has come"},
    {'q', "quiet", NULL, "show nothing"},
    {0},
};

const struct option_row recover_options[] = {
    {OPT_DRY_RUN, "dry-run", NULL, "tell what is to be rolled back, and write nothing"},
    {OPT_OUTPUT, "output", "human|json", "how to print the result, and errors"},
    {'q', "quiet", NULL, "do not print \"Nothing to recover.\""},
    {0},
};

const struct option_row no_options[] = {{0}};

int options_usage(const struct job *job, struct err *e, const char *text, const char *what)
{
    const char *verb = job->command ? job->command->name : "";
    return err_set(e, instar_Code_INVALID_OPTION,
                   "%s%s\nTry 'instar-launch %s%s--help' for more information", text, what, verb,
                   *verb ? " " : "");
}

/* ---- help ---- */

/* getopt's word for it. */
static int takes_value(const struct option_row *row)
{
    return !row->arg ? no_argument : row->arg[0] == '[' ? optional_argument : required_argument;
}

static void print_rows(const struct option_row *row)
{
    for (; row->name; row++) {
        char name[64];
        snprintf(name, sizeof name, "--%s%s%s", row->name,
                 takes_value(row) == required_argument ? "=" : "", row->arg ? row->arg : "");
        if (row->id < 256)
            printf("  -%c, %-29s %s\n", row->id, name, row->help);
        else
            printf("      %-29s %s\n", name, row->help);
    }
}

/* The tables of a verb, ended by NULL. */
static void tables(const struct command *c, const struct option_row *table[4])
{
    int n = 0;
    table[n++] = c->own;
    if (c->image)
        table[n++] = vm_options;
    table[n++] = help_options;
    table[n] = NULL;
}

void options_print(const struct command *c)
{
    const struct option_row *table[4];
    tables(c, table);
    for (int i = 0; table[i]; i++)
        print_rows(table[i]);
}

/* ---- options ---- */

/* The position of `value` in a NULL-terminated list, or -1. */
static int choose(const char *value, const char *const *list)
{
    for (int i = 0; list[i]; i++)
        if (strcmp(value, list[i]) == 0)
            return i;
    return -1;
}

static int take_timeout(struct job *job, const char *value, struct err *e)
{
    char *end;
    errno = 0;
    unsigned long seconds = strtoul(value, &end, 10);
    if (!isdigit((unsigned char)*value) || *end || errno || seconds > 1000000)
        return err_set(e, instar_Code_INVALID_OPTION,
                       "Invalid timeout '%s': a number of seconds from 0 (never) to 1000000",
                       value);
    job->timeout = (unsigned)seconds;
    return 0;
}

/* A power of two that a disk's size can be a multiple of, and that costs no great growth. */
static int take_align(struct job *job, const char *value, struct err *e)
{
    uint64_t align;
    if (size_parse(value, "align", &align, e) < 0)
        return -1;
    if (align < 512 || align > 64 << 20 || (align & (align - 1)))
        return err_set(e, instar_Code_INVALID_OPTION,
                       "--align must be a power of two from 512 to 64M, not '%s'", value);
    job->request.op.resize.align = align;
    return 0;
}

static int take_backing_dir(struct policy *p, const char *dir, struct err *e)
{
    if (p->count == POLICY_DIRS)
        return err_set(e, instar_Code_INVALID_OPTION, "--backing-dir can be given %d times",
                       POLICY_DIRS);
    p->dirs[p->count++] = dir;
    return 0;
}

/* --shrink[=unallocated]; `value` is NULL without one. */
static int take_shrink(instar_ResizeRequest *r, const char *value, struct err *e)
{
    if (value && strcmp(value, "unallocated") != 0)
        return err_set(e, instar_Code_INVALID_OPTION,
                       "--shrink must stand alone or have the value unallocated, not '%s'", value);
    r->shrink = true;
    r->unallocated = value != NULL;
    return 0;
}

/* --accel, --machine and the like: one of a few words. */
static int take_choice(struct job *job, int id, const char *value, struct err *e)
{
    static const char *const outputs[] = {"human", "json", NULL};
    static const char *const accels[] = {"auto", "kvm", "tcg", NULL};
    static const char *const machines[] = {"auto", "microvm", "q35", "pc", NULL};
    static const char *const sectors[] = {"512", "4096", NULL};
    static const char *const modes[] = {"off", "metadata", "falloc", "full", NULL};
    int n;
    switch (id) {
    case OPT_OUTPUT:
        if ((n = choose(value, outputs)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION,
                           "--output must be used with human or json as argument.");
        job->json = n;
        return 0;
    case OPT_ACCEL:
        if ((n = choose(value, accels)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION,
                           "--accel must be auto, kvm or tcg, not '%s'", value);
        job->accel = (enum accel)n;
        return 0;
    case OPT_MACHINE:
        if ((n = choose(value, machines)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION,
                           "--machine must be auto, microvm, q35 or pc, not '%s'", value);
        job->machine = (enum machine_choice)n;
        return 0;
    case OPT_BLOCK_SIZE:
        if ((n = choose(value, sectors)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION,
                           "--logical-block-size must be 512 or 4096, not '%s'", value);
        job->sector = n ? 4096 : 512;
        return 0;
    case OPT_PREALLOCATION:
        if ((n = choose(value, modes)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION, "Invalid preallocation mode '%s'", value);
        job->request.op.resize.preallocation = (instar_Preallocation)n;
        return 0;
    }
    abort();
}

static int take_option(struct job *job, int id, const char *value, struct err *e)
{
    switch (id) {
    case 'f':
        job->format = value;
        return 0;
    case 'q':
        job->quiet = true;
        return 0;
    case 'b':
        job->rebase.backing = value;
        return 0;
    case 'F':
        job->rebase.format = value;
        return 0;
    case 'u':
        job->rebase.unsafe = true;
        return 0;
    case 'p':
        job->rebase.progress = true;
        return 0;
    case 'v':
        job->verbose = true;
        return 0;
    case OPT_OBJECT:
        return err_set(e, instar_Code_INVALID_OPTION, "--object is not yet supported");
    case OPT_IMAGE_OPTS:
        return err_set(e, instar_Code_INVALID_OPTION, "--image-opts is not yet supported");
    case OPT_TIMEOUT:
        return take_timeout(job, value, e);
    case OPT_QEMU:
        job->qemu = value;
        return 0;
    case OPT_IMAGES:
        job->images = value;
        return 0;
    case OPT_PRINT_QEMU:
        job->hand = value;
        return 0;
    case OPT_GDB:
        job->gdb = true;
        return 0;
    case OPT_BACKING_DIR:
        return take_backing_dir(&job->policy, value, e);
    case OPT_NO_BACKING:
        job->policy.forbidden = true;
        return 0;
    case OPT_DRY_RUN:
        job->request.dry_run = true;
        return 0;
    case OPT_CHECK_ONLY:
        job->rebase.check_only = true;
        return 0;
    case OPT_SHRINK:
        return take_shrink(&job->request.op.resize, value, e);
    case OPT_ALIGN:
        return take_align(job, value, e);
    case OPT_MAX_GROWTH:
        job->limited = true;
        return size_parse(value, "max-growth", &job->max_growth, e);
    }
    return take_choice(job, id, value, e);
}

/* ---- the parser ---- */

struct option_set {
    struct option longs[MAX_OPTIONS + 1];
    char shorts[2 * MAX_OPTIONS + 3];
};

static void add_options(struct option_set *s, int *n, const struct option_row *row)
{
    for (; row->name; row++) {
        s->longs[(*n)++] = (struct option){row->name, takes_value(row), NULL, row->id};
        size_t len = strlen(s->shorts);
        if (row->id < 256)
            snprintf(s->shorts + len, sizeof s->shorts - len, row->arg ? "%c:" : "%c", row->id);
    }
}

/* What getopt could not take: `c` is its '?' or ':'. It names an unknown letter in optopt; else the
 * word before optind is the culprit. */
static int bad_option(const struct job *job, const struct option_set *s, int c, char **argv,
                      struct err *e)
{
    char quoted[128];
    const char *word = argv[optind - 1];
    if (c == '?' && optopt > 0 && optopt < 256 && !strchr(s->shorts, optopt)) {
        snprintf(quoted, sizeof quoted, "'-%c'", optopt);
        return options_usage(job, e, "unrecognized option ", quoted);
    }
    snprintf(quoted, sizeof quoted, "'%s'", word);
    if (c == ':')
        return options_usage(job, e, "missing argument for option ", quoted);
    int matches = 0;
    for (const struct option *o = s->longs; o->name; o++)
        matches += strncmp(o->name, word + 2, strcspn(word + 2, "=")) == 0;
    return options_usage(job, e, matches > 1 ? "ambiguous option " : "unrecognized option ",
                         quoted);
}

static bool is_operand(const char *word)
{
    return word[0] == '-' && word[1] && word[1] != '-' && !isalpha((unsigned char)word[1]);
}

static void keep(struct operands *o, char *word)
{
    if (o->count++ < MAX_OPERANDS)
        o->word[o->count - 1] = word;
}

void options_take(struct job *job, int argc, char **argv, struct operands *operands, bool *help,
                  struct err *e)
{
    const struct option_row *table[4];
    struct option_set s = {.shorts = "-:"}; /* "-": operands come in order, as option 1 */
    int n = 0, c = 0;
    tables(job->command, table);
    for (int i = 0; table[i]; i++)
        add_options(&s, &n, table[i]);
    opterr = 0;
    optind = 1;
    while (c != -1) {
        if (optind < argc && is_operand(argv[optind])) {
            keep(operands, argv[optind++]);
            continue;
        }
        c = getopt_long(argc, argv, s.shorts, s.longs, NULL);
        if (c == 1)
            keep(operands, optarg);
        else if (c == '?' || c == ':')
            bad_option(job, &s, c, argv, e);
        else if (c == 'h')
            *help = true;
        else if (c != -1)
            take_option(job, c, optarg, e);
    }
    for (; optind < argc; optind++) /* what follows "--" */
        keep(operands, argv[optind]);
}
