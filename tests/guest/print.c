/* SPDX-License-Identifier: MIT
 *
 * The floor: boots, prints one line, ends. What any operation costs beyond this is its own.
 */
#include "kernel.h"

int kernel_main(const void *module, size_t module_len)
{
    (void)module, (void)module_len;
    serial_write("hello\n", 6);
    return 0;
}

void kernel_fault(const struct fault *f)
{
    (void)f;
}
