/* SPDX-License-Identifier: MIT
 *
 * The growth limit of DESIGN section 2, "Need instead of trust".
 */
#include "growth.h"

#include <sys/statvfs.h>

enum { ALLOWANCE = 640 << 20 }; /* tables of the format, whatever the growth */

static uint64_t add_capped(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) || sum > INT64_MAX ? INT64_MAX : sum;
}

/* The growth of the virtual disk: known if relative; an absolute size is at least as large. */
static uint64_t asked_for(const instar_Request *r)
{
    if (r->which_op != instar_Request_resize_tag || r->op.resize.kind == instar_SizeKind_MINUS)
        return 0;
    return r->op.resize.size;
}

/* Does it copy data, of which nobody knows how much it is? */
static bool copies(const instar_Request *r)
{
    return r->which_op == instar_Request_rebase_tag && !r->op.rebase.unsafe;
}

static uint64_t most_of_free_space(const struct disk *d)
{
    struct statvfs fs;
    if (fstatvfs(d->fd, &fs) < 0)
        return ALLOWANCE;
    uint64_t available = (uint64_t)fs.f_bavail * fs.f_frsize;
    return available - available / 20;
}

uint64_t growth_limit(const struct job *job, const struct disk *d)
{
    if (d->device)
        return d->length;
    uint64_t more = job->max_growth;
    if (!job->limited && copies(&job->request)) {
        more = most_of_free_space(d);
    } else if (!job->limited) {
        uint64_t asked = asked_for(&job->request);
        more = add_capped(add_capped(asked, asked / 32), ALLOWANCE);
    }
    return add_capped(d->length, more);
}

int growth_within_limit(const struct disk *d, uint64_t length, struct err *e)
{
    if (length <= d->limit)
        return 0;
    if (d->device)
        return err_set(e, instar_Code_NO_SPACE,
                       "'%s' is a device of %llu bytes, and the new image needs %llu", d->name,
                       (unsigned long long)d->length, (unsigned long long)length);
    return err_set(e, instar_Code_NO_SPACE,
                   "The file '%s' would have to grow to %llu bytes, and its limit is %llu\n"
                   "If that is what you want, allow it with --max-growth=%llu",
                   d->name, (unsigned long long)length, (unsigned long long)d->limit,
                   (unsigned long long)(length - d->length));
}

int growth_check(const instar_Need *need, const struct disk *disks, unsigned count, struct err *e)
{
    for (unsigned i = 0; i < need->lengths_count; i++) {
        const instar_NeedLength *l = &need->lengths[i];
        if (l->slot >= count || !disks[l->slot].writable)
            return err_set(e, instar_Code_PROTOCOL,
                           "The guest asked for the growth of a disk (slot %u) that it may not "
                           "write",
                           (unsigned)l->slot);
        for (unsigned j = 0; j < i; j++)
            if (need->lengths[j].slot == l->slot)
                return err_set(e, instar_Code_PROTOCOL, "The guest asked twice for one disk");
        /* What is refused, is refused before the first byte is written: hence `eventual`. */
        uint64_t most = l->eventual > l->length ? l->eventual : l->length;
        if (growth_within_limit(&disks[l->slot], most, e) < 0)
            return -1;
    }
    return 0;
}
