/* SPDX-License-Identifier: MIT
 *
 * What the loader hands over: Multiboot 0.6.96, section 3.3. The structures lie wherever the loader
 * put them below 4 GiB; memory.c keeps page_alloc() off them.
 */
#ifndef MULTIBOOT_H
#define MULTIBOOT_H

#include <stdint.h>

enum { MULTIBOOT_MAGIC = 0x2badb002 };
enum { MULTIBOOT_INFO_MODS = 1 << 3, MULTIBOOT_INFO_MMAP = 1 << 6 };
enum { MULTIBOOT_RAM = 1 };

struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
    uint32_t mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};

struct multiboot_module {
    uint32_t start, end, string, reserved;
};

/* `size` does not count itself. */
struct multiboot_mmap {
    uint32_t size;
    uint32_t base[2], length[2]; /* low, high: the entry is not aligned to 8 */
    uint32_t type;
};

/* ---- memory.c ---- */
void memory_init(const struct multiboot_info *mbi);

#endif
