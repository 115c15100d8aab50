/* SPDX-License-Identifier: MIT
 *
 * Every option with its value is two words, as the shell would hand them over. Errors of the host's
 * disk go to the guest (werror, rerror): the default would stop the VM, and the run with it.
 */
#include "cmdline.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_PCI_DEVICE = 4 }; /* kernel.h */

void cmdline_add(struct cmdline *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (c->words == CMDLINE_WORDS || vasprintf(&c->word[c->words++], format, args) < 0)
        abort();
    va_end(args);
}

void cmdline_add_words(struct cmdline *c, const char *words)
{
    while (*words) {
        size_t len = strcspn(words, " ");
        cmdline_add(c, "%.*s", (int)len, words);
        words += len + (words[len] == ' ');
    }
}

void cmdline_machine(struct cmdline *c, const char *qemu, const struct machine *machine,
                     enum accel accel, const char *kernel, unsigned disks)
{
    cmdline_add(c, "%s", qemu);
    cmdline_add_words(c, disks > machine->slots ? machine->many : machine->args);
    cmdline_add_words(c, "-nodefaults -no-user-config -display none -no-reboot -m 128 "
                         "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,"
                         "resourcecontrol=deny "
                         "-device isa-debug-exit,iobase=0xf4,iosize=4");
    cmdline_add_words(c, accel == ACCEL_KVM ? "-accel kvm -cpu max,arch-capabilities=off"
                                            : "-accel tcg -cpu max");
    cmdline_add(c, "-kernel");
    cmdline_add(c, "%s", kernel);
}

void cmdline_disk(struct cmdline *c, const struct machine *machine, unsigned n,
                  const struct disk *d, const char *file)
{
    char place[64];
    if (machine->pci)
        snprintf(place, sizeof place, "virtio-blk-pci,disable-legacy=on,addr=%x",
                 FIRST_PCI_DEVICE + n);
    else
        snprintf(place, sizeof place, "virtio-blk-device,bus=virtio-mmio-bus.%u", n);
    cmdline_add(c, "-blockdev");
    cmdline_add(c, "driver=%s,node-name=f%u,%s,discard=unmap,aio=threads,read-only=%s",
                d->device ? "host_device" : "file", n, file, d->writable ? "off" : "on");
    cmdline_add(c, "-device");
    cmdline_add(c,
                "%s,drive=f%u,logical_block_size=%u,physical_block_size=%u,"
                "werror=report,rerror=report",
                place, n, d->sector, d->sector);
}

void cmdline_free(struct cmdline *c)
{
    for (int i = 0; i < c->words; i++)
        free(c->word[i]);
    c->words = 0;
}
