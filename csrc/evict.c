/* SPDX-License-Identifier: MIT
 *
 * The way out: victims to commands, commands to the outbox, the outbox to the pool. us_pump commits what
 * mover and workers have finished; nothing here waits for either.
 *
 *    us_evict_some   resident > high mark: a batch of victims -> ring
 *    us_pump         status 0 of a take -> OUTBOX, job for a worker;  of a drop -> POOLED or FILLED
 *                    finished job       -> POOLED or FILLED, slot free
 *
 * Room. A take is posted only when the pool could hold the block raw, together with all that is pending;
 * copies of clean blocks make room first. When the pool still has none in the end (spans of the wrong
 * sizes), the block goes back to where it came from: it stays resident, over the limit if need be.
 */
#include "pager.h"

#include <stdlib.h>
#include <string.h>

#include "sys.h"

enum { GATE_NS = 50 * 1000 * 1000, STOPPED_NS = 50 * 1000 * 1000, BATCH_BYTES = 2 << 20, NO_ROOM_SCAN = 32, LOOK_MAX = 16384, BARREN = 64 };

/* ---- the outbox ------------------------------------------------------------------------------------- */

static uint32_t slot_alloc(us_outbox_t *o, uint32_t pages) {
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

void us_slot_free(us_pager_t *p, uint32_t slot) {
    us_outbox_t *o = &p->outbox;
    o->span[slot] |= US_SLOT_FREE;
    o->job[slot] = NULL;
    while (o->used > 0 && (o->span[o->tail] & US_SLOT_FREE)) {
        uint32_t n = o->span[o->tail] & ~US_SLOT_FREE;
        o->used -= n;
        o->tail = o->tail + n == o->pages ? 0 : o->tail + n;
    }
}

/* ---- room in the pool ------------------------------------------------------------------------------- */

static us_pool_t *first_pool(us_pager_t *p) { return p->tier[1].pool; }

/* Where the hand goes on from: an entry that may be in use, of a region. pre: there are regions. */
static us_region_t *turn_hand(us_pager_t *p, us_tier_t *t) {
    us_region_t *r = us_region_of(p, t->kept_hand);
    if (r != NULL)
        return r;
    r = p->byfirst[0]; /* past the last, unless there is one after the gap */
    for (uint32_t k = 0; k < p->live; k++) {
        if (p->byfirst[k]->first >= t->kept_hand) {
            r = p->byfirst[k];
            break;
        }
    }
    t->kept_hand = r->first;
    return r;
}

/* What was begun is gone on with by the next step, which comes at once. */
static void go_on(us_pager_t *p) {
    p->reclaiming = true;
    us_sys_eventfd_ring(p->worker_fd);
}

int us_reclaim(us_pager_t *p, us_tier_t *t, uint64_t bytes) {
    enum { LOOK = 1 << 16 }; /* entries: 1 MiB of the table, 0.1 to 0.2 ms */
    if (us_pool_used(t->pool) == 0) /* who asks again after US_DONE must find more than before */
        return -ENOSPC;
    const uint64_t want = us_pool_used(t->pool) > bytes ? us_pool_used(t->pool) - bytes : 0;
    uint64_t circle = 0;
    uint32_t looked = 0;
    for (uint32_t k = 0; k < p->live; k++)
        circle += p->byfirst[k]->count;
    us_region_t *r = NULL;
    while (us_pool_used(t->pool) > want) {
        if (t->s->kept == 0 || t->kept_passed >= circle) {
            t->kept_passed = 0;
            return -ENOSPC;
        }
        if (looked++ == LOOK) {
            go_on(p);
            return US_AGAIN;
        }
        if (r == NULL || t->kept_hand >= r->first + r->count)
            r = turn_hand(p, t);
        const uint32_t end = r->first + r->count;
        if (t->kept_hand == r->first || t->kept_hand % (US_PAGE / sizeof(us_entry_t)) == 0) {
            const uint32_t at = us_table_seek(p, t->kept_hand, end);
            t->kept_passed += at - t->kept_hand;
            t->kept_hand = at;
            if (at == end)
                continue;
        }
        const us_entry_t e = p->space.table[t->kept_hand];
        if ((e.flags & US_F_KEPT) && e.state == US_RESIDENT && !(e.flags & US_F_LOCKED) &&
            US_CODEC_OF(e) != US_FILL && us_tier_of(e) == t->id)
            us_entry_uncopy(p, t->kept_hand);
        t->kept_hand++;
        t->kept_passed++;
    }
    t->kept_passed = 0;
    return US_DONE;
}

/* Nothing more is taken for a while, unless much is freed: one warning, one counter, no retries in a loop. */
static void say_noroom(us_pager_t *p) {
    p->gate_until = us_now_ns() + GATE_NS;
    p->gate_used = us_pool_used(first_pool(p));
    p->s->refused_noroom++;
    if (!p->said_noroom) {
        p->said_noroom = true;
        us_event(p, (us_event_t){.kind = US_EV_NOROOM});
    }
}

/* *soon: what is sinking will make it. */
static bool pool_has_room(us_pager_t *p, uint32_t len, bool *soon) {
    if (p->gate_until != 0) {
        if (us_now_ns() < p->gate_until && us_pool_used(first_pool(p)) + (256 << 10) > p->gate_used)
            return false;
        p->gate_until = 0;
    }
    /* Spans are never quite full. Where waiting helps, the part that they lose is not promised. */
    const bool helps = us_tiers_help(p);
    const uint64_t budget = p->cfg.pool[0].budget, room = budget - (helps ? budget / 16 : 0);
    const uint64_t need = us_pool_used(first_pool(p)) + p->pending + len;
    if (need <= room)
        return true;
    if (helps) { /* the marks alone may leave less than a large block needs */
        p->tier[1].goal = us_min(p->tier[1].goal, room > len ? room - len : 0);
        us_tiers_sink(p);
        *soon = true;
        return false;
    }
    if (p->tier[1].next != NULL && p->pending > 0) { /* compressed, it can sink */
        *soon = true;
        return false;
    }
    const int reclaimed = us_reclaim(p, &p->tier[1], need - room);
    if (reclaimed == US_DONE)
        return true;
    if (reclaimed == US_AGAIN || us_tiers_squeeze(p)) {
        *soon = true;
        return false;
    }
    say_noroom(p);
    return false;
}

/* ---- victims ---------------------------------------------------------------------------------------- */

static us_cmd_t *next_command(us_pager_t *p) {
    if (p->head == p->seen)
        p->moved_at = us_now_ns();
    return &p->space.ring->cmd[p->head & (US_RING - 1)];
}

static void post(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t op, uint32_t slot, us_job_t *job) {
    p->posted[p->head & (US_RING - 1)] =
        (us_posted_t){.entry = i, .region = r->id, .len = us_block_len(r, i), .slot = slot, .job = job};
    us_cmd_t *c = next_command(p);
    c->op = op;
    c->addr = us_block_addr(r, i);
    c->len = us_block_len(r, i);
    c->slot = slot;
    atomic_store_explicit(&c->status, US_PENDING, memory_order_relaxed);
    p->head++;
}

static void ring_mover(us_pager_t *p) {
    us_ring_t *r = p->space.ring;
    atomic_store(&r->head, p->head); /* before mover_asleep is looked at */
    if (atomic_load(&r->mover_asleep) != 0)
        us_sys_eventfd_ring(p->cfg.doorbell);
}

/* A victim of a batch: drops before takes, both by address, so that vectors and runs form. */
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

/* Can block i leave now? Then it is picked. */
static int pick(us_pager_t *p, us_region_t *r, uint32_t i, us_pick_t *out, uint32_t *takes) {
    const us_entry_t e = p->space.table[i];
    if (!r->active || r->frozen || p->pins[i] != 0 || e.state != US_RESIDENT || (e.flags & US_F_LOCKED))
        return NOT_NOW;
    if (e.flags & US_F_KEPT) { /* locked at once: the next pick may reclaim copies */
        us_entry_leave(p, r, i, US_NONE);
        *out = (us_pick_t){US_CMD_DROP, i, r};
        return CAN;
    }
    const uint32_t len = us_block_len(r, i);
    if (*takes >= p->crew.idle_n || p->pending + len > (uint64_t)p->outbox.pages << US_PAGE_SHIFT)
        return NO_SLOT;
    bool soon = false;
    if (!pool_has_room(p, len, &soon))
        return soon ? NO_SLOT : NO_ROOM;
    *out = (us_pick_t){p->cfg.take == US_TAKE_COPY ? US_CMD_COPY : US_CMD_MOVE, i, r};
    p->pending += len;
    (*takes)++;
    return CAN;
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
            slot = slot_alloc(&p->outbox, len >> US_PAGE_SHIFT);
            if (slot == US_NONE) { /* the ring's end was too short for it: next time */
                p->pending -= len;
                us_policy_back(p, r, i);
                left = (uint32_t)us_min(left, i);
                continue;
            }
            job = us_crew_job(&p->crew);
            p->outbox.job[slot] = job;
            r->jobs++;
            us_entry_leave(p, r, i, slot);
        } else {
            us_policy_dropped(r);
        }
        post(p, r, i, v[k].op, slot, job);
    }
    ring_mover(p);
    return left;
}

