/* SPDX-License-Identifier: MIT
 *
 * QEMU's command line, word by word (DESIGN section 3; each choice is measured there). A run and
 * --print-qemu share all of it but the channels to the VM and where the disks come from.
 */
#ifndef LAUNCHER_CMDLINE_H
#define LAUNCHER_CMDLINE_H

#include "commands.h"
#include "disks.h"
#include "machines.h"

enum { CMDLINE_WORDS = 240 };

struct cmdline {
    char *word[CMDLINE_WORDS + 1]; /* owned; NULL after the last */
    int words;
};

/* One word. More than fit are a bug of ours. */
void cmdline_add(struct cmdline *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A word for each of these, which are separated by single spaces. */
void cmdline_add_words(struct cmdline *c, const char *words);

/* QEMU itself, its machine with room for so many disks, its cage and the kernel. */
void cmdline_machine(struct cmdline *c, const char *qemu, const struct machine *machine,
                     enum accel accel, const char *kernel, unsigned disks);

/* Disk `n`: the node f<n> on `file` (-blockdev's words on the name and the locks), in slot n. */
void cmdline_disk(struct cmdline *c, const struct machine *machine, unsigned n,
                  const struct disk *d, const char *file);

void cmdline_free(struct cmdline *c);

#endif
