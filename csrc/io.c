/* SPDX-License-Identifier: MIT
 *
 * One request is a few attempts: each goes to the file from done_bytes on, and settle() says whether
 * another one follows. The engines differ only in who makes the attempt: the kernel (io_uring; the loop
 * settles what it reaps) or a thread (which settles before it hands the request back).
 *
 * Without O_DIRECT there is more to do. A write's last attempt is to have the kernel write the pages to the
 * device (syncing): only clean ones can be dropped. The dropping itself nobody waits for: a thread does it
 * after it has handed the request back, and io_uring as a request of the engine's own, known by a user_data
 * of 0, of which no more than `slots` are under way. The kernel's read-ahead is off, since it would swap in
 * what nobody drops.
 *
 * Threads sleep as in worker.c: a thread reads its bell, looks at the queues, and sleeps only while the
 * bell still has that value; the loop queues, then raises the bell, then wakes.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io.h"
#include "alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.h"

/* A folio of the page cache is dropped only when it lies whole in the span that is named. Those of a device
 * with large blocks have that size, 64 KiB at most; to name more than was read costs a look-up. */
enum { TRIES = 16, RESUME_ALIGN = 4096, DROP_ALIGN = 64 << 10 };
enum { READER, ANY, CLASSES }; /* of threads: reads only; reads, then writes */

/* io_uring is set up with no flags, since two threads may submit, one at a time: SINGLE_ISSUER forbids that, and what
 * COOP_TASKRUN puts off waits for the thread that submitted. Random O_DIRECT reads of 16 KiB, one at a time, from
 * submission to the eventfd: p50 over that of pread in the same run, three runs each (Linux 6.18, virtual disk, 2 CPUs,
 * not idle; measured by `io_test bench`): none 1.03 to 1.06, COOP with SINGLE 1.04 to 1.05, DEFER 1.03 to 1.04; the
 * threads engine 1.15 to 1.24. So AUTO is io_uring. */
enum { CQ_EVENTFD_DISABLED = 1 };

/* tail <= head <= tail + the slots of that kind, and the array has no fewer: so a position is not written
 * again before it was taken. */
typedef struct queue {
    _Alignas(64) _Atomic uint32_t head; /* the loop's */
    _Alignas(64) _Atomic uint32_t tail; /* the threads' */
    uint32_t mask;
    _Atomic(us_io_req_t *) *at;
} queue_t;

typedef struct seat {
    us_io_t *io;
    int class;
    pthread_t thread;
} seat_t;

struct us_io {
    int fd, engine, ring_fd;
    unsigned slots[US_IO_OPS], used[US_IO_OPS];
    unsigned pending[US_IO_OPS]; /* submitted, not yet flushed */
    struct {
        int err;
        uint32_t every, count;
        _Atomic uint64_t fired[US_IO_KINDS];
    } inject[US_IO_OPS];
    uint64_t flips;
    bool drops;            /* through the page cache: synced and dropped behind */
    _Atomic uint32_t late; /* errors of syncing */
    _Atomic uint32_t pace; /* bytes of a bulk request's pieces; 0: whole */

    /* io_uring. sq_tail and cq_head are ours, the kernel's view lags until they are stored. */
    int uring;
    bool fixed;        /* fd is registered as file 0 */
    bool owed;         /* something is prepared that the next us_io_done has to hand over */
    unsigned dropping; /* requests of our own under way */
    void *rings;
    size_t rings_len, sqes_len;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    _Atomic uint32_t *k_sq_head, *k_sq_tail, *k_cq_head, *k_cq_tail, *k_cq_flags;
    uint32_t *sq_array;
    uint32_t sq_mask, cq_mask, sq_tail, cq_head;

    /* threads */
    queue_t todo[US_IO_OPS];
    _Atomic uint32_t *asleep;
    _Atomic uint32_t stop;
    us_io_req_t *ready; /* taken off done, oldest first */
    _Alignas(64) _Atomic uint32_t bell[CLASSES];
    _Alignas(64) _Atomic(us_io_req_t *) done; /* newest first */
    int n;
    seat_t seat[US_IO_THREADS_MAX];
};

