/* SPDX-License-Identifier: MIT
 *
 * See vmdk_set.h: resizing a set, as the operation and the launcher would, and judging it.
 */
#include "vmdk_set.h"

#include "test.h"
#include "vmdk_judge.h"

#include <stdarg.h>

/* ---- resizing ---- */

static struct vmdk_set_out *into;
static struct vmdk_set set; /* at work */
static u64 promised;

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    int rc = 0;
    (void)h;
    if (epoch == 0)
        promised = max_u64(n->eventual, n->length[0]);
    assert(n->length[0] <= promised); /* what is not asked for at once may be refused half-way */
    for (unsigned i = 0; !rc && i < IMAGE_FILES; i++) {
        assert(!epoch || !i || !n->length[i]);
        if (n->length[i]) /* whole sectors, as QEMU has it */
            rc = vmdk_set_grow(&set.file[i], round_up(n->length[i], 512), e);
    }
    return rc;
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)crc, (void)e;
    assert(slot == 0); /* the launcher journals the image, and none of the files that it names */
    for (unsigned i = 0; i < n; i++, into->undo++)
        if (into->undo < 64)
            into->undo_at[into->undo] = off + i * 512ull;
    return 0;
}

static struct resize_args arguments(u64 new_size)
{
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    return (struct resize_args){
        .new_size = new_size, .may_shorten = true, .work = work, .work_len = sizeof(work)};
}

int vmdk_set_prepare(struct blk_mem *box, u64 new_size, struct vmdk_set_out *out, struct err *e)
{
    static struct vmdk_set s;
    struct plan_files f;
    *out = (struct vmdk_set_out){0};
    int rc = vmdk_set_open(&s, &box->blk, box, NULL, e);
    struct resize_args a = arguments(rc ? 0 : plan_fit(&s.img, new_size));
    if (rc || (rc = plan_files(&s.img, &a, &f, e)))
        return rc;
    out->dropped = s.img.parts - f.keep;
    for (unsigned i = 0, n = f.number; i < f.add; n++) {
        assert(n < SET_FILES);
        if (vmdk_set_exists(box, n))
            continue;
        vmdk_set_truncate(box, n, 0);
        out->fresh[i++] = n;
    }
    return 0;
}

