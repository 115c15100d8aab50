/* SPDX-License-Identifier: MIT
 *
 * A disk over a file descriptor: what the VM has through virtio, without the VM.
 */
#ifndef TESTS_BLK_FILE_H
#define TESTS_BLK_FILE_H

#include "blk.h"

struct blk_file {
    struct blk blk;
    int fd;
};

/* `length` as the Request has it; the descriptor stays the caller's. */
void blk_file_init(struct blk_file *f, int fd, u64 length, u32 sector, bool writable);

#endif
