/* SPDX-License-Identifier: MIT
 *
 * Which block leaves next.
 *
 * Accesses are seen only as faults: a resident block that is used and one that is not look alike. So the
 * queues are FIFOs, as in S3-FIFO (Yang et al., SOSP 2023), with what can be known in place of hit counts:
 *
 *                                              v----+ a round that it has
 *    fault, seen lately  ------------------->  main --+--> leaves; stamped with the clock
 *    fault, not seen lately  -->  small  -------------+
 *
 * "Lately" is: left less than half a limit's worth of evictions ago (the stamp plays the ghost queue). A
 * scan passes through the small queue and leaves the main one alone. In place of hits, a block earns rounds:
 * each time that it comes back lately one more, up to seven, and one less when it comes back later. In the
 * main queue it may go round as often before it leaves; and each round that it has earned makes "lately"
 * longer by an eighth of the limit, since what was wanted often before is forgiven one long pause. The
 * outbox is a second chance: a block that is wanted while it waits there comes back without having been
 * compressed.
 *
 * `uswap trace simulate` has the same rules (uswap/trace/policies.py: "pager"), and others to compare with.
 */
#include "policy.h"

#include "region.h"
#include "sys.h"

/* ---- queues ----------------------------------------------------------------------------------------- */

static void push(us_mm_t *m, us_queue_t *q, uint32_t i) {
    m->node[i] = (us_node_t){.prev = q->tail, .next = US_NONE};
    if (q->tail != US_NONE)
        m->node[q->tail].next = i;
    else
        q->head = i;
    q->tail = i;
}

static void unlink_node(us_mm_t *m, us_queue_t *q, uint32_t i) {
    const us_node_t n = m->node[i];
    if (n.prev != US_NONE)
        m->node[n.prev].next = n.next;
    else
        q->head = n.next;
    if (n.next != US_NONE)
        m->node[n.next].prev = n.prev;
    else
        q->tail = n.prev;
}

static us_queue_t *queue_of(us_mm_t *m, uint32_t i) {
    return &m->queue[m->space.table[i].flags & US_F_MAIN ? US_MAIN : US_SMALL];
}

/* Room for what has come in once: a twentieth, and what is read ahead and must not leave before it is read. */
static uint64_t small_bytes(const us_mm_t *m) {
    return m->cfg.limit / 20 + us_min(m->cfg.readahead, m->cfg.limit / 16);
}

void us_policy_in(us_mm_t *m, us_region_t *r, uint32_t i) {
    us_rounds_t *mine = &m->rounds[i];
    const uint64_t age = m->evict_clock - m->stamp[i], limit = m->cfg.limit >> US_PAGE_SHIFT;
    const bool lately = m->stamp[i] != 0 && age * 8 <= limit * (4u + mine->earned);
    if (lately)
        mine->earned += mine->earned < US_ROUNDS;
    else
        mine->earned -= mine->earned > 0;
    mine->left = lately ? mine->earned : 0;
    us_entry_flag(m, i, US_F_MAIN, lately ? US_F_MAIN : 0);
    us_policy_back(m, r, i);
}

/* It was about to leave, and does not: to its queue again, as if it had been looked at there. */
void us_policy_back(us_mm_t *m, us_region_t *r, uint32_t i) {
    us_queue_t *q = queue_of(m, i);
    push(m, q, i);
    q->bytes += us_block_len(r, i);
    us_entry_flag(m, i, 0, US_F_QUEUED);
}

void us_policy_out(us_mm_t *m, us_region_t *r, uint32_t i) {
    us_queue_t *q = queue_of(m, i);
    unlink_node(m, q, i);
    q->bytes -= us_block_len(r, i);
    us_entry_flag(m, i, US_F_QUEUED, 0);
}

static us_queue_t *cold_of(us_pager_t *p, uint32_t i) { return &us_tier(p, p->mm.space.table[i])->cold; }

/* The next tier can't hold it: it stays where it is, and in nobody's way. */
static bool too_large(us_pager_t *p, uint32_t i) {
    const us_entry_t e = p->mm.space.table[i];
    const us_tier_t *next = us_tier(p, e)->next;
    return next != NULL && US_LENGTH_OF(e) > next->largest;
}

/* Blocks of a pool, in the order in which they came: what is demoted first stands first. */
void us_policy_cold(us_pager_t *p, uint32_t i) {
    if (too_large(p, i))
        return;
    us_queue_t *q = cold_of(p, i);
    push(&p->mm, q, i);
    q->bytes += US_LENGTH_OF(p->mm.space.table[i]);
    us_entry_flag(&p->mm, i, 0, US_F_QUEUED);
}

