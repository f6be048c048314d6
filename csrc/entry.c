/* SPDX-License-Identifier: MIT
 *
 * The state machine of a block. Every change of an entry is made here, by the owner of the lock, in one store.
 *
 *                     +------------------- write: gen + 1 --------------------+
 *                     |                                                       |
 *    EMPTY  ------+   |                                             evict     v
 *    FILLED ------+--swap in-->  RESIDENT (clean, copy kept) --dirty-->  RESIDENT (changed)
 *    POOLED ------+               |          ^      ^                       |        ^
 *       ^                       evict     failed  swap in                 evict    failed
 *       |                         v          |      |                       v        |
 *       +-------evicted------  LEAVING ------+   OUTBOX  <----evicted---  LEAVING ---+
 *       |                                           |
 *       +----------------compressed-----------------+
 *
 *   transition      function                 who asks
 *   swap in         us_entry_swap_in         install.c (inline), pump.c (a worker's read-ahead, or put back), fetch.c
 *   reserve         us_entry_reserve         install.c, fault.c, fetch.c: locked while it is swapped in
 *   unreserve       us_entry_unreserve       pump.c, fault.c, fetch.c: whoever swaps it in is done
 *   lock            us_entry_lock            fetch.c: locked while it is read and not swapped in
 *   unlock          us_entry_unlock          fetch.c: the read is done
 *   lost            us_entry_lost            install.c: POOLED or STORED, and can't be read back: LOST, for ever
 *   dirty           us_entry_dirty           install.c: first write to a clean block
 *   evict           us_entry_evict           evict.c, with the command: DROP of a clean block, MOVE or COPY of a changed one
 *   evicted         us_entry_evicted         pump.c: the mover's status is 0
 *   failed          us_entry_evict_failed    pump.c: the mover's status is an error
 *   compressed      us_entry_compressed      pump.c: a worker has compressed the slot
 *   uncopy          us_entry_uncopy          reclaim.c: the copy's room is wanted
 *   moving          us_entry_moving          tier.c, writeout.c: its object is on its way to another tier
 *   moved           us_entry_moved           tier.c, writeout.c: it has arrived: POOLED <-> STORED, or the copy has moved
 *   unmoved         us_entry_unmoved         the same: it has not, and stays where it was
 *   shifted         us_entry_shifted         pool.c, while it merges spans
 *   plain           us_entry_plain           plain.c: EMPTY to PLAIN, before the region is active
 *   wrapped         us_entry_wrapped         pager.c: EMPTY to RESIDENT, the same, where there are bytes already
 *   absent          us_entry_absent          plain.c: RESIDENT to EMPTY: it turns out that no page is there
 *   registered      us_entry_registered      plain.c: PLAIN to RESIDENT, or to EMPTY where no page is there
 *   forget          us_entry_forget          pager.c: the region goes
 *
 * In each state holds, beside E1 to E7 of types.h:
 *   EMPTY, FILLED, POOLED   no page of the block is in the client, but while a worker swaps it in (LOCKED)
 *   OUTBOX                  the same; the slot's job is queued, busy, or done and not yet looked at
 *   RESIDENT clean          every page is there and write-protected
 *   RESIDENT changed        pages may be missing (the user gave them back): those are zeros
 *   PLAIN                   the memory is not registered: pages come and go as the kernel likes
 *   LEAVING                 each page is in the client, in staging or in the slot, as the status says
 */
#include "entry.h"

#include <string.h>

#include "debug.h"
#include "event.h"
#include "mm.h"
#include "policy.h"
#include "region.h"
#include "work.h"
#include "sys.h"
#include "turn.h"

/* What a transition finds: the entry is in one of these states, with these flags and without those. */
#define IN(state) (1u << (state))
#define OUT (IN(US_EMPTY) | IN(US_FILLED) | IN(US_POOLED) | IN(US_STORED))
static void expect(const us_mm_t *m, uint32_t i, uint32_t states, uint8_t with, uint8_t without) {
    const us_entry_t e = m->space.table[i];
    (void)e, (void)states, (void)with, (void)without;
    US_ASSERT(states >> e.state & 1);
    US_ASSERT((e.flags & with) == with);
    US_ASSERT((e.flags & without) == 0);
}

static void put(us_mm_t *m, uint32_t i, us_entry_t e) { us_entry_store(&m->space.table[i], e); }

static void unlock(us_pager_t *p, uint32_t i, us_entry_t *e) {
    if (e->flags & US_F_WAITED)
        us_event(p, (us_event_t){.kind = US_EV_UNLOCKED, .entry = i});
    e->flags &= (uint8_t)~(US_F_LOCKED | US_F_WAITED | US_F_WAKE);
}