/* For US_IO_SLOW: how long a request is held up before it begins. */
enum { SLOWNESSES = 5 };
static const struct __kernel_timespec slowness[SLOWNESSES] = {
    {0, 200000}, {0, 1000000}, {0, 3000000}, {0, 7000000}, {0, 20000000}};

/* ---- attempts --------------------------------------------------------------------------------------- */

static int kind_of(int err) { return err < US_IO_SHORT ? 0 : err - US_IO_SHORT + 1; }

static void fired(us_io_t *io, const us_io_req_t *q, int err) {
    us_atomic_fetch_add_explicit(&io->inject[q->op].fired[kind_of(err)], 1, memory_order_relaxed);
}

static bool refused(const us_io_req_t *q) { return q->inject > 0 && q->inject < US_IO_SHORT; }

/* Where the next attempt begins. Redoing part of a page is harmless, an unaligned O_DIRECT is refused. */
static uint32_t start(const us_io_req_t *q) { return q->done_bytes & ~(uint32_t)(RESUME_ALIGN - 1); }

static uint32_t length(const us_io_req_t *q) {
    uint32_t len = q->len - start(q);
    if (q->inject == US_IO_SHORT && len / 2 >= RESUME_ALIGN)
        len = len / 2 & ~(uint32_t)(RESUME_ALIGN - 1);
    return q->piece != 0 && len > q->piece ? q->piece : len;
}

/* After an attempt that gave n bytes or -errno: true when the request is finished, and res is set. */
static bool settle(us_io_t *io, us_io_req_t *q, int64_t n) {
    if (q->slow) {
        q->slow = false;
        fired(io, q, US_IO_SLOW);
        return false;
    }
    if (refused(q)) {
        n = -q->inject;
        fired(io, q, q->inject);
    }
    if (n == -EINTR || n == -EAGAIN) {
        q->res = (int32_t)n;
        return ++q->tries >= TRIES;
    }
    if (q->syncing) {
        if (q->inject == US_IO_LATE) {
            n = -EIO;
            fired(io, q, US_IO_LATE);
        }
        if (n < 0)
            us_atomic_fetch_add(&io->late, 1);
        else if (us_atomic_load(&io->late) != q->late)
            n = -EIO; /* of one descriptor's writes the kernel tells one, whichever asks first */
        q->res = (int32_t)n;
        return true;
    }
    if (n < 0) {
        q->res = (int32_t)n;
        return true;
    }
    if (q->inject == US_IO_SHORT) {
        if (n == q->len)
            n /= 2; /* too small to be cut: said to be short, and done again */
        q->inject = 0;
        if (start(q) + (uint64_t)n < q->len)
            fired(io, q, US_IO_SHORT);
    }
    uint32_t to = start(q) + (uint32_t)n;
    q->res = 0;
    if (to >= q->len) {
        q->done_bytes = q->len;
        q->syncing = io->drops && q->op == US_IO_WRITE;
        return !q->syncing;
    }
    q->res = -EIO;
    if (to <= q->done_bytes) /* no further than before: the end of the file */
        return true;
    const bool whole = q->piece != 0 && n == q->piece; /* as much as was asked for: that was no failure */
    q->done_bytes = to;
    q->piece = q->bulk ? us_atomic_load_explicit(&io->pace, memory_order_relaxed) : 0;
    q->tries += !whole;
    return q->tries >= TRIES;
}

static const unsigned sync_flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

/* What is to be dropped behind a request. */
static uint64_t drop_from(const us_io_req_t *q) { return q->off & ~(uint64_t)(DROP_ALIGN - 1); }
static uint32_t drop_len(const us_io_req_t *q) {
    const uint64_t end = (q->off + q->len + DROP_ALIGN - 1) & ~(uint64_t)(DROP_ALIGN - 1);
    return (uint32_t)(end - drop_from(q));
}

