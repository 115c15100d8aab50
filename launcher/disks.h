/* SPDX-License-Identifier: MIT
 *
 * The files that a run works on. Each is opened once, by the name that the user typed, and never
 * again; QEMU gets the same open file description. What is in them is none of the launcher's
 * business: it knows their kind, their length and their locks.
 */
#ifndef LAUNCHER_DISKS_H
#define LAUNCHER_DISKS_H

#include "err.h"

#include <stdbool.h>
#include <sys/stat.h>

struct disk {
    const char *name;   /* as the user typed it; if an image names it: where it was found */
    const char *format; /* what the image above says it is, or NULL */
    instar_Role role;   /* what it is to the disk `of`, which names it */
    unsigned of;
    unsigned backing; /* the disk that is its backing file; 0: none is attached */
    bool lost;        /* its backing file cannot be had, and need not be */
    int fd;
    bool target;           /* the operation changes it, if this is no dry run */
    bool writable, device; /* a block device has a fixed length */
    unsigned sector;       /* the logical block size that the VM sees */
    uint64_t length;       /* bytes, when it was opened */
    uint64_t limit;        /* what its file may grow to (growth.h) */
    uint64_t granted;      /* the longest length that the guest was allowed; 0: none */
    struct stat before;
    uint32_t insert_unit;  /* of insertions (insert.h); 0: the guest is to do without */

    char *made;            /* the name of a file that this run has made, in `home`; or NULL */
    int home;

    int dir;              /* the directory that the file was found in, or -1 */
    char *journal;        /* undo.h: the path of its undo journal, should it have one, or NULL */
    bool rolled_back;     /* a journal of this run's was used */
    bool undo;            /* a journal that this run has written is in force, of an image of */
    uint64_t undo_length; /* this length */
};

/* Opens and locks; a regular file or a block device, nothing else. `sector`: the logical block
 * size; 0: a device's own, 512 for a file. */
int disk_open(struct disk *d, const char *name, bool writable, unsigned sector, struct err *e);

/* The same for a file that is open already: one that an image names. */
int disk_adopt(struct disk *d, const char *name, int fd, bool writable, unsigned sector,
               struct err *e);

/* Takes its length, and the times that disk_state() compares, once more. */
int disk_measure(struct disk *d, unsigned sector, struct err *e);

/* Reads 512 bytes; what is behind the end of the file reads zero. */
int disk_sector(const struct disk *d, uint64_t off, uint8_t sector[512], struct err *e);

/* The length of the device that QEMU makes of a file of `length` bytes: whole sectors. */
uint64_t disk_sectors(const struct disk *d, uint64_t length);

/* Has anything been written to the file since it was locked? In the order of concern. */
enum disk_state { DISK_UNTOUCHED, DISK_UNKNOWN, DISK_TOUCHED };
enum disk_state disk_state(const struct disk *d);

/* Is a file that the operation only reads no longer what it was when it was opened? */
bool disk_changed(const struct disk *d);

/* Takes back a growth that the guest was never told of. QEMU must be dead. */
void disk_take_back(const struct disk *d);

/* Is the file longer than that now, so that disk_finish() cuts it? A device never is. */
bool disk_longer(const struct disk *d, uint64_t length);

/* Makes the file exactly `length` bytes long (a device keeps its own) and durable. */
int disk_finish(const struct disk *d, uint64_t length, struct err *e);

#endif
