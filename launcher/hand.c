/* SPDX-License-Identifier: MIT
 *
 * A run by hand. Here QEMU opens and locks the image itself, by the name that the user typed. What
 * the guest says is logged to a file; where it may ask for room, its serial port is a socket too,
 * for the grant, and QMP is another. The output is a script: all but the command is comment.
 */
#include "hand.h"
#include "cmdline.h"
#include "paths.h"
#include "qemu.h"
#include "request.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { SOCKET_ROOM = sizeof((struct sockaddr_un *)NULL)->sun_path };

/* A value within an option of QEMU's: a comma in it is doubled. */
static char *escaped(const char *value)
{
    char *text = malloc(2 * strlen(value) + 1), *to = text;
    if (!text)
        abort();
    for (; *value; value++) {
        *to++ = *value;
        if (*value == ',')
            *to++ = ',';
    }
    *to = '\0';
    return text;
}

/* A word for a shell. */
static void quoted(const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "-_=,.:/+@%";
    if (*word && strspn(word, plain) == strlen(word)) {
        fputs(word, stdout);
        return;
    }
    putchar('\'');
    for (; *word; word++)
        if (*word == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*word);
    putchar('\'');
}

static int make_request(struct job *job, const struct disk *disks, unsigned count, struct err *e)
{
    const char *dir = job->hand;
    char path[PATH_ROOM];
    /* -initrd takes what follows a space for arguments; names of sockets are short. */
    if (strpbrk(dir, " \n") || strlen(dir) + strlen("/serial.sock") >= SOCKET_ROOM)
        return err_set(e, instar_Code_INVALID_OPTION,
                       "--print-qemu needs a directory with a short name without spaces, not '%s'",
                       dir);
    snprintf(path, sizeof path, "%s/request.bin", dir);
    int fd = -1;
    if (mkdir(dir, 0777) == 0 || errno == EEXIST)
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    if (fd < 0)
        return err_set(e, instar_Code_INVALID_OPTION, "Could not write '%s': %s", path,
                       strerror(errno));
    int r = request_write(job, disks, count, fd, e);
    close(fd);
    return r;
}

static void add_channels(struct cmdline *c, const char *dir, bool grants)
{
    char *safe = escaped(dir);
    cmdline_add(c, "-initrd");
    cmdline_add(c, "%s/request.bin", safe);
    if (grants) {
        cmdline_add_words(c, "-serial chardev:serial -mon chardev=control,mode=control -chardev");
        cmdline_add(c,
                    "socket,id=serial,path=%s/serial.sock,server=on,wait=off,"
                    "logfile=%s/serial.bin,logappend=off",
                    safe, safe);
        cmdline_add(c, "-chardev");
        cmdline_add(c, "socket,id=control,path=%s/qmp.sock,server=on,wait=off", safe);
    } else {
        cmdline_add_words(c, "-serial chardev:serial -chardev");
        cmdline_add(c, "file,id=serial,path=%s/serial.bin", safe);
    }
    free(safe);
}

static void add_disk(struct cmdline *c, const struct machine *machine, unsigned n,
                     const struct disk *d)
{
    char *name = escaped(d->name), *file = NULL;
    if (asprintf(&file, "filename=%s", name) < 0)
        abort();
    cmdline_disk(c, machine, n, d, file);
    free(file);
    free(name);
}

/* An option and its value stand on one line. */
static void print_command(const struct cmdline *c)
{
    for (int i = 0; i < c->words; i++) {
        if (i)
            fputs(c->word[i][0] == '-' ? " \\\n    " : " ", stdout);
        quoted(c->word[i]);
    }
    putchar('\n');
}

/* A file in the directory, for a shell. */
static void in_dir(const struct job *job, const char *file)
{
    char path[SOCKET_ROOM + 1];
    snprintf(path, sizeof path, "%s/%s", job->hand, file);
    quoted(path);
}

static void print_grants(const struct job *job)
{
    puts("# If it asks for room (need), nothing has been written yet. Make the disk as long as it\n"
         "# says over QMP, then grant: one byte, the number of the epoch. If it announces what it\n"
         "# overwrites (undo), copy the image first: nobody writes an undo journal here.");
    printf("#   (echo '{\"execute\": \"qmp_capabilities\"}'; echo '{\"execute\": \"block_resize\", "
           "\"arguments\": {\"node-name\": \"f0\", \"size\": LENGTH}}'; sleep 1) | "
           "socat - UNIX-CONNECT:");
    in_dir(job, "qmp.sock");
    printf("\n#   (printf '\\0'; sleep 1) | socat - UNIX-CONNECT:");
    in_dir(job, "serial.sock");
    printf("\n# In the end the file gets the length that the outcome says (file_size_after): "
           "truncate -s.\n");
}

/* The symbols lie in the build tree, if that is where the kernel is. */
static void print_gdb(const char *kernel, const char *image)
{
    char symbols[2 * PATH_ROOM];
    snprintf(symbols, sizeof symbols, "%.*s/../build/guest/%s",
             (int)(strrchr(kernel, '/') - kernel), kernel, image);
    char *path = realpath(symbols, NULL);
    puts("# QEMU waits for gdb on port 1234. The kernel is not in memory yet: hence hbreak.");
    printf("#   gdb ");
    quoted(path ? path : "build/guest/OPERATION.elf");
    printf(" -ex 'target remote :1234' -ex 'hbreak kernel_main' -ex continue\n");
    if (!path)
        puts("# (The symbols are in a build tree only.)");
    free(path);
}

static void print_script(const struct job *job, const struct cmdline *c, const char *kernel,
                         bool grants)
{
    puts("# The request is written; nothing has been started. This starts it:");
    print_command(c);
    printf(
        "# QEMU's status is twice the guest's, plus 1: 1 done, 3 refused, 251 a fault. Its words:\n"
        "#   instar-launch decode < ");
    in_dir(job, "serial.bin");
    putchar('\n');
    if (grants)
        print_grants(job);
    if (job->gdb)
        print_gdb(kernel, job->command->image);
}

int hand_print(struct job *job, const struct disk *disks, unsigned count, struct err *e)
{
    struct cmdline c = {0};
    char qemu[PATH_ROOM], found[PATH_ROOM];
    bool grants = false;
    enum accel accel = job->accel;
    if (accel == ACCEL_AUTO)
        accel = qemu_kvm_usable() ? ACCEL_KVM : ACCEL_TCG;
    const struct machine *machine = machines_next(job->machine, NULL);
    if (paths_qemu(job->qemu, qemu, e) < 0 ||
        paths_image(job->images, job->command->image, found, e) < 0 ||
        make_request(job, disks, count, e) < 0)
        return -1;
    char *kernel = realpath(found, NULL);
    for (unsigned i = 0; i < count; i++)
        grants |= disks[i].writable;
    cmdline_machine(&c, qemu, machine, accel, kernel ? kernel : found, count);
    add_channels(&c, job->hand, grants);
    for (unsigned i = 0; i < count; i++)
        add_disk(&c, machine, i, &disks[i]);
    if (job->gdb)
        cmdline_add_words(&c, "-s -S");
    print_script(job, &c, kernel ? kernel : found, grants);
    cmdline_free(&c);
    free(kernel);
    return 0;
}
