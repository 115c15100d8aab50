/* SPDX-License-Identifier: MIT
 *
 * Rebasing VMDKs. The reference: the descriptor's two lines, edited in place, held against an edit
 * line by line, over texts of every shape; what a crash leaves is the old text or the new one.
 */
#include "blk_record.h"
#include "plan.h"
#include "test.h"
#include "vmdk_make.h"

enum { TEXT = 64 << 10, OTHER_CID = 0xabc0123 };

/* ---- running ---- */

struct outcome {
    u64 undo, length, clusters, bytes;
};
static struct outcome into;

static int need(struct plan_host *h, u32 epoch, const struct plan_need *n, struct err *e)
{
    (void)h, (void)epoch, (void)n, (void)e;
    return 0;
}

static int undo(struct plan_host *h, u8 slot, u64 off, const u32 *crc, unsigned n, struct err *e)
{
    (void)h, (void)slot, (void)off, (void)crc, (void)e;
    into.undo += n;
    return 0;
}

static int rebase(struct image *img, struct rebase_args a, struct outcome *out, struct err *e)
{
    static u8 copy_mem[4 * BLK_IO_MAX] __attribute__((aligned(4096)));
    static u8 work[PLAN_WORK] __attribute__((aligned(4096)));
    struct plan_host h = {.need = need, .undo = undo, .mem = copy_mem, .mem_len = sizeof(copy_mem)};
    a.work = work;
    a.work_len = sizeof(work);
    into = (struct outcome){0};
    int rc = plan_rebase(img, &a, &h, e);
    *out = into;
    out->length = h.length[0];
    out->clusters = h.clusters_copied;
    out->bytes = h.bytes_copied;
    return rc;
}

static int open_on(struct blk *b, const char *format, struct image *img, struct err *e)
{
    static u8 image_mem[IMAGE_MEM] __attribute__((aligned(4096)));
    return image_open(img, b, format, image_mem, e);
}

static int rebase_unsafe(struct blk *b, struct image *to, const char *name, const char *format,
                         struct outcome *out, struct err *e)
{
    struct image img;
    int rc = open_on(b, "vmdk", &img, e);
    return rc ? rc
              : rebase(&img,
                       (struct rebase_args){
                           .new_backing = to, .unsafe = true, .name = name, .format = format},
                       out, e);
}

/* A new parent that is a VMDK with this CID. */
static struct image *parent(u32 cid)
{
    static struct image img;
    static struct vmdk_descriptor text;
    img = (struct image){.format = &vmdk_format};
    text = (struct vmdk_descriptor){.cid = cid};
    img.u.vmdk.text = &text;
    return &img;
}

/* ---- the reference ---- */

static u64 slot_of(const struct blk_mem *m)
{
    u8 n[8];
    blk_mem_get(m, VMH_DESCRIPTOR_SIZE, n, 8);
    return le64(n) * 512;
}

/* The first line of `text` that begins with the word; its length, with its end, in *len. */
static const char *line_of(const char *text, const char *word, size_t *len)
{
    for (const char *p = text; *p; p += *len) {
        const char *end = strchr(p, '\n');
        *len = end ? (size_t)(end + 1 - p) : strlen(p);
        if (!strncmp(p, word, strlen(word)))
            return p;
    }
    return NULL;
}

/* `old` with another parent, into `new`. */
static void expect(const char *old, const char *name, u32 cid, char *new)
{
    static char was[TEXT];
    size_t n, skip;
    const char *p = line_of(old, "parentCID", &n);
    const char *eol = strstr(old, "\r\n") ? "\r\n" : "\n";
    snprintf(was, sizeof(was), "%.*sparentCID=%08x%s%s", (int)(p - old), old, cid, eol, p + n);
    p = line_of(was, "parentFileNameHint", &skip);
    if (!p) {
        p = line_of(was, "createType", &n);
        p += n;
        skip = 0;
    }
    snprintf(new, TEXT, "%.*s%s%s%s%s", (int)(p - was), was, *name ? "parentFileNameHint=\"" : "",
             name, *name ? "\"" : "", *name ? eol : "");
    strcat(new, p + skip);
}

static void random_name(char *name, u64 *seed)
{
    u64 len = rnd_below(seed, 4) ? rnd_below(seed, 60) : rnd_below(seed, 1024);
    for (u64 i = 0; i < len; i++)
        name[i] = (char)(' ' + rnd_below(seed, 95));
    for (u64 i = 0; i < len; i++)
        if (name[i] == '"')
            name[i] = (char)0xc3;
    name[len] = 0;
}

