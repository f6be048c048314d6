/* SPDX-License-Identifier: MIT */
#ifndef US_FETCH_H
#define US_FETCH_H

#include "state.h"

/* Of the file's operations, see us_tier_ops_t. */
bool us_store_fetch(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, bool write, uint64_t since);
uint32_t us_store_fetch_run(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, uint32_t end, bool write,
                            uint64_t most);
bool us_store_verify(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i);
void us_store_submit(us_pager_t *p, us_tier_t *t);
void us_store_swapped_in(us_pager_t *p, us_tier_t *t, us_region_t *r, us_job_t *j);
int us_store_load(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, us_tier_t *to);
/* A read is done. */
void us_store_fetched(us_pager_t *p, us_read_t *rd);

#endif
