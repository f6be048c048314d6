/* SPDX-License-Identifier: MIT
 *
 * What handlers did comes into the books. What they can't do they ask for: turn.c.
 *
 *   handler   swaps block 7 in  ->  claim CLEAN   ->  note  --+
 *                                                             |  us_notes: POOLED becomes RESIDENT, the queues, the
 *                                                             +->  statistics and read-ahead learn of it; claim FREE
 *
 * Several notes may be of one block, and the first does the work for all: each says only that there may be something.
 */
#include "notes.h"

#include "claim.h"
#include "entry.h"
#include "mm.h"
#include "policy.h"
#include "readahead.h"
#include "region.h"

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
