/* SPDX-License-Identifier: MIT
 *
 * Which sizes a VHD can have, and how its footer says them so that every reader reads the same
 * (parity D.4): qemu to 9.x and qemu from 10 on go by the geometry for different creators, Hyper-V
 * never does. And how a larger BAT is found room for. Pure functions of scalars.
 */
#ifndef PLANNER_VHD_SIZE_H
#define PLANNER_VHD_SIZE_H

#include "vhd.h"

/* A size as a footer says it. */
struct vhd_size {
    u64 size; /* of the disk; current_size too, but where the size does not change */
    u64 current_size;
    struct vhd_geometry geometry;
};

/* The footer of a disk of `now` bytes that is asked to become `want` bytes long; at least that, and
 * whole sectors.
 * - By geometry ("qemu", "vpc "): the next size that a geometry can say, as qemu-img create does.
 *   A shrink for which there is none stays at `now`; a grow also covers what readers of
 *   current_size take for the disk already, as far as that is rounding.
 * - By current_size for all versions ("win ", "qem2", ...): exact; the specification's geometry, or
 *   the largest, if that is what it had.
 * - By either, depending on the version (all others): exact; the specification's geometry if it
 * says that size, else the largest, which no reader goes by. */
struct vhd_size vhd_fit(const struct vhd *v, u64 now, u64 want);

/* Does no reader, of whatever version, go by the geometry of this creator's images? */
bool vhd_never_by_chs(const struct vhd *v);

enum vhd_grow_action { VHD_TABLE_ENOUGH, VHD_TABLE_IN_PLACE, VHD_TABLE_MOVES };

struct vhd_grow_in {
    u64 entries, want; /* entries of the BAT: that it has, that it needs */
    u64 table_offset;
    u64 next;     /* the first byte behind the BAT that is in use, or cannot be */
    u64 used_end; /* where the last structure ends, but for the footer */
    u64 tail;     /* the footer at the end of the file; 0: none */
};
struct vhd_grow {
    enum vhd_grow_action action;
    u64 entries, table_offset; /* then */
};
/* A BAT that is long enough, or can become so where it is, stays. Else it moves: between the last
 * structure and the footer if it fits there, else behind the footer, which stays until another ends
 * the file. */
struct vhd_grow vhd_grow_query(const struct vhd_grow_in *in);

#endif
