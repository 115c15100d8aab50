/* SPDX-License-Identifier: MIT
 *
 * The virtio-pci transport (virtio 1.2, section 4.1), modern devices only: QEMU needs
 * `disable-legacy=on`. Slot n is function 0 of device 4 + n on bus 0. Configuration space is
 * reached through ports (PCI 3.0, section 3.2.2.3.2), two VM exits to a register, so that only what
 * is needed is read, and nothing is scanned.
 *
 * QEMU's devices have all their structures in one BAR. Firmware may have put it anywhere (SeaBIOS)
 * or nowhere (qboot): it is moved to a place of the slot's own that is mapped for ring 3 and that
 * no firmware uses. Interrupts are switched off.
 */
#include "hull.h"
#include "virtio.h"

enum { FIRST_DEVICE = 4, SLOTS = 24 };

/* Behind the APICs' pages; the last 16 KiB below 0xff000000 belong to KVM. */
#define BARS 0xfef00000u
enum { BAR_MAX = 0x8000 };
_Static_assert(BARS >= DEVICES_START && BARS + SLOTS * BAR_MAX <= 0xfeffc000u, "room for the BARs");

/* ---- configuration space ---- */

enum { VENDOR = 0x1af4, MODERN = 0x1040 /* + the device type */ };

enum pci_reg {
    PCI_ID = 0x00,
    PCI_COMMAND = 0x04, /* the upper half, status, ignores zeros */
    PCI_BAR = 0x10,
    PCI_CAPABILITIES = 0x34,
    PCI_HEADER_END = 0x40,
    PCI_END = 0x100
};
enum { COMMAND_MEMORY = 1 << 1, COMMAND_MASTER = 1 << 2, COMMAND_NO_INTX = 1 << 10 };
enum { BAR_IO = 1 << 0, BAR_TYPE = 3 << 1, BAR_64 = 2 << 1, BAR_FLAGS = 15 };

static void config_select(unsigned slot, unsigned reg)
{
    outl(PCI_CONFIG, 1u << 31 | (FIRST_DEVICE + slot) << 11 | (reg & 0xfc));
}

static uint32_t config_read(unsigned slot, unsigned reg)
{
    config_select(slot, reg);
    return inl(PCI_CONFIG + 4);
}

static void config_write(unsigned slot, unsigned reg, uint32_t v)
{
    config_select(slot, reg);
    outl(PCI_CONFIG + 4, v);
}

/* ---- capabilities: where the device has its structures ---- */

enum { CAP_VENDOR = 9, CAPS_MAX = (PCI_END - PCI_HEADER_END) / 4 };
enum { CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_NOTIFY_STEP = 16 };
enum cfg_type { COMMON_CFG = 1, NOTIFY_CFG = 2, DEVICE_CFG = 4, CFG_TYPES = 5 };

struct structure {
    bool found;
    uint8_t bar;
    uint32_t off, len; /* in the BAR */
    uint32_t step;     /* NOTIFY_CFG only: notify_off_multiplier */
};

static void structure_read(struct structure *s, unsigned slot, unsigned cap, bool notify)
{
    s->found = true;
    s->bar = (uint8_t)config_read(slot, cap + CAP_BAR);
    s->off = config_read(slot, cap + CAP_OFFSET);
    s->len = config_read(slot, cap + CAP_LENGTH);
    if (notify)
        s->step = config_read(slot, cap + CAP_NOTIFY_STEP);
}

/* Walks the list until all three are found; of several of a type, the first counts. */
static bool structures_find(struct structure s[CFG_TYPES], unsigned slot)
{
    unsigned cap = config_read(slot, PCI_CAPABILITIES) & 0xfc, wanted = 3;

    for (unsigned i = 0; cap >= PCI_HEADER_END && i < CAPS_MAX; i++) {
        uint32_t head = config_read(slot, cap); /* cap_vndr, cap_next, cap_len, cfg_type */
        unsigned len = head >> 16 & 0xff, type = head >> 24;
        bool notify = type == NOTIFY_CFG;

        if ((head & 0xff) == CAP_VENDOR && (type == COMMON_CFG || notify || type == DEVICE_CFG) &&
            !s[type].found) {
            if (len < (notify ? CAP_NOTIFY_STEP + 4 : CAP_LENGTH + 4) || cap + len > PCI_END)
                return false;
            structure_read(&s[type], slot, cap, notify);
            if (--wanted == 0)
                return true;
        }
        cap = head >> 8 & 0xfc;
    }
    return false;
}

/* Moves the BAR to the slot's own place, and switches the device on. Returns its size, 0 if it is
 * not one of memory or too large. */
static uint32_t bar_place(unsigned slot, unsigned bar)
{
    unsigned reg = PCI_BAR + 4 * bar;
    uint32_t mask, size;
    bool wide;

    config_write(slot, PCI_COMMAND, 0);
    config_write(slot, reg, ~0u);
    mask = inl(PCI_CONFIG + 4);
    wide = (mask & BAR_TYPE) == BAR_64;
    size = -(mask & ~(uint32_t)BAR_FLAGS);
    if (mask & BAR_IO || size == 0 || size > BAR_MAX || (size & (size - 1)) != 0)
        return 0;
    outl(PCI_CONFIG + 4, BARS + slot * BAR_MAX);
    if (wide)
        config_write(slot, reg + 4, 0);
    config_write(slot, PCI_COMMAND, COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX);
    return size;
}

