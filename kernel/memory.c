/* SPDX-License-Identifier: MIT
 *
 * page_alloc(): a bump pointer through the largest free range of RAM. A range is free if the memory
 * map calls it RAM, boot.S has mapped it, and neither the kernel, a module nor the loader's tables
 * lie in it: GRUB puts those anywhere. The page tables themselves are boot.S's and static.
 */
#include "hull.h"
#include "kernel.h"
#include "multiboot.h"

extern char kernel_end[];

enum { PAGE = 4096 };

static uint64_t next, end; /* page-aligned; next == end once locked */

/* Used range i of the loader's: a module, its table, the memory map, the info itself. False after
 * the last. */
static bool used_range(const struct multiboot_info *mbi, uint32_t i, uint64_t *from, uint64_t *to)
{
    const struct multiboot_module *mod = (const void *)(uintptr_t)mbi->mods_addr;
    uint32_t mods = mbi->flags & MULTIBOOT_INFO_MODS ? mbi->mods_count : 0;

    if (i < mods) {
        *from = mod[i].start;
        *to = mod[i].end;
    } else if (i == mods) {
        *from = mbi->mods_addr;
        *to = *from + mods * sizeof *mod;
    } else if (i == mods + 1) {
        *from = mbi->mmap_addr;
        *to = *from + mbi->mmap_length;
    } else {
        *from = (uintptr_t)mbi;
        *to = *from + sizeof *mbi;
    }
    return i < mods + 3;
}

/* Moves *pos past whatever is in use there; returns where the next used range starts. */
static uint64_t next_used(const struct multiboot_info *mbi, uint64_t *pos)
{
    for (;;) {
        uint64_t start = UINT64_MAX, stop = 0, from, to;

        for (uint32_t i = 0; used_range(mbi, i, &from, &to); i++) {
            if (from < to && to > *pos && from < start) {
                start = from;
                stop = to;
            }
        }
        if (start > *pos)
            return start;
        *pos = stop;
    }
}

/* Takes the largest free part of RAM [from, to) if it is larger than what we have. */
static void consider(const struct multiboot_info *mbi, uint64_t from, uint64_t to)
{
    uint64_t mapped = ((uint64_t)mbi->mem_upper + 1024) * 1024;

    if (mapped > RAM_TOP)
        mapped = RAM_TOP;
    if (to > mapped)
        to = mapped;
    if (from < (uintptr_t)kernel_end)
        from = (uintptr_t)kernel_end;
    while (from < to) {
        uint64_t used = next_used(mbi, &from);
        uint64_t first = (from + PAGE - 1) & -(uint64_t)PAGE;
        uint64_t last = (used < to ? used : to) & -(uint64_t)PAGE;

        if (first < last && last - first > end - next) {
            next = first;
            end = last;
        }
        from = used;
    }
}

void memory_init(const struct multiboot_info *mbi)
{
    uint64_t pos = mbi->mmap_addr, stop = pos + mbi->mmap_length;

    if (!(mbi->flags & MULTIBOOT_INFO_MMAP)) {
        consider(mbi, 0, RAM_TOP);
        return;
    }
    while (pos + sizeof(struct multiboot_mmap) <= stop) {
        const struct multiboot_mmap *m = (const void *)(uintptr_t)pos;
        uint64_t base = (uint64_t)m->base[1] << 32 | m->base[0];
        uint64_t length = (uint64_t)m->length[1] << 32 | m->length[0];

        if (m->type == MULTIBOOT_RAM)
            consider(mbi, base, base + length);
        pos += m->size + sizeof m->size;
    }
}

void *page_alloc_raw(size_t bytes)
{
    void *p = (void *)next;

    if (bytes > end - next)
        return NULL;
    next += (bytes + PAGE - 1) & -(uint64_t)PAGE;
    return p;
}

void *page_alloc(size_t bytes)
{
    void *p = page_alloc_raw(bytes);

    return p ? memset(p, 0, bytes) : NULL;
}

void page_lock(void)
{
    next = end;
}
