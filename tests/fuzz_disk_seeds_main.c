/* SPDX-License-Identifier: MIT
 *
 * Writes the seeds of the VHD, VHDX and VMDK fuzz targets, each into a directory of its own: shapes
 * of the resize tests' makers, each grown, shrunk, and with a disk that fails on the way.
 */
#include "fuzz_input.h"
#include "test.h"
#include "vhd_make.h"
#include "vhdx_make.h"
#include "vmdk_make.h"

#include <sys/stat.h>

enum { FUZZ_INSERT = 128, FULL = 3 << FUZZ_HOW_SHIFT, FALLOC = 2 << FUZZ_HOW_SHIFT };

static const char *top;
static unsigned written;
static u64 bytes;

static void write_seed(const struct blk_mem *m, u64 new_size, u8 flags, u64 fail_at,
                       const char *format, const char *name, const char *how)
{
    static u8 out[FUZZ_INPUT_MAX];
    char path[1024];
    if (fail_at)
        flags |= FUZZ_UNDER;
    size_t size = fuzz_encode(m, NULL, new_size, flags, out, sizeof(out));
    struct fuzz_head h = {new_size, m->length, flags, fail_at};
    fuzz_put_head(out, &h);
    snprintf(path, sizeof(path), "%s/%s/%s-%s", top, format, name, how);
    FILE *f = size ? fopen(path, "wb") : NULL;
    if (!f || fwrite(out, 1, size, f) != size || fclose(f)) {
        fprintf(stderr, "%s: %s\n", path, size ? "cannot be written" : "too large for an input");
        exit(1);
    }
    bytes += size;
    written++;
}

/* An image in all ways. */
static void in_all_ways(const struct blk_mem *m, unsigned i, u64 less, u64 more, u8 flags,
                        const char *format, const char *name)
{
    write_seed(m, more, flags, 0, format, name, "grow");
    write_seed(m, less, flags & FUZZ_INSERT, 0, format, name, "shrink");
    write_seed(m, more, flags | FUZZ_NO_SCRATCH, 2 + i % 9, format, name, "grow-fails");
    write_seed(m, less, i % 4 == 3 ? FUZZ_SECTOR_4096 : 0, 1 + i % 7, format, name, "shrink-fails");
}

/* ---- VHD ---- */

static void vhds(void)
{
    static const struct {
        const char *name;
        struct vhd_make p;
        u64 less, more;
        u8 flags;
    } own[] = {
        {"dynamic", {.size = MI(40), .every = 6, .last = true, .sectors = 1}, MI(9), MI(99), 0},
        {"table-moves",
         {.size = MI(30),
          .block_size = KI(64),
          .every = 70,
          .sectors = 1,
          .creator = "win ",
          .geometry = GEOMETRY_SPEC},
         MI(7),
         MI(90),
         0},
        {"table-last",
         {.size = MI(9),
          .block_size = KI(512),
          .every = 5,
          .sectors = 1,
          .table_last = true,
          .gap = 2},
         MI(2),
         GI(1),
         0},
        {"holes",
         {.size = MI(30),
          .block_size = KI(512),
          .every = 8,
          .holes = 2,
          .shuffled = true,
          .sectors = 1,
          .slack = 3},
         MI(20),
         MI(31),
         0},
        {"stale",
         {.size = KI(900),
          .block_size = KI(64),
          .every = 4,
          .last = true,
          .sectors = 1,
          .extra_entries = 5,
          .stale_entries = true,
          .stale_rest = true,
          .creator = "vbox",
          .geometry = GEOMETRY_SPEC},
         KI(300),
         MI(2),
         0},
        {"bits",
         {.size = KI(100),
          .block_size = 4096,
          .every = 9,
          .sectors = 1,
          .stale_bits = true,
          .creator = "tap\0",
          .geometry = GEOMETRY_MAX},
         KI(20),
         KI(300),
         0},
        {"no-tail", {.size = MI(9), .every = 3, .sectors = 1, .no_tail = true}, MI(4), MI(19), 0},
        {"blocks-of-512", {.size = KI(20), .block_size = 512, .every = 13}, KI(3), KI(90), 0},
        {"empty", {.size = GI(2)}, GI(1), GI(60), 0},
        {"differencing", {.type = VHD_DIFFERENCING, .size = MI(9)}, MI(4), MI(19), 0},
        {"fixed", {.type = VHD_FIXED, .size = MI(3)}, MI(1), MI(9), 0},
        {"fixed-full", {.type = VHD_FIXED, .size = MI(3), .creator = "win "}, MI(1), MI(5), FULL},
        {"fixed-slack", {.type = VHD_FIXED, .size = KI(600), .slack = 9}, KI(300), MI(9), FALLOC},
        {"fixed-insert",
         {.type = VHD_FIXED, .size = MI(2), .creator = "win ", .geometry = GEOMETRY_SPEC},
         MI(1),
         MI(7),
         FUZZ_INSERT},
    };
    for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        struct blk_mem m;
        struct vhd_made made;
        vhd_make(&m, &own[i].p, &made);
        if (own[i].p.type == VHD_FIXED) /* its data, but for both ends */
            blk_mem_clear(&m, 512, made.size - 1024);
        in_all_ways(&m, i, own[i].less, own[i].more, own[i].flags, "vhd", own[i].name);
        blk_mem_free(&m);
    }
}

