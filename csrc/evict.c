/* SPDX-License-Identifier: MIT
 *
 * The way out begins here: which blocks leave, with which commands, and whether there is room within the limit. What mover
 * and workers make of it pump.c commits. Nothing here waits for either.
 *
 * A changed block is evicted only when the pool could hold the block raw, together with all that is pending; copies of clean blocks
 * make room first.
 */
#include "evict.h"

#include <stdlib.h>
#include <string.h>

#include "entry.h"
#include "event.h"
#include "mm.h"
#include "outbox.h"
#include "plain.h"
#include "policy.h"
#include "reclaim.h"
#include "region.h"
#include "tier.h"
#include "sys.h"
#include "turn.h"

enum { STOPPED_NS = 50 * 1000 * 1000, BATCH_BYTES = 2 << 20, NO_ROOM_SCAN = 32, LOOK_MAX = 16384 };

/* ---- room in the pool ------------------------------------------------------------------------------- */

static uint64_t first_tier_used(const us_pager_t *p) { return p->tier[1].ops->used(&p->tier[1]); }

void us_evict_noroom(us_pager_t *p) {
    p->gate_until = us_now_ns() + US_GATE_NS;
    p->gate_used = first_tier_used(p);
    p->mm.s->refused_noroom++;
    if (!p->said_noroom) {
        p->said_noroom = true;
        us_event(p, (us_event_t){.kind = US_EV_NOROOM});
    }
}

/* How the first pool gets room. */
enum { FITS, GATED, WAIT, DEMOTE, RECLAIM };
typedef struct us_room_plan {
    int how;
    uint64_t bytes; /* DEMOTE: down to so many used bytes; RECLAIM: so many at least */
} us_room_plan_t;

/* Decides how the first pool gets room for len more bytes, as they are before they are compressed. */
static us_room_plan_t plan_pool_room(const us_pager_t *p, uint32_t len) {
    const uint64_t used = first_tier_used(p);
    if (p->gate_until != 0 && us_now_ns() < p->gate_until && used + (256 << 10) > p->gate_used)
        return (us_room_plan_t){.how = GATED};
    /* Spans are never quite full. Where waiting helps, the part that they lose is not promised. */
    const bool helps = us_tiers_help(p);
    const uint64_t budget = p->cfg.pool[0].budget, room = budget - (helps ? budget / 16 : 0);
    const uint64_t need = used + p->pending + len;
    if (need <= room)
        return (us_room_plan_t){.how = FITS};
    if (helps) /* the marks alone may leave less than a large block needs */
        return (us_room_plan_t){.how = DEMOTE, .bytes = room > len ? room - len : 0};
    if (p->tier[1].next != NULL && p->pending > 0) /* compressed, it can be demoted */
        return (us_room_plan_t){.how = WAIT};
    return (us_room_plan_t){.how = RECLAIM, .bytes = need - room};
}

/* Carries the plan out. US_DONE: there is room; US_WAIT_ROOM: what is under way will make it; -ENOSPC. */
static int make_pool_room(us_pager_t *p, uint32_t len) {
    const us_room_plan_t plan = plan_pool_room(p, len);
    if (plan.how == GATED)
        return -ENOSPC;
    p->gate_until = 0;
    switch (plan.how) {
    case FITS: return US_DONE;
    case WAIT: return US_WAIT_ROOM;
    case DEMOTE:
        p->tier[1].goal = us_min(p->tier[1].goal, plan.bytes);
        us_tiers_demote(p);
        return US_WAIT_ROOM;
    default: break;
    }
    const int reclaimed = us_reclaim(p, &p->tier[1], plan.bytes);
    if (reclaimed == US_DONE)
        return US_DONE;
    if (reclaimed == US_AGAIN || us_tiers_squeeze(p))
        return US_WAIT_ROOM;
    us_evict_noroom(p);
    return -ENOSPC;
}

/* ---- victims ---------------------------------------------------------------------------------------- */

/* A victim of a batch: clean ones before changed ones, both by address, so that vectors and runs form. */
typedef struct us_pick {
    uint32_t op, entry;
    us_region_t *region;
} us_pick_t;

