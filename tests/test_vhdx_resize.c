/* SPDX-License-Identifier: MIT
 *
 * Growing and shrinking VHDX images: seeded pairs over every shape of the maker, held against the
 * judge and read byte for byte through map(); limits; preallocation; disks of 64 TiB; what is
 * refused leaves the file as it was.
 */
#include "vhdx_run.h"

#include "test.h"

#include <time.h>

enum { KI = 1 << 10, MI = 1 << 20 };

static u64 random_size(u64 *seed, u64 block, u32 sector, u64 max_blocks)
{
    u64 size = (1 + rnd_below(seed, max_blocks)) * block;
    switch (rnd_below(seed, 4)) {
    case 0:
        return size;
    case 1:
        return size - block + sector * (1 + rnd_below(seed, 3));
    case 2:
        return size - sector;
    default:
        return size - round_down(rnd_below(seed, block), sector);
    }
}

static struct vhdx_make random_shape(u64 *seed)
{
    static const u32 blocks[] = {1, 1, 1, 2, 4, 8, 32, 256};
    struct vhdx_make p = {.seed = rnd(seed) % 100, .block_mib = blocks[rnd_below(seed, 8)]};
    p.sector = rnd_below(seed, 4) ? 512 : 4096;
    u64 max = p.block_mib > 4 ? 20 : 150;
    p.size = random_size(seed, (u64)p.block_mib * MI, p.sector, max);
    p.fixed = rnd_below(seed, 5) == 0;
    p.child = !p.fixed && rnd_below(seed, 4) == 0;
    p.blocks = (u32)rnd_below(seed, 12);
    p.last = rnd_below(seed, 2);
    p.backwards = rnd_below(seed, 3) == 0;
    p.partial = p.child && rnd_below(seed, 2);
    p.stale_tail = rnd_below(seed, 2);
    p.stale_entries = rnd_below(seed, 4) ? 0 : (u32)rnd_below(seed, 3000);
    p.short_end = !p.stale_tail && !p.slack_mib && rnd_below(seed, 3) == 0;
    p.bat_mib = (u32)rnd_below(seed, 3);
    p.log_mib = 1 + (u32)rnd_below(seed, 3);
    p.gap_mib = rnd_below(seed, 4) ? 0 : (u32)rnd_below(seed, 3);
    p.slack_mib = rnd_below(seed, 4) ? 0 : 1 + (u32)rnd_below(seed, 5);
    p.slack_odd = p.slack_mib && rnd_below(seed, 2) ? 512 * (u32)rnd_below(seed, 2000) : 0;
    p.metadata_last = rnd_below(seed, 4) == 0;
    p.short_end &= !p.metadata_last;
    p.unknown = rnd_below(seed, 2);
    p.crooked_size = rnd_below(seed, 3) == 0;
    p.first_rules = rnd_below(seed, 2);
    p.one_header = rnd_below(seed, 4) == 0;
    p.same_headers = !p.one_header && rnd_below(seed, 6) == 0;
    p.void_table = (u8)(rnd_below(seed, 4) == 0 ? 1 + rnd_below(seed, 2) : 0);
    return p;
}

/* What a child cannot do: end inside a block that shows its parent, and grow. */
static bool must_refuse(const struct blk_mem *m, const struct vhdx_verdict *v, u64 new_size,
                        u64 block, u32 ratio)
{
    if (!v->child || new_size <= v->size || v->size % block == 0)
        return false;
    u8 entry[8];
    u64 idx = v->size / block;
    blk_mem_get(m, v->bat_offset + (idx + idx / ratio) * 8, entry, 8);
    return (entry[0] & 7) == 0 || (entry[0] & 7) == 7;
}

static const u8 *guid_of(u8 random)
{
    static u8 g[16];
    memset(g, random, 16);
    g[7] = (u8)((random & 15) | 0x40);
    g[8] = (u8)((random & 63) | 0x80);
    return g;
}

