/* SPDX-License-Identifier: MIT
 *
 * The machines of QEMU that a unikernel boots on, in the order in which they are tried. One of them
 * may be missing from a QEMU, or its firmware; which, is known once QEMU has been started and has
 * said so: nothing is asked of it beforehand, since that would cost as much as a run.
 */
#ifndef LAUNCHER_MACHINES_H
#define LAUNCHER_MACHINES_H

#include <stdbool.h>
#include <stddef.h>

enum machine_choice { MACHINE_AUTO, MACHINE_MICROVM, MACHINE_Q35, MACHINE_PC };

struct machine {
    enum machine_choice choice;
    const char *name; /* for people */
    const char *args; /* separated by single spaces */
    bool pci;         /* disks are on PCI, else on virtio-mmio */
    unsigned slots;   /* for disks */
    const char *many; /* instead of args, with up to MACHINE_SLOTS of them */
};

enum { MACHINE_SLOTS = 24 /* of each machine, and what a guest has room for */ };

/* The first machine that fits the choice; with `after`, the next one. NULL: there is none. */
const struct machine *machines_next(enum machine_choice choice, const struct machine *after);

/* Do QEMU's messages say that it has no such machine, or no firmware for it? */
bool machines_lacking(const char *messages, size_t len);

#endif
