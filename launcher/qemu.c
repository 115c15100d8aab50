/* SPDX-License-Identifier: MIT
 *
 * How QEMU is started, and how it ends.
 *
 * vfork, since this takes place on the way of every run: the child shares our memory until it
 * execs, and makes only system calls. It leads a session of its own (a terminal's ^C is for the
 * launcher, which ends it properly), dies when its parent does, may not make a file longer than
 * the growth limit, and has no descriptor but those of its command line.
 */
#include "qemu.h"
#include "cmdline.h"
#include "paths.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2)
#endif

enum { MAX_FDS = 40 };

/* What the child needs to know, all made before it is born. */
struct birth {
    struct cmdline line;
    int keep[MAX_FDS]; /* descriptors to inherit, by their own numbers */
    int keeps;
    int null, messages; /* its stdin; its stdout and stderr */
    struct rlimit file_size;
    pid_t parent;
    int error; /* errno, if it could not exec */
};

static int inherit(struct birth *b, int fd)
{
    if (b->keeps == MAX_FDS)
        abort();
    return b->keep[b->keeps++] = fd;
}

static void add_channels(struct birth *b, int request, int serial, int control)
{
    struct cmdline *c = &b->line;
    cmdline_add(c, "-initrd");
    cmdline_add(c, "/proc/self/fd/%d", inherit(b, request));
    cmdline_add_words(c, "-serial chardev:serial -mon chardev=control,mode=control -chardev");
    cmdline_add(c, "socket,id=serial,fd=%d", inherit(b, serial));
    cmdline_add(c, "-chardev");
    cmdline_add(c, "socket,id=control,fd=%d", inherit(b, control));
}

/* The open file description, as the set `n`. The locks on it are ours. */
static void add_disk(struct birth *b, const struct machine *machine, unsigned n,
                     const struct disk *d)
{
    char file[64];
    cmdline_add(&b->line, "-add-fd");
    cmdline_add(&b->line, "fd=%d,set=%u", inherit(b, d->fd), n);
    snprintf(file, sizeof file, "filename=/dev/fdset/%u,locking=off", n);
    cmdline_disk(&b->line, machine, n, d, file);
}

/* In the child: everything but the kept descriptors is closed by exec. */
static void close_others(const struct birth *b)
{
    if (syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
        for (int fd = 3; fd < 1024; fd++)
            fcntl(fd, F_SETFD, FD_CLOEXEC);
    for (int i = 0; i < b->keeps; i++)
        fcntl(b->keep[i], F_SETFD, 0);
}

/* In the child, which shares our memory: system calls only, and no return. */
static _Noreturn void be_born(struct birth *b)
{
    static const struct rlimit none = {0, 0};
    sigset_t no_signals;
    sigemptyset(&no_signals);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != b->parent) /* it died before the line above */
        _exit(127);
    setsid();
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_FSIZE, &b->file_size);
    sigprocmask(SIG_SETMASK, &no_signals, NULL);
    close_others(b);
    dup2(b->null, STDIN_FILENO);
    dup2(b->messages, STDOUT_FILENO);
    dup2(b->messages, STDERR_FILENO);
    execv(b->line.word[0], b->line.word);
    b->error = errno;
    _exit(127);
}

static pid_t give_birth(struct birth *b)
{
    b->parent = getpid();
    pid_t pid = vfork();
    if (pid == 0)
        be_born(b);
    if (pid < 0)
        b->error = errno;
    else if (b->error) {
        waitpid(pid, NULL, 0);
        pid = -1;
    }
    return pid;
}

/* One pair for COM1, one for QMP, a pipe for the messages: ours in *q, QEMU's in theirs[]. */
static bool make_channels(struct qemu *q, int theirs[3])
{
    int serial[2], control[2], messages[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, serial) < 0)
        return false;
    q->serial = serial[0];
    theirs[0] = serial[1];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control) < 0)
        return false;
    q->control = control[0];
    theirs[1] = control[1];
    if (pipe2(messages, O_CLOEXEC) < 0)
        return false;
    q->messages = messages[0];
    theirs[2] = messages[1];
    return fcntl(q->messages, F_SETFL, O_NONBLOCK) == 0;
}

