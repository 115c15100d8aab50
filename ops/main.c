/* SPDX-License-Identifier: MIT
 *
 * kernel_main() of every unikernel: decode the Request, open its disks, run the operation, send
 * the Outcome. What the operation is, is decided by which op_run() was linked.
 */
#include <pb_decode.h>

#include "kernel.h"
#include "op.h"

static instar_Request request;
static instar_Outcome outcome;

void *op_alloc(size_t bytes)
{
    void *p = page_alloc_raw(bytes);
    assert(p);
    return p;
}

static int decode_request(const void *module, size_t len, struct err *e)
{
    pb_istream_t in = pb_istream_from_buffer(module, len);
    if (!module || !pb_decode(&in, instar_Request_fields, &request))
        return FAIL(e, ERR_PROTOCOL, "The request cannot be decoded", 0, len);
    return 0;
}

int kernel_main(const void *module, size_t module_len)
{
    struct op op = {.request = &request};
    struct err e = {0};
    if (!decode_request(module, module_len, &e) && !disks_open(&op, &e))
        op_run(&op, &outcome, &e);
    report_outcome(&outcome, &e);
    return e.code ? 1 : 0;
}