static void flip(us_io_t *io, us_io_req_t *q) {
    uint64_t bit = io->flips++ * 0x9e3779b97f4a7c15ull % ((uint64_t)q->len * 8);
    ((uint8_t *)q->buf)[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

/* The last step of both engines: the slot is free again. */
static us_io_req_t *give(us_io_t *io, us_io_req_t *q) {
    io->used[q->op]--;
    if (q->inject == US_IO_FLIP && q->res == 0) {
        flip(io, q);
        fired(io, q, US_IO_FLIP);
    }
    q->next = NULL;
    return q;
}

/* ---- io_uring --------------------------------------------------------------------------------------- */

static int enter(us_io_t *io, unsigned submit, unsigned wait, unsigned flags) {
    long n = syscall(__NR_io_uring_enter, io->uring, submit, wait, flags, NULL, 0);
    return n < 0 ? -errno : (int)n;
}

/* The submission queue has room for all slots and as many of our own, and a request is in it at most once. */
static struct io_uring_sqe *next_sqe(us_io_t *io, us_io_req_t *q, uint8_t opcode) {
    uint32_t i = io->sq_tail++ & io->sq_mask;
    struct io_uring_sqe *s = &io->sqes[i];
    memset(s, 0, sizeof *s);
    s->user_data = (uint64_t)(uintptr_t)q;
    s->opcode = opcode;
    if (opcode != IORING_OP_NOP) {
        s->fd = io->fixed ? 0 : io->fd;
        s->flags = io->fixed ? IOSQE_FIXED_FILE : 0;
    }
    io->sq_array[i] = i;
    return s;
}

static void prepare(us_io_t *io, us_io_req_t *q) {
    if (q->slow) {
        struct io_uring_sqe *s = next_sqe(io, q, IORING_OP_TIMEOUT);
        s->fd = -1;
        s->flags = 0;
        s->addr = (uint64_t)(uintptr_t)&slowness[(q->off >> 12) % SLOWNESSES];
        s->len = 1;
    } else if (refused(q)) {
        next_sqe(io, q, IORING_OP_NOP);
    } else if (q->syncing) {
        struct io_uring_sqe *s = next_sqe(io, q, IORING_OP_SYNC_FILE_RANGE);
        s->off = q->off;
        s->len = q->len;
        s->sync_range_flags = sync_flags;
    } else {
        struct io_uring_sqe *s = next_sqe(io, q, q->op == US_IO_READ ? IORING_OP_READ : IORING_OP_WRITE);
        s->off = q->off + start(q);
        s->addr = (uint64_t)(uintptr_t)q->buf + start(q);
        s->len = length(q);
    }
}

static void prepare_drop(us_io_t *io, const us_io_req_t *q) {
    if (io->dropping == io->slots[US_IO_READ] + io->slots[US_IO_WRITE]) { /* far behind: wait for this one */
        posix_fadvise(io->fd, (off_t)drop_from(q), drop_len(q), POSIX_FADV_DONTNEED);
        return;
    }
    struct io_uring_sqe *s = next_sqe(io, NULL, IORING_OP_FADVISE);
    s->off = drop_from(q);
    s->len = drop_len(q);
    s->fadvise_advice = POSIX_FADV_DONTNEED;
    io->dropping++;
    io->owed = true;
}

static int uring_flush(us_io_t *io) {
    io->owed = true;
    us_atomic_store_explicit(io->k_sq_tail, io->sq_tail, memory_order_release);
    for (int tries = 0; tries < TRIES; tries++) {
        uint32_t left = io->sq_tail - us_atomic_load_explicit(io->k_sq_head, memory_order_acquire);
        if (left == 0) {
            io->owed = false;
            return 0;
        }
        int n = enter(io, left, 0, 0);
        if (n < 0 && n != -EINTR)
            return n == -EBUSY ? -EAGAIN : n;
    }
    return -EAGAIN;
}

static bool cq_has(us_io_t *io) { return io->cq_head != us_atomic_load_explicit(io->k_cq_tail, memory_order_acquire); }

static us_io_req_t *uring_done(us_io_t *io) {
    for (;;) {
        if (!cq_has(io)) {
            if (io->owed) /* now, as the caller may be about to sleep */
                uring_flush(io);
            if (!cq_has(io))
                return NULL;
        }
        const struct io_uring_cqe *c = &io->cqes[io->cq_head & io->cq_mask];
        us_io_req_t *q = (us_io_req_t *)(uintptr_t)c->user_data;
        int32_t n = c->res;
        us_atomic_store_explicit(io->k_cq_head, ++io->cq_head, memory_order_release);
        if (q == NULL) {
            io->dropping--; /* advice: whether it was taken changes nothing */
            continue;
        }
        if (settle(io, q, n)) {
            if (io->drops)
                prepare_drop(io, q);
            return give(io, q);
        }
        prepare(io, q);
        io->owed = true;
    }
}

static void uring_free(us_io_t *io) {
    if (io->sqes != NULL)
        munmap(io->sqes, io->sqes_len);
    if (io->rings != NULL)
        munmap(io->rings, io->rings_len);
    if (io->uring >= 0)
        close(io->uring);
    io->sqes = NULL;
    io->rings = NULL;
    io->uring = -1;
}

static void *map_ring(us_io_t *io, size_t len, off_t what) {
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, io->uring, what);
    return p == MAP_FAILED ? NULL : p;
}

/* A filter of system calls may allow the set-up and not the use: a request that does nothing tells. */
static int uring_try(us_io_t *io) {
    int n;
    next_sqe(io, NULL, IORING_OP_NOP);
    us_atomic_store_explicit(io->k_sq_tail, io->sq_tail, memory_order_release);
    do
        n = enter(io, cq_has(io) ? 0 : 1, 1, IORING_ENTER_GETEVENTS);
    while (n == -EINTR);
    if (n < 0)
        return n;
    if (!cq_has(io))
        return -EIO;
    us_atomic_store_explicit(io->k_cq_head, ++io->cq_head, memory_order_release);
    return 0;
}

static int uring_open(us_io_t *io) {
    const unsigned room = (io->slots[US_IO_READ] + io->slots[US_IO_WRITE]) * (io->drops ? 2 : 1);
    struct io_uring_params p = {0};
    io->uring = (int)syscall(__NR_io_uring_setup, room, &p);
    if (io->uring < 0)
        return -errno;
    if (!(p.features & IORING_FEAT_SINGLE_MMAP) || !(p.features & IORING_FEAT_NODROP)) {
        uring_free(io);
        return -ENOSYS;
    }
    size_t sq = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
    size_t cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    io->rings_len = sq > cq ? sq : cq;
    io->sqes_len = p.sq_entries * sizeof(struct io_uring_sqe);
    io->rings = map_ring(io, io->rings_len, IORING_OFF_SQ_RING);
    io->sqes = map_ring(io, io->sqes_len, IORING_OFF_SQES);
    if (io->rings == NULL || io->sqes == NULL) {
        uring_free(io);
        return -ENOMEM;
    }
    uint8_t *r = io->rings;
    io->k_sq_head = (void *)(r + p.sq_off.head);
    io->k_sq_tail = (void *)(r + p.sq_off.tail);
    io->sq_array = (void *)(r + p.sq_off.array);
    io->k_cq_head = (void *)(r + p.cq_off.head);
    io->k_cq_tail = (void *)(r + p.cq_off.tail);
    io->k_cq_flags = p.cq_off.flags != 0 ? (void *)(r + p.cq_off.flags) : NULL; /* before Linux 5.8 */
    io->cqes = (void *)(r + p.cq_off.cqes);
    io->sq_mask = p.sq_entries - 1;
    io->cq_mask = p.cq_entries - 1;
    int err = uring_try(io);
    if (err != 0) {
        uring_free(io);
        return err;
    }
    if (io->ring_fd >= 0 && syscall(__NR_io_uring_register, io->uring, IORING_REGISTER_EVENTFD, &io->ring_fd, 1) != 0) {
        err = -errno;
        uring_free(io);
        return err;
    }
    io->fixed = syscall(__NR_io_uring_register, io->uring, IORING_REGISTER_FILES, &io->fd, 1) == 0;
    return 0;
}

/* ---- threads ---------------------------------------------------------------------------------------- */

static us_io_req_t *take(queue_t *t) {
    uint32_t tail = us_atomic_load_explicit(&t->tail, memory_order_relaxed);
    for (;;) {
        if (tail == us_atomic_load_explicit(&t->head, memory_order_acquire))
            return NULL;
        us_io_req_t *q = us_atomic_load_explicit(&t->at[tail & t->mask], memory_order_relaxed);
        if (us_atomic_compare_exchange_weak_explicit(&t->tail, &tail, tail + 1, memory_order_acq_rel,
                                                     memory_order_relaxed))
            return q;
    }
}

static void put(queue_t *t, us_io_req_t *q) {
    uint32_t head = us_atomic_load_explicit(&t->head, memory_order_relaxed);
    us_atomic_store_explicit(&t->at[head & t->mask], q, memory_order_relaxed);
    us_atomic_store_explicit(&t->head, head + 1, memory_order_release);
}

static unsigned wake(_Atomic uint32_t *bell, unsigned n) {
    long woken = syscall(SYS_futex, bell, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
    return woken < 0 ? 0 : (unsigned)woken;
}

static int64_t attempt(int fd, const us_io_req_t *q) {
    if (q->slow) {
        const struct __kernel_timespec *t = &slowness[(q->off >> 12) % SLOWNESSES];
        usleep((useconds_t)(t->tv_nsec / 1000));
        return 0;
    }
    if (refused(q))
        return 0;
    if (q->syncing)
        return sync_file_range(fd, (off_t)q->off, q->len, sync_flags) == 0 ? 0 : -errno;
    uint8_t *buf = (uint8_t *)q->buf + start(q);
    off_t off = (off_t)(q->off + start(q));
    ssize_t n = q->op == US_IO_READ ? pread(fd, buf, length(q), off) : pwrite(fd, buf, length(q), off);
    return n < 0 ? -errno : n;
}

static void ring(us_io_t *io) {
    if (io->ring_fd < 0)
        return;
    if (io->asleep != NULL && (us_atomic_load(io->asleep) == 0 || us_atomic_exchange(io->asleep, 0) == 0))
        return;
    const uint64_t one = 1;
    while (write(io->ring_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void *thread_main(void *arg) {
    const seat_t *seat = arg;
    us_io_t *io = seat->io;
    _Atomic uint32_t *bell = &io->bell[seat->class];
    prctl(PR_SET_NAME, "uswap-io");
    for (;;) {
        const uint32_t was = us_atomic_load(bell); /* before stop and the queues are looked at */
        const uint32_t stop = us_atomic_load(&io->stop);
        us_io_req_t *q = take(&io->todo[US_IO_READ]);
        if (q == NULL && seat->class == ANY)
            q = take(&io->todo[US_IO_WRITE]);
        if (q == NULL) {
            if (stop != 0)
                return NULL;
            syscall(SYS_futex, bell, FUTEX_WAIT_PRIVATE, was, NULL, NULL, 0);
            continue;
        }
        while (!settle(io, q, attempt(io->fd, q)))
            ;
        const uint64_t from = drop_from(q);
        const uint32_t len = drop_len(q);
        q->next = us_atomic_load_explicit(&io->done, memory_order_relaxed);
        while (!us_atomic_compare_exchange_weak(&io->done, &q->next, q)) /* before asleep is looked at */
            ;
        ring(io); /* q may be gone from here on */
        if (io->drops)
            posix_fadvise(io->fd, (off_t)from, len, POSIX_FADV_DONTNEED);
    }
}

static int threads_flush(us_io_t *io) {
    unsigned reads = io->pending[US_IO_READ], all = reads + io->pending[US_IO_WRITE];
    us_atomic_fetch_add(&io->bell[ANY], 1);
    if (reads > 0) {
        us_atomic_fetch_add(&io->bell[READER], 1);
        all -= wake(&io->bell[READER], reads);
    }
    if (all > 0)
        wake(&io->bell[ANY], all);
    return 0;
}

static us_io_req_t *threads_done(us_io_t *io) {
    if (io->ready == NULL && us_atomic_load_explicit(&io->done, memory_order_relaxed) != NULL) {
        us_io_req_t *q = us_atomic_exchange_explicit(&io->done, NULL, memory_order_acquire);
        while (q != NULL) {
            us_io_req_t *next = q->next;
            q->next = io->ready;
            io->ready = q;
            q = next;
        }
    }
    us_io_req_t *q = io->ready;
    if (q == NULL)
        return NULL;
    io->ready = q->next;
    return give(io, q);
}

/* The threads finish what is queued. */
static void threads_stop(us_io_t *io) {
    us_atomic_store(&io->stop, 1);
    for (int c = 0; c < CLASSES; c++) {
        us_atomic_fetch_add(&io->bell[c], 1);
        wake(&io->bell[c], US_IO_THREADS_MAX);
    }
    for (int i = 0; i < io->n; i++)
        pthread_join(io->seat[i].thread, NULL);
    for (int op = 0; op < US_IO_OPS; op++)
        free(io->todo[op].at);
}

static int threads_open(us_io_t *io, int threads) {
    int err = 0;
    for (int op = 0; op < US_IO_OPS; op++) {
        uint32_t room = 1;
        while (room < io->slots[op])
            room *= 2;
        io->todo[op].mask = room - 1;
        io->todo[op].at = us_calloc(room, sizeof *io->todo[op].at);
        if (io->todo[op].at == NULL)
            err = -ENOMEM;
    }
    for (int i = 0; i < threads && err == 0; i++) {
        seat_t *seat = &io->seat[i];
        seat->io = io;
        seat->class = i == 0 && threads > 1 ? READER : ANY;
        err = us_sys_thread(&seat->thread, NULL, thread_main, seat);
        if (err == 0)
            io->n++;
    }
    if (err != 0)
        threads_stop(io);
    return err;
}

/* ---- both ------------------------------------------------------------------------------------------- */

/* Would the page cache keep what is read and written? */
static bool must_drop(int fd) {
    struct stat st;
    const int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && !(flags & O_DIRECT) && fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) &&
           us_in_ram(fd) == 0;
}

int us_io_open(us_io_t **out, int fd, int engine, int threads, unsigned reads, unsigned writes, int ring_fd,
               _Atomic uint32_t *asleep) {
    *out = NULL;
    threads = threads == 0 ? US_IO_THREADS_DEFAULT : threads;
    if (engine < US_IO_AUTO || engine > US_IO_THREADS || threads < 1 || threads > US_IO_THREADS_MAX || reads < 1 ||
        reads > US_IO_SLOTS_MAX || writes < 1 || writes > US_IO_SLOTS_MAX)
        return -EINVAL;
    us_io_t *io = us_aligned_alloc(64, sizeof *io);
    if (io == NULL)
        return -ENOMEM;
    memset(io, 0, sizeof *io);
    io->fd = fd;
    io->ring_fd = ring_fd;
    io->asleep = asleep;
    io->slots[US_IO_READ] = reads;
    io->slots[US_IO_WRITE] = writes;
    io->uring = -1;
    io->drops = must_drop(fd);
    if (io->drops)
        posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    int err = engine == US_IO_THREADS ? -ENOSYS : uring_open(io);
    io->engine = err == 0 ? US_IO_URING : US_IO_THREADS;
    if (err != 0 && engine != US_IO_URING)
        err = threads_open(io, threads);
    if (err != 0) {
        free(io);
        return err;
    }
    *out = io;
    return 0;
}

int us_probe_io_uring(void) {
    us_io_t *io;
    const int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); /* a file to be registered, and to be rung */
    if (event < 0)
        return -errno;
    const int err = us_io_open(&io, event, US_IO_URING, 0, 1, 1, event, NULL);
    if (err == 0)
        us_io_close(io);
    close(event);
    return err;
}

int us_io_engine(const us_io_t *io) { return io->engine; }

unsigned us_io_in_flight(const us_io_t *io, int op) { return io->used[op]; }

int us_io_submit(us_io_t *io, us_io_req_t *q) {
    if (q->op >= US_IO_OPS || q->len == 0 || q->len > INT32_MAX)
        return -EINVAL;
    if (io->used[q->op] == io->slots[q->op])
        return -EAGAIN;
    io->used[q->op]++;
    io->pending[q->op]++;
    q->tries = 0;
    q->done_bytes = 0;
    q->syncing = false;
    q->piece = q->bulk ? us_atomic_load_explicit(&io->pace, memory_order_relaxed) : 0;
    q->late = us_atomic_load(&io->late);
    q->res = -EINPROGRESS;
    q->next = NULL;
    q->inject = 0;
    q->slow = false;
    if (io->inject[q->op].every != 0 && ++io->inject[q->op].count % io->inject[q->op].every == 0)
        q->inject = (int16_t)io->inject[q->op].err;
    if (q->inject == US_IO_SLOW) {
        q->inject = 0;
        q->slow = true;
    }
    if (io->engine == US_IO_URING)
        prepare(io, q);
    else
        put(&io->todo[q->op], q);
    return 0;
}

int us_io_flush(us_io_t *io) {
    if (io->pending[US_IO_READ] + io->pending[US_IO_WRITE] == 0 && !io->owed)
        return 0;
    int err = io->engine == US_IO_URING ? uring_flush(io) : threads_flush(io);
    io->pending[US_IO_READ] = 0;
    io->pending[US_IO_WRITE] = 0;
    return err;
}

us_io_req_t *us_io_done(us_io_t *io) { return io->engine == US_IO_URING ? uring_done(io) : threads_done(io); }

void us_io_pace(us_io_t *io, uint32_t bytes) { us_atomic_store_explicit(&io->pace, bytes, memory_order_relaxed); }

/* The kernel looks at the flag after it has stored the completion; we look for completions after storing it. */
void us_io_listen(us_io_t *io, bool on) {
    if (io->engine == US_IO_URING && io->k_cq_flags != NULL)
        us_atomic_store(io->k_cq_flags, on ? 0 : CQ_EVENTFD_DISABLED);
}

bool us_io_ready(us_io_t *io) {
    if (io->engine == US_IO_URING)
        return cq_has(io) || io->owed;
    return io->ready != NULL || us_atomic_load(&io->done) != NULL; /* after asleep was stored */
}

void us_io_close(us_io_t *io) {
    if (io == NULL)
        return;
    if (io->engine == US_IO_THREADS) {
        threads_stop(io);
        while (us_io_done(io) != NULL)
            ;
    } else {
        int err = uring_flush(io);
        while (io->used[US_IO_READ] + io->used[US_IO_WRITE] + io->dropping > 0) {
            const unsigned before = io->dropping;
            if (us_io_done(io) != NULL || io->dropping != before)
                continue;
            if (err < 0 && err != -EAGAIN && err != -EINTR && err != -EBUSY)
                break; /* the kernel takes nothing any more */
            err = enter(io, 0, io->owed ? 0 : 1, IORING_ENTER_GETEVENTS);
        }
        uring_free(io);
    }
    free(io);
}

int us_io_inject(us_io_t *io, int op, int err, uint32_t every) {
    if (op < 0 || op >= US_IO_OPS || err < 1 || err > US_IO_SLOW || (err == US_IO_FLIP && op != US_IO_READ) ||
        (err == US_IO_LATE && op != US_IO_WRITE))
        return -EINVAL;
    if (every != 0 && io->inject[op].every != 0 && io->inject[op].err != err)
        return -EEXIST;
    io->inject[op].err = err;
    io->inject[op].every = every;
    io->inject[op].count = 0;
    return 0;
}

uint64_t us_io_injected(const us_io_t *io, int op, int kind) {
    return us_atomic_load_explicit(&io->inject[op].fired[kind_of(kind)], memory_order_relaxed);
}
