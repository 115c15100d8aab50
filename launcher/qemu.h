/* SPDX-License-Identifier: MIT
 *
 * One QEMU process: its birth in a cage, its death. What it may reach is what it
 * inherits: the disks, the Request and three channels, each as a file descriptor.
 */
#ifndef LAUNCHER_QEMU_H
#define LAUNCHER_QEMU_H

#include "commands.h"
#include "disks.h"
#include "machines.h"

#include <sys/types.h>

struct qemu {
    pid_t pid;    /* 0: none */
    int pidfd;    /* readable when the process is dead */
    int serial;   /* the guest's COM1, nonblocking */
    int control;  /* QMP */
    int messages; /* what QEMU writes to stdout and stderr */
};

/* `accel` is ACCEL_KVM or ACCEL_TCG; `request` is a file (a memfd) that holds the Request; QEMU
 * dies with this process. The command line goes to stderr under -v. */
int qemu_start(struct qemu *q, const struct job *job, const struct machine *machine,
               enum accel accel, const struct disk *disks, unsigned count, int request,
               struct err *e);

/* Asks nobody: SIGKILL. Returns at once. */
void qemu_kill(const struct qemu *q);

/* Waits until the process is dead and no I/O of it can come any more; returns its wait status. */
int qemu_reap(struct qemu *q);

/* The same of a process that was killed, for so many milliseconds at most: is it gone? */
bool qemu_gone(struct qemu *q, int ms);

/* Closes the channels; the pidfd stays until the process is reaped. */
void qemu_close(struct qemu *q);

/* Can KVM be used here, as far as its device tells? */
bool qemu_kvm_usable(void);

#endif
