/* SPDX-License-Identifier: MIT
 *
 * Commits the fault that the module names; kernel_fault() prints it. "-twice" after a name makes
 * kernel_fault() fault again. What returns from its crime says "SURVIVED".
 */
#include "guest.h"

enum { HULL_TEXT = 0x100000, HULL_DATA = 0x101000, PAGE_TABLES = 0x102000 };

static const char constant[] = "constant";
static char data[16] __attribute__((aligned(16)));
static bool twice;

static void write_to(uintptr_t addr)
{
    __asm__ volatile("movb $1, (%0)" : : "r"(addr) : "memory");
}

static void read_from(uintptr_t addr)
{
    __asm__ volatile("movb (%0), %%al" : : "r"(addr) : "rax", "memory");
}

static void execute(uintptr_t addr)
{
    ((void (*)(void))addr)();
}

static void text_write(void)
{
    write_to((uintptr_t)kernel_main);
}

static void rodata_write(void)
{
    write_to((uintptr_t)constant);
}

static void data_execute(void)
{
    data[0] = (char)0xc3;
    execute((uintptr_t)data);
}

static void page_execute(void)
{
    execute((uintptr_t)memset(page_alloc(4096), 0xc3, 4096));
}

static void null_read(void)
{
    read_from(8);
}

static void null_write(void)
{
    write_to(0);
}

static void null_call(void)
{
    execute(0);
}

static void stack_overflow(void)
{
    for (;;)
        __asm__ volatile("push %0" : : "r"(0ull) : "memory");
}

static void ud2(void)
{
    __builtin_trap();
}

static void divide(void)
{
    __asm__ volatile("div %b0" : : "r"(0), "a"(1));
}

static void hull_text_read(void)
{
    read_from(HULL_TEXT);
}

static void hull_data_read(void)
{
    read_from(HULL_DATA);
}

static void hull_data_write(void)
{
    write_to(HULL_DATA);
}

static void hull_execute(void)
{
    execute(HULL_TEXT + 0x20);
}

static void page_table_read(void)
{
    read_from(PAGE_TABLES);
}

static void beyond_ram(void)
{
    read_from(0xd0000000);
}

static void non_canonical(void)
{
    read_from(0x8000000000000000);
}

static void port(void)
{
    __asm__ volatile("outb %%al, $0x80" : : "a"(0));
}

static void privileged(void)
{
    __asm__ volatile("cli");
}

static void halt(void)
{
    __asm__ volatile("hlt");
}

static void single_step(void)
{
    __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; nop" : : : "memory", "cc");
}

static void smashed_stack(void)
{
    extern void __stack_chk_fail(void);

    __stack_chk_fail();
}

/* An inter-processor interrupt to itself. */
static void nmi(void)
{
    __asm__ volatile("movl $0x4400, (%0)\n1: pause; jmp 1b" : : "r"(0xfee00300ull) : "memory");
}

/* The gate must refuse to read the hull, and what is not mapped; both end the VM. */
static void gate_hull(void)
{
    serial_write((const void *)HULL_DATA, 16);
}

static void gate_beyond(void)
{
    serial_write((const void *)0xdffffff0, 32);
}

static void gate_guard(void)
{
    serial_write((const void *)8, 8);
}

/* Not a fault: with AC set the gate must work as ever. */
static void gate_ac(void)
{
    __asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq" : : : "memory", "cc");
    print("AC\n");
    __asm__ volatile("pushfq; andl $~0x40000, (%%rsp); popfq" : : : "memory", "cc");
}

static const struct {
    const char *name;
    void (*commit)(void);
} crimes[] = {
    {"text-write", text_write},
    {"rodata-write", rodata_write},
    {"data-execute", data_execute},
    {"page-execute", page_execute},
    {"null-read", null_read},
    {"null-write", null_write},
    {"null-call", null_call},
    {"stack-overflow", stack_overflow},
    {"ud2", ud2},
    {"divide", divide},
    {"hull-text-read", hull_text_read},
    {"hull-data-read", hull_data_read},
    {"hull-data-write", hull_data_write},
    {"hull-execute", hull_execute},
    {"page-table-read", page_table_read},
    {"beyond-ram", beyond_ram},
    {"non-canonical", non_canonical},
    {"port", port},
    {"privileged", privileged},
    {"halt", halt},
    {"single-step", single_step},
    {"smashed-stack", smashed_stack},
    {"nmi", nmi},
    {"gate-hull", gate_hull},
    {"gate-beyond", gate_beyond},
    {"gate-guard", gate_guard},
    {"gate-ac", gate_ac},
};

void kernel_fault(const struct fault *f)
{
    print_fault(f);
    if (twice)
        null_read();
}

int kernel_main(const void *module, size_t module_len)
{
    const char *word = module;
    size_t n = next_word(&word, &module_len);
    const char suffix[] = "-twice";

    if (n > sizeof suffix && memcmp(word + n - (sizeof suffix - 1), suffix, 6) == 0) {
        twice = true;
        n -= sizeof suffix - 1;
    }
    for (size_t i = 0; i < sizeof crimes / sizeof *crimes; i++) {
        if (strlen(crimes[i].name) == n && memcmp(crimes[i].name, word, n) == 0) {
            crimes[i].commit();
            print("SURVIVED\n");
            return 1;
        }
    }
    print("UNKNOWN\n");
    return 2;
}
