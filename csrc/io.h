/* SPDX-License-Identifier: MIT
 *
 * Reads and writes of the swap file, many in flight, none of them waited for. Two engines: io_uring by its
 * system calls, and threads with pread and pwrite for where the kernel refuses it.
 *
 * Everything here is called by one thread, the one that opened it (io_uring holds us to that). Nothing
 * blocks but us_io_open and us_io_close; nothing allocates but us_io_open. Requests are the caller's, and
 * so are their buffers: they stay in place from us_io_submit until us_io_done gives them back, or until
 * us_io_close returns.
 *
 *    in_flight(op) <= slots(op);   a request has a slot from us_io_submit until us_io_done returns it
 *    reads and writes have slots apart, so write-out cannot keep a fault from its read
 *
 * To sleep: store 1 to *asleep, us_io_listen(io, true), see that us_io_ready is false, wait for ring_fd to be
 * readable.
 *
 * A file that was opened without O_DIRECT is read and written through the page cache, and must not fill it:
 * a write is done when the device has it, and what a request left in the cache is dropped behind it. An
 * error that comes as late as that fails all writes under way, as the kernel does not say whose it was. What
 * lies in RAM anyway (tmpfs) is left there.
 */
#ifndef US_IO_H
#define US_IO_H

#include "atomic.h"
#include <stdbool.h>
#include <stdint.h>

enum { US_IO_AUTO = 0, US_IO_URING = 1, US_IO_THREADS = 2 };
enum { US_IO_READ = 0, US_IO_WRITE = 1, US_IO_OPS };
enum { US_IO_THREADS_DEFAULT = 4, US_IO_THREADS_MAX = 64, US_IO_SLOTS_MAX = 4096 };
enum {
    US_IO_SHORT = 1000,
    US_IO_FLIP = 1001,
    US_IO_LATE = 1002,
    US_IO_SLOW = 1003
}; /* for us_io_inject, beside errno values */

enum { US_IO_KINDS = 5 }; /* an errno, and these four, in this order */

typedef struct us_io_req {
    uint8_t op;     /* US_IO_READ, US_IO_WRITE */
    uint8_t tries;  /* the engine's */
    int16_t inject; /* the engine's */
    bool slow;      /* the engine's: it has still to be waited */
    bool bulk;      /* nobody waits for it: us_io_pace may cut it into pieces */
    uint32_t len;   /* bytes, not 0; buf, off and len aligned as O_DIRECT wants: the caller's duty */
    void *buf;
    uint64_t off;           /* bytes, in the file */
    int32_t res;            /* out: 0 when all len bytes were done, else -errno; -EIO when the file ends early */
    uint32_t done_bytes;    /* the engine's: how far it has come; short ones are resumed */
    uint32_t piece;         /* the engine's: bytes of the present attempt at most; 0: all */
    bool syncing;           /* the engine's: all written, not yet on the device */
    uint32_t late;          /* the engine's: how many late errors there were before it */
    uint64_t user[4];       /* the caller's */
    struct us_io_req *next; /* the engine's */
} us_io_req_t;

typedef struct us_io us_io_t;

/* pre: fd stays open until us_io_close. threads: of the threads engine, 0 for the default; with two or
 * more, one of them does reads only. reads, writes: slots of each kind. ring_fd: an eventfd (or -1) that
 * is rung when something completes; with threads and asleep not NULL, only when *asleep was not 0, and
 * then it becomes 0. US_IO_AUTO falls back to threads whatever io_uring's refusal is; US_IO_URING
 * returns it (-EPERM, -ENOSYS). */
int us_io_open(us_io_t **out, int fd, int engine, int threads, unsigned reads, unsigned writes, int ring_fd,
               _Atomic uint32_t *asleep);

/* Which engine runs: US_IO_URING or US_IO_THREADS. */
int us_io_engine(const us_io_t *io);

/* 0; -EAGAIN when no slot of that kind is free; -EINVAL. Nothing need start before us_io_flush. */
int us_io_submit(us_io_t *io, us_io_req_t *req);

/* Hands over what was submitted, at most two system calls for all. 0; or -EAGAIN when the kernel took
 * only some: the rest goes with the next us_io_flush or us_io_done. */
int us_io_flush(us_io_t *io);

/* The next completed request, or NULL. */
us_io_req_t *us_io_done(us_io_t *io);

unsigned us_io_in_flight(const us_io_t *io, int op);

/* From now on bulk requests go to the device in pieces of so many bytes (a multiple of 4096), one after the other, so
 * that others need not wait for the whole; 0, the state after us_io_open: as they are. */
void us_io_pace(us_io_t *io, uint32_t bytes);

/* false: from now on us_io_ready is asked often enough, so ring_fd need not be rung, which io_uring does
 * else whether anybody sleeps or not (the threads look at *asleep). true, the state after us_io_open: it is. */
void us_io_listen(us_io_t *io, bool on);

/* Whether us_io_done has something to look at. No system call. */
bool us_io_ready(us_io_t *io);

/* Waits for what is in flight; those requests have their res, but are not returned. NULL is allowed. */
void us_io_close(us_io_t *io);

/* For tests. From now on every n-th request of kind op fails with err without touching the file
 * (an errno), is cut short once (US_IO_SHORT) and resumed, has one bit flipped after it was read
 * (US_IO_FLIP, reads only), fails with EIO on its way from the page cache (US_IO_LATE, writes only), or takes some
 * milliseconds longer (US_IO_SLOW). every: 0 for none. Returns 0 or -EINVAL; -EEXIST: another of that op is on. */
int us_io_inject(us_io_t *io, int op, int err, uint32_t every);

/* How many requests of kind op that took effect on. kind: 0 for all errno, else US_IO_SHORT, ... */
uint64_t us_io_injected(const us_io_t *io, int op, int kind);

#endif
