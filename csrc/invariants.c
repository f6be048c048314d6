/* SPDX-License-Identifier: MIT
 *
 * E1 to E14 of types.h as code: all of the pager's books against its entries. Linear in the entries that were ever used
 * and in what is under way. A test asks for it by region or pager .check(); builds with -DUS_DEBUG do so after each step.
 *
 * pre, for all of it: the caller has the pager's lock, and no transition is half done.
 */
#include "invariants.h"
#include "claim.h"
#include "policy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the entries say, added up. */
typedef struct us_sums {
    uint64_t locked;                                          /* entries */
    uint64_t resident, plain, leaving, queued, free_to_leave; /* bytes */
    uint64_t takes;                                           /* entries: LEAVING into a slot, or OUTBOX */
    uint64_t outbox, filled, lost, pinned;
    uint64_t raw[US_TIERS], bytes[US_TIERS], kept[US_TIERS], objects[US_TIERS];
    uint64_t cold[US_TIERS], cold_bytes[US_TIERS];
    uint64_t *live;      /* by segment; NULL: there is no file, or no memory to count in */
    uint64_t jobs;       /* of all regions */
    uint64_t swapped_in; /* bytes, by handlers, and not in the books */
} us_sums_t;

static bool is_clean(us_entry_t e) { return (e.flags & US_F_CLEAN) != 0; }
static bool is_kept(us_entry_t e) { return (e.flags & US_F_KEPT) != 0; }
static bool is_locked(us_entry_t e) { return (e.flags & US_F_LOCKED) != 0; }

/* Does it name an object? */
static bool has_object(us_entry_t e) {
    return e.state == US_POOLED || e.state == US_STORED || (is_kept(e) && US_CODEC_OF(e) != US_FILL);
}

static bool slot_in_use(const us_mm_t *m, uint64_t slot) {
    return slot < m->outbox.pages && m->outbox.span[slot] != 0 && !(m->outbox.span[slot] & US_SLOT_FREE);
}

/* E14 of one block. pre: its claim was read before its entry: CLEAN and DIRTY end, and such an entry changes, by who has the
 * pager's lock alone. */
static bool check_claim(uint8_t claim, us_entry_t e, uint32_t len, us_sums_t *s) {
    const uint8_t who = claim & US_CLAIM_WHO;
    if (who != US_CLAIM_CLEAN && who != US_CLAIM_DIRTY)
        return who <= US_CLAIM_BUSY;
    if (e.state == US_RESIDENT)
        return who == US_CLAIM_DIRTY && is_clean(e) && !is_locked(e);
    s->swapped_in += len;
    return !is_locked(e) &&
           (e.state == US_EMPTY || e.state == US_FILLED || e.state == US_POOLED || e.state == US_OUTBOX);
}

