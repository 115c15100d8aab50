/* SPDX-License-Identifier: MIT
 *
 * See fuzz_change.h. The judges were made for images of ours, and are only asked where the format
 * says that they are quick.
 */
#include "fuzz_change.h"

#include "test.h"

#include <stdarg.h>

enum {
    REQUESTS_MAX = 1000000,
    EXTENTS = 200,
    GROWTH_MAX = 640 << 20, /* bytes that a file may gain: the launcher's allowance */
    FILLED_MAX = 16 << 20,  /* and where they are written */
    DATA_MAX = 160 << 20,   /* bytes of blocks that a judge looks at */
    UNDO_MAX = 2048,
};

#define LL(v) ((unsigned long long)(v))

__attribute__((format(printf, 2, 3))) static bool wrong(struct change *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->wrong, sizeof(c->wrong), fmt, ap);
    va_end(ap);
    return false;
}

u64 fuzz_get(const struct blk_mem *m, u64 off, u8 bytes)
{
    u8 b[8] = {0};
    u64 v = 0;
    if (off < m->length)
        blk_mem_get(m, off, b, (size_t)min_u64(bytes, m->length - off));
    for (u8 i = 0; i < bytes; i++)
        v = v << 8 | b[fuzz_format.little ? bytes - 1 - i : i];
    return v;
}

void fuzz_spot(const struct blk_mem *m, struct spot out[SPOTS_MAX], unsigned *cnt, u64 off,
               u8 bytes, const char *name)
{
    if (*cnt < SPOTS_MAX && off < m->length && off < 1ull << 48)
        out[(*cnt)++] = (struct spot){off, bytes, name};
}

/* ---- the disk: it counts, and fails when it is told to ---- */

static u64 requests, writes, fail_at;
static struct blk_cache cache;
static const struct blk_ops *mem_ops;

static int count(bool write, struct err *e)
{
    assert(++requests <= REQUESTS_MAX); /* a plan that never ends */
    writes += write;
    return write && fail_at && writes >= fail_at
               ? FAIL(e, ERR_WRITE_FAILED, "this write was to fail", 0, writes)
               : 0;
}

static int count_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    int rc = count(false, e);
    return rc ? rc : mem_ops->read(b, off, buf, len, e);
}

static int count_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    int rc = count(true, e);
    return rc ? rc : mem_ops->write(b, off, buf, len, e);
}

static int count_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    int rc = count(true, e);
    return rc ? rc : mem_ops->zero(b, off, len, may_unmap, e);
}

static void disk_over(struct blk_mem *m, const struct change *c)
{
    static struct blk_ops ops;
    blk_mem_over(m, c->image);
    mem_ops = m->blk.ops;
    ops = *mem_ops;
    ops.read = count_read;
    ops.write = count_write;
    ops.zero = count_zero;
    m->blk.ops = &ops;
    m->blk.insert_unit = c->insert_unit;
}

static bool untouched(const struct blk_mem *m)
{
    return !m->writes && !m->grows && !m->pages && m->length == m->base->length;
}

/* ---- reading ---- */

static int open_image(struct blk_mem *m, struct image *img, struct err *e)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    blk_forget(&m->blk);
    int rc = image_open(img, &m->blk, fuzz_format.name, mem, e);
    if (!rc && image_lacks(img)) /* which an operation asks for */
        rc = FAIL(e, ERR_READ_FAILED, "The files that the image consists of are not there", 0, 0);
    return rc;
}

static bool refused_well(struct change *c, const struct err *e, int rc)
{
    if (rc != (int)e->code || !e->what || !e->what[0] || !e->file)
        return wrong(c, "refused with code %d, %d, and no words", rc, (int)e->code);
    return true;
}

/* Follows map() from voff on; false if it says nonsense. *data: bytes of whole blocks that it
 * names, or too many if it was not followed to the end. */
