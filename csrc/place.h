/* SPDX-License-Identifier: MIT
 *
 * Where the loop runs: on the CPU of the thread that faults.
 */
#ifndef US_PLACE_H
#define US_PLACE_H

#include "types.h"

#include <pthread.h>
#include <sched.h>

enum { US_WAKES = 4 };

typedef struct us_place {
    bool on;
    int client_pid, mover_tid;
    int fd[US_WAKES]; /* what wakes the loop: the userfaultfd, then eventfds; -1: none */
    int loop_tid;
    int cpu;               /* where the loop is bound; -1 nowhere */
    uint32_t count, every; /* faults since the last look, and until the next */
    uint32_t unrest;       /* moves lately */
    uint64_t last;         /* ns: the last fault */
    bool may_yield;        /* SCHED_IDLE, and back from it, is permitted */
    struct {
        uint32_t tid;
        int fd;
    } stat[16];

    /* spinning while a thread stands still for a read: */
    uint64_t took;      /* ns: what a read takes, on average */
    uint64_t spin_from; /* ns: not before, since others wanted the CPU */
    uint64_t rest;      /* ns: how long it was then left to them */
    uint64_t spin_of;   /* the read that the loop spins for, by when it began; 0: none */
    long switched;      /* how often the CPU had been taken from the loop when it began to */

    /* with the monitor: */
    pthread_t monitor;
    _Atomic int monitor_tid;
    cpu_set_t allowed; /* before the loop was bound */
    bool has_monitor;
    _Atomic uint32_t yielding; /* futex: 1 while the loop is SCHED_IDLE */
    _Atomic uint32_t steps;    /* drains begun */
    _Atomic uint32_t busy;     /* the loop has a fault in hand whose thread it has not begun to wake */
    _Atomic uint32_t held_up;  /* the second server waits for the lock, which the loop may have */
    _Atomic uint32_t parked;   /* tasks wait for what the eventfds tell */
    _Atomic uint64_t starved;  /* ns: when the monitor last had to help */
    _Atomic uint32_t stop;
} us_place_t;

int us_place_start(us_place_t *l, int client_pid, int mover_tid, const int fd[US_WAKES]);
void us_place_stop(us_place_t *l);
/* A fault of thread tid is about to be served. Returns 1 when the loop moved, else 0. taken: a CPU that it leaves to
 * others, or -1. */
uint32_t us_place_fault(us_place_t *l, uint32_t tid, uint64_t now, int taken);

/* The CPU on which thread tid of the client last ran; -1: it is not known. */
int us_place_cpu(us_place_t *l, uint32_t tid);

/* Is the client stopped (SIGSTOP, a debugger), so that its mover does nothing until it goes on? */
bool us_place_stopped(us_place_t *l);

/* A read that a thread stands still for began at `since` and has not ended: is it worth keeping the CPU? */
bool us_place_spins(us_place_t *l, uint64_t since, uint64_t now);
/* Such a read is done; it took so long. loop: it is the loop that has found it done, and not the second server. */
void us_place_read(us_place_t *l, uint64_t ns, bool loop);

/* For the monitor: a drain begins; its last message is about to be served, or there was none. */
static inline void us_place_step(us_place_t *l, bool begins) {
    if (begins)
        us_atomic_store_explicit(&l->steps, us_atomic_load_explicit(&l->steps, memory_order_relaxed) + 1,
                                 memory_order_relaxed);
    us_atomic_store_explicit(&l->busy, begins, memory_order_relaxed);
}

#endif