void us_entry_free_object(us_pager_t *p, us_entry_t e) {
    if (US_CODEC_OF(e) != US_FILL)
        us_tier(p, e)->ops->free(p, us_tier(p, e), e);
}

static bool in_pool(us_entry_t e) { return US_CODEC_OF(e) != US_FILL && us_tier_of(e) != US_TIER_FILE; }

/* A block of raw bytes that is out lies in a tier from now on, or does not any more. */
static void out_add(us_pager_t *p, us_entry_t e, uint32_t raw) {
    us_tier_stats_t *s = us_tier(p, e)->s;
    s->raw += raw;
    s->bytes += US_LENGTH_OF(e);
    *(in_pool(e) ? &p->mm.s->pooled_raw : &p->mm.s->stored_raw) += raw;
    *(in_pool(e) ? &p->mm.s->pooled : &p->mm.s->stored) += US_LENGTH_OF(e);
}

static void out_sub(us_pager_t *p, us_entry_t e, uint32_t raw) {
    us_tier_stats_t *s = us_tier(p, e)->s;
    s->raw -= raw;
    s->bytes -= US_LENGTH_OF(e);
    *(in_pool(e) ? &p->mm.s->pooled_raw : &p->mm.s->stored_raw) -= raw;
    *(in_pool(e) ? &p->mm.s->pooled : &p->mm.s->stored) -= US_LENGTH_OF(e);
}

/* The same of a clean block's copy; a word is none. */
static void kept_add(us_pager_t *p, us_entry_t e) {
    if (US_CODEC_OF(e) != US_FILL)
        us_tier(p, e)->s->kept += US_LENGTH_OF(e);
    if (in_pool(e))
        p->mm.s->kept += US_LENGTH_OF(e);
}

static void kept_sub(us_pager_t *p, us_entry_t e) {
    if (US_CODEC_OF(e) != US_FILL)
        us_tier(p, e)->s->kept -= US_LENGTH_OF(e);
    if (in_pool(e))
        p->mm.s->kept -= US_LENGTH_OF(e);
}

/* The copy of a clean block goes; its bytes are in the client's pages. */
static void drop_copy(us_pager_t *p, us_entry_t *e) {
    if (e->flags & US_F_KEPT) {
        us_entry_free_object(p, *e);
        kept_sub(p, *e);
    }
    e->flags &= (uint8_t)~(US_F_CLEAN | US_F_KEPT);
    e->size = 0;
    e->where = 0;
}

/* The block's bytes may be others from now on. When the generation comes round, what was begun on an older content of
 * the same number must not be taken for work on this one: writes, jobs of the outbox and recompressions forget the block. A
 * read needs no such care: it has the block locked. Nor does cleaning, which names an object by its place in a pinned
 * segment. */
static void changed(us_pager_t *p, uint32_t i, us_entry_t *e) {
    e->gen = (uint16_t)((e->gen + 1u) & ((1u << US_GEN_BITS) - 1));
    if (e->gen != 0)
        return;
    us_work_forget(p, i, 1);
}

void us_entry_swap_in(us_pager_t *p, us_region_t *r, uint32_t i, bool clean) {
    expect(&p->mm, i, OUT | IN(US_OUTBOX), 0, 0);
    us_entry_t e = p->mm.space.table[i];
    const uint32_t len = us_block_len(r, i);
    const uint8_t old = e.state;
    const bool reserved = (e.flags & US_F_LOCKED) != 0;
    US_DELAY(US_D_SERVED);
    switch (old) {
    case US_EMPTY: /* a copy of zeros costs nothing */
        e.size = US_SIZE(US_FILL, 0);
        e.where = 0;
        break;
    case US_FILLED: p->mm.s->filled -= len; break;
    case US_POOLED:
        us_policy_warm(p, i);
        e.flags = p->mm.space.table[i].flags;
        out_sub(p, e, len);
        kept_add(p, e);
        break;
    case US_STORED:
        out_sub(p, e, len);
        kept_add(p, e);
        break;
    default: /* OUTBOX: its job goes on, and makes a copy if the block stays clean */
        p->mm.s->outbox -= len;
        if (!clean) {
            us_job_t *job = p->mm.outbox.job[e.where];
            uint8_t queued = US_QUEUED;
            if (job != NULL)
                us_atomic_compare_exchange_strong(&job->phase, &queued, US_CANCELLED);
        }
        e.size = 0;
        e.where = 0;
    }
    e.state = US_RESIDENT;
    e.flags = (uint8_t)((e.flags & ~(US_F_KEPT | US_F_WRITING)) | US_F_CLEAN | (old == US_OUTBOX ? 0 : US_F_KEPT));
    if (!clean) {
        drop_copy(p, &e);
        changed(p, i, &e);
    }
    unlock(p, i, &e);
    put(&p->mm, i, e);
    if (!reserved)
        us_mm_grow(&p->mm, len);
    us_policy_in(&p->mm, r, i);
    us_ask_answer(&p->mm, us_block_addr(r, i), len); /* the copy has woken who waits in the kernel */
}

