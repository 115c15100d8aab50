/* SPDX-License-Identifier: MIT
 *
 * The frame that carries one Event over the serial port, the same on both sides:
 *
 *     u32 magic | u32 length of the payload | payload | u32 CRC-32C of length and payload
 *
 * Integers are little endian. The launcher's build sees this header as a part of the contract.
 */
#ifndef OPS_FRAME_H
#define OPS_FRAME_H

#include "crc32c.h"

#define FRAME_MAGIC 0x52545349u /* "ISTR" */
enum { FRAME_HEAD = 8, FRAME_TAIL = 4, FRAME_MAX = 16 << 10 /* payload bytes */ };

static inline uint32_t frame_get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void frame_put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

#endif
