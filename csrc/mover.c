/* SPDX-License-Identifier: MIT
 *
 * Why a thread in the client at all: UFFDIO_MOVE works within the caller's address space only, and so does
 * process_madvise(MADV_DONTNEED). Everything else is the pager's.
 *
 * MOVE is atomic for each page: a write lands before it (and is taken along) or faults after it.
 * So nothing has to be write-protected, and a page that a device holds pinned is refused (EBUSY) and stays.
 * COPY, for kernels before 6.8, protects first; writers then wait until the block has left.
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
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sys.h"
#include "watchdog.h"

enum { VECTOR = 128, MOVE_TRIES = 200, BACK_TRIES = 10000 };

/* Command i as it was taken from the ring. */
static us_cmd_t *at(us_mover_t *m, uint64_t i) { return &m->cmd[i & (US_RING - 1)]; }

/* What the command's block is registered with. */
static int uffd_of(const us_mover_t *m, const us_cmd_t *c) { return c->spare != 0 ? m->sigbus : m->uffd; }

static void finish(us_mover_t *m, const us_cmd_t *cmd, int status) {
    US_DELAY(US_D_STATUS);
    us_atomic_store_explicit(&m->space->ring->cmd[cmd - m->cmd].status, status, memory_order_release);
}

/* Copies commands [i, head) out of the ring. Other code of the process may write to the ring by mistake, at any time; what
 * it makes of a command is refused, or at worst another range of a region leaves, which the pager then swaps in again. */
static void take_commands(us_mover_t *m, uint64_t i, uint64_t head) {
    for (; i < head; i++) {
        const us_cmd_t *from = &m->space->ring->cmd[i & (US_RING - 1)];
        us_cmd_t *to = at(m, i);
        to->op = from->op;
        to->addr = from->addr;
        to->len = from->len;
        to->slot = from->slot;
        to->spare = from->spare;
        const bool sane = to->len > 0 && to->len <= 1u << US_BLOCK_MAX_SHIFT && to->len % US_PAGE == 0 &&
                          to->addr % US_PAGE == 0 &&
                          (to->op == US_CMD_DROP || to->op == US_CMD_NOFORK ||
                           to->slot <= (m->space->at.outbox_len - to->len) >> US_PAGE_SHIFT);
        if (!sane)
            to->op = 0;
    }
}

/* ---- clean blocks: DROP ------------------------------------------------------------------------------------------ */

/* Gives a block's pages back whose bytes are elsewhere too. madvise that fails (one page locked, a part unmapped) may
 * have given back what comes before, so what counts is not what it says but what is gone: 0 if anything is. What stays of
 * the block is write-protected, and a fault on the rest finds it there (EEXIST). */
static int give_back(uint64_t addr, uint64_t len) {
    const int err = us_sys_dontneed(addr, len);
    return err == 0 || us_sys_lacks(addr, len) ? 0 : err;
}

/* A clean block is write-protected in all its pages, so that the first write is seen. Where KSM has taken the protection off
 * (ksm.h) the block may have been written, and must not be dropped. */
static bool lost_protection(const us_mover_t *m, uint64_t addr, uint64_t len) {
    enum { AT_ONCE = 64 };
    const uint64_t protected = 1ull << 57, there = 3ull << 62; /* present, or swapped out by the kernel */
    uint64_t page[AT_ONCE];
    for (uint64_t off = 0; off < len; off += AT_ONCE * US_PAGE) {
        const uint64_t n = us_min((len - off) / US_PAGE, AT_ONCE);
        if (pread(m->pagemap, page, n * sizeof *page, (off_t)((addr + off) / US_PAGE * sizeof *page)) !=
            (ssize_t)(n * sizeof *page))
            return false; /* not there any more */
        for (uint64_t k = 0; k < n; k++) {
            if ((page[k] & there) != 0 && !(page[k] & protected))
                return true;
        }
    }
    return false;
}

