/* SPDX-License-Identifier: MIT
 *
 * qcow2: decoding and validating the header and its extensions. Source: QEMU's
 * docs/interop/qcow2.txt, sections "Header", "Feature name table". Messages are qemu-img's where it
 * has them (parity C.1, C.10). What the header names is in qcow2_tables.c, mapping in qcow2_map.c.
 */
#include "format.h"

static u64 cluster(const struct qcow2 *q)
{
    return 1ull << q->cluster_bits;
}

u64 qcow2_l1_entries(const struct qcow2 *q, u64 size)
{
    return div_up(size, 1ull << (q->cluster_bits + q->l2_bits));
}

bool qcow2_has_data_file(const struct qcow2 *q)
{
    return q->incompatible & QCOW2_INCOMPAT_DATA_FILE;
}

u32 qcow2_refblock_bits(const struct qcow2 *q)
{
    return q->cluster_bits + 3 - q->refcount_order;
}

static bool qcow2_probe(struct blk *b)
{
    u8 magic[8];
    struct err e = {0};
    return !blk_read(b, 0, magic, sizeof magic, &e) && be32(magic) == QCOW2_MAGIC &&
           be32(magic + 4) >= 2;
}

/* The fixed fields and the limits that hold for each by itself. */
static int read_fields(struct image *img, const u8 *h, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    if (be32(h) != QCOW2_MAGIC)
        return FAIL(e, ERR_PARSE_FAILED, "Image is not in qcow2 format", QH_MAGIC, 0);
    q->version = be32(h + QH_VERSION);
    if (q->version < 2 || q->version > 3)
        return FAIL(e, ERR_UNSUPPORTED_SUBFORMAT, "Unsupported qcow2 version {val}", QH_VERSION,
                    q->version);
    q->cluster_bits = be32(h + QH_CLUSTER_BITS);
    if (q->cluster_bits < 9 || q->cluster_bits > 21)
        return FAIL(e, ERR_PARSE_FAILED, "Unsupported cluster size: 2^{val}", QH_CLUSTER_BITS,
                    q->cluster_bits);
    img->size = be64(h + QH_SIZE);
    q->backing_file_offset = be64(h + QH_BACKING_FILE_OFFSET);
    q->backing_file_size = be32(h + QH_BACKING_FILE_SIZE);
    q->crypt_method = be32(h + QH_CRYPT_METHOD);
    q->l1_size = be32(h + QH_L1_SIZE);
    q->l1_table_offset = be64(h + QH_L1_TABLE_OFFSET);
    q->refcount_table_offset = be64(h + QH_REFCOUNT_TABLE_OFFSET);
    q->refcount_table_clusters = be32(h + QH_REFCOUNT_TABLE_CLUSTERS);
    q->nb_snapshots = be32(h + QH_NB_SNAPSHOTS);
    q->snapshots_offset = be64(h + QH_SNAPSHOTS_OFFSET);
    q->header_length = QH_V2_LENGTH;
    q->refcount_order = 4;
    if (q->version == 2)
        return 0;
    q->incompatible = be64(h + QH_INCOMPATIBLE_FEATURES);
    q->compatible = be64(h + QH_COMPATIBLE_FEATURES);
    q->autoclear = be64(h + QH_AUTOCLEAR_FEATURES);
    q->refcount_order = be32(h + QH_REFCOUNT_ORDER);
    q->header_length = be32(h + QH_HEADER_LENGTH);
    if (q->header_length < QH_V3_LENGTH)
        return FAIL(e, ERR_PARSE_FAILED, "qcow2 header too short", QH_HEADER_LENGTH,
                    q->header_length);
    if (q->header_length > cluster(q))
        return FAIL(e, ERR_PARSE_FAILED, "qcow2 header exceeds cluster size", QH_HEADER_LENGTH,
                    q->header_length);
    if (q->header_length > QH_COMPRESSION_TYPE)
        q->compression_type = h[QH_COMPRESSION_TYPE];
    return 0;
}

