/* SPDX-License-Identifier: MIT
 *
 * The event loop. Nothing sleeps here: each input wakes it, the process's end too (pidfd). Level
 * triggered, one read an input a turn, so that no flood on one starves the others; the watchdog
 * counts from the last frame, whatever else arrives.
 *
 * After the Outcome QEMU is killed and not waited for: the guest has flushed, no request is in
 * flight, and its teardown takes longer than the operation. It is reaped while the next one works,
 * if there is one, or before a file is cut (run.c). In every other case it is waited for, since
 * only a dead QEMU writes no more.
 */
#include "vm.h"
#include "growth.h"
#include "insert.h"
#include "plan.h"
#include "rebase.h"
#include "text.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GO_ON, FINISHED }; /* what a step returns besides -1 */
enum { DEATH_MS = 1000 }; /* that a killed process takes at most, unless its host is in trouble */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

/* ---- what the guest says ---- */

/* Before anything else is printed where the line may stand. */
static void clear_progress(struct vm *vm)
{
    if (vm->progress)
        fputs("\r\033[K", stderr);
    vm->progress = false;
}

static void show_log(struct vm *vm, const char *text)
{
    if (!vm->job->verbose)
        return;
    clear_progress(vm);
    fputs("guest: ", stderr);
    text_safe(stderr, text, strlen(text), TEXT_ONE_LINE);
    fputc('\n', stderr);
}

static void show_progress(struct vm *vm, const instar_Progress *p)
{
    struct job *job = vm->job;
    if (job->rebase.progress) {
        if (p->total && p->done < p->total)
            rebase_progress(job, p->done, p->total);
        return;
    }
    if (job->quiet || job->json || job->patches || !p->requests || !isatty(STDERR_FILENO) ||
        now_ms() - vm->started < 1000)
        return;
    vm->progress = true;
    fprintf(stderr, "\r\033[K%s: ", vm->job->command->name);
    if (p->total)
        fprintf(stderr, "%.0f %%, ", 100.0 * ((double)p->done / (double)p->total));
    fprintf(stderr, "%llu requests", (unsigned long long)p->requests);
}

static int fault(const instar_Fault *f, struct err *e)
{
    char *text = text_safe_copy(f->text, strlen(f->text));
    if (*text)
        err_set(e, instar_Code_GUEST_FAULT, "The operation failed in its VM: %s", text);
    else
        err_set(e, instar_Code_GUEST_FAULT,
                "The operation faulted in its VM: vector %u, error code 0x%llx, "
                "rip 0x%llx, cr2 0x%llx",
                (unsigned)f->vector, (unsigned long long)f->error_code, (unsigned long long)f->rip,
                (unsigned long long)f->cr2);
    free(text);
    err_add(e, "That is a bug of instar's, or the doing of a hostile image: please report it.");
    return -1;
}

/* Grants what was asked for once QEMU has done its part. */
static void grant(struct vm *vm)
{
    const instar_Need *need = &vm->event.event.need;
    if (!vm->asked || vm->qmp.pending)
        return;
    vm->asked = false;
    for (unsigned i = 0; i < need->lengths_count; i++) {
        struct disk *d = &vm->disks[need->lengths[i].slot];
        if (need->lengths[i].length > d->granted)
            d->granted = need->lengths[i].length;
    }
    uint8_t epoch = (uint8_t)need->epoch;
    send(vm->qemu.serial, &epoch, 1, MSG_NOSIGNAL | MSG_DONTWAIT); /* lost if QEMU is dead */
}

/* The longest that the Need lets the image become; 0: it stays as it is. */
static uint64_t wanted(const instar_Need *need)
{
    for (unsigned i = 0; i < need->lengths_count; i++)
        if (need->lengths[i].slot == 0)
            return need->lengths[i].length;
    return 0;
}

/* A Need ends the epoch before it, and its journal with that. Then what this one wants of the host
 * besides lengths, which must be there before anything else is done. */
static int prepare(struct vm *vm, const instar_Need *need, struct err *e)
{
    struct disk *d = vm->disks;
    if (vm->count && d->undo && undo_retire(d, e) < 0)
        return -1;
    if (need->undo && vm->count && !need->has_insert)
        return undo_write(&vm->undo, vm->job, need->epoch, wanted(need), d, e);
    if (vm->undo.cnt)
        return err_set(e, instar_Code_PROTOCOL,
                       "The guest announced changes and did not ask for an undo journal");
    if (!need->has_insert)
        return need->undo ? err_set(e, instar_Code_PROTOCOL, "There is nothing to undo") : 0;
    if (insert_zeros(need, vm->disks, vm->count, &vm->lacking, e) < 0)
        return -1;
    d = &vm->disks[need->insert.slot];
    qmp_resize(&vm->qmp, need->insert.slot, disk_sectors(d, d->granted));
    return 0;
}