static bool in_flight(const us_pager_t *p) {
    return p->head != p->seen || us_crew_busy(&p->crew) > 0 || us_tiers_busy(p) || p->reclaiming;
}

/* Nothing can leave a process that is stopped, since the mover is one of its threads; but others may read its memory
 * meanwhile (process_vm_readv of a profiler), and stand in the fault. Looked at only when the mover owes a status for long. */
static bool is_stopped(us_pager_t *p) {
    if (p->head == p->seen)
        return false;
    const uint64_t now = us_now_ns();
    if (now < p->stopped_until)
        return true;
    if (now - p->moved_at < STOPPED_NS || !us_place_stopped(&p->place))
        return false;
    p->stopped_until = now + STOPPED_NS;
    return true;
}

static uint32_t ring_room(const us_pager_t *p) { return US_RING - (uint32_t)(p->head - p->seen); }

bool us_evict_nofork(us_pager_t *p, uint64_t addr, uint64_t len) {
    if (ring_room(p) == 0)
        return false;
    us_cmd_t *c = next_command(p);
    p->posted[p->head & (US_RING - 1)] = (us_posted_t){.entry = US_NONE};
    c->op = US_CMD_NOFORK;
    c->addr = addr;
    c->spare = len;
    c->len = US_PAGE;
    c->slot = 0;
    atomic_store_explicit(&c->status, US_PENDING, memory_order_relaxed);
    p->head++;
    ring_mover(p);
    return true;
}