/* One entry by itself. 0, or which invariant it breaks. */
static int check_entry(us_pager_t *p, const us_region_t *r, uint32_t i, us_sums_t *s) {
    /* Not us_claim_of: in the simulation nobody goes on meanwhile. */
    const uint8_t claim =
        r->handled ? __atomic_load_n((uint8_t *)(uintptr_t)&p->mm.space.claim[i], __ATOMIC_ACQUIRE) : 0;
    const us_entry_t e = p->mm.space.table[i];
    const uint32_t len = us_block_len(r, i);
    const bool plain = i - r->first >= r->plain_from && i - r->first < r->plain_to;
    const bool out = e.state == US_POOLED || e.state == US_STORED;
    /* Read where it is, and not to be swapped in: no room is reserved. */
    const bool looked_at = e.state == US_STORED && (e.flags & US_F_WRITING);
    if (e.state >= US_STATES || (e.state == US_LEAVING && !is_locked(e)))
        return 2;
    if ((e.state == US_RESIDENT || e.state == US_OUTBOX || e.state == US_PLAIN || e.state == US_LOST) && is_locked(e))
        return 2;
    if ((is_clean(e) && e.state != US_RESIDENT && e.state != US_LEAVING) || (is_kept(e) && !is_clean(e)))
        return 3;
    if ((e.state == US_PLAIN) != plain && !r->going)
        return 8;
    if (!check_claim(claim, e, len, s))
        return 14;
    const bool take = e.state == US_OUTBOX || (e.state == US_LEAVING && !is_kept(e));
    if (take && (!slot_in_use(&p->mm, e.where) || p->mm.outbox.job[e.where] == NULL))
        return 5;
    if (p->mm.pins[i] != 0 && e.state == US_LEAVING)
        return 11;
    s->takes += take;
    s->locked += is_locked(e);
    s->plain += plain ? len : 0;
    s->leaving += e.state == US_LEAVING ? len : 0;
    s->outbox += e.state == US_OUTBOX ? len : 0;
    s->filled += e.state == US_FILLED ? len : 0;
    s->lost += e.state == US_LOST ? len : 0;
    s->pinned += p->mm.pins[i] != 0 ? len : 0;
    if (e.state == US_RESIDENT || e.state == US_LEAVING || e.state == US_PLAIN || (is_locked(e) && !looked_at))
        s->resident += len;
    s->free_to_leave += e.state == US_RESIDENT ? len : 0;
    if (!has_object(e))
        return 0;
    const int t = us_tier_of(e);
    if (t < 1 || t >= US_TIERS || p->tier[t].ops == NULL || (e.state == US_POOLED && t == US_TIER_FILE) ||
        (e.state == US_STORED && t != US_TIER_FILE))
        return 4;
    s->objects[t]++;
    s->raw[t] += out ? len : 0;
    *(out ? &s->bytes[t] : &s->kept[t]) += US_LENGTH_OF(e);
    if (t == US_TIER_FILE && s->live != NULL) {
        const uint64_t segment = us_offset_of(e) / p->store.segment;
        if (segment >= us_log_segments(p->store.log))
            return 9;
        s->live[segment] += US_OBJ_HEAD + US_LENGTH_OF(e);
    }
    if (e.state == US_POOLED && (e.flags & US_F_QUEUED)) {
        s->cold[t]++;
        s->cold_bytes[t] += US_LENGTH_OF(e);
    }
    return 0;
}

/* ---- E2, E5, E11: who works on what ------------------------------------------------------------------- */

/* Whether a job is under way by itself: not idle, and of no command that has no status yet. */
static void mark_jobs(const us_pager_t *p, bool busy[US_JOBS]) {
    memset(busy, true, US_JOBS * sizeof(bool));
    for (uint32_t k = 0; k < p->crew.idle_n; k++)
        busy[p->crew.idle[k]] = false;
    for (uint64_t k = p->mm.seen; k < p->mm.head; k++) {
        const us_job_t *job = p->mm.posted[k & (US_RING - 1)].job;
        if (job != NULL)
            busy[job - p->crew.job] = false;
    }
}

