/* SPDX-License-Identifier: MIT
 *
 * See vmdk_rebase_copy.h. The first epoch proves the image sound, extent by extent where it has
 * several: each is worked on as an image by itself. Each one that follows takes what
 * rebase_scan() has found in the part of the disk that some tables map: data, zeros and tables that
 * are lacking, behind all that is in use -> barrier -> entries in the tables of both directories,
 * and the second directory's entries of new tables -> barrier -> the first one's. Each entry by
 * itself shows what the old chain shows, so it may land or not (P4).
 *
 * Readers go by the first directory. Where a run that was killed left the two different, the second
 * one is made like the first, in the first epoch. What reads zero becomes a zeroed grain where the
 * header's flags know that, else an allocated one. Source: the "Virtual Disk Format 5.0", "Grain
 * Directories and Grain Tables".
 */
#include "vmdk_rebase_copy.h"
#include "rebase_scan.h"
#include "vmdk_plan.h"

enum {
    SPAN = 512 << 20,  /* bytes of the disk that an epoch may concern; a table's, if that is more */
    TABLES_MAX = 512,  /* but no more tables than these */
    WORK = 4 << 20,    /* bytes of work in front of the scan's: VMDK_TEXT_WORK, ... */
    NOTE_AT = 3 << 20, /* ... the note, ... */
    SPOTS_AT = NOTE_AT + 4096,
};

/* struct plan_state.v */
enum { V_PHASE, V_VOFF, V_LAST_GRAIN, V_PART, V_END };
enum { PHASE_START, PHASE_COPY };

/* What the first epoch's check pass leaves, of each extent. */
struct note {
    u64 end; /* nothing is in use from here on, bytes */
    bool torn;
};

/* Where a table is, by directory, or will be. */
struct spot {
    u64 at[2];
    bool fresh; /* it is not there yet */
};

struct copy {
    struct image *img; /* one extent */
    const struct vmdk *v;
    struct sink *s;
    struct rebase_scan scan; /* of the whole disk */
    u64 base;                /* the extent's first grain */
    u64 size;                /* of its file, as it was */
    int dirs;
    struct spot *spot; /* of the tables that the batch concerns, from `first_table` on; in work */
    u64 first_table;
    u64 zeros, fresh; /* grains of zeros, and tables of each directory, to add */
    u64 data_at, zeros_at, tables_at, end; /* where what is added begins, bytes; and ends */
};

/* A table that the batch concerns, as it is to be. */
struct touched {
    u64 idx;
    u32 first, end; /* entries that change */
    u8 bytes[VMDK_GTES_MAX * 4];
};

/* A place in the batch: the next unit; and how many grains of either kind were before it. */
struct cursor {
    u32 run;
    u64 unit, data, zeros;
};

static u64 directory(const struct copy *c, int dir)
{
    return dir ? c->v->rgd_offset : c->v->gd_offset;
}

/* ---- extents ---- */

static unsigned parts_of(const struct image *img)
{
    return img->u.vmdk.kind ? img->parts : 1;
}

/* Extent i as an image by itself, until vmdk_return_part(). */
static void lend(struct image *img, unsigned i, struct image *part)
{
    if (img->u.vmdk.kind)
        vmdk_lend_part(img, i, part);
    else
        *part = *img;
}

static u64 part_start(const struct image *img, unsigned i)
{
    return img->u.vmdk.kind ? img->u.vmdk.part[i].start : 0;
}

static struct vmdk_part_sink part_sink(const struct image *img, unsigned i, struct sink *s)
{
    return vmdk_sink_of(s, img->u.vmdk.kind ? i + 1 : 0);
}

/* ---- the tables of a batch ---- */

static struct cursor batch_begin(const struct copy *c)
{
    const struct rebase_batch *b = c->scan.batch;
    return (struct cursor){.unit = b->runs ? b->run[0].first : 0};
}

static struct spot *spot_of(const struct copy *c, const struct touched *t)
{
    return &c->spot[t->idx - c->first_table];
}

/* The next table, with its new entries; *more is false: there is none. Others are what they are if
 * it has been loaded: before it is written. */
