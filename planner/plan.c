/* SPDX-License-Identifier: MIT
 *
 * planners[], the registry; how planners emit; and plan_run(), which takes every epoch through the
 * check sink, the grant and the apply sink. To add a format: one file and one line here.
 */
#include "scratch.h"
#include "sinks.h"

const struct planner *const planners[] = {&qcow2_planner, &vhdx_planner, &vmdk_planner,
                                          &vhd_planner,   &raw_planner,  NULL};

void digest_init(struct digest *d)
{
    d->hash = 0xcbf29ce484222325ull;
    d->cnt = 0;
}

/* FNV-1a over 64-bit words: it tells an honest change from none; it need not stand up to an
 * attacker, who could as well write the image he wants. */
static void digest_bytes(struct digest *d, const void *data, u64 len)
{
    const u8 *p = data, *end = p + len;
    for (u64 word; p < end; p += 8) {
        if (end - p >= 8) /* of a length that the compiler knows: no call */
            memcpy(&word, p, 8);
        else
            memcpy(memset(&word, 0, 8), p, (size_t)(end - p));
        d->hash = (d->hash ^ word) * 0x100000001b3ull;
        d->hash ^= d->hash >> 32;
    }
}

void digest_patch(struct digest *d, const struct patch *p)
{
    u64 fields[] = {p->kind, p->slot,     p->from,   p->off,
                    p->len,  p->from_off, p->commit, p->may_unmap};
    digest_bytes(d, fields, sizeof fields);
    if (p->kind == PATCH_WRITE && !p->kept)
        digest_bytes(d, p->data, p->len);
    d->cnt++;
}

int plan_emit(struct sink *s, struct patch p, struct err *e)
{
    return s->emit(s, &p, e);
}

int plan_length(struct sink *s, u64 len, const char *why, struct err *e)
{
    return plan_emit(s, (struct patch){.kind = PATCH_LENGTH, .len = len, .why = why}, e);
}

int plan_write(struct sink *s, u64 off, const void *data, u64 len, const char *why, struct err *e)
{
    return plan_emit(
        s, (struct patch){.kind = PATCH_WRITE, .off = off, .len = len, .data = data, .why = why},
        e);
}

int plan_commit(struct sink *s, u64 off, const void *data, u64 len, const char *why, struct err *e)
{
    return plan_emit(
        s,
        (struct patch){
            .kind = PATCH_WRITE, .off = off, .len = len, .data = data, .why = why, .commit = true},
        e);
}

int plan_zero(struct sink *s, u64 off, u64 len, const char *why, struct err *e)
{
    return plan_emit(s, (struct patch){.kind = PATCH_ZERO, .off = off, .len = len, .why = why}, e);
}

int plan_clear(struct sink *s, u64 off, u64 len, const char *why, struct err *e)
{
    return plan_emit(
        s,
        (struct patch){.kind = PATCH_ZERO, .off = off, .len = len, .why = why, .may_unmap = true},
        e);
}

int plan_copy(struct sink *s, u64 off, u64 from_off, u64 len, const char *why, struct err *e)
{
    return plan_emit(
        s,
        (struct patch){
            .kind = PATCH_COPY, .off = off, .from_off = from_off, .len = len, .why = why},
        e);
}

int plan_discard(struct sink *s, u64 off, u64 len, const char *why, struct err *e)
{
    return plan_emit(s, (struct patch){.kind = PATCH_DISCARD, .off = off, .len = len, .why = why},
                     e);
}

int plan_barrier(struct sink *s, const char *why, struct err *e)
{
    return plan_emit(s, (struct patch){.kind = PATCH_BARRIER, .why = why}, e);
}

int plan_ignore(struct sink *s, const struct patch *p, struct err *e)
{
    (void)s, (void)p, (void)e;
    return 0;
}

int plan_changed(u64 off, u64 val, struct err *e)
{
    return FAIL(e, ERR_HEADER_MISMATCH,
                "The image changed while it was being worked on; retry the operation", off, val);
}

