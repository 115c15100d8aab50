/* SPDX-License-Identifier: MIT
 *
 * Reading a VHDX log. Time is bounded by the log's length: an entry is measured by its signatures
 * and sequence numbers before its checksum is computed, so that a sector which begins an entry lies
 * in no other one, and each sector is read and summed once.
 * Source: [MS-VHDX] 2.3.1 "Log Entries", 2.3.2 "Log Sequence", 2.3.3 "Log Replay".
 */
#include "vhdx_log.h"
#include "crc32c.h"

enum {
    MIB = 1 << 20,
    HEADERS_END = 192 << 10, /* file identifier and headers: never in the log */
};
#define ZERO_MAX (4ull << 30) /* a region is no longer, and nothing else is logged */

/* What an entry says of itself. */
struct entry {
    u32 length, tail, count;
    u64 sequence_number, flushed_file_offset, last_file_offset;
};

/* A place `by` bytes past `at`, in the ring. */
static u32 ring(const struct vhdx_log *log, u32 at, u64 by)
{
    return (u32)((at + by) % log->length);
}

/* `len` bytes of the log, which do not cross a sector. */
static int get(struct blk *b, struct window *w, const struct vhdx_log *log, u32 at, u32 len,
               const u8 **p, struct err *e)
{
    return window_get(w, b, log->offset + at, len, log->offset + log->length, p, e);
}

static bool decode_entry(const struct vhdx_log *log, const u8 *p, struct entry *n)
{
    n->length = le32(p + VLE_ENTRY_LENGTH);
    n->tail = le32(p + VLE_TAIL);
    n->count = le32(p + VLE_DESCRIPTOR_COUNT);
    n->sequence_number = le64(p + VLE_SEQUENCE_NUMBER);
    n->flushed_file_offset = le64(p + VLE_FLUSHED_FILE_OFFSET);
    return !memcmp(p, "loge", 4) && !memcmp(p + VLE_LOG_GUID, log->guid, 16) && n->length &&
           n->length % VHDX_LOG_SECTOR == 0 && n->length <= log->length &&
           n->tail % VHDX_LOG_SECTOR == 0 && n->tail < log->length && n->sequence_number &&
           n->count <= n->length / VHDX_LOG_DESC &&
           /* whole MiB, says the specification; qemu writes the file's length */
           round_up_fits(le64(p + VLE_LAST_FILE_OFFSET), MIB, &n->last_file_offset);
}

static u32 desc_sectors(u32 count)
{
    return (u32)div_up(VLE_SIZE + (u64)count * VHDX_LOG_DESC, VHDX_LOG_SECTOR);
}

/* Are the descriptors well formed? *data: the data sectors that they want. */
static int check_descs(struct blk *b, struct window *w, const struct vhdx_log *log, u32 at,
                       const struct entry *n, u32 *data, bool *ok, struct err *e)
{
    int rc = 0;
    *data = 0;
    for (u32 i = 0; !rc && *ok && i < n->count; i++) {
        const u8 *p;
        u64 end;
        rc = get(b, w, log, ring(log, at, VLE_SIZE + (u64)i * VHDX_LOG_DESC), VHDX_LOG_DESC, &p, e);
        if (rc)
            break;
        bool zero = !memcmp(p, "zero", 4);
        u64 len = zero ? le64(p + VLD_ZERO_LENGTH) : VHDX_LOG_SECTOR;
        *data += !zero;
        *ok = (zero || !memcmp(p, "desc", 4)) && len % VHDX_LOG_SECTOR == 0 &&
              le64(p + VLD_FILE_OFFSET) % VHDX_LOG_SECTOR == 0 &&
              add_fits(le64(p + VLD_FILE_OFFSET), len, &end) &&
              le64(p + VLD_SEQUENCE_NUMBER) == n->sequence_number;
    }
    return rc;
}

static int check_data(struct blk *b, struct window *w, const struct vhdx_log *log, u32 at,
                      const struct entry *n, bool *ok, struct err *e)
{
    int rc = 0;
    for (u64 off = (u64)desc_sectors(n->count) * VHDX_LOG_SECTOR; !rc && *ok && off < n->length;
         off += VHDX_LOG_SECTOR) {
        const u8 *p;
        if ((rc = get(b, w, log, ring(log, at, off), VHDX_LOG_SECTOR, &p, e)))
            break;
        *ok = !memcmp(p, "data", 4) && le32(p + VLS_SEQUENCE_HIGH) == n->sequence_number >> 32 &&
              le32(p + VLS_SEQUENCE_LOW) == (u32)n->sequence_number;
    }
    return rc;
}