static bool walk(struct change *c, struct image *img, u64 voff, unsigned cnt, u64 *data)
{
    while (voff < img->size && cnt--) {
        struct extent x;
        struct err e = {0};
        u64 unit = img->unit ? img->unit : 4096;
        u64 max = cnt % 4 == 1 ? UINT64_MAX : cnt % 4 ? 99 * unit : unit / 2 + 1;
        int rc = img->format->map(img, voff, max, &x, &e);
        if (rc) {
            *data = UINT64_MAX / 2;
            return refused_well(c, &e, rc);
        }
        if (x.voff != voff || !x.len || x.len > max || x.len > img->size - voff ||
            x.kind > EXTENT_PACKED || x.slot >= img->files)
            return wrong(c, "map(%llu, %llu): kind %d at %llu, %llu bytes", LL(voff), LL(max),
                         (int)x.kind, LL(x.voff), LL(x.len));
        if (x.kind == EXTENT_DATA)
            *data = min_u64(*data + x.len + 4096, UINT64_MAX / 2);
        voff += x.len;
    }
    if (voff < img->size)
        *data = UINT64_MAX / 2;
    return true;
}

static bool read_all(struct change *c, struct image *img, u64 *data)
{
    static struct facts f;
    struct err e = {0};
    u64 ignored = 0;
    f = (struct facts){0};
    *data = 0;
    int rc = img->format->facts(img, &f, &e);
    if (rc)
        return wrong(c, "facts: %s", e.what);
    if (f.cnt > FACTS_MAX || f.backing_len >= sizeof(f.backing) || f.backing[f.backing_len])
        return wrong(c, "facts: %u of them, %u bytes of name", f.cnt, f.backing_len);
    return walk(c, img, 0, EXTENTS, data) && walk(c, img, img->size / 2, 50, &ignored) &&
           walk(c, img, img->size - min_u64(img->size, 3ull * img->unit + 1), 8, &ignored);
}

/* ---- what the host does ---- */

static struct change *current;
static struct blk_mem *disk;
static u64 promised;

/* The journal: sectors as they were, and the file's length. */
static struct {
    bool valid;
    unsigned cnt, shown;
    u64 length, off[UNDO_MAX];
    u8 was[UNDO_MAX][512];
} journal;

static int show_undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n,
                     struct err *e)
{
    (void)h, (void)crc, (void)e;
    assert(slot == 0 && n && n <= UNDO_SHOW_MAX && journal.shown + n <= UNDO_MAX);
    for (unsigned i = 0; i < n; i++, journal.shown++) {
        journal.off[journal.shown] = off + i * 512ull;
        blk_mem_get(disk, off + i * 512ull, journal.was[journal.shown], 512);
    }
    return 0;
}

static void roll_back(void)
{
    for (unsigned i = 0; i < journal.cnt; i++)
        blk_mem_put(disk, journal.off[i], journal.was[i], 512);
    blk_mem_truncate(disk, journal.length);
}

/* As the launcher: what is too much is refused in the first epoch, and later ones keep their word.
 */
static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    struct change *c = current;
    struct image img;
    struct err ignored = {0};
    u64 want = max_u64(n->length[0], n->eventual), old = c->image->length;
    (void)h;
    journal.valid = n->undo;
    journal.cnt = journal.shown;
    journal.length = disk->length;
    journal.shown = 0;
    assert(n->undo == (journal.cnt > 0));
    if (epoch) {
        if (want > max_u64(promised, old)) {
            fprintf(stderr, "epoch %u wants %llu, %llu were promised\n", epoch, LL(want),
                    LL(max_u64(promised, old)));
            abort();
        }
        return 0;
    }
    promised = want;
    bool table = !open_image(disk, &img, &ignored) && img.format == &vhd_format && img.unit;
    u64 most = table || c->how == PREALLOC_FULL ? FILLED_MAX : GROWTH_MAX;
    c->denied = want > old && want - old > most;
    return c->denied ? FAIL(e, ERR_NO_SPACE, "too long", 0, want) : 0;
}

static int insert(struct plan_host *h, u32 epoch, u8 slot, u64 off, u64 len, struct err *e)
{
    u64 tail = disk->length - off;
    u8 moved[4096];
    (void)h, (void)epoch;
    assert(slot == 0 && off % disk->blk.insert_unit == 0 && len % disk->blk.insert_unit == 0);
    assert(off < disk->length && tail <= sizeof(moved));
    int rc = count(true, e);
    if (rc)
        return rc;
    blk_mem_get(disk, off, moved, tail);
    blk_mem_put(disk, off + len, moved, tail);
    blk_mem_clear(disk, off, len);
    disk->writes++;
    return 0;
}

