/* SPDX-License-Identifier: MIT
 *
 * See vmdk_set.h: the box, and sets made in it.
 */
#include "vmdk_set.h"

#include "test.h"
#include "vmdk_make.h"

enum { PLACE_BITS = 36, TEXT = 64 << 10 };

static u64 place(unsigned i)
{
    return (u64)i << PLACE_BITS;
}

/* Where the length is, plus one; 0: there is no such file. */
static u64 length_at(unsigned i)
{
    return place(SET_FILES) + i * 512ull;
}

/* ---- the box ---- */

void vmdk_set_init(struct blk_mem *box)
{
    blk_mem_init(box, place(SET_FILES) + SET_FILES * 512ull, 512);
}

static u64 stored(const struct blk_mem *box, unsigned i)
{
    u8 p[8];
    blk_mem_get(box, length_at(i), p, 8);
    return le64(p);
}

bool vmdk_set_exists(const struct blk_mem *box, unsigned i)
{
    return stored(box, i) != 0;
}

u64 vmdk_set_length(const struct blk_mem *box, unsigned i)
{
    u64 v = stored(box, i);
    return v ? v - 1 : 0;
}

static void set_length(struct blk_mem *box, unsigned i, u64 v)
{
    u8 p[8];
    put_le64(p, v);
    blk_mem_put(box, length_at(i), p, 8);
}

void vmdk_set_truncate(struct blk_mem *box, unsigned i, u64 length)
{
    u64 old = vmdk_set_length(box, i);
    if (length < old)
        blk_mem_clear(box, place(i) + length, round_up(old, MEM_PAGE) - length);
    set_length(box, i, length + 1);
}

void vmdk_set_remove(struct blk_mem *box, unsigned i)
{
    vmdk_set_truncate(box, i, 0);
    set_length(box, i, 0);
}

void vmdk_set_get(const struct blk_mem *box, unsigned i, u64 off, void *buf, size_t len)
{
    u64 length = vmdk_set_length(box, i), have = off < length ? min_u64(len, length - off) : 0;
    blk_mem_get(box, place(i) + off, buf, have);
    memset((u8 *)buf + have, 0, len - have);
}

void vmdk_set_put(struct blk_mem *box, unsigned i, u64 off, const void *buf, size_t len)
{
    blk_mem_put(box, place(i) + off, buf, len);
    set_length(box, i, max_u64(vmdk_set_length(box, i), off + len) + 1);
}

void vmdk_set_extract(const struct blk_mem *box, unsigned i, struct blk_mem *out)
{
    u64 length = vmdk_set_length(box, i), first = place(i) / MEM_PAGE;
    u8 page[MEM_PAGE];
    blk_mem_init(out, 0, 512);
    for (const struct blk_mem *b = box; b; b = b->base)
        for (size_t k = 0; k < b->slots_cnt; k++) {
            u64 n = b->slots[k].page - 1;
            if (!b->slots[k].page || n < first || (n - first) * MEM_PAGE >= length)
                continue;
            vmdk_set_get(box, i, (n - first) * MEM_PAGE, page, sizeof(page));
            blk_mem_put(out, (n - first) * MEM_PAGE, page, sizeof(page));
        }
    out->length = out->blk.size = length;
}

bool vmdk_set_same(const struct blk_mem *a, const struct blk_mem *b)
{
    bool same = true;
    u64 at;
    for (unsigned i = 0; i < SET_FILES && same; i++) {
        struct blk_mem x, y;
        vmdk_set_extract(a, i, &x);
        vmdk_set_extract(b, i, &y);
        same = vmdk_set_exists(a, i) == vmdk_set_exists(b, i) && blk_mem_equal(&x, &y, &at);
        blk_mem_free(&x);
        blk_mem_free(&y);
    }
    return same;
}

/* ---- making ---- */

static bool is(const struct vmdk_set_make *p, const char *word)
{
    return strstr(p->type ? p->type : "twoGbMaxExtentSparse", word) != NULL;
}

static void content(struct blk_mem *box, unsigned i, u64 off, u64 voff, u64 seed)
{
    u8 buf[512];
    u64 state = (seed * 0x9e3779b97f4a7c15ull) ^ (voff + 1);
    for (unsigned k = 0; k < 512; k += 8)
        put_be64(buf + k, rnd(&state));
    vmdk_set_put(box, i, off, buf, 512);
}

