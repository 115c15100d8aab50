/* SPDX-License-Identifier: MIT
 *
 * `--accel auto` tries KVM first. A KVM that fails before the guest's first frame is replaced by
 * TCG, unless anything was written by then: an operation must not be done twice. A guest that
 * faults is no failure of KVM.
 */
#include "run.h"
#include "growth.h"
#include "outcome.h"
#include "vm.h"

#include <errno.h>
#include <pb_encode.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { KVM_PATIENCE = 10 }; /* seconds for a first frame, where TCG can still be tried */

/* The Request in a memfd, which QEMU hands to the guest as a multiboot module. */
static int make_request(const instar_Request *request, struct err *e)
{
    uint8_t bytes[instar_Request_size];
    pb_ostream_t to = pb_ostream_from_buffer(bytes, sizeof bytes);
    int fd = memfd_create("request", MFD_CLOEXEC);
    if (fd < 0 || !pb_encode(&to, instar_Request_fields, request) ||
        write(fd, bytes, to.bytes_written) != (ssize_t)to.bytes_written)
        return err_set(e, instar_Code_NO_QEMU, "Could not write the request: %s", strerror(errno));
    return fd;
}

/* What ends a run early is taken from a descriptor from here on. */
static int catch_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
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

/* Says what a failure of the VM means for the image. QEMU is dead. */
static void tell_aftermath(const struct vm *vm, struct err *e)
{
    if (vm->count == 0)
        return;
    const struct disk *d = &vm->disks[0];
    bool untouched = state(vm) == DISK_UNTOUCHED;
    for (unsigned i = 0; i < vm->count; i++)
        disk_take_back(&vm->disks[i]);
    if (untouched)
        err_add(e, "Nothing had been granted or written: the image is unchanged.");
    else if (d->granted)
        err_add(e,
                "The file had been granted a length of %llu bytes: the image has its old size "
                "or its new one, and all its data.",
                (unsigned long long)d->granted);
    else
        err_add(e, "No growth had been granted, but the file may have been written to: the image "
                   "has its old size or its new one, and all its data.");
}

static int run_either(struct vm *vm, struct err *e)
{
    const struct job *job = vm->job;
    bool can_fall_back = job->accel == ACCEL_AUTO && qemu_kvm_usable();
    if (job->accel != ACCEL_KVM && !can_fall_back)
        return vm_run(vm, ACCEL_TCG, job->timeout, e);
    unsigned patience = job->timeout;
    if (can_fall_back && (patience == 0 || patience > KVM_PATIENCE))
        patience = KVM_PATIENCE;
    if (vm_run(vm, ACCEL_KVM, patience, e) == 0)
        return 0;
    if (!can_fall_back || vm->heard || e->signal || state(vm) != DISK_UNTOUCHED)
        return -1;
    if (job->verbose)
        fprintf(stderr, "KVM failed, going on with TCG: %s\n", e->text);
    err_clear(e);
    return vm_run(vm, ACCEL_TCG, job->timeout, e);
}

int run(struct job *job, struct disk *disks, unsigned count, instar_Outcome *out, struct err *e)
{
    static struct vm vm; /* too large for a stack */
    vm.job = job;
    vm.disks = disks;
    vm.count = count;
    for (unsigned i = 0; i < count; i++) {
        disks[i].limit = growth_limit(job, &disks[i]);
        job->request.disks[i].length = disks[i].length;
        job->request.disks[i].writable = disks[i].writable;
    }
    vm.request = make_request(&job->request, e);
    if (vm.request < 0)
        return -1;
    vm.signals = catch_signals();
    if (run_either(&vm, e) < 0) {
        tell_aftermath(&vm, e);
        return -1;
    }
    *out = vm.event.event.outcome;
    if (outcome_check(out, job, disks, e) == 0)
        return 0;
    /* A plain refusal left no trace; all else needs a word on the image. */
    qemu_reap(&vm.qemu);
    if (e->code == instar_Code_PROTOCOL || state(&vm) == DISK_TOUCHED)
        tell_aftermath(&vm, e);
    return -1;
}
