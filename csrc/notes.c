/* SPDX-License-Identifier: MIT
 *
 * The pager's half of inline faults: what handlers did comes into the books, what they can't do is served.
 *
 *   handler   swaps block 7 in  ->  claim CLEAN   ->  note  --+
 *                                                             |  us_notes: POOLED becomes RESIDENT, the queues, the
 *                                                             +->  statistics and read-ahead learn of it; claim FREE
 *   handler   block 9 is STORED ->  ask  ----> us_ask_next, a message like any other
 *                    waits      <-- us_ask_answer, where the kernel would wake
 *
 * Several notes may be of one block, and the first does the work for all: each says only that there may be something.
 */
#include "notes.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "claim.h"
#include "entry.h"
#include "mm.h"
#include "policy.h"
#include "readahead.h"
#include "region.h"
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

/* ---- notes ------------------------------------------------------------------------------------------- */

/* Block i, as its claim says. */
static void enter(us_pager_t *p, us_region_t *r, uint32_t i) {
    us_mm_t *m = &p->mm;
    us_claim_t *claim = &m->space.claim[i];
    const uint16_t who = us_claim_of(claim) & US_CLAIM_WHO;
    if ((who != US_CLAIM_CLEAN && who != US_CLAIM_DIRTY) || !us_claim_turn(claim, who, US_CLAIM_PAGER))
        return; /* another note did it; or it is being written, which is another note's */
    const us_entry_t e = m->space.table[i];
    US_ASSERT((e.flags & US_F_LOCKED) == 0);
    if (e.state != US_RESIDENT) { /* the handler has reserved its bytes */
        m->held += us_block_len(r, i);
        us_entry_swap_in(p, r, i, who == US_CLAIM_CLEAN);
    } else if (e.flags & US_F_CLEAN) {
        us_entry_dirty(p, i);
    }
    us_claim_give(claim, US_CLAIM_PAGER, US_CLAIM_FREE);
}

static void record(us_pager_t *p, const us_note_t *x) {
    us_mm_t *m = &p->mm;
    m->s->faults[x->kind]++;
    m->s->inline_faults++;
    us_hist_add(&m->space.stats->hist[x->kind], x->ns);
    if (p->trace.on)
        us_trace_add(&p->trace, x->kind, x->write != 0, x->entry, us_now_ns() - x->ns);
}

void us_notes(us_pager_t *p) {
    us_mm_t *m = &p->mm;
    us_inline_t *in = m->space.in;
    uint32_t tail = us_atomic_load_explicit(&in->note_tail, memory_order_relaxed);
    bool any = false;
    for (uint32_t n = 0; n < US_NOTES; n++) {
        us_note_t *at = &in->note[tail % US_NOTES];
        if (us_atomic_load_explicit(&at->turn, memory_order_acquire) != tail + 1)
            break;
        const us_note_t x = {.entry = at->entry, .ns = at->ns, .kind = at->kind, .write = at->write};
        us_atomic_store_explicit(&in->note_tail, ++tail, memory_order_release);
        us_region_t *r = x.entry < m->space.at.table_cap ? us_region_of(m, x.entry) : NULL;
        if (r == NULL || !r->handled ||
            x.kind > US_NOTE_AHEAD) /* memory that other code of the process has written to */
            continue;
        any = true;
        const bool empty = m->space.table[x.entry].state == US_EMPTY;
        enter(p, r, x.entry);
        if (x.kind == US_NOTE_AHEAD) {
            *(empty ? &m->s->readahead_empty_blocks : &m->s->readahead_blocks) += 1;
            us_trace_ahead(p, r, x.entry);
        } else {
            record(p, &x);
        }
        if (x.kind == US_KIND_PROTECTED)
            us_policy_wrote(r);
        else
            us_readahead(p, r, x.entry, x.write != 0);
        us_atomic_store_explicit(&in->writable[r->id % US_BIASES], !us_policy_worth_clean(r), memory_order_relaxed);
    }
    if (any)
        us_mm_admit(m, 0, 0);
}

bool us_notes_wait(us_pager_t *p) {
    us_mm_t *m = &p->mm;
    us_inline_t *in = m->space.in;
    const uint32_t n = us_atomic_load(&in->note_head) - us_atomic_load(&in->note_tail);
    return us_atomic_load(&in->asked) != m->asks_seen || n > US_NOTES / 2 ||
           (n > 0 && us_mm_resident(m) > us_atomic_load(&in->mark));
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