static int next_table(struct copy *c, struct cursor *at, bool load, struct touched *t, bool *more,
                      struct err *e)
{
    const struct rebase_batch *b = c->scan.batch;
    bool mark = c->v->flags & VMDK_ZEROED_GRAINS;
    *more = at->run < b->runs;
    if (!*more)
        return 0;
    t->idx = (at->unit - c->base) / c->v->gtes;
    t->first = (u32)((at->unit - c->base) % c->v->gtes);
    memset(t->bytes, 0, sizeof t->bytes);
    int rc = load && !spot_of(c, t)->fresh
                 ? blk_read(c->img->file[0], spot_of(c, t)->at[0], t->bytes, c->v->gtes * 4ull, e)
                 : 0;
    while (!rc && at->run < b->runs && (at->unit - c->base) / c->v->gtes == t->idx) {
        const struct rebase_run *r = &b->run[at->run];
        u32 k = (u32)((at->unit - c->base) % c->v->gtes);
        u64 off = r->kind == REBASE_DATA ? c->data_at + at->data++ * c->img->unit
                  : mark                 ? VMDK_ZEROED * VMDK_SECTOR
                                         : c->zeros_at + at->zeros++ * c->img->unit;
        if (le32(t->bytes + k * 4)) /* it was absent when the chains were compared */
            return plan_changed(spot_of(c, t)->at[0] + k * 4, at->unit, e);
        put_le32(t->bytes + k * 4, (u32)(off / VMDK_SECTOR));
        t->end = k + 1;
        if (++at->unit == r->first + r->cnt && ++at->run < b->runs)
            at->unit = b->run[at->run].first;
    }
    return rc;
}

static int find_spot(struct copy *c, struct touched *t, struct err *e)
{
    struct spot *spot = spot_of(c, t);
    int rc = 0;
    for (int dir = 0; !rc && dir < c->dirs; dir++)
        rc = vmdk_table(c->img, directory(c, dir), t->idx, &spot->at[dir], e);
    spot->fresh = !spot->at[0];
    if (!rc && c->dirs == 2 && spot->fresh != !spot->at[1])
        return FAIL(e, ERR_HEADER_MISMATCH, "The two grain directories disagree (on entry {val})",
                    c->v->rgd_offset, t->idx);
    for (int dir = 0; !rc && spot->fresh && dir < c->dirs; dir++)
        spot->at[dir] = c->fresh++ * vmdk_table_span(c->v); /* but for where they begin */
    return rc;
}

/* Where all that is new will be. */
static int place(struct copy *c, u64 end, struct err *e)
{
    const struct rebase_batch *b = c->scan.batch;
    struct cursor at = batch_begin(c);
    struct touched t;
    bool more = true;
    int rc = 0;
    c->first_table = (at.unit - c->base) / c->v->gtes;
    while (!rc && !(rc = next_table(c, &at, false, &t, &more, e)) && more)
        rc = find_spot(c, &t, e);
    c->data_at = b->kept || at.zeros ? round_up(end, c->img->unit) : end;
    c->zeros_at = c->data_at + b->kept;
    c->tables_at = c->zeros_at + at.zeros * c->img->unit;
    c->end = c->tables_at + c->fresh * vmdk_table_span(c->v);
    if (!rc && c->end / VMDK_SECTOR > UINT32_MAX)
        return FAIL(e, ERR_REFCOUNT_EXHAUSTED,
                    "What must be copied would pass the file's first 2 TiB, which is all that its "
                    "tables can name",
                    0, c->end);
    return rc;
}

static u64 table_at(const struct copy *c, const struct touched *t, int dir)
{
    const struct spot *spot = spot_of(c, t);
    return spot->at[dir] + (spot->fresh ? c->tables_at : 0);
}

/* ---- the epoch ---- */

/* Whatever stands where the file has it, nothing names it. */
static int emit_zeros(const struct copy *c, struct err *e)
{
    u64 len = c->zeros_at < c->size ? min_u64(c->tables_at, c->size) - c->zeros_at : 0;
    return len ? plan_zero(c->s, c->zeros_at, len, "what the old chain shows as zeros", e) : 0;
}

