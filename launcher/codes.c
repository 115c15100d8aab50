/* SPDX-License-Identifier: MIT
 *
 * The table from codes to words. It has a row for each code of the contract: its length is asserted
 * here, that no row is missing in between is tested (tests/test_badqemu.py).
 */
#include "codes.h"

#include <stddef.h>

enum { REFUSED = 1, SANDBOX_FAILED = 4 };

static const char shrinking[] =
    "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before "
    "performing such an operation, make sure there is no important data there.";

static const struct code_row rows[] = {
    [instar_Code_OK] = {0, "OK", "Done"},
    [instar_Code_INVALID_OPTION] = {REFUSED, "INVALID_OPTION", "The options do not fit together"},
    [instar_Code_INVALID_NEW_SIZE] = {REFUSED, "INVALID_NEW_SIZE",
                                      "The image cannot have this size"},
    [instar_Code_SHRINK_WITHOUT_FLAG] = {REFUSED, "SHRINK_WITHOUT_FLAG",
                                         "Use the --shrink option to perform a shrink operation.",
                                         shrinking},
    [instar_Code_SHRINK_BELOW_ALLOCATED] = {REFUSED, "SHRINK_BELOW_ALLOCATED",
                                            "Data lies in what would be cut off"},
    [instar_Code_UNSUPPORTED_FORMAT] = {REFUSED, "UNSUPPORTED_FORMAT",
                                        "Image format driver does not support this operation"},
    [instar_Code_UNSUPPORTED_SUBFORMAT] = {REFUSED, "UNSUPPORTED_SUBFORMAT",
                                           "This variety of the image format is not supported"},
    [instar_Code_OVERLAY_CORRUPT] = {REFUSED, "OVERLAY_CORRUPT",
                                     "The image's metadata contradicts itself"},
    [instar_Code_BACKING_PATH_TOO_LONG] =
        {REFUSED, "BACKING_PATH_TOO_LONG",
         "The name of the backing file is too long for the format"},
    [instar_Code_SCRATCH_TOO_SMALL] = {REFUSED, "SCRATCH_TOO_SMALL",
                                       "The VM's memory is too small for this image"},
    [instar_Code_REFCOUNT_EXHAUSTED] = {REFUSED, "REFCOUNT_EXHAUSTED",
                                        "The image format can hold no more"},
    [instar_Code_DESCRIPTOR_TOO_LARGE] = {REFUSED, "DESCRIPTOR_TOO_LARGE",
                                          "The image's descriptor is too large"},
    [instar_Code_PARSE_FAILED] = {REFUSED, "PARSE_FAILED",
                                  "The file is not an image of this format"},
    [instar_Code_INTERNAL_OVERFLOW] = {REFUSED, "INTERNAL_OVERFLOW",
                                       "A number in the image is too large"},
    [instar_Code_UNSUPPORTED_SHRINK] = {REFUSED, "UNSUPPORTED_SHRINK",
                                        "This image cannot be made smaller"},
    [instar_Code_PREALLOCATION_UNSUPPORTED] = {REFUSED, "PREALLOCATION_UNSUPPORTED",
                                               "The image cannot be preallocated in this way"},
    [instar_Code_READ_FAILED] = {REFUSED, "READ_FAILED", "Reading the image failed"},
    [instar_Code_WRITE_FAILED] = {REFUSED, "WRITE_FAILED", "Writing the image failed"},
    [instar_Code_HEADER_MISMATCH] = {REFUSED, "HEADER_MISMATCH",
                                     "The image changed while it was being worked on",
                                     "Retry the operation."},
    [instar_Code_BITMAPS_UNSUPPORTED] =
        {REFUSED, "BITMAPS_UNSUPPORTED",
         "The image's persistent bitmaps cannot be used",
         "Try block-dirty-bitmap-remove to delete this bitmap from disk"},
    [instar_Code_NEW_BACKING_INCOMPATIBLE] = {REFUSED, "NEW_BACKING_INCOMPATIBLE",
                                              "The new backing file does not fit the image"},
    [instar_Code_EXTERNAL_DATA_FILE] =
        {REFUSED, "EXTERNAL_DATA_FILE",
         "The image's external data file is in the way of this operation"},
    [instar_Code_LUKS_UNSUPPORTED] = {REFUSED, "LUKS_UNSUPPORTED",
                                      "The operation would take the key of the encrypted image"},
    [instar_Code_CHAIN_DEPTH] = {REFUSED, "CHAIN_DEPTH",
                                 "The chain of files that the image names is too long"},
    [instar_Code_UNSUPPORTED_FEATURE] = {REFUSED, "UNSUPPORTED_FEATURE",
                                         "The image uses a feature that is not supported"},
    [instar_Code_INCONSISTENT] = {REFUSED, "INCONSISTENT",
                                  "The image's reference counts are inconsistent",
                                  "Repair it first: qemu-img check -r all."},
    [instar_Code_LOCKED] = {REFUSED, "LOCKED", "Another process is using the image"},
    [instar_Code_POLICY_REFUSED] = {REFUSED, "POLICY_REFUSED",
                                    "The image refers to a file that may not be opened"},
    [instar_Code_LOOP] = {REFUSED, "LOOP",
                          "The chain of files that the image names leads back to itself"},
    [instar_Code_UNDO_PENDING] = {REFUSED, "UNDO_PENDING",
                                  "An interrupted operation has to be undone first"},
    [instar_Code_TIMEOUT] = {SANDBOX_FAILED, "TIMEOUT", "The VM did not answer in time"},
    [instar_Code_NO_SPACE] = {REFUSED, "NO_SPACE",
                              "There is not enough room for the image to grow"},
    [instar_Code_GUEST_FAULT] = {SANDBOX_FAILED, "GUEST_FAULT", "The operation died in its VM"},
    [instar_Code_PROTOCOL] = {SANDBOX_FAILED, "PROTOCOL", "The VM sent what it should not"},
    [instar_Code_NO_QEMU] = {SANDBOX_FAILED, "NO_QEMU", "There is no QEMU to run"},
};
_Static_assert(sizeof rows / sizeof rows[0] == (size_t)_instar_Code_ARRAYSIZE, "a row a code");

const struct code_row *code_row(instar_Code code)
{
    return &rows[code]; /* the decoder lets no other number in */
}
