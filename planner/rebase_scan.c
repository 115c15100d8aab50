/* SPDX-License-Identifier: MIT
 *
 * See rebase_scan.h. Tables decide where they can: what the overlay owns is skipped, and so is what
 * both chains find in the same image, or nowhere. The rest is read, a window at a time with both
 * chains' requests in flight together, and compared unit by unit. The old chain is read to where
 * its data will be kept, so that what differs throughout is never moved.
 */
#include "rebase_scan.h"

enum {
    LOOK_MAX = 256 << 20, /* bytes that one epoch compares */
    STEPS_MAX = 1 << 16,  /* pieces that it looks at */
    BARE_WINDOW = 2 * REBASE_WINDOW,
};

void rebase_scan_init(struct rebase_scan *k, struct image *img, struct image *new_backing, u64 unit,
                      u64 span, void *work, size_t len)
{
    u8 *at = work;
    u64 batch = round_up(sizeof(struct rebase_batch), BLK_SECTOR_MAX);
    u64 taken = batch + REBASE_WINDOW + 2 * IMAGE_UNIT_MAX;
    assert(len >= REBASE_WORK && is_pow2(unit) && unit >= 512 && unit <= IMAGE_UNIT_MAX);
    *k = (struct rebase_scan){
        .img = img, .unit = unit, .span = span, .batch = work, .room = len - taken};
    k->other = at + batch;
    chain_init(&k->old, img->backing, k->other + REBASE_WINDOW);
    chain_init(&k->new, new_backing, k->other + REBASE_WINDOW + IMAGE_UNIT_MAX);
    k->kept = at + taken;
}

/* What tables say of a piece that is alike in each chain. */
struct piece {
    u64 len;
    bool same; /* both chains show the same, without a look at its bytes */
    bool bare; /* the new chain shows nothing but zeros */
};

/* The piece from voff on, at most max long. */
static int compare_pieces(struct rebase_scan *k, u64 voff, u64 max, struct piece *p, struct err *e)
{
    struct chain_piece a, b;
    int rc = chain_look(&k->old, voff, max, &a, e);
    if (rc || (rc = chain_look(&k->new, voff, a.x.len, &b, e)))
        return rc;
    *p = (struct piece){b.x.len, a.img == b.img, !b.img};
    return 0;
}

static void add(struct rebase_batch *b, u64 unit_idx, enum rebase_kind kind)
{
    struct rebase_run *last = b->runs > b->old ? &b->run[b->runs - 1] : NULL;
    if (last && last->kind == kind && last->first + last->cnt == unit_idx) {
        last->cnt++;
        return;
    }
    assert(b->runs < REBASE_RUNS);
    b->run[b->runs++] = (struct rebase_run){.first = unit_idx, .cnt = 1, .kind = kind};
}

/* The units of [from, to), which the overlay does not own: those that differ are kept. */
static int compare_bytes(struct rebase_scan *k, u64 from, u64 to, bool bare, struct err *e)
{
    struct rebase_batch *b = k->batch;
    struct chain_reads reads = {.cnt = 0};
    u8 *old = k->kept + b->kept;
    bool old_zero, new_zero = bare;
    int rc = chain_queue(&k->old, from, old, to - from, &old_zero, &reads, e);
    if (!rc && !bare)
        rc = chain_queue(&k->new, from, k->other, to - from, &new_zero, &reads, e);
    if (rc || (rc = chain_wait(&reads, e)))
        return rc;
    for (u64 at = 0; at < to - from; at += k->unit) {
        u64 n = min_u64(k->unit, to - from - at);
        const u8 *o = old + at, *w = k->other + at;
        bool zero = old_zero || all_zero(o, n);
        if (zero ? new_zero || all_zero(w, n) : !new_zero && !memcmp(o, w, n))
            continue;
        add(b, (from + at) / k->unit, zero ? REBASE_ZERO : REBASE_DATA);
        if (zero)
            continue;
        if (o != k->kept + b->kept)
            memmove(k->kept + b->kept, o, n);
        memset(k->kept + b->kept + n, 0, k->unit - n);
        b->kept += k->unit;
    }
    k->looked += to - from;
    return 0;
}

