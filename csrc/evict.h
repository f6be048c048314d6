/* SPDX-License-Identifier: MIT */
#ifndef US_EVICT_H
#define US_EVICT_H

#include "state.h"

/* After so many commands in a row that were refused no victims are looked for, for so long: pinned, shared or locked pages. */
enum { US_BARREN = 64, US_GATE_NS = 50 * 1000 * 1000 };

void us_evict_some(us_pager_t *p);
int us_evict_range(us_pager_t *p, us_region_t *r, uint32_t *i, uint32_t last);
/* What is resident was raised above the limit, or the limit lowered: faults get their share of the way down. */
void us_evict_begin(us_mm_t *m);
/* Room for len more resident bytes: US_DONE, US_WAIT_ROOM, or -ENOSPC when nothing can leave. */
int us_evict_make_room(us_pager_t *p, uint64_t len);
/* The pool has no room, and nothing makes any: nothing more is taken for a while, unless much is freed. One warning, one
 * counter, no retries in a loop. */
void us_evict_noroom(us_pager_t *p);

#endif