static int check_sum(struct blk *b, struct window *w, const struct vhdx_log *log, u32 at,
                     const struct entry *n, bool *ok, struct err *e)
{
    static const u8 none[4];
    u32 want = 0, sum = 0;
    for (u32 off = 0; off < n->length; off += VHDX_LOG_SECTOR) {
        const u8 *p;
        int rc = get(b, w, log, ring(log, at, off), VHDX_LOG_SECTOR, &p, e);
        if (rc)
            return rc;
        u32 skip = 0;
        if (!off) {
            want = le32(p + VLE_CHECKSUM);
            sum = crc32c(crc32c(0, p, VLE_CHECKSUM), none, 4);
            skip = VLE_CHECKSUM + 4;
        }
        sum = crc32c(sum, p + skip, VHDX_LOG_SECTOR - skip);
    }
    *ok = sum == want;
    return 0;
}

/* Does a valid entry begin at `at`? */
static int look(struct blk *b, struct window *w, const struct vhdx_log *log, u32 at,
                struct entry *n, bool *ok, struct err *e)
{
    const u8 *p;
    u32 data = 0;
    int rc = get(b, w, log, at, VLE_SIZE, &p, e);
    if (rc)
        return rc;
    *ok = decode_entry(log, p, n);
    if (*ok)
        rc = check_descs(b, w, log, at, n, &data, ok, e);
    if (!rc && *ok)
        *ok = (desc_sectors(n->count) + (u64)data) * VHDX_LOG_SECTOR == n->length;
    if (!rc && *ok)
        rc = check_data(b, w, log, at, n, ok, e);
    return rc || !*ok ? rc : check_sum(b, w, log, at, n, ok, e);
}

/* A run of entries, each the successor of the one before. */
struct run {
    u32 start, tail_entry; /* where it begins; how many entries lie before the tail of its head */
    u32 entries;
    u64 length;
    bool holds_tail;
    struct entry head;
};

/* Where the head's tail lies, counted in entries. */
static int find_tail(struct blk *b, struct window *w, const struct vhdx_log *log, struct run *r,
                     struct err *e)
{
    u32 at = r->start;
    for (u32 i = 0; i < r->entries && !r->holds_tail; i++) {
        const u8 *p;
        r->holds_tail = at == r->head.tail;
        r->tail_entry = i;
        int rc = get(b, w, log, at, VLE_SIZE, &p, e);
        if (rc)
            return rc;
        at = ring(log, at, le32(p + VLE_ENTRY_LENGTH));
    }
    return 0;
}

/* The longest run from `at` on. */
static int follow(struct blk *b, struct window *w, const struct vhdx_log *log, u32 at,
                  struct run *r, struct err *e)
{
    *r = (struct run){.start = at};
    for (;;) {
        struct entry n;
        bool ok = false;
        int rc = look(b, w, log, ring(log, at, r->length), &n, &ok, e);
        if (rc)
            return rc;
        if (!ok || r->length + n.length > log->length ||
            (r->entries && n.sequence_number != r->head.sequence_number + 1))
            break;
        r->head = n;
        r->length += n.length;
        r->entries++;
    }
    return r->entries ? find_tail(b, w, log, r, e) : 0;
}

/* What a replay would change must be metadata that lies in the file. */
static int check_changes(struct blk *b, struct window *w, const struct vhdx_log *log, struct err *e)
{
    u64 end = max_u64(log->last_file_offset, round_up(b->size, VHDX_LOG_SECTOR));
    struct vhdx_log_place place = {0};
    for (;;) {
        struct vhdx_log_change c;
        bool more;
        int rc = vhdx_log_next(b, w, log, &place, &c, &more, e);
        if (rc || !more)
            return rc;
        if (c.len > ZERO_MAX)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "The log would clear {val} bytes at {off}", c.off,
                        c.len);
        if (c.off < HEADERS_END || c.off + c.len > end ||
            ranges_overlap(c.off, c.len, log->offset, log->length))
            return FAIL(e, ERR_OVERLAY_CORRUPT,
                        "The log would change {val} bytes at {off}, where it may not", c.off,
                        c.len);
    }
}