/* Calls back for each header extension: [off, off+len) is its data. */
static int each_extension(struct image *img,
                          int (*fn)(struct image *, u32 type, u64 off, u32 len, struct err *),
                          struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    u64 off = q->header_length, end = cluster(q);
    if (q->backing_file_offset && q->backing_file_size)
        end = q->backing_file_offset;
    while (off < end) {
        const u8 *p;
        if (end - off < 8)
            return FAIL(e, ERR_PARSE_FAILED, "Header extension too large", off, end - off);
        int rc = window_get(&img->win, img->file[0], off, 8, end, &p, e);
        if (rc)
            return rc;
        u32 type = be32(p), len = be32(p + 4);
        if (type == QEXT_END)
            break;
        off += 8;
        if (len > end - off)
            return FAIL(e, ERR_PARSE_FAILED, "Header extension too large", off, len);
        rc = fn(img, type, off, len, e);
        if (rc)
            return rc;
        off += round_up(len, 8);
    }
    return 0;
}

/* Finds the name of the lowest incompatible bit that is unknown, in the feature name table. */
static int name_feature(struct image *img, u32 type, u64 off, u32 len, struct err *e)
{
    enum { ENTRY = 48, NAME = 46 };
    u64 unknown = img->u.qcow2.incompatible & ~QCOW2_INCOMPAT_KNOWN;
    if (type != QEXT_FEATURE_NAMES)
        return 0;
    for (u32 i = 0; i + ENTRY <= len; i += ENTRY) {
        const u8 *p;
        int rc = window_get(&img->win, img->file[0], off + i, ENTRY, off + len, &p, e);
        if (rc)
            return rc;
        if (p[0] == 0 && p[1] < 64 && p[1] == __builtin_ctzll(unknown) && p[2]) {
            rc = FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported qcow2 feature(s): {name}",
                      QH_INCOMPATIBLE_FEATURES, unknown);
            err_name(e, p + 2, NAME);
            return rc;
        }
    }
    return 0;
}

static int check_features(struct image *img, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    if (q->incompatible & ~QCOW2_INCOMPAT_KNOWN) {
        int rc = each_extension(img, name_feature, e);
        return rc ? rc
                  : FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unknown incompatible feature: {val:x}",
                         QH_INCOMPATIBLE_FEATURES, q->incompatible & ~QCOW2_INCOMPAT_KNOWN);
    }
    if (q->refcount_order > 6)
        return FAIL(e, ERR_PARSE_FAILED,
                    "Reference count entry width too large; may not exceed 64 bits",
                    QH_REFCOUNT_ORDER, q->refcount_order);
    if (q->crypt_method > 2)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Unsupported encryption method {val}",
                    QH_CRYPT_METHOD, q->crypt_method);
    if (q->compression_type > 1)
        return FAIL(e, ERR_UNSUPPORTED_FEATURE, "qcow2: unknown compression type: {val}",
                    QH_COMPRESSION_TYPE, q->compression_type);
    if (q->compression_type && !(q->incompatible & QCOW2_INCOMPAT_COMPRESSION))
        return FAIL(e, ERR_PARSE_FAILED, "Compression type incompatible feature bit must be set",
                    QH_COMPRESSION_TYPE, q->compression_type);
    if (!q->compression_type && (q->incompatible & QCOW2_INCOMPAT_COMPRESSION))
        return FAIL(e, ERR_PARSE_FAILED,
                    "Compression type incompatible feature bit must not be set",
                    QH_COMPRESSION_TYPE, 0);
    q->l2_entry_size = q->incompatible & QCOW2_INCOMPAT_EXTL2 ? 16 : 8;
    q->l2_bits = q->cluster_bits - (q->l2_entry_size == 16 ? 4 : 3);
    if (q->l2_entry_size == 16 && q->cluster_bits < 14)
        return FAIL(e, ERR_PARSE_FAILED,
                    "Extended L2 entries need clusters of at least 16 KiB, not 2^{val} bytes",
                    QH_CLUSTER_BITS, q->cluster_bits);
    if ((q->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) &&
        !(q->incompatible & QCOW2_INCOMPAT_DATA_FILE))
        return FAIL(e, ERR_PARSE_FAILED, "data-file-raw requires a data file",
                    QH_AUTOCLEAR_FEATURES, q->autoclear);
    return 0;
}