/* All that nothing names yet. */
static int emit_data(struct copy *c, struct err *e)
{
    const struct rebase_batch *b = c->scan.batch;
    struct patch data = {.kind = PATCH_WRITE,
                         .off = c->data_at,
                         .len = b->kept,
                         .data = c->scan.kept,
                         .kept = true,
                         .why = "what the old chain shows and the new one does not"};
    struct cursor at = batch_begin(c);
    struct touched t;
    bool more = true;
    int rc = 0;
    if (c->end > c->size)
        rc = plan_length(c->s, c->end, "room for what is copied", e);
    if (rc || (b->kept && (rc = plan_emit(c->s, data, e))) || (rc = emit_zeros(c, e)))
        return rc;
    while (!rc && !(rc = next_table(c, &at, false, &t, &more, e)) && more)
        for (int dir = 0; !rc && spot_of(c, &t)->fresh && dir < c->dirs; dir++)
            rc = plan_write(c->s, table_at(c, &t, dir), t.bytes, vmdk_table_span(c->v),
                            "a new grain table", e);
    return rc ? rc : plan_barrier(c->s, "data is durable before it is linked", e);
}

static int link_table(const struct copy *c, const struct touched *t, int dir, struct err *e)
{
    u8 entry[4];
    put_le32(entry, (u32)(table_at(c, t, dir) / VMDK_SECTOR));
    return plan_write(c->s, directory(c, dir) + t->idx * 4, entry, 4, "link a new grain table", e);
}

/* Tables that are there, and in the second directory those that were not. */
static int emit_entries(struct copy *c, struct err *e)
{
    struct cursor at = batch_begin(c);
    struct touched t;
    bool more = true;
    int rc = 0;
    while (!rc && !(rc = next_table(c, &at, true, &t, &more, e)) && more) {
        bool fresh = spot_of(c, &t)->fresh;
        if (fresh && c->dirs == 2)
            rc = link_table(c, &t, 1, e);
        for (int dir = 0; !rc && !fresh && dir < c->dirs; dir++)
            rc = plan_write(c->s, table_at(c, &t, dir) + t.first * 4, t.bytes + t.first * 4,
                            (t.end - t.first) * 4, "entries of what has been copied", e);
    }
    return rc ? rc : plan_barrier(c->s, "a part has been copied", e);
}

static int emit_links(struct copy *c, struct err *e)
{
    struct cursor at = batch_begin(c);
    struct touched t;
    bool more = true;
    int rc = 0;
    if (!c->fresh)
        return 0;
    while (!rc && !(rc = next_table(c, &at, false, &t, &more, e)) && more)
        if (spot_of(c, &t)->fresh)
            rc = link_table(c, &t, 0, e);
    return rc ? rc : plan_barrier(c->s, "new tables are linked", e);
}

static void count(const struct copy *c, struct plan_state *state)
{
    rebase_scan_count(&c->scan, c->scan.unit, &state->v[V_LAST_GRAIN], &state->clusters_copied,
                      &state->bytes_copied);
    state->v[V_VOFF] = c->scan.batch->to;
    state->done = c->scan.batch->to;
    state->total = c->scan.img->size;
}

/* Everything, for those who only want to know how much it is. */
static int count_all(struct copy *c, struct plan_state *state, struct err *e)
{
    int rc = 0;
    while (!rc && state->v[V_VOFF] < c->scan.img->size)
        if (!(rc = rebase_scan(&c->scan, state->v[V_VOFF], 0, e)))
            count(c, state);
    return rc;
}

/* The batch ends where the extent of its first grain does. Which extent that is. */
static unsigned cut(struct rebase_scan *k, const struct image *img)
{
    struct rebase_batch *b = k->batch;
    unsigned i = parts_of(img) - 1;
    while (b->run[0].first * k->unit < part_start(img, i))
        i--;
    u64 end = i + 1 < parts_of(img) ? part_start(img, i + 1) : round_up(img->size, k->unit);
    for (; b->run[b->runs - 1].first >= end / k->unit; b->runs--)
        if (b->run[b->runs - 1].kind == REBASE_DATA)
            b->kept -= b->run[b->runs - 1].cnt * k->unit;
    struct rebase_run *last = &b->run[b->runs - 1];
    u64 keep = min_u64(last->cnt, end / k->unit - last->first);
    if (last->kind == REBASE_DATA)
        b->kept -= (last->cnt - keep) * k->unit;
    last->cnt = (u32)keep;
    b->to = min_u64(b->to, min_u64(end, img->size));
    return i;
}

