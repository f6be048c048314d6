/* SPDX-License-Identifier: MIT
 *
 * Claims of blocks of inline regions (types.h): the steps that pager and handlers have in common.
 */
#ifndef US_CLAIM_H
#define US_CLAIM_H

#include "types.h"

static inline uint16_t us_claim_of(us_claim_t *claim) { return us_atomic_load_explicit(claim, memory_order_acquire); }

/* Who has it: from one of FREE, CLEAN, DIRTY to another, holds as they are. false: it is not as in `from` (any more). */
static inline bool us_claim_turn(us_claim_t *claim, uint16_t from, uint16_t to) {
    uint16_t now = us_claim_of(claim);
    while ((now & US_CLAIM_WHO) == from) {
        if (us_atomic_compare_exchange_strong(claim, &now, (uint16_t)((now & ~US_CLAIM_WHO) | to)))
            return true;
    }
    return false;
}

/* The same where nobody holds it either. */
static inline bool us_claim_take_alone(us_claim_t *claim) {
    uint16_t now = US_CLAIM_FREE;
    return us_atomic_compare_exchange_strong(claim, &now, US_CLAIM_PAGER);
}

/* pre: the caller has it, as `from`. Holds may come and go meanwhile. */
static inline void us_claim_give(us_claim_t *claim, uint16_t from, uint16_t to) {
    us_atomic_fetch_add(claim, (uint16_t)(to - from));
}

#endif
