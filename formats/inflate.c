/* SPDX-License-Identifier: MIT
 *
 * See inflate.h.
 */
#include <zlib.h>

#include "inflate.h"

static void *arena_get(void *opaque, uInt items, uInt size)
{
    struct arena *a = opaque;
    u64 bytes = round_up((u64)items * size, 16);
    void *p = a->at;
    if (bytes > (u64)(a->end - a->at))
        return Z_NULL;
    a->at += bytes;
    return p;
}

static void arena_put(void *opaque, void *p)
{
    (void)opaque, (void)p;
}

/* The guest's link leads zlib's CRC-32, which only gzip streams have, here (Makefile, NO_GZIP). */
_Noreturn void inflate_gzip(void);
_Noreturn void inflate_gzip(void)
{
    assert_failed(__FILE__, __LINE__, "a gzip stream");
}

bool inflate_all(const u8 *in, u32 in_len, int bits, u8 *out, u32 out_len, struct arena *a,
                 u32 *len, bool *ended)
{
    z_stream z = {.zalloc = arena_get,
                  .zfree = arena_put,
                  .opaque = a,
                  .next_in = (u8 *)(uintptr_t)in,
                  .avail_in = in_len,
                  .next_out = out,
                  .avail_out = out_len};
    if (inflateInit2(&z, bits) != Z_OK)
        return false;
    int rc = inflate(&z, Z_FINISH);
    *len = out_len - z.avail_out;
    *ended = rc == Z_STREAM_END;
    return rc == Z_STREAM_END || rc == Z_BUF_ERROR || rc == Z_OK;
}