static struct vmdk_make random_shape(u64 *seed)
{
    struct vmdk_make p = {.size = MI(1), .grain = 8, .every = 9, .sectors = 1, .seed = rnd(seed)};
    p.child = rnd_below(seed, 2);
    p.crlf = !p.child && rnd_below(seed, 2);
    p.no_ddb = rnd_below(seed, 3) == 0;
    p.pad = rnd_below(seed, 2) ? 0 : (u32)rnd_below(seed, 900);
    p.slot = 3 + (u32)rnd_below(seed, 20);
    p.full = rnd_below(seed, 8) == 0;
    return p;
}

/* All but the descriptor's text is what it was. */
static bool rest_is_same(struct blk_mem *a, const struct blk_mem *b, const char *text)
{
    u64 at;
    blk_mem_put(a, 512, text, slot_of(a));
    return blk_mem_equal(a, b, &at);
}

static void references(void)
{
    static char old[TEXT], want[TEXT], got[TEXT];
    u64 seed = test_seed(0x9216d5d98979fb1b), small = 0, large = 0, refused = 0;
    for (int i = 0; i < 1500; i++) {
        struct vmdk_make p = random_shape(&seed);
        struct vmdk_made made;
        struct blk_mem m, copy;
        struct outcome out;
        struct err e = {0};
        char name[1100];
        random_name(name, &seed);
        bool vmdk = rnd_below(&seed, 2);
        u32 cid = *name && vmdk ? (u32)rnd_below(&seed, 1ull << 32) : VMDK_NO_PARENT;
        struct image raw = {.format = &raw_format};
        test_note("reference %d, '%s', %08x, slot %u pad %u child %d crlf %d full %d", i, name, cid,
                  p.slot, p.pad, p.child, p.crlf, p.full);
        vmdk_make(&m, &p, &made);
        memset(old, 0, sizeof(old));
        memset(want, 0, sizeof(want));
        blk_mem_get(&m, 512, old, slot_of(&m));
        expect(old, name, cid, want);
        blk_mem_over(&copy, &m);
        rebase_unsafe(&copy.blk, vmdk ? parent(cid) : &raw, name, vmdk ? "vmdk" : "raw", &out, &e);
        if (strlen(want) > slot_of(&m)) {
            CHECK_ERR(&e, ERR_DESCRIPTOR_TOO_LARGE);
            u64 at;
            CHECK(blk_mem_equal(&copy, &m, &at));
            refused++;
        } else {
            CHECK_ERR(&e, OK);
            memset(got, 0, sizeof(got));
            blk_mem_get(&copy, 512, got, slot_of(&copy));
            CHECK(!memcmp(got, want, slot_of(&copy)));
            CHECK_EQ_U64(out.length, m.length);
            CHECK(rest_is_same(&copy, &m, old));
            small += !out.undo, large += out.undo > 0;
        }
        blk_mem_free(&copy);
        blk_mem_free(&m);
    }
    test_note("%s", "");
    printf("  %llu in one sector, %llu under the journal, %llu refused\n",
           (unsigned long long)small, (unsigned long long)large, (unsigned long long)refused);
    CHECK(small > 200 && large > 200 && refused > 50);
}

/* One reference over a text; what it becomes, or the error. */
static void edit(const char *from, const char *to, struct image *new, const char *name,
                 const char *format, enum err_code code, const char *line, const char *line_cid)
{
    struct vmdk_make p = {.size = MI(1), .grain = 8, .child = true};
    struct vmdk_made made;
    struct blk_mem m, copy;
    struct outcome out;
    struct err e = {0};
    static char text[TEXT];
    u64 at;
    vmdk_make(&m, &p, &made);
    if (from)
        vmdk_make_text(&m, from, to);
    blk_mem_over(&copy, &m);
    rebase_unsafe(&copy.blk, new, name, format, &out, &e);
    CHECK_ERR(&e, code);
    if (code) {
        CHECK(blk_mem_equal(&copy, &m, &at));
    } else {
        memset(text, 0, sizeof(text));
        blk_mem_get(&copy, 512, text, slot_of(&copy));
        if (!CHECK(line ? strstr(text, line) != NULL : !strstr(text, "Hint")) ||
            !CHECK(strstr(text, line_cid)))
            printf("%s\n", text);
    }
    blk_mem_free(&copy);
    blk_mem_free(&m);
}

