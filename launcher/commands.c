/* SPDX-License-Identifier: MIT
 *
 * commands[] and options. getopt_long does the parsing, and thus knows prefixes of long names and
 * --name=value; options may follow operands. One rule is ours: an argument that begins with "-" and
 * goes on with neither a letter nor another "-" is an operand, for no option looks like that, and
 * sizes like -1G do.
 *
 * The first thing wrong is what gets reported, but parsing goes on to the end, so that a later
 * --output=json is known when it is.
 */
#include "commands.h"
#include "print.h"
#include "size.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 32, MAX_OPERANDS = 3 };
enum { DEFAULT_TIMEOUT = 30 };

struct option_row {
    int id; /* its letter if it has a short form, else an OPT_ number */
    const char *name, *arg, *help;
};

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
};

static const struct option_row common_options[] = {
    {'f', "format", "FMT", "format of the image, as qemu names it; without it, it is guessed"},
    {OPT_OUTPUT, "output", "human|json", "how to print the result; json: one object, errors too"},
    {OPT_ACCEL, "accel", "auto|kvm|tcg", "how to run the VM; auto: KVM where it works"},
    {OPT_TIMEOUT, "timeout", "SEC", "stop a VM that is silent for SEC seconds (30; 0: never)"},
    {OPT_QEMU, "qemu", "PATH", "the qemu-system-x86_64 to use"},
    {OPT_IMAGES, "images", "DIR", "where the unikernels are (resize.elf, ...)"},
    {OPT_OBJECT, "object", "OBJDEF", "not yet supported"},
    {OPT_IMAGE_OPTS, "image-opts", NULL, "not yet supported"},
    {'v', "verbose", NULL, "say on stderr what happens: QEMU's command line, its messages, times"},
    {'h', "help", NULL, "print this"},
    {0},
};

static const struct option_row resize_options[] = {
    {OPT_SHRINK, "shrink", NULL, "allow the image to become smaller, which loses what is cut off"},
    {OPT_PREALLOCATION, "preallocation", "MODE", "off, metadata, falloc or full"},
    {OPT_MAX_GROWTH, "max-growth", "SIZE", "let the file grow by at most SIZE on the host"},
    {'q', "quiet", NULL, "do not print \"Image resized.\""},
    {0},
};

static const struct option_row no_options[] = {{0}};

static int usage(const struct job *job, struct err *e, const char *text, const char *what)
{
    const char *verb = job->command ? job->command->name : "";
    return err_set(e, instar_Code_INVALID_OPTION,
                   "%s%s\nTry 'instar-launch %s%s--help' for more information", text, what, verb,
                   *verb ? " " : "");
}

/* ---- one parser per verb: from operands to the Request ---- */

static int parse_resize(struct job *job, char **operands, int count, int words, struct err *e)
{
    job->request.which_op = instar_Request_resize_tag;
    if (words < 2)
        return usage(job, e, "Not enough arguments", "");
    if (count != 2)
        return usage(job, e, "Expecting image file name and size", "");
    job->image = operands[0];
    return size_parse_change(operands[1], &job->request.op.resize, e);
}

static int parse_info(struct job *job, char **operands, int count, int words, struct err *e)
{
    (void)words;
    job->request.which_op = instar_Request_info_tag;
    if (count != 1)
        return usage(job, e, "Expecting one image file name", "");
    job->image = operands[0];
    return 0;
}

static int parse_noop(struct job *job, char **operands, int count, int words, struct err *e)
{
    (void)words;
    job->request.which_op = instar_Request_noop_tag;
    if (count > 1)
        return usage(job, e, "Expecting at most one image file name", "");
    job->image = count ? operands[0] : NULL;
    return 0;
}

