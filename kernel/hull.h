/* SPDX-License-Identifier: MIT
 *
 * What ring 0 (boot.S, "the hull") and ring 3 agree on: where the hull lies, what the gate offers,
 * which vectors there are. Included by boot.S and by C; programs include kernel.h instead.
 *
 * The gate is `int3`: of the ways into ring 0 it is the one that works on every host, those whose
 * KVM is itself virtualised included (int 0x80 and syscall do not there).
 */
#ifndef HULL_H
#define HULL_H

/* The image starts here with the hull: a page of code, a page of data, seven of page tables. */
#define HULL_TEXT 0x100000
#define HULL_DATA 0x101000
#define HULL_PAGE_TABLES 0x102000
#define HULL_END 0x109000

/* RAM is mapped up to here at most. */
#define RAM_TOP 0xe0000000
/* Device pages: PCI BARs, virtio-mmio, IOAPIC, LAPIC. Mapped uncached. */
#define DEVICES_START 0xfd000000
#define DEVICES_END 0xff000000

/* Calls of the gate, in eax. */
#define GATE_WRITE 0 /* rsi, ecx: bytes to COM1; returns what is left in r8 */
#define GATE_WAIT 1  /* halts until the timer's interrupt */
#define GATE_HALT 2  /* halts for good */

#define VECTOR_TIMER 0x20
#define VECTOR_SPURIOUS 0x2f
#define VECTORS 0x30

#define COM1 0x3f8
#define COM1_FCR (COM1 + 2)
#define COM1_LSR (COM1 + 5)
#define LSR_DR 0x01
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define DEBUG_EXIT 0xf4
#define PCI_CONFIG 0xcf8

/* KERNEL_EXIT_DIED: nobody is left to report. */
#define EXIT_DIED 126

#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline void outl(uint16_t port, uint32_t v)
{
    __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

/* Device registers: plain mov, in just this width. A compiler may never choose the instruction:
 * an SSE access stops some KVM hosts for good. */
static inline uint8_t mmio_read8(uintptr_t addr)
{
    uint8_t v;
    __asm__ volatile("movb (%1), %0" : "=q"(v) : "r"(addr) : "memory");
    return v;
}

static inline uint16_t mmio_read16(uintptr_t addr)
{
    uint16_t v;
    __asm__ volatile("movw (%1), %0" : "=r"(v) : "r"(addr) : "memory");
    return v;
}

static inline uint32_t mmio_read32(uintptr_t addr)
{
    uint32_t v;
    __asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(addr) : "memory");
    return v;
}

static inline void mmio_write8(uintptr_t addr, uint8_t v)
{
    __asm__ volatile("movb %0, (%1)" : : "q"(v), "r"(addr) : "memory");
}

static inline void mmio_write16(uintptr_t addr, uint16_t v)
{
    __asm__ volatile("movw %0, (%1)" : : "r"(v), "r"(addr) : "memory");
}

static inline void mmio_write32(uintptr_t addr, uint32_t v)
{
    __asm__ volatile("movl %0, (%1)" : : "r"(v), "r"(addr) : "memory");
}

/* Returns what GATE_WRITE left unwritten because the UART was full; else nothing of use. */
static inline size_t gate(uint32_t call, const void *buf, uint32_t len)
{
    register size_t left __asm__("r8");
    __asm__ volatile("int3"
                     : "+a"(call), "+S"(buf), "+c"(len), "=r"(left)
                     :
                     : "rdx", "cc", "memory");
    return left;
}

#endif
#endif
