/* SPDX-License-Identifier: MIT
 *
 * The two ways in which ring 3 meets the outside without asking: a fault, which boot.S turns into
 * trap_user(), and time, which is the one-shot timer of the local APIC. Intel SDM volume 3,
 * chapter 11 (APIC; the timer in 11.5.4). QEMU's and KVM's APIC timers count at 1 GHz.
 */
#include "hull.h"
#include "kernel.h"

enum { PF = 14 };

_Noreturn void trap_user(uint64_t vector, uint64_t error_code, uint64_t rip, uint64_t cr2);

/* Entered from ring 0 by iretq, at most once, on the fault stack. */
_Noreturn void trap_user(uint64_t vector, uint64_t error_code, uint64_t rip, uint64_t cr2)
{
    struct fault f = {(uint32_t)vector, error_code, rip, vector == PF ? cr2 : 0};

    kernel_fault(&f);
    kernel_exit(KERNEL_EXIT_FAULT);
}

/* ---- waiting ---- */

enum { SPIN_TICKS = 1 << 18 }; /* of the TSC: about 100 us */
enum { FIRST_US = 100, LAST_US = 1000 };

enum lapic_reg {
    LAPIC = 0xfee00000,
    LAPIC_TPR = LAPIC + 0x080,
    LAPIC_EOI = LAPIC + 0x0b0,
    LAPIC_SVR = LAPIC + 0x0f0,
    LAPIC_LVT_TIMER = LAPIC + 0x320,
    LAPIC_LVT_LINT0 = LAPIC + 0x350,
    LAPIC_TIMER_INITIAL = LAPIC + 0x380,
    LAPIC_TIMER_DIVIDE = LAPIC + 0x3e0
};

static void lapic_init(void)
{
    mmio_write32(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
    mmio_write32(LAPIC_LVT_LINT0, 1 << 16); /* whatever firmware left running behind the 8259 */
    /* QEMU under TCG remembers a request of the 8259's that is older than that, and would serve it
     * as vector -1. It looks again, and forgets it, when the priority is written. */
    mmio_write32(LAPIC_TPR, 0);
    mmio_write32(LAPIC_LVT_TIMER, VECTOR_TIMER);
    mmio_write32(LAPIC_TIMER_DIVIDE, 0xb); /* by 1 */
}

/* Halts the CPU for `us`. Interrupts are off but inside the gate, so a timer that has fired already
 * ends the halt at once. */
static void lapic_sleep(uint32_t us)
{
    static bool ready;

    if (!ready)
        lapic_init();
    ready = true;
    mmio_write32(LAPIC_TIMER_INITIAL, us * 1000);
    gate(GATE_WAIT, NULL, 0);
    mmio_write32(LAPIC_EOI, 0);
}

void wait_begin(struct wait *w)
{
    *w = (struct wait){.spin_end = rdtsc() + SPIN_TICKS, .us = FIRST_US};
}

void wait_once(struct wait *w)
{
    if (w->slept_us == 0 && rdtsc() < w->spin_end) {
        __asm__ volatile("pause" : : : "memory");
        return;
    }
    lapic_sleep(w->us);
    w->slept_us += w->us;
    w->us = w->us * 2 < LAST_US ? w->us * 2 : LAST_US;
}