void us_evict_some(us_pager_t *p) {
    us_pick_t v[US_BATCH];
    uint32_t n = 0, takes = 0, looked = 0;
    uint64_t bytes = 0;
    if (p->refused >= BARREN && us_now_ns() < p->refused_until)
        return;
    const uint64_t staying = p->resident - p->leaving;
    const uint64_t want = us_min(staying > p->mark_low ? staying - p->mark_low : 0, BATCH_BYTES);
    uint64_t passed[2] = {0, 0};
    while (bytes < want && n < US_BATCH && n < ring_room(p) && looked++ < (n == 0 ? LOOK_MAX : 2 * US_BATCH)) {
        const uint32_t i = us_policy_victim(p, passed);
        if (i == US_NONE)
            break;
        us_region_t *r = us_region_of(p, i);
        int can = pick(p, r, i, &v[n], &takes);
        if (can == CAN) {
            us_policy_out(p, r, i);
            bytes += us_block_len(r, i);
            n++;
        } else if (can == NO_SLOT || (can == NO_ROOM && (n > 0 || looked > NO_ROOM_SCAN))) {
            break;
        } else { /* behind a block that can't leave there may be one that can, a clean one at least */
            us_policy_pass(p, r, i, passed);
        }
    }
    send(p, v, n);
}