/* ---- the transport ---- */

enum common {
    DEVICE_FEATURE_SELECT = 0x00,
    DEVICE_FEATURE = 0x04,
    DRIVER_FEATURE_SELECT = 0x08,
    DRIVER_FEATURE = 0x0c,
    DEVICE_STATUS = 0x14,
    CONFIG_GENERATION = 0x15,
    QUEUE_SELECT = 0x16,
    QUEUE_SIZE = 0x18,
    QUEUE_ENABLE = 0x1c,
    QUEUE_NOTIFY_OFF = 0x1e,
    QUEUE_DESC = 0x20,
    QUEUE_DRIVER = 0x28,
    QUEUE_DEVICE = 0x30,
    COMMON_LENGTH = 0x38
};

static bool pci_find(struct virtio *v, unsigned slot, uint32_t device_id)
{
    static const struct {
        enum cfg_type type;
        uint32_t len;
    } need[] = {{COMMON_CFG, COMMON_LENGTH}, {NOTIFY_CFG, 2}, {DEVICE_CFG, VIRTIO_CONFIG_LENGTH}};
    struct structure s[CFG_TYPES] = {0};
    uintptr_t base = BARS + slot * BAR_MAX;
    unsigned bar;
    uint32_t size;

    if (slot >= SLOTS || config_read(slot, PCI_ID) != (VENDOR | (MODERN + device_id) << 16) ||
        !structures_find(s, slot))
        return false;
    bar = s[COMMON_CFG].bar;
    if (bar > 5 || (size = bar_place(slot, bar)) == 0)
        return false;
    for (unsigned i = 0; i < 3; i++) {
        const struct structure *x = &s[need[i].type];

        if (x->bar != bar || x->len < need[i].len || x->len > size || x->off > size - x->len)
            return false;
    }
    v->regs = base + s[COMMON_CFG].off;
    v->config = base + s[DEVICE_CFG].off;
    v->notify = base + s[NOTIFY_CFG].off;
    v->notify_len = s[NOTIFY_CFG].len;
    v->notify_step = s[NOTIFY_CFG].step;
    return true;
}

static uint8_t pci_status(const struct virtio *v)
{
    return mmio_read8(v->regs + DEVICE_STATUS);
}

static void pci_set_status(const struct virtio *v, uint8_t status)
{
    mmio_write8(v->regs + DEVICE_STATUS, status);
}

static uint64_t pci_offered(const struct virtio *v)
{
    uint64_t low;

    mmio_write32(v->regs + DEVICE_FEATURE_SELECT, 0);
    low = mmio_read32(v->regs + DEVICE_FEATURE);
    mmio_write32(v->regs + DEVICE_FEATURE_SELECT, 1);
    return low | (uint64_t)mmio_read32(v->regs + DEVICE_FEATURE) << 32;
}

static void pci_accept(const struct virtio *v, uint64_t features)
{
    mmio_write32(v->regs + DRIVER_FEATURE_SELECT, 0);
    mmio_write32(v->regs + DRIVER_FEATURE, (uint32_t)features);
    mmio_write32(v->regs + DRIVER_FEATURE_SELECT, 1);
    mmio_write32(v->regs + DRIVER_FEATURE, (uint32_t)(features >> 32));
}

static void set_address(const struct virtio *v, enum common field, const void *p)
{
    mmio_write32(v->regs + field, (uint32_t)(uintptr_t)p);
    mmio_write32(v->regs + field + 4, 0);
}

static bool pci_set_queue(struct virtio *v)
{
    uint64_t off;

    mmio_write16(v->regs + QUEUE_SELECT, 0);
    if (mmio_read16(v->regs + QUEUE_SIZE) < VIRTQ_SIZE)
        return false;
    off = (uint64_t)mmio_read16(v->regs + QUEUE_NOTIFY_OFF) * v->notify_step;
    if (off > v->notify_len - 2)
        return false;
    v->notify += off;
    mmio_write16(v->regs + QUEUE_SIZE, VIRTQ_SIZE);
    set_address(v, QUEUE_DESC, v->q->desc);
    set_address(v, QUEUE_DRIVER, &v->q->avail);
    set_address(v, QUEUE_DEVICE, &v->q->used);
    mmio_write16(v->regs + QUEUE_ENABLE, 1);
    return true;
}

static void pci_kick(const struct virtio *v)
{
    mmio_write16(v->notify, 0);
}

static uint32_t pci_config_generation(const struct virtio *v)
{
    return mmio_read8(v->regs + CONFIG_GENERATION);
}

const struct virtio_transport virtio_pci = {
    .find = pci_find,
    .status = pci_status,
    .set_status = pci_set_status,
    .offered = pci_offered,
    .accept = pci_accept,
    .set_queue = pci_set_queue,
    .kick = pci_kick,
    .config_generation = pci_config_generation,
};