/* One resize, and everything that must hold after it. False: it was refused, as it had to be. */
static bool resize(struct blk_mem *m, u64 new_size, u8 random, enum preallocation prealloc,
                   const struct vhdx_made *made)
{
    u64 block = made->block;
    struct vhdx_verdict old, now;
    struct blk_mem before;
    struct err e = {0};
    struct vhdx_run r = {.new_size = new_size, .random = random, .preallocation = prealloc};
    u64 at;
    vhdx_judge(m, UINT64_MAX, 0, 0, &old);
    bool refused = must_refuse(m, &old, new_size, block, made->ratio);
    u64 keep = min_u64(old.size, new_size);
    vhdx_judge(m, keep, 0, 0, &old);
    blk_mem_over(&before, m);
    struct blk_mem work;
    blk_mem_over(&work, m); /* m stays as it is, so that both can be read */
    vhdx_run_mem(&work, &r, &e);
    if (refused) {
        CHECK_ERR(&e, ERR_UNSUPPORTED_FEATURE);
        CHECK(blk_mem_equal(&work, m, &at));
    } else if (CHECK_ERR(&e, OK)) {
        vhdx_judge(&work, keep, old.size, new_size, &now);
        if (!CHECK(vhdx_judge_clean(&now)))
            printf("    %s %s at %llu\n", now.why, now.first, (unsigned long long)now.first_at);
        CHECK_EQ_U64(now.size, new_size);
        CHECK_EQ_U64(now.hash, old.hash);
        CHECK(now.zero && (now.length % MI == 0 || now.length <= old.length));
        CHECK(vhdx_same_content(&m->blk, &work.blk, keep));
        CHECK(vhdx_reads_zero(&work.blk, keep, new_size));
        CHECK(!memcmp(now.file_guid, guid_of(random), 16) &&
              !memcmp(now.data_guid, guid_of(random), 16));
        CHECK(!memcmp(now.disk_guid, old.disk_guid, 16) && now.unknown_hash == old.unknown_hash);
        CHECK_EQ_U64(now.sequence_number, old.sequence_number + 6);
        CHECK(now.stale <= old.stale && now.bat_length >= now.entries * 8);
        CHECK(new_size > old.size || now.length <= round_up(old.length, block));
    }
    if (!refused) { /* m becomes what work is */
        struct blk_mem flat;
        blk_mem_init(&flat, 0, m->blk.sector);
        u8 page[MEM_PAGE];
        for (const struct blk_mem *l = &work; l; l = l->base)
            for (size_t i = 0; i < l->slots_cnt; i++)
                if (l->slots[i].page && (l->slots[i].page - 1) * MEM_PAGE < work.length &&
                    !blk_mem_hole(&work, (l->slots[i].page - 1) * MEM_PAGE, 1)) {
                    u64 off = (l->slots[i].page - 1) * MEM_PAGE;
                    blk_mem_get(&work, off, page, MEM_PAGE);
                    blk_mem_put(&flat, off, page, MEM_PAGE);
                }
        blk_mem_truncate(&flat, work.length);
        blk_mem_free(&work);
        blk_mem_free(m);
        u32 sector = m->blk.sector;
        *m = flat;
        m->blk.sector = sector;
    } else {
        blk_mem_free(&work);
    }
    blk_mem_free(&before);
    return !refused;
}

static void pairs(void)
{
    u64 seed = test_seed(0x6a09e667f3bcc908);
    unsigned done = 0, refused = 0, fixed = 0, children = 0, n = 0;
    for (; done < 220; n++) {
        struct vhdx_make p = random_shape(&seed);
        struct vhdx_made made;
        struct blk_mem m;
        u64 block = (u64)p.block_mib * MI;
        vhdx_make(&m, &p, &made);
        m.blk.sector = rnd_below(&seed, 4) || m.length % 4096 ? 512 : 4096;
        u64 first = random_size(&seed, block, p.sector, p.block_mib > 4 ? 40 : 500);
        u64 second = random_size(&seed, block, p.sector, made.blocks);
        if (first <= p.size)
            first = p.size + block + p.sector;
        if (second >= first)
            second = p.sector;
        test_note("pair %u: block %u MiB, sector %u, %llu -> %llu -> %llu -> again%s%s", n,
                  p.block_mib, p.sector, (unsigned long long)p.size, (unsigned long long)first,
                  (unsigned long long)second, p.fixed ? ", fixed" : "", p.child ? ", child" : "");
        enum preallocation how = p.child || rnd_below(&seed, 4) || first - p.size > 64 * MI
                                     ? PREALLOC_OFF
                                     : 2 + (enum preallocation)rnd_below(&seed, 2);
        bool ok = resize(&m, first, 1, how, &made);
        refused += !ok;
        if (resize(&m, ok ? second : p.sector, 2, PREALLOC_OFF, &made) && ok) {
            refused += !resize(&m, first + block / 2, 3, PREALLOC_OFF, &made);
            done++;
            fixed += p.fixed;
            children += p.child;
        }
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %u pairs (%u fixed, %u differencing); %u growths refused of %u images\n", done, fixed,
           children, refused, n);
    CHECK(fixed > 20 && children > 20 && refused > 3);
}