/* A Need is the moment to look whether what the guest goes by is still what it has read. */
static int check_unchanged(const struct vm *vm, struct err *e)
{
    for (unsigned i = 0; i < vm->count; i++)
        if (disk_changed(&vm->disks[i]))
            return err_set(e, instar_Code_HEADER_MISMATCH,
                           "'%s' was written to while it was read; retry the operation when nobody "
                           "writes to it",
                           vm->disks[i].name);
    return 0;
}

/* Judges the whole Need before anything is done for any part of it. */
static int serve_need(struct vm *vm, const instar_Need *need, struct err *e)
{
    if (check_unchanged(vm, e) < 0 || growth_check(need, vm->disks, vm->count, e) < 0 ||
        prepare(vm, need, e) < 0)
        return -1;
    for (unsigned i = 0; i < need->lengths_count; i++) {
        const instar_NeedLength *l = &need->lengths[i];
        const struct disk *d = &vm->disks[l->slot];
        if (l->length > d->length && l->length > d->granted)
            qmp_resize(&vm->qmp, l->slot, disk_sectors(d, l->length));
    }
    vm->asked = true;
    grant(vm);
    return GO_ON;
}

static int take_event(struct vm *vm, struct err *e)
{
    vm->heard = true;
    vm->last_frame = now_ms();
    switch (vm->event.which_event) {
    case instar_Event_log_tag:
        show_log(vm, vm->event.event.log.text);
        return GO_ON;
    case instar_Event_progress_tag:
        show_progress(vm, &vm->event.event.progress);
        return GO_ON;
    case instar_Event_undo_tag:
        return undo_announce(&vm->undo, &vm->event.event.undo, vm->disks, vm->count, e);
    case instar_Event_need_tag:
        return serve_need(vm, &vm->event.event.need, e);
    case instar_Event_patch_tag:
        if (!vm->job->request.dry_run)
            break;
        clear_progress(vm);
        plan_show(vm->job, &vm->event.event.patch);
        return GO_ON;
    case instar_Event_fault_tag:
        return fault(&vm->event.event.fault, e);
    case instar_Event_outcome_tag:
        if (vm->undo.cnt && !vm->event.event.outcome.has_error)
            break;
        if (vm->frames.have == 0 && frames_read(&vm->frames, vm->qemu.serial) <= 0)
            return FINISHED;
        return err_set(e, instar_Code_PROTOCOL, "The VM went on after its outcome");
    }
    return err_set(e, instar_Code_PROTOCOL, "The VM sent an event that nobody asked for");
}

/* ---- the inputs ---- */

/* While a Need waits, the guest has nothing to say, and vm->event stays as it is. */
static int take_frames(struct vm *vm, struct err *e)
{
    int r = GO_ON;
    while (!vm->asked && (r = frames_next(&vm->frames, &vm->event, e)) > 0) {
        r = take_event(vm, e);
        if (r != GO_ON)
            return r;
    }
    if (vm->asked && vm->frames.have)
        return err_set(e, instar_Code_PROTOCOL, "The VM did not wait for what it asked for");
    return r;
}

static int take_control(struct vm *vm, bool *ended, struct err *e)
{
    if (qmp_read(&vm->qmp, ended, e) < 0)
        return -1;
    grant(vm);
    return GO_ON;
}

static void take_messages(struct vm *vm, bool *ended)
{
    char dropped[16 << 10];
    size_t room = MESSAGES_KEPT - vm->messages_len;
    ssize_t n = room ? read(vm->qemu.messages, vm->messages + vm->messages_len, room)
                     : read(vm->qemu.messages, dropped, sizeof dropped);
    *ended = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    if (n > 0 && room)
        vm->messages_len += (size_t)n;
}

/* QEMU has died. What the guest sent before is in the socket still. */
static int take_death(struct vm *vm, struct err *e)
{
    bool ended = false;
    while (frames_read(&vm->frames, vm->qemu.serial) > 0) {
        int r = take_frames(vm, e);
        if (r != GO_ON)
            return r;
    }
    for (int i = 0; i < 8 && !ended; i++)
        take_messages(vm, &ended);
    int status = qemu_reap(&vm->qemu);
    if (WIFSIGNALED(status))
        return err_set(e, instar_Code_GUEST_FAULT, "QEMU was killed by signal %d (%s)",
                       WTERMSIG(status), strsignal(WTERMSIG(status)));
    err_set(e, vm->heard ? instar_Code_GUEST_FAULT : instar_Code_NO_QEMU,
            "QEMU exited with status %d, and without an answer from its VM", WEXITSTATUS(status));
    if (!vm->job->verbose)
        err_add(e, "With -v, its command line is shown and all that it says.");
    return -1;
}

