/* SPDX-License-Identifier: MIT */
#ifndef US_TIER_H
#define US_TIER_H

#include "state.h"

int us_tiers_open(us_pager_t *p);
void us_tiers_close(us_pager_t *p);
/* Demotes a bit of what is above the low mark in pools that were above the high one. True: call again when no fault waits. */
bool us_tiers_demote(us_pager_t *p);
/* Room for len bytes in a pool: US_DONE, US_WAIT_ROOM or -ENOSPC. The marks alone may leave less than a large block
 * needs, so who waits says down to what it has to be demoted. */
int us_tier_make_room(us_pager_t *p, us_tier_t *t, uint32_t len);
/* As us_pager_pool. */
int us_tier_budget(us_pager_t *p, us_tier_t *t, uint64_t budget);
/* The first pool is under its marks and has no room all the same, since its spans are sparse: moves a batch all the
 * same. false: nothing is on its way out of it. */
bool us_tiers_squeeze(us_pager_t *p);
/* Merges spans a little at a time while a pool holds much more than it uses. true: there may be more. */
bool us_tiers_tidy(us_pager_t *p);
/* Is one of them busy? See us_tier_ops_t. */
bool us_tiers_busy(const us_pager_t *p);
/* Does, or will, something that leaves the first pool make room in it? */
bool us_tiers_help(const us_pager_t *p);
/* Of the tier in which block i lies: the operation of that name. pre: it is STORED. */
static inline bool us_tier_fetch(us_pager_t *p, us_region_t *r, uint32_t i, bool write, uint64_t since) {
    us_tier_t *t = us_tier(p, p->mm.space.table[i]);
    return t->ops->fetch(p, t, r, i, write, since);
}
static inline uint32_t us_tier_fetch_run(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t end, bool write,
                                         uint64_t most) {
    us_tier_t *t = us_tier(p, p->mm.space.table[i]);
    return t->ops->fetch_run(p, t, r, i, end, write, most);
}
static inline bool us_tier_verify(us_pager_t *p, us_region_t *r, uint32_t i) {
    us_tier_t *t = us_tier(p, p->mm.space.table[i]);
    return t->ops->verify(p, t, r, i);
}
/* Of all tiers: the operation of that name. */
void us_tiers_submit(us_pager_t *p);
bool us_tiers_pump(us_pager_t *p);
bool us_tiers_completed(const us_pager_t *p);
void us_tiers_listen(us_pager_t *p, bool on);
void us_tiers_publish(us_pager_t *p);
/* A worker has recompressed. */
void us_tier_recompressed(us_pager_t *p, us_region_t *r, us_job_t *j);

#endif