static void limits(void)
{
    struct vhdx_make p = {.size = 20 * MI, .block_mib = 8, .sector = 4096, .blocks = 1};
    struct vhdx_made made;
    struct blk_mem m, before;
    u64 at;
    vhdx_make(&m, &p, &made);
    blk_mem_over(&before, &m);
    const struct {
        u64 size;
        enum preallocation how;
        enum err_code want;
    } tries[] = {{20 * MI + 512, 0, ERR_INVALID_NEW_SIZE},
                 {TI(64) + 4096, 0, ERR_INVALID_NEW_SIZE},
                 {UINT64_MAX - 4095, 0, ERR_INVALID_NEW_SIZE},
                 {8 * MI + 2048, 0, ERR_INVALID_NEW_SIZE},
                 {30 * MI, PREALLOC_METADATA, ERR_PREALLOCATION_UNSUPPORTED}};
    for (unsigned i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
        struct vhdx_run r = {.new_size = tries[i].size, .preallocation = tries[i].how};
        struct err e = {0};
        test_note("try %u", i);
        vhdx_run_mem(&m, &r, &e);
        CHECK_ERR(&e, tries[i].want);
        CHECK(blk_mem_equal(&m, &before, &at));
    }
    struct vhdx_run dry = {.new_size = 99 * MI, .dry_run = true};
    struct vhdx_run poor = {.new_size = TI(1), .preallocation = PREALLOC_FALLOC, .refuse = true};
    struct err e = {0};
    CHECK(!vhdx_run_mem(&m, &dry, &e) && blk_mem_equal(&m, &before, &at) && !dry.more);
    CHECK(vhdx_run_mem(&m, &poor, &e) && e.code == ERR_NO_SPACE);
    CHECK(blk_mem_equal(&m, &before, &at));
    blk_mem_free(&before);
    blk_mem_free(&m);
    p.child = true;
    vhdx_make(&m, &p, &made);
    struct vhdx_run child = {.new_size = 99 * MI, .preallocation = PREALLOC_FULL};
    e = (struct err){0};
    CHECK(vhdx_run_mem(&m, &child, &e) && e.code == ERR_PREALLOCATION_UNSUPPORTED);
    blk_mem_free(&m);
    p.child = false;
    p.sequence_number = UINT64_MAX - 3;
    vhdx_make(&m, &p, &made);
    blk_mem_over(&before, &m);
    e = (struct err){0};
    CHECK(vhdx_resize_mem(&m, 99 * MI, 1, &e) && e.code == ERR_UNSUPPORTED_FEATURE);
    CHECK(blk_mem_equal(&m, &before, &at));
    blk_mem_free(&before);
    blk_mem_free(&m);
}