static void build_flat(struct blk_mem *box, const struct vmdk_set_make *p, unsigned i, u64 first)
{
    u64 sectors = p->sectors[i], off = p->offset * 512ull, n = p->data ? p->data : 128;
    vmdk_set_truncate(box, i + 1, off + sectors * 512);
    for (u64 s = 0; p->every && s < sectors; s++)
        if (s / 128 % p->every == 0 && s % 128 < n)
            content(box, i + 1, off + s * 512, first + s * 512, p->seed);
    if (p->last)
        content(box, i + 1, off + (sectors - 1) * 512, first + (sectors - 1) * 512, p->seed);
    for (u64 s = 0; i + 1 == p->cnt && s < p->slack; s++)
        content(box, i + 1, off + (sectors + s) * 512, s, 99);
}

static void build_sparse(struct blk_mem *box, const struct vmdk_set_make *p, unsigned i, u64 first)
{
    struct vmdk_make one = {.size = p->sectors[i] * 512,
                            .grain = p->grain,
                            .gtes = p->gtes,
                            .version = p->version,
                            .no_rgd = p->no_rgd,
                            .zeroed = p->zeroed,
                            .every = p->every,
                            .last = p->last,
                            .sectors = p->data,
                            .shuffled = p->shuffled,
                            .short_end = p->short_end,
                            .stale_rest = p->stale_rest,
                            .stale_entries = p->stale_entries && i + 1 == p->cnt,
                            .stale_slack = p->stale_slack,
                            .tables_last = p->tables_last,
                            .slack = i + 1 == p->cnt ? p->slack : 0,
                            .seed = p->seed + i,
                            .extent = true,
                            .first = first};
    struct vmdk_made made;
    struct blk_mem m;
    u8 page[MEM_PAGE];
    vmdk_make(&m, &one, &made);
    vmdk_set_truncate(box, i + 1, m.length);
    for (size_t k = 0; k < m.slots_cnt; k++)
        if (m.slots[k].page && (m.slots[k].page - 1) * MEM_PAGE < m.length) {
            u64 off = (m.slots[k].page - 1) * MEM_PAGE, n = min_u64(MEM_PAGE, m.length - off);
            blk_mem_get(&m, off, page, n);
            vmdk_set_put(box, i + 1, off, page, n);
        }
    blk_mem_free(&m);
}

static u64 put_lines(char *to, const struct vmdk_set_make *p, const char *nl)
{
    u64 len = 0;
    for (unsigned i = 0; i < p->cnt; i++) {
        char name[32] = "a-flat.vmdk";
        if (!is(p, "mono"))
            sprintf(name, "a-%c%03u.vmdk", is(p, "Flat") || is(p, "vmfs") ? 'f' : 's', i + 1);
        len += (u64)sprintf(to + len, "RW %llu %s \"%s\"", (unsigned long long)p->sectors[i],
                            is(p, "vmfs")   ? "VMFS"
                            : is(p, "Flat") ? "FLAT"
                                            : "SPARSE",
                            name);
        if (is(p, "Flat"))
            len += (u64)sprintf(to + len, " %u", p->offset);
        if (i + 1 < p->cnt || !p->last_line)
            len += (u64)sprintf(to + len, "%s%s", nl, p->between ? "# RW in between\n" : "");
    }
    return len;
}

static void build_text(struct blk_mem *box, const struct vmdk_set_make *p, u64 size)
{
    static char buf[TEXT];
    const char *nl = p->crlf ? "\r\n" : "\n";
    u64 len = (u64)sprintf(buf, "# Disk DescriptorFile%s", nl);
    if (p->pad)
        len += (u64)sprintf(buf + len, "#%*s%s", (int)p->pad, "x", nl);
    len += (u64)sprintf(buf + len, "version=1%sCID=12345678%sparentCID=%s%screateType=\"%s\"%s", nl,
                        nl, p->child ? "87654321" : "ffffffff", nl,
                        p->type ? p->type : "twoGbMaxExtentSparse", nl);
    if (!p->no_ddb)
        len += (u64)sprintf(buf + len,
                            "ddb.geometry.cylinders = \"%llu\"%sddb.geometry.heads = \"16\"%s"
                            "ddb.geometry.sectors = \"63\"%sddb.mine = \"kept  as it is\"%s",
                            (unsigned long long)size / 512 / 1008, nl, nl, nl, nl);
    len += (u64)sprintf(buf + len, "# Extent description%s", nl);
    len += put_lines(buf + len, p, nl);
    if (!p->last_line)
        len += (u64)sprintf(buf + len, "%s# The end%s", nl, nl);
    assert(len < sizeof(buf));
    vmdk_set_put(box, 0, 0, buf, len);
    vmdk_set_truncate(box, 0, len + p->tail);
}

void vmdk_set_build(struct blk_mem *box, const struct vmdk_set_make *given)
{
    struct vmdk_set_make p = *given;
    u64 first = 0;
    p.cnt = p.cnt ? p.cnt : 1;
    p.seed = p.seed ? p.seed : 1;
    vmdk_set_init(box);
    for (unsigned i = 0; i < p.cnt; i++) {
        if (is(&p, "Flat") || is(&p, "vmfs"))
            build_flat(box, &p, i, first);
        else
            build_sparse(box, &p, i, first);
        first += p.sectors[i] * 512;
    }
    build_text(box, &p, first);
}

