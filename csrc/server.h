/* SPDX-License-Identifier: MIT
 *
 * The second server: a thread that serves faults beside the loop, on another CPU, while several threads fault.
 *
 * Whoever serves has the pager's lock, and is "the loop" of all that is said elsewhere for as long: the only
 * writer of entries, the only one who posts commands and jobs. The lock is given back while a block is decompressed
 * and copied in (install_apart in fault.c); the entry is LOCKED meanwhile, as it is while a worker does the same.
 */
#ifndef US_SERVER_H
#define US_SERVER_H

#include <pthread.h>

#include "worker.h"

struct us_pager;

typedef struct us_servers {
    pthread_mutex_t lock;
    bool has_lock;         /* it was initialised */
    bool on;               /* there is a second server */
    us_worker_t *hand;     /* of whom the lock is: the loop's or the second one's context and scratch */
    us_worker_t loop, second;
    uint32_t apart;        /* blocks that are copied in with the lock given back */
    uint32_t last_tid;     /* of the last fault */
    uint32_t mixed;        /* 0..MIXED_MAX: how often lately the thread was another than the one before */
    uint32_t count;        /* messages of the second server, for when to look where its thread is */
    int cpu;               /* where it is bound; -1 nowhere */
    uint64_t last;         /* ns: the last fault */
    _Atomic uint32_t active; /* futex: the second server serves */
    _Atomic uint32_t stop;
} us_servers_t;

int us_server_open(struct us_pager *p);
void us_server_close(struct us_pager *p);
/* Starts the second one, where there is a CPU for it. */
int us_server_start(struct us_pager *p);
void us_server_lock(struct us_pager *p, us_worker_t *hand);
void us_server_unlock(struct us_pager *p);
/* A fault of thread tid is about to be served. */
void us_server_seen(struct us_pager *p, uint32_t tid, uint64_t now);

/* Is it the loop that has the lock? pre: the caller has it. */
static inline bool us_server_is_loop(const us_servers_t *s) { return s->hand == &s->loop; }

static inline bool us_server_shared(const us_servers_t *s) {
    return atomic_load_explicit(&s->active, memory_order_relaxed) != 0;
}

#endif
