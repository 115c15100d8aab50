/* SPDX-License-Identifier: MIT
 *
 * Recording, and the enumeration of crash states. A state is one overlay over the durable part, so
 * that thousands of them cost little.
 */
#include "blk_record.h"

#include "test.h"

enum { TEAR = 512, SMALL = 8 << 10 /* writes up to this are torn at every boundary */ };

/* ---- recording ---- */

static struct record_entry *append(struct blk *b, int kind, u64 off, u64 len)
{
    struct blk_record *r = (struct blk_record *)b;
    r->now.blk.size = max_u64(r->now.blk.size, b->size);
    if (r->cnt == r->cap) {
        r->cap = r->cap ? r->cap * 2 : 64;
        r->log = realloc(r->log, r->cap * sizeof(*r->log));
    }
    r->log[r->cnt] = (struct record_entry){.kind = kind, .off = off, .len = len};
    return &r->log[r->cnt++];
}

static int rec_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    struct blk *now = &((struct blk_record *)b)->now.blk;
    now->size = max_u64(now->size, b->size);
    return now->ops->read(now, off, buf, len, e);
}

static int rec_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    struct record_entry *w = append(b, REC_WRITE, off, len);
    struct blk *now = &((struct blk_record *)b)->now.blk;
    w->data = malloc(len);
    memcpy(w->data, buf, len);
    return now->ops->write(now, off, buf, len, e);
}

static int rec_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    append(b, REC_ZERO, off, len);
    struct blk *now = &((struct blk_record *)b)->now.blk;
    return now->ops->zero(now, off, len, may_unmap, e);
}

static int rec_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    append(b, REC_DISCARD, off, len);
    struct blk *now = &((struct blk_record *)b)->now.blk;
    return now->ops->discard(now, off, len, e);
}

static int rec_flush(struct blk *b, struct err *e)
{
    append(b, REC_FLUSH, 0, 0);
    struct blk *now = &((struct blk_record *)b)->now.blk;
    return now->ops->flush(now, e);
}

static int rec_grow(struct blk *b, u64 new_size, struct err *e)
{
    append(b, REC_GROW, 0, new_size);
    struct blk *now = &((struct blk_record *)b)->now.blk;
    return now->ops->grow(now, new_size, e);
}

static const struct blk_ops record_ops = {
    .read = rec_read,
    .write = rec_write,
    .zero = rec_zero,
    .discard = rec_discard,
    .flush = rec_flush,
    .grow = rec_grow,
};

void blk_record_init(struct blk_record *r, const struct blk_mem *initial)
{
    *r = (struct blk_record){.blk = initial->blk, .initial = initial};
    r->blk.ops = &record_ops;
    blk_mem_over(&r->now, initial);
}

void blk_record_free(struct blk_record *r)
{
    for (size_t i = 0; i < r->cnt; i++)
        free(r->log[i].data);
    free(r->log);
    blk_mem_free(&r->now);
}

/* ---- enumeration ---- */

/* The epoch under the crash: log[first, end), over the durable state. */
struct epoch {
    const struct blk_record *r;
    const struct blk_mem *durable;
    size_t first, end;
    u64 shown;
    bool stop;
    record_judge *judge;
    void *ctx;
};

/* Puts sectors [from, to) of an entry (counted in TEAR bytes) into the state. */
static void land(struct blk_mem *state, const struct record_entry *w, u64 from, u64 to)
{
    u64 a = from * TEAR, b = min_u64(to * TEAR, w->len);
    if (a >= b)
        return;
    if (w->kind == REC_WRITE)
        blk_mem_put(state, w->off + a, w->data + a, (size_t)(b - a));
    else if (w->kind == REC_ZERO || w->kind == REC_DISCARD)
        blk_mem_clear(state, w->off + a, b - a);
    if (w->kind == REC_ZERO)
        state->length = max_u64(state->length, w->off + b);
}

static u64 sectors(const struct record_entry *w)
{
    return w->kind <= REC_DISCARD ? div_up(w->len, TEAR) : 0;
}

/* Which sectors of entry i land: *from..*to, for one state. */
typedef void chooser(const struct epoch *ep, size_t i, const u64 *arg, u64 *from, u64 *to);

/* Builds the state that `choose` describes and shows it, with the old and with the new length if
 * the file grew in this epoch. For `scatter`, each sector lands by the toss of a coin. */
