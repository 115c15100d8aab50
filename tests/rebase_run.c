/* SPDX-License-Identifier: MIT
 *
 * See rebase_run.h. Links that hold the same are wanted, too, and such that differ in a few places:
 * a raw link may be a copy of what another link's chain shows, with some blocks changed.
 */
#include "rebase_run.h"

#include "copy.h"
#include "test.h"
#include "vhd_make.h"
#include "vhdx_make.h"
#include "vmdk_make.h"

enum { BLOCK = 4096, RUN_WORK = 20 << 20 /* so that little is kept */ };

static u8 scratch[IMAGE_SCRATCH] __attribute__((aligned(4096)));

/* ---- making ---- */

static void make_raw(struct blk_mem *m, u64 size, u64 *seed)
{
    u8 buf[BLOCK];
    u64 dense = 1 + rnd_below(seed, 4);
    blk_mem_init(m, size, 512);
    for (u64 off = 0; off < size; off += BLOCK) {
        if (rnd_below(seed, dense))
            continue;
        make_pattern(*seed % 3, off, buf, BLOCK);
        blk_mem_put(m, off, buf, (size_t)min_u64(BLOCK, size - off));
    }
    blk_mem_truncate(m, size);
}

static void make_qcow2(struct blk_mem *m, struct make *p, u64 size, u64 *seed)
{
    static const u32 bits[] = {9, 10, 12, 14, 16, 17, 21};
    struct made made;
    bool small = size <= 4 << 20;
    *p = (struct make){.version = rnd_below(seed, 4) ? 3 : 2,
                       .cluster_bits = bits[rnd_below(seed, small ? 6 : 5) + (small ? 0 : 2)],
                       .size = size,
                       .seed = rnd_below(seed, 3)};
    p->refcount_order = p->version == 2 ? 4 : (u32)rnd_below(seed, 7);
    p->ext_l2 = p->version == 3 && p->cluster_bits >= 14 && rnd_below(seed, 2);
    p->kinds = MAKE_DATA | (u32)rnd_below(seed, 32);
    u64 clusters = div_up(size, 1ull << p->cluster_bits);
    p->first = (u32)rnd_below(seed, clusters / 4 + 2);
    p->spread = (u32)rnd_below(seed, clusters / 4 + 2);
    p->last = rnd_below(seed, 2);
    p->end = rnd_below(seed, 3);
    p->l1_middle = rnd_below(seed, 2);
    if (rnd_below(seed, 8) == 0)
        p->first = p->spread = p->last = 0;
    qcow2_make(m, p, &made);
}

static void make_overlay(struct blk_mem *m, struct make *p, u64 size, u64 *seed)
{
    struct made made;
    make_qcow2(m, p, size, seed);
    blk_mem_free(m);
    p->backing = "b0";
    p->backing_format = "raw";
    p->unknown_ext = p->cluster_bits > 9 && rnd_below(seed, 4) == 0;
    p->autoclear = p->version == 3 && rnd_below(seed, 6) == 0 ? 1ull << 40 : 0;
    if (p->refcount_order >= 2 && rnd_below(seed, 4) == 0)
        p->snapshots = 1 + (u32)rnd_below(seed, 2);
    p->l1_extra = (u32)rnd_below(seed, 3);
    p->pad_clusters = rnd_below(seed, 6) ? 0 : (u32)rnd_below(seed, 5);
    p->above_eof = rnd_below(seed, 8) ? 0 : rnd_below(seed, 64);
    p->bitmaps = p->version == 3 && p->cluster_bits > 9 && rnd_below(seed, 8) == 0;
    if (!p->bitmaps && rnd_below(seed, 3) == 0) { /* near the end of a block, or of the table */
        u64 per = (8ull << p->cluster_bits) >> p->refcount_order;
        u64 table = per * ((1ull << p->cluster_bits) / 8);
        bool whole = p->cluster_bits == 9 || (p->cluster_bits == 10 && p->refcount_order > 2);
        u64 at = whole && rnd_below(seed, 2) ? table : per * (1 + rnd_below(seed, 3));
        p->rt_clusters = at == table;
        p->end_cluster = at > 40 ? at - 1 - rnd_below(seed, 40) : 0;
    }
    qcow2_make(m, p, &made);
}

