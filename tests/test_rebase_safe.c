/* SPDX-License-Identifier: MIT
 *
 * A safe rebase of qcow2 overlays: whatever the chains are made of, the guest sees the same before
 * and after. The matrix is by chance, from a seed; what the guest sees is read through formats/ in
 * every case, and by qemu-img through chains of its own in some. Then the crash recorder and the
 * faults: whatever happens, the overlay shows its old content on the old chain, or on the new one
 * if its header says so; and a second run ends what the first has begun.
 */
#include <unistd.h>

#include "blk_fault.h"
#include "blk_record.h"
#include "qcow2_judge.h"
#include "rebase_run.h"
#include "test.h"

enum { CASES = 600, QEMU_EVERY = 15, MOST = 6 << 20 };

static struct run_case c; /* large */

/* ---- second opinions ---- */

static void qemu_options(char *out, size_t size, const char *overlay, const unsigned *chain,
                         unsigned cnt)
{
    size_t n = (size_t)snprintf(out, size, "driver=qcow2,file.filename=%s", overlay);
    char prefix[80] = "";
    for (unsigned i = 0; i < cnt; i++) {
        char name[16];
        snprintf(name, sizeof(name), "link%u", chain[i]);
        strcat(prefix, "backing.");
        n += (size_t)snprintf(out + n, size - n, ",%sdriver=%s,%sfile.filename=%s", prefix,
                              c.link[chain[i]].format, prefix, test_path(name));
        if (strcmp(c.link[chain[i]].format, "qcow2"))
            return; /* it has no holes to see others through, and qemu wants none below it */
    }
    snprintf(out + n, size - n, ",%sbacking=", prefix);
}

static void ask_qemu(const struct blk_mem *after)
{
    char before_is[900], after_is[900], before[256], path[256];
    snprintf(before, sizeof(before), "%s", test_path("before.qcow2"));
    snprintf(path, sizeof(path), "%s", test_path("after.qcow2"));
    CHECK(blk_mem_save(&c.overlay.disk, before) && blk_mem_save(after, path));
    for (unsigned i = 0; i < c.links; i++) {
        char name[16];
        snprintf(name, sizeof(name), "link%u", i);
        CHECK(blk_mem_save(&c.link[i].disk, test_path(name)));
    }
    qemu_options(before_is, sizeof(before_is), before, c.old, c.old_cnt);
    qemu_options(after_is, sizeof(after_is), path, c.new, c.new_cnt);
    CHECK(test_system("qemu-img compare --image-opts %s %s", before_is, after_is) == 0);
    int rc = test_system("qemu-img check --image-opts %s", after_is);
    CHECK(rc == 0 || (rc == 3 && c.shape.above_eof));
    for (unsigned i = 0; i < c.links; i++) {
        char name[16];
        snprintf(name, sizeof(name), "link%u", i);
        unlink(test_path(name));
    }
    unlink(before);
    unlink(path);
}

/* ---- the matrix ---- */

static void note(unsigned i)
{
    char text[200] = "";
    for (unsigned k = 0; k < c.old_cnt; k++)
        sprintf(text + strlen(text), " %s:%llu", c.link[c.old[k]].format,
                (unsigned long long)c.link[c.old[k]].img.size);
    strcat(text, " ->");
    for (unsigned k = 0; k < c.new_cnt; k++)
        sprintf(text + strlen(text), " %u:%s:%llu", c.new[k], c.link[c.new[k]].format,
                (unsigned long long)c.link[c.new[k]].img.size);
    test_note("case %u, v%u, %u bits%s, order %u, %llu bytes, %u snapshots:%s", i, c.shape.version,
              c.shape.cluster_bits, c.shape.ext_l2 ? " extended" : "", c.shape.refcount_order,
              (unsigned long long)c.shape.size, c.shape.snapshots, text);
}

static void matrix(void)
{
    u64 seed = test_seed(0x5be0cd19137e2179), copied = 0, same = 0, asked = 0, epochs = 0;
    for (unsigned i = 0; i < CASES && test_failures() < 3; i++) {
        struct run_result counted, r, again;
        struct verdict old, v;
        struct blk_mem now;
        struct err e = {0};
        u64 at;
        run_make(&c, MOST, &seed);
        c.overlay.disk.blk.sector = i % 4 == 3 ? 4096 : 512;
        note(i);
        run_look(&c);
        qcow2_judge_mem(&c.overlay.disk, 0, 0, 0, &old);
        CHECK(old.opens && !old.corruptions);
        blk_mem_over(&now, &c.overlay.disk);
        CHECK(!run_rebase(&c, &now.blk, true, &counted, &e));
        CHECK_EQ_U64(now.writes, 0);
        CHECK(!run_rebase(&c, &now.blk, false, &r, &e));
        CHECK_ERR(&e, OK);
        CHECK(run_switched(&now.blk));
        CHECK(r.clusters == counted.clusters && r.bytes == counted.bytes);
        blk_mem_truncate(&now, r.length);
        if (!CHECK(run_same(&c, &now.blk, true, &at) && run_same(&c, &now.blk, false, &at)))
            printf("    at %llu\n", (unsigned long long)at);
        qcow2_judge_mem(&now, 0, 0, 0, &v);
        /* What was counted past the end of the file is seen to leak once the file is longer. */
        u64 leaks = old.leaks + (u64)__builtin_popcountll(c.shape.above_eof);
        if (!CHECK(v.opens && !v.corruptions && v.leaks <= leaks))
            printf("    %s\n", v.opens ? v.first : v.why);
        CHECK(v.snapshot_hash == old.snapshot_hash && v.bitmap_hash == old.bitmap_hash);
        CHECK(!run_rebase(&c, &now.blk, false, &again, &e) && !again.clusters && !again.bytes);
        if (i % QEMU_EVERY == 0 && ++asked)
            ask_qemu(&now);
        copied += r.clusters, same += !r.clusters, epochs += r.epochs;
        blk_mem_free(&now);
        run_free(&c);
    }
    test_note("%s", "");
    printf("  %d rebases: %llu clusters copied, %llu times nothing, %llu epochs; qemu-img asked "
           "%llu times\n",
           CASES, (unsigned long long)copied, (unsigned long long)same, (unsigned long long)epochs,
           (unsigned long long)asked);
    CHECK(copied > 10000 && same > 20 && asked >= CASES / QEMU_EVERY);
}

int main(void)
{
    RUN(matrix);
    return test_end();
}
