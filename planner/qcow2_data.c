/* SPDX-License-Identifier: MIT
 *
 * See qcow2_data.h. Offsets in the data file are the guest's own (formats/qcow2_map.c refuses all
 * others), so it is cut and extended like a raw image. A device keeps its length: it must be long
 * enough for a grow, and the launcher does not cut it.
 */
#include "qcow2_data.h"

enum { DATA_FILE = 1 /* its place in img->file[] */ };

int qcow2_data_check(const struct image *img, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    if (!qcow2_has_data_file(q))
        return 0;
    if (img->files <= DATA_FILE)
        return FAIL(e, ERR_EXTERNAL_DATA_FILE, "'data-file' is required for this image",
                    QH_INCOMPATIBLE_FEATURES, q->incompatible);
    if (q->nb_snapshots)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The image has snapshots and an external data file, which exclude each other",
                    QH_NB_SNAPSHOTS, q->nb_snapshots);
    if ((q->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) && q->backing_file_offset)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The image has a backing file and a raw external data file, which exclude each "
                    "other",
                    QH_BACKING_FILE_OFFSET, q->backing_file_offset);
    return 0;
}

int qcow2_data_grow(const struct image *img, u64 new_size, bool mapped, struct sink *s,
                    struct err *e)
{
    u64 size = img->file[DATA_FILE]->size, old = min_u64(size, img->size);
    int rc = 0;
    if (new_size > size)
        rc = plan_emit(s,
                       (struct patch){.kind = PATCH_LENGTH,
                                      .slot = DATA_FILE,
                                      .len = new_size,
                                      .why = "the data file is as long as the disk"},
                       e);
    if (rc || !mapped || size <= old)
        return rc;
    return plan_emit(s,
                     (struct patch){.kind = PATCH_ZERO,
                                    .slot = DATA_FILE,
                                    .off = old,
                                    .len = min_u64(size, new_size) - old,
                                    .may_unmap = true,
                                    .why = "what the data file has past the end of the disk"},
                     e);
}

int qcow2_data_shrink(const struct image *img, u64 new_size, struct sink *s, struct err *e)
{
    u64 size = img->file[DATA_FILE]->size;
    int rc = 0;
    if (size <= new_size)
        return 0;
    rc = plan_emit(s,
                   (struct patch){.kind = PATCH_DISCARD,
                                  .slot = DATA_FILE,
                                  .off = new_size,
                                  .len = size - new_size,
                                  .why = "past the new end"},
                   e);
    if (!rc)
        rc = plan_emit(s,
                       (struct patch){.kind = PATCH_LENGTH,
                                      .slot = DATA_FILE,
                                      .len = new_size,
                                      .why = "the data file is as long as the disk"},
                       e);
    return rc ? rc : plan_barrier(s, "done", e);
}
