/* SPDX-License-Identifier: MIT
 *
 * Where a sparse VMDK ends that stands on something longer, a block device: behind the last thing
 * that its header and its tables name. What the redundant directory's tables say is what those of
 * the other say, or the survey refuses the image.
 */
#include "vmdk_plan.h"

/* The grains that table idx, at `table`, names. The next table often follows at once. */
static int end_of_grains(struct image *img, u64 idx, u64 table, u64 *end, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 n = min_u64(v->gtes, vmdk_grains(img) - idx * v->gtes), off;
    for (u64 k = 0; k < n; k++) {
        const u8 *p;
        int rc = window_get(&img->win2, img->file[0], table + k * 4, 4, img->file[0]->size, &p, e);
        if (rc || (rc = vmdk_check_grain(img, le32(p), &off, e)))
            return rc;
        *end = max_u64(*end, off ? off + img->unit : 0);
    }
    return 0;
}

int vmdk_end(struct image *img, u64 *end, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 span = vmdk_table_span(v), dir = vmdk_directory_span(v->entries), table;
    int rc = 0;
    if (v->kind)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT, "A descriptor has no end but its file's", 0, 0);
    if (v->flags & VMDK_COMPRESSED)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT, "A stream ends where its file does", 0, v->flags);
    *end = max_u64(v->overhead, v->descriptor_offset + v->descriptor_size);
    for (int c = 0; c < (v->rgd_offset ? 2 : 1); c++) {
        u64 at = c ? v->rgd_offset : v->gd_offset;
        *end = max_u64(*end, at + dir);
        for (u64 i = 0; !rc && i < v->entries; i++) {
            rc = vmdk_table(img, at, i, &table, e);
            if (rc || !table)
                continue;
            *end = max_u64(*end, table + span);
            rc = c ? 0 : end_of_grains(img, i, table, end, e);
        }
    }
    return rc;
}
