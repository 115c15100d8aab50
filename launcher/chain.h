/* SPDX-License-Identifier: MIT
 *
 * An image with the files that it names: run the VM, and where it asks for such a file, apply the
 * path policy, attach the file as one more disk, and run it again: one boot more a file. All but
 * the external data file of the image itself are attached read-only.
 */
#ifndef LAUNCHER_CHAIN_H
#define LAUNCHER_CHAIN_H

#include "commands.h"
#include "disks.h"

enum { CHAIN_DISKS = 8 /* slots of microvm, and what a guest has room for */ };

struct chain {
    struct disk disks[CHAIN_DISKS]; /* [0]: the image that the user named */
    char *paths[CHAIN_DISKS]; /* of the others: where they were found, byte for byte */
    unsigned count;
    bool stuck; /* a QEMU that does not die has the files still */
};

/* Runs the job over the chain, which holds the image alone, or nothing, at first. */
int chain_run(struct job *job, struct chain *c, instar_Outcome *out, struct err *e);

/* Gives every file that was written the length that the Outcome says, and makes it durable. From
 * then on there is no undo. */
int chain_finish(struct chain *c, const instar_Outcome *out, struct err *e);

/* Gives up the locks of every file, so long as nobody else can write to it. */
void chain_close(struct chain *c);

#endif