static void odd_texts(void)
{
    static const char hint[] = "parentFileNameHint=\"parent.vmdk\"\n";
    struct image lost = {0};
    edit(NULL, "", parent(OTHER_CID), "n", "vmdk", OK, "\nparentFileNameHint=\"n\"\n",
         "\nparentCID=0abc0123\n");
    edit(hint, "  parentFileNameHint =  \"p\"  \n", parent(1), "new one", "vmdk", OK,
         "\n  parentFileNameHint =  \"new one\"  \n", "\nparentCID=00000001\n");
    edit(hint, "parentFileNameHint=p\n", parent(1), "n", "vmdk", OK, "\nparentFileNameHint=\"n\"\n",
         "parentCID=00000001\n");
    edit(hint, "parentFileNameHint=\"\"\n", parent(1), "n", "vmdk", OK,
         "\nparentFileNameHint=\"n\"\n", "parentCID=00000001\n");
    edit("parentCID=87654321", "parentCID = 7", parent(1), "n", "vmdk", OK,
         "\nparentFileNameHint=\"n\"\n", "parentCID = 00000001\n");
    edit(hint, "# parentFileNameHint=\"p\"\n", parent(1), "n", "vmdk", OK,
         "\nparentFileNameHint=\"n\"\n", "\n# parentFileNameHint=\"p\"\n");
    /* one that cannot be opened is taken for the old one at a new place */
    edit(NULL, "", NULL, "moved", "", OK, "Hint=\"moved\"", "parentCID=87654321\n");
    edit(NULL, "", &lost, "moved", "vmdk", OK, "Hint=\"moved\"", "parentCID=87654321\n");
    edit(NULL, "", NULL, "moved", "qcow2", OK, "Hint=\"moved\"", "parentCID=ffffffff\n");
    edit("parentCID=87654321", "parentCID=ffffffff", NULL, "moved", "vmdk",
         ERR_NEW_BACKING_INCOMPATIBLE, "", "");
    edit(NULL, "", NULL, "", "", OK, NULL, "parentCID=ffffffff\n");
    edit(hint, "parentFileNameHint=\"a\"\nparentFileNameHint=\"b\"\n", NULL, "", "",
         ERR_OVERLAY_CORRUPT, "", "");
    edit(NULL, "", parent(1), "a\"b", "vmdk", ERR_INVALID_OPTION, "", "");
    edit(NULL, "", parent(1), "a\nb", "vmdk", ERR_INVALID_OPTION, "", "");
}

/* Old bytes behind the text are not taken for a part of it. */
static void behind_the_text(void)
{
    struct vmdk_make p = {.size = MI(1), .grain = 8};
    struct vmdk_made made;
    struct blk_mem m;
    struct outcome out;
    struct err e = {0};
    char text[4096] = "", junk[600];
    vmdk_make(&m, &p, &made);
    blk_mem_get(&m, 512, text, sizeof(text) - 1);
    memset(junk, 'x', sizeof(junk));
    blk_mem_put(&m, 512 + strlen(text) + 1, junk, sizeof(junk));
    CHECK(!rebase_unsafe(&m.blk, parent(1), "name", "vmdk", &out, &e));
    blk_mem_get(&m, 512, text, sizeof(text) - 1);
    CHECK(strstr(text, "kept  as it is\"\n") && !strstr(text, "xx"));
    CHECK_ERR(&e, OK);
    blk_mem_free(&m);
}

static void already(void)
{
    struct vmdk_make p = {.size = MI(1), .grain = 8, .child = true};
    struct vmdk_made made;
    struct blk_mem m;
    struct outcome out;
    struct err e = {0};
    vmdk_make(&m, &p, &made);
    CHECK(!rebase_unsafe(&m.blk, parent(0x87654321), "parent.vmdk", "vmdk", &out, &e));
    CHECK(!m.writes && !out.undo);
    CHECK(!rebase_unsafe(&m.blk, parent(0x87654321), "parent2vmdk", "vmdk", &out, &e));
    CHECK(m.writes == 1 && !out.undo); /* as long as the old one, and in its sector */
    blk_mem_free(&m);
}

/* ---- crashes ---- */

struct crash {
    char old[2048], new[2048];
    u64 seen[2];
};

static bool old_or_new(void *ctx, struct blk_mem *state, const char *what)
{
    struct crash *c = ctx;
    char text[2048] = "";
    (void)what;
    blk_mem_get(state, 512, text, sizeof(text) - 1);
    c->seen[0] += !strcmp(text, c->old);
    c->seen[1] += !strcmp(text, c->new);
    return CHECK(!strcmp(text, c->old) || !strcmp(text, c->new));
}

static void crashed_reference(void)
{
    struct vmdk_make p = {.size = MI(1), .grain = 8, .child = true};
    struct vmdk_made made;
    struct blk_mem m;
    struct blk_record r;
    struct outcome out;
    struct crash c = {.seen = {0}};
    struct err e = {0};
    vmdk_make(&m, &p, &made);
    blk_mem_get(&m, 512, c.old, sizeof(c.old) - 1);
    expect(c.old, "a longer name", 99, c.new);
    blk_record_init(&r, &m);
    CHECK(!rebase_unsafe(&r.blk, parent(99), "a longer name", "vmdk", &out, &e) && !out.undo);
    CHECK(blk_record_states(&r, 1, 8, old_or_new, &c) > 2 && c.seen[0] && c.seen[1]);
    blk_record_free(&r);
    blk_mem_free(&m);
}

int main(void)
{
    RUN(references);
    RUN(odd_texts);
    RUN(behind_the_text);
    RUN(already);
    RUN(crashed_reference);
    return test_end();
}
