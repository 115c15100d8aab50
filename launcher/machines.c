/* SPDX-License-Identifier: MIT
 *
 * The rows were measured (platform-facts 1): what is switched off would only take time. Where QEMU
 * has neither qboot nor the knobs, q35 and pc boot with whatever firmware and devices they have.
 * Slot N of a PCI machine is device 4 + N of bus 0 (kernel.h); the rows leave it free. Of microvm's
 * virtio-mmio transports 16 share their interrupts with what ACPI describes, and are there with it
 * only, which takes a few milliseconds more.
 */
#include "machines.h"

#include <string.h>

#define MICROVM_REST                                                                              \
    "pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off "                          \
    "-global virtio-mmio.force-legacy=false"

static const struct machine machines[] = {
    {MACHINE_MICROVM, "microvm", "-M microvm,acpi=off," MICROVM_REST, false, 8,
     "-M microvm,acpi=on," MICROVM_REST},
    {MACHINE_Q35, "q35",
     "-M q35,smm=off,hpet=off,sata=off,smbus=off,acpi=off,vmport=off -bios qboot.rom", true,
     MACHINE_SLOTS},
    {MACHINE_PC, "pc", "-M pc,smm=off,hpet=off,acpi=off,vmport=off -bios qboot.rom", true,
     MACHINE_SLOTS},
    {MACHINE_Q35, "q35 with its own firmware", "-M q35", true, MACHINE_SLOTS},
    {MACHINE_PC, "pc with its own firmware", "-M pc", true, MACHINE_SLOTS},
};
enum { MACHINES = sizeof machines / sizeof machines[0] };

const struct machine *machines_next(enum machine_choice choice, const struct machine *after)
{
    for (const struct machine *m = after ? after + 1 : machines; m < machines + MACHINES; m++)
        if (choice == MACHINE_AUTO || choice == m->choice)
            return m;
    return NULL;
}

bool machines_lacking(const char *messages, size_t len)
{
    static const char *const words[] = {
        "unsupported machine type", /* compiled without it */
        "could not load PC BIOS",   /* no qboot.rom */
        "-machine.",                /* Property 'pc-q35-9.0-machine.hpet' not found */
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (memmem(messages, len, words[i], strlen(words[i])))
            return true;
    return false;
}
