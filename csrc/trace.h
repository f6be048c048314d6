/* SPDX-License-Identifier: MIT
 *
 * The trace: what happens to blocks, written to a file as it happens. Whoever serves puts records of 16 bytes into a
 * ring and never waits, calls the kernel or allocates for it; a thread of its own writes them out, some 20 times a
 * second. A record that finds the ring full is missed: it is counted, and a record says so where they are missing.
 *
 * The file begins with 64 bytes that the client writes (uswap/trace/file.py), little-endian:
 *
 *    0..7        8..11     12..15    16..23         24..31         32..39  40..43  44..63
 *   +-----------+---------+---------+--------------+--------------+-------+-------+------+
 *   | uswapTRC  | version | 64      | monotonic ns | real time ns | limit | pid   | 0    |
 *   +-----------+---------+---------+--------------+--------------+-------+-------+------+
 *
 * then records, in the order in which things were done:
 *
 *    0      1       2..3   4..7    8..15
 *   +------+-------+------+-------+---------+
 *   | what | flags | 0    | entry | when    |
 *   +------+-------+------+-------+---------+
 *
 *   what              flags            entry                when
 *   US_KIND_*         1: a write       of the block         monotonic ns at which the fault's message was read
 *   US_TRACE_AHEAD    0                of the block         a worker or a read has swapped it in without a fault
 *   US_TRACE_OUT      1: was dropped   of the block         it has left the client's pages
 *   US_TRACE_REGION   log2 of a block  first of the region  it was added; two MORE follow
 *   US_TRACE_MORE     0                the region's id      its length in bytes
 *   US_TRACE_MORE     0                number of its blocks its address
 *   US_TRACE_GONE     0                first of the region  it was removed; entries may be used anew
 *   US_TRACE_MISSED   0                number of records    that are missing here; when there was room again
 */
#ifndef US_TRACE_H
#define US_TRACE_H

#include <pthread.h>
#include "atomic.h"
#include <stdbool.h>
#include <stdint.h>

enum { US_TRACE_RING = 1 << 18 }; /* records: 4 MiB */
/* Of the ring, for what a reader can't do without: regions, and how much is missing. */
enum { US_TRACE_SPARE = 16 };

typedef struct us_trace_rec {
    uint8_t what, flags;
    uint16_t zero;
    uint32_t entry;
    uint64_t when;
} us_trace_rec_t;

_Static_assert(sizeof(us_trace_rec_t) == 16, "records are drawn above");

/* tail <= head <= tail + size.  head: whoever serves.  tail: the writer. */
typedef struct us_trace {
    bool on;
    int fd, bell;  /* the file; an eventfd, rung when it ends */
    uint32_t size; /* records; a power of two */
    us_trace_rec_t *ring;
    pthread_t writer;
    _Alignas(64) _Atomic uint64_t head;
    uint64_t room_until; /* head may go so far, as of the last look at tail */
    uint64_t missing;    /* records, since the last that found room */
    uint64_t missed;     /* in all */
    _Alignas(64) _Atomic uint64_t tail;
    _Atomic uint64_t unwritten; /* records that the file did not take */
    _Atomic int error;          /* errno of the write that failed; nothing is written after it */
} us_trace_t;

/* Begins to write to fd, which stays the caller's, through a ring of `size` records. */
int us_trace_open(us_trace_t *t, int fd, uint32_t size);
/* Writes all that is in the ring, and ends. Returns how many records the file lacks. */
uint64_t us_trace_close(us_trace_t *t);
uint64_t us_trace_lacks(const us_trace_t *t);

/* n records, all or none; those that are needed may have the spare room. */
void us_trace_put(us_trace_t *t, const us_trace_rec_t *rec, uint32_t n, bool needed);

static inline void us_trace_add(us_trace_t *t, int what, int flags, uint32_t entry, uint64_t when) {
    const us_trace_rec_t rec = {.what = (uint8_t)what, .flags = (uint8_t)flags, .entry = entry, .when = when};
    us_trace_put(t, &rec, 1, false);
}

#endif
