/* SPDX-License-Identifier: MIT
 *
 * The hull: all of ring 0. It enters long mode on page tables, GDT, IDT and TSS that are static
 * data, drops to ring 3 for good, and from then on does three things: the gate (int3), the end of
 * a halt (timer interrupt), and the turning of a fault into a call of trap_user() in ring 3.
 *
 * Specifications: Multiboot 0.6.96; Intel SDM volume 3, chapters 4 (paging), 6 (interrupts),
 * 8 (TSS), 10 (switching to IA-32e mode).
 *
 * Keep it short: hosts whose KVM is itself virtualised emulate ring 0, at about a microsecond an
 * instruction. No stac, no syscall, no int 0x80, no triple fault: they do not work there.
 */
#include "hull.h"

#define SEL_CODE0 0x08
#define SEL_DATA3 0x13
#define SEL_CODE3 0x1b
#define SEL_TSS 0x20

#define PTE_P 0x01
#define PTE_W 0x02
#define PTE_U 0x04
#define PTE_UC 0x18 /* PCD PWT */
#define PTE_A 0x20
#define PTE_D 0x40
#define PTE_2M 0x80
#define PTE_NX 0x8000000000000000
#define TABLE (PTE_P | PTE_W | PTE_U | PTE_A)
#define DATA (PTE_W | PTE_U | PTE_A | PTE_D | PTE_NX)

/* ---- code: one page, supervisor, read-only ---- */

    .section .hull.text, "ax"
    .code32

#define MB_FLAGS 0x00010003 /* page-aligned modules, memory sizes, address fields below */
multiboot_header:
    .long 0x1badb002, MB_FLAGS, -(0x1badb002 + MB_FLAGS)
    .long multiboot_header, load_start, load_end, kernel_end, boot_start

/* From the loader: 32 bits, flat segments, no paging; eax = magic, ebx = multiboot_info. */
    .globl boot_start
boot_start:
    mov %eax, %edi
    mov %ebx, %esi

    /* W^X for the image: the static table has it writable and not executable. */
    mov $pte_text, %edx
    mov $text_pages, %ecx
1:  andb $~PTE_W, (%edx)
    movl $0, 4(%edx) /* NX */
    add $8, %edx
    loop 1b
    mov $rodata_pages, %ecx
1:  andb $~PTE_W, (%edx)
    add $8, %edx
    loop 1b
    movb $0, pte_stack_guard
    movb $0, pte_fault_stack_guard

    /* Map what RAM there is, in steps of 8 MiB: mem_upper counts KiB from 1 MiB upwards. */
    mov 8(%esi), %ecx
    add $1024 + 8191, %ecx
    shr $13, %ecx
    mov $RAM_TOP >> 23, %eax
    cmp %eax, %ecx
    cmova %eax, %ecx
    mov $page_directories, %edx
1:  orb $PTE_P, (%edx)
    orb $PTE_P, 8(%edx)
    orb $PTE_P, 16(%edx)
    orb $PTE_P, 24(%edx)
    add $32, %edx
    loop 1b

    /* EFER: LME, and NXE where there is NX; a CPU without it gets tables without it. */
    mov $0x80000001, %eax
    cpuid
    mov $0x900, %ebp
    bt $20, %edx
    jc 2f
    mov $0x100, %ebp
    mov $5 * 512, %ecx
    mov $page_directories, %edx
1:  movl $0, 4(%edx)
    add $8, %edx
    loop 1b
2:  mov %ebp, %eax
    xor %edx, %edx
    mov $0xc0000080, %ecx
    wrmsr

    /* CR4: PAE, OSFXSR, OSXMMEXCPT; SMEP and SMAP where they exist. */
    mov $0x620, %ebp
    xor %eax, %eax
    cpuid
    cmp $7, %eax
    jb 1f
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ebx, %eax
    shl $13, %eax /* SMEP: bit 7 -> 20 */
    and $1 << 20, %eax
    or %eax, %ebp
    shl $1, %ebx /* SMAP: bit 20 -> 21 */
    and $1 << 21, %ebx
    or %ebx, %ebp
1:  mov %ebp, %cr4

    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x80010033, %eax /* PG WP NE ET MP PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    lidt idt_pointer
    ljmp $SEL_CODE0, $boot64

    .code64
boot64:
    /* Null selectors now: the drop to ring 3 would null them, and FS's base with it. */
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov $SEL_TSS, %eax
    ltr %ax
    mov $fs_block, %eax
    xor %edx, %edx
    mov $0xc0000100, %ecx /* FS_BASE: the canary of static libraries is at fs:0x28 */
    wrmsr
    mov $ring0_stack_top, %esp
    push $SEL_DATA3
    push $stack_top - 8 /* as if kernel_start() had been called */
    push $2             /* RFLAGS: nothing but the reserved bit */
    push $SEL_CODE3
    push $kernel_start  /* (magic = edi, multiboot_info = esi) */
    iretq

/* int3 from ring 3. Clears AC first: with it, SMAP would be off. */
gate:
    push $2
    popfq
    dec %eax
    jz gate_wait
    jg gate_halt

    /* GATE_WRITE. The buffer must lie between the hull and the end of RAM. */
    mov %ecx, %r8d
    mov $RAM_TOP, %edx
    lea (%rsi, %r8), %rcx
    cmp $HULL_END, %rsi
    jb die
    cmp %rdx, %rsi
    ja die
    cmp %rdx, %rcx
    ja die
    push $0x40002 /* AC: user pages may be read */
    popfq
    /* The UART's FIFO takes 16 bytes once it is empty; nothing is lost when the peer is slow. */
