/* SPDX-License-Identifier: MIT
 *
 * What an operation sees: the decoded Request, its disks as struct blk, and the way to report.
 * main.c calls op_run() once; each unikernel links exactly one ops/<op>.c that defines it.
 * host_main.c in tests/ supplies the same functions over files, for the same op_run().
 */
#ifndef OPS_OP_H
#define OPS_OP_H

#include "instar.pb.h"
#include "plan.h"

enum { OP_DISKS = 24 /* of a Request, at most: Request.disks in instar.options */ };

struct op {
    const instar_Request *request;
    struct blk *disk[OP_DISKS]; /* in the order of Request.disks */
    unsigned disks;
};

/* Fills *out (the result; its error too where the result has one) or *e, which rules. */
int op_run(struct op *op, instar_Outcome *out, struct err *e);

/* ---- main.c ---- */

/* Memory for the operation's buffers, page aligned, not zeroed, free until touched; asserts that
 * there is enough. Only before the first block of a disk is read. */
void *op_alloc(size_t bytes);

/* ---- disks.c ---- */

/* Disks of the Request, set up as struct blk. ERR_READ_FAILED if one is missing. */
int disks_open(struct op *op, struct err *e);
/* Sends the Need and waits for the grant; disk_of[i] is file i of the plan's image. ERR_NO_SPACE,
 * ERR_PROTOCOL. */
int disks_need(u32 epoch, const struct plan_need *need, const u8 disk_of[IMAGE_FILES],
               struct err *e);
/* Has the host insert zeros into a file. ERR_NO_SPACE, ERR_PROTOCOL. */
int disks_insert(u32 epoch, u8 slot, u64 off, u64 len, struct err *e);

/* ---- report.c ---- */

void report_outcome(instar_Outcome *out, const struct err *e);
void report_progress(u64 requests, u64 done, u64 total);
void report_need(u32 epoch, const struct plan_need *need, const u8 disk_of[IMAGE_FILES]);
void report_insert(u32 epoch, u8 slot, u64 off, u64 len);
void report_undo(u8 slot, u64 off, const u32 *crc, unsigned n);
void report_patch(u32 epoch, const struct patch *p);

#endif
