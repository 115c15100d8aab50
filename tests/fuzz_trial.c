/* SPDX-License-Identifier: MIT
 *
 * The trial and what is held against it. The bytes that a grow may change and the length that it
 * may reach are worked out from the specification and the limits, not from the planner.
 */
#include "fuzz_trial.h"

#include "fuzz_evil.h"
#include "test.h"

#include <stdarg.h>

enum {
    REQUESTS_MAX = 1000000, /* 65536 snapshots, read one by one in every pass */
    GROWTH_MAX = 640 << 20, /* bytes that a file may gain: the launcher's allowance */
    FILLED_MAX = 3 << 20,   /* and where the new area is mapped */
    UNPACK_MAX = 4,
    JUDGE_READS = 200000,
    JUDGE_SNAPSHOTS = 16,
    BITMAPS_MAX = 8,
};

#define OFFSET_BITS 0x00fffffffffffe00ull
#define LL(v) ((unsigned long long)(v))

__attribute__((format(printf, 2, 3))) static bool wrong(struct trial *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->wrong, sizeof(t->wrong), fmt, ap);
    va_end(ap);
    return false;
}

/* ---- the disk: a memory disk that counts, and gives up on who asks for ever ---- */

static u64 requests;
static const struct blk_ops *mem_ops;

static void count(void)
{
    assert(++requests <= REQUESTS_MAX); /* a trial that never ends */
}

static int count_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    count();
    return mem_ops->read(b, off, buf, len, e);
}

static int count_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    count();
    return mem_ops->write(b, off, buf, len, e);
}

static int count_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    count();
    return mem_ops->zero(b, off, len, may_unmap, e);
}

static void counted(struct blk_mem *m)
{
    static struct blk_ops ops;
    mem_ops = m->blk.ops;
    ops = *mem_ops;
    ops.read = count_read;
    ops.write = count_write;
    ops.zero = count_zero;
    m->blk.ops = &ops;
}

static bool untouched(const struct blk_mem *m)
{
    return !m->writes && !m->grows && !m->pages && m->length == m->base->length;
}

/* ---- reading ---- */

static u8 image_mem[2][IMAGE_MEM] __attribute__((aligned(4096)));
static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));
static u8 copy_mem[BLK_IO_MAX] __attribute__((aligned(4096)));

static struct image below;     /* the backing image of whatever is open */
static struct blk_mem beneath; /* its disk */

/* The image, and the one that it names: like the operation, only for a grow. */
static int open_image(const struct trial *t, struct blk_mem *m, struct image *img, struct err *e)
{
    int rc = image_open(img, &m->blk, "qcow2", image_mem[0], e);
    const struct qcow2 *q = &img->u.qcow2;
    img->scratch = t->no_scratch ? NULL : scratch;
    if (rc || !t->under || !q->backing_file_offset || !q->backing_file_size ||
        t->new_size <= (t->opened ? t->old_size : img->size))
        return rc;
    rc = image_open(&below, &beneath.blk, t->under_format, image_mem[1], e);
    below.scratch = img->scratch;
    img->backing = &below;
    return rc;
}

static bool refused_well(struct trial *t, const struct err *e, int rc)
{
    if (rc != (int)e->code || !e->what || !e->what[0] || !e->file)
        return wrong(t, "refused with code %d, %d, and no words", rc, (int)e->code);
    return true;
}

/* Reads what an extent says; the decoder's output buffer is exactly one unit. */
static bool try_unpack(struct trial *t, struct image *img, const struct extent *x)
{
    struct err e = { 0 };
    u8 *out = malloc(img->unit);
    int rc = img->format->unpack(img, x, out, &e);
    free(out);
    return !rc || refused_well(t, &e, rc);
}

