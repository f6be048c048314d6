/* SPDX-License-Identifier: MIT */
#ifndef US_RECLAIM_H
#define US_RECLAIM_H

#include "state.h"

/* Gives up copies of clean blocks in a pool until `bytes` of payload are freed: US_DONE; US_AGAIN: a step's worth was looked
 * at, and the next step goes on; -ENOSPC: there are too few. */
int us_reclaim(us_pager_t *p, us_tier_t *t, uint64_t bytes);

#endif