static void show(struct epoch *ep, chooser *choose, const u64 *arg, u64 scatter, const char *what)
{
    u64 grown = 0;
    for (size_t i = ep->first; i < ep->end; i++)
        if (ep->r->log[i].kind == REC_GROW)
            grown = max_u64(grown, ep->r->log[i].len);
    for (int new_length = 0; new_length <= (grown ? 1 : 0) && !ep->stop; new_length++) {
        struct blk_mem state;
        u64 seed = scatter;
        char text[160];
        blk_mem_over(&state, ep->durable);
        if (new_length)
            state.length = max_u64(state.length, grown);
        for (size_t i = ep->first; i < ep->end; i++) {
            const struct record_entry *w = &ep->r->log[i];
            u64 from = 0, to = 0;
            if (scatter) {
                for (u64 s = 0; s < sectors(w); s++)
                    if (rnd(&seed) >> 63)
                        land(&state, w, s, s + 1);
                continue;
            }
            choose(ep, i, arg, &from, &to);
            land(&state, w, from, to);
        }
        blk_mem_truncate(&state, grown && !new_length ? ep->durable->length : state.length);
        snprintf(text, sizeof(text), "entries %zu..%zu: %s %llu %llu %llu%s", ep->first, ep->end,
                 what, (unsigned long long)arg[0], (unsigned long long)arg[1],
                 (unsigned long long)arg[2],
                 grown ? new_length ? ", new length" : ", old length" : "");
        ep->shown++;
        ep->stop = !ep->judge(ep->ctx, &state, text);
        blk_mem_free(&state);
    }
}

static void whole(const struct epoch *ep, size_t i, u64 *from, u64 *to)
{
    *from = 0;
    *to = sectors(&ep->r->log[i]);
}

/* Entries arg[0]..arg[1] land whole. */
static void range(const struct epoch *ep, size_t i, const u64 *arg, u64 *from, u64 *to)
{
    if (i >= arg[0] && i < arg[1])
        whole(ep, i, from, to);
}

static void all_but(const struct epoch *ep, size_t i, const u64 *arg, u64 *from, u64 *to)
{
    if (i != arg[0])
        whole(ep, i, from, to);
}

/* Those whose bit (modulo 64) is set. */
static void subset(const struct epoch *ep, size_t i, const u64 *arg, u64 *from, u64 *to)
{
    if (arg[0] >> ((i - ep->first) % 64) & 1)
        whole(ep, i, from, to);
}

/* Entry arg[0] is torn: only its sectors before arg[1] landed. arg[2]: 0 nothing else landed,
 * 1 all before it, 2 all the others; 4 added: only its sectors from arg[1] on landed. */
static void torn(const struct epoch *ep, size_t i, const u64 *arg, u64 *from, u64 *to)
{
    u64 others = arg[2] & 3;
    if (i != arg[0]) {
        if (others == 2 || (others == 1 && i < arg[0]))
            whole(ep, i, from, to);
        return;
    }
    *from = arg[2] & 4 ? arg[1] : 0;
    *to = arg[2] & 4 ? sectors(&ep->r->log[i]) : arg[1];
}

static void tear(struct epoch *ep, size_t i, u64 *seed)
{
    u64 n = sectors(&ep->r->log[i]);
    bool every = n * TEAR <= SMALL;
    for (u64 k = 1; k < n; k++) {
        u64 at = k;
        if (!every && k > 4 && k < n - 4) { /* the first four, eight by chance, the last four */
            if (k > 12) {
                k = n - 5;
                continue;
            }
            at = 1 + rnd_below(seed, n - 1);
        }
        for (u64 how = 0; how < 8 && !ep->stop; how++)
            if ((how & 3) < 3)
                show(ep, torn, (u64[]){i, at, how}, 0, "torn");
    }
}

static void epoch_states(struct epoch *ep, u64 *seed, unsigned random)
{
    size_t n = ep->end - ep->first;
    for (size_t i = ep->first; i <= ep->end && !ep->stop; i++)
        show(ep, range, (u64[]){ep->first, i, 0}, 0, "prefix");
    for (size_t i = ep->first + 1; i < ep->end && !ep->stop; i++)
        show(ep, range, (u64[]){i, ep->end, 0}, 0, "suffix");
    for (size_t i = ep->first; i < ep->end && !ep->stop; i++) {
        if (!sectors(&ep->r->log[i]))
            continue;
        show(ep, range, (u64[]){i, i + 1, 0}, 0, "alone");
        show(ep, all_but, (u64[]){i, 0, 0}, 0, "all but");
        tear(ep, i, seed);
    }
    for (unsigned k = 0; n > 1 && k < random && !ep->stop; k++) {
        show(ep, subset, (u64[]){rnd(seed), 0, 0}, 0, "subset");
        show(ep, NULL, (u64[]){k, 0, 0}, rnd(seed) | 1, "scattered");
    }
}

u64 blk_record_states(const struct blk_record *r, u64 seed, unsigned random, record_judge *judge,
                      void *ctx)
{
    struct blk_mem durable;
    struct epoch ep = {.r = r, .durable = &durable, .judge = judge, .ctx = ctx};
    blk_mem_over(&durable, r->initial);
    while (!ep.stop) {
        ep.end = ep.first;
        while (ep.end < r->cnt && r->log[ep.end].kind != REC_FLUSH)
            ep.end++;
        epoch_states(&ep, &seed, random);
        for (size_t i = ep.first; i < ep.end; i++) {
            if (r->log[i].kind == REC_GROW)
                durable.length = max_u64(durable.length, r->log[i].len);
            land(&durable, &r->log[i], 0, sectors(&r->log[i]));
        }
        durable.blk.size = durable.length;
        if (ep.end >= r->cnt)
            break;
        ep.first = ep.end + 1;
    }
    blk_mem_free(&durable);
    return ep.shown;
}