1:  mov $16, %ecx
    cmp %rcx, %r8
    cmovb %r8, %rcx
    mov $COM1_LSR, %edx
    in %dx, %al
    test $LSR_THRE, %al
    jz 2f
    sub %rcx, %r8
    mov $COM1, %edx
    rep outsb
    test %r8, %r8
    jnz 1b
2:  iretq

gate_wait:
    sti
    hlt
    cli
    iretq

gate_halt:
    hlt
    jmp gate_halt

interrupt:
    iretq

/* Any exception: stack = vector, error code, rip, cs, rflags, rsp, ss. Once, and from ring 3, it
 * becomes trap_user(vector, error code, rip, cr2) on the fault stack; else it is the end. */
fault:
    testb $3, 24(%rsp)
    jz die
    btsl $0, faulted
    jc die
    pop %rdi
    pop %rsi
    mov (%rsp), %rdx
    mov %cr2, %rcx
    movq $trap_user, (%rsp)
    movq $2, 16(%rsp)
    movq $fault_stack_top - 8, 24(%rsp)
    iretq

die:
    mov $EXIT_DIED, %al
    out %al, $DEBUG_EXIT
1:  hlt
    jmp 1b

/* One stub of 16 bytes per vector, at a fixed place so that the IDT can be static. */
#define STUBS 0x400
    .org STUBS
    .set vector, 0
    .rept VECTORS
    .if vector == 3
    jmp gate
    .elseif vector >= 32
    jmp interrupt
    .else
    /* #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX bring an error code. */
    .if ((0x60227d00 >> vector) & 1) == 0
    push $0
    .endif
    push $vector
    jmp fault
    .endif
    .set vector, vector + 1
    .org STUBS + 16 * vector
    .endr

/* ---- data: one page, supervisor, not executable ---- */

    .section .hull.data, "aw"

#define TSS (HULL_DATA + 0x40)
#define TSS_BITMAP 104
#define TSS_SIZE (TSS_BITMAP + 0xd00 / 8 + 1)
gdt:
    .quad 0
    .quad 0x00209b0000000000 /* ring-0 code, 64 bits */
    .quad 0x0000f30000000000 /* ring-3 data */
    .quad 0x0020fb0000000000 /* ring-3 code, 64 bits */
    .word TSS_SIZE - 1, TSS & 0xffff
    .byte TSS >> 16, 0x89, 0, TSS >> 24
    .quad 0
gdt_end:

    .org TSS - HULL_DATA
    .long 0
    .quad ring0_stack_top, 0, 0, 0, ist_stack_top, 0, 0, 0, 0, 0, 0, 0
    .word 0, TSS_BITMAP
    /* The I/O bitmap: a set bit closes a port to ring 3. */
    .set port, 0
    .rept 0xd00 / 8
    .if port == (COM1 & ~7) || port == (PCI_CONFIG & ~7)
    .byte 0
    .elseif port == (DEBUG_EXIT & ~7)
    .byte ~(1 << (DEBUG_EXIT & 7)) & 0xff
    .else
    .byte 0xff
    .endif
    .set port, port + 8
    .endr
    .byte 0xff

    .balign 16
idt:
    .set vector, 0
    .rept VECTORS
    .set stub, HULL_TEXT + STUBS + 16 * vector
    .word stub & 0xffff, SEL_CODE0
    /* NMI, #DF and #MC have a stack of their own; only int3 may be called from ring 3. */
    .byte (vector == 2 || vector == 8 || vector == 18) & 1
    .byte 0x8e | ((vector == 3) & 0x60)
    .word stub >> 16
    .quad 0
    .set vector, vector + 1
    .endr
idt_end:

gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
idt_pointer:
    .word idt_end - idt - 1
    .long idt
faulted:
    .long 0

    .balign 16
    .skip 256
ist_stack_top:
    .skip 512
ring0_stack_top:

/* ---- page tables: mapped nowhere ---- */

    .section .hull.pages, "aw"

pml4:
    .quad pdpt + TABLE
    .fill 511, 8, 0
pdpt:
    .quad page_directories + TABLE, page_directories + 0x1000 + TABLE
    .quad page_directories + 0x2000 + TABLE, page_directories + 0x3000 + TABLE
    .fill 508, 8, 0

/* 4 GiB in pages of 2 MiB. RAM is complete but for its P bit, which boot_start sets. */
page_directories:
    .quad page_table + TABLE
    .set addr, 0x200000
    .rept 2047
    .if addr < RAM_TOP
    .quad addr + DATA + PTE_2M
    .elseif addr >= DEVICES_START && addr < DEVICES_END
    .quad addr + DATA + PTE_2M + PTE_UC + PTE_P
    .else
    .quad 0
    .endif
    .set addr, addr + 0x200000
    .endr

/* The first 2 MiB in pages of 4 KiB; boot_start protects text, rodata and the guards. */
    .globl page_table
page_table:
    .set addr, 0
    .rept 512
    .if addr > 0 && addr < 0xa0000 /* the loader's tables */
    .quad addr + PTE_P + PTE_U + PTE_A + PTE_NX
    .elseif addr == HULL_TEXT
    .quad addr + PTE_P + PTE_A
    .elseif addr == HULL_DATA
    .quad addr + PTE_P + PTE_W + PTE_A + PTE_D + PTE_NX
    .elseif addr >= HULL_END
    .quad addr + DATA + PTE_P
    .else
    .quad 0
    .endif
    .set addr, addr + 0x1000
    .endr

    .section .note.GNU-stack, "", @progbits