int plan_preallocate(struct sink *s, u8 slot, u64 off, u64 len, enum preallocation how, void *work,
                     struct err *e)
{
    struct patch p = {.slot = slot, .off = off, .len = len};
    if (how < PREALLOC_FALLOC || !len)
        return 0;
    if (how == PREALLOC_FALLOC) {
        p.kind = PATCH_ZERO;
        p.why = "preallocated: the host reserves the space";
        return plan_emit(s, p, e);
    }
    p.kind = PATCH_WRITE;
    p.why = "preallocated: zeros are written";
    p.data = memset(work, 0, PLAN_PREALLOCATE_WORK);
    int rc = 0;
    for (; !rc && p.off < off + len; p.off += p.len) {
        p.len = min_u64(off + len - p.off, PLAN_PREALLOCATE_WORK);
        rc = plan_emit(s, p, e);
    }
    return rc;
}

/* A planner's step with its arguments, so that plan_run() serves every kind of change. */
struct step {
    int (*run)(const struct step *, struct plan_state *, struct sink *, struct err *);
    struct image *img;
    const struct planner *planner;
    const void *args;
};

static int check_pass(const struct step *st, struct plan_state *state, struct check_sink *check,
                      struct plan_host *h, struct err *e)
{
    int rc;
    check_init(check, st->img, h, state);
    if (state->epoch > 0 && (rc = image_reopen(st->img, e))) /* it was opened just now */
        return rc;
    if ((rc = st->run(st, state, &check->sink, e)))
        return rc;
    assert(check->barrier || (state->open && state->more)); /* an epoch ends at a barrier */
    return 0;
}

static int apply_pass(const struct step *st, struct plan_state *state,
                      const struct check_sink *check, struct plan_host *h, struct err *e)
{
    struct apply_sink apply;
    int rc;
    apply_init(&apply, st->img, check, h);
    if ((rc = image_reopen(st->img, e)) || (rc = st->run(st, state, &apply.sink, e)))
        return rc;
    if (apply.digest.hash != check->digest.hash || apply.digest.cnt != check->digest.cnt)
        return plan_changed(0, 0, e);
    return 0;
}

/* Everything between the two passes: what the epoch needs is asked for. After a journal something
 * is asked in any case. */
static int ask(const struct step *st, const struct plan_state *state, struct check_sink *check,
               bool journal, struct plan_host *h, struct err *e)
{
    struct plan_need *need = &check->need;
    need->room |= need->eventual > st->img->file[0]->size;
    need->undo = check->undo.cnt > 0;
    int rc = need->undo ? undo_show(&check->undo, h, e) : 0;
    bool asks = need->room || need->undo || need->confirm || journal;
    return rc || !asks ? rc : h->need(h, state->epoch, need, e);
}

/* What an epoch has done, for the host. */
static void count(struct plan_host *h, const struct plan_state *state)
{
    h->clusters_copied = state->clusters_copied;
    h->bytes_copied = state->bytes_copied;
    if (state->total && h->progress)
        h->progress(h, state->done, state->total);
}

static int run_epochs(const struct step *st, struct plan_host *h, struct err *e)
{
    struct plan_state state = {0}, copy;
    struct check_sink check;
    bool journal = false; /* the epoch before was one of P10 */
    int rc;
    do {
        state.more = state.undo = state.stage = state.open = state.confirm = state.again = false;
        copy = state;
        if ((rc = check_pass(st, &copy, &check, h, e)))
            return rc;
        for (int i = 0; i < st->img->files; i++)
            h->length[i] = check.length[i];
        check.need.confirm = copy.confirm;
        check.need.eventual = state.epoch == 0 ? copy.eventual : 0;
        h->eventual = max_u64(h->eventual, max_u64(check.need.eventual, check.length[0]));
        h->more = copy.more;
        if (h->dry_run)
            count(h, &copy);
        if (h->dry_run && (!h->scratch || !copy.more))
            return 0;
        if (!h->dry_run && (rc = ask(st, &state, &check, journal, h, e)))
            return rc;
        journal = check.need.undo;
        h->begun |= !copy.stage && !h->dry_run;
        state.again = true;
        if ((rc = apply_pass(st, &state, &check, h, e)))
            return rc;
        h->repaired |= state.stage && !h->dry_run;
        count(h, &state);
        state.epoch++;
    } while (state.more);
    return 0;
}