/* Follows map() from voff on; false if it says nonsense. */
static bool walk(struct trial *t, struct image *img, u64 voff, unsigned cnt, unsigned *packed)
{
    while (voff < img->size && cnt--) {
        struct extent x;
        struct err e = { 0 };
        u64 max = cnt % 64 == 7 ? UINT64_MAX : cnt % 3 ? 99 * img->unit : img->unit / 2 + 1;
        int rc = img->format->map(img, voff, max, &x, &e);
        if (rc)
            return refused_well(t, &e, rc);
        if (x.voff != voff || !x.len || x.len > max || x.len > img->size - voff ||
            x.kind > EXTENT_PACKED || x.slot > 1)
            return wrong(t, "map(%llu, %llu): kind %d at %llu, %llu bytes", LL(voff), LL(max),
                         (int)x.kind, LL(x.voff), LL(x.len));
        if (x.kind == EXTENT_PACKED && (!x.packed_len || x.packed_len > 2 * IMAGE_UNIT_MAX))
            return wrong(t, "map(%llu): %u packed bytes", LL(voff), x.packed_len);
        if (x.kind == EXTENT_PACKED && img->scratch && img->format->unpack && *packed &&
            (*packed)-- && !try_unpack(t, img, &x))
            return false;
        voff += x.len;
    }
    return true;
}

static bool read_all(struct trial *t, struct image *img)
{
    static struct facts f;
    struct err e = { 0 };
    unsigned packed = UNPACK_MAX, cnt = t->extents;
    u64 size = img->size;
    f = (struct facts){ 0 };
    int rc = img->format->facts(img, &f, &e);
    if (rc)
        return wrong(t, "facts: %s", e.what);
    if (f.cnt > FACTS_MAX || f.backing_len >= sizeof(f.backing) || f.backing[f.backing_len])
        return wrong(t, "facts: %u of them, %u bytes of name", f.cnt, f.backing_len);
    return walk(t, img, 0, cnt, &packed) && walk(t, img, size / 2, cnt / 2, &packed) &&
           walk(t, img, size - min_u64(size, 3 * img->unit + 1), 8, &packed);
}

/* What one image says of [from, to); `holes` is set where it has nothing. False: it cannot be read. */
static bool shown(struct image *img, u64 from, u64 to, u8 *out, bool *holes)
{
    u8 *unit = malloc(img->unit + 1);
    int rc = 0;
    for (u64 voff = from; !rc && voff < to;) {
        struct extent x;
        struct err e = { 0 };
        u8 *at = out + (voff - from);
        if ((rc = img->format->map(img, voff, to - voff, &x, &e)))
            break;
        if (x.kind == EXTENT_DATA)
            rc = x.slot || img->opaque || blk_read(img->file[0], x.off, at, x.len, &e);
        if (x.kind == EXTENT_PACKED)
            rc = img->scratch && !img->opaque ? img->format->unpack(img, &x, unit, &e) : 1;
        if (!rc && x.kind == EXTENT_PACKED)
            memcpy(at, unit + (voff & (img->unit - 1)), x.len);
        if (x.kind == EXTENT_ZERO)
            memset(at, 0, x.len);
        *holes |= x.kind == EXTENT_HOLE;
        voff += x.len;
    }
    free(unit);
    return !rc;
}

/* The bytes of the last, partial cluster, as the guest sees them. False: they cannot be read. */
static bool last_cluster(struct image *img, u64 from, u64 to, u8 *out)
{
    bool holes = false, ignored = false;
    u64 end = img->backing ? min_u64(to, img->backing->size) : 0;
    memset(out, 0, to - from);
    if (!shown(img, from, to, out, &holes))
        return false;
    if (!holes || from >= end)
        return true;
    memset(out, 0, to - from);
    return shown(img->backing, from, end, out, &ignored) && shown(img, from, to, out, &ignored);
}

/* ---- what a grow may change ---- */

static u64 word(const struct blk_mem *m, u64 off)
{
    return spot_get(m, &(struct spot){ .off = off, .bytes = 8 });
}

/* Of the old image: the tables and the last cluster, [0] first byte, [1] end, that a grow may
 * change; 0 if there is none. */
struct own {
    const struct blk_mem *m;
    struct layout l;
    u64 l1[2], l2[2], data[2];
    u64 bitmap[2 + 2 * BITMAPS_MAX][2]; /* the directory, each table, its last cluster of bits */
    u64 block; /* a refcount block, found last time */
    bool dirty; /* refcounts are rebuilt, flags corrected */
};

