/* SPDX-License-Identifier: MIT */
#ifndef US_PLAIN_H
#define US_PLAIN_H

#include "state.h"

/* How much from the region's start the limit has room for, to be plain; bytes. */
uint64_t us_plain_room(const us_mm_t *m, const us_region_t *r);
/* Makes blocks [from, to), counted from the region's first, plain. pre: those before them are, or from is 0. */
void us_plain_begin(us_pager_t *p, us_region_t *r, uint32_t from, uint32_t to);
/* Looks at a piece of what is registered, from block *cursor: blocks of which no page is there become EMPTY. false: there is
 * no more to look at. */
bool us_plain_probe(us_pager_t *p, us_region_t *r, uint32_t *cursor);
/* Registers a part of what is plain. false: there is nothing, or it can't be done now. */
bool us_plain_end_some(us_pager_t *p);
/* The same for what is plain of a region, if it has some in [first, last): US_DONE, US_AGAIN or -errno. */
int us_plain_end(us_pager_t *p, us_region_t *r, uint32_t first, uint32_t last);
/* The region goes. */
void us_plain_forget(us_mm_t *m, us_region_t *r);

#endif