void us_entry_reserve(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, OUT, 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    e.flags |= US_F_LOCKED;
    if (e.state == US_STORED) /* a worker may have it for another tier: it comes too late */
        e.flags &= (uint8_t)~US_F_WRITING;
    put(&p->mm, i, e);
    us_mm_grow(&p->mm, us_block_len(r, i));
}

void us_entry_unreserve(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, OUT, US_F_LOCKED, 0);
    us_entry_t e = p->mm.space.table[i];
    unlock(p, i, &e);
    put(&p->mm, i, e);
    us_mm_withhold(&p->mm, us_block_len(r, i)); /* no handler takes its room before another try has */
}

void us_entry_dirty(us_pager_t *p, uint32_t i) {
    expect(&p->mm, i, IN(US_RESIDENT), US_F_CLEAN, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    drop_copy(p, &e);
    changed(p, i, &e);
    put(&p->mm, i, e);
}

void us_entry_evict(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t slot) {
    expect(&p->mm, i, IN(US_RESIDENT), 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    e.state = US_LEAVING;
    e.flags |= US_F_LOCKED;
    if (slot != US_NONE) { /* changed; a clean block keeps flags and copy as they are */
        e.flags &= (uint8_t)~(US_F_CLEAN | US_F_KEPT);
        changed(p, i, &e);
        e.size = 0;
        e.where = slot;
    }
    put(&p->mm, i, e);
    p->mm.leaving += us_block_len(r, i);
}

void us_entry_evicted(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, IN(US_LEAVING), US_F_LOCKED, US_F_QUEUED);
    us_entry_t e = p->mm.space.table[i];
    const uint32_t len = us_block_len(r, i);
    if (e.flags & US_F_KEPT) {
        if (US_CODEC_OF(e) == US_FILL) {
            e.state = US_FILLED;
            p->mm.s->filled += len;
        } else {
            e.state = in_pool(e) ? US_POOLED : US_STORED;
            kept_sub(p, e);
            out_add(p, e, len);
        }
        e.flags &= (uint8_t)~(US_F_CLEAN | US_F_KEPT);
        p->mm.s->evicted_clean_blocks++;
    } else {
        e.state = US_OUTBOX;
        p->mm.s->outbox += len;
        p->mm.s->evicted_dirty_blocks++;
    }
    unlock(p, i, &e);
    put(&p->mm, i, e);
    if (e.state == US_POOLED)
        us_policy_cold(p, i);
    us_mm_shrink(&p->mm, len);
    p->mm.leaving -= len;
    p->mm.s->evicted += len;
    p->mm.s->evicted_blocks++;
    us_policy_evicted(&p->mm, r, i);
    if (p->trace.on)
        us_trace_add(&p->trace, US_TRACE_OUT, e.state != US_OUTBOX, i, us_now_ns());
}

void us_entry_evict_failed(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, IN(US_LEAVING), US_F_LOCKED, US_F_QUEUED);
    us_entry_t e = p->mm.space.table[i];
    e.state = US_RESIDENT;
    if (!(e.flags & US_F_KEPT)) {
        e.size = 0;
        e.where = 0;
    }
    unlock(p, i, &e);
    put(&p->mm, i, e);
    p->mm.leaving -= us_block_len(r, i);
    us_policy_back(&p->mm, r, i);
}

