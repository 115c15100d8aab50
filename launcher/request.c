/* SPDX-License-Identifier: MIT
 *
 * Encoded by nanopb; the guest gets the bytes as a multiboot module.
 */
#include "request.h"

#include <errno.h>
#include <pb_encode.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

int request_write(struct job *job, const struct disk *disks, unsigned count, int fd, struct err *e)
{
    uint8_t bytes[instar_Request_size];
    job->request.disks_count = (pb_size_t)count;
    pb_ostream_t to = pb_ostream_from_buffer(bytes, sizeof bytes);
    for (unsigned i = 0; i < count; i++) {
        instar_Disk *d = &job->request.disks[i];
        d->length = disks[i].length;
        d->writable = disks[i].writable;
        d->role = disks[i].role;
        d->of = disks[i].of;
        d->backing = disks[i].backing;
        d->lost = disks[i].lost;
        d->device = disks[i].device;
        d->insert_unit = disks[i].insert_unit;
        if (disks[i].made)
            snprintf(d->name, sizeof d->name, "%s", disks[i].made);
        if (disks[i].format)
            snprintf(d->format, sizeof d->format, "%s", disks[i].format);
    }
    job->request.random.size = sizeof job->request.random.bytes;
    if (getrandom(job->request.random.bytes, sizeof job->request.random.bytes, 0) !=
        sizeof job->request.random.bytes)
        return err_set(e, instar_Code_NO_QEMU, "Could not get random bytes: %s", strerror(errno));
    if (!pb_encode(&to, instar_Request_fields, &job->request) ||
        write(fd, bytes, to.bytes_written) != (ssize_t)to.bytes_written)
        return err_set(e, instar_Code_NO_QEMU, "Could not write the request: %s", strerror(errno));
    return 0;
}
