/* SPDX-License-Identifier: MIT
 *
 * CRC-32C, four bits at a time: a table of 64 bytes, so that nothing is computed at boot. What it
 * is computed over is mostly zeros (a VHDX region table has 64 KiB for two entries), which are
 * stepped over 512 bytes at a time: what that does to the remainder is linear in its bits.
 */
#include "crc32c.h"

#include <stdbool.h>

static const uint32_t nibble[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

enum { RUN = 512 };

/* zeros[i]: what RUN zero bytes make of a remainder of 1 << i. */
static const uint32_t zeros[32] = {
    0xbd6f81f8, 0x7f337501, 0xfe66ea02, 0xf921a2f5, 0xf7af331b, 0xeab210c7, 0xd088577f, 0xa4fcd80f,
    0x4c15c6ef, 0x982b8dde, 0x35bb6d4d, 0x6b76da9a, 0xd6edb534, 0xa8371c99, 0x55824fc3, 0xab049f86,
    0x53e549fd, 0xa7ca93fa, 0x4a795105, 0x94f2a20a, 0x2c0932e5, 0x581265ca, 0xb024cb94, 0x65a5e1d9,
    0xcb4bc3b2, 0x937bf195, 0x231b95db, 0x46372bb6, 0x8c6e576c, 0x1d30d829, 0x3a61b052, 0x74c360a4,
};

static bool all_zero(const uint8_t *p)
{
    uint64_t any = 0, word;
    for (size_t i = 0; i < RUN && !any; i += 8) {
        __builtin_memcpy(&word, p + i, 8);
        any |= word;
    }
    return !any;
}

static uint32_t skip(uint32_t crc)
{
    uint32_t out = 0;
    for (int i = 0; crc; i++, crc >>= 1)
        out ^= crc & 1 ? zeros[i] : 0;
    return out;
}

uint32_t crc32c(uint32_t crc, const void *buf, size_t len)
{
    const uint8_t *p = buf;
    crc = ~crc;
    for (size_t i = 0; i < len;) {
        if (i % RUN == 0 && len - i >= RUN && all_zero(p + i)) {
            crc = skip(crc);
            i += RUN;
            continue;
        }
        crc ^= p[i++];
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    return ~crc;
}
