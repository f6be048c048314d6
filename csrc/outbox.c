/* SPDX-License-Identifier: MIT
 *
 * What the mover is told, and where it puts what it takes: commands in the ring, slots in the outbox.
 */
#include "outbox.h"

#include "sys.h"

/* ---- slots ------------------------------------------------------------------------------------------- */

uint32_t us_outbox_slot(us_outbox_t *o, uint32_t pages) {
    if (o->used == 0) /* start anew where the caches are warm */
        o->head = o->tail = 0;
    uint32_t at = o->head;
    if (o->used > 0 && o->head <= o->tail) { /* wrapped: the free part is [head, tail) */
        if (o->tail - o->head < pages)
            return US_NONE;
    } else if (o->pages - o->head < pages) { /* the end is too short: fill it up and begin in front */
        if (o->tail < pages)
            return US_NONE;
        uint32_t rest = o->pages - o->head;
        if (rest > 0) {
            o->span[o->head] = rest | US_SLOT_FREE;
            o->used += rest;
        }
        at = 0;
    }
    o->span[at] = pages;
    o->job[at] = NULL;
    o->used += pages;
    o->head = at + pages == o->pages ? 0 : at + pages;
    return at;
}

void us_outbox_free(us_mm_t *m, uint32_t slot) {
    us_outbox_t *o = &m->outbox;
    o->span[slot] |= US_SLOT_FREE;
    o->job[slot] = NULL;
    while (o->used > 0 && (o->span[o->tail] & US_SLOT_FREE)) {
        uint32_t n = o->span[o->tail] & ~US_SLOT_FREE;
        o->used -= n;
        o->tail = o->tail + n == o->pages ? 0 : o->tail + n;
    }
}

/* ---- commands ---------------------------------------------------------------------------------------- */

/* pre: the ring has room. */
static void put(us_mm_t *m, us_posted_t posted, uint32_t op, uint64_t addr, uint32_t len, uint64_t spare) {
    us_cmd_t *c = &m->space.ring->cmd[m->head & (US_RING - 1)];
    if (m->head == m->seen)
        m->moved_at = us_now_ns();
    m->posted[m->head & (US_RING - 1)] = posted;
    c->op = op;
    c->addr = addr;
    c->len = len;
    c->slot = posted.slot;
    c->spare = spare;
    us_atomic_store_explicit(&c->status, US_PENDING, memory_order_relaxed);
    m->head++;
}

void us_outbox_post(us_mm_t *m, us_region_t *r, uint32_t i, uint32_t op, uint32_t slot, us_job_t *job) {
    const uint32_t len = us_block_len(r, i);
    put(m, (us_posted_t){.entry = i, .region = r->id, .len = len, .slot = slot, .job = job}, op, us_block_addr(r, i),
        len, r->handled);
}

void us_outbox_ring(us_mm_t *m) {
    us_ring_t *r = m->space.ring;
    us_atomic_store(&r->head, m->head); /* before mover_asleep is looked at */
    if (us_atomic_load(&r->mover_asleep) != 0)
        us_sys_eventfd_ring(m->cfg.doorbell);
}

bool us_outbox_nofork(us_mm_t *m, uint64_t addr, uint64_t len) {
    if (us_outbox_room(m) == 0)
        return false;
    put(m, (us_posted_t){.entry = US_NONE}, US_CMD_NOFORK, addr, US_PAGE, len);
    us_outbox_ring(m);
    return true;
}
