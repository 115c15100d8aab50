/* SPDX-License-Identifier: MIT
 *
 * The frame decoder. Lengths are judged before anything is waited for; nothing is allocated: the
 * buffer holds the largest frame there is, and nanopb decodes into a struct of fixed size.
 */
#include "frames.h"

#include <errno.h>
#include <pb_decode.h>
#include <string.h>
#include <sys/socket.h>

static int protocol(struct err *e, const char *what)
{
    return err_set(e, instar_Code_PROTOCOL, "The VM sent %s", what);
}

ssize_t frames_read(struct frames *f, int fd)
{
    ssize_t n = recv(fd, f->buf + f->have, sizeof f->buf - f->have, MSG_DONTWAIT);
    if (n < 0 && errno == ECONNRESET) /* said once, and before what is queued still */
        n = recv(fd, f->buf + f->have, sizeof f->buf - f->have, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? -1 : 0;
    f->have += (size_t)n;
    return n;
}

/* Values that the structs of nanopb can hold and the contract does not know. */
static bool in_contract(const instar_Event *ev)
{
    const instar_Outcome *o = &ev->event.outcome;
    if (ev->which_event == 0)
        return false;
    if (ev->which_event == instar_Event_patch_tag)
        return ev->event.patch.kind >= _instar_PatchKind_MIN &&
               ev->event.patch.kind <= _instar_PatchKind_MAX;
    if (ev->which_event != instar_Event_outcome_tag)
        return true;
    if (o->has_error && (o->error.code < _instar_Code_MIN || o->error.code > _instar_Code_MAX))
        return false;
    if (o->has_need_file &&
        (o->need_file.role < _instar_Role_MIN || o->need_file.role > _instar_Role_MAX))
        return false;
    return o->has_error || o->has_need_file || o->which_result != 0;
}

int frames_next(struct frames *f, instar_Event *ev, struct err *e)
{
    uint8_t magic[4];
    frame_put32(magic, FRAME_MAGIC);
    if (memcmp(f->buf, magic, f->have < 4 ? f->have : 4) != 0)
        return protocol(e, "bytes that are no frame");
    if (f->have < FRAME_HEAD)
        return 0;
    size_t len = frame_get32(f->buf + 4);
    if (len > FRAME_MAX)
        return protocol(e, "a frame that is too long");
    size_t whole = FRAME_HEAD + len + FRAME_TAIL;
    if (f->have < whole)
        return 0;
    if (frame_get32(f->buf + FRAME_HEAD + len) != crc32c(0, f->buf + 4, 4 + len))
        return protocol(e, "a frame with a wrong checksum");
    pb_istream_t in = pb_istream_from_buffer(f->buf + FRAME_HEAD, len);
    if (!pb_decode(&in, instar_Event_fields, ev) || !in_contract(ev))
        return protocol(e, "a frame that holds no event of the contract");
    f->have -= whole;
    memmove(f->buf, f->buf + whole, f->have);
    return 1;
}