void us_policy_cold_first(us_pager_t *p, uint32_t i) {
    us_queue_t *q = cold_of(p, i);
    p->mm.node[i] = (us_node_t){.prev = US_NONE, .next = q->head};
    if (q->head != US_NONE)
        p->mm.node[q->head].prev = i;
    else
        q->tail = i;
    q->head = i;
    q->bytes += US_LENGTH_OF(p->mm.space.table[i]);
    us_entry_flag(&p->mm, i, 0, US_F_QUEUED);
}

/* Not to be demoted: it leaves the pool another way, or is on its way. */
void us_policy_warm(us_pager_t *p, uint32_t i) {
    if (p->mm.space.table[i].flags & US_F_QUEUED) {
        us_queue_t *q = cold_of(p, i);
        unlink_node(&p->mm, q, i);
        q->bytes -= US_LENGTH_OF(p->mm.space.table[i]);
    }
    us_entry_flag(&p->mm, i, US_F_QUEUED | US_F_WRITING, 0);
}

static void to_tail(us_mm_t *m, uint32_t i) {
    us_queue_t *q = queue_of(m, i);
    unlink_node(m, q, i);
    push(m, q, i);
}

/* Blocks at the main queue's head that have rounds left go round, a few. They are passed like those that can't leave, and
 * are there for the next search. One that was not passed is still at the head afterwards. */
static void go_round(us_mm_t *m, uint64_t passed[2]) {
    const us_queue_t *q = &m->queue[US_MAIN];
    for (int turns = 0; turns < US_TURNS && m->rounds[q->head].left > 0; turns++) {
        const uint32_t i = q->head;
        const uint32_t len = us_block_len(us_region_of(m, i), i);
        if (passed[US_MAIN] + len >= q->bytes)
            return;
        m->rounds[i].left--;
        to_tail(m, i);
        passed[US_MAIN] += len;
    }
}

/* The next to leave; it stays queued. passed: bytes of each queue that a search, which begins with none, has looked at
 * and does not want; they are at its tail. US_NONE: there is nothing else. */
uint32_t us_policy_victim(us_mm_t *m, uint64_t passed[2]) {
    const us_queue_t *small = &m->queue[US_SMALL], *main_q = &m->queue[US_MAIN];
    const bool more = main_q->bytes > passed[US_MAIN];
    if (small->bytes > passed[US_SMALL] + (more ? small_bytes(m) : 0))
        return small->head;
    if (more)
        go_round(m, passed);
    return more ? main_q->head : US_NONE;
}

/* The victim can't leave now: to the tail of its queue. */
void us_policy_pass(us_mm_t *m, us_region_t *r, uint32_t i, uint64_t passed[2]) {
    passed[queue_of(m, i) - m->queue] += us_block_len(r, i);
    to_tail(m, i);
}

void us_policy_evicted(us_mm_t *m, us_region_t *r, uint32_t i) {
    m->evict_clock += us_block_len(r, i) >> US_PAGE_SHIFT;
    m->stamp[i] = m->evict_clock == 0 ? 1 : m->evict_clock;
}

bool us_policy_is_valid(us_mm_t *m, uint64_t *bytes) {
    *bytes = 0;
    for (int k = 0; k < 2; k++) {
        uint64_t sum = 0;
        uint32_t prev = US_NONE;
        for (uint32_t i = m->queue[k].head; i != US_NONE; prev = i, i = m->node[i].next) {
            const us_entry_t e = m->space.table[i];
            us_region_t *r = us_region_of(m, i);
            if (r == NULL || e.state != US_RESIDENT || !(e.flags & US_F_QUEUED) ||
                ((e.flags & US_F_MAIN) != 0) != (k == US_MAIN) || m->node[i].prev != prev ||
                m->rounds[i].left > (k == US_MAIN ? m->rounds[i].earned : 0))
                return false;
            sum += us_block_len(r, i);
        }
        if (sum != m->queue[k].bytes || m->queue[k].tail != prev)
            return false;
        *bytes += sum;
    }
    return true;
}

/* ---- clean or not ----------------------------------------------------------------------------------- */

/* A region whose clean blocks are nearly all written soon after gets them writable at once, which saves
 * the second fault; each 16th is still protected, so that a change of habit is seen, and each 64th of those that are
 * read ahead, which are many. */
bool us_policy_clean(us_region_t *r, bool ahead) {
    return r->write_bias < US_BIAS_WRITE || r->tries++ % (ahead ? 64 : 16) == 0;
}

void us_policy_wrote(us_region_t *r) { r->write_bias += (US_BIAS_MAX - r->write_bias) / 16; }

void us_policy_evicted_clean(us_region_t *r) { r->write_bias -= r->write_bias / 16; }