void run_make_link(struct run_link *l, const char *format, u64 size, u64 *seed)
{
    struct make q;
    l->format = format;
    l->blk = &l->disk.blk;
    if (!strcmp(format, "raw")) {
        make_raw(&l->disk, size, seed);
    } else if (!strcmp(format, "qcow2")) {
        make_qcow2(&l->disk, &q, size, seed);
    } else if (!strcmp(format, "vpc")) {
        struct vhd_made made;
        struct vhd_make p = {.size = round_up(size, 512),
                             .block_size = 64 << 10,
                             .type = rnd_below(seed, 4) ? VHD_DYNAMIC : VHD_FIXED,
                             .every = 1 + (u32)rnd_below(seed, 3),
                             .seed = 1 + rnd_below(seed, 3),
                             .shuffled = rnd_below(seed, 2)};
        vhd_make(&l->disk, &p, &made);
    } else if (!strcmp(format, "vhdx")) {
        struct vhdx_made made;
        struct vhdx_make p = {.size = round_up(size, 1 << 20),
                              .seed = rnd_below(seed, 3),
                              .blocks = 1 + (u32)rnd_below(seed, 3),
                              .backwards = rnd_below(seed, 2)};
        vhdx_make(&l->disk, &p, &made);
    } else {
        struct vmdk_made made;
        struct vmdk_make p = {.size = round_up(size, 512),
                              .grain = 8u << rnd_below(seed, 5),
                              .zeroed = rnd_below(seed, 2),
                              .every = 1 + (u32)rnd_below(seed, 3),
                              .seed = 1 + rnd_below(seed, 3),
                              .shuffled = rnd_below(seed, 2)};
        vmdk_make(&l->disk, &p, &made);
    }
}

static void open_link(struct run_link *l, struct err *e)
{
    CHECK(!image_open(&l->img, l->blk, l->format, l->mem, e));
    l->img.scratch = scratch;
}

/* A raw link that shows what the chain from `top` on does, but for some blocks. */
static void make_copy(struct run_link *l, struct image *top, u64 size, u64 *seed)
{
    u8 buf[BLOCK];
    struct err e = {0};
    l->format = "raw";
    l->blk = &l->disk.blk;
    blk_mem_init(&l->disk, size, 512);
    for (u64 off = 0; off < size; off += BLOCK) {
        CHECK(!chain_read(top, off, buf, BLOCK, &e));
        if (rnd_below(seed, 6) == 0)
            memset(buf, (int)rnd_below(seed, 2), BLOCK / 2);
        if (rnd_below(seed, 12) == 0)
            memset(buf, 0, BLOCK);
        blk_mem_put(&l->disk, off, buf, (size_t)min_u64(BLOCK, size - off));
    }
    blk_mem_truncate(&l->disk, size);
}

static u64 near(u64 size, u64 *seed)
{
    u64 at = rnd_below(seed, 3);
    u64 other = at == 0 ? size : at == 1 ? size + rnd_below(seed, size) : rnd_below(seed, size);
    return max_u64(512, rnd_below(seed, 2) ? round_down(other, 4096) : round_down(other, 512));
}

/* One more link, which is to stand on what has been put into `chain` so far. */
static void add_link(struct run_case *c, unsigned *chain, unsigned *cnt, bool last, u64 size,
                     u64 *seed)
{
    static const char *const formats_of[] = {"qcow2", "qcow2", "qcow2", "raw",
                                             "vpc",   "vhdx",  "vmdk"};
    struct run_link *l = &c->link[c->links];
    struct err e = {0};
    /* Only qcow2 has holes to see others through; links above others are that, mostly. */
    const char *format = formats_of[rnd_below(seed, last || !rnd_below(seed, 4) ? 7 : 3)];
    run_make_link(l, format, near(size, seed), seed);
    open_link(l, &e);
    chain[(*cnt)++] = c->links++;
}

/* Only a qcow2 link can stand on another: the rest of the chain is nobody's. */
static void stand_on(struct run_case *c, const unsigned *chain, unsigned cnt, struct run_link *top)
{
    struct run_link *l = top;
    for (unsigned i = 0; i < cnt && l->img.format == &qcow2_format; l = &c->link[chain[i++]])
        l->img.backing = &c->link[chain[i]].img;
    l->img.backing = NULL;
}

void run_make(struct run_case *c, u64 most, u64 *seed)
{
    u64 size = rnd_below(seed, 2) ? 512 * (1 + rnd_below(seed, most / 512)) : most / 2;
    unsigned how = (unsigned)rnd_below(seed, 5), n = (unsigned)rnd_below(seed, 3) + (how != 1);
    c->links = c->old_cnt = c->new_cnt = 0;
    make_overlay(&c->overlay.disk, &c->shape, size, seed);
    c->overlay.blk = &c->overlay.disk.blk;
    c->overlay.format = "qcow2";
    for (unsigned i = 0; i < n; i++)
        add_link(c, c->old, &c->old_cnt, i + 1 == n, size, seed);
    if (how == 0) /* detach */
        return;
    if (how == 2 && n) { /* a copy, with some changes */
        stand_on(c, c->old + 1, n - 1, &c->link[c->old[0]]);
        make_copy(&c->link[c->links], &c->link[c->old[0]].img, near(size, seed), seed);
        c->new[c->new_cnt++] = c->links++;
        struct err e = {0};
        open_link(&c->link[c->links - 1], &e);
        return;
    }
    unsigned shared = how == 3 && n > 0 ? 1 + (unsigned)rnd_below(seed, n) : 0;
    unsigned own = how == 3 ? (unsigned)rnd_below(seed, 2) : 1 + (unsigned)rnd_below(seed, 2);
    for (unsigned i = 0; i < own; i++)
        add_link(c, c->new, &c->new_cnt, i + 1 == own && !shared, size, seed);
    for (unsigned i = n - shared; i < n; i++)
        c->new[c->new_cnt++] = c->old[i];
}

