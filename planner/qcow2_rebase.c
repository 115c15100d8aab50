/* SPDX-License-Identifier: MIT
 *
 * Rebasing qcow2: what is refused beforehand, and the two modes. Messages are qemu-img's where it
 * has them (parity B.2).
 */
#include "qcow2_rebase.h"
#include "members.h"
#include "qcow2_census.h"
#include "qcow2_header.h"
#include "qcow2_rebase_copy.h"
#include "qcow2_rebuild.h"

/* A data file that must be readable as a raw disk by itself holds all of it: nothing is below. */
static int check_supported(const struct image *img, const struct rebase_args *a, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    if (q->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return FAIL(e, ERR_OVERLAY_CORRUPT, "qcow2: Image is corrupt; cannot be opened read/write",
                    QH_INCOMPATIBLE_FEATURES, q->incompatible);
    if (*a->name && (q->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW))
        return FAIL(e, ERR_EXTERNAL_DATA_FILE,
                    "Could not change the backing file: the image's external data file is a raw "
                    "disk of its own, below which there is nothing",
                    QH_AUTOCLEAR_FEATURES, q->autoclear);
    return 0;
}

/* Would the header take what is to be stored? Then nothing is copied in vain. */
static int check_header(struct image *img, const struct rebase_args *a, struct err *e)
{
    struct plan_state state = {0};
    struct sink nowhere = {plan_ignore};
    return qcow2_rebase_header(img, a, &state, &nowhere, e);
}

/* The stage of an image that was not closed cleanly. Whoever only counts goes on at once if it can
 * be done: what is compared does not depend on it. */
static int rebuild(struct image *img, const struct rebase_args *a, struct plan_state *state,
                   struct sink *s, struct err *e)
{
    struct resize_args same = {.new_size = img->size, .work = a->work, .work_len = a->work_len};
    struct plan_state aside = *state;
    struct sink nowhere = {plan_ignore};
    struct sink *to = a->count ? &nowhere : s;
    int rc = qcow2_header_autoclear(img, to, e);
    return rc ? rc : qcow2_plan_rebuild(img, &same, a->count ? &aside : state, to, e);
}

/* What a safe rebase wants to know before it changes anything. */
static int prepare(struct image *img, const struct rebase_args *a, struct plan_state *state,
                   struct sink *s, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    int rc = qcow2_rebase_check(img, a, e);
    if (rc || (rc = check_header(img, a, e)))
        return rc;
    if (q->incompatible & QCOW2_INCOMPAT_DIRTY)
        return rebuild(img, a, state, s, e);
    return state->again ? 0 : qcow2_census_check(img, a->work, a->work_len, e);
}

int qcow2_rebase(struct image *img, const struct rebase_args *a, struct plan_state *state,
                 struct sink *s, struct err *e)
{
    bool done = a->unsafe;
    int rc = check_supported(img, a, e);
    if (!rc && !done && !qcow2_rebase_goes_on(state) &&
        ((rc = prepare(img, a, state, s, e)) || state->stage))
        return rc;
    if (!rc && !done)
        rc = qcow2_rebase_copy(img, a, state, s, &done, e);
    state->confirm = !rc && done && !a->unsafe;
    return rc || !done ? rc : qcow2_rebase_header(img, a, state, s, e);
}
