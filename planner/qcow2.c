/* SPDX-License-Identifier: MIT
 *
 * qcow2: which images can be changed at all, and the plan that serves a request. Messages are
 * qemu-img's where it has them (parity A.6).
 */
#include "members.h"
#include "qcow2_bitmaps.h"
#include "qcow2_data.h"
#include "qcow2_end.h"
#include "qcow2_grow.h"
#include "qcow2_header.h"
#include "qcow2_rebase.h"
#include "qcow2_rebuild.h"
#include "qcow2_shrink.h"

/* Refused before anything is planned, each with its reason. */
static int check_supported(const struct image *img, const struct resize_args *a, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    if (q->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "qcow2: Image is corrupt; cannot be opened read/write",
                    QH_INCOMPATIBLE_FEATURES, q->incompatible);
    if (a->new_size % 512)
        return FAIL(e, ERR_INVALID_NEW_SIZE, "The new size must be a multiple of 512", 0,
                    a->new_size);
    if (q->version == 2 && q->nb_snapshots)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Can't resize a v2 image which has snapshots",
                    QH_NB_SNAPSHOTS, q->nb_snapshots);
    if (a->preallocation != PREALLOC_OFF && q->crypt_method)
        return FAIL(e, ERR_LUKS_UNSUPPORTED,
                    "Preallocation in an encrypted image needs its key, and is not supported",
                    QH_CRYPT_METHOD, q->crypt_method);
    return qcow2_data_check(img, e);
}

static int resize_disk(struct image *img, const struct resize_args *a, struct plan_state *state,
                       struct sink *s, struct err *e)
{
    int rc = qcow2_header_autoclear(img, s, e);
    if (rc)
        return rc;
    return a->new_size < img->size || qcow2_shrink_goes_on(state)
               ? qcow2_plan_shrink(img, a, state, s, e)
               : qcow2_plan_grow(img, a, state, s, e);
}

/* In this order: refcounts are rebuilt, bitmaps get their new size, the disk gets its own. */
int qcow2_resize(struct image *img, const struct resize_args *a, struct plan_state *state,
                 struct sink *s, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    int rc = check_supported(img, a, e);
    if (!rc && a->new_size > img->size && q->backing_file_offset && q->backing_file_size &&
        !img->backing)
        rc = FAIL(e, ERR_PROTOCOL, "The backing file is needed and was not attached",
                  QH_BACKING_FILE_OFFSET, 0);
    if (rc)
        return rc;
    if (q->incompatible & QCOW2_INCOMPAT_DIRTY) {
        if ((rc = qcow2_bitmaps_check(img, a->new_size, e)))
            return rc;
        rc = qcow2_header_autoclear(img, s, e);
        return rc ? rc : qcow2_plan_rebuild(img, a, state, s, e);
    }
    return qcow2_bitmaps_pending(img, state) ? qcow2_plan_bitmaps(img, a, state, resize_disk, s, e)
                                             : resize_disk(img, a, state, s, e);
}

const struct planner qcow2_planner = {.format = &qcow2_format,
                                      .resize = qcow2_resize,
                                      .rebase = qcow2_rebase,
                                      .end = qcow2_end};