static uint64_t drop(us_mover_t *m, uint64_t i, uint64_t head) {
    struct iovec iov[VECTOR];
    us_cmd_t *of[VECTOR];
    const bool look = m->pagemap >= 0 && us_ksm_may_have_merged(&m->ksm);
    int n = 0;
    for (; n < VECTOR && i < head && at(m, i)->op == US_CMD_DROP; i++) {
        us_cmd_t *c = at(m, i);
        if (look && lost_protection(m, c->addr, c->len)) {
            finish(m, c, -EUCLEAN);
            continue;
        }
        iov[n] = (struct iovec){(void *)(uintptr_t)c->addr, c->len};
        of[n++] = c;
    }
    US_DELAY(US_D_DROP);
    uint64_t done = 0;
    if (m->vector && m->self >= 0 && n > 0)
        us_sys_dontneed_vec(m->self, iov, n, &done);
    for (int k = 0; k < n; k++) {
        if (done >= of[k]->len) {
            done -= of[k]->len;
            finish(m, of[k], 0);
        } else { /* not in the vector, or what a short vector left */
            done = 0;
            finish(m, of[k], give_back(of[k]->addr, of[k]->len));
        }
    }
    return i;
}

/* ---- evictions by MOVE ------------------------------------------------------------------------------ */

/* What the user has unmapped meanwhile has nowhere to go back to, and its bytes are nobody's. */
static void move_back(int uffd, uint64_t dst, uint64_t src, uint64_t len) {
    uint64_t step = len;
    for (int tries = 0; len > 0; tries++) {
        uint64_t done;
        const int err = us_sys_move(uffd, dst, src, us_min(step, len), &done);
        if (err == -EINVAL || err == -ENOENT) { /* several mappings, or a hole: page by page */
            if (step == US_PAGE && done == 0 && !us_sys_mapped(dst, US_PAGE))
                done = US_PAGE;
            step = US_PAGE;
        }
        dst += done, src += done, len -= done;
        if (done > 0) {
            tries = 0;
            continue;
        }
        if (tries == BACK_TRIES)
            us_die("uswap: evicted pages could not be moved back; ending the process\n");
        sched_yield();
    }
}

/* Returns the block's length: once the status is up, the command may be another one. */
static uint32_t copy_out(us_mover_t *m, uint64_t from, us_cmd_t *c) {
    const uint32_t len = c->len;
    memcpy(m->space->outbox + (uint64_t)c->slot * US_PAGE, (void *)(uintptr_t)from, len);
    finish(m, c, 0);
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
    bool alone = false;             /* move block i by itself: the run crosses a border between mappings */
    uint64_t unshared = UINT64_MAX; /* the block for which that was tried last */
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
            us_atomic_fetch_add_explicit(&m->space->ring->move_retries, 1, memory_order_relaxed);
            sched_yield();
            continue;
        }
        /* Pages that are shared with a child since a fork are refused, also when the child is gone; a write to them makes
         * them ours alone. What a device has pinned stays refused. */
        if (err == -EBUSY && unshared != i && us_sys_unshare(src + off, block + at(m, i)->len - off) == 0) {
            unshared = i;
            continue;
        }
        /* Command i's block is refused at page off: its first pages go back, the next block is tried. */
        us_cmd_t *c = at(m, i++);
        move_back(uffd_of(m, c), src + block, dst + block, off - block);
        block += c->len;
        off = block;
        tries = 0;
        alone = false;
        finish(m, c, err);
    }
    return end;
}

/* ---- evictions by COPY ------------------------------------------------------------------------------ */

/* Copies a block into its slot by the kernel, since other code of the process may unmap a part of it at any time, or have
 * wrapped memory of which a page is marked as lost. Where the kernel may not be asked, nothing helps against that. */
static int copy_in_place(us_mover_t *m, const us_cmd_t *c) {
    uint8_t *to = m->space->outbox + (uint64_t)c->slot * US_PAGE;
    for (uint64_t off = 0, done; off < c->len;) {
        const uint64_t from = c->addr + off;
        const int err = us_sys_peek(from, to + off, c->len - off, &done);
        off += done;
        if (err == 0 || done > 0)
            continue;
        if (err == -ENOSYS || err == -EPERM) {
            if (!us_sys_mapped(from, c->len - off))
                return -EFAULT;
            /* A page that is not there faults here; the pager knows this thread and gives it zeros. */
            if (c->spare == 0) {
                memcpy(to + off, (void *)(uintptr_t)from, c->len - off);
                return 0;
            }
            /* Of an inline region it would be SIGBUS, which this thread has blocked, and so the process's end. What is there
             * stays, but for the user's own MADV_DONTNEED just now. Not us_sys_lacks: a page that the kernel has swapped out is
             * none that is missing. */
            uint8_t there;
            if (m->pagemap < 0 || us_present(m->pagemap, from, US_PAGE, US_PAGE, &there) != 0)
                return err;
            if (there != 0)
                memcpy(to + off, (void *)(uintptr_t)from, US_PAGE);
            else
                memset(to + off, 0, US_PAGE);
            off += US_PAGE;
            continue;
        }
        if (err != -EFAULT || !us_sys_mapped(from, US_PAGE) || !us_sys_lacks(from, US_PAGE))
            return err;
        memset(to + off, 0, US_PAGE); /* missing, in user mode, where the kernel waits for nobody */
        off += US_PAGE;
    }
    return 0;
}

