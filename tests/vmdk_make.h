/* SPDX-License-Identifier: MIT
 *
 * Builds monolithicSparse VMDK images in memory, sound ones, of every shape that the tests need.
 * Their guest data is a function of seed and sector, so that it can be told from what is stale.
 */
#ifndef TESTS_VMDK_MAKE_H
#define TESTS_VMDK_MAKE_H

#include "blk_mem.h"
#include "vmdk.h"

struct vmdk_make {
    u64 size;           /* whole sectors */
    u32 grain;          /* sectors; 0: 128 */
    u32 gtes;           /* 0: 512 */
    u32 version;        /* 0: 1 */
    bool no_rgd;        /* no redundant directory */
    bool zeroed;        /* the flag; every second absent grain is a zeroed one */
    u32 every;          /* of so many grains one is there; 0: none */
    bool last;          /* the last grain is there */
    u32 sectors;        /* of each grain's that hold data; 0: all */
    bool shuffled;      /* grains lie in the file in any order */
    bool short_end;     /* the file ends inside its last grain */
    bool stale_rest;    /* old bytes past the end of the disk in its last grain */
    bool stale_entries; /* past the end of the disk the last table names grains of old bytes */
    bool stale_slack;   /* the rest of the directories' sectors is garbage */
    bool no_last_table; /* the last entry of the directories is 0, if its grains are not there */
    bool tables_last;   /* directories and tables lie behind the grains */
    u32 slack;          /* sectors of old bytes that end the file */
    u32 slot;           /* of the descriptor, sectors; 0: 20 */
    u32 pad;            /* the descriptor begins with a comment this long */
    bool crlf, no_ddb;
    bool full; /* the descriptor's text fills its slot; no NUL ends it */
    bool child;
    bool extent;   /* no descriptor: one of the extents of a split image, */
    u64 first;     /* which begins at this byte of the disk */
    u64 seed; /* 0: 1 */
};

struct vmdk_made {
    u64 gd, rgd, entries, used_end; /* bytes, but for entries */
    u64 table;                      /* of the first directory's last entry */
};

void vmdk_make(struct blk_mem *m, const struct vmdk_make *p, struct vmdk_made *made);
/* Replaces `from`, the first place in the descriptor, by `to`, of any length. */
void vmdk_make_text(struct blk_mem *m, const char *from, const char *to);

#endif