/* What a grow may change of bitmaps that are valid. */
static void find_bitmaps(struct own *o)
{
    const struct layout *l = &o->l;
    u64 dir, size, cnt, at = 0, n = 0;
    if (!layout_bitmaps(o->m, l, &dir, &size, &cnt) || l->version == 2 || !(word(o->m, 88) & 1))
        return;
    o->bitmap[n][0] = dir;
    o->bitmap[n++][1] = dir + size;
    for (u64 i = 0; i < min_u64(cnt, BITMAPS_MAX); i++) {
        u64 table = word(o->m, dir + at), entries = word(o->m, dir + at + 8) >> 32;
        u64 last = word(o->m, table + (entries - 1) * 8) & OFFSET_BITS;
        o->bitmap[n][0] = table;
        o->bitmap[n++][1] = table + round_up(entries * 8, l->cs);
        o->bitmap[n][0] = last;
        o->bitmap[n++][1] = last ? last + l->cs : 0;
        at += round_up(24 + (word(o->m, dir + at + 16) >> 32 & 0xffff), 8);
    }
}

static bool find_own(const struct blk_mem *m, struct own *o)
{
    struct layout *l = &o->l;
    *o = (struct own){ .m = m, .block = UINT64_MAX };
    if (!layout_read(m, l))
        return false;
    o->dirty = l->version == 3 && (word(m, 72) & 1);
    u64 last = l->l1_used - 1, entry = l->ext_l2 ? 16 : 8, in = l->size % l->cs;
    o->l1[0] = l->l1_off + (l->l1_used ? last * 8 : 0);
    o->l1[1] = l->l1_off + round_up(l->l1_size * 8ull, l->cs);
    find_bitmaps(o);
    u64 l2 = l->l1_used ? word(m, l->l1_off + last * 8) & OFFSET_BITS : 0;
    if (!l2)
        return true;
    o->l2[0] = l2 + (div_up(l->size, l->cs) - 1) % l->l2_entries * entry;
    o->l2[1] = l2 + l->cs;
    u64 data = word(m, o->l2[0]) & OFFSET_BITS;
    u64 sub = l->cs / 32, bits = l->ext_l2 ? word(m, o->l2[0] + 8) : UINT64_MAX;
    bool absent = !((bits | bits >> 32) >> in / sub & 1); /* the backing image is seen in it */
    if (data && in) {
        o->data[0] = data + (absent ? round_down(in, sub) : in);
        o->data[1] = data + l->cs;
    }
    return true;
}

static bool within(const u64 range[2], u64 off)
{
    return range[0] <= off && off < range[1];
}

/* Does the refcount table name the cluster that `off` lies in? */
static bool is_refblock(struct own *o, u64 off)
{
    u64 block = round_down(off, o->l.cs), end = o->l.rt_off + o->l.rt_clusters * o->l.cs;
    for (u64 at = o->l.rt_off; at < end && block != o->block; at += 512) {
        u8 b[512];
        if (blk_mem_hole(o->m, at, sizeof(b)))
            continue;
        blk_mem_get(o->m, at, b, sizeof(b));
        for (unsigned i = 0; i < sizeof(b); i += 8)
            if ((be64(b + i) & ~511ull) == block)
                o->block = block;
    }
    return block == o->block;
}

/* May a grow change the byte at `off` of the old file, these bits of it? */
static bool own_byte(struct own *o, u64 off, u8 bits)
{
    const struct layout *l = &o->l;
    if (o->dirty && ((off == 79 && bits == 1) || (off >= l->cs && off % 8 == 0 && bits == 0x80)))
        return true; /* the dirty bit, a COPIED flag */
    if (o->dirty && l->rt_off <= off && off < l->rt_off + l->rt_clusters * l->cs)
        return true;
    if (off < l->cs)
        return (off >= 24 && off < 60) || (l->version == 3 && off >= 88 && off < 96);
    if (within(o->l1, off) || within(o->l2, off) || within(o->data, off) || is_refblock(o, off))
        return true;
    for (unsigned i = 0; i < sizeof(o->bitmap) / sizeof(o->bitmap[0]); i++)
        if (within(o->bitmap[i], off))
            return true;
    return l->rt_off <= off && off < l->rt_off + l->rt_clusters * l->cs &&
           !word(o->m, round_down(off, 8)); /* where no refcount block was */
}

