/* SPDX-License-Identifier: MIT
 *
 * How long a fault took, and of faults on a block that somebody else swaps in, until when.
 */
#include "record.h"

#include "sys.h"

void us_record(us_pager_t *p, int kind, uint32_t i, bool write, uint64_t since) {
    p->mm.s->faults[kind]++;
    us_hist_add(&p->mm.space.stats->hist[kind], us_now_ns() - since);
    if (p->trace.on)
        us_trace_add(&p->trace, kind, write, i, since);
}

/* The trace has it at once, in the order of faults; counted it is when the thread is woken. Where there is no place left,
 * after as many threads, it is counted without its wait. */
void us_record_wait(us_pager_t *p, uint32_t i, bool write, uint64_t since) {
    if (p->mm.waiters == US_WAITERS) {
        us_record(p, US_KIND_PRESENT, i, write, since);
        return;
    }
    if (p->trace.on)
        us_trace_add(&p->trace, US_KIND_PRESENT, write, i, since);
    p->mm.waiter[p->mm.waiters++] = (us_waiter_t){.entry = i, .since = since};
}

void us_record_waited(us_mm_t *m, uint32_t i, uint64_t copied) {
    uint64_t now = 0;
    for (uint32_t k = m->waiters; k-- > 0;) {
        const us_waiter_t w = m->waiter[k];
        if (w.entry != i)
            continue;
        m->waiter[k] = m->waiter[--m->waiters];
        if (copied <= w.since && now == 0)
            now = us_now_ns();
        m->s->faults[US_KIND_PRESENT]++;
        us_hist_add(&m->space.stats->hist[US_KIND_PRESENT], (copied > w.since ? copied : now) - w.since);
    }
}