static int by_place(const void *a, const void *b) {
    const us_pick_t *x = a, *y = b;
    if (x->op != y->op)
        return x->op < y->op ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

enum { CAN, NOT_NOW, NO_SLOT, NO_ROOM };

/* pre: the caller has taken block i. */
static int pick_taken(us_pager_t *p, us_region_t *r, uint32_t i, us_pick_t *out, uint32_t *takes) {
    const us_entry_t e = p->mm.space.table[i];
    if (!r->active || r->frozen || p->mm.pins[i] != 0 || e.state != US_RESIDENT || (e.flags & US_F_LOCKED))
        return NOT_NOW;
    if (e.flags & US_F_KEPT) { /* locked at once: the next pick may reclaim copies */
        us_entry_evict(p, r, i, US_NONE);
        *out = (us_pick_t){US_CMD_DROP, i, r};
        return CAN;
    }
    const uint32_t len = us_block_len(r, i);
    if (*takes >= p->crew.idle_n || p->pending + len > (uint64_t)p->mm.outbox.pages << US_PAGE_SHIFT)
        return NO_SLOT;
    const int room = make_pool_room(p, len);
    if (room != US_DONE)
        return room == US_WAIT_ROOM ? NO_SLOT : NO_ROOM;
    *out = (us_pick_t){p->mm.cfg.take == US_TAKE_COPY ? US_CMD_COPY : US_CMD_MOVE, i, r};
    p->pending += len;
    (*takes)++;
    return CAN;
}

/* Picks block i, if it can leave now. */
static int pick(us_pager_t *p, us_region_t *r, uint32_t i, us_pick_t *out, uint32_t *takes) {
    if (!us_take_alone(&p->mm, r, i))
        return NOT_NOW;
    const int can = pick_taken(p, r, i, out, takes);
    us_give(&p->mm, r, i);
    return can;
}

/* Returns the first entry that found no slot, or US_NONE. */
static uint32_t send(us_pager_t *p, us_pick_t *v, uint32_t n) {
    uint32_t left = US_NONE;
    if (n == 0)
        return left;
    qsort(v, n, sizeof *v, by_place);
    for (uint32_t k = 0; k < n; k++) {
        us_region_t *r = v[k].region;
        const uint32_t i = v[k].entry, len = us_block_len(r, i);
        uint32_t slot = US_NONE;
        us_job_t *job = NULL;
        if (v[k].op != US_CMD_DROP) {
            const bool taken = us_take_alone(&p->mm, r, i); /* a handler may have come since it was picked */
            slot = !taken ? US_NONE : us_outbox_slot(&p->mm.outbox, len >> US_PAGE_SHIFT);
            if (slot == US_NONE) { /* the ring's end was too short for it: next time */
                p->pending -= len;
                us_policy_back(&p->mm, r, i);
                if (taken)
                    us_give(&p->mm, r, i);
                left = (uint32_t)us_min(left, i);
                continue;
            }
            job = us_crew_job(&p->crew);
            p->mm.outbox.job[slot] = job;
            r->jobs++;
            us_entry_evict(p, r, i, slot);
            us_give(&p->mm, r, i);
        } else {
            us_policy_evicted_clean(r);
        }
        us_outbox_post(&p->mm, r, i, v[k].op, slot, job);
    }
    us_outbox_ring(&p->mm);
    return left;
}

static bool in_flight(const us_pager_t *p) {
    return p->mm.head != p->mm.seen || us_crew_busy(&p->crew) > 0 || us_tiers_busy(p) || p->reclaiming;
}

/* Nothing can leave a process that is stopped, since the mover is one of its threads; but others may read its memory
 * meanwhile (process_vm_readv of a profiler), and stand in the fault. Looked at only when the mover owes a status for long. */
static bool client_stopped(us_pager_t *p) {
    if (p->mm.head == p->mm.seen)
        return false;
    const uint64_t now = us_now_ns();
    if (now < p->mm.stopped_until)
        return true;
    if (now - p->mm.moved_at < STOPPED_NS || !us_place_stopped(&p->place))
        return false;
    p->mm.stopped_until = now + STOPPED_NS;
    return true;
}

void us_evict_some(us_pager_t *p) {
    us_pick_t v[US_BATCH];
    uint32_t n = 0, takes = 0, looked = 0;
    uint64_t bytes = 0;
    if (p->mm.refused >= US_BARREN && us_now_ns() < p->mm.refused_until)
        return;
    const uint64_t staying = us_mm_resident(&p->mm) - p->mm.leaving;
    const uint64_t want = us_min(staying > p->mm.mark_low ? staying - p->mm.mark_low : 0, BATCH_BYTES);
    uint64_t passed[2] = {0, 0};
    while (bytes < want && n < US_BATCH && n < us_outbox_room(&p->mm) &&
           looked++ < (n == 0 ? LOOK_MAX : 2 * US_BATCH)) {
        const uint32_t i = us_policy_victim(&p->mm, passed);
        if (i == US_NONE)
            break;
        us_region_t *r = us_region_of(&p->mm, i);
        int can = pick(p, r, i, &v[n], &takes);
        if (can == CAN) {
            us_policy_out(&p->mm, r, i);
            bytes += us_block_len(r, i);
            n++;
        } else if (can == NO_SLOT || (can == NO_ROOM && (n > 0 || looked > NO_ROOM_SCAN))) {
            break;
        } else { /* behind a block that can't leave there may be one that can, a clean one at least */
            us_policy_pass(&p->mm, r, i, passed);
        }
    }
    send(p, v, n);
}

int us_evict_range(us_pager_t *p, us_region_t *r, uint32_t *i, uint32_t last) {
    us_pick_t v[US_BATCH];
    uint32_t n = 0, takes = 0;
    int result = US_DONE;
    const uint32_t end = r->first + last;
    uint32_t e = us_table_seek(&p->mm, r->first + *i, end), looked = 0;
    for (; e < end; e = us_table_next(&p->mm, e, end)) {
        if (n == US_BATCH || n >= us_outbox_room(&p->mm)) {
            result = US_WAIT_ROOM;
            break;
        }
        if (looked++ == US_SLICE) {
            result = US_AGAIN;
            break;
        }
        const us_entry_t now = p->mm.space.table[e];
        if ((now.flags & US_F_LOCKED) && now.state != US_LEAVING) { /* a worker is swapping it in */
            result = US_WAIT_ROOM;
            break;
        }
        int can = pick(p, r, e, &v[n], &takes);
        if (can == CAN) {
            us_policy_out(&p->mm, r, e);
            n++;
        } else if (can == NO_SLOT || (can == NO_ROOM && (n > 0 || in_flight(p)))) {
            result = US_WAIT_ROOM;
            break;
        }
    }
    *i = e - r->first;
    const uint32_t left = send(p, v, n);
    if (left != US_NONE) {
        *i = left - r->first;
        result = US_WAIT_ROOM;
    }
    if (result == US_WAIT_ROOM)
        p->want_progress = true;
    return result;
}

void us_evict_begin(us_mm_t *m) { m->top = us_mm_resident(m) > m->cfg.limit ? us_max(m->top, us_mm_resident(m)) : 0; }

/* On the way down from far above the limit, which takes seconds for gigabytes, a fault does not wait for the end: half of
 * what leaves makes room for what comes. */
static bool has_share(const us_mm_t *m, uint64_t len) { return len != 0 && us_mm_resident(m) + 2 * len <= m->top; }

/* Lets len more bytes in, if there is room now. */
static bool admit(us_mm_t *m, uint64_t len) {
    const bool share = !us_mm_admit(m, len, m->cfg.limit);
    if (share && !has_share(m, len))
        return false;
    if (share)
        us_mm_admit(m, len, 0);
    m->top = share ? m->top - len : 0;
    return true;
}

/* There is no room: will there be? Where what could leave does not, the limit gives way, not the thread. While the pool is
 * full, only what is leaving right now can make room. */
static bool will_be_room(const us_pager_t *p) {
    return p->mm.refused < US_BARREN && (p->gate_until == 0 || p->mm.leaving > 0) && in_flight(p);
}

int us_evict_make_room(us_pager_t *p, uint64_t len) {
    us_mm_t *m = &p->mm;
    if (us_mm_resident(m) - m->leaving + len > m->mark_high) {
        if (m->plain > 0)
            us_plain_end_some(p);
        us_evict_some(p);
    }
    if (admit(m, len))
        return US_DONE;
    if (m->plain > 0 && us_plain_end_some(p)) {
        us_evict_some(p);
        if (admit(m, len))
            return US_DONE;
    }
    if (!will_be_room(p) || client_stopped(p))
        return -ENOSPC;
    p->want_progress = true;
    return US_WAIT_ROOM;
}
