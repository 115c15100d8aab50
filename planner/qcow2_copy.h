/* SPDX-License-Identifier: MIT
 *
 * An epoch of a safe rebase at work, shared by the files that make it up: qcow2_rebase_copy.c
 * decides what it is, qcow2_copy_tables.c finds the place of everything and emits the tables,
 * qcow2_copy_data.c emits the data. Nobody else includes this.
 */
#ifndef PLANNER_QCOW2_COPY_H
#define PLANNER_QCOW2_COPY_H

#include "qcow2_alloc.h"
#include "rebase_scan.h"

enum {
    TABLES_MAX = 4 << 20,    /* bytes of work for L2 tables, and for the header in its epoch */
    TABLE_MAX = 2 << 20,     /* the largest table that there is */
    TABLES_SMALL = 64 << 10, /* smaller ones are taken together up to this */
    GROUP_MAX = TABLES_SMALL / 512,
    FREES_MAX = 6,        /* runs that an epoch gives back */
    HELD_MAX = 256 << 20, /* bytes of data that are written before they are linked */
    SECTOR = 512,
    DATA_FILE = 1,
};

/* An L2 table of the epoch. */
struct qcow2_copy_table {
    u64 at;     /* where it stands, or will; 0: this epoch does not touch it */
    bool fresh; /* it does not stand there yet */
    bool loaded;
};

struct qcow2_copy {
    struct image *img;
    const struct qcow2 *q;
    struct sink *s;
    struct rebase_scan scan;
    u8 *tables;                   /* what they hold afterwards, one behind the other */
    u64 l1_first, clusters, next; /* clusters: new ones; next: cluster index of the next of them */
    u64 written, written_at; /* clusters that earlier epochs have written to, and where: an index */
    struct cluster_run free[FREES_MAX];
    unsigned frees;
    struct qcow2_alloc alloc;
    bool in_place;        /* data is written where something has been allocated already */
    struct patch pending; /* data that the next may continue */
    struct qcow2_copy_table table[GROUP_MAX];
    u8 changed[TABLE_MAX / SECTOR / 8]; /* sectors of `tables`, one bit each */
};

/* A cluster of the disk that units of the batch lie in; without extended L2 it is one unit. */
struct qcow2_touched {
    u64 idx;
    u32 data, zero;  /* masks of units */
    const u8 *bytes; /* of the data units, in order */
    bool written;    /* they stand at host already: an earlier epoch has written them */
    u64 host;
};

/* A place in the batch. */
struct qcow2_cursor {
    u32 run;
    u64 unit;
    const u8 *bytes;
};

/* ---- qcow2_copy_tables.c ---- */

/* The clusters of the batch, in order. next: false, behind the last. */
struct qcow2_cursor qcow2_batch_begin(const struct qcow2_copy *c);
bool qcow2_batch_next(const struct qcow2_copy *c, struct qcow2_cursor *at, struct qcow2_touched *t);

/* The L2 entry of a cluster in `tables`. */
u8 *qcow2_copy_entry(struct qcow2_copy *c, u64 cluster);
/* Where data of the cluster goes now: *host, 0 if it has no place, or one that a snapshot shares:
 * *shared. */
int qcow2_copy_place(struct qcow2_copy *c, const struct qcow2_touched *t, u64 *host, bool *shared,
                     struct err *e);
/* Does the cluster get a new place in this file? */
bool qcow2_copy_is_new(const struct qcow2_copy *c, const struct qcow2_touched *t, u64 host,
                       bool shared);

/* Loads the tables, counts the new clusters and those that are given back. The batch is cut short
 * where there are too many of these. */
int qcow2_copy_measure(struct qcow2_copy *c, struct err *e);
/* Where new tables stand: before the new data. */
void qcow2_copy_place_tables(struct qcow2_copy *c);

/* The tables that are new, whole, or what has changed of the others. */
int qcow2_copy_emit_tables(struct qcow2_copy *c, bool fresh, const char *why, struct err *e);
/* The L1 entries of new tables. */
int qcow2_copy_link(struct qcow2_copy *c, struct err *e);

/* ---- qcow2_copy_data.c ---- */

/* Data to `off` of a file; what continues what came before it becomes one patch with it. */
int qcow2_copy_put(struct qcow2_copy *c, u8 slot, u64 off, const u8 *bytes, u64 len, struct err *e);
/* Emits what has been put last. */
int qcow2_copy_flush(struct qcow2_copy *c, struct err *e);
/* Emits the data of the batch, and changes the entries in `tables`. */
int qcow2_copy_put_clusters(struct qcow2_copy *c, struct err *e);

#endif