/* A dry run, on disks over the image's own. What their memory cannot hold is not shown. */
static int rehearse_epochs(const struct step *st, struct plan_host *h, struct err *e)
{
    struct scratch_pool pool;
    struct scratch disk[IMAGE_FILES];
    struct image *img = st->img;
    scratch_pool_init(&pool, h->scratch, h->scratch_len);
    for (u8 i = 0; i < img->files; i++) {
        scratch_init(&disk[i], img->file[i], i, &pool);
        img->file[i] = &disk[i].blk;
    }
    int rc = run_epochs(st, h, e);
    for (u8 i = 0; i < img->files; i++)
        img->file[i] = disk[i].below;
    if (rc != ERR_SCRATCH_TOO_SMALL)
        return rc;
    *e = (struct err){0};
    return 0;
}

static int plan_run(const struct step *st, struct plan_host *h, struct err *e)
{
    return h->dry_run && h->scratch ? rehearse_epochs(st, h, e) : run_epochs(st, h, e);
}

static int resize_step(const struct step *st, struct plan_state *state, struct sink *s,
                       struct err *e)
{
    return st->planner->resize(st->img, st->args, state, s, e);
}

static int rebase_step(const struct step *st, struct plan_state *state, struct sink *s,
                       struct err *e)
{
    return st->planner->rebase(st->img, st->args, state, s, e);
}

static const struct planner *find_planner(const struct format *f)
{
    for (const struct planner *const *p = planners; *p; p++)
        if ((*p)->format == f)
            return *p;
    return NULL;
}

void plan_on_device(struct image *img)
{
    const struct planner *p = find_planner(img->format);
    struct blk *b = img->file[0];
    struct err ignored = {0};
    u64 end;
    if (p && p->end && !p->end(img, &end, &ignored))
        b->size = min_u64(b->size, round_up(end, b->sector));
}

u64 plan_fit(const struct image *img, u64 new_size)
{
    const struct planner *p = find_planner(img->format);
    return p && p->fit ? p->fit(img, new_size) : new_size;
}

bool plan_fits(struct image *img, u64 new_size)
{
    u64 now = img->size;
    img->size = 0;
    u64 fit = plan_fit(img, new_size);
    img->size = now;
    return fit == now;
}

bool plan_chain(const struct image *img)
{
    const struct planner *p = find_planner(img->format);
    return p && p->chain;
}

bool plan_mends(const struct image *img)
{
    const struct planner *p = find_planner(img->format);
    return p && p->mends;
}

int plan_files(struct image *img, const struct resize_args *a, struct plan_files *f,
               struct err *e)
{
    const struct planner *p = find_planner(img->format);
    *f = (struct plan_files){.keep = img->parts};
    return p && p->files ? p->files(img, a, f, e) : 0;
}

const char *plan_warning(const struct image *img)
{
    const struct planner *p = find_planner(img->format);
    return p && p->warning ? p->warning : "";
}

int plan_resize(struct image *img, const struct resize_args *a, struct plan_host *h, struct err *e)
{
    const struct planner *p = find_planner(img->format);
    if (!p || !p->resize)
        return FAIL(e, ERR_UNSUPPORTED_FORMAT, "Image format driver does not support resize", 0, 0);
    return plan_run(&(struct step){resize_step, img, p, a}, h, e);
}

int plan_rebase(struct image *img, const struct rebase_args *a, struct plan_host *h, struct err *e)
{
    const struct planner *p = find_planner(img->format);
    if (!p || !p->rebase)
        return FAIL(e, ERR_UNSUPPORTED_FORMAT, "Operation not supported", 0, 0);
    return plan_run(&(struct step){rebase_step, img, p, a}, h, e);
}
