/* SPDX-License-Identifier: MIT
 *
 * Bytes through COM1, a 16550A. QEMU's needs no line settings, and a loader's do not matter; only
 * the FIFO is switched on, because with it a peer that does not read costs time and not bytes.
 * A port access is a VM exit, and on some hosts a dear one: output goes through the gate, 16 bytes
 * to one look at the line status.
 */
#include "hull.h"
#include "kernel.h"

/* Switching the FIFO on empties it: before the first byte either way, never again. */
static void serial_init(void)
{
    static bool ready;

    if (!ready)
        outb(COM1_FCR, 1);
    ready = true;
}

void serial_write(const void *buf, size_t len)
{
    const char *p = buf;
    struct wait w;

    serial_init();
    wait_begin(&w);
    while (len > 0) {
        uint32_t n = len < 1 << 20 ? (uint32_t)len : 1 << 20;
        size_t done = n - gate(GATE_WRITE, p, n);

        p += done;
        len -= done;
        if (done > 0)
            wait_begin(&w);
        else
            wait_once(&w);
    }
}

/* Up to a FIFO of bytes may still wait for a busy peer when serial_write() returns, and QEMU drops
 * them when it ends. A peer that never reads is given up after five seconds. */
void serial_drain(void)
{
    enum { PATIENCE_US = 5000000 };
    struct wait w;

    wait_begin(&w);
    while (!(inb(COM1_LSR) & LSR_TEMT) && w.slept_us < PATIENCE_US)
        wait_once(&w);
}

int serial_read(uint64_t ms)
{
    struct wait w;

    serial_init();
    wait_begin(&w);
    for (;;) {
        if (inb(COM1_LSR) & LSR_DR)
            return inb(COM1);
        if (w.slept_us / 1000 >= ms)
            return -1;
        wait_once(&w);
    }
}