static int copy_part(struct copy *c, struct plan_state *state, struct err *e)
{
    int rc = place(c, state->v[V_END], e);
    if (rc)
        return rc;
    state->v[V_END] = c->end;
    if ((rc = emit_data(c, e)) || (rc = emit_entries(c, e)))
        return rc;
    return emit_links(c, e);
}

static int copy_batch(struct copy *c, struct image *img, const struct rebase_args *a,
                      struct plan_state *state, struct sink *s, struct err *e)
{
    const struct note *note = (const struct note *)((u8 *)a->work + NOTE_AT);
    unsigned i = cut(&c->scan, img);
    struct vmdk_part_sink to = part_sink(img, i, s);
    struct image part;
    count(c, state);
    if (state->v[V_PART] != i) {
        state->v[V_PART] = i;
        state->v[V_END] = note[i].end;
    }
    lend(img, i, &part);
    c->img = &part;
    c->v = &part.u.vmdk;
    c->s = &to.sink;
    c->base = part_start(img, i) / img->unit;
    c->size = part.file[0]->size;
    c->dirs = c->v->rgd_offset ? 2 : 1;
    int rc = copy_part(c, state, e);
    vmdk_return_part(img, &part);
    return rc;
}

/* ---- the first epoch ---- */

/* One table of a run, which both directories have. */
static int mend_table(struct image *img, const struct vmdk_run *r, u64 i, struct sink *s,
                      struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    u64 left = vmdk_grains(img) - (r->idx + i) * v->gtes, len = min_u64(left, v->gtes) * 4;
    const u8 *one = vmdk_run_table(img, r, 0, i), *two = vmdk_run_table(img, r, 1, i);
    return memcmp(one, two, len) ? plan_write(s, r->off[1] + i * vmdk_table_span(v), one, len,
                                              "a table is made like the one that counts", e)
                                 : 0;
}

static int mend(struct image *img, const struct rebase_args *a, struct sink *s, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    struct resize_args walk = {.work = a->work, .work_len = a->work_len};
    struct vmdk_run r = {.lenient = true};
    bool more = true;
    int rc = 0;
    while (!rc && !(rc = vmdk_run_next(img, &walk, v->entries, &r, &more, e)) && more) {
        if (!r.off[0] && r.off[1])
            rc = plan_zero(s, v->rgd_offset + r.idx * 4, r.cnt * 4,
                           "tables that only the second directory has", e);
        for (u64 i = 0; !rc && r.off[0] && i < r.cnt; i++)
            rc = mend_table(img, &r, i, s, e);
    }
    return rc;
}

static int start_part(struct image *img, const struct rebase_args *a, bool again, struct note *note,
                      struct sink *s, struct err *e)
{
    struct resize_args walk = {.work = a->work, .work_len = a->work_len};
    struct vmdk_survey found;
    int rc = again ? 0 : vmdk_survey_torn(img, &walk, &found, e);
    if (!rc && !again)
        *note = (struct note){max_u64(found.used_end, img->u.vmdk.overhead), found.torn};
    return !rc && !a->count && note->torn ? mend(img, a, s, e) : rc;
}

static int start(struct image *img, const struct rebase_args *a, struct plan_state *state,
                 struct sink *s, struct err *e)
{
    struct note *kept = (struct note *)((u8 *)a->work + NOTE_AT), note[VMDK_EXTENTS_MAX];
    int rc = 0;
    memcpy(note, kept, sizeof note); /* a survey takes all of work */
    for (unsigned i = 0; !rc && i < parts_of(img); i++) {
        struct vmdk_part_sink to = part_sink(img, i, s);
        struct image part;
        lend(img, i, &part);
        rc = start_part(&part, a, state->again, &note[i], &to.sink, e);
        vmdk_return_part(img, &part);
    }
    if (rc)
        return rc;
    memcpy(kept, note, sizeof note);
    state->v[V_PHASE] = PHASE_COPY;
    state->v[V_LAST_GRAIN] = state->v[V_PART] = UINT64_MAX;
    state->more = !a->count;
    return a->count ? 0 : plan_barrier(s, "the image is sound", e);
}