static int check_work(us_pager_t *p, const us_sums_t *s) {
    bool busy[US_JOBS];
    uint64_t owners = p->servers.apart, leaving = 0, pending = 0, slots = 0, jobs = p->servers.apart;
    for (uint64_t k = p->mm.seen; k < p->mm.head; k++) {
        const us_posted_t q = p->mm.posted[k & (US_RING - 1)];
        if (q.entry == US_NONE)
            continue;
        const us_entry_t e = p->mm.space.table[q.entry];
        if (e.state != US_LEAVING || (q.job == NULL) != is_kept(e) || (q.job != NULL && e.where != q.slot))
            return 2;
        owners++;
        leaving += q.len;
        pending += q.job != NULL ? q.len : 0;
        slots += q.job != NULL;
        jobs += q.job != NULL;
    }
    mark_jobs(p, busy);
    uint32_t recompressions = 0;
    for (int k = 0; k < US_JOBS; k++) {
        const us_job_t *j = &p->crew.job[k];
        if (!busy[k])
            continue;
        if (j->kind == US_JOB_COMPRESS) {
            if (!slot_in_use(&p->mm, j->slot) || p->mm.outbox.job[j->slot] != j)
                return 5;
            slots++;
            jobs++;
            pending += j->raw;
        } else if (j->kind == US_JOB_SWAP_IN && j->from == 0) {
            owners++;
            jobs++;
        } else if (j->kind == US_JOB_RECOMPRESS) {
            if (p->recompress[j->part].job != j)
                return 11;
            recompressions++;
            jobs++;
        }
    }
    uint32_t reads = 0, demand = 0, verifying = 0, promised = 0;
    for (int k = 0; p->store.on && k < US_READS; k++) {
        const us_read_t *rd = &p->store.read[k];
        if (!rd->busy)
            continue;
        if (rd->left == 0 || rd->left > rd->parts)
            return 11;
        owners += rd->left;
        jobs += rd->left;
        reads++;
        demand += rd->demand;
        verifying += rd->verify;
        promised += rd->to != 0;
    }
    if (owners != s->locked)
        return 2;
    uint64_t used = 0, in_use = 0;
    for (uint32_t at = p->mm.outbox.tail; used < p->mm.outbox.used;) {
        const uint32_t span = p->mm.outbox.span[at] & ~US_SLOT_FREE;
        if (span == 0 || at + span > p->mm.outbox.pages)
            return 5;
        in_use += slot_in_use(&p->mm, at);
        used += span;
        at = at + span == p->mm.outbox.pages ? 0 : at + span;
    }
    if (used != p->mm.outbox.used || in_use != slots || s->takes > slots)
        return 5;
    if (leaving != p->mm.leaving || s->leaving != leaving || pending != p->pending ||
        recompressions + promised != p->recompressions || reads != p->store.reads || demand != p->demand ||
        verifying != p->store.verifying || jobs != s->jobs)
        return 11;
    return 0;
}

/* ---- E9, E10: the file ------------------------------------------------------------------------------- */

static int check_file(us_pager_t *p, const us_sums_t *s) {
    us_store_t *f = &p->store;
    uint64_t pins = f->old_id >= 0, writes = 0, total = 0;
    uint64_t moving[US_TIERS] = {0}, coming[US_TIERS] = {0};
    for (int k = 0; f->on && k < US_WRITES; k++) {
        const us_write_t *w = &f->write[k];
        writes += w->busy;
        if (w->filling != (w == f->demoted || w == f->gather || w == f->cleaner) || (w->busy && w->filling))
            return 10;
        if (!w->busy && !w->filling)
            continue;
        pins += w->victims;
        for (uint32_t n = 0; n < w->records; n++)
            moving[w->record[n].from >> 56] += w->record[n].size & 0xffffffu;
    }
    for (int k = 0; k < US_RECOMPRESSIONS; k++) {
        const us_recompress_t *c = &p->recompress[k];
        if (c->job != NULL) {
            moving[c->from >> 56] += c->length;
            coming[c->to->id] += c->length;
        }
    }
    for (int t = 1; t <= US_POOLS; t++) {
        if (p->tier[t].leaving != moving[t] || p->tier[t].coming != coming[t])
            return 11;
    }
    if (!f->on)
        return 0;
    for (int k = 0; k < US_READS; k++)
        pins += f->read[k].busy ? f->read[k].left : 0;
    for (uint32_t id = 0; id < us_log_segments(f->log); id++) {
        total += us_log_pins_in(f->log, id);
        if (s->live != NULL && s->live[id] != us_log_live_in(f->log, id))
            return 9;
    }
    return !us_log_is_valid(f->log) ? 9 : pins != total || writes != f->writes ? 10 : 0;
}

/* ---- E4, E12, E13: the tiers ------------------------------------------------------------------------- */

typedef struct us_walk {
    us_pager_t *p;
    int tier;
    uint64_t objects;
} us_walk_t;

