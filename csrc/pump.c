/* SPDX-License-Identifier: MIT
 *
 * Completions: the mover's statuses, the workers' jobs, the file's reads and writes, committed as they come.
 *
 *    status 0 of MOVE, COPY   OUTBOX, and a job for a worker     of DROP    POOLED, STORED or FILLED
 *    finished job         POOLED or FILLED, and the slot is free
 *
 * When the pool has no room in the end (spans of the wrong sizes), a block goes back to where it came from: it stays
 * resident, over the limit if need be.
 */
#include "pump.h"

#include <string.h>

#include "entry.h"
#include "event.h"
#include "evict.h"
#include "install.h"
#include "outbox.h"
#include "reclaim.h"
#include "record.h"
#include "sys.h"
#include "tier.h"
#include "turn.h"

static void commit_command(us_pager_t *p, us_posted_t q, int status) {
    if (q.entry == US_NONE)
        return;
    us_region_t *r = p->mm.region[q.region];
    US_DELAY(US_D_COMMIT);
    if (status != 0) {
        if (++p->mm.refused >= US_BARREN)
            p->mm.refused_until = us_now_ns() + US_GATE_NS;
        if (status == -EBUSY || status == -EAGAIN)
            p->mm.s->refused_pinned++;
        us_entry_evict_failed(p, r, q.entry);
        if (status == -EUCLEAN &&
            us_take(&p->mm, r, q.entry)) { /* its pages had lost their protection: it may have been written */
            us_install_unprotect(p, r, q.entry);
            us_give(&p->mm, r, q.entry);
        }
        if (q.job != NULL) {
            r->jobs--;
            p->pending -= q.len;
            us_outbox_free(&p->mm, q.slot);
            us_crew_free(&p->crew, q.job);
        }
        return;
    }
    p->mm.refused = 0;
    us_entry_evicted(p, r, q.entry);
    if (q.job == NULL)
        return;
    us_job_t *j = q.job;
    j->kind = US_JOB_COMPRESS;
    j->gen = p->mm.space.table[q.entry].gen;
    j->entry = q.entry;
    j->region = q.region;
    j->raw = q.len;
    j->len = 0;
    j->slot = q.slot;
    j->src = p->mm.space.outbox + (uint64_t)q.slot * US_PAGE;
    j->out = p->mm.outbox.compressed + (uint64_t)q.slot * US_PAGE;
    j->choice = &r->choice[0];
    us_crew_post(&p->crew, j);
}

/* false: the job is not over; it was posted again, or is stalled. pre: the caller has taken its block. */
static bool commit_taken(us_pager_t *p, us_region_t *r, us_job_t *j) {
    if (us_atomic_load_explicit(&j->phase, memory_order_relaxed) == US_CANCELLED)
        return true;
    us_tier_t *t = &p->tier[1];
    US_DELAY(US_D_COMMIT);
    int err = us_entry_compressed(p, j);
    bool again = false;
    if (err == -ENOSPC) { /* a step's worth at a time: other threads' faults wait behind this */
        again = t->ops->compact(t, (1 << 20) + 4ull * j->raw);
        err = us_entry_compressed(p, j);
    }
    if (err == -ENOSPC && !again) {
        again = us_reclaim(p, t, 4ull * j->len + (256 << 10)) != -ENOSPC;
        err = us_entry_compressed(p, j);
    }
    if (err == -ENOSPC && again)
        us_go_on(p);
    /* Room is being made: it is looked at again in the next step, or when something was demoted. */
    if (err == -ENOSPC && (again || us_tiers_squeeze(p))) {
        p->stalled[p->stalled_n++] = j;
        return false;
    }
    if (err != 0) { /* back to where it came from */
        us_evict_noroom(p);
        const int res = us_install(p, r, j->entry, true);
        if (res == US_AGAIN) {
            us_crew_post(&p->crew, j);
            us_crew_ring(&p->crew);
            return false;
        }
        if (res < 0) /* the user has unmapped it: there is nowhere to put it, and nobody to miss it */
            us_entry_swap_in(p, r, j->entry, false);
        return true;
    }
    p->mm.s->compressed_blocks++;
    p->mm.s->compressed_raw += j->raw;
    p->mm.s->compressed_out += j->codec == US_FILL ? 0 : j->len;
    p->mm.s->shuffled_blocks += j->codec != US_FILL && us_codec_filter(j->codec) != US_FILTER_NONE;
    p->mm.s->incompressible_blocks += j->codec == US_CODEC_NONE && j->status > 0;
    p->mm.s->skipped_blocks += j->status == 2;
    return true;
}

