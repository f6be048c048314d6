/* SPDX-License-Identifier: MIT */
#ifndef US_READAHEAD_H
#define US_READAHEAD_H

#include "state.h"

/* A fault on block i was served: swaps in along what will be wanted next. */
void us_readahead(us_pager_t *p, us_region_t *r, uint32_t i, bool write);

#endif
