/* SPDX-License-Identifier: MIT
 *
 * instar-launch: argv -> Request -> a unikernel in QEMU -> Outcome -> text. The launcher opens and
 * locks the file, starts the VM, answers it, sets the file's length and reports. It never
 * interprets a byte of an image.
 *
 * Reading order: main.c, commands.h, run.c, vm.c, qemu.c, frames.c; then the small ones.
 */
#include "chain.h"
#include "codes.h"
#include "commands.h"
#include "disks.h"
#include "extents.h"
#include "hand.h"
#include "print.h"
#include "raw.h"
#include "rebase.h"
#include "recover.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* No file of ours may become descriptor 0, 1 or 2, whoever started us. */
static int keep_standard_descriptors(struct err *e)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0)
        return err_set(e, instar_Code_NO_QEMU, "Could not open /dev/null: %s", strerror(errno));
    close(fd);
    return 0;
}

/* Everything between taking the locks and giving them up. */
static int work(struct job *job, struct chain *c, instar_Outcome *out, struct err *e)
{
    const struct disk *d = &c->disks[0];
    if (c->count && recover_first(job, &c->disks[0], e) < 0)
        return -1;
    if (rebase_begin(job, c, e) < 0)
        return -1;
    if (job->hand)
        return hand_print(job, c->disks, c->count, e);
    int r = raw_applies(job) ? raw_resize(job, d, out, e) : chain_run(job, c, out, e);
    if (r < 0)
        return r;
    print_raw_warning(job, out);
    r = chain_finish(c, out, e);
    if (r == 0 && out->which_result == instar_Outcome_resize_tag && !job->request.dry_run)
        extents_drop(c, &out->result.resize);
    return r;
}

static int do_job(struct job *job, struct err *e)
{
    static instar_Outcome out;
    struct chain c = {.count = job->image != NULL};
    bool writable = job->command->writes && !job->request.dry_run;
    if (!job->command->image)
        return job->command->host(job, e);
    if (c.count && disk_open(&c.disks[0], job->image, writable, job->sector, e) < 0)
        return -1;
    c.disks[0].target = job->command->writes;
    if (job->hand)
        c.disks[0].insert_unit = 0; /* nobody would insert */
    int r = work(job, &c, &out, e);
    if (r < 0)
        extents_discard(&c, e);
    chain_close(&c);
    if (r == 0 && !job->hand)
        (job->json ? job->command->json : job->command->print)(job, c.disks, &out);
    return r;
}

/* A run that a signal ended ends as the signal would have it. */
static void die_of(int sig)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, sig);
    signal(sig, SIG_DFL);
    raise(sig);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
    struct job job;
    struct err e = {0};
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is an error to report, here and in QEMU */
    int r = commands_parse(&job, argc, argv, &e);
    if (r == 0 && job.command)
        r = keep_standard_descriptors(&e);
    if (r == 0 && job.command)
        r = do_job(&job, &e);
    if (r < 0)
        print_failure(&job, &e);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "instar-launch: %sCould not write the result: %s\n",
                r == 0 ? "The operation has been done. " : "", strerror(errno));
        return 1;
    }
    if (e.signal)
        die_of(e.signal);
    return code_row(e.code)->status;
}
