/* SPDX-License-Identifier: MIT
 *
 * Patching VHD's footers and dynamic disk header: fields, with the checksum over all the bytes that
 * are there. Each lies in one sector.
 */
#ifndef PLANNER_VHD_FOOTER_H
#define PLANNER_VHD_FOOTER_H

#include "plan.h"
#include "vhd_size.h"

/* The footer that was read from `from`, saying `size`, into p[VF_LENGTH]. */
int vhd_footer_make(struct image *img, u64 from, const struct vhd_size *size, u8 *p, struct err *e);
/* The footer at `off`, which is the one at `from` or a copy of it that this plan has written, says
 * `size` from now on; as the commit, or not. */
int vhd_footer_patch(struct image *img, u64 off, u64 from, const struct vhd_size *size, bool commit,
                     struct sink *s, const char *why, struct err *e);
/* The BAT lies at table_offset and has so many entries. Nothing is emitted if that is so already.
 */
int vhd_header_patch(struct image *img, u64 table_offset, u64 entries, struct sink *s,
                     const char *why, struct err *e);

#endif