static u64 length;

/* Resizes what is on `disk`; *length: what the plan makes of the file. */
static int resize(struct change *c, struct image *img, u64 to, bool dry_run, struct err *e)
{
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    static u8 copy_mem[2 * BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 scratch[16 << 20] __attribute__((aligned(4096)));
    static const u8 random[32] = {7, 1, 2, 3, 4, 5, 6, 7, 8, 9, [16] = 1, 2, 3, 4, 5, 6, 7, 8};
    struct resize_args a = {.new_size = to,
                            .preallocation = c->how,
                            .work = work,
                            .work_len = sizeof(work),
                            .random = random,
                            .may_shorten = to < img->size};
    struct plan_host h = {.need = need,
                          .undo = show_undo,
                          .insert = insert,
                          .dry_run = dry_run,
                          .scratch = dry_run && c->rehearse ? scratch : NULL,
                          .scratch_len = sizeof(scratch),
                          .mem = copy_mem,
                          .mem_len = sizeof(copy_mem)};
    current = c;
    promised = 0;
    journal.valid = false;
    journal.cnt = journal.shown = 0;
    int rc = plan_resize(img, &a, &h, e);
    journal.shown = 0;
    length = h.length[0];
    return rc;
}

/* ---- the judgement ---- */

static bool cheap(struct change *c, struct blk_mem *m, bool *ok)
{
    struct image img;
    struct err e = {0};
    u64 data;
    *ok = true;
    if (open_image(m, &img, &e) || !(*ok = read_all(c, &img, &data)))
        return false;
    return data <= DATA_MAX && fuzz_format.cheap(&img);
}

/* `now` is of the size c->size, or, after a failure, may still have the old one. */
static bool check_verdicts(struct change *c, struct blk_mem *old, struct blk_mem *now)
{
    struct fuzz_verdict a, b;
    u64 upto = min_u64(c->old_size, c->size);
    bool ok, also = true;
    if (!cheap(c, old, &ok) || !cheap(c, now, &also))
        return ok && also;
    fuzz_format.judge(old, upto, 0, 0, &a);
    if (!a.opens || a.faults || a.size != c->old_size)
        return true;
    fuzz_format.judge(now, upto, a.seen, max_u64(c->size, a.seen), &b);
    c->judged = true;
    bool stays = c->failed && b.size == c->old_size;
    if (!b.opens || b.faults)
        return wrong(c, "the judge: %s %s", b.opens ? "" : b.why, b.first);
    if (b.size != c->size && !stays)
        return wrong(c, "the judge: %llu bytes", LL(b.size));
    if (!b.zero && !stays)
        return wrong(c, "what is new does not read zero");
    if (a.hash != b.hash)
        return wrong(c, "guest data differs");
    if (!c->failed && a.kept != b.kept)
        return wrong(c, "other metadata differs");
    if (!c->failed && !b.clean && now->writes) /* what it does not understand it leaves alone */
        return wrong(c, "it is not left clean");
    return true;
}

/* The plan was carried out on `now`. */
static bool check_changed(struct change *c, struct blk_mem *old, struct blk_mem *now)
{
    struct image img;
    struct err e = {0};
    u64 data;
    blk_mem_truncate(now, length);
    if (open_image(now, &img, &e) || img.size != c->size)
        return wrong(c, "the result does not open: %s", e.what ? e.what : "size");
    if (plan_fit(&img, c->new_size) != c->size)
        return wrong(c, "the same once more would be %llu", LL(plan_fit(&img, c->new_size)));
    if (c->size > c->old_size && !c->uneven && !plan_fits(&img, c->new_size))
        return wrong(c, "the same once more would want to shrink it");
    if (!read_all(c, &img, &data) || !check_verdicts(c, old, now))
        return false;
    if (open_image(now, &img, &e))
        return wrong(c, "it opened once, and not again: %s", e.what);
    /* what was made can be grown once more, or is refused in words */
    struct change again = {.image = c->image};
    u64 to = plan_fit(&img, img.size + 3ull * max_u64(img.unit, 1 << 20));
    int rc = to != img.size ? resize(&again, &img, to, true, &e) : 0;
    return !rc || refused_well(c, &e, rc);
}

/* The disk failed; what is left must be good, and the next run get through. */
static bool check_failed(struct change *c, struct blk_mem *old, struct blk_mem *now)
{
    struct image img;
    struct err e = {0};
    fail_at = 0;
    c->failed = true;
    if (journal.valid)
        roll_back();
    now->blk.size = now->length;
    if (open_image(now, &img, &e) || (img.size != c->size && img.size != c->old_size))
        return wrong(c, "after write %llu failed, it does not open: %s", LL(c->fail_at),
                     e.what ? e.what : "size");
    if (!check_verdicts(c, old, now))
        return false;
    if (open_image(now, &img, &e) || (img.size == c->size && !plan_mends(&img)))
        return true;
    c->failed = false;
    c->how = PREALLOC_OFF;
    int rc = resize(c, &img, c->size, false, &e);
    if (rc)
        return c->denied || !c->judged ||
               wrong(c, "after write %llu failed, the next run: %s", LL(c->fail_at), e.what);
    return check_changed(c, old, now);
}

/* What would take long for a good reason: tables, or zeros, of many GiB; passes over small blocks
 * spread over TiB. */
static bool skipped(const struct change *c, const struct image *img)
{
    bool vhd = img->format == &vhd_format;
    u64 more = c->size > img->size ? c->size - img->size : 0;
    u64 most = vhd ? 1 << 22 : 1 << 28;
    return (img->unit && more / img->unit > most) || (c->how == PREALLOC_FULL && more > 64 << 20) ||
           (vhd && img->unit && img->unit <= 1024 && img->file[0]->size > 1ull << 37);
}

static bool run(struct change *c, struct blk_mem *old, struct blk_mem *now)
{
    struct image img;
    struct err dry = {0};
    u64 data;
    int rc = open_image(now, &img, &c->e);
    if (rc)
        return refused_well(c, &c->e, rc) && (untouched(now) || wrong(c, "open() wrote"));
    c->opened = true;
    c->old_size = img.size;
    c->size = plan_fit(&img, c->new_size);
    c->uneven = img.format == &vhd_format && img.u.vhd.current_size != img.size;
    if (!read_all(c, &img, &data))
        return false;
    if ((c->size > img.size) != (c->new_size > img.size) && c->size != img.size)
        return wrong(c, "asked for %llu, it is made %llu", LL(c->new_size), LL(c->size));
    if ((c->size == img.size && !plan_mends(&img)) || skipped(c, &img))
        return untouched(now) || wrong(c, "reading wrote");
    int dry_rc = resize(c, &img, c->size, true, &dry);
    if (!untouched(now))
        return wrong(c, "a dry run wrote");
    if (dry_rc && !refused_well(c, &dry, dry_rc))
        return false;
    if ((rc = open_image(now, &img, &c->e)))
        return wrong(c, "opened once, and not again");
    fail_at = c->fail_at;
    rc = resize(c, &img, c->size, false, &c->e);
    if (rc && fail_at && writes >= fail_at)
        return check_failed(c, old, now);
    if (rc != dry_rc && !(c->denied && rc == ERR_NO_SPACE && !dry_rc))
        return wrong(c, "planned: %d (%s); done: %d (%s)", dry_rc, dry.what ? dry.what : "", rc,
                     c->e.what ? c->e.what : "");
    if (rc)
        return refused_well(c, &c->e, rc) && (untouched(now) || wrong(c, "refused, but it wrote"));
    c->changed = true;
    fail_at = 0;
    return check_changed(c, old, now);
}

bool change_run(struct change *c)
{
    struct blk_mem old, now;
    requests = writes = fail_at = 0;
    disk_over(&old, c);
    disk_over(&now, c);
    disk = &now;
    now.blk.cache = &cache;
    bool ok = run(c, &old, &now);
    c->requests = requests;
    blk_mem_free(&now);
    blk_mem_free(&old);
    return ok;
}
