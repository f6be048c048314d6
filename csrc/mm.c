/* SPDX-License-Identifier: MIT
 *
 * The life of us_mm_t.
 */
#include "mm.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "alloc.h"
#include "sys.h"

void us_mm_limit(us_mm_t *m, uint64_t limit) {
    const uint64_t slack = us_min(limit / 16, 4u << 20);
    m->cfg.limit = limit;
    m->s->limit = limit;
    m->mark_high = limit - slack;
    m->mark_low = limit - 2 * slack;
    us_atomic_store(&m->space.in->limit, limit);
    us_atomic_store(&m->space.in->mark, m->follows ? 0 : m->mark_high);
    us_atomic_store(&m->space.in->ahead, us_min(m->cfg.readahead, limit / 16));
}

bool us_mm_admit(us_mm_t *m, uint64_t len, uint64_t most) {
    _Atomic uint64_t *all = &m->space.in->resident;
    uint64_t now = us_atomic_load_explicit(all, memory_order_relaxed), then;
    bool fits;
    if (len == m->held && (most == 0 || now <= most))
        return true;
    do {
        fits = most == 0 || now - m->held + len <= most;
        then = now - m->held + (fits ? len : 0);
    } while (!us_atomic_compare_exchange_weak(all, &now, then));
    m->held = fits ? len : 0;
    return fits;
}

void us_mm_grow(us_mm_t *m, uint64_t len) {
    const uint64_t held = us_min(len, m->held);
    m->held -= held;
    if (len > held)
        us_atomic_fetch_add(&m->space.in->resident, len - held);
    m->resident += len;
    m->s->resident = m->resident;
    if (m->resident > m->s->peak_resident)
        m->s->peak_resident = m->resident;
}

void us_mm_shrink(us_mm_t *m, uint64_t len) {
    us_atomic_fetch_sub(&m->space.in->resident, len);
    m->resident -= len;
    m->s->resident = m->resident;
}

void us_mm_withhold(us_mm_t *m, uint64_t len) {
    m->held += len;
    m->resident -= len;
    m->s->resident = m->resident;
}

static int open_outbox(us_mm_t *m) {
    us_outbox_t *o = &m->outbox;
    o->pages = (uint32_t)(m->space.at.outbox_len >> US_PAGE_SHIFT);
    o->span = us_calloc(o->pages, sizeof *o->span);
    o->job = us_calloc(o->pages, sizeof(us_job_t *));
    o->compressed = us_sys_reserve(m->space.at.outbox_len);
    return o->span == NULL || o->job == NULL || o->compressed == NULL ? -ENOMEM : 0;
}

int us_mm_open(us_mm_t *m, const us_mm_config_t *cfg) {
    m->cfg = *cfg;
    const int err = us_space_map(&m->space, cfg->space_fd, true);
    if (err < 0)
        return err;
    m->s = &m->space.stats->s;
    us_mm_limit(m, cfg->limit);
    const uint64_t cap = m->space.at.table_cap;
    m->node = us_sys_reserve(cap * sizeof *m->node);
    m->stamp = us_sys_reserve(cap * sizeof *m->stamp);
    m->pins = us_sys_reserve(cap * sizeof *m->pins);
    m->rounds = us_sys_reserve(cap * sizeof *m->rounds);
    if (m->node == NULL || m->stamp == NULL || m->pins == NULL || m->rounds == NULL)
        return -ENOMEM;
    m->queue[0] = m->queue[1] = (us_queue_t){.head = US_NONE, .tail = US_NONE};
    return open_outbox(m);
}

static void unreserve(void *at, uint64_t len) {
    if (at != NULL)
        munmap(at, len);
}

void us_mm_close(us_mm_t *m) {
    const uint64_t cap = m->space.at.table_cap;
    for (uint32_t i = 0; i < m->regions; i++)
        free(m->region[i]);
    free(m->region);
    free(m->byaddr);
    free(m->byfirst);
    free(m->outbox.span);
    free(m->outbox.job);
    unreserve(m->outbox.compressed, m->space.at.outbox_len);
    unreserve(m->node, cap * sizeof *m->node);
    unreserve(m->stamp, cap * sizeof *m->stamp);
    unreserve(m->pins, cap * sizeof *m->pins);
    unreserve(m->rounds, cap * sizeof *m->rounds);
    us_space_unmap(&m->space);
}
