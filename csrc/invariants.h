/* SPDX-License-Identifier: MIT */
#ifndef US_INVARIANTS_H
#define US_INVARIANTS_H

#include "state.h"

/* 0, or the number of the invariant that does not hold. pre: the caller has the lock, between two transitions. */
int us_invariants(us_pager_t *p);
/* Ends the process unless all of them hold. */
void us_must_hold(us_pager_t *p);

#endif
