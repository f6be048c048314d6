/* SPDX-License-Identifier: MIT
 *
 * Who serves has the pager's lock; and whether a second thread is to serve beside the loop, which the faults say.
 */
#include "lock.h"

#include "mm.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* MIXED: a change of thread counts this much against each fault that is none. */
enum { MIXED = 4, MIXED_ON = 64, MIXED_MAX = 128 };

void us_server_lock(us_pager_t *p, us_worker_t *owner) {
    us_servers_t *s = &p->servers;
    if (pthread_mutex_trylock(&s->lock) != 0) {
        const bool second = owner == &s->second;
        if (second) /* a loop that yields may have been pushed aside with the lock held: the monitor sees to that */
            us_atomic_store_explicit(&p->place.held_up, 1, memory_order_relaxed);
        pthread_mutex_lock(&s->lock);
        if (second)
            us_atomic_store_explicit(&p->place.held_up, 0, memory_order_relaxed);
    }
    s->owner = owner;
}

void us_server_unlock(us_pager_t *p) {
    us_mm_admit(&p->mm, 0, 0); /* what was promised and not used */
    pthread_mutex_unlock(&p->servers.lock);
}

void us_server_wake(us_servers_t *s, bool on) {
    us_atomic_store(&s->active, on);
    if (on)
        syscall(SYS_futex, &s->active, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void us_server_seen(us_pager_t *p, uint32_t tid, uint64_t now) {
    us_servers_t *s = &p->servers;
    if (tid == (uint32_t)p->mm.cfg.mover_tid)
        return;
    if (now > s->last + US_QUIET_NS)
        s->mixed = 0;
    s->last = us_max(s->last, now); /* of a batch that was read before the other's */
    if (tid != s->last_tid)
        s->mixed = (uint32_t)us_min(s->mixed + MIXED, MIXED_MAX);
    else
        s->mixed -= s->mixed > 0;
    s->last_tid = tid;
    if (!s->on)
        return;
    if (!us_server_shared(s) && s->mixed >= MIXED_ON)
        us_server_wake(s, true);
    else if (us_server_shared(s) && s->mixed == 0)
        us_server_wake(s, false);
}
