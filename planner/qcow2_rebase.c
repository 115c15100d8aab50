/* SPDX-License-Identifier: MIT
 *
 * Rebasing qcow2: what is refused beforehand, and the two modes. Messages are qemu-img's where it
 * has them (parity B.2).
 */
#include "qcow2_rebase.h"

/* A data file that must be readable as a raw disk by itself holds all of it: nothing is below. */
static int check_supported(const struct image *img, const struct rebase_args *a, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    if (q->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "qcow2: Image is corrupt; cannot be opened read/write",
                    QH_INCOMPATIBLE_FEATURES, q->incompatible);
    if (*a->name && (q->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW))
        return FAIL(e, ERR_EXTERNAL_DATA_FILE,
                    "Its external data file is a raw disk of its own, below which there is nothing",
                    QH_AUTOCLEAR_FEATURES, q->autoclear);
    return 0;
}

int qcow2_rebase(struct image *img, const struct rebase_args *a, struct plan_state *state,
                 struct sink *s, struct err *e)
{
    int rc = check_supported(img, a, e);
    if (rc)
        return rc;
    if (!a->unsafe)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                    "Only unsafe mode (-u) is supported as yet: it changes the reference, and what "
                    "the disk shows with it",
                    0, 0);
    return qcow2_rebase_header(img, a, state, s, e);
}
