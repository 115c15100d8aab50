/* SPDX-License-Identifier: MIT
 *
 * What the small test guests share: text over the serial port, numbers, and the words of the
 * module, which says what to do (`-initrd FILE`).
 */
#ifndef GUEST_H
#define GUEST_H

#include "kernel.h"

static inline void print(const char *s)
{
    serial_write(s, strlen(s));
}

static inline void print_number(uint64_t v, unsigned base)
{
    char buf[24], *p = buf + sizeof buf;

    *--p = 0;
    do
        *--p = "0123456789abcdef"[v % base];
    while ((v /= base) != 0);
    print(p);
}

/* "FAULT vec=e err=7 rip=.. cr2=..", in hex. */
static inline void print_fault(const struct fault *f)
{
    print("FAULT vec=");
    print_number(f->vector, 16);
    print(" err=");
    print_number(f->error_code, 16);
    print(" rip=");
    print_number(f->rip, 16);
    print(" cr2=");
    print_number(f->cr2, 16);
    print("\n");
}

/* The next word (parted by blanks or newlines) in text of *left bytes: at *text, its length is
 * returned; 0 at the end. */
static inline size_t next_word(const char **text, size_t *left)
{
    size_t n = 0;

    for (; *left > 0 && (**text == ' ' || **text == '\n'); ++*text)
        --*left;
    while (n < *left && (*text)[n] != ' ' && (*text)[n] != '\n')
        n++;
    return n;
}

#endif
