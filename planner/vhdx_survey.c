/* SPDX-License-Identifier: MIT
 *
 * What lies where in a VHDX: a bit for each MiB of the file, set once. Whoever is about to write
 * must know that no two structures share a byte; and where the last one ends.
 */
#include "vhdx_plan.h"

struct survey {
    struct image *img;
    const struct vhdx_work *w;
    struct window win;
    u64 cap; /* MiB that the bitmap reaches */
};

static void survey_init(struct survey *y, struct image *img, const struct vhdx_work *w)
{
    u64 end = max_u64(img->file[0]->size, img->u.vhdx.log.last_file_offset);
    *y = (struct survey){.img = img, .w = w, .cap = 8ull * VHDX_BITMAP_BYTES};
    window_init(&y->win, w->window, VHDX_WINDOW_BYTES);
    /* as far as a block may reach that begins inside the file */
    y->cap = min_u64(y->cap, round_up(div_up(end, VHDX_MIB) + 256, 64));
    memset(w->bitmap, 0, y->cap / 8);
}

static int mark(struct survey *y, u64 off, u64 len, struct err *e)
{
    u8 *map = y->w->bitmap;
    for (u64 i = off / VHDX_MIB, end = (off + len) / VHDX_MIB; i < end; i++) {
        if (i >= y->cap)
            return FAIL(e, ERR_UNSUPPORTED_FEATURE,
                        "A structure lies at {val}, farther into the file than is supported", off,
                        off);
        if (map[i / 8] >> i % 8 & 1)
            return FAIL(e, ERR_OVERLAY_CORRUPT, "The block or region at {val} overlaps another",
                        off, off);
        map[i / 8] |= (u8)(1u << i % 8);
    }
    return 0;
}

/* Is there nothing to say about this entry? So it is with nearly all of a large BAT. */
static bool is_absent(const struct vhdx *v, u64 entry)
{
    return !entry || (!v->has_parent && (entry & VHDX_BAT_STATE) <= VHDX_UNMAPPED &&
                      !(entry & VHDX_BAT_RESERVED));
}

/* Does the entry lie past the end of the disk, in the last chunk of a differencing one? It will be
 * replaced before anyone believes it. */
static bool is_past_end(const struct image *img, u64 idx)
{
    const struct vhdx *v = &img->u.vhdx;
    return v->has_parent && !vhdx_is_bitmap(v, idx) &&
           idx - idx / (v->chunk_ratio + 1ull) >= vhdx_blocks(v, img->size);
}

/* The first entry from *idx on, below cnt, that names bytes of the file: where and how many; *len 0
 * if there is none. Sector by sector: BATs may be large. */
static int next_used(struct survey *y, u64 *idx, u64 cnt, u64 *off, u64 *len, struct err *e)
{
    const struct vhdx *v = &y->img->u.vhdx;
    int rc = 0;
    for (*len = 0; !rc && !*len && *idx < cnt;) {
        u64 first = round_down(*idx, VHDX_SECTOR / 8), end = min_u64(first + VHDX_SECTOR / 8, cnt);
        const u8 *p;
        if ((rc = vhdx_get(y->img, &y->win, v->bat_offset + first * 8, VHDX_SECTOR,
                           v->bat_offset + round_up(cnt * 8, VHDX_SECTOR), &p, e)))
            break;
        u64 i = *idx, entry = 0;
        while (i < end && is_absent(v, entry = le64(p + (i - first) * 8)))
            i++;
        *idx = i;
        if (i == end)
            continue;
        *off = entry & VHDX_BAT_OFFSET;
        if (!is_past_end(y->img, i))
            rc = vhdx_bat_check(y->img, i, entry, len, e);
        *idx += !*len;
    }
    return rc;
}

/* Does entry idx go when the disk has only `kept` payload blocks? */
static bool dropped(const struct vhdx *v, u64 idx, u64 kept)
{
    u64 chunk = idx / (v->chunk_ratio + 1ull);
    return vhdx_is_bitmap(v, idx) ? chunk >= div_up(kept, v->chunk_ratio) : idx - chunk >= kept;
}

static int mark_regions(struct survey *y, struct vhdx_survey *out, struct err *e)
{
    const struct vhdx *v = &y->img->u.vhdx;
    bool more = true;
    int rc = mark(y, 0, VHDX_MIB, e);
    if (!rc)
        rc = mark(y, v->log.offset, v->log.length, e);
    out->regions = VHDX_MIB + v->log.length;
    for (u32 i = 0; !rc && more; i++) {
        u64 off;
        u32 len;
        rc = vhdx_region(y->img, &y->img->win, i, &off, &len, &more, e);
        if (!rc && more && !(rc = mark(y, off, len, e)))
            out->regions += len;
    }
    return rc;
}

int vhdx_survey(struct image *img, const struct vhdx_work *w, u64 kept, struct vhdx_survey *out,
                struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    struct survey y;
    u64 cnt = vhdx_bat_entries(v, img->size), off, len;
    survey_init(&y, img, w);
    int rc = mark_regions(&y, out, e);
    out->end = out->kept_end = v->regions_end;
    for (u64 i = 0; !rc; i++) {
        rc = next_used(&y, &i, cnt, &off, &len, e);
        if (rc || !len)
            break;
        rc = mark(&y, off, len, e);
        out->end = max_u64(out->end, off + len);
        if (!dropped(v, i, kept))
            out->kept_end = max_u64(out->kept_end, off + len);
    }
    return rc;
}

int vhdx_mark_dropped(struct image *img, const struct vhdx_work *w, u64 kept, struct err *e)
{
    const struct vhdx *v = &img->u.vhdx;
    struct survey y;
    u64 cnt = vhdx_bat_entries(v, img->size), off, len;
    int rc = 0;
    survey_init(&y, img, w);
    for (u64 i = vhdx_bat_index(v, kept); !rc; i++) {
        rc = next_used(&y, &i, cnt, &off, &len, e);
        if (rc || !len)
            break;
        if (dropped(v, i, kept))
            rc = mark(&y, off, len, e);
    }
    return rc;
}

void vhdx_next_run(const struct vhdx_work *w, u64 end, u64 *at, u64 *len)
{
    u64 i = *at / VHDX_MIB, last = end / VHDX_MIB, n = 0;
    while (i < last && !(w->bitmap[i / 8] >> i % 8 & 1))
        i++;
    while (i + n < last && w->bitmap[(i + n) / 8] >> (i + n) % 8 & 1)
        n++;
    *at = i * VHDX_MIB;
    *len = n * VHDX_MIB;
}
