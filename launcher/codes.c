/* SPDX-License-Identifier: MIT
 *
 * The exhaustive mapping from codes to words. There is no default: a code added to the contract
 * and forgotten here does not compile.
 */
#include "codes.h"

#include <stdlib.h>

#pragma GCC diagnostic error "-Wswitch-enum"

enum { REFUSED = 1, SANDBOX_FAILED = 4 };

static struct code_row row(int status, const char *name, const char *text, const char *advice)
{
    return (struct code_row){.status = status, .name = name, .text = text, .advice = advice};
}

struct code_row code_row(instar_Code code)
{
    static const char shrinking[] =
        "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before "
        "performing such an operation, make sure there is no important data there.";
    switch (code) {
    case instar_Code_OK:
        return row(0, "OK", "Done", NULL);
    case instar_Code_INVALID_OPTION:
        return row(REFUSED, "INVALID_OPTION", "The options do not fit together", NULL);
    case instar_Code_INVALID_NEW_SIZE:
        return row(REFUSED, "INVALID_NEW_SIZE", "The image cannot have this size", NULL);
    case instar_Code_SHRINK_WITHOUT_FLAG:
        return row(REFUSED, "SHRINK_WITHOUT_FLAG",
                   "Use the --shrink option to perform a shrink operation.", shrinking);
    case instar_Code_SHRINK_BELOW_ALLOCATED:
        return row(REFUSED, "SHRINK_BELOW_ALLOCATED", "Data lies in what would be cut off", NULL);
    case instar_Code_UNSUPPORTED_FORMAT:
        return row(REFUSED, "UNSUPPORTED_FORMAT",
                   "Image format driver does not support this operation", NULL);
    case instar_Code_UNSUPPORTED_SUBFORMAT:
        return row(REFUSED, "UNSUPPORTED_SUBFORMAT",
                   "This variety of the image format is not supported", NULL);
    case instar_Code_OVERLAY_CORRUPT:
        return row(REFUSED, "OVERLAY_CORRUPT", "The image's metadata contradicts itself", NULL);
    case instar_Code_BACKING_PATH_TOO_LONG:
        return row(REFUSED, "BACKING_PATH_TOO_LONG",
                   "The name of the backing file is too long for the format", NULL);
    case instar_Code_SCRATCH_TOO_SMALL:
        return row(REFUSED, "SCRATCH_TOO_SMALL", "The VM's memory is too small for this image",
                   NULL);
    case instar_Code_REFCOUNT_EXHAUSTED:
        return row(REFUSED, "REFCOUNT_EXHAUSTED", "The image format can hold no more", NULL);
    case instar_Code_DESCRIPTOR_TOO_LARGE:
        return row(REFUSED, "DESCRIPTOR_TOO_LARGE", "The image's descriptor is too large", NULL);
    case instar_Code_PARSE_FAILED:
        return row(REFUSED, "PARSE_FAILED", "The file is not an image of this format", NULL);
    case instar_Code_INTERNAL_OVERFLOW:
        return row(REFUSED, "INTERNAL_OVERFLOW", "A number in the image is too large", NULL);
    case instar_Code_UNSUPPORTED_SHRINK:
        return row(REFUSED, "UNSUPPORTED_SHRINK", "Shrinking this image is not yet supported",
                   NULL);
    case instar_Code_PREALLOCATION_UNSUPPORTED:
        return row(REFUSED, "PREALLOCATION_UNSUPPORTED", "Preallocation is not yet supported",
                   NULL);
    case instar_Code_READ_FAILED:
        return row(REFUSED, "READ_FAILED", "Reading the image failed", NULL);
    case instar_Code_WRITE_FAILED:
        return row(REFUSED, "WRITE_FAILED", "Writing the image failed", NULL);
    case instar_Code_HEADER_MISMATCH:
        return row(REFUSED, "HEADER_MISMATCH", "The image changed while it was being worked on",
                   "Retry the operation.");
    case instar_Code_BITMAPS_UNSUPPORTED:
        return row(REFUSED, "BITMAPS_UNSUPPORTED",
                   "Images with persistent bitmaps are not yet supported", NULL);
    case instar_Code_NEW_BACKING_INCOMPATIBLE:
        return row(REFUSED, "NEW_BACKING_INCOMPATIBLE",
                   "The new backing file does not fit the image", NULL);
    case instar_Code_EXTERNAL_DATA_FILE:
        return row(REFUSED, "EXTERNAL_DATA_FILE",
                   "Images with an external data file are not yet supported", NULL);
    case instar_Code_LUKS_UNSUPPORTED:
        return row(REFUSED, "LUKS_UNSUPPORTED", "Encrypted images are not supported", NULL);
    case instar_Code_CHAIN_DEPTH:
        return row(REFUSED, "CHAIN_DEPTH", "The chain of backing files is too long", NULL);
    case instar_Code_UNSUPPORTED_FEATURE:
        return row(REFUSED, "UNSUPPORTED_FEATURE", "The image uses a feature that is not supported",
                   NULL);
    case instar_Code_INCONSISTENT:
        return row(REFUSED, "INCONSISTENT", "The image's reference counts are inconsistent",
                   "Repair it first: qemu-img check -r all.");
    case instar_Code_LOCKED:
        return row(REFUSED, "LOCKED", "Another process is using the image", NULL);
    case instar_Code_POLICY_REFUSED:
        return row(REFUSED, "POLICY_REFUSED", "The image refers to a file that may not be opened",
                   NULL);
    case instar_Code_LOOP:
        return row(REFUSED, "LOOP", "The chain of backing files leads back to itself", NULL);
    case instar_Code_UNDO_PENDING:
        return row(REFUSED, "UNDO_PENDING", "An interrupted operation has to be undone first",
                   NULL);
    case instar_Code_TIMEOUT:
        return row(SANDBOX_FAILED, "TIMEOUT", "The VM did not answer in time", NULL);
    case instar_Code_NO_SPACE:
        return row(REFUSED, "NO_SPACE", "There is not enough room for the image to grow", NULL);
    case instar_Code_GUEST_FAULT:
        return row(SANDBOX_FAILED, "GUEST_FAULT", "The operation died in its VM", NULL);
    case instar_Code_PROTOCOL:
        return row(SANDBOX_FAILED, "PROTOCOL", "The VM sent what it should not", NULL);
    case instar_Code_NO_QEMU:
        return row(SANDBOX_FAILED, "NO_QEMU", "There is no QEMU to run", NULL);
    }
    abort(); /* the decoder lets no other number in */
}