/* ---- VHDX ---- */

/* A log whose one entry changes the metadata's first sector in no way, and clears a gap. */
static void dirty(struct blk_mem *m, const struct vhdx_made *d)
{
    static const u8 guid[16] = "a log in use....";
    u8 sector[4096];
    blk_mem_get(m, d->metadata, sector, sizeof(sector));
    struct vhdx_make_change c[] = {{.off = d->metadata, .data = sector},
                                   {.off = d->bat + d->bat_length - 4096, .zero = 4096}};
    vhdx_make_log_guid(m, guid);
    u32 len = vhdx_make_entry(m, d, 8192, 8192, 5, guid, c, 2, m->length, m->length);
    vhdx_make_entry(m, d, 8192 + len, 8192, 6, guid, c, 1, m->length, m->length);
}

static void vhdxs(void)
{
    static const struct {
        const char *name;
        struct vhdx_make p;
        u64 less, more;
        u8 flags;
        bool dirty;
    } own[] = {
        {"dynamic", {.size = MI(40), .blocks = 3, .last = true}, MI(9), MI(200), 0},
        {"bat-moves", {.size = GI(127), .blocks = 2, .sector = 512}, GI(2), GI(300), 0},
        {"bat-grows", {.size = GI(120), .blocks = 2, .gap_mib = 2}, GI(2), GI(300), 0},
        {"blocks-of-32m",
         {.size = GI(1), .block_mib = 32, .blocks = 2, .last = true},
         MI(70),
         GI(9),
         0},
        {"sector-4096",
         {.size = MI(40) - 4096, .sector = 4096, .blocks = 3, .last = true},
         MI(9),
         MI(99),
         0},
        {"fixed", {.size = MI(5), .fixed = true}, MI(2), MI(9), 0},
        {"fixed-full", {.size = MI(5) - 512, .fixed = true, .short_end = true}, MI(2), MI(8), FULL},
        {"falloc", {.size = MI(5), .blocks = 1}, MI(2), MI(9), FALLOC},
        {"child", {.size = MI(40), .child = true, .blocks = 3, .partial = true}, MI(9), MI(99), 0},
        {"backwards",
         {.size = MI(20),
          .blocks = 5,
          .backwards = true,
          .slack_mib = 2,
          .slack_odd = 700,
          .metadata_last = true},
         MI(7),
         MI(30),
         0},
        {"stale",
         {.size = MI(20) - 512, .blocks = 3, .last = true, .stale_tail = true, .stale_entries = 9},
         MI(11),
         MI(30),
         0},
        {"others",
         {.size = MI(20), .blocks = 2, .unknown = true, .crooked_size = true},
         MI(11),
         MI(30),
         0},
        {"one-header",
         {.size = MI(20), .blocks = 2, .one_header = true, .void_table = 1},
         MI(11),
         MI(30),
         0},
        {"same-headers",
         {.size = MI(20), .blocks = 2, .same_headers = true, .void_table = 2},
         MI(11),
         MI(30),
         0},
        {"dirty", {.size = MI(20), .blocks = 2}, MI(11), MI(30), 0, true},
        {"sequence-ends", {.size = MI(20), .sequence_number = UINT64_MAX - 2}, MI(11), MI(30), 0},
    };
    for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        struct blk_mem m;
        struct vhdx_made made;
        vhdx_make(&m, &own[i].p, &made);
        if (own[i].dirty)
            dirty(&m, &made);
        in_all_ways(&m, i, own[i].less, own[i].more, own[i].flags, "vhdx", own[i].name);
        blk_mem_free(&m);
    }
}

