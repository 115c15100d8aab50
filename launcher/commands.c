/* SPDX-License-Identifier: MIT
 *
 * commands[]: a row per verb, and what its operands mean.
 */
#include "commands.h"
#include "decode.h"
#include "options.h"
#include "print.h"
#include "rebase.h"
#include "recover.h"
#include "size.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_TIMEOUT = 30 };

/* ---- one parser per verb: from operands to the Request ---- */

static int parse_resize(struct job *job, char **operands, int count, int words, struct err *e)
{
    job->request.which_op = instar_Request_resize_tag;
    if (words < 2)
        return options_usage(job, e, "Not enough arguments", "");
    if (count != 2)
        return options_usage(job, e, "Expecting image file name and size", "");
    job->image = operands[0];
    return size_parse_change(operands[1], &job->request.op.resize, e);
}

static int parse_rebase(struct job *job, char **operands, int count, int words, struct err *e)
{
    (void)words;
    job->request.which_op = instar_Request_rebase_tag;
    if (count != 1)
        return options_usage(job, e, "Expecting one image file name", "");
    job->image = operands[0];
    return rebase_request(job, e);
}

static int parse_info(struct job *job, char **operands, int count, int words, struct err *e)
{
    (void)words;
    job->request.which_op = instar_Request_info_tag;
    if (count != 1)
        return options_usage(job, e, "Expecting one image file name", "");
    job->image = operands[0];
    return 0;
}

static int parse_recover(struct job *job, char **operands, int count, int words, struct err *e)
{
    (void)words;
    if (count != 1)
        return options_usage(job, e, "Expecting one image file name", "");
    job->image = operands[0];
    return 0;
}

static int parse_noop(struct job *job, char **operands, int count, int words, struct err *e)
{
    (void)words;
    job->request.which_op = instar_Request_noop_tag;
    if (count > 1)
        return options_usage(job, e, "Expecting at most one image file name", "");
    job->image = count ? operands[0] : NULL;
    return 0;
}

static int parse_decode(struct job *job, char **operands, int count, int words, struct err *e)
{
    (void)operands;
    (void)words;
    return count ? options_usage(job, e, "Expecting no operands: frames are read from stdin", "")
                 : 0;
}