static void say_command(const struct birth *b)
{
    for (int i = 0; i < b->line.words; i++)
        fprintf(stderr, "%s%s", i ? " " : "", b->line.word[i]);
    fputc('\n', stderr);
}

/* QEMU writes whole sectors; past the limit it gets EFBIG (main.c ignores SIGXFSZ). Without a disk
 * to write it can make no file at all. */
static struct rlimit file_size(const struct disk *disks, unsigned count)
{
    struct rlimit old = {RLIM_INFINITY, RLIM_INFINITY};
    rlim_t most = 0;
    getrlimit(RLIMIT_FSIZE, &old);
    for (unsigned i = 0; i < count; i++) {
        rlim_t limit = disk_sectors(&disks[i], disks[i].limit);
        if (disks[i].writable && limit > most)
            most = limit < INT64_MAX ? limit : INT64_MAX;
    }
    most = most < old.rlim_cur ? most : old.rlim_cur;
    return (struct rlimit){most, most};
}

static int start(struct qemu *q, struct birth *b, const struct job *job,
                 const struct machine *machine, enum accel accel, const struct disk *disks,
                 unsigned count, int request, int theirs[3], struct err *e)
{
    char path[PATH_ROOM], kernel[PATH_ROOM];
    if (paths_qemu(job->qemu, path, e) < 0 ||
        paths_image(job->images, job->command->image, kernel, e) < 0)
        return -1;
    if (!make_channels(q, theirs))
        return err_set(e, instar_Code_NO_QEMU, "Could not make QEMU's channels: %s",
                       strerror(errno));
    cmdline_machine(&b->line, path, machine, accel, kernel, count);
    add_channels(b, request, theirs[0], theirs[1]);
    for (unsigned i = 0; i < count; i++)
        add_disk(b, machine, i, &disks[i]);
    b->file_size = file_size(disks, count);
    b->messages = theirs[2];
    b->null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (b->null < 0)
        return err_set(e, instar_Code_NO_QEMU, "Could not open /dev/null: %s", strerror(errno));
    if (job->verbose)
        say_command(b);
    pid_t pid = give_birth(b);
    close(b->null);
    if (pid < 0)
        return err_set(e, instar_Code_NO_QEMU, "Could not start '%s': %s", path,
                       strerror(b->error));
    q->pid = pid;
    q->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (q->pidfd < 0)
        return err_set(e, instar_Code_NO_QEMU, "Could not watch QEMU: %s", strerror(errno));
    return 0;
}

int qemu_start(struct qemu *q, const struct job *job, const struct machine *machine,
               enum accel accel, const struct disk *disks, unsigned count, int request,
               struct err *e)
{
    struct birth b = {0};
    int theirs[3] = {-1, -1, -1};
    *q = (struct qemu){.pidfd = -1, .serial = -1, .control = -1, .messages = -1};
    int r = start(q, &b, job, machine, accel, disks, count, request, theirs, e);
    for (int i = 0; i < 3; i++)
        if (theirs[i] >= 0)
            close(theirs[i]);
    cmdline_free(&b.line);
    return r;
}

void qemu_kill(const struct qemu *q)
{
    if (q->pid > 0)
        kill(q->pid, SIGKILL);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

int qemu_reap(struct qemu *q)
{
    int status = 0;
    if (q->pid <= 0)
        return 0;
    while (waitpid(q->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    q->pid = 0;
    close_fd(&q->pidfd);
    return status;
}

bool qemu_gone(struct qemu *q, int ms)
{
    struct pollfd end = {.fd = q->pidfd, .events = POLLIN};
    if (q->pid > 0 && poll(&end, 1, ms) > 0)
        qemu_reap(q);
    return q->pid <= 0;
}

void qemu_close(struct qemu *q)
{
    close_fd(&q->serial);
    close_fd(&q->control);
    close_fd(&q->messages);
}

bool qemu_kvm_usable(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}