int us_entry_compressed(us_pager_t *p, const us_job_t *job) {
    const uint32_t i = job->entry;
    if (i == US_NONE) /* the generation has come round since */
        return 0;
    us_entry_t e = p->mm.space.table[i];
    if (e.gen != job->gen)
        return 0; /* the bytes have changed since, or were taken again: what was compressed is garbage */
    const bool out = e.state == US_OUTBOX;
    if (!out && !(e.state == US_RESIDENT && (e.flags & US_F_CLEAN) && !(e.flags & US_F_KEPT)))
        return 0;
    if (job->codec == US_FILL) {
        e.size = US_SIZE(US_FILL, 0);
        e.where = job->word;
    } else {
        us_tier_t *t = &p->tier[1];
        const void *bytes = job->codec == US_CODEC_NONE ? job->src : job->out;
        const int err = t->ops->put(t, i, e.gen, bytes, job->len, &e.where);
        if (err != 0)
            return out ? err : 0; /* a copy is worth no trouble */
        e.size = US_SIZE(job->codec, job->len);
    }
    if (!out) {
        e.flags |= US_F_KEPT;
        kept_add(p, e);
    } else {
        p->mm.s->outbox -= job->raw;
        if (job->codec == US_FILL) {
            e.state = US_FILLED;
            p->mm.s->filled += job->raw;
        } else {
            e.state = US_POOLED;
            out_add(p, e, job->raw);
        }
    }
    put(&p->mm, i, e);
    if (e.state == US_POOLED)
        us_policy_cold(p, i);
    return 0;
}

/* Its object begins to move to another tier. Until that is done the entry names the old place; it is in no queue of
 * what is cold meanwhile. */
void us_entry_moving(us_pager_t *p, uint32_t i) {
    expect(&p->mm, i, IN(US_POOLED) | IN(US_STORED), 0, US_F_LOCKED);
    us_policy_warm(p, i);
    us_entry_t e = p->mm.space.table[i];
    e.flags |= US_F_WRITING;
    put(&p->mm, i, e);
}

/* The move of the object of generation gen at `from` came to nothing. */
void us_entry_unmoved(us_pager_t *p, uint32_t i, uint16_t gen, uint64_t from) {
    us_entry_t e = p->mm.space.table[i];
    if (!(e.flags & US_F_WRITING) || e.gen != gen || e.where != from) /* perhaps another move's */
        return;
    if (e.state == US_STORED && (e.flags & US_F_LOCKED)) /* the flag is a read's by now */
        return;
    e.flags &= (uint8_t)~US_F_WRITING;
    put(&p->mm, i, e);
    if (e.state == US_POOLED)
        us_policy_cold_first(p, i);
}

/* The object of generation gen that lay at `from` lies at `to` as well, codec and length as in size. True: the entry
 * (or the copy of a clean block) now names that, and the old one is gone. False: it is another one by now, or locked,
 * as when a worker reads it; the one at `to` is garbage. Who has the entry's lock for a read of the file has a pin on
 * the segment too, so compaction need not care for it. */
bool us_entry_moved(us_pager_t *p, uint32_t i, uint16_t gen, uint64_t from, uint64_t to, uint32_t size) {
    us_entry_t e = p->mm.space.table[i];
    const bool names = e.state == US_POOLED || e.state == US_STORED || (e.flags & US_F_KEPT);
    const bool same = names && US_CODEC_OF(e) != US_FILL && e.gen == gen && e.where == from;
    const bool in_file = from >> 56 == US_TIER_FILE && to >> 56 == US_TIER_FILE;
    if (!same || (e.state == US_POOLED && !(e.flags & US_F_WRITING)))
        return false; /* or it has come and gone meanwhile, and is in a queue again */
    const us_region_t *r = us_region_of(&p->mm, i);
    if (((e.flags & US_F_LOCKED) && !in_file) || !us_take(&p->mm, r, i)) {
        us_entry_unmoved(p, i, gen, from);
        return false;
    }
    const us_entry_t old = e;
    const bool out = !(e.flags & US_F_KEPT);
    if (!(e.flags & US_F_LOCKED)) /* another move of it, if there is one, will find another place */
        e.flags &= (uint8_t)~US_F_WRITING;
    e.size = size;
    e.where = to;
    if (out) {
        out_sub(p, old, us_block_len(r, i));
        e.state = in_pool(e) ? US_POOLED : US_STORED;
        out_add(p, e, us_block_len(r, i));
    } else {
        kept_sub(p, old);
        kept_add(p, e);
    }
    us_tier(p, e)->ops->arrived(p, us_tier(p, e), e);
    put(&p->mm, i, e);
    us_entry_free_object(p, old);
    if (e.state == US_POOLED)
        us_policy_cold(p, i);
    us_give(&p->mm, r, i);
    return true;
}