int us_evict_range(us_pager_t *p, us_region_t *r, uint32_t *i, uint32_t last) {
    us_pick_t v[US_BATCH];
    uint32_t n = 0, takes = 0;
    int result = US_DONE;
    const uint32_t end = r->first + last;
    uint32_t e = us_table_seek(p, r->first + *i, end), looked = 0;
    for (; e < end; e = us_table_next(p, e, end)) {
        if (n == US_BATCH || n >= ring_room(p)) {
            result = US_WAIT_ROOM;
            break;
        }
        if (looked++ == US_SLICE) {
            result = US_AGAIN;
            break;
        }
        const us_entry_t now = p->space.table[e];
        if ((now.flags & US_F_LOCKED) && now.state != US_LEAVING) { /* a worker is bringing it in */
            result = US_WAIT_ROOM;
            break;
        }
        int can = pick(p, r, e, &v[n], &takes);
        if (can == CAN) {
            us_policy_out(p, r, e);
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

void us_evict_begin(us_pager_t *p) { p->top = p->resident > p->cfg.limit ? us_max(p->top, p->resident) : 0; }

/* Is there room for len more bytes? On the way down from far above the limit, which takes seconds for gigabytes, a fault does
 * not wait for the end: half of what leaves makes room for what comes. */
static bool has_room(us_pager_t *p, uint64_t len) {
    if (p->resident + len <= p->cfg.limit) {
        p->top = 0;
        return true;
    }
    if (len == 0 || p->resident + 2 * len > p->top)
        return false;
    p->top -= len;
    return true;
}

int us_evict_room(us_pager_t *p, uint64_t len) {
    if (p->resident - p->leaving + len > p->mark_high) {
        if (p->plain > 0)
            us_plain_end_some(p);
        us_evict_some(p);
    }
    if (has_room(p, len))
        return US_DONE;
    if (p->plain > 0 && us_plain_end_some(p)) {
        us_evict_some(p);
        if (has_room(p, len))
            return US_DONE;
    }
    if (p->refused >= BARREN) /* what could leave does not: the limit gives way, not the thread */
        return -ENOSPC;
    /* While the pool is full, only what is leaving right now can make room. */
    if (p->gate_until != 0 && p->leaving == 0)
        return -ENOSPC;
    if (is_stopped(p))
        return -ENOSPC;
    if (in_flight(p)) {
        p->want_progress = true;
        return US_WAIT_ROOM;
    }
    return -ENOSPC;
}

/* ---- completions ------------------------------------------------------------------------------------ */

static void commit_command(us_pager_t *p, us_posted_t q, int status) {
    if (q.entry == US_NONE)
        return;
    us_region_t *r = p->region[q.region];
    US_DELAY(US_D_COMMIT);
    if (status != 0) {
        if (++p->refused >= BARREN)
            p->refused_until = us_now_ns() + GATE_NS;
        if (status == -EBUSY || status == -EAGAIN)
            p->s->refused_pinned++;
        us_entry_stay(p, r, q.entry);
        if (status == -EUCLEAN) /* its pages had lost their protection: it may have been written */
            us_fault_unprotect(p, r, q.entry);
        if (q.job != NULL) {
            r->jobs--;
            p->pending -= q.len;
            us_slot_free(p, q.slot);
            us_crew_free(&p->crew, q.job);
        }
        return;
    }
    p->refused = 0;
    us_entry_left(p, r, q.entry);
    if (q.job == NULL)
        return;
    us_job_t *j = q.job;
    j->kind = US_JOB_PRESS;
    j->gen = p->space.table[q.entry].gen;
    j->entry = q.entry;
    j->region = q.region;
    j->raw = q.len;
    j->len = 0;
    j->slot = q.slot;
    j->src = p->space.outbox + (uint64_t)q.slot * US_PAGE;
    j->out = p->outbox.press + (uint64_t)q.slot * US_PAGE;
    j->choice = &r->choice[0];
    us_crew_post(&p->crew, j);
}

/* false: the job is not over; it was posted again, or is stalled. */
static bool commit_press(us_pager_t *p, us_region_t *r, us_job_t *j) {
    if (atomic_load_explicit(&j->phase, memory_order_relaxed) == US_CANCELLED)
        return true;
    us_tier_t *t = &p->tier[1];
    US_DELAY(US_D_COMMIT);
    int err = us_entry_pressed(p, j);
    bool again = false;
    if (err == -ENOSPC) { /* a step's worth at a time: other threads' faults wait behind this */
        again = us_pool_compact(t->pool, (1 << 20) + 4ull * j->raw, us_entry_shifted, t) > 0;
        err = us_entry_pressed(p, j);
    }
    if (err == -ENOSPC && !again) {
        again = us_reclaim(p, t, 4ull * j->len + (256 << 10)) != -ENOSPC;
        err = us_entry_pressed(p, j);
    }
    if (err == -ENOSPC && again)
        go_on(p);
    /* Room is being made: it is looked at again in the next step, or when something has sunk. */
    if (err == -ENOSPC && (again || us_tiers_squeeze(p))) {
        p->stalled[p->stalled_n++] = j;
        return false;
    }
    if (err != 0) { /* back to where it came from */
        say_noroom(p);
        const int res = us_fault_install(p, r, j->entry, true);
        if (res == US_AGAIN) {
            us_crew_post(&p->crew, j);
            us_crew_ring(&p->crew);
            return false;
        }
        if (res < 0) /* the user has unmapped it: there is nowhere to bring it, and nobody to miss it */
            us_entry_bring(p, r, j->entry, false);
        return true;
    }
    p->s->compressed_blocks++;
    p->s->compressed_raw += j->raw;
    p->s->compressed_out += j->codec == US_FILL ? 0 : j->len;
    p->s->shuffled_blocks += j->codec != US_FILL && us_codec_filter(j->codec) != US_FILTER_NONE;
    p->s->incompressible_blocks += j->codec == US_CODEC_NONE && j->status > 0;
    p->s->skipped_blocks += j->status == 2;
    return true;
}

static void commit_bring(us_pager_t *p, us_region_t *r, us_job_t *j) {
    US_DELAY(US_D_COMMIT);
    const uint64_t addr = us_block_addr(r, j->entry);
    const bool wake = (p->space.table[j->entry].flags & US_F_WAKE) != 0;
    bool clean = j->clean;
    us_entry_unreserve(p, r, j->entry);
    if (j->status == -EEXIST || j->status == -ENOENT) { /* a page was there, or it is several mappings */
        int r2 = us_fault_install(p, r, j->entry, true);
        (void)r2; /* US_AGAIN: stays out, the next fault tries again */
    } else if (j->status == 0) {
        us_entry_bring(p, r, j->entry, clean);
        us_trace_ahead(p, r, j->entry);
    }
    if (wake) {
        us_sys_wake(p->cfg.uffd, addr, us_block_len(r, j->entry));
        us_fault_waited(p, j->entry, j->status == 0 ? j->copied : 0);
    }
}

static void finish_press(us_pager_t *p, us_region_t *r, us_job_t *j) {
    if (!commit_press(p, r, j))
        return;
    p->pending -= j->raw;
    us_slot_free(p, j->slot);
    r->jobs--;
    us_crew_free(&p->crew, j);
}

void us_pump(us_pager_t *p) {
    const bool reclaiming = p->reclaiming;
    bool moved = reclaiming, pressing = false, sunk = false;
    p->reclaiming = false;
    while (p->seen < p->head) {
        const us_cmd_t *c = &p->space.ring->cmd[p->seen & (US_RING - 1)];
        const int status = atomic_load_explicit(&c->status, memory_order_acquire);
        if (status == US_PENDING)
            break;
        const us_posted_t q = p->posted[p->seen & (US_RING - 1)];
        p->seen++;
        commit_command(p, q, status);
        pressing |= q.job != NULL && status == 0;
        moved = true;
    }
    if (moved)
        p->moved_at = us_now_ns();
    if (pressing)
        us_crew_ring(&p->crew);
    for (us_job_t *j; (j = us_crew_done(&p->crew)) != NULL;) {
        us_region_t *r = p->region[j->region];
        moved = true;
        if (j->kind == US_JOB_PRESS) {
            finish_press(p, r, j);
        } else if (j->kind == US_JOB_RECODE) {
            us_tier_recoded(p, r, j);
            sunk = true;
        } else {
            if (j->slot != 0) {
                us_store_brought(p, r, j);
            } else {
                commit_bring(p, r, j);
                r->jobs--;
            }
            us_crew_free(&p->crew, j);
        }
    }
    sunk |= us_store_pump(p);
    moved |= sunk;
    if (p->stalled_n > 0 && (sunk || reclaiming || (p->tier[1].leaving == 0 && !us_tiers_busy(p)))) {
        us_job_t *again[US_JOBS];
        const uint32_t n = p->stalled_n;
        memcpy(again, p->stalled, n * sizeof(us_job_t *));
        p->stalled_n = 0;
        for (uint32_t k = 0; k < n; k++)
            finish_press(p, p->region[again[k]->region], again[k]);
    }
    if (moved && p->want_progress) {
        p->want_progress = false;
        us_event(p, (us_event_t){.kind = US_EV_PROGRESS});
    }
}
