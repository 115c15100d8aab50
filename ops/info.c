/* SPDX-License-Identifier: MIT
 *
 * info: what the image's header says. Reads the header and what it names, no guest data.
 */
#include "op.h"

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

int op_run(struct op *op, instar_Outcome *out, struct err *e)
{
    static struct image img;
    static struct facts facts;
    void *mem = op_alloc(IMAGE_MEM);
    if (op->disks != 1)
        return FAIL(e, ERR_PROTOCOL, "info takes one disk", 0, op->disks);
    int rc = image_open(&img, op->disk[0], op->request->disks[0].format, mem, e);
    if (rc || (rc = img.format->facts(&img, &facts, e)))
        return rc;
    instar_InfoResult *r = &out->result.info;
    out->which_result = instar_Outcome_info_tag;
    memcpy(r->format, img.format->name, strlen(img.format->name) + 1);
    r->virtual_size = round_up(img.size, 512); /* as qemu's block layer counts */
    r->cluster_size = img.unit;
    r->probed = img.probed;
    copy_facts(&facts, r);
    return 0;
}