void vmdk_set_text(struct blk_mem *box, const char *from, const char *to)
{
    static char buf[TEXT], out[TEXT];
    memset(buf, 0, sizeof(buf));
    memset(out, 0, sizeof(out));
    vmdk_set_get(box, 0, 0, buf, (size_t)vmdk_set_length(box, 0));
    char *p = strstr(buf, from);
    assert(p);
    memcpy(out, buf, (size_t)(p - buf));
    strcat(out, to);
    strcat(out, p + strlen(from));
    vmdk_set_truncate(box, 0, 0);
    vmdk_set_put(box, 0, 0, out, strlen(out));
}

/* ---- a file as a disk ---- */

static int file_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    struct set_file *f = (struct set_file *)b;
    return f->inner->ops->read(f->inner, place(f->i) + off, buf, len, e);
}

static int file_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    struct set_file *f = (struct set_file *)b;
    return f->inner->ops->write(f->inner, place(f->i) + off, buf, len, e);
}

static int file_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    struct set_file *f = (struct set_file *)b;
    return f->inner->ops->zero(f->inner, place(f->i) + off, len, may_unmap, e);
}

static int file_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    struct set_file *f = (struct set_file *)b;
    return f->inner->ops->discard(f->inner, place(f->i) + off, len, e);
}

static int file_flush(struct blk *b, struct err *e)
{
    struct set_file *f = (struct set_file *)b;
    return f->inner->ops->flush(f->inner, e);
}

int vmdk_set_grow(struct set_file *f, u64 length, struct err *e)
{
    u8 p[512] = {0};
    put_le64(p, length + 1);
    return f->inner->ops->write(f->inner, length_at(f->i), p, sizeof(p), e);
}

/* The file is as long as was granted. */
static int file_grow(struct blk *b, u64 new_size, struct err *e)
{
    (void)b, (void)new_size, (void)e;
    return 0;
}

static const struct blk_ops file_ops = {file_read,  file_write, file_zero, file_discard,
                                        file_flush, file_grow,  NULL};

static void attach(struct vmdk_set *s, struct blk *dev, const struct blk_mem *box, unsigned i)
{
    u8 n = s->img.files;
    struct set_file *f = &s->file[n];
    *f = (struct set_file){{&file_ops, vmdk_set_length(box, i), 512, n, true}, dev, i};
    s->img.file[n] = &f->blk;
}

/* The file that an extent's name means; 0: none that there is. */
static unsigned file_of(const struct blk_mem *box, const struct image_part *part)
{
    char name[IMAGE_NAME_MAX + 1] = "";
    memcpy(name, part->name, part->name_len);
    unsigned i = strcmp(name, "a-flat.vmdk") == 0 ? 1 : 0;
    if (!i && sscanf(name, "a-%*[sf]%3u.vmdk", &i) != 1)
        i = 0;
    return i < SET_FILES && i && vmdk_set_exists(box, i) ? i : 0;
}

int vmdk_set_open(struct vmdk_set *s, struct blk *dev, const struct blk_mem *box,
                  const unsigned *fresh, struct err *e)
{
    static u8 mem[IMAGE_MEM] __attribute__((aligned(4096)));
    struct image_part part;
    bool more;
    memset(s, 0, sizeof(*s));
    attach(s, dev, box, 0);
    int rc = image_open(&s->img, &s->file[0].blk, "vmdk", mem, e);
    for (unsigned i = 0; !rc && i < s->img.parts; i++) {
        rc = s->img.format->part(&s->img, i, &part, &more, e);
        unsigned file = rc ? 0 : file_of(box, &part);
        if (!rc && !file)
            return FAIL(e, ERR_READ_FAILED, "An extent is not there", i, 0);
        for (unsigned k = 1; !rc && k < s->img.files; k++) /* as the launcher has it */
            if (s->file[k].i == file)
                return FAIL(e, ERR_LOOP, "Two lines name one file", i, k);
        attach(s, dev, box, file);
        s->img.files++;
    }
    if (rc || !s->img.parts || (rc = image_reopen(&s->img, e)))
        return rc;
    for (; fresh && *fresh; fresh++) {
        u8 n = s->img.files;
        snprintf(s->name[n], sizeof(s->name[n]), "a-%c%03u.vmdk", s->img.u.vmdk.kind->letter,
                 *fresh);
        attach(s, dev, box, *fresh);
        s->img.file_name[n] = s->name[n];
        s->img.files++;
    }
    return 0;
}
