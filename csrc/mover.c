/* SPDX-License-Identifier: MIT
 *
 * Why a thread in the client at all: UFFDIO_MOVE works within the caller's address space only, and so does
 * process_madvise(MADV_DONTNEED). Everything else is the pager's.
 *
 * A take by MOVE is atomic for each page: a write lands before it (and is taken along) or faults after it.
 * So nothing has to be write-protected, and a page that a device holds pinned is refused (EBUSY) and stays.
 * A take by copy, for kernels before 6.8, protects first; writers then wait until the block has left.
 *
 *    staging   [ block a | block b | block c |          ]  one MOVE for a run of neighbours
 *    outbox        slot 7    slot 2    slot 9              a copy each, then the status: the pager may serve
 *
 * Ordering: a slot's bytes and all else the mover did are before the release store of the status; the
 * pager loads it with acquire. The commands are before the release store of head.
 */
#include "mover.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sys.h"

enum { VECTOR = 128, MOVE_TRIES = 200, BACK_TRIES = 10000 };

static void say(const char *text) {
    ssize_t r = write(STDERR_FILENO, text, strlen(text));
    (void)r;
}

/* Loud, and never zeros: pages that are out can't come back, so the process must not go on. */
static void die(const char *text) {
    say(text);
    signal(SIGABRT, SIG_DFL);
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGABRT);
    pthread_sigmask(SIG_UNBLOCK, &s, NULL);
    raise(SIGABRT);
    _exit(134);
}

static void finish(us_cmd_t *cmd, int status) {
    US_DELAY(US_D_STATUS);
    atomic_store_explicit(&cmd->status, status, memory_order_release);
}

static us_cmd_t *at(us_mover_t *m, uint64_t i) { return &m->space->ring->cmd[i & (US_RING - 1)]; }

/* ---- drops ------------------------------------------------------------------------------------------ */

static uint64_t drop(us_mover_t *m, uint64_t i, uint64_t head) {
    struct iovec iov[VECTOR];
    int n = 0;
    for (; n < VECTOR && i + (uint64_t)n < head && at(m, i + (uint64_t)n)->op == US_CMD_DROP; n++) {
        us_cmd_t *c = at(m, i + (uint64_t)n);
        iov[n] = (struct iovec){(void *)(uintptr_t)c->addr, c->len};
    }
    US_DELAY(US_D_DROP);
    uint64_t done = 0;
    if (m->vector && m->self >= 0)
        us_sys_dontneed_vec(m->self, iov, n, &done);
    for (int k = 0; k < n; k++) {
        us_cmd_t *c = at(m, i + (uint64_t)k);
        if (done >= c->len) {
            done -= c->len;
            finish(c, 0);
        } else { /* not in the vector, or what a short vector left */
            done = 0;
            finish(c, us_sys_dontneed(c->addr, c->len));
        }
    }
    return i + (uint64_t)n;
}

/* ---- takes by MOVE ---------------------------------------------------------------------------------- */

static void move_back(us_mover_t *m, uint64_t dst, uint64_t src, uint64_t len) {
    for (int tries = 0; len > 0; tries++) {
        uint64_t done;
        int err = us_sys_move(m->uffd, dst, src, len, &done);
        dst += done, src += done, len -= done;
        if (err == 0)
            return;
        if (tries == BACK_TRIES)
            die("uswap: pages taken out could not be moved back; ending the process\n");
        sched_yield();
    }
}

/* Returns the block's length: once the status is up, the command may be another one. */
static uint32_t copy_out(us_mover_t *m, uint64_t from, us_cmd_t *c) {
    const uint32_t len = c->len;
    memcpy(m->space->outbox + (uint64_t)c->slot * US_PAGE, (void *)(uintptr_t)from, len);
    finish(c, 0);
    return len;
}

/* Takes the run of neighbours that begins at command i. *used: bytes of staging in use. */
static uint64_t move_run(us_mover_t *m, uint64_t i, uint64_t head, uint64_t *used) {
    uint64_t end = i, len = 0, src = at(m, i)->addr, dst = m->staging + *used;
    while (end < head && at(m, end)->op == US_CMD_MOVE && at(m, end)->addr == src + len &&
           *used + len + at(m, end)->len <= m->staging_len)
        len += at(m, end++)->len;
    *used += len;
    US_DELAY(US_D_TAKE);

    uint64_t off = 0, block = 0; /* moved so far; where command i begins in the run */
    int tries = 0;
    bool alone = false; /* move block i by itself: the run crosses a border between mappings */
    while (i < end) {
        uint64_t done = 0;
        const uint64_t to = alone ? block + at(m, i)->len : len;
        int err = off < to ? us_sys_move(m->uffd, dst + off, src + off, to - off, &done) : 0;
        off += done;
        US_DELAY(US_D_TAKEN);
        while (i < end && block + at(m, i)->len <= off) {
            block += copy_out(m, dst + block, at(m, i++));
            alone = false;
        }
        if (err == 0 || i == end)
            continue;
        if (err == -EINVAL && !alone && at(m, i)->len < len - block) {
            alone = true;
            continue;
        }
        if (err == -EAGAIN && (done > 0 || tries++ < MOVE_TRIES)) {
            atomic_fetch_add_explicit(&m->space->ring->move_retries, 1, memory_order_relaxed);
            sched_yield();
            continue;
        }
        /* Command i's block is refused at page off: its first pages go back, the next block is tried. */
        us_cmd_t *c = at(m, i++);
        move_back(m, src + block, dst + block, off - block);
        block += c->len;
        off = block;
        tries = 0;
        alone = false;
        finish(c, err);
    }
    return end;
}