/* Takes the run's part from its head's tail on as the active sequence. */
static void choose(struct vhdx_log *log, const struct run *r)
{
    log->tail = r->head.tail;
    log->entries = r->entries - r->tail_entry;
    log->sequence_number = r->head.sequence_number;
    log->flushed_file_offset = r->head.flushed_file_offset;
    log->last_file_offset = r->head.last_file_offset;
}

int vhdx_log_find(struct blk *b, struct window *w, struct vhdx_log *log, struct err *e)
{
    log->entries = 0;
    for (u64 at = 0; at < log->length;) {
        struct run r;
        int rc = follow(b, w, log, (u32)at, &r, e);
        if (rc)
            return rc;
        if (r.holds_tail && (!log->entries || r.head.sequence_number > log->sequence_number))
            choose(log, &r);
        at += r.entries ? r.length : VHDX_LOG_SECTOR;
    }
    if (!log->entries)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The log must be replayed, and holds no sequence of entries that is valid",
                    log->offset, log->length);
    if (log->flushed_file_offset > b->size)
        return FAIL(e, ERR_OVERLAY_CORRUPT,
                    "The file is shorter than it was when its log was written ({val} bytes)",
                    log->offset, log->flushed_file_offset);
    return check_changes(b, w, log, e);
}

/* Enters the next entry of the sequence; its header has been found valid. */
static int enter(struct blk *b, struct window *w, const struct vhdx_log *log,
                 struct vhdx_log_place *p, struct err *e)
{
    const u8 *head;
    p->at = p->begun ? ring(log, p->at, p->length) : log->tail;
    int rc = get(b, w, log, p->at, VLE_SIZE, &head, e);
    if (rc)
        return rc;
    p->begun = true;
    p->entry++;
    p->desc = p->data = 0;
    p->count = le32(head + VLE_DESCRIPTOR_COUNT);
    p->length = le32(head + VLE_ENTRY_LENGTH);
    return 0;
}

int vhdx_log_next(struct blk *b, struct window *w, const struct vhdx_log *log,
                  struct vhdx_log_place *p, struct vhdx_log_change *c, bool *more, struct err *e)
{
    const u8 *d;
    int rc = 0;
    *more = false;
    while (!rc && p->desc == p->count) {
        if (p->entry == log->entries)
            return 0;
        rc = enter(b, w, log, p, e);
    }
    if (!rc)
        rc = get(b, w, log, ring(log, p->at, VLE_SIZE + (u64)p->desc * VHDX_LOG_DESC),
                 VHDX_LOG_DESC, &d, e);
    if (rc)
        return rc;
    c->zero = !memcmp(d, "zero", 4);
    c->off = le64(d + VLD_FILE_OFFSET);
    c->len = c->zero ? le64(d + VLD_ZERO_LENGTH) : VHDX_LOG_SECTOR;
    memcpy(c->leading, d + VLD_LEADING_BYTES, 8);
    memcpy(c->trailing, d + VLD_TRAILING_BYTES, 4);
    if (!c->zero)
        c->data = log->offset +
                  ring(log, p->at, (u64)(desc_sectors(p->count) + p->data++) * VHDX_LOG_SECTOR);
    p->desc++;
    *more = true;
    return 0;
}

int vhdx_log_sector(struct blk *b, const struct vhdx_log_change *c, u8 *out, struct err *e)
{
    int rc = blk_read(b, c->data, out, VHDX_LOG_SECTOR, e);
    memcpy(out, c->leading, 8);
    memcpy(out + VLS_SEQUENCE_LOW, c->trailing, 4);
    return rc;
}

int vhdx_log_read(struct blk *b, struct window *w, const struct vhdx_log *log, u64 off, u8 *buf,
                  u32 len, struct err *e)
{
    struct vhdx_log_place place = {0};
    int rc = blk_read(b, off, buf, len, e);
    while (!rc) {
        struct vhdx_log_change c;
        bool more;
        rc = vhdx_log_next(b, w, log, &place, &c, &more, e);
        if (rc || !more)
            break;
        if (!ranges_overlap(off, len, c.off, c.len))
            continue;
        u64 from = max_u64(off, c.off), to = min_u64(off + len, c.off + c.len);
        if (c.zero)
            memset(buf + (from - off), 0, to - from);
        else
            rc = vhdx_log_sector(b, &c, buf + (from - off), e);
    }
    return rc;
}
