/* SPDX-License-Identifier: MIT
 *
 * CRC-32C (Castagnoli, polynomial 0x1edc6f41 reflected; RFC 3720 appendix B.4).
 * This header includes nothing of ours: it is a part of the launcher's contract too.
 */
#ifndef FORMATS_CRC32C_H
#define FORMATS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continues `crc` (0 to begin) over len bytes. */
uint32_t crc32c(uint32_t crc, const void *buf, size_t len);

#endif
