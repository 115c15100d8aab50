/* SPDX-License-Identifier: MIT
 *
 * zlib, fed from memory into memory, in a workspace that the caller lends: what formats with
 * deflated units share. For the few programs that link a decoder.
 */
#ifndef FORMATS_INFLATE_H
#define FORMATS_INFLATE_H

#include "base.h"

/* A bump arena: zlib frees nothing that it needs again. */
struct arena {
    u8 *at, *end;
};

/* bits: as of inflateInit2(): -15 is raw deflate, 15 a stream with zlib's header and checksum.
 * False: these bytes are no stream. *len: bytes in `out`; *ended: the
 * stream says that this is all, else the input or the room for the output did not suffice. */
bool inflate_all(const u8 *in, u32 in_len, int bits, u8 *out, u32 out_len, struct arena *a,
                 u32 *len, bool *ended);

#endif
