/* SPDX-License-Identifier: MIT
 *
 * What Python is told, and what the loop tells itself.
 */
#include "event.h"

#include <stdlib.h>

#include "alloc.h"

void us_event(us_pager_t *p, us_event_t ev) {
    if (!p->in_step) /* a range call or a retry: the loop must come and fetch it */
        us_sys_eventfd_ring(p->worker_fd);
    if (p->events == p->event_cap) {
        uint32_t cap = p->event_cap == 0 ? 64 : p->event_cap * 2;
        us_event_t *e = us_realloc(p->event, cap * sizeof *e);
        if (e == NULL)
            abort(); /* to drop one is to hang a thread */
        p->event = e;
        p->event_cap = cap;
    }
    p->event[p->events++] = ev;
}

void us_want(us_pager_t *p) {
    p->want_progress = true;
    us_atomic_store_explicit(&p->mm.space.ring->urgent, 1, memory_order_relaxed);
}

void us_go_on(us_pager_t *p) {
    p->reclaiming = true;
    us_sys_eventfd_ring(p->worker_fd);
}