static const struct command commands[] = {
    {"resize", "resize.elf", "IMAGE [+|-]SIZE", true, parse_resize, print_resize, json_resize,
     resize_options,
     "Changes the size of the virtual disk in IMAGE to SIZE, or by +SIZE or -SIZE. SIZE is in\n"
     "bytes, or has one of the suffixes k, M, G, T, P, E (powers of 1024); 1.5G and 0x4000 are\n"
     "sizes too. The image must not be in use. If the run fails or is killed, the image keeps its\n"
     "old size and all its data, or has its new one.\n",
     "  instar-launch resize disk.qcow2 +5G            five GiB more\n"
     "  instar-launch resize -f qcow2 disk.qcow2 100G  exactly 100 GiB; nothing is guessed\n"
     "  instar-launch resize -f raw disk.img -1G --shrink\n"},
    {"info", "info.elf", "IMAGE", false, parse_info, print_info, json_info, no_options,
     "Prints what IMAGE says of itself: format, virtual size, backing file, features. The file is\n"
     "opened read-only.\n",
     "  instar-launch info disk.qcow2\n"
     "  instar-launch info --output=json disk.qcow2 | jq '.\"virtual-size\"'\n"},
    {"noop", "noop.elf", "[IMAGE]", false, parse_noop, print_noop, json_noop, no_options,
     "Starts a VM that does nothing but answer. For measuring: no operation can be quicker.\n",
     "  instar-launch noop --accel=tcg -v disk.qcow2\n"},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

/* ---- help ---- */

static const char exit_status[] =
    "\nExit status: 0 done; 1 refused, failed or wrong usage; 4 the sandbox failed (no QEMU, a\n"
    "fault or silence in the VM), and the message says what that means for the image.\n";

static void print_version(void)
{
    printf("instar-launch " INSTAR_VERSION "\n");
}

static void print_help(void)
{
    printf(
        "usage: instar-launch COMMAND [OPTION...] OPERAND...\n\n"
        "Operations on disk images that nobody has to trust: each runs as a small kernel of its\n"
        "own in a QEMU virtual machine, and no byte of the image is interpreted outside it.\n\n"
        "Commands (instar-launch COMMAND --help says more):\n");
    for (int i = 0; i < COMMANDS; i++)
        printf("  %-8s %s\n", commands[i].name, commands[i].operands);
    printf("\nOptions:\n  -h, --help     print this\n      --version  print the version\n\n"
           "Examples:\n%s%s"
           "\nEnvironment: INSTAR_QEMU stands for --qemu, INSTAR_IMAGES for --images.\n%s",
           commands[0].examples, commands[1].examples, exit_status);
}

static void print_options(const struct option_row *row)
{
    for (; row->name; row++) {
        char name[64];
        snprintf(name, sizeof name, "--%s%s%s", row->name, row->arg ? "=" : "",
                 row->arg ? row->arg : "");
        if (row->id < 256)
            printf("  -%c, %-22s %s\n", row->id, name, row->help);
        else
            printf("      %-22s %s\n", name, row->help);
    }
}

static void print_command_help(const struct command *c)
{
    printf("usage: instar-launch %s [OPTION...] %s\n\n%s\n"
           "Options (a long name may be shortened):\n",
           c->name, c->operands, c->about);
    print_options(c->own);
    print_options(common_options);
    printf("\nExamples:\n%s%s", c->examples, exit_status);
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

static int take_option(struct job *job, int id, const char *value, struct err *e)
{
    static const char *const outputs[] = {"human", "json", NULL};
    static const char *const accels[] = {"auto", "kvm", "tcg", NULL};
    static const char *const modes[] = {"off", "metadata", "falloc", "full", NULL};
    instar_ResizeRequest *resize = &job->request.op.resize;
    int n;
    switch (id) {
    case 'f':
        job->format = value;
        return 0;
    case 'q':
        job->quiet = true;
        return 0;
    case 'v':
        job->verbose = true;
        return 0;
    case OPT_OUTPUT:
        if ((n = choose(value, outputs)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION,
                           "--output must be used with human or json as argument.");
        job->json = n;
        return 0;
    case OPT_OBJECT:
        return err_set(e, instar_Code_INVALID_OPTION, "--object is not yet supported");
    case OPT_IMAGE_OPTS:
        return err_set(e, instar_Code_INVALID_OPTION, "--image-opts is not yet supported");
    case OPT_ACCEL:
        if ((n = choose(value, accels)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION,
                           "--accel must be auto, kvm or tcg, not '%s'", value);
        job->accel = (enum accel)n;
        return 0;
    case OPT_TIMEOUT:
        return take_timeout(job, value, e);
    case OPT_QEMU:
        job->qemu = value;
        return 0;
    case OPT_IMAGES:
        job->images = value;
        return 0;
    case OPT_SHRINK:
        resize->shrink = true;
        return 0;
    case OPT_PREALLOCATION:
        if ((n = choose(value, modes)) < 0)
            return err_set(e, instar_Code_INVALID_OPTION, "Invalid preallocation mode '%s'", value);
        resize->preallocation = (instar_Preallocation)n;
        return 0;
    case OPT_MAX_GROWTH:
        job->limited = true;
        return size_parse(value, "max-growth", &job->max_growth, e);
    }
    abort();
}

/* ---- the parser ---- */

struct option_set {
    struct option longs[MAX_OPTIONS + 1];
    char shorts[2 * MAX_OPTIONS + 3];
};

static void add_options(struct option_set *s, int *n, const struct option_row *row)
{
    for (; row->name; row++) {
        s->longs[(*n)++] = (struct option){row->name, row->arg != NULL, NULL, row->id};
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
        return usage(job, e, "unrecognized option ", quoted);
    }
    snprintf(quoted, sizeof quoted, "'%s'", word);
    if (c == ':')
        return usage(job, e, "missing argument for option ", quoted);
    int matches = 0;
    for (const struct option *o = s->longs; o->name; o++)
        matches += strncmp(o->name, word + 2, strcspn(word + 2, "=")) == 0;
    return usage(job, e, matches > 1 ? "ambiguous option " : "unrecognized option ", quoted);
}

static bool is_operand(const char *word)
{
    return word[0] == '-' && word[1] && word[1] != '-' && !isalpha((unsigned char)word[1]);
}

/* The operands: all are counted, the first few kept. */
struct operands {
    char *word[MAX_OPERANDS];
    int count;
};

static void keep(struct operands *o, char *word)
{
    if (o->count++ < MAX_OPERANDS)
        o->word[o->count - 1] = word;
}

static void take_words(struct job *job, int argc, char **argv, struct operands *operands,
                       bool *help, struct err *e)
{
    struct option_set s = {.shorts = "-:"}; /* "-": operands come in order, as option 1 */
    int n = 0, c = 0;
    add_options(&s, &n, job->command->own);
    add_options(&s, &n, common_options);
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

static const struct command *find_command(const char *name)
{
    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(name, commands[i].name) == 0)
            return &commands[i];
    return NULL;
}

/* One disk; the guest knows the drivers, and a name that does not fit, or is empty, is none. */
static int set_disk(struct job *job, struct err *e)
{
    instar_Disk *disk = &job->request.disks[0];
    job->request.disks_count = 1;
    if (!job->format)
        return 0;
    if (!*job->format || strlen(job->format) >= sizeof disk->format)
        return err_set(e, instar_Code_INVALID_OPTION, "Could not open '%s': Unknown driver '%s'",
                       job->image, job->format);
    strcpy(disk->format, job->format);
    return 0;
}

int commands_parse(struct job *job, int argc, char **argv, struct err *e)
{
    struct operands operands = {0};
    bool help = false;
    *job = (struct job){.timeout = DEFAULT_TIMEOUT, .accel = ACCEL_AUTO};
    job->qemu = getenv("INSTAR_QEMU");
    job->images = getenv("INSTAR_IMAGES");
    if (argc < 2)
        return usage(job, e, "Not enough arguments", "");
    if (strcmp(argv[1], "--version") == 0) {
        print_version();
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help();
        return 0;
    }
    if (argv[1][0] == '-')
        return usage(job, e, "Expecting a command before ", argv[1]);
    job->command = find_command(argv[1]);
    if (!job->command)
        return usage(job, e, "Command not found: ", argv[1]);
    take_words(job, argc - 1, argv + 1, &operands, &help, e);
    if (help) {
        print_command_help(job->command);
        job->command = NULL;
        err_clear(e);
        return 0;
    }
    if (e->code != instar_Code_OK ||
        job->command->parse(job, operands.word, operands.count, argc - 2, e) < 0)
        return -1;
    return job->image ? set_disk(job, e) : 0;
}