static void copy_one(us_mover_t *m, us_cmd_t *c) {
    const uint64_t addr = c->addr, len = c->len;
    US_DELAY(US_D_TAKE);
    const int uffd = uffd_of(m, c);
    int err = us_sys_protect(uffd, addr, len, true);
    if (err == 0) {
        err = copy_in_place(m, c);
        US_DELAY(US_D_TAKEN);
        if (err == 0)
            err = give_back(addr, len);
        while (err != 0 && us_sys_protect(uffd, addr, len, false) == -EAGAIN)
            sched_yield();
    }
    finish(m, c, err);
    us_sys_wake(uffd, addr, len);
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
    if (us_atomic_exchange(&m->space->ring->loop_asleep, 0) != 0)
        us_sys_eventfd_ring(m->notify);
}

static void work(us_mover_t *m, uint64_t i, uint64_t head) {
    us_ring_t *r = m->space->ring;
    uint64_t used = 0;
    take_commands(m, i, head);
    while (i < head) {
        switch (at(m, i)->op) {
        case US_CMD_DROP: i = drop(m, i, head); break;
        case US_CMD_MOVE:
            if (used + at(m, i)->len > m->staging_len) {
                clear_staging(m, used);
                used = 0;
            }
            i = move_run(m, i, head, &used);
            break;
        case US_CMD_NOFORK:
            finish(m, at(m, i),
                   madvise((void *)(uintptr_t)at(m, i)->addr, at(m, i)->spare, MADV_DONTFORK) == 0 ? 0 : -errno);
            i++;
            break;
        case US_CMD_COPY: copy_one(m, at(m, i++)); break;
        default: finish(m, at(m, i), -EINVAL); i++;
        }
        us_atomic_store_explicit(&r->tail, i, memory_order_release);
        if (us_atomic_load_explicit(&r->urgent, memory_order_relaxed) != 0)
            ring_loop(m);
    }
    clear_staging(m, used);
}

static void *mover_main(void *arg) {
    us_mover_t *m = arg;
    us_ring_t *r = m->space->ring;
    prctl(PR_SET_NAME, "uswap-mover");
    us_atomic_store(&m->tid, (int)syscall(SYS_gettid));
    while (us_atomic_load_explicit(&r->stop, memory_order_acquire) == 0) {
        uint64_t tail = us_atomic_load_explicit(&r->tail, memory_order_relaxed);
        uint64_t head = us_atomic_load_explicit(&r->head, memory_order_acquire);
        if (head - tail <= US_RING && head != tail) {
            work(m, tail, head);
            ring_loop(m);
            continue;
        }
        /* Store asleep, then look again: the pager stores head, then looks at asleep. Both orders are
         * sequentially consistent, so one of the two sees the other. */
        us_atomic_store(&r->mover_asleep, 1);
        if (us_atomic_load(&r->head) == tail && us_atomic_load(&r->stop) == 0) {
            struct pollfd rung = {.fd = m->doorbell, .events = POLLIN};
            us_sys_poll(&rung, 1, -1);
            if (rung.revents & POLLIN) {
                uint64_t drained;
                ssize_t got = read(m->doorbell, &drained, sizeof drained);
                (void)got;
            } else if (rung.revents != 0) { /* closed by other code of the process */
                us_die("uswap: descriptors of uswap were closed by other code of this process; what is to leave RAM "
                       "can't, so this process ends\n");
            }
        }
        us_atomic_store(&r->mover_asleep, 0);
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
    while (us_atomic_load(&m->tid) == 0)
        sched_yield();
    return 0;
}

void us_mover_stop(us_mover_t *m) {
    us_atomic_store(&m->space->ring->stop, 1);
    us_sys_eventfd_ring(m->doorbell);
    pthread_join(m->thread, NULL);
}
