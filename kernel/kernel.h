/* SPDX-License-Identifier: MIT
 *
 * The library OS: its whole API, grouped by the file that implements it. It knows x86-64, QEMU's
 * machines and virtio; it knows nothing about disk images. One CPU, no threads, no interrupts but
 * the timer that ends a wait. All of this runs in ring 3; ring 0 is a hull of a few dozen
 * instructions (boot.S).
 *
 * The error rule: a function that can fail returns 0 or one of enum kernel_error. A fault of any
 * kind never returns: it becomes one kernel_fault() call and the end of the VM.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kernel_error {
    KERNEL_OK = 0,
    KERNEL_EIO,     /* the device answered with an error, or not as virtio demands */
    KERNEL_ENODEV,  /* no such disk */
    KERNEL_EINVAL,  /* out of range or unaligned */
    KERNEL_ETIMEOUT /* nothing came in time */
};

/* ---- supplied by the program ---- */

/* Runs in ring 3 once everything is set up. `module` is the first multiboot module (NULL if there
 * is none); it stays readable. What it returns goes to kernel_exit(). */
int kernel_main(const void *module, size_t module_len);

struct fault {
    uint32_t vector;
    uint64_t error_code, rip, cr2;
};
/* Called once, in ring 3 on a stack of its own, after a fault; a fault within ends the VM. */
void kernel_fault(const struct fault *f);

/* ---- start.c ---- */

/* Ends the VM through isa-debug-exit (QEMU's status: status << 1 | 1); where there is none, halts
 * for good. Never returns. Statuses from KERNEL_EXIT_FAULT up are the kernel's own. */
enum {
    KERNEL_EXIT_FAULT = 125, /* a fault, reported by kernel_fault() */
    KERNEL_EXIT_DIED = 126   /* a fault within that report, or in ring 0 */
};
_Noreturn void kernel_exit(unsigned status);

/* ---- memory.c ---- */

/* Zeroed, page-aligned memory, user-writable and not executable; there is no free. NULL when there
 * is no more or after page_lock(). */
void *page_alloc(size_t bytes);
/* The same, but with anything in it, and free of cost until touched: for large I/O buffers. To zero
 * a MiB that the host has yet to back takes 0.2 to 0.4 ms. */
void *page_alloc_raw(size_t bytes);
/* No allocation from here on: called before the first byte of an image is read. */
void page_lock(void);

/* ---- serial.c ---- */

void serial_write(const void *buf, size_t len);
/* Returns when every byte has left the UART: before the VM ends. */
void serial_drain(void);
/* The next byte from COM1, 0..255, waiting at most `ms` milliseconds (UINT64_MAX: for ever) without
 * starving the host's CPU; -1 if none came. */
int serial_read(uint64_t ms);

/* ---- trap.c ---- */

/* Waiting for a device: call wait_begin(), then wait_once() until the condition holds. It spins
 * (`pause`) for about 100 us, then halts the CPU, woken by the LAPIC timer: 100 us doubling to
 * 1 ms. */
struct wait {
    uint64_t spin_end; /* in ticks of the TSC */
    uint32_t us;       /* the next halt */
    uint64_t slept_us; /* all halts so far: the time waited, less the spinning */
};
void wait_begin(struct wait *w);
void wait_once(struct wait *w);

/* ---- virtio_blk.c ---- */

/* Where slot N is. QEMU's microvm: virtio-mmio transport N (`-device virtio-blk-device,
 * bus=virtio-mmio-bus.N`; 8 of them, 24 with acpi=on). Other machines: function 0 of device 4 + N
 * on PCI bus 0 (`-device virtio-blk-pci,disable-legacy=on,addr=HEX`, HEX from 4 to 1b). */
enum { VBLK_SLOTS = 24, VBLK_BATCH = 16, VBLK_IO_MAX = 1 << 20 };

enum vblk_op {
    VBLK_READ,
    VBLK_WRITE,
    VBLK_ZERO,
    VBLK_ZERO_UNMAP,
    VBLK_DISCARD,
    VBLK_FLUSH /* of what was done before this batch; off, len and buf do not matter */
};

/* off and len in bytes, multiples of the sector size; len at most VBLK_IO_MAX for reads and writes,
 * of any size for the others, which are split as the device demands. A device without
 * write-zeroes gets written zeros, one without discard ignores the hint. */
struct vblk_req {
    unsigned slot;
    enum vblk_op op;
    uint64_t off, len;
    void *buf;
};

/* Is there a block device in this slot? Sets it up on first use, which takes a page: every disk
 * must have been asked for before page_lock(). */
bool vblk_present(unsigned slot);
uint32_t vblk_sector(unsigned slot); /* logical block size: 512 or 4096 */
/* Bytes in whole sectors, as of now: re-read from the device, which costs four registers. */
uint64_t vblk_capacity(unsigned slot);
bool vblk_read_only(unsigned slot);
/* Up to VBLK_BATCH requests, all in flight at once, over any mix of slots; returns when all are
 * done: 0, or the first failure. Nothing is sent if any of them is KERNEL_EINVAL or KERNEL_ENODEV:
 * out of range, unaligned, a change of a read-only disk. */
int vblk_run(const struct vblk_req *r, unsigned n);
int vblk_flush(unsigned slot);

/* ---- lib.c ---- */

void *memcpy(void *restrict d, const void *restrict s, size_t n);
void *memmove(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* For static libraries; our own code uses page_alloc(). 256 KiB in all, taken at the first call,
 * which must come before page_lock(). NULL when full. */
void *malloc(size_t len);
void *calloc(size_t cnt, size_t len);
void *realloc(void *p, size_t len);
void free(void *p);

#endif
