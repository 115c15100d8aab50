/* SPDX-License-Identifier: MIT
 *
 * `--accel auto` tries KVM first, `--machine auto` microvm. What fails before the guest's first
 * frame is replaced by the next best, unless anything was written by then: an operation must not
 * be done twice. A guest that faults is no failure of KVM, nor of the machine.
 */
#include "run.h"
#include "growth.h"
#include "outcome.h"
#include "recover.h"
#include "request.h"
#include "vm.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { KVM_PATIENCE = 10 }; /* seconds for a first frame, where TCG can still be tried */

/* The Request in a memfd, which QEMU hands to the guest as a multiboot module. */
static int make_request(const struct vm *vm, struct err *e)
{
    int fd = memfd_create("request", MFD_CLOEXEC);
    if (fd < 0)
        return err_set(e, instar_Code_NO_QEMU, "Could not make a memfd: %s", strerror(errno));
    if (request_write(vm->job, vm->disks, vm->count, fd, e) == 0)
        return fd;
    close(fd);
    return -1;
}

/* What ends a run early is taken from a descriptor from here on. */
static int catch_signals(struct err *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        err_set(e, instar_Code_NO_QEMU, "Could not make a signalfd: %s", strerror(errno));
    return fd;
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* The worst state of any disk. */
static enum disk_state state(const struct vm *vm)
{
    enum disk_state worst = DISK_UNTOUCHED;
    for (unsigned i = 0; i < vm->count; i++) {
        enum disk_state s = disk_state(&vm->disks[i]);
        worst = s > worst ? s : worst;
    }
    return worst;
}

/* Was the image repaired, and the rest refused? */
static bool only_repaired(const instar_Outcome *out)
{
    return out->has_error && outcome_files(out).rebuilt;
}

/* Rolls back the epoch that was under way, if there is a journal of it, and says so. */
static bool rolled_back(const struct vm *vm, bool touched, struct err *e)
{
    struct disk *d = vm->disks;
    struct err why = {0};
    if (!d->undo)
        return false;
    if (recover_now(d, &why) == 0) {
        d->rolled_back = true;
        if (touched)
            err_add(e,
                    "What the operation had written of its last step was rolled back: the image "
                    "%s.",
                    vm->job->command->undone);
        return touched;
    }
    err_add(e, "What the operation had written could not be rolled back:\n%s", why.text);
    err_clear(&why);
    return true;
}

/* Says what a failure means for the image; repaired: that is all that was done. QEMU is dead. */
static void tell_aftermath(const struct vm *vm, bool repaired, struct err *e)
{
    if (vm->count == 0)
        return;
    enum disk_state worst = state(vm);
    bool granted = false;
    for (unsigned i = 0; i < vm->count; i++) {
        const struct disk *d = &vm->disks[i];
        disk_take_back(d);
        if (worst != DISK_UNTOUCHED && d->granted)
            err_add(e, "%s had been granted a length of %llu bytes.",
                    i == 0                                    ? "The file"
                    : d->role == instar_Role_ROLE_EXTENT ? "An extent"
                                                         : "The external data file",
                    (unsigned long long)d->granted);
        granted |= d->granted != 0;
    }
    if (rolled_back(vm, worst != DISK_UNTOUCHED, e) && !repaired)
        return;
    if (worst == DISK_UNTOUCHED)
        err_add(e, "Nothing had been granted or written: the image is unchanged.");
    else if (repaired)
        err_add(e,
                "The image had not been closed cleanly, and its refcounts were rebuilt first: it "
                "is repaired, and %s.",
                vm->job->command->undone);
    else if (granted)
        err_add(e, "The image %s.", vm->job->command->either);
    else
        err_add(e,
                "No growth had been granted, but the file may have been written to: the image %s.",
                vm->job->command->either);
}

/* May the VM that failed be replaced by another? */
static bool replaceable(const struct vm *vm, const struct err *e)
{
    return !vm->heard && !e->signal && state(vm) == DISK_UNTOUCHED;
}

static void go_on(const struct vm *vm, const char *failed, const char *next, struct err *e)
{
    if (vm->job->verbose)
        fprintf(stderr, "%s failed, going on with %s: %s\n", failed, next, e->text);
    err_clear(e);
}

/* With one accelerator: the first machine that this QEMU has. */
static int run_machines(struct vm *vm, enum accel accel, unsigned patience, struct err *e)
{
    const struct machine *machine = machines_next(vm->job->machine, NULL);
    while (vm_run(vm, machine, accel, patience, e) < 0) {
        const struct machine *next = machines_next(vm->job->machine, machine);
        if (!next || !replaceable(vm, e) || !machines_lacking(vm->messages, vm->messages_len))
            return -1;
        go_on(vm, machine->name, next->name, e);
        machine = next;
    }
    return 0;
}

static int run_either(struct vm *vm, struct err *e)
{
    const struct job *job = vm->job;
    bool can_fall_back = job->accel == ACCEL_AUTO && qemu_kvm_usable();
    if (job->accel != ACCEL_KVM && !can_fall_back)
        return run_machines(vm, ACCEL_TCG, job->timeout, e);
    unsigned patience = job->timeout;
    if (can_fall_back && (patience == 0 || patience > KVM_PATIENCE))
        patience = KVM_PATIENCE;
    if (run_machines(vm, ACCEL_KVM, patience, e) == 0)
        return 0;
    if (!can_fall_back || !replaceable(vm, e))
        return -1;
    go_on(vm, "KVM", "TCG", e);
    return run_machines(vm, ACCEL_TCG, job->timeout, e);
}

/* Did the run fail for an insertion that the host cannot do, and may it be done without? */
static bool goes_without(struct vm *vm)
{
    struct err why = {0};
    if (!vm->lacking)
        return false;
    for (unsigned i = 0; i < vm->count; i++) {
        struct disk *d = &vm->disks[i];
        if (disk_measure(d, vm->job->sector, &why) < 0)
            return false;
        d->insert_unit = 0;
    }
    return true;
}

/* The guest knows only that a request failed; QEMU has said why. */
static void tell_reason(const struct vm *vm, struct err *e)
{
    if (!vm->qmp.reason[0] ||
        (e->code != instar_Code_READ_FAILED && e->code != instar_Code_WRITE_FAILED))
        return;
    if (strcmp(vm->qmp.reason, strerror(ENOSPC)) == 0)
        e->code = instar_Code_NO_SPACE;
    err_add(e, "The host's reason: %s.", vm->qmp.reason);
}

static struct vm vm; /* the one at work, or the last one; too large for a stack */

/* What the Outcome says, if it can be believed. */
static int take_outcome(instar_Outcome *out, struct err *e)
{
    *out = vm.event.event.outcome;
    if (outcome_check(out, vm.job, vm.disks, vm.count, e) == 0)
        return 0;
    tell_reason(&vm, e);
    /* A plain refusal left no trace; all else needs a word on the image. */
    qemu_reap(&vm.qemu);
    if (e->code == instar_Code_PROTOCOL || state(&vm) == DISK_TOUCHED ||
        (vm.count && vm.disks[0].undo))
        tell_aftermath(&vm, only_repaired(out), e);
    return -1;
}

int run(struct job *job, struct disk *disks, unsigned count, instar_Outcome *out, struct err *e)
{
    int r = -1;
    vm.job = job;
    vm.disks = disks;
    vm.count = count;
    for (unsigned i = 0; i < count; i++)
        disks[i].limit = growth_limit(job, &disks[i]);
    vm.request = make_request(&vm, e);
    vm.signals = catch_signals(e);
    if (vm.request >= 0 && vm.signals >= 0) {
        r = run_either(&vm, e);
        if (r < 0 && goes_without(&vm)) {
            go_on(&vm, "An insertion", "none", e);
            close(vm.request);
            vm.request = make_request(&vm, e);
            r = vm.request < 0 ? -1 : run_either(&vm, e);
        }
        if (r < 0)
            tell_aftermath(&vm, false, e);
        else
            r = take_outcome(out, e);
    }
    close_if(vm.request);
    close_if(vm.signals);
    return r;
}

int run_settle(struct err *e)
{
    if (vm_over(&vm, 1000))
        return 0;
    return err_set(e, instar_Code_WRITE_FAILED,
                   "Could not resize file: QEMU was killed a second ago, and is not dead yet");
}
