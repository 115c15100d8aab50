/* SPDX-License-Identifier: MIT
 *
 * virtio-blk disks as struct blk: the only file that knows both. Also the way in which a guest
 * gets more room, or zeros inserted into a file: it sends a Need and waits for one byte, the grant.
 */
#include "kernel.h"
#include "op.h"

/* The launcher's watchdog counts seconds without a frame, so one is sent this often. */
enum { PROGRESS_REQUESTS = 1000, PROGRESS_BYTES = 64 << 20 };

static struct blk disk[OP_DISKS];
static u64 requests, since_requests, since_bytes;

_Static_assert((int)VBLK_IO_MAX >= (int)BLK_IO_MAX && (int)VBLK_BATCH >= (int)BLK_BATCH_MAX,
               "a request of ours fits");

static int failed(const struct vblk_req *r, unsigned n, int error, struct err *e)
{
    bool read = r->op == VBLK_READ;
    if (error != KERNEL_EIO)
        return FAIL(e, read ? ERR_READ_FAILED : ERR_WRITE_FAILED,
                    "A request of {val} bytes at {off} does not suit the disk", r->off, r->len);
    if (n > 1)
        return FAIL(e, read ? ERR_READ_FAILED : ERR_WRITE_FAILED,
                    "One of {val} requests from {off} on failed: Input/output error", r->off, n);
    return FAIL(e, read ? ERR_READ_FAILED : ERR_WRITE_FAILED,
                read ? "Could not read {val} bytes at {off}: Input/output error"
                     : "Could not write {val} bytes at {off}: Input/output error",
                r->off, r->len);
}

static int run(const struct vblk_req *r, unsigned n, struct err *e)
{
    page_lock(); /* nothing is allocated once image bytes have been seen */
    requests += n;
    since_requests += n;
    for (unsigned i = 0; i < n; i++)
        since_bytes += r[i].len;
    if (since_requests >= PROGRESS_REQUESTS || since_bytes >= PROGRESS_BYTES) {
        since_requests = since_bytes = 0;
        report_progress(requests, 0, 0);
    }
    int error = vblk_run(r, n);
    return error ? failed(r, n, error, e) : 0;
}

/* Zeroing and discarding know no length limit, but one request may take the host long. */
static int run_pieces(struct blk *b, enum vblk_op op, u64 off, u64 len, struct err *e)
{
    int rc = 0;
    for (u64 part; !rc && len; off += part, len -= part) {
        part = min_u64(len, PROGRESS_BYTES);
        rc = run(&(struct vblk_req){b->slot, op, off, part, NULL}, 1, e);
    }
    return rc;
}

static int disk_read(struct blk *b, u64 off, void *buf, size_t len, struct err *e)
{
    return run(&(struct vblk_req){b->slot, VBLK_READ, off, len, buf}, 1, e);
}

static int disk_write(struct blk *b, u64 off, const void *buf, size_t len, struct err *e)
{
    return run(&(struct vblk_req){b->slot, VBLK_WRITE, off, len, (void *)(uintptr_t)buf}, 1, e);
}

static int disk_zero(struct blk *b, u64 off, u64 len, bool may_unmap, struct err *e)
{
    return run_pieces(b, may_unmap ? VBLK_ZERO_UNMAP : VBLK_ZERO, off, len, e);
}

static int disk_discard(struct blk *b, u64 off, u64 len, struct err *e)
{
    return run_pieces(b, VBLK_DISCARD, off, len, e);
}

static int disk_flush(struct blk *b, struct err *e)
{
    return vblk_flush(b->slot)
               ? FAIL(e, ERR_WRITE_FAILED, "Could not flush the image: Input/output error", 0, 0)
               : 0;
}

static int disk_grow(struct blk *b, u64 new_size, struct err *e)
{
    u64 capacity = vblk_capacity(b->slot);
    return capacity < new_size ? FAIL(e, ERR_NO_SPACE,
                                      "The file has room for {val} bytes only, although more was "
                                      "granted",
                                      new_size, capacity)
                               : 0;
}

static int disk_batch(struct blk_req *r, unsigned n, struct err *e)
{
    static const enum vblk_op op[] = {[BLK_READ] = VBLK_READ,
                                      [BLK_WRITE] = VBLK_WRITE,
                                      [BLK_ZERO] = VBLK_ZERO,
                                      [BLK_DISCARD] = VBLK_DISCARD};
    struct vblk_req v[BLK_BATCH_MAX];
    for (unsigned i = 0; i < n; i++)
        v[i] = (struct vblk_req){r[i].b->slot, op[r[i].op], r[i].off, r[i].len, r[i].buf};
    return run(v, n, e);
}

static const struct blk_ops disk_ops = {disk_read,  disk_write, disk_zero, disk_discard,
                                        disk_flush, disk_grow,  disk_batch};

int disks_open(struct op *op, struct err *e)
{
    const instar_Request *r = op->request;
    for (unsigned i = 0; i < r->disks_count; i++) {
        if (i >= OP_DISKS || !vblk_present(i))
            return FAIL(e, ERR_READ_FAILED, "Disk {val} of the request is not attached", 0, i);
        if (vblk_capacity(i) < r->disks[i].length)
            return FAIL(e, ERR_READ_FAILED, "Disk {off} is shorter ({val} bytes) than requested", i,
                        vblk_capacity(i));
        u32 sector = vblk_sector(i);
        if (sector != 512 && sector != BLK_SECTOR_MAX)
            return FAIL(e, ERR_UNSUPPORTED_FEATURE, "Disk {off} has sectors of {val} bytes", i,
                        sector);
        disk[i] = (struct blk){&disk_ops,
                               r->disks[i].length,
                               sector,
                               (u8)i,
                               r->disks[i].writable && !vblk_read_only(i),
                               r->disks[i].device,
                               r->disks[i].insert_unit,
                               op_alloc(sizeof(struct blk_cache))};
        blk_forget(&disk[i]);
        op->disk[i] = &disk[i];
        op->disks++;
    }
    return 0;
}

static int granted(u32 epoch, struct err *e)
{
    return serial_read(UINT64_MAX) == (u8)epoch
               ? 0
               : FAIL(e, ERR_PROTOCOL, "The launcher granted something else", epoch, 0);
}

int disks_need(u32 epoch, const struct plan_need *need, const u8 disk_of[IMAGE_FILES],
               struct err *e)
{
    report_need(epoch, need, disk_of);
    return granted(epoch, e);
}

int disks_insert(u32 epoch, u8 slot, u64 off, u64 len, struct err *e)
{
    report_insert(epoch, slot, off, len);
    int rc = granted(epoch, e);
    return rc ? rc : disk_grow(&disk[slot], disk[slot].size + len, e);
}
