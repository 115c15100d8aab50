/* SPDX-License-Identifier: MIT
 *
 * Reading what a guest would see: an image with the chain of backing images below it.
 */
#ifndef PLANNER_COPY_H
#define PLANNER_COPY_H

#include "format.h"

/* [voff, voff+len) of img as its guest sees it, into buf; zeros past the end of an image of the
 * chain. Images that hold compressed data need img->scratch, and a decoder. */
int chain_read(struct image *img, u64 voff, void *buf, u64 len, struct err *e);

#endif