/* Disks of the largest size, in the time and space that their BAT takes. */
static void largest(void)
{
    static const struct {
        u64 size, new_size;
        u32 block_mib, bat_mib;
        bool child;
        u64 written; /* at most */
    } cases[] = {
        {TI(1), TI(64), 64, 0, false, 2 * MI},    {TI(1), TI(64), 4, 0, false, 4 * MI},
        {TI(64) - MI, TI(64), 1, 513, false, MI}, {TI(64), TI(1), 1, 0, false, MI},
        {TI(64), 512, 32, 0, false, MI},          {TI(1), TI(64), 32, 0, true, 32 * MI},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct vhdx_make p = {.size = cases[i].size,
                              .block_mib = cases[i].block_mib,
                              .bat_mib = cases[i].bat_mib,
                              .child = cases[i].child,
                              .blocks = 5};
        struct vhdx_made made;
        struct vhdx_verdict old, now;
        struct blk_mem m;
        struct err e = {0};
        struct timespec t0, t1;
        u64 keep = min_u64(p.size, cases[i].new_size);
        test_note("case %u", i);
        vhdx_make(&m, &p, &made);
        vhdx_judge(&m, keep, 0, 0, &old);
        m.bytes_written = 0;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        vhdx_resize_mem(&m, cases[i].new_size, 1, &e);
        clock_gettime(CLOCK_MONOTONIC, &t1);
        CHECK_ERR(&e, OK);
        u64 written = m.bytes_written;
        vhdx_judge(&m, keep, 0, 0, &now);
        CHECK(vhdx_judge_clean(&now) && now.size == cases[i].new_size && now.hash == old.hash);
        CHECK(now.stale == 0 && written <= cases[i].written);
        printf("  case %u: %.2f s, %llu bytes written, BAT of %llu MiB\n", i,
               (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9,
               (unsigned long long)written, (unsigned long long)now.bat_length / MI);
        blk_mem_free(&m);
    }
}

/* What a shrink gives back: the end of the file, holes before it; a fixed disk keeps its room. */
static void given_back(void)
{
    for (int fixed = 0; fixed < 2; fixed++) {
        struct vhdx_make p = {.size = 64 * MI, .blocks = 64, .fixed = fixed};
        struct vhdx_made made;
        struct vhdx_verdict v;
        struct blk_mem m;
        struct err e = {0};
        vhdx_make(&m, &p, &made);
        vhdx_resize_mem(&m, 16 * MI, 1, &e);
        CHECK_ERR(&e, OK);
        CHECK_EQ_U64(m.length, made.payload + 16 * MI);
        vhdx_judge(&m, 0, 0, 0, &v);
        CHECK(vhdx_judge_clean(&v) && v.present == 16);
        blk_mem_free(&m);
        p.backwards = true; /* what stays lies last */
        vhdx_make(&m, &p, &made);
        CHECK(!blk_mem_hole(&m, made.payload, MI));
        vhdx_resize_mem(&m, 16 * MI, 1, &e);
        CHECK_ERR(&e, OK);
        CHECK_EQ_U64(m.length, made.length);
        CHECK(blk_mem_hole(&m, made.payload, MI) == !fixed);
        vhdx_judge(&m, 0, 0, 0, &v);
        CHECK(vhdx_judge_clean(&v) && v.present == 16);
        blk_mem_free(&m);
    }
    struct vhdx_make p = {.size = 64 * MI, .fixed = true, .metadata_last = true};
    struct vhdx_made made;
    struct blk_mem m;
    struct err e = {0};
    vhdx_make(&m, &p, &made);
    blk_mem_put(&m, made.bat, "\2\0\0\0\0\0\0", 8); /* as qemu leaves fixed disks: a zero block */
    vhdx_resize_mem(&m, 16 * MI, 1, &e);
    CHECK_ERR(&e, OK);
    CHECK(m.length >= 20 * MI);
    blk_mem_free(&m);
}

/* An image in a device grows into it, and no farther. */
static void in_a_device(void)
{
    struct vhdx_make p = {.size = 9 * MI, .blocks = 5, .slack_mib = 30, .slack_odd = MI / 2};
    struct vhdx_made made;
    struct vhdx_verdict v;
    struct blk_mem m;
    struct err e = {0};
    struct vhdx_run r = {.new_size = TI(1), .refuse = true};
    vhdx_make(&m, &p, &made);
    CHECK(!vhdx_run(&m.blk, &r, &e) && r.needs == 0 && m.length == made.length);
    r.new_size = TI(1) + 10 * MI;
    r.preallocation = PREALLOC_FALLOC;
    CHECK(!vhdx_run(&m.blk, &r, &e) && r.needs == 0 && m.length == made.length);
    vhdx_judge(&m, 0, p.size, TI(1) + 10 * MI, &v);
    CHECK(vhdx_judge_clean(&v) && v.zero && v.present == 5 + 10);
    r.new_size = TI(1) + 40 * MI;
    CHECK(vhdx_run(&m.blk, &r, &e) == ERR_NO_SPACE);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(in_a_device);
    RUN(pairs);
    RUN(limits);
    RUN(largest);
    RUN(given_back);
    return test_end();
}
