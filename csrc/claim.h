/* SPDX-License-Identifier: MIT
 *
 * Claims of blocks of inline regions (types.h): the steps that pager and handlers have in common.
 */
#ifndef US_CLAIM_H
#define US_CLAIM_H

#include "types.h"

static inline uint8_t us_claim_of(_Atomic uint8_t *claim) {
    return us_atomic_load_explicit(claim, memory_order_acquire);
}

/* Who has it: from one of FREE, CLEAN, DIRTY to another, holds as they are. false: it is not as in `from` (any more). */
static inline bool us_claim_turn(_Atomic uint8_t *claim, uint8_t from, uint8_t to) {
    uint8_t now = us_claim_of(claim);
    while ((now & US_CLAIM_WHO) == from) {
        if (us_atomic_compare_exchange_strong(claim, &now, (uint8_t)((now & ~US_CLAIM_WHO) | to)))
            return true;
    }
    return false;
}

/* The same where nobody holds it either. */
static inline bool us_claim_take_alone(_Atomic uint8_t *claim) {
    uint8_t now = US_CLAIM_FREE;
    return us_atomic_compare_exchange_strong(claim, &now, US_CLAIM_PAGER);
}

/* pre: the caller has it, as `from`. Holds may come and go meanwhile. */
static inline void us_claim_give(_Atomic uint8_t *claim, uint8_t from, uint8_t to) {
    us_atomic_fetch_add(claim, (uint8_t)(to - from));
}

#endif
