/* SPDX-License-Identifier: MIT */
#ifndef US_FETCH_H
#define US_FETCH_H

#include "state.h"

/* Begins to swap STORED block i in, for which a thread stands still. false: no slot is free. */
bool us_store_fetch(us_pager_t *p, us_region_t *r, uint32_t i, bool write, uint64_t since);
/* Begins to swap STORED block i in ahead of its use, and with it, in the same read, those after it and before `end`
 * that lie near it in the file; the others only as long as no more than `most` bytes are resident then. Returns how
 * many; 0: no slot is free. us_store_flush hands the reads over. */
uint32_t us_store_fetch_run(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t end, bool write, uint64_t most);
void us_store_flush(us_pager_t *p);
/* Begins to read STORED block i to see whether it can be. false: too many are being read just now. */
bool us_store_verify(us_pager_t *p, us_region_t *r, uint32_t i);
/* A worker is done with a block that was read ahead. */
void us_store_swapped_in(us_pager_t *p, us_region_t *r, us_job_t *j);
/* Begins to read what lies in the file for tier `to`; see us_tier_ops_t. */
int us_store_load(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, us_tier_t *to);
/* A read is done. */
void us_store_fetched(us_pager_t *p, us_read_t *rd);

#endif