/* ---- takes by copy ---------------------------------------------------------------------------------- */

static void copy_one(us_mover_t *m, us_cmd_t *c) {
    const uint64_t addr = c->addr, len = c->len;
    US_DELAY(US_D_TAKE);
    int err = us_sys_protect(m->uffd, addr, len, true);
    if (err == 0) {
        /* A page that is not there faults here; the pager knows this thread and gives it zeros. */
        memcpy(m->space->outbox + (uint64_t)c->slot * US_PAGE, (void *)(uintptr_t)addr, len);
        US_DELAY(US_D_TAKEN);
        err = us_sys_dontneed(addr, len);
        if (err != 0) {
            while (us_sys_protect(m->uffd, addr, len, false) == -EAGAIN)
                sched_yield();
        }
    }
    finish(c, err);
    us_sys_wake(m->uffd, addr, len);
}

/* ---- the thread ------------------------------------------------------------------------------------- */

/* Gives staging back. It fails when the user has locked all memory (mlockall), staging with it. */
static void clear_staging(us_mover_t *m, uint64_t used) {
    while (used > 0 && us_sys_dontneed(m->staging, used) != 0) {
        munlock((void *)(uintptr_t)m->staging, m->staging_len);
        sched_yield();
    }
}

/* Only a loop that sleeps is rung; one that runs looks at the statuses by itself. */
static void ring_loop(us_mover_t *m) {
    if (atomic_exchange(&m->space->ring->loop_asleep, 0) != 0)
        us_sys_eventfd_ring(m->notify);
}

static void work(us_mover_t *m, uint64_t i, uint64_t head) {
    us_ring_t *r = m->space->ring;
    uint64_t used = 0;
    while (i < head) {
        switch (at(m, i)->op) {
        case US_CMD_DROP:
            i = drop(m, i, head);
            break;
        case US_CMD_MOVE:
            if (used + at(m, i)->len > m->staging_len) {
                clear_staging(m, used);
                used = 0;
            }
            i = move_run(m, i, head, &used);
            break;
        case US_CMD_COPY:
            copy_one(m, at(m, i++));
            break;
        default:
            finish(at(m, i++), -EINVAL);
        }
        atomic_store_explicit(&r->tail, i, memory_order_release);
        if (atomic_load_explicit(&r->urgent, memory_order_relaxed) != 0)
            ring_loop(m);
    }
    clear_staging(m, used);
}

static void *mover_main(void *arg) {
    us_mover_t *m = arg;
    us_ring_t *r = m->space->ring;
    prctl(PR_SET_NAME, "uswap-mover");
    atomic_store(&m->tid, (int)syscall(SYS_gettid));
    while (atomic_load_explicit(&r->stop, memory_order_acquire) == 0) {
        uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
        uint64_t head = atomic_load_explicit(&r->head, memory_order_acquire);
        if (head != tail) {
            work(m, tail, head);
            ring_loop(m);
            continue;
        }
        /* Store asleep, then look again: the pager stores head, then looks at asleep. Both orders are
         * sequentially consistent, so one of the two sees the other. */
        atomic_store(&r->mover_asleep, 1);
        if (atomic_load(&r->head) == tail && atomic_load(&r->stop) == 0) {
            struct pollfd fds[2] = {{.fd = m->doorbell, .events = POLLIN},
                                    {.fd = atomic_load(&m->pager), .events = POLLIN}};
            int n = poll(fds, 2, fds[1].fd < 0 ? 100 : -1);
            if (n > 0 && fds[1].revents != 0 && atomic_load(&m->pager) >= 0)
                die("uswap: the pager process has ended; pages that are out are lost, so this process "
                    "ends too\n");
            if (n > 0 && fds[0].revents != 0) {
                uint64_t drained;
                ssize_t got = read(m->doorbell, &drained, sizeof drained);
                (void)got;
            }
        }
        atomic_store(&r->mover_asleep, 0);
    }
    return NULL;
}

int us_mover_start(us_mover_t *m) {
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 256 * 1024);
    const int err = us_sys_thread(&m->thread, &a, mover_main, m);
    pthread_attr_destroy(&a);
    if (err != 0)
        return err;
    while (atomic_load(&m->tid) == 0)
        sched_yield();
    return 0;
}

void us_mover_stop(us_mover_t *m) {
    atomic_store(&m->space->ring->stop, 1);
    us_sys_eventfd_ring(m->doorbell);
    pthread_join(m->thread, NULL);
}
