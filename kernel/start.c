/* SPDX-License-Identifier: MIT
 *
 * The first C code, in ring 3 from its first instruction: the init list, kernel_main(), the end.
 * Serial port, timer and disks are set up by their first use, so that a run pays for what it uses.
 */
#include "hull.h"
#include "kernel.h"
#include "multiboot.h"

/* What FS points to: static libraries built with a stack protector read their canary at fs:0x28. */
uint64_t fs_block[8];

_Noreturn void kernel_start(uint32_t magic, const struct multiboot_info *mbi);

/* Called by boot.S, once, on the ring-3 stack. */
_Noreturn void kernel_start(uint32_t magic, const struct multiboot_info *mbi)
{
    const struct multiboot_module *mod = (const void *)(uintptr_t)mbi->mods_addr;
    int status;

    if (magic != MULTIBOOT_MAGIC)
        kernel_exit(KERNEL_EXIT_DIED);
    fs_block[5] = rdtsc() * 0x9e3779b97f4a7c15;
    memory_init(mbi);
    if (mbi->flags & MULTIBOOT_INFO_MODS && mbi->mods_count > 0)
        status = kernel_main((const void *)(uintptr_t)mod->start, mod->end - mod->start);
    else
        status = kernel_main(NULL, 0);
    kernel_exit((unsigned)status);
}

_Noreturn void kernel_exit(unsigned status)
{
    serial_drain();
    outb(DEBUG_EXIT, (uint8_t)status);
    for (;;)
        gate(GATE_HALT, NULL, 0);
}