/* As much as can be read together now, and more of it if the new chain is not read. */
static u64 window(const struct rebase_scan *k, bool bare)
{
    return min_u64(bare ? BARE_WINDOW : REBASE_WINDOW,
                   round_down(k->room - k->batch->kept, IMAGE_UNIT_MAX));
}

/* One step from *voff on, which does not pass `end` where anything is compared. */
static int step(struct rebase_scan *k, u64 *voff, u64 end, struct err *e)
{
    struct extent *own = &k->own;
    struct piece p;
    int rc = 0;
    if (*voff - own->voff >= own->len &&
        (rc = k->img->format->map(k->img, *voff, k->img->size - *voff, own, e)))
        return rc;
    u64 hole_end = min_u64(own->voff + own->len, end);
    if (own->kind != EXTENT_HOLE) {
        *voff = own->voff + own->len;
        return 0;
    }
    if ((rc = compare_pieces(k, *voff, hole_end - *voff, &p, e)))
        return rc;
    if (p.same) {
        *voff += p.len;
        return 0;
    }
    /* More of the same may follow: as much as can be read together. Where the new chain is not
     * read, a unit that it shows something in is left to the next step. */
    u64 from = round_down(*voff, k->unit), to = from, len = *voff - from + p.len;
    bool bare = p.bare && *voff == from && len >= k->unit;
    u64 most = min_u64(hole_end, from + window(k, bare));
    for (;;) {
        u64 before = to;
        to = bare ? round_down(to + len, k->unit) : round_up(to + len, k->unit);
        if (to == before || to >= most)
            break;
        if ((rc = compare_pieces(k, to, most - to, &p, e)))
            return rc;
        if (p.same || (bare && !p.bare))
            break;
        len = p.len;
    }
    *voff = min_u64(to, most);
    return compare_bytes(k, from, *voff, bare, e);
}

static bool has_runs(const struct rebase_scan *k)
{
    return k->batch->runs + BARE_WINDOW / k->unit <= REBASE_RUNS;
}

/* Where the batch ends at the latest. */
static u64 batch_end(const struct rebase_scan *k)
{
    u64 first = k->batch->runs ? k->batch->run[0].first * k->unit : 0;
    return k->batch->runs ? min_u64(k->img->size, first - first % k->span + k->span) : k->img->size;
}

int rebase_scan(struct rebase_scan *k, u64 voff, u32 old, struct err *e)
{
    struct rebase_batch *b = k->batch;
    int rc = 0;
    b->from = voff;
    b->kept = 0;
    b->runs = b->old = old;
    k->looked = 0;
    for (u32 i = 0; !rc && i < STEPS_MAX && voff < batch_end(k) && k->looked < LOOK_MAX &&
                    window(k, false) && has_runs(k);
         i++)
        rc = step(k, &voff, min_u64(batch_end(k), voff - voff % k->span + k->span), e);
    b->to = voff;
    return rc;
}

bool rebase_scan_goes_on(const struct rebase_scan *k)
{
    return k->batch->to < batch_end(k) && has_runs(k);
}

void rebase_scan_count(const struct rebase_scan *k, u64 cluster, u64 *last, u64 *clusters,
                       u64 *bytes)
{
    const struct rebase_batch *b = k->batch;
    for (u32 i = b->old; i < b->runs; i++) {
        const struct rebase_run *r = &b->run[i];
        u64 from = r->first * k->unit, to = min_u64(from + r->cnt * k->unit, k->img->size);
        u64 first = from / cluster;
        *clusters += (to - 1) / cluster - first + (first != *last);
        *last = (to - 1) / cluster;
        *bytes += r->kind == REBASE_DATA ? to - from : 0;
    }
}
