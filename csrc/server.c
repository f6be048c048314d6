/* SPDX-License-Identifier: MIT */
#include "server.h"

#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "server.h"
#include "fault.h"
#include "tier.h"
#include "lock.h"
#include "pump.h"
#include "sys.h"

enum { LOOK = 16 }; /* messages between two looks for where the thread is */

/* On the CPU of the thread that it serves, but not on the loop's. */
static void follow(us_pager_t *p, uint32_t tid) {
    us_servers_t *s = &p->servers;
    if (s->count++ % LOOK != 0)
        return;
    int cpu = us_place_cpu(&p->place, tid);
    if (cpu < 0 || cpu == p->place.cpu || cpu >= CPU_SETSIZE) {
        if (s->cpu >= 0 && s->cpu != p->place.cpu)
            return;
        for (cpu = 0; cpu < CPU_SETSIZE - 1; cpu++) {
            if (CPU_ISSET((size_t)cpu, &p->place.allowed) && cpu != p->place.cpu)
                break;
        }
    }
    if (cpu == s->cpu)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) == 0)
        s->cpu = cpu;
}

static void serve(us_pager_t *p) {
    us_servers_t *s = &p->servers;
    us_msg_t msg;
    int n;
    while ((n = us_sys_read(p->mm.cfg.uffd, &msg, 1)) > 0) {
        const uint64_t now = us_now_ns(); /* a fault's time runs while the loop has the lock, too */
        us_server_lock(p, &s->second);
        follow(p, msg.tid);
        us_pump(p);
        p->mm.s->second_server++;
        us_server_seen(p, msg.tid, now);
        us_message(p, &msg, now);
        us_tiers_submit(p);
        us_atomic_store_explicit(&p->place.parked, p->parked + p->demand, memory_order_relaxed);
        us_server_unlock(p);
    }
    if (n < 0) { /* the client is gone: the loop finds that out as well */
        us_server_lock(p, &s->second);
        us_server_wake(s, false);
        us_server_unlock(p);
    }
}

static void *second_main(void *arg) {
    us_pager_t *p = arg;
    us_servers_t *s = &p->servers;
    prctl(PR_SET_NAME, "uswap-server");
    while (us_atomic_load(&s->stop) == 0) {
        if (!us_server_shared(s)) {
            syscall(SYS_futex, &s->active, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
            continue;
        }
        struct pollfd f = {.fd = p->mm.cfg.uffd, .events = POLLIN};
        if (poll(&f, 1, US_QUIET_MS) > 0) {
            serve(p);
            continue;
        }
        us_server_lock(p, &s->second);
        if (us_now_ns() > s->last + US_QUIET_NS)
            us_server_wake(s, false);
        us_server_unlock(p);
    }
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------------- */

int us_server_open(us_pager_t *p) {
    us_servers_t *s = &p->servers;
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ADAPTIVE_NP);
    const int err = pthread_mutex_init(&s->lock, &kind);
    pthread_mutexattr_destroy(&kind);
    s->has_lock = err == 0;
    s->cpu = -1;
    s->owner = &s->loop;
    return -err;
}

int us_server_start(us_pager_t *p) {
    us_servers_t *s = &p->servers;
    if (CPU_COUNT(&p->place.allowed) < 2)
        return 0;
    int err = us_worker_open(&s->loop, &p->crew, 1 << US_BLOCK_MAX_SHIFT);
    if (err == 0)
        err = us_worker_open(&s->second, &p->crew, 1 << US_BLOCK_MAX_SHIFT);
    if (err != 0)
        return err;
    err = us_sys_thread(&s->second.thread, NULL, second_main, p);
    s->on = err == 0;
    return err;
}

void us_server_close(us_pager_t *p) {
    us_servers_t *s = &p->servers;
    if (s->on) {
        us_atomic_store(&s->stop, 1);
        us_server_wake(s, true);
        pthread_join(s->second.thread, NULL);
        s->on = false;
    }
    us_worker_close(&s->loop, 1 << US_BLOCK_MAX_SHIFT);
    us_worker_close(&s->second, 1 << US_BLOCK_MAX_SHIFT);
    if (s->has_lock)
        pthread_mutex_destroy(&s->lock);
    s->has_lock = false;
}