static int read_extension(struct image *img, u32 type, u64 off, u32 len, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    const u8 *p;
    int rc;
    switch (type) {
    case (u32)QEXT_BACKING_FORMAT:
        if (len > 15)
            return FAIL(e, ERR_PARSE_FAILED,
                        "ERROR: ext_backing_format: len={val} too large (>=16)", off, len);
        q->backing_format_offset = off;
        q->backing_format_size = len;
        return 0;
    case QEXT_BITMAPS:
        if (len != 24)
            return FAIL(e, ERR_PARSE_FAILED, "bitmaps_ext: Invalid extension length", off, len);
        rc = window_get(&img->win, img->file[0], off, 24, off + 24, &p, e);
        if (rc)
            return rc;
        q->has_bitmaps_ext = true;
        q->nb_bitmaps = be32(p);
        q->bitmap_directory_size = be64(p + 8);
        q->bitmap_directory_offset = be64(p + 16);
        return 0;
    case QEXT_CRYPTO:
        if (q->crypt_method != 2)
            return FAIL(e, ERR_PARSE_FAILED,
                        "CRYPTO header extension only expected with LUKS encryption method", off,
                        q->crypt_method);
        if (len != 16)
            return FAIL(e, ERR_PARSE_FAILED, "CRYPTO header extension size {val} is not 16", off,
                        len);
        rc = window_get(&img->win, img->file[0], off, 16, off + 16, &p, e);
        if (rc)
            return rc;
        q->has_crypto_ext = true;
        q->crypto_offset = be64(p);
        q->crypto_length = be64(p + 8);
        return 0;
    case QEXT_DATA_FILE:
        if (len > 1023)
            return FAIL(e, ERR_PARSE_FAILED, "The name of the external data file is too long", off,
                        len);
        q->has_data_file_ext = true;
        q->data_file_offset = off;
        q->data_file_size = len;
        return 0;
    default:
        return 0;
    }
}

/* The backing name must lie behind the header in cluster 0. */
static int check_backing(struct image *img, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    if (!q->backing_file_offset)
        return 0;
    if (q->backing_file_offset > cluster(q) || q->backing_file_offset < q->header_length)
        return FAIL(e, ERR_PARSE_FAILED, "Invalid backing file offset", QH_BACKING_FILE_OFFSET,
                    q->backing_file_offset);
    if (q->backing_file_size > min_u64(1023, cluster(q) - q->backing_file_offset))
        return FAIL(e, ERR_BACKING_PATH_TOO_LONG, "Backing file name too long",
                    QH_BACKING_FILE_SIZE, q->backing_file_size);
    return 0;
}