static bool commit_compressed(us_pager_t *p, us_region_t *r, us_job_t *j) {
    if (j->entry != US_NONE && !us_take(&p->mm, r, j->entry)) { /* a handler reads the slot */
        p->stalled[p->stalled_n++] = j;
        us_go_on(p);
        return false;
    }
    const bool over = commit_taken(p, r, j);
    if (j->entry != US_NONE)
        us_give(&p->mm, r, j->entry);
    return over;
}
static void commit_swap_in(us_pager_t *p, us_region_t *r, us_job_t *j) {
    US_DELAY(US_D_COMMIT);
    const uint64_t addr = us_block_addr(r, j->entry);
    const bool wake = (p->mm.space.table[j->entry].flags & US_F_WAKE) != 0;
    bool clean = j->clean;
    if (j->status != 0)
        us_entry_unreserve(p, r, j->entry);
    if ((j->status == -EEXIST || j->status == -ENOENT) && us_take(&p->mm, r, j->entry)) {
        /* a page was there, or it is several mappings */
        int r2 = us_install(p, r, j->entry, true);
        (void)r2; /* US_AGAIN: stays out, the next fault tries again */
        us_give(&p->mm, r, j->entry);
    } else if (j->status == 0) {
        us_entry_swap_in(p, r, j->entry, clean);
        us_trace_ahead(p, r, j->entry);
    }
    if (wake) {
        us_wake(&p->mm, r, addr, us_block_len(r, j->entry));
        us_record_waited(&p->mm, j->entry, j->status == 0 ? j->copied : 0);
    }
}

static void finish_compressed(us_pager_t *p, us_region_t *r, us_job_t *j) {
    if (!commit_compressed(p, r, j))
        return;
    p->pending -= j->raw;
    us_outbox_free(&p->mm, j->slot);
    r->jobs--;
    us_crew_free(&p->crew, j);
}

void us_pump(us_pager_t *p) {
    const bool reclaiming = p->reclaiming;
    bool moved = reclaiming, compressing = false, demoted = false;
    p->reclaiming = false;
    while (p->mm.seen < p->mm.head) {
        const us_cmd_t *c = &p->mm.space.ring->cmd[p->mm.seen & (US_RING - 1)];
        const int status = us_atomic_load_explicit(&c->status, memory_order_acquire);
        if (status == US_PENDING)
            break;
        const us_posted_t q = p->mm.posted[p->mm.seen & (US_RING - 1)];
        p->mm.seen++;
        commit_command(p, q, status);
        compressing |= q.job != NULL && status == 0;
        moved = true;
    }
    if (moved)
        p->mm.moved_at = us_now_ns();
    if (compressing)
        us_crew_ring(&p->crew);
    for (us_job_t *j; (j = us_crew_done(&p->crew)) != NULL;) {
        us_region_t *r = p->mm.region[j->region];
        moved = true;
        if (j->kind == US_JOB_COMPRESS) {
            finish_compressed(p, r, j);
        } else if (j->kind == US_JOB_RECOMPRESS) {
            us_tier_recompressed(p, r, j);
            demoted = true;
        } else {
            if (j->from != 0) {
                p->tier[j->from].ops->swapped_in(p, &p->tier[j->from], r, j);
            } else {
                commit_swap_in(p, r, j);
                r->jobs--;
            }
            us_crew_free(&p->crew, j);
        }
    }
    demoted |= us_tiers_pump(p);
    moved |= demoted;
    if (p->stalled_n > 0 && (demoted || reclaiming || (p->tier[1].leaving == 0 && !us_tiers_busy(p)))) {
        us_job_t *again[US_JOBS];
        const uint32_t n = p->stalled_n;
        memcpy(again, p->stalled, n * sizeof(us_job_t *));
        p->stalled_n = 0;
        for (uint32_t k = 0; k < n; k++)
            finish_compressed(p, p->mm.region[again[k]->region], again[k]);
    }
    if (moved && p->want_progress) {
        p->want_progress = false;
        us_event(p, (us_event_t){.kind = US_EV_PROGRESS});
    }
}
