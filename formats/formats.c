/* SPDX-License-Identifier: MIT
 *
 * formats[], the registry, and opening an image by name or by probing. To add a format: one file
 * and one line here.
 */
#include "format.h"

const struct format *const formats[] = {&qcow2_format, &vhdx_format, &vmdk_format, &vhd_format,
                                        &raw_format,   NULL};

static bool same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static const struct format *choose(struct blk *b, const char *name)
{
    for (const struct format *const *f = formats; *f; f++)
        if (name && name[0] ? same((*f)->name, name) : (*f)->probe(b))
            return *f;
    return NULL;
}

int image_open(struct image *img, struct blk *b, const char *name, void *mem, struct err *e)
{
    *img = (struct image){.file = {b}, .files = 1, .probed = !name || !name[0]};
    window_init(&img->win, mem, IMAGE_WINDOW);
    window_init(&img->win2, (u8 *)mem + IMAGE_WINDOW, IMAGE_WINDOW);
    img->own = (u8 *)mem + 2 * IMAGE_WINDOW;
    img->format = choose(b, name);
    if (!img->format) {
        int rc = FAIL(e, ERR_UNSUPPORTED_FORMAT, "Unknown driver '{name}'", 0, 0);
        err_name(e, name, name ? 64 : 0);
        return rc;
    }
    return img->format->open(img, e);
}

int image_reopen(struct image *img, struct err *e)
{
    window_drop(&img->win);
    window_drop(&img->win2);
    for (u8 i = 0; i < img->files; i++)
        blk_forget(img->file[i]);
    return img->format->open(img, e);
}

static struct fact *next_fact(struct facts *f, const char *key)
{
    assert(f->cnt < FACTS_MAX && strlen(key) < FACT_KEY_MAX);
    f->fact[f->cnt].key = key;
    return &f->fact[f->cnt++];
}

void facts_text(struct facts *f, const char *key, const char *text)
{
    struct fact *x = next_fact(f, key);
    assert(strlen(text) < FACT_TEXT_MAX);
    x->kind = FACT_TEXT;
    x->text = text;
}

void facts_number(struct facts *f, const char *key, u64 number)
{
    struct fact *x = next_fact(f, key);
    x->kind = FACT_NUMBER;
    x->number = number;
}

void facts_bool(struct facts *f, const char *key, bool value)
{
    struct fact *x = next_fact(f, key);
    x->kind = FACT_BOOL;
    x->number = value;
}
