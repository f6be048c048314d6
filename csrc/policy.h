/* SPDX-License-Identifier: MIT */
#ifndef US_POLICY_H
#define US_POLICY_H

#include "state.h"

void us_policy_in(us_mm_t *m, us_region_t *r, uint32_t i);
void us_policy_back(us_mm_t *m, us_region_t *r, uint32_t i);
void us_policy_out(us_mm_t *m, us_region_t *r, uint32_t i);
uint32_t us_policy_victim(us_mm_t *m, uint64_t passed[2]);
void us_policy_pass(us_mm_t *m, us_region_t *r, uint32_t i, uint64_t passed[2]);
void us_policy_evicted(us_mm_t *m, us_region_t *r, uint32_t i);
/* Whether a block that a read swaps in is installed write-protected. ahead: before anybody has asked for it. */
bool us_policy_clean(us_region_t *r, bool ahead);
/* Whether its clean blocks are not nearly all written soon after. */
static inline bool us_policy_worth_clean(const us_region_t *r) { return r->write_bias < US_BIAS_WRITE; }
void us_policy_wrote(us_region_t *r);
void us_policy_evicted_clean(us_region_t *r);
bool us_policy_is_valid(us_mm_t *m, uint64_t *bytes);

void us_policy_cold(us_pager_t *p, uint32_t i);
void us_policy_cold_first(us_pager_t *p, uint32_t i);
void us_policy_warm(us_pager_t *p, uint32_t i);

#endif
