/* SPDX-License-Identifier: MIT
 *
 * The virtio-mmio transport (virtio 1.2, section 4.2), version 2 only: QEMU needs
 * `-global virtio-mmio.force-legacy=false`. On QEMU's microvm, slot n is the transport at a fixed
 * address, and `bus=virtio-mmio-bus.n` puts a disk there. Every access is a VM exit.
 */
#include "hull.h"
#include "virtio.h"

enum { BASE = 0xfeb00000, STRIDE = 0x200, SLOTS = 24 };

enum reg {
    MAGIC_VALUE = 0x00,
    VERSION = 0x04,
    DEVICE_ID = 0x08,
    DEVICE_FEATURES = 0x10,
    DEVICE_FEATURES_SEL = 0x14,
    DRIVER_FEATURES = 0x20,
    DRIVER_FEATURES_SEL = 0x24,
    QUEUE_SEL = 0x30,
    QUEUE_NUM_MAX = 0x34,
    QUEUE_NUM = 0x38,
    QUEUE_READY = 0x44,
    QUEUE_NOTIFY = 0x50,
    STATUS = 0x70,
    QUEUE_DESC = 0x80,
    QUEUE_DRIVER = 0x90,
    QUEUE_DEVICE = 0xa0,
    CONFIG_GENERATION = 0xfc,
    CONFIG = 0x100
};

/* QEMU's microvm has its transports whether or not there are devices. */
bool virtio_mmio_here(void)
{
    return mmio_read32(BASE + MAGIC_VALUE) == 0x74726976 /* "virt" */;
}

static bool mmio_find(struct virtio *v, unsigned slot, uint32_t device_id)
{
    v->regs = BASE + slot * STRIDE;
    v->config = v->regs + CONFIG;
    return slot < SLOTS && mmio_read32(v->regs + VERSION) == 2 &&
           mmio_read32(v->regs + DEVICE_ID) == device_id;
}

static uint8_t mmio_status(const struct virtio *v)
{
    return (uint8_t)mmio_read32(v->regs + STATUS);
}

static void mmio_set_status(const struct virtio *v, uint8_t status)
{
    mmio_write32(v->regs + STATUS, status);
}

static uint64_t mmio_offered(const struct virtio *v)
{
    uint64_t low;

    mmio_write32(v->regs + DEVICE_FEATURES_SEL, 0);
    low = mmio_read32(v->regs + DEVICE_FEATURES);
    mmio_write32(v->regs + DEVICE_FEATURES_SEL, 1);
    return low | (uint64_t)mmio_read32(v->regs + DEVICE_FEATURES) << 32;
}

static void mmio_accept(const struct virtio *v, uint64_t features)
{
    mmio_write32(v->regs + DRIVER_FEATURES_SEL, 0);
    mmio_write32(v->regs + DRIVER_FEATURES, (uint32_t)features);
    mmio_write32(v->regs + DRIVER_FEATURES_SEL, 1);
    mmio_write32(v->regs + DRIVER_FEATURES, (uint32_t)(features >> 32));
}

/* Memory lies below 4 GiB; the upper halves of the addresses are 0, but must be written. */
static void set_address(const struct virtio *v, enum reg reg, const void *p)
{
    mmio_write32(v->regs + reg, (uint32_t)(uintptr_t)p);
    mmio_write32(v->regs + reg + 4, 0);
}

static bool mmio_set_queue(struct virtio *v)
{
    mmio_write32(v->regs + QUEUE_SEL, 0);
    if (mmio_read32(v->regs + QUEUE_NUM_MAX) < VIRTQ_SIZE)
        return false;
    mmio_write32(v->regs + QUEUE_NUM, VIRTQ_SIZE);
    set_address(v, QUEUE_DESC, v->q->desc);
    set_address(v, QUEUE_DRIVER, &v->q->avail);
    set_address(v, QUEUE_DEVICE, &v->q->used);
    mmio_write32(v->regs + QUEUE_READY, 1);
    return true;
}

static void mmio_kick(const struct virtio *v)
{
    mmio_write32(v->regs + QUEUE_NOTIFY, 0);
}

static uint32_t mmio_config_generation(const struct virtio *v)
{
    return mmio_read32(v->regs + CONFIG_GENERATION);
}

const struct virtio_transport virtio_mmio = {
    .find = mmio_find,
    .status = mmio_status,
    .set_status = mmio_set_status,
    .offered = mmio_offered,
    .accept = mmio_accept,
    .set_queue = mmio_set_queue,
    .kick = mmio_kick,
    .config_generation = mmio_config_generation,
};
