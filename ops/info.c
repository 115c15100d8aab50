/* SPDX-License-Identifier: MIT
 *
 * info: what the image's header says. Reads the header and what it names, no guest data.
 */
#include "images.h"

_Static_assert(sizeof((instar_InfoResult *)NULL)->facts / sizeof(instar_Fact) == FACTS_MAX &&
                   sizeof((instar_Fact *)NULL)->key == FACT_KEY_MAX &&
                   sizeof((instar_Fact *)NULL)->value.text == FACT_TEXT_MAX,
               "every fact fits");

static void copy_facts(const struct facts *f, instar_InfoResult *r)
{
    r->encrypted = f->encrypted;
    r->dirty = f->dirty;
    r->corrupt = f->corrupt;
    r->backing_name.size = (pb_size_t)f->backing_len;
    memcpy(r->backing_name.bytes, f->backing, f->backing_len);
    memcpy(r->backing_format, f->backing_format, sizeof r->backing_format);
    for (unsigned i = 0; i < f->cnt; i++) {
        const struct fact *x = &f->fact[i];
        instar_Fact *to = &r->facts[r->facts_count++];
        memcpy(to->key, x->key, strlen(x->key) + 1);
        if (x->kind == FACT_TEXT) {
            to->which_value = instar_Fact_text_tag;
            memcpy(to->value.text, x->text, strlen(x->text) + 1);
        } else if (x->kind == FACT_NUMBER) {
            to->which_value = instar_Fact_number_tag;
            to->value.number = x->number;
        } else {
            to->which_value = instar_Fact_flag_tag;
            to->value.flag = x->number != 0;
        }
    }
}

static int copy_extents(struct image *img, instar_InfoResult *r, struct err *e)
{
    static struct image_part part;
    bool more = img->format->part != NULL;
    int rc = 0;
    for (unsigned i = 0; more && !(rc = img->format->part(img, i, &part, &more, e)) && more; i++) {
        instar_InfoExtent *x = &r->extents[r->extents_count++];
        x->name.size = (pb_size_t)part.name_len;
        memcpy(x->name.bytes, part.name, part.name_len);
        memcpy(x->kind, part.kind, strlen(part.kind) + 1);
        x->virtual_size = part.len;
        x->cluster_size = part.unit;
    }
    return rc;
}

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    static struct images all;
    static struct facts facts;
    struct image *img = &all.img[0];
    if (!op->disks)
        return FAIL(e, ERR_PROTOCOL, "info takes a disk", 0, 0);
    images_alloc(&all, op);
    int rc = images_open(&all, op, out, e);
    if (rc || (rc = images_parts(&all, img, out, e)) || images_wait(out) ||
        (rc = img->format->facts(img, &facts, e)))
        return rc;
    instar_InfoResult *r = &out->result.info;
    out->which_result = instar_Outcome_info_tag;
    memcpy(r->format, img->format->name, strlen(img->format->name) + 1);
    r->virtual_size = round_up(img->size, 512); /* as qemu's block layer counts */
    r->cluster_size = img->unit;
    r->probed = img->probed;
    copy_facts(&facts, r);
    return copy_extents(img, r, e);
}