/* Each named table alone (limits, alignment), in qemu's order. */
static int check_limits(struct image *img, struct err *e)
{
    struct qcow2 *q = &img->u.qcow2;
    u64 mask = cluster(q) - 1, rt = (u64)q->refcount_table_clusters << q->cluster_bits;
    if (rt > QCOW2_MAX_REFTABLE_BYTES)
        return FAIL(e, ERR_PARSE_FAILED, "Reference count table too large",
                    QH_REFCOUNT_TABLE_CLUSTERS, q->refcount_table_clusters);
    if (q->refcount_table_offset & mask)
        return FAIL(e, ERR_PARSE_FAILED, "Reference count table offset invalid",
                    QH_REFCOUNT_TABLE_OFFSET, q->refcount_table_offset);
    if (!rt)
        return FAIL(e, ERR_PARSE_FAILED, "Image does not contain a reference count table",
                    QH_REFCOUNT_TABLE_CLUSTERS, 0);
    if (q->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
        return FAIL(e, ERR_PARSE_FAILED, "Snapshot table too large", QH_NB_SNAPSHOTS,
                    q->nb_snapshots);
    if (q->nb_snapshots && (q->snapshots_offset & mask))
        return FAIL(e, ERR_PARSE_FAILED, "Snapshot table offset invalid", QH_SNAPSHOTS_OFFSET,
                    q->snapshots_offset);
    if (q->l1_size * 8ull > QCOW2_MAX_L1_BYTES)
        return FAIL(e, ERR_PARSE_FAILED, "Active L1 table too large", QH_L1_SIZE, q->l1_size);
    if (q->l1_size && (q->l1_table_offset & mask))
        return FAIL(e, ERR_PARSE_FAILED, "Active L1 table offset invalid", QH_L1_TABLE_OFFSET,
                    q->l1_table_offset);
    if (img->size > QCOW2_MAX_DISK_SIZE)
        return FAIL(e, ERR_PARSE_FAILED, "Could not refresh total sector count: File too large",
                    QH_SIZE, img->size);
    if (qcow2_l1_entries(q, img->size) > q->l1_size)
        return FAIL(e, ERR_PARSE_FAILED, "L1 table is too small", QH_L1_SIZE, q->l1_size);
    if (q->crypt_method == 2 && !q->has_crypto_ext)
        return FAIL(e, ERR_PARSE_FAILED, "Missing CRYPTO header for crypt method 2",
                    QH_CRYPT_METHOD, 2);
    return 0;
}

static int qcow2_open(struct image *img, struct err *e)
{
    const u8 *h;
    u8 head[QH_V3_LENGTH + 8];
    int rc;
    img->u.qcow2 = (struct qcow2){0};
    if (img->file[0]->size < QH_V2_LENGTH) /* qemu reads zeros there, and says this */
        return FAIL(e, ERR_PARSE_FAILED, "Image is not in qcow2 format", 0, img->file[0]->size);
    rc = window_get(&img->win, img->file[0], 0, sizeof head, BLK_SECTOR_MAX, &h, e);
    if (rc)
        return rc;
    memcpy(head, h, sizeof head);
    memcpy(img->u.qcow2.header, h, sizeof img->u.qcow2.header);
    if ((rc = read_fields(img, head, e)))
        return rc;
    img->unit = 1u << img->u.qcow2.cluster_bits;
    img->opaque = img->u.qcow2.crypt_method != 0;
    if ((rc = check_backing(img, e)) || (rc = check_features(img, e)) ||
        (rc = each_extension(img, read_extension, e)) || (rc = check_limits(img, e)))
        return rc;
    return qcow2_tables_open(img, e);
}

static int read_name(struct image *img, u64 off, u32 len, char *out, struct err *e)
{
    out[len] = 0;
    return blk_read(img->file[0], off, out, len, e);
}

static int qcow2_facts(struct image *img, struct facts *f, struct err *e)
{
    const struct qcow2 *q = &img->u.qcow2;
    f->encrypted = q->crypt_method != 0;
    f->dirty = q->incompatible & QCOW2_INCOMPAT_DIRTY;
    f->corrupt = q->incompatible & QCOW2_INCOMPAT_CORRUPT;
    f->backing_len = q->backing_file_offset ? q->backing_file_size : 0;
    f->has_data_file = qcow2_has_data_file(q);
    f->data_file_len = f->has_data_file && q->has_data_file_ext ? q->data_file_size : 0;
    int rc = read_name(img, q->backing_file_offset, f->backing_len, f->backing, e);
    if (!rc && f->backing_len)
        rc = read_name(img, q->backing_format_offset, q->backing_format_size, f->backing_format, e);
    if (!rc)
        rc = read_name(img, q->data_file_offset, f->data_file_len, f->data_file, e);
    facts_text(f, "compat", q->version == 2 ? "0.10" : "1.1");
    facts_text(f, "compression type", q->compression_type ? "zstd" : "zlib");
    if (q->version == 3)
        facts_bool(f, "lazy refcounts", q->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
    facts_number(f, "refcount bits", 1ull << q->refcount_order);
    if (q->version == 3) {
        if (qcow2_has_data_file(q))
            facts_bool(f, "data file raw", q->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW);
        facts_bool(f, "corrupt", f->corrupt);
        facts_bool(f, "extended l2", q->incompatible & QCOW2_INCOMPAT_EXTL2);
    }
    if (q->nb_snapshots)
        facts_number(f, "snapshots", q->nb_snapshots);
    if (qcow2_names_bitmaps(q))
        facts_number(f, "bitmaps", q->nb_bitmaps);
    return rc;
}

/* Only programs that meet compressed clusters link a decoder. */
#pragma weak qcow2_unpack

const struct format qcow2_format = {
    .name = "qcow2",
    .probe = qcow2_probe,
    .open = qcow2_open,
    .map = qcow2_map,
    .unpack = qcow2_unpack,
    .facts = qcow2_facts,
};