/* ---- VMDK ---- */

static void vmdks(void)
{
    static const struct {
        const char *name;
        struct vmdk_make p;
        u64 less, more;
    } own[] = {
        {"sparse", {.size = MI(70), .every = 300, .last = true, .sectors = 1}, MI(9), MI(200)},
        {"directory-moves",
         {.size = MI(300), .grain = 8, .every = 9000, .sectors = 1},
         MI(9),
         MI(900)},
        {"small-tables",
         {.size = KI(900), .grain = 8, .gtes = 16, .every = 40, .sectors = 1},
         KI(100),
         MI(9)},
        {"no-rgd", {.size = MI(70), .every = 300, .no_rgd = true, .sectors = 1}, MI(9), MI(200)},
        {"zeroed",
         {.size = MI(7), .every = 30, .zeroed = true, .sectors = 1, .version = 2},
         MI(2),
         MI(20)},
        {"stale",
         {.size = KI(999),
          .every = 5,
          .last = true,
          .sectors = 1,
          .stale_rest = true,
          .stale_slack = true,
          .slack = 3},
         KI(500),
         MI(3)},
        {"stale-entries",
         {.size = KI(99), .grain = 8, .gtes = 32, .every = 12, .sectors = 1, .stale_entries = true},
         KI(50),
         KI(300)},
        {"tables-last",
         {.size = MI(70), .every = 300, .tables_last = true, .sectors = 1, .shuffled = true},
         MI(9),
         MI(200)},
        {"no-last-table", {.size = MI(70), .sectors = 1, .no_last_table = true}, MI(9), MI(200)},
        {"text-across", {.size = MI(9), .pad = 460, .sectors = 1}, MI(2), GI(9)},
        {"text-full", {.size = MI(9), .slot = 2, .full = true, .sectors = 1}, MI(2), GI(900)},
        {"no-ddb",
         {.size = MI(9),
          .no_ddb = true,
          .crlf = true,
          .short_end = true,
          .every = 100,
          .sectors = 1},
         MI(2),
         MI(30)},
        {"child", {.size = MI(9), .child = true}, MI(2), MI(30)},
    };
    for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        struct blk_mem m;
        struct vmdk_made made;
        vmdk_make(&m, &own[i].p, &made);
        in_all_ways(&m, i, own[i].less, own[i].more, 0, "vmdk", own[i].name);
        blk_mem_free(&m);
    }
}

int main(int argc, char **argv)
{
    static const char *const formats[] = {"vhd", "vhdx", "vmdk"};
    if (argc != 2) {
        fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 1;
    }
    top = argv[1];
    for (int i = 0; i < 3; i++) {
        char path[1024];
        snprintf(path, sizeof(path), "%s/%s", top, formats[i]);
        mkdir(path, 0777);
    }
    vhds();
    vhdxs();
    vmdks();
    printf("%u seeds, %llu bytes\n", written, (unsigned long long)bytes);
    return !written;
}
