/* SPDX-License-Identifier: MIT
 *
 * The block device (virtio 1.2, section 5.2): a batch of requests, each cut into pieces that the
 * device takes, all in flight at once. Request i of a batch always uses descriptors 3i .. 3i + 2
 * and command i of its disk, so there is nothing to allocate and an answer is easy to check.
 *
 * A virtio sector is 512 bytes whatever the logical block size; here all sizes are in bytes.
 */
#include "hull.h"
#include "kernel.h"
#include "virtio.h"

enum { SECTOR = 512 };
enum { CHAIN = 3 }; /* command, data, status */
enum { ZEROES = 128 * 1024 };

enum feature {
    F_RO = 1 << 5,
    F_BLK_SIZE = 1 << 6,
    F_FLUSH = 1 << 9,
    F_DISCARD = 1 << 13,
    F_WRITE_ZEROES = 1 << 14
};

enum config {
    C_CAPACITY = 0,
    C_BLK_SIZE = 20,
    C_MAX_DISCARD_SECTORS = 36,
    C_MAX_WRITE_ZEROES_SECTORS = 48,
    C_WRITE_ZEROES_MAY_UNMAP = 56
};

enum type { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum status { S_OK = 0, S_NONE = 0xff };
enum { UNMAP = 1 };

struct command {
    uint32_t type, reserved;
    uint64_t sector;
    struct range {
        uint64_t sector;
        uint32_t sectors, flags;
    } range; /* the data of a discard or write-zeroes */
    volatile uint8_t status;
};

/* What driver and device share: one page per disk. */
struct shared {
    struct virtq q;
    struct command command[VBLK_BATCH];
};
_Static_assert(sizeof(struct shared) <= 4096 && VBLK_BATCH * CHAIN <= VIRTQ_SIZE, "shared page");

struct disk {
    struct virtio v;
    struct shared *shared; /* not NULL once tried */
    bool present, limits_known, may_unmap;
    uint32_t sector;
    uint64_t capacity;              /* when last read; 0: never */
    uint64_t discard_max, zero_max; /* bytes in one piece; 0: no such command */
};

static struct disk disks[VBLK_SLOTS];
static void *zeroes; /* for disks that cannot write zeroes by themselves */

/* ---- set-up ---- */

static bool disk_setup(struct disk *d, unsigned slot)
{
    const uint64_t want = F_RO | F_BLK_SIZE | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

    if (virtio_open(&d->v, slot, VIRTIO_ID_BLOCK, want, &d->shared->q) != KERNEL_OK)
        return false;
    d->sector = d->v.features & F_BLK_SIZE ? virtio_config32(&d->v, C_BLK_SIZE) : SECTOR;
    if (d->sector < SECTOR || d->sector > 65536 || (d->sector & (d->sector - 1)) != 0)
        return false;
    if (!(d->v.features & F_WRITE_ZEROES) && !zeroes && !(zeroes = page_alloc(ZEROES)))
        return false;
    d->present = true;
    return true;
}

static struct disk *disk_get(unsigned slot)
{
    struct disk *d = &disks[slot];