static int take_signal(const struct vm *vm, struct err *e)
{
    struct signalfd_siginfo s;
    if (read(vm->signals, &s, sizeof s) != sizeof s)
        return GO_ON;
    err_set(e, instar_Code_TIMEOUT, "Interrupted (%s)", strsignal((int)s.ssi_signo));
    e->signal = (int)s.ssi_signo;
    return -1;
}

/* ---- the loop ---- */

/* Milliseconds for poll(): -1 if nothing limits the wait, 0 if time is up. */
static int time_left(const struct vm *vm, unsigned patience)
{
    if (patience == 0)
        return -1;
    int64_t left = vm->last_frame + patience * 1000ll - now_ms();
    return left > 0 ? (int)left : 0;
}

static int serve(struct vm *vm, unsigned patience, struct err *e)
{
    enum { SIGNALS, SERIAL, CONTROL, MESSAGES, DEATH, LAST, INPUTS };
    const int fd[INPUTS] = {vm->signals, vm->qemu.serial, vm->qemu.control, vm->qemu.messages,
                            vm->qemu.pidfd, vm->last.pid > 0 ? vm->last.pidfd : -1};
    struct pollfd in[INPUTS];
    for (int i = 0; i < INPUTS; i++)
        in[i] = (struct pollfd){.fd = fd[i], .events = POLLIN};
    int r = GO_ON;
    while (r == GO_ON) {
        int left = time_left(vm, patience);
        if (left == 0)
            return err_set(e, instar_Code_TIMEOUT,
                           "The VM sent nothing for %u seconds and was stopped (--timeout)",
                           patience);
        if (poll(in, INPUTS, left) <= 0)
            continue;
        bool ended[INPUTS] = {false};
        if (in[SIGNALS].revents)
            r = take_signal(vm, e);
        if (r == GO_ON && in[SERIAL].revents) {
            ended[SERIAL] = frames_read(&vm->frames, vm->qemu.serial) == 0;
            r = take_frames(vm, e);
        }
        if (r == GO_ON && in[CONTROL].revents)
            r = take_control(vm, &ended[CONTROL], e);
        if (in[MESSAGES].revents)
            take_messages(vm, &ended[MESSAGES]);
        if (r == GO_ON && in[DEATH].revents)
            r = take_death(vm, e);
        if (in[LAST].revents)
            ended[LAST] = qemu_gone(&vm->last, 0);
        for (int i = 0; i < INPUTS; i++)
            if (ended[i])
                in[i].fd = -1; /* poll passes it over; QEMU's death is awaited */
    }
    return r;
}

/* QEMU's messages: all of them under -v, the beginning of them in a failure. */
static void tell_messages(const struct vm *vm, struct err *e)
{
    enum { IN_A_FAILURE = 1500 };
    size_t len = vm->messages_len;
    while (len && vm->messages[len - 1] == '\n')
        len--;
    if (len && vm->job->verbose) {
        text_safe(stderr, vm->messages, len, TEXT_KEEP_LINES);
        fputc('\n', stderr);
    } else if (len && e->code != instar_Code_OK && !e->signal) {
        bool cut = len > IN_A_FAILURE;
        err_add(e, "QEMU said: %.*s%s", cut ? IN_A_FAILURE : (int)len, vm->messages,
                cut ? " ..." : "");
    }
}

int vm_run(struct vm *vm, const struct machine *machine, enum accel accel, unsigned patience,
           struct err *e)
{
    if (!qemu_gone(&vm->last, DEATH_MS))
        return err_set(e, instar_Code_NO_QEMU,
                       "A QEMU that was killed is not dead yet: no other is started");
    vm->frames.have = 0;
    vm->messages_len = 0;
    vm->heard = vm->asked = vm->progress = vm->lacking = false;
    vm->undo.runs = vm->undo.cnt = 0;
    vm->started = vm->last_frame = now_ms();
    vm->last = vm->qemu;
    int r = qemu_start(&vm->qemu, vm->job, machine, accel, vm->disks, vm->count, vm->request, e);
    if (r == 0) {
        qmp_open(&vm->qmp, vm->qemu.control);
        r = serve(vm, patience, e);
        bool ended; /* QEMU said why a request failed before the guest said that it did */
        if (r == FINISHED && qmp_read(&vm->qmp, &ended, e) < 0)
            r = -1;
    }
    qemu_kill(&vm->qemu);
    clear_progress(vm);
    if (vm->job->verbose)
        fprintf(stderr, "%s, %s: %lld ms\n", machine->name, accel == ACCEL_KVM ? "kvm" : "tcg",
                (long long)(now_ms() - vm->started));
    tell_messages(vm, e);
    qemu_close(&vm->qemu);
    if (r == FINISHED)
        return 0;
    qemu_reap(&vm->qemu);
    qemu_gone(&vm->last, DEATH_MS);
    return -1;
}

bool vm_over(struct vm *vm, int ms)
{
    return qemu_gone(&vm->last, ms) && qemu_gone(&vm->qemu, ms);
}
