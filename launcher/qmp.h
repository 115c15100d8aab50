/* SPDX-License-Identifier: MIT
 *
 * The little of QMP that a run needs: block_resize. Commands are answered in their order, so that
 * counting replies is enough; they carry no ids, and a reply is a line that begins with
 * {"return" or {"error". Greeting and events begin otherwise and are passed over, but for one: why
 * a request of the guest failed, which virtio-blk has no words for.
 */
#ifndef LAUNCHER_QMP_H
#define LAUNCHER_QMP_H

#include "err.h"

#include <stdbool.h>

struct qmp {
    int fd;
    unsigned pending; /* commands not answered yet */
    size_t have;
    char buf[8192];
    char reason[80]; /* of the first request of the guest's that failed; "" if none has */
};

/* Writes qmp_capabilities; QEMU need not run yet. */
void qmp_open(struct qmp *q, int fd);

/* Asks for a device node (disk `slot`) to get `length` bytes, rounded up to sectors by QEMU. */
void qmp_resize(struct qmp *q, unsigned slot, uint64_t length);

/* Takes in the replies that are there. -1: a command failed. At the end of the socket *ended. */
int qmp_read(struct qmp *q, bool *ended, struct err *e);

#endif