bool vmdk_rebase_goes_on(const struct plan_state *state)
{
    return state->v[V_PHASE] == PHASE_COPY;
}

/* What tables map, each of them as little as any. */
static u64 span_of(const struct image *img)
{
    const struct vmdk *v = &img->u.vmdk;
    u32 gtes = v->kind ? v->part[0].sparse.gtes : v->gtes;
    for (unsigned i = 1; v->kind && i < img->parts; i++)
        gtes = (u32)min_u64(gtes, v->part[i].sparse.gtes);
    u64 table = (u64)gtes * img->unit;
    return table * min_u64(max_u64(SPAN / table, 1), TABLES_MAX - 1); /* they may lie askew */
}

int vmdk_rebase_copy(struct image *img, const struct rebase_args *a, struct plan_state *state,
                     struct sink *s, bool *done, struct err *e)
{
    struct copy c = {.spot = (struct spot *)((u8 *)a->work + SPOTS_AT)};
    int rc = 0;
    *done = false;
    if (!vmdk_rebase_goes_on(state) && ((rc = start(img, a, state, s, e)) || !a->count))
        return rc;
    rebase_scan_init(&c.scan, img, a->new_backing, img->unit, span_of(img), (u8 *)a->work + WORK,
                     a->work_len - WORK);
    rc = a->count        ? count_all(&c, state, e)
         : !state->again ? rebase_scan(&c.scan, state->v[V_VOFF], 0, e)
                         : 0;
    const struct rebase_batch *b = c.scan.batch;
    *done = !rc && (a->count || (!b->runs && b->to >= img->size));
    if (rc || *done)
        return rc;
    state->more = true;
    if (b->runs)
        return copy_batch(&c, img, a, state, s, e);
    count(&c, state);
    return plan_barrier(s, "nothing differs so far", e);
}

/* ---- what is refused ---- */

/* An extent, or the image that is one. */
static int check_part(const struct vmdk *v, u64 start, u64 unit, struct err *e)
{
    if (v->flags & VMDK_COMPRESSED)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "Nothing can be copied into a streamOptimized image; qemu-img convert makes a "
                    "monolithicSparse one of it",
                    VMH_FLAGS, v->flags);
    if (v->flags & ~(u32)VMDK_FLAGS)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unknown flags in the header ({val:x})", VMH_FLAGS,
                    v->flags);
    if (unit > IMAGE_UNIT_MAX)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Grains of {val} bytes are too large to be copied",
                    VMH_GRAIN_SIZE, unit);
    if (start % unit)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "An extent begins inside a grain, at {off} of the disk", start, unit);
    return 0;
}

int vmdk_rebase_check(const struct image *img, const struct rebase_args *a, struct err *e)
{
    const struct vmdk *v = &img->u.vmdk;
    const struct image *chain[2] = {img, a->new_backing};
    int rc = 0;
    if (v->kind && !v->kind->changes)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT,
                    "Nothing can be copied into an image of this type; qemu-img convert makes a "
                    "monolithicSparse one of it",
                    0, 0);
    for (unsigned i = 0; !rc && i < parts_of(img); i++)
        rc = check_part(v->kind ? &v->part[i].sparse : v, part_start(img, i), img->unit, e);
    for (int i = 0; !rc && i < 2; i++)
        for (const struct image *link = chain[i]; link; link = link->backing)
            if (link->opaque)
                return FAIL(e, ERR_LUKS_UNSUPPORTED,
                            "Data of an encrypted image must be read, which needs its key", 0, i);
    if (rc || (rc = vmdk_check_links(img, e)))
        return rc;
    return vmdk_check_links(a->new_backing, e);
}