/* Every byte of the old file that differs is one of those. */
static bool check_changes(struct trial *t, const struct blk_mem *now)
{
    const struct blk_mem *old = t->image;
    struct own own;
    if (!find_own(old, &own))
        return wrong(t, "grown, and yet no header");
    for (size_t i = 0; i < now->slots_cnt; i++) {
        u64 page = (now->slots[i].page - 1) * MEM_PAGE;
        if (!now->slots[i].page || page >= old->length)
            continue;
        u8 was[MEM_PAGE], is[MEM_PAGE];
        blk_mem_get(old, page, was, MEM_PAGE);
        blk_mem_get(now, page, is, MEM_PAGE);
        u64 len = memcmp(was, is, MEM_PAGE) ? min_u64(MEM_PAGE, old->length - page) : 0;
        for (u64 k = 0; k < len; k++)
            if (was[k] != is[k] && !own_byte(&own, page + k, was[k] ^ is[k]))
                return wrong(t, "the grow changed byte %llu: 0x%x to 0x%x", LL(page + k), was[k],
                             is[k]);
    }
    return true;
}

/* The longest file that a grow may leave: an L1 table (32 MiB) twice, a refcount table (8 MiB, four
 * times if it is moved again and again), two clusters of the tail, what the new area is mapped to and
 * by, the refcount blocks that count all that (and themselves), and 256 MiB of clusters stepped
 * over. If it is dirty: another table, and blocks for the whole file. */
static u64 length_max(const struct trial *t, const struct layout *l, bool dirty)
{
    u64 payload = (64ull << 20) + (32ull << 20) + 4 * l->cs, blocks = 0;
    u64 more = t->new_size > t->old_size ? t->new_size - t->old_size : 0, n = more / l->cs + 2;
    if (dirty)
        payload += (8ull << 20) + (l->length / l->cs / l->block_entries + 2) * l->cs;
    if (t->how || t->under)
        payload += (n / l->l2_entries + 2) * l->cs;
    if (t->how || l->version == 2)
        payload += n * l->cs;
    for (int i = 0; i < 8; i++)
        blocks = div_up(payload / l->cs + blocks, l->block_entries) + 4;
    return round_up(l->length, l->cs) + payload + blocks * l->cs + (256ull << 20) + l->cs;
}

/* ---- the judge, on a leash: images can be made that would take it for ever ---- */

static u64 judge_left;

static void leash_read(void *ctx, uint64_t off, void *buf, size_t len)
{
    const struct blk_mem *m = ctx;
    memset(buf, 0, len);
    if (!judge_left || off >= m->length)
        return;
    judge_left--;
    blk_mem_get(m, off, buf, (size_t)min_u64(len, m->length - off));
}

static bool leash_hole(void *ctx, uint64_t off, size_t len)
{
    if (judge_left)
        judge_left--;
    return !judge_left || blk_mem_hole(ctx, off, len);
}

/* `size`: what the judge takes for the file's length. */
static bool judge(const struct blk_mem *m, u64 size, u64 hash_to, u64 zero_from, u64 zero_to,
                  struct verdict *v)
{
    struct judge_io io = { (void *)(uintptr_t)m, size, leash_read, leash_hole };
    judge_left = JUDGE_READS;
    qcow2_judge(&io, hash_to, zero_from, zero_to, v);
    return judge_left != 0;
}

/* Does anything refer to clusters past the end of the file? Only a full check would see that; new
 * clusters come to stand there, which may show as more corruptions. */
static bool refers_past_end(const struct trial *t)
{
    struct verdict v;
    return !judge(t->image, 1ull << 57, 0, 0, 0, &v) || v.corruptions < t->before.corruptions;
}

/* Leaks that were there before. What is counted behind the file may lie in it now. */
static u64 leaks_of(const struct trial *t, u64 length)
{
    struct verdict v;
    length = max_u64(length, round_up(t->image->length, 2 << 20));
    return judge(t->image, length, 0, 0, 0, &v) ? v.leaks : UINT64_MAX;
}