static const struct command commands[] = {
    {.name = "resize",
     .image = "resize.elf",
     .operands = "IMAGE [+|-]SIZE",
     .writes = true,
     .parse = parse_resize,
     .print = print_resize,
     .json = json_resize,
     .own = resize_options,
     .undone = "has its old size and all its data",
     .either = "has its old size or its new one, and all its data",
     .about =
         "Changes the size of the virtual disk in IMAGE to SIZE, or by +SIZE or -SIZE. SIZE is in\n"
         "bytes, or has one of the suffixes k, M, G, T, P, E (powers of 1024); 1.5G and 0x4000 "
         "are\n"
         "sizes too. The image must not be in use. If the run fails or is killed, the image keeps\n"
         "its old size and all its data, or has its new one.\n",
     .examples =
         "  instar-launch resize disk.qcow2 +5G            five GiB more\n"
         "  instar-launch resize disk.qcow2 +5G --dry-run  what that would write, and why\n"
         "  instar-launch resize -f qcow2 disk.qcow2 100G  exactly 100 GiB; nothing is guessed\n"
         "  instar-launch resize -f raw disk.img -1G --shrink\n"},
    {.name = "rebase",
     .image = "rebase.elf",
     .operands = "-b BACKING -F FMT IMAGE",
     .writes = true,
     .parse = parse_rebase,
     .print = rebase_print,
     .json = rebase_json,
     .own = rebase_options,
     .undone = "stands on what it stood on, and shows what it showed",
     .either = "stands on its old backing file or on the new one, and has all its data",
     .about =
         "Makes the overlay IMAGE stand on the file BACKING instead of what it stands on now;\n"
         "with -b \"\" it stands alone afterwards. Its disk shows what it showed: where the two\n"
         "differ, data is copied into IMAGE first. With -u only the reference is changed,\n"
         "for a backing file that was moved or converted: that it holds the same is your word.\n"
         "A relative name belongs to the directory of IMAGE. It is stored as you type it.\n",
     .examples =
         "  instar-launch rebase -b base2.img -F raw vm.qcow2  copy what differs, then switch\n"
         "  instar-launch rebase -b base2.img -F raw vm.qcow2 --check-only  how much is that?\n"
         "  instar-launch rebase -b \"\" vm.qcow2               it stands alone\n"
         "  instar-launch rebase -u -b /new/place/base.img -F raw vm.qcow2\n"},
    {.name = "info",
     .image = "info.elf",
     .operands = "IMAGE",
     .parse = parse_info,
     .print = print_info,
     .json = json_info,
     .own = no_options,
     .about =
         "Prints what IMAGE says of itself: format, virtual size, backing file, features. The\n"
         "file is opened read-only.\n",
     .examples = "  instar-launch info disk.qcow2\n"
                 "  instar-launch info --output=json disk.qcow2 | jq '.\"virtual-size\"'\n"},
    {.name = "recover",
     .operands = "IMAGE",
     .writes = true,
     .parse = parse_recover,
     .host = recover_image,
     .own = recover_options,
     .about =
         "Rolls back the change of IMAGE that was interrupted, if there is an undo journal beside\n"
         "it, IMAGE.instar-undo. The next operation that writes IMAGE does the same. An image\n"
         "that has been used since is not touched.\n",
     .examples = "  instar-launch recover --dry-run disk.vhd   what it would do\n"
                 "  instar-launch recover disk.vhd\n"},
    {.name = "noop",
     .image = "noop.elf",
     .operands = "[IMAGE]",
     .parse = parse_noop,
     .print = print_noop,
     .json = json_noop,
     .own = no_options,
     .about = "Starts a VM that does nothing but answer. For measuring: no operation can be\n"
              "quicker.\n",
     .examples = "  instar-launch noop --accel=tcg -v disk.qcow2\n"},
    {.name = "decode",
     .operands = "< FILE",
     .parse = parse_decode,
     .host = decode_stdin,
     .own = no_options,
     .about = "Prints the frames that a unikernel sent over its serial port, read from stdin: one\n"
              "JSON object a line. What is no frame is reported with its offset, and passed over.\n"
              "For runs by hand (see --print-qemu).\n",
     .examples = "  instar-launch resize disk.qcow2 +5G --print-qemu=hand > hand.sh\n"
                 "  sh hand.sh; instar-launch decode < hand/serial.bin\n"},
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

static void print_command_help(const struct command *c)
{
    printf("usage: instar-launch %s [OPTION...] %s\n\n%s\n"
           "Options (a long name may be shortened):\n",
           c->name, c->operands, c->about);
    options_print(c);
    printf("\nExamples:\n%s%s", c->examples, exit_status);
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
    *job = (struct job){
        .timeout = DEFAULT_TIMEOUT, .accel = ACCEL_AUTO, .argv = argv, .argc = argc};
    job->qemu = getenv("INSTAR_QEMU");
    job->images = getenv("INSTAR_IMAGES");
    if (argc < 2)
        return options_usage(job, e, "Not enough arguments", "");
    if (strcmp(argv[1], "--version") == 0) {
        print_version();
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help();
        return 0;
    }
    if (argv[1][0] == '-')
        return options_usage(job, e, "Expecting a command before ", argv[1]);
    job->command = find_command(argv[1]);
    if (!job->command)
        return options_usage(job, e, "Command not found: ", argv[1]);
    options_take(job, argc - 1, argv + 1, &operands, &help, e);
    if (help) {
        print_command_help(job->command);
        job->command = NULL;
        err_clear(e);
        return 0;
    }
    if (e->code != instar_Code_OK ||
        job->command->parse(job, operands.word, operands.count, argc - 2, e) < 0)
        return -1;
    if (job->gdb && !job->hand)
        return options_usage(job, e, "--gdb goes with --print-qemu", "");
    return job->image ? set_disk(job, e) : 0;
}