/* It is read, and not to be swapped in. */
void us_entry_lock(us_pager_t *p, uint32_t i) {
    expect(&p->mm, i, IN(US_STORED), 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    e.flags |= US_F_LOCKED | US_F_WRITING;
    put(&p->mm, i, e);
}

void us_entry_unlock(us_pager_t *p, uint32_t i) {
    expect(&p->mm, i, IN(US_STORED), US_F_LOCKED, 0);
    us_entry_t e = p->mm.space.table[i];
    e.flags &= (uint8_t)~US_F_WRITING;
    unlock(p, i, &e);
    put(&p->mm, i, e);
}

void us_entry_lost(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, IN(US_POOLED) | IN(US_STORED), 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    const uint32_t len = us_block_len(r, i);
    if (e.state == US_POOLED)
        us_policy_warm(p, i);
    out_sub(p, e, len);
    p->mm.s->lost += len;
    us_entry_free_object(p, e);
    put(&p->mm, i, (us_entry_t){.state = US_LOST, .gen = e.gen});
}

void us_entry_uncopy(us_pager_t *p, uint32_t i) {
    expect(&p->mm, i, IN(US_RESIDENT), US_F_CLEAN | US_F_KEPT, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    us_entry_free_object(p, e);
    kept_sub(p, e);
    e.flags &= (uint8_t)~US_F_KEPT;
    e.size = 0;
    e.where = 0;
    put(&p->mm, i, e);
    p->mm.s->reclaimed_copies++;
}

bool us_entry_shifted(void *tier, uint32_t owner, uint32_t tag, uint64_t from, uint64_t to) {
    const us_tier_t *t = tier;
    us_pager_t *p = t->pager;
    (void)tag;
    us_entry_t e = p->mm.space.table[owner];
    if (e.flags & (US_F_LOCKED | US_F_WRITING)) /* a worker may be reading it, or it is on its way to elsewhere */
        return false;
    const us_region_t *r = us_region_of(&p->mm, owner);
    if (e.where != us_where(t->id, from) || !us_take(&p->mm, r, owner))
        return false;
    e.where = us_where(t->id, to);
    put(&p->mm, owner, e);
    us_give(&p->mm, r, owner); /* the bytes are there already: see us_pool_compact */
    return true;
}

void us_entry_plain(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, IN(US_EMPTY), 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    us_mm_grow(&p->mm, us_block_len(r, i));
    e.state = US_PLAIN;
    put(&p->mm, i, e);
}

void us_entry_wrapped(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, IN(US_EMPTY), 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    us_mm_grow(&p->mm, us_block_len(r, i));
    e.state = US_RESIDENT;
    put(&p->mm, i, e);
    us_policy_in(&p->mm, r, i);
}

void us_entry_registered(us_pager_t *p, us_region_t *r, uint32_t i, bool there) {
    expect(&p->mm, i, IN(US_PLAIN), 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    e.state = there ? US_RESIDENT : US_EMPTY;
    put(&p->mm, i, e);
    if (there)
        us_policy_in(&p->mm, r, i);
    else
        us_mm_shrink(&p->mm, us_block_len(r, i));
}

void us_entry_absent(us_pager_t *p, us_region_t *r, uint32_t i) {
    us_entry_t e = p->mm.space.table[i];
    if (e.state != US_RESIDENT || (e.flags & (US_F_LOCKED | US_F_CLEAN)) ||
        p->mm.pins[i] != 0) /* it has been out since */
        return;
    us_policy_out(&p->mm, r, i);
    e = p->mm.space.table[i];
    e.state = US_EMPTY;
    put(&p->mm, i, e);
    us_mm_shrink(&p->mm, us_block_len(r, i));
}

void us_entry_forget(us_pager_t *p, us_region_t *r, uint32_t i) {
    expect(&p->mm, i, ~(IN(US_LEAVING) | IN(US_OUTBOX)), 0, US_F_LOCKED);
    us_entry_t e = p->mm.space.table[i];
    const uint32_t len = us_block_len(r, i);
    switch (e.state) {
    case US_RESIDENT:
        drop_copy(p, &e);
        if (e.flags & US_F_QUEUED)
            us_policy_out(&p->mm, r, i);
        us_mm_shrink(&p->mm, len);
        break;
    case US_PLAIN: us_mm_shrink(&p->mm, len); break;
    case US_FILLED: p->mm.s->filled -= len; break;
    case US_POOLED:
        us_policy_warm(p, i);
        us_entry_free_object(p, e);
        out_sub(p, e, len);
        break;
    case US_STORED:
        us_entry_free_object(p, e);
        out_sub(p, e, len);
        break;
    case US_LOST: p->mm.s->lost -= len; break;
    default: break;
    }
    if (e.state != US_EMPTY || e.flags != 0 || e.gen != 0) /* what was never touched stays sparse */
        put(&p->mm, i, (us_entry_t){0}); /* no job of the region is left, so the generation may begin anew */
    p->mm.stamp[i] = 0;
    p->mm.rounds[i] = (us_rounds_t){0};
    if (p->mm.pins[i] != 0)
        p->mm.s->pinned -= len;
    p->mm.pins[i] = 0;
}