static bool check_verdicts(struct trial *t, const struct blk_mem *now, const struct layout *l)
{
    /* the last, partial cluster may be stored otherwise now */
    u64 hash_to = round_down(min_u64(t->old_size, t->new_size), l->cs);
    if (l->nb_snapshots > JUDGE_SNAPSHOTS)
        return true;
    t->judged = judge(t->image, t->image->length, hash_to, 0, 0, &t->before) &&
                judge(now, now->length, hash_to, t->old_size, t->new_size, &t->after);
    const struct verdict *a = &t->before, *b = &t->after;
    if (!t->judged || !a->opens)
        return true;
    t->sound = !a->corruptions;
    if (!b->opens || b->size != t->new_size)
        return wrong(t, "the judge cannot open it: %s (before: %s)", b->why, a->why);
    if (b->corruptions && t->sound)
        return wrong(t, "%llu corruptions: %s", LL(b->corruptions), b->first);
    t->worse = b->corruptions > a->corruptions && !refers_past_end(t);
    if (!b->zero)
        return wrong(t, "the new area does not read zero");
    if (t->sound && (a->hash != b->hash || a->snapshot_hash != b->snapshot_hash))
        return wrong(t, "guest data differs");
    /* a grow gives up what stale entries name */
    if (t->sound && t->new_size < t->old_size && b->leaks && b->leaks > leaks_of(t, now->length))
        return wrong(t, "%llu leaks: %s", LL(b->leaks), b->first);
    bool growing = t->new_size > t->old_size; /* a shrink loses bits */
    if (t->sound && (a->bitmaps != b->bitmaps || (growing && a->bitmap_hash != b->bitmap_hash) ||
                     (growing && !b->bitmap_zero)))
        return wrong(t, "%llu bitmaps, and %llu afterwards, or other bits", LL(a->bitmaps),
                     LL(b->bitmaps));
    return true;
}

/* ---- growing ---- */

static struct trial *current;
static u64 granted, promised; /* promised: by the first epoch, for all of them */

/* As the launcher: what is too much is refused in the first epoch, and later ones keep their word. */
static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    struct trial *t = current;
    u64 want = max_u64(n->length[0], n->eventual), old = t->image->length;
    (void)h;
    assert(n->room);
    if (epoch) {
        assert(want <= promised);
    } else {
        promised = want;
        t->denied = want > old && want - old > (t->how || t->under ? FILLED_MAX : GROWTH_MAX);
    }
    if (t->denied)
        return FAIL(e, ERR_NO_SPACE, "too long", 0, want);
    granted = max_u64(granted, n->length[0]);
    return 0;
}

static int grow(struct trial *t, struct image *img, bool dry_run, struct err *e)
{
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct resize_args a = { t->new_size, t->how, work, sizeof(work) };
    struct plan_host h = { .need = need, .dry_run = dry_run, .mem = copy_mem,
                           .mem_len = sizeof(copy_mem) };
    current = t;
    promised = 0;
    int rc = plan_resize(img, &a, &h, e);
    t->length = h.length[0];
    t->repaired = h.repaired;
    return rc;
}

/* What came after the stage was refused: the old size, and no dirty bit. */
static bool check_repaired(struct trial *t, struct blk_mem *now)
{
    struct image img;
    struct err e = { 0 };
    struct layout l;
    layout_read(now, &l);
    if (open_image(t, now, &img, &e) || img.size != t->old_size)
        return wrong(t, "repaired, it does not open: %s", e.what ? e.what : "size");
    if (l.nb_snapshots > JUDGE_SNAPSHOTS || !judge(now, now->length, 0, 0, 0, &t->after))
        return true;
    return !t->after.dirty || wrong(t, "repaired, and still dirty");
}

/* No part of the new area lets the backing image be seen. */
static bool check_hidden(struct trial *t, struct image *img)
{
    u64 end = img->backing ? min_u64(t->new_size, img->backing->size) : 0;
    for (u64 voff = t->old_size; voff < end;) {
        struct extent x;
        struct err e = { 0 };
        if (img->format->map(img, voff, end - voff, &x, &e))
            return wrong(t, "the new area cannot be read: %s", e.what);
        if (x.kind == EXTENT_HOLE)
            return wrong(t, "the backing image shows at %llu", LL(voff));
        voff += x.len;
    }
    return true;
}

