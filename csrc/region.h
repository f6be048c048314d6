/* SPDX-License-Identifier: MIT */
#ifndef US_REGION_H
#define US_REGION_H

#include "state.h"

us_region_t *us_region_at(us_mm_t *m, uint64_t addr);
us_region_t *us_region_of(us_mm_t *m, uint32_t entry);
static inline us_region_t *us_region_by_id(us_mm_t *m, int id) {
    return id < 0 || (uint32_t)id >= m->regions ? NULL : m->region[id];
}
/* A new region, inactive, with a range of the table. -EEXIST: another one has a part of it; -ENOSPC: the table has no room. */
int us_region_new(us_mm_t *m, uint64_t addr, uint64_t len, uint32_t block, us_region_t **out);
/* pre: its entries are forgotten. */
void us_region_free(us_mm_t *m, us_region_t *r);

#endif
