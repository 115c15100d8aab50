/* SPDX-License-Identifier: MIT
 *
 * Virtio 1.x as this kernel needs it: one device, one queue, polled. A transport (virtio_mmio.c,
 * virtio_pci.c) says how a device's registers are reached; virtio.c does the handshake and the
 * queue; virtio_blk.c says what the buffers mean. Internal to kernel/.
 *
 * Memory is mapped one to one, so an address that the CPU uses is an address that the device uses.
 */
#ifndef VIRTIO_H
#define VIRTIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VIRTQ_SIZE = 64 };
enum { VIRTIO_CONFIG_LENGTH = 64 }; /* what a device's configuration space has at least */

/* Device types, feature bits (virtio 1.2, sections 5 and 6). */
enum { VIRTIO_ID_BLOCK = 2 };
#define VIRTIO_F_VERSION_1 (1ull << 32)

enum virtio_status {
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8
};

enum { VIRTQ_DESC_NEXT = 1, VIRTQ_DESC_WRITE = 2 };
enum { VIRTQ_AVAIL_NO_INTERRUPT = 1 };

/* The split virtqueue (virtio 1.2, section 2.7), all in memory that the device sees. */
struct virtq {
    struct virtq_desc {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } desc[VIRTQ_SIZE];
    struct virtq_avail {
        uint16_t flags, idx, ring[VIRTQ_SIZE], used_event;
    } avail;
    struct virtq_used {
        uint16_t flags, idx;
        struct virtq_used_elem {
            uint32_t id, len;
        } ring[VIRTQ_SIZE];
        uint16_t avail_event;
    } used __attribute__((aligned(4)));
};

struct virtio {
    const struct virtio_transport *transport;
    uintptr_t regs, config, notify; /* the transport's own, as are the next two */
    uint32_t notify_len, notify_step;
    uint64_t features; /* as agreed */
    struct virtq *q;
    uint64_t in_flight; /* bit h: the chain that starts at descriptor h is the device's */
    uint16_t avail_idx, used_idx;
    bool broken; /* it broke the rules and was reset; nothing is in flight any more */
};

struct virtio_transport {
    /* Is there a device of this type in the slot? Fills the transport's own fields. */
    bool (*find)(struct virtio *v, unsigned slot, uint32_t device_id);
    uint8_t (*status)(const struct virtio *v);
    void (*set_status)(const struct virtio *v, uint8_t status); /* 0 = reset */
    uint64_t (*offered)(const struct virtio *v);
    void (*accept)(const struct virtio *v, uint64_t features);
    /* Hands queue 0 to the device with v->q; false if it cannot hold VIRTQ_SIZE. */
    bool (*set_queue)(struct virtio *v);
    void (*kick)(const struct virtio *v); /* "look at queue 0" */
    uint32_t (*config_generation)(const struct virtio *v);
};

/* A machine has one of them: virtio_mmio if virtio_mmio_here(), which is one read of a register. */
extern const struct virtio_transport virtio_mmio, virtio_pci;
bool virtio_mmio_here(void);

/* A piece of memory for the device: to read, or (VIRTQ_DESC_WRITE) to write. */
struct virtq_buf {
    const volatile void *addr;
    uint32_t len;
    uint16_t flags;
};

/* Finds the device and brings it to DRIVER_OK with those of the features `want` (and VERSION_1)
 * that it offers, on the zeroed, page-aligned queue q. Returns 0, KERNEL_ENODEV if there is none or
 * it is not to our liking. */
int virtio_open(struct virtio *v, unsigned slot, uint32_t device_id, uint64_t want,
                struct virtq *q);
/* The device's configuration space, which is little endian: each field in its own width. */
uint8_t virtio_config8(const struct virtio *v, unsigned off);
uint32_t virtio_config32(const struct virtio *v, unsigned off);
/* As two halves, of one generation of the configuration. */
uint64_t virtio_config64(const struct virtio *v, unsigned off);
/* Resets a device that broke the rules: it forgets all buffers. */
void virtio_break(struct virtio *v);

/* Puts a chain of n buffers, in descriptors head .. head + n - 1, into the queue. The caller owns
 * the choice of descriptors; none of them may be in flight. Then virtio_kick(). */
void virtq_add(struct virtio *v, unsigned head, const struct virtq_buf *buf, unsigned n);
void virtio_kick(const struct virtio *v);
/* The head of a chain that the device is done with and what it says it wrote, in bytes; -1 if there
 * is none now. A device that hands back what it was not given is broken: see v->broken. */
int virtq_take(struct virtio *v, uint32_t *len);

#endif
