/* SPDX-License-Identifier: MIT
 *
 * Where the program finds what it runs: QEMU and the unikernels.
 */
#ifndef LAUNCHER_PATHS_H
#define LAUNCHER_PATHS_H

#include "err.h"

enum { PATH_ROOM = 4096 };

/* QEMU by --qemu or $INSTAR_QEMU (`chosen`; a bare name is looked up in PATH), else
 * qemu-system-x86_64 in PATH. */
int paths_qemu(const char *chosen, char path[PATH_ROOM], struct err *e);

/* The unikernel `file` in --images or $INSTAR_IMAGES (`chosen`), else beside the program: in the
 * build tree, or where it is installed. */
int paths_image(const char *chosen, const char *file, char path[PATH_ROOM], struct err *e);

#endif
