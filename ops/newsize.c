/* SPDX-License-Identifier: MIT
 *
 * qemu-img's range checks for a new size, in its order (parity A.3).
 */
#include "newsize.h"

#define SIZE_MAX_BYTES 9223372035781033984ull /* 2^63 - 2^30: the block layer's limit */

instar_Code newsize(const instar_ResizeRequest *r, uint64_t current, uint64_t *new_size,
                    const char **what, uint64_t *val)
{
    uint64_t total = r->size;
    current = (current + 511) / 512 * 512;
    bool positive = true;
    if (r->kind == instar_SizeKind_PLUS)
        positive = !__builtin_add_overflow(current, r->size, &total);
    else if (r->kind == instar_SizeKind_MINUS)
        positive = !__builtin_sub_overflow(current, r->size, &total);
    if (positive && r->align)
        positive = !__builtin_add_overflow(total, r->align - 1, &total);
    if (r->align)
        total -= total % r->align;
    if (!positive || total == 0 || total > INT64_MAX) {
        *what = "New image size must be positive";
        return instar_Code_INVALID_NEW_SIZE;
    }
    if (total <= current && r->preallocation != instar_Preallocation_PREALLOCATION_OFF) {
        *what = "Preallocation can only be used for growing images";
        return instar_Code_INVALID_OPTION;
    }
    if (total < current && !r->shrink) {
        *what = "Use the --shrink option to perform a shrink operation.";
        return instar_Code_SHRINK_WITHOUT_FLAG;
    }
    if (total > SIZE_MAX_BYTES) {
        *val = total;
        *what = "offset({val}) exceeds maximum(9223372035781033984)";
        return instar_Code_INVALID_NEW_SIZE;
    }
    *new_size = total;
    return instar_Code_OK;
}
