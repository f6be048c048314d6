/* SPDX-License-Identifier: MIT */
#ifndef US_PAGER_H
#define US_PAGER_H

#include "state.h"

/* The pager's lock, from here to the end of the block, for what Python calls. */
us_pager_t *us_pager_locked(us_pager_t *p);
void us_pager_unlocked(us_pager_t **p);
#define US_LOCKED(p) us_pager_t *guard_ __attribute__((cleanup(us_pager_unlocked), unused)) = us_pager_locked(p)
/* What is counted elsewhere goes into the statistics. */
void us_pager_publish(us_pager_t *p);

#endif