static bool check_object(void *ctx, uint64_t off, uint32_t room, uint32_t owner, uint32_t tag) {
    us_walk_t *w = ctx;
    (void)room, (void)tag;
    const us_entry_t e = w->p->mm.space.table[owner];
    w->objects++;
    return has_object(e) && e.where == us_where(w->tier, off);
}

static int check_tiers(us_pager_t *p, const us_sums_t *s) {
    uint64_t raw = 0, bytes = 0, kept = 0;
    for (us_tier_t *t = &p->tier[1]; t != NULL && t->pool != NULL; t = t->next) {
        us_walk_t w = {.p = p, .tier = t->id};
        if (us_pool_walk(t->pool, check_object, &w) != 0 || w.objects != s->objects[t->id] ||
            !us_pool_is_valid(t->pool))
            return 4;
        uint64_t n = 0, sum = 0;
        uint32_t before = US_NONE;
        for (uint32_t i = t->cold.head; i != US_NONE; before = i, i = p->mm.node[i].next) {
            const us_entry_t e = p->mm.space.table[i];
            if (e.state != US_POOLED || us_tier_of(e) != t->id || !(e.flags & US_F_QUEUED) ||
                p->mm.node[i].prev != before)
                return 13;
            n++;
            sum += US_LENGTH_OF(e);
        }
        if (t->cold.tail != before || t->cold.bytes != sum || n != s->cold[t->id] || sum != s->cold_bytes[t->id])
            return 13;
        raw += s->raw[t->id];
        bytes += s->bytes[t->id];
        kept += s->kept[t->id];
    }
    for (int t = 1; t < US_TIERS; t++) {
        const us_tier_stats_t *is = &p->mm.s->tier[t];
        if (is->raw != s->raw[t] || is->bytes != s->bytes[t] || is->kept != s->kept[t])
            return 12;
    }
    const us_stats_t *is = p->mm.s;
    if (is->pooled_raw != raw || is->pooled != bytes || is->kept != kept || is->stored_raw != s->raw[US_TIER_FILE] ||
        is->stored != s->bytes[US_TIER_FILE] || is->outbox != s->outbox || is->filled != s->filled ||
        is->lost != s->lost || is->pinned != s->pinned || is->resident != p->mm.resident || is->plain != p->mm.plain)
        return 12;
    return 0;
}

/* ---- all --------------------------------------------------------------------------------------------- */

static int check_all(us_pager_t *p, us_sums_t *s) {
    for (uint32_t k = 0; k < p->mm.live; k++) {
        us_region_t *r = p->mm.byfirst[k];
        const uint32_t end = r->first + r->count;
        s->jobs += r->jobs;
        for (uint32_t i = us_table_seek(&p->mm, r->first, end); i < end; i = us_table_next(&p->mm, i, end)) {
            const int broken = check_entry(p, r, i, s);
            if (broken != 0)
                return broken;
        }
    }
    int broken = check_work(p, s);
    if (broken == 0)
        broken = check_tiers(p, s);
    if (broken == 0)
        broken = check_file(p, s);
    if (broken != 0)
        return broken;
    if (s->resident != p->mm.resident)
        return 6;
    if (!us_policy_is_valid(&p->mm, &s->queued) || s->queued != s->free_to_leave)
        return 7;
    if (s->plain != p->mm.plain)
        return 8;
    const uint64_t all = __atomic_load_n((uint64_t *)(uintptr_t)&p->mm.space.in->resident, __ATOMIC_ACQUIRE);
    return all < p->mm.resident + p->mm.held + s->swapped_in ? 14 : 0;
}

int us_invariants(us_pager_t *p) {
    us_sums_t s = {0};
    if (p->store.on) /* not us_calloc: that would count as the pager's own */
        s.live = calloc(us_log_segments(p->store.log), sizeof *s.live);
    const int broken = check_all(p, &s);
    free(s.live);
    return broken;
}

void us_must_hold(us_pager_t *p) {
    const int broken = us_invariants(p);
    if (broken == 0)
        return;
    fprintf(stderr, "uswap: invariant E%d does not hold\n", broken);
    abort();
}