int vmdk_set_plan(struct blk *dev, const struct blk_mem *box, u64 new_size,
                  struct vmdk_set_out *out, struct err *e)
{
    static u8 copy_mem[4 * BLK_IO_MAX] __attribute__((aligned(4096)));
    struct plan_host h = {.need = need, .undo = undo, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    int rc = vmdk_set_open(&set, dev, box, out->fresh, e);
    if (rc)
        return rc;
    struct resize_args a = arguments(plan_fit(&set.img, new_size));
    into = out;
    promised = 0;
    rc = plan_resize(&set.img, &a, &h, e);
    out->files = set.img.files;
    for (unsigned i = 0; i < out->files; i++) {
        out->length[i] = h.length[i];
        out->of[i] = set.file[i].i;
    }
    return rc;
}

int vmdk_set_resize(struct blk_mem *box, u64 new_size, struct vmdk_set_out *out, struct err *e)
{
    struct blk_mem before, now;
    u64 at;
    vmdk_set_extract(box, 0, &before);
    int rc = vmdk_set_prepare(box, new_size, out, e);
    if (!rc)
        rc = vmdk_set_plan(&box->blk, box, new_size, out, e);
    vmdk_set_extract(box, 0, &now);
    if (rc && blk_mem_equal(&before, &now, &at))
        for (unsigned i = 0; out->fresh[i]; i++)
            vmdk_set_remove(box, out->fresh[i]);
    for (unsigned i = 0; !rc && i < out->files; i++)
        if (i + out->dropped < out->files)
            vmdk_set_truncate(box, out->of[i], out->length[i]);
        else
            vmdk_set_remove(box, out->of[i]);
    blk_mem_free(&before);
    blk_mem_free(&now);
    return rc;
}

/* ---- judging ---- */

static void fault(struct vmdk_set_verdict *v, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (!v->faults++)
        vsnprintf(v->first, sizeof(v->first), fmt, ap);
    va_end(ap);
}

static void add_hash(u64 *h, const char *p, size_t n)
{
    while (n--)
        *h = (*h ^ (u8)*p++) * 0x100000001b3ull;
}

/* An extent's line; false: the text is damaged there. */
static bool extent(const struct blk_mem *box, const char *line, u64 upto, u64 zero_from,
                   struct vmdk_set_verdict *v, bool seen[SET_FILES])
{
    unsigned long long sectors, off = 0;
    char type[16], name[64];
    struct vmdk_verdict one = {.zero = true, .opens = true};
    struct blk_mem m;
    unsigned i = 0;
    int n = sscanf(line, "RW %llu %15s \"%63[^\"]\" %llu", &sectors, type, name, &off);
    bool flat = strcmp(type, "FLAT") == 0;
    if (n != (flat ? 4 : 3))
        return false;
    if (strcmp(name, "a-flat.vmdk") == 0)
        i = 1;
    else if (sscanf(name, flat ? "a-f%3u.vmdk" : "a-s%3u.vmdk", &i) != 1)
        return false;
    if (!i || i >= SET_FILES || !vmdk_set_exists(box, i) || seen[i]) {
        fault(v, "%s is not there, or named twice", name);
        return true;
    }
    seen[i] = true;
    vmdk_set_extract(box, i, &m);
    if (flat && off * 512 + sectors * 512 > m.length)
        fault(v, "%s is too short", name);
    if (flat)
        vmdk_judge_flat(&m, off * 512, sectors * 512, v->size, upto, zero_from, UINT64_MAX, &one);
    else
        vmdk_judge_extent(&m, v->size, upto, zero_from, UINT64_MAX, &one);
    blk_mem_free(&m);
    if (!one.opens || one.faults)
        fault(v, "%s: %s %s", name, one.why ? one.why : "", one.first);
    v->size += one.size;
    v->line_size += sectors * 512;
    v->hash += one.hash;
    v->zero &= one.zero;
    v->absent += one.absent;
    v->stale += one.stale;
    v->torn += one.opens && one.torn && one.faults == one.torn;
    v->grains += one.grains;
    v->extents++;
    return true;
}

void vmdk_set_judge(const struct blk_mem *box, u64 upto, u64 zero_from, struct vmdk_set_verdict *v)
{
    static char text[64 << 10];
    bool seen[SET_FILES] = {false};
    unsigned long long cylinders = 0;
    *v = (struct vmdk_set_verdict){.zero = true, .text_hash = 7};
    u64 len = vmdk_set_length(box, 0);
    memset(text, 0, sizeof(text));
    assert(len < sizeof(text));
    vmdk_set_get(box, 0, 0, text, len);
    if (len && text[len - 1] && text[len - 1] != '\n')
        text[len] = '\n'; /* with its end, every line is the same wherever it stands */
    v->opens =
        strstr(text, "\nCID=") && strstr(text, "\nparentCID=") && strstr(text, "createType=\"");
    v->why = "the descriptor is damaged";
    for (char *line = text; *line && v->opens;) {
        size_t n = strcspn(line, "\n");
        if (strncmp(line, "RW ", 3) == 0)
            v->opens = extent(box, line, upto, zero_from, v, seen);
        else if (sscanf(line, "ddb.geometry.cylinders = \"%llu\"", &cylinders) != 1)
            add_hash(&v->text_hash, line, n + 1);
        else if (!strchr(line + 26, '"'))
            v->opens = false;
        line += n + (line[n] != 0);
    }
    v->opens &= v->extents > 0;
    v->geometry = !strstr(text, "cylinders") || cylinders == v->line_size / 512 / 1008;
}
