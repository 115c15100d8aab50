/* SPDX-License-Identifier: MIT
 *
 * What a qcow2 plan remembers from one epoch to the next, in plan_state.v: every phase of every
 * qcow2 plan, and what each keeps in the slots that follow. One plan uses one set of them.
 */
#ifndef PLANNER_QCOW2_STATE_H
#define PLANNER_QCOW2_STATE_H

/* v[V_PHASE]: where the plan stands. */
enum qcow2_phase {
    PHASE_START,   /* nothing has been done but what the guest cannot see */
    PHASE_FILL,    /* grow: the tables reach the new end; the new area is being mapped */
    PHASE_STREAM,  /* shrink: the size is set; what lay past it is being freed */
    PHASE_BLOCKS,  /* shrink: all of that is free; empty refcount blocks go */
    PHASE_COPY,    /* rebase: what differs between the chains is being copied */
};

enum {
    V_PHASE,
    V_BITMAPS, /* qcow2_bitmaps.c: how many of them are done already, and where */
    V_BITMAPS_AT,
    V_FREE, /* the first that a phase has for itself */
    /* PHASE_FILL */
    V_VOFF = V_FREE,
    V_HEAD,
    /* PHASE_STREAM, PHASE_BLOCKS */
    V_OLD_L1_SIZE = V_FREE,
    V_L1_IDX,
    V_L2_IDX,
    V_TABLES, /* L2 tables listed so far */
    /* PHASE_COPY; V_VOFF as above */
    V_LAST_CLUSTER = V_VOFF + 1, /* that was counted */
    V_RUNS,                      /* of the batch: written by earlier epochs, not yet linked */
    V_WRITTEN,                   /* clusters that these take, */
    V_WRITTEN_AT,                /* and where, as a cluster index */
};

#endif
