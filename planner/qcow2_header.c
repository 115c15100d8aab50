/* SPDX-License-Identifier: MIT
 *
 * See qcow2_header.h. Source: docs/interop/qcow2.txt, "Header".
 */
#include "qcow2_header.h"

void qcow2_header_begin(const struct image *img, struct qcow2_header *h)
{
    *h = (struct qcow2_header){.from = sizeof h->bytes};
    memcpy(h->bytes, img->u.qcow2.header, sizeof h->bytes);
}

static u8 *put(struct qcow2_header *h, u32 field, u32 len)
{
    assert(field + len <= sizeof h->bytes);
    h->from = (u32)min_u64(h->from, field);
    h->to = (u32)max_u64(h->to, field + len);
    return h->bytes + field;
}

void qcow2_header_put32(struct qcow2_header *h, enum qcow2_header_field field, u32 v)
{
    put_be32(put(h, field, 4), v);
}

void qcow2_header_put64(struct qcow2_header *h, enum qcow2_header_field field, u64 v)
{
    put_be64(put(h, field, 8), v);
}

int qcow2_header_commit(const struct qcow2_header *h, struct sink *s, const char *why,
                        struct err *e)
{
    int rc = plan_commit(s, h->from, h->bytes + h->from, h->to - h->from, why, e);
    return rc ? rc : plan_barrier(s, "the new header is durable", e);
}

int qcow2_header_autoclear(const struct image *img, struct sink *s, struct err *e)
{
    u8 field[8];
    u64 keep = img->u.qcow2.autoclear & QCOW2_AUTOCLEAR_KNOWN;
    if (keep == img->u.qcow2.autoclear)
        return 0;
    put_be64(field, keep);
    int rc = plan_write(s, QH_AUTOCLEAR_FEATURES, field, 8,
                        "clear autoclear bits that this program does not maintain", e);
    return rc ? rc : plan_barrier(s, "before anything else is changed", e);
}
