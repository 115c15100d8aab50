/* SPDX-License-Identifier: MIT
 *
 * The virtio handshake and one polled split virtqueue (virtio 1.2, sections 2.7 and 3.1). No
 * interrupts, no event indices, no indirect descriptors. Nothing that the device writes is believed
 * beyond what it can be checked against: an index or a head that cannot be breaks the device.
 *
 * Ordering: x86 keeps stores in order and loads in order; the kick is a store to uncached memory.
 * So compiler barriers are enough.
 */
#include "virtio.h"
#include "hull.h"
#include "kernel.h"

#define barrier() __asm__ volatile("" : : : "memory")

static const struct virtio_transport *transport(void)
{
    static const struct virtio_transport *t;

    if (!t)
        t = virtio_mmio_here() ? &virtio_mmio : &virtio_pci;
    return t;
}

static void reset(const struct virtio *v)
{
    struct wait w;

    v->transport->set_status(v, 0);
    wait_begin(&w);
    while (v->transport->status(v) != 0)
        wait_once(&w);
}

int virtio_open(struct virtio *v, unsigned slot, uint32_t device_id, uint64_t want, struct virtq *q)
{
    const struct virtio_transport *t = transport();
    uint8_t status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER;

    *v = (struct virtio){.transport = t, .q = q};
    if (!t->find(v, slot, device_id))
        return KERNEL_ENODEV;
    reset(v);
    t->set_status(v, status);
    v->features = t->offered(v) & (want | VIRTIO_F_VERSION_1);
    if (!(v->features & VIRTIO_F_VERSION_1))
        return KERNEL_ENODEV;
    t->accept(v, v->features);
    t->set_status(v, status |= VIRTIO_FEATURES_OK);
    if (!(t->status(v) & VIRTIO_FEATURES_OK))
        return KERNEL_ENODEV;
    q->avail.flags = VIRTQ_AVAIL_NO_INTERRUPT;
    barrier();
    if (!t->set_queue(v)) {
        reset(v);
        return KERNEL_ENODEV;
    }
    t->set_status(v, status | VIRTIO_DRIVER_OK);
    return KERNEL_OK;
}

uint8_t virtio_config8(const struct virtio *v, unsigned off)
{
    return mmio_read8(v->config + off);
}

uint32_t virtio_config32(const struct virtio *v, unsigned off)
{
    return mmio_read32(v->config + off);
}

uint64_t virtio_config64(const struct virtio *v, unsigned off)
{
    uint32_t before, after = v->transport->config_generation(v);
    uint64_t value;

    do {
        before = after;
        value = virtio_config32(v, off) | (uint64_t)virtio_config32(v, off + 4) << 32;
        after = v->transport->config_generation(v);
    } while (after != before);
    return value;
}

void virtio_break(struct virtio *v)
{
    v->broken = true;
    reset(v);
    v->in_flight = 0;
}

void virtq_add(struct virtio *v, unsigned head, const struct virtq_buf *buf, unsigned n)
{
    struct virtq *q = v->q;

    for (unsigned i = 0; i < n; i++)
        q->desc[head + i] = (struct virtq_desc){
            .addr = (uintptr_t)buf[i].addr,
            .len = buf[i].len,
            .flags = buf[i].flags | (i + 1 < n ? VIRTQ_DESC_NEXT : 0),
            .next = (uint16_t)(i + 1 < n ? head + i + 1 : 0),
        };
    v->in_flight |= 1ull << head;
    q->avail.ring[v->avail_idx % VIRTQ_SIZE] = (uint16_t)head;
    barrier();
    *(volatile uint16_t *)&q->avail.idx = ++v->avail_idx;
}

void virtio_kick(const struct virtio *v)
{
    barrier();
    v->transport->kick(v);
}

int virtq_take(struct virtio *v, uint32_t *len)
{
    uint16_t idx = *(volatile uint16_t *)&v->q->used.idx;
    struct virtq_used_elem e;

    if (v->broken || idx == v->used_idx)
        return -1;
    barrier();
    e = v->q->used.ring[v->used_idx % VIRTQ_SIZE];
    barrier();
    if ((uint16_t)(idx - v->used_idx) > (uint16_t)(v->avail_idx - v->used_idx) ||
        e.id >= VIRTQ_SIZE || !(v->in_flight & 1ull << e.id)) {
        virtio_break(v);
        return -1;
    }
    v->in_flight &= ~(1ull << e.id);
    v->used_idx++;
    *len = e.len;
    return (int)e.id;
}