/* The plan was carried out on `now`. */
static bool check_grown(struct trial *t, struct blk_mem *now)
{
    struct image img;
    struct err e = { 0 };
    struct layout l;
    layout_read(t->image, &l);
    bool growing = t->new_size > t->old_size, dirty = l.version == 3 && (word(t->image, 72) & 1);
    u64 most = length_max(t, &l, dirty);
    if (t->repaired != dirty)
        return wrong(t, "the refcounts were%s rebuilt", t->repaired ? "" : " not");
    if (t->length > most || granted > most ||
        (growing && (t->length < t->image->length || granted > t->length)))
        return wrong(t, "a file of %llu bytes became %llu, %llu were granted", LL(l.length),
                     LL(t->length), LL(granted));
    blk_mem_truncate(now, t->length);
    if (open_image(t, now, &img, &e) || img.size != t->new_size)
        return wrong(t, "the result does not open: %s", e.what ? e.what : "size");
    if (!read_all(t, &img) || (growing && (!check_hidden(t, &img) || !check_changes(t, now))))
        return false;
    /* what was made can be grown once more, or is refused in words */
    struct trial again = { .image = t->image, .new_size = t->new_size + l.cs * l.l2_entries };
    int rc = grow(&again, &img, true, &e);
    if (rc && !refused_well(t, &e, rc))
        return false;
    return check_verdicts(t, now, &l);
}

static bool check_tail(struct trial *t, struct blk_mem *old, struct blk_mem *now)
{
    struct image img;
    struct err e = { 0 };
    u8 *x, *y;
    bool same = true;
    if (!t->sound || open_image(t, old, &img, &e))
        return true;
    u64 end = min_u64(t->old_size, t->new_size), from = round_down(end, img.unit), len = end - from;
    x = malloc(len + 1), y = malloc(len + 1);
    if (last_cluster(&img, from, end, x))
        same = !open_image(t, now, &img, &e) && last_cluster(&img, from, end, y) &&
               !memcmp(x, y, len);
    free(x), free(y);
    return same || wrong(t, "the last cluster differs");
}

static bool run(struct trial *t, struct blk_mem *old, struct blk_mem *now)
{
    struct image img;
    struct err dry = { 0 };
    int rc = open_image(t, now, &img, &t->e);
    if (rc)
        return refused_well(t, &t->e, rc) && (untouched(now) || wrong(t, "open() wrote"));
    t->opened = true;
    t->old_size = img.size;
    if (!read_all(t, &img))
        return false;
    if (t->new_size == img.size || (t->new_size < img.size && t->how))
        return untouched(now) || wrong(t, "reading wrote");
    int dry_rc = grow(t, &img, true, &dry);
    if (!untouched(now))
        return wrong(t, "a dry run wrote");
    if ((rc = open_image(t, now, &img, &t->e)))
        return wrong(t, "opened once, and not again");
    rc = grow(t, &img, false, &t->e);
    if (rc && t->repaired && !dry_rc)
        return refused_well(t, &t->e, rc) && check_repaired(t, now);
    if (rc != dry_rc && !(t->denied && rc == ERR_NO_SPACE && !dry_rc))
        return wrong(t, "planned: %d (%s); done: %d (%s)", dry_rc, dry.what ? dry.what : "", rc,
                     t->e.what ? t->e.what : "");
    if (rc)
        return refused_well(t, &t->e, rc) && (untouched(now) || wrong(t, "refused, but it wrote"));
    t->grown = true;
    return check_grown(t, now) && check_tail(t, old, now);
}

bool trial_run(struct trial *t)
{
    struct blk_mem old, now;
    requests = granted = 0;
    blk_mem_over(&old, t->image);
    blk_mem_over(&now, t->image);
    counted(&now);
    if (t->under) {
        blk_mem_over(&beneath, t->under);
        counted(&beneath);
    }
    bool ok = run(t, &old, &now);
    t->requests = requests;
    if (t->under) {
        ok = ok && (!beneath.writes || wrong(t, "the backing image was written to"));
        blk_mem_free(&beneath);
    }
    blk_mem_free(&now);
    blk_mem_free(&old);
    return ok;
}