    if (slot >= VBLK_SLOTS)
        return NULL;
    if (!d->shared && (d->shared = page_alloc(sizeof *d->shared)))
        disk_setup(d, slot);
    return d->present ? d : NULL;
}

/* Read when first wanted: every register costs a VM exit. */
static void disk_limits(struct disk *d)
{
    uint64_t step = d->sector / SECTOR;

    if (d->limits_known)
        return;
    d->limits_known = true;
    if (d->v.features & F_DISCARD)
        d->discard_max = virtio_config32(&d->v, C_MAX_DISCARD_SECTORS) / step * d->sector;
    if (d->v.features & F_WRITE_ZEROES) {
        d->zero_max = virtio_config32(&d->v, C_MAX_WRITE_ZEROES_SECTORS) / step * d->sector;
        d->may_unmap = virtio_config8(&d->v, C_WRITE_ZEROES_MAY_UNMAP) == 1;
    }
}

bool vblk_present(unsigned slot)
{
    return disk_get(slot) != NULL;
}

uint32_t vblk_sector(unsigned slot)
{
    struct disk *d = disk_get(slot);

    return d ? d->sector : 0;
}

uint64_t vblk_capacity(unsigned slot)
{
    struct disk *d = disk_get(slot);
    uint64_t sectors;

    if (!d)
        return 0;
    sectors = virtio_config64(&d->v, C_CAPACITY);
    d->capacity = (sectors < UINT64_MAX / SECTOR ? sectors : UINT64_MAX / SECTOR) * SECTOR;
    d->capacity &= -(uint64_t)d->sector; /* a device may end within a block, out of reach */
    return d->capacity;
}

bool vblk_read_only(unsigned slot)
{
    struct disk *d = disk_get(slot);

    return d && d->v.features & F_RO;
}

/* ---- requests ---- */

struct job {
    struct disk *disk;
    uint64_t done, piece; /* bytes: finished, in flight */
    bool active;
    int error;
};

static int check(const struct vblk_req *r)
{
    struct disk *d = disk_get(r->slot);
    uint64_t mask = d ? d->sector - 1 : 0;

    if (!d)
        return KERNEL_ENODEV;
    if (r->op == VBLK_FLUSH)
        return KERNEL_OK;
    if ((r->off & mask) != 0 || (r->len & mask) != 0)
        return KERNEL_EINVAL;
    if ((r->op == VBLK_READ || r->op == VBLK_WRITE) && r->len > VBLK_IO_MAX)
        return KERNEL_EINVAL;
    if (r->op != VBLK_READ && d->v.features & F_RO)
        return KERNEL_EINVAL;
    if ((r->len > d->capacity || r->off > d->capacity - r->len) &&
        (r->len > vblk_capacity(r->slot) || r->off > d->capacity - r->len))
        return KERNEL_EINVAL;
    return KERNEL_OK;
}

/* Puts one command with its data (none for a flush) into the queue. */
static void send(struct disk *d, unsigned i, uint32_t type, uint64_t off, struct virtq_buf data)
{
    struct command *c = &d->shared->command[i];
    struct virtq_buf chain[CHAIN] = {{c, 16, 0}};
    unsigned n = 1;

    c->type = type;
    c->reserved = 0;
    c->sector = off / SECTOR;
    c->status = S_NONE;
    if (data.len > 0)
        chain[n++] = data;
    chain[n++] = (struct virtq_buf){&c->status, 1, VIRTQ_DESC_WRITE};
    virtq_add(&d->v, i * CHAIN, chain, n);
}

/* Discard and write-zeroes say in a range of their own where they apply. */
static void send_range(struct disk *d, unsigned i, uint32_t type, uint64_t off, uint64_t len,
                       uint32_t flags)
{
    struct range *range = &d->shared->command[i].range;

    *range = (struct range){off / SECTOR, (uint32_t)(len / SECTOR), flags};
    send(d, i, type, 0, (struct virtq_buf){range, sizeof *range, 0});
}

static uint64_t min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Sends the next piece of request i. If there is none, or none is possible, the job is over. */
static void job_step(struct job *j, const struct vblk_req *r, unsigned i)
{
    struct disk *d = j->disk;
    uint64_t off = r->off + j->done, left = r->len - j->done;

    j->active = false;
    if (d->v.broken) {
        j->error = KERNEL_EIO;
        return;
    }
    if (r->op == VBLK_FLUSH) {
        if (j->done > 0 || !(d->v.features & F_FLUSH))
            return;
        j->piece = 1;
        send(d, i, T_FLUSH, 0, (struct virtq_buf){0});
    } else if (left == 0) {
        return;
    } else if (r->op == VBLK_READ || r->op == VBLK_WRITE) {
        bool in = r->op == VBLK_READ;

        j->piece = left;
        send(d, i, in ? T_IN : T_OUT, off,
             (struct virtq_buf){r->buf, (uint32_t)left, in ? VIRTQ_DESC_WRITE : 0});
    } else if (r->op == VBLK_DISCARD) {
        if (d->discard_max == 0)
            return;
        j->piece = min(left, d->discard_max);
        send_range(d, i, T_DISCARD, off, j->piece, 0);
    } else if (d->zero_max > 0) {
        j->piece = min(left, d->zero_max);
        send_range(d, i, T_WRITE_ZEROES, off, j->piece,
                   r->op == VBLK_ZERO_UNMAP && d->may_unmap ? UNMAP : 0);
    } else {
        j->piece = min(left, ZEROES);
        send(d, i, T_OUT, off, (struct virtq_buf){zeroes, (uint32_t)j->piece, 0});
    }
    j->active = true;
}

/* Takes the answers of one disk and sends what follows; true if there were any. */
static bool disk_poll(struct disk *d, struct job *job, const struct vblk_req *r)
{
    uint32_t len;
    int head;
    bool any = false, sent = false;

    while ((head = virtq_take(&d->v, &len)) >= 0) {
        unsigned i = (unsigned)head / CHAIN;
        struct job *j = &job[i];
        uint8_t status = d->shared->command[i].status;

        any = true;
        if (status != S_OK || len != (r[i].op == VBLK_READ ? j->piece + 1 : 1)) {
            j->error = KERNEL_EIO;
            j->active = false;
            continue;
        }
        j->done += j->piece;
        job_step(j, &r[i], i);
        sent |= j->active;
    }
    if (sent)
        virtio_kick(&d->v);
    return any;
}

/* Sends the first pieces, then waits until no job is active. */
static void run(struct job *job, const struct vblk_req *r, unsigned n)
{
    struct wait w;
    uint32_t slots = 0, m;
    bool active, any;

    for (unsigned i = 0; i < n; i++) {
        job_step(&job[i], &r[i], i);
        if (job[i].active)
            slots |= 1u << r[i].slot;
    }
    for (m = slots; m != 0; m &= m - 1)
        virtio_kick(&disks[__builtin_ctz(m)].v);
    wait_begin(&w);
    for (;;) {
        any = active = false;
        for (m = slots; m != 0; m &= m - 1)
            any |= disk_poll(&disks[__builtin_ctz(m)], job, r);
        for (unsigned i = 0; i < n; i++) {
            if (job[i].active && job[i].disk->v.broken) {
                job[i].active = false;
                job[i].error = KERNEL_EIO;
            }
            active |= job[i].active;
        }
        if (!active)
            return;
        if (any)
            wait_begin(&w);
        else
            wait_once(&w);
    }
}

int vblk_run(const struct vblk_req *r, unsigned n)
{
    struct job job[VBLK_BATCH] = {0};
    int rc;

    if (n > VBLK_BATCH)
        return KERNEL_EINVAL;
    for (unsigned i = 0; i < n; i++) {
        if ((rc = check(&r[i])) != KERNEL_OK)
            return rc;
        job[i].disk = &disks[r[i].slot];
        if (r[i].op >= VBLK_ZERO && r[i].op <= VBLK_DISCARD)
            disk_limits(job[i].disk);
    }
    run(job, r, n);
    for (unsigned i = 0; i < n; i++)
        if (job[i].error != KERNEL_OK)
            return job[i].error;
    return KERNEL_OK;
}

int vblk_flush(unsigned slot)
{
    const struct vblk_req r = {.slot = slot, .op = VBLK_FLUSH};

    return vblk_run(&r, 1);
}
