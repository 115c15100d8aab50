/* SPDX-License-Identifier: MIT
 *
 * One VM from its start to its Outcome: the loop that listens to the guest, to QEMU, to signals and
 * to the clock, and that answers Need.
 */
#ifndef LAUNCHER_VM_H
#define LAUNCHER_VM_H

#include "frames.h"
#include "qemu.h"
#include "qmp.h"
#include "undo.h"

enum { MESSAGES_KEPT = 64 << 10 };

struct vm {
    struct job *job;
    struct disk *disks;
    unsigned count;
    int request; /* memfd */
    int signals; /* signalfd: what interrupts the run */

    struct qemu qemu;
    struct qemu last; /* of the run before: killed, and perhaps not dead yet */
    struct frames frames;
    struct qmp qmp;
    instar_Event event;          /* the last one; the Outcome in the end */
    bool heard;                  /* a frame has come */
    bool asked;                  /* event.need waits to be granted */
    bool progress;               /* a progress line stands on the terminal */
    bool lacking;                /* an insertion failed that the host cannot do at all */
    struct undo undo;            /* announced */
    int64_t started, last_frame; /* ms */
    size_t messages_len;
    char messages[MESSAGES_KEPT]; /* the first that QEMU wrote; the rest is read and dropped */
};

/* Runs the VM; a silence of `patience` seconds (0: any) ends it. 0: vm->event is the Outcome, and
 * QEMU has been told to die. -1: QEMU is dead, and that of the run before, if that dies at all. */
int vm_run(struct vm *vm, const struct machine *machine, enum accel accel, unsigned patience,
           struct err *e);

/* Is no QEMU left that could write? Waits for that for so many milliseconds at most. */
bool vm_over(struct vm *vm, int ms);

#endif
