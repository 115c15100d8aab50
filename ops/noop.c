/* SPDX-License-Identifier: MIT
 *
 * noop: decodes the Request, answers, ends. The floor that every operation is measured against.
 */
#include "op.h"

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    (void)e;
    out->which_result = instar_Outcome_noop_tag;
    out->result.noop.disks = op->disks;
    return 0;
}
