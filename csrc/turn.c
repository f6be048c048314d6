/* SPDX-License-Identifier: MIT */
#include "turn.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "claim.h"
#include "sys.h"

/* ---- claims ------------------------------------------------------------------------------------------ */

bool us_take(us_mm_t *m, const us_region_t *r, uint32_t i) {
    return !r->handled || us_claim_turn(&m->space.claim[i], US_CLAIM_FREE, US_CLAIM_PAGER);
}

bool us_take_alone(us_mm_t *m, const us_region_t *r, uint32_t i) {
    return !r->handled || us_claim_take_alone(&m->space.claim[i]);
}

bool us_is_claimed(us_mm_t *m, const us_region_t *r, uint32_t i) {
    return r->handled && (us_claim_of(&m->space.claim[i]) & US_CLAIM_WHO) != US_CLAIM_FREE;
}

void us_give(us_mm_t *m, const us_region_t *r, uint32_t i) {
    if (r->handled)
        us_claim_give(&m->space.claim[i], US_CLAIM_PAGER, US_CLAIM_FREE);
}

void us_forget(us_mm_t *m, const us_region_t *r, uint32_t i) {
    if (r->handled)
        us_atomic_store(&m->space.claim[i], US_CLAIM_FREE);
}

/* ---- asks -------------------------------------------------------------------------------------------- */

bool us_ask_next(us_mm_t *m, us_msg_t *msg, uint64_t *since) {
    us_inline_t *in = m->space.in;
    const uint32_t asked = us_atomic_load(&in->asked);
    if (asked == m->asks_seen)
        return false;
    for (uint32_t k = 0; k < US_ASKS; k++) {
        us_ask_t *a = &in->ask[m->ask_hand];
        m->ask_hand = (m->ask_hand + 1) % US_ASKS;
        if (us_atomic_load_explicit(&a->state, memory_order_acquire) != US_ASK_POSTED)
            continue;
        *msg = (us_msg_t){.addr = a->addr, .flags = a->flags, .tid = a->tid};
        *since = a->since;
        us_atomic_store(&a->state, US_ASK_TAKEN);
        m->asks++;
        return true;
    }
    m->asks_seen = asked; /* none was posted before that, and all after it count on */
    return false;
}

void us_ask_answer(us_mm_t *m, uint64_t addr, uint64_t len) {
    us_inline_t *in = m->space.in;
    for (uint32_t k = 0; k < US_ASKS && m->asks > 0; k++) {
        us_ask_t *a = &in->ask[k];
        if (us_atomic_load_explicit(&a->state, memory_order_relaxed) != US_ASK_TAKEN || a->addr - addr >= len)
            continue;
        m->asks--;
        us_atomic_store(&a->state, US_ASK_ANSWERED);
        syscall(SYS_futex, &a->state, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

void us_wake(us_mm_t *m, const us_region_t *r, uint64_t addr, uint64_t len) {
    us_sys_wake(r == NULL ? m->cfg.uffd : r->uffd, addr, len);
    us_ask_answer(m, addr, len);
}