void run_free(struct run_case *c)
{
    for (unsigned i = 0; i < c->links; i++)
        blk_mem_free(&c->link[i].disk);
    blk_mem_free(&c->overlay.disk);
    free(c->before);
    c->before = NULL;
}

/* ---- looking ---- */

int run_open(struct run_case *c, struct blk *b, bool on_new, struct err *e)
{
    int rc = image_open(&c->overlay.img, b, "qcow2", c->overlay.mem, e);
    for (unsigned i = 0; !rc && i < c->links; i++)
        open_link(&c->link[i], e);
    c->overlay.img.scratch = scratch;
    stand_on(c, on_new ? c->old : c->new, on_new ? c->old_cnt : c->new_cnt, &c->overlay);
    stand_on(c, on_new ? c->new : c->old, on_new ? c->new_cnt : c->old_cnt, &c->overlay);
    return rc;
}

void run_look(struct run_case *c)
{
    struct err e = {0};
    CHECK(!run_open(c, c->overlay.blk, false, &e));
    c->before = malloc(c->overlay.img.size + 1);
    CHECK(!chain_read(&c->overlay.img, 0, c->before, c->overlay.img.size, &e));
    CHECK_ERR(&e, OK);
}

bool run_same(struct run_case *c, struct blk *b, bool on_new, u64 *at)
{
    static u8 buf[64 << 10];
    struct err e = {0};
    if (!CHECK(!run_open(c, b, on_new, &e)))
        return false;
    for (u64 off = 0, n; off < c->overlay.img.size; off += n) {
        n = min_u64(sizeof(buf), c->overlay.img.size - off);
        *at = off;
        if (!CHECK(!chain_read(&c->overlay.img, off, buf, n, &e)))
            return false;
        for (u64 i = 0; memcmp(buf, c->before + off, n) && i < n; i++, ++*at)
            if (buf[i] != c->before[off + i])
                return false;
    }
    return true;
}

bool run_switched(struct blk *b)
{
    struct err e = {0};
    u8 head[24], name[8] = {0};
    u32 len;
    CHECK(!blk_read(b, 0, head, sizeof(head), &e));
    len = be32(head + 16);
    if (!be64(head + 8) || !len)
        return true; /* detached */
    CHECK(!blk_read(b, be64(head + 8), name, 3, &e));
    return len == 3 && !memcmp(name, "new", 3);
}

/* ---- running ---- */

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)epoch, (void)e;
    CHECK(n->room || n->undo || n->confirm);
    return 0;
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)slot, (void)off, (void)crc, (void)n, (void)e;
    return 0;
}

static u32 told;

static void progress(struct plan_host *h, u64 done, u64 total)
{
    (void)h;
    told++;
    CHECK(done <= total);
}

int run_rebase(struct run_case *c, struct blk *b, bool count, struct run_result *r, struct err *e)
{
    static u8 copy_mem[4 << 20] __attribute__((aligned(4096)));
    static u8 work[RUN_WORK] __attribute__((aligned(4096)));
    struct plan_host h = {.need = need,
                          .undo = undo,
                          .progress = progress,
                          .dry_run = count,
                          .mem = copy_mem,
                          .mem_len = sizeof(copy_mem)};
    struct rebase_args a = {.name = c->new_cnt ? "new" : "",
                            .format = c->new_cnt ? c->link[c->new[0]].format : "",
                            .count = count,
                            .work = work,
                            .work_len = sizeof(work)};
    told = 0;
    *r = (struct run_result){0};
    int rc = run_open(c, b, false, e);
    if (rc)
        return rc;
    if (c->new_cnt)
        a.new_backing = &c->link[c->new[0]].img;
    rc = plan_rebase(&c->overlay.img, &a, &h, e);
    r->clusters = h.clusters_copied;
    r->bytes = h.bytes_copied;
    r->length = h.length[0];
    r->epochs = told;
    return rc;
}
