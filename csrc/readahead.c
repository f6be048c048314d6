/* SPDX-License-Identifier: MIT
 *
 * Which blocks come along. A fault next to the last one begins a run. While the run holds, the window doubles, and all of it
 * is swapped in by workers but one block, the marker; the fault on the marker tells that the reader is half-way, and starts
 * the next window while the rest of this one is still ahead of the reader.
 *
 *      reader ->  [ in | in | MARKER | in | in ]  next window ...
 */
#include "readahead.h"

#include "tier.h"
#include "install.h"
#include "policy.h"
#include "turn.h"

static us_stream_t *stream_for(us_region_t *r, uint32_t b, bool *run) {
    us_stream_t *oldest = &r->stream[0];
    r->clock++;
    for (int k = 0; k < US_STREAMS; k++) {
        us_stream_t *s = &r->stream[k];
        if (s->ahead != 0 && (b == s->marker || b == s->ahead)) {
            *run = true;
            s->used = r->clock;
            return s;
        }
        if (s->ahead != 0 && b < s->ahead && s->window != 0 && b + 2 * s->window >= s->ahead) {
            *run = false; /* within a window that is on its way */
            s->used = r->clock;
            return NULL;
        }
        if (s->used < oldest->used)
            oldest = s;
    }
    *oldest = (us_stream_t){.marker = b + 1, .ahead = b + 1, .window = 0, .used = r->clock};
    *run = false;
    return NULL;
}

void us_readahead(us_pager_t *p, us_region_t *r, uint32_t i, bool write) {
    uint32_t widest = (uint32_t)us_min(p->mm.cfg.readahead, p->mm.cfg.limit / 16) >> r->shift;
    if (widest < 2)
        return;
    const uint32_t b = i - r->first;
    bool run;
    us_stream_t *s = stream_for(r, b, &run);
    if (!run)
        return;
    s->window = s->window == 0 ? US_STREAM_MIN : (uint32_t)us_min(s->window * 2, widest);
    if (s->ahead <= b)
        s->ahead = b + 1;
    const uint32_t end = (uint32_t)us_min((uint64_t)s->ahead + s->window, r->count);
    const uint32_t marker = s->ahead + (end - s->ahead) / 2;
    bool posted = false;
    uint32_t k = s->ahead;
    for (; k < end; k++) {
        const us_entry_t e = p->mm.space.table[r->first + k];
        if (k == marker || (e.flags & US_F_LOCKED) || (r->handled && e.state != US_STORED) ||
            (e.state != US_EMPTY && e.state != US_FILLED && e.state != US_POOLED && e.state != US_STORED) ||
            us_is_claimed(&p->mm, r, r->first + k))
            continue;
        if (e.state == US_STORED) {
            /* The marker stays out, so that a fault tells when the reader is there. */
            const uint32_t last = k < marker ? marker : end;
            uint32_t n = 0;
            if (us_mm_resident(&p->mm) + us_block_len(r, r->first + k) <= p->mm.cfg.limit)
                n = us_tier_fetch_run(p, r, r->first + k, r->first + last, !us_policy_clean(r, true), p->mm.cfg.limit);
            if (n == 0)
                break;
            p->mm.s->readahead_blocks += n;
            k += n - 1;
            continue;
        }
        const bool clean = e.state == US_EMPTY ? !write : us_policy_clean(r, true);
        if (!us_install_ahead(p, r, r->first + k, clean))
            break;
        posted = true;
        if (e.state == US_EMPTY)
            p->mm.s->readahead_empty_blocks++;
        else
            p->mm.s->readahead_blocks++;
    }
    s->marker = k > marker ? marker : k;
    s->ahead = k;
    us_tiers_submit(p);
    if (posted)
        us_crew_ring(&p->crew);
}
