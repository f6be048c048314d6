/* SPDX-License-Identifier: MIT */
#ifndef US_ENTRY_H
#define US_ENTRY_H

#include "state.h"

void us_entry_swap_in(us_pager_t *p, us_region_t *r, uint32_t i, bool clean);
void us_entry_reserve(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_unreserve(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_dirty(us_pager_t *p, uint32_t i);
void us_entry_evict(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t slot);
void us_entry_evicted(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_evict_failed(us_pager_t *p, us_region_t *r, uint32_t i);
bool us_entry_moved(us_pager_t *p, uint32_t i, uint16_t gen, uint64_t from, uint64_t to, uint32_t size);
void us_entry_moving(us_pager_t *p, uint32_t i);
void us_entry_unmoved(us_pager_t *p, uint32_t i, uint16_t gen, uint64_t from);
void us_entry_lock(us_pager_t *p, uint32_t i);
void us_entry_unlock(us_pager_t *p, uint32_t i);
void us_entry_lost(us_pager_t *p, us_region_t *r, uint32_t i);
int us_entry_compressed(us_pager_t *p, const us_job_t *job);
void us_entry_uncopy(us_pager_t *p, uint32_t i);
bool us_entry_shifted(void *tier, uint32_t owner, uint32_t tag, uint64_t from, uint64_t to);
void us_entry_plain(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_wrapped(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_absent(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_registered(us_pager_t *p, us_region_t *r, uint32_t i, bool there);
void us_entry_forget(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_free_object(us_pager_t *p, us_entry_t e);

#endif
