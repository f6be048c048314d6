/* SPDX-License-Identifier: MIT */
/*
 * hist.h: a log-linear histogram of latencies in nanoseconds.
 *
 * Values below US_HIST_SUB have a bucket each; above, every octave has US_HIST_SUB buckets of equal
 * width, so a bucket is at most 1/16 of its values wide, and its middle at most 1/32 off any of them.
 * The last octave ends at 2^42 ns (73 minutes); what is longer is counted in the last bucket.
 *
 * It lies in shared memory. One thread writes; any thread of any process reads, without a lock. All
 * accesses are relaxed: a reader may see a sample in its bucket and not yet in count, sum or max, so a
 * quantile is taken from the buckets alone. All zero is an empty histogram.
 */
#ifndef US_HIST_H
#define US_HIST_H

#include "atomic.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    US_HIST_SUB_LOG = 4,
    US_HIST_SUB = 1 << US_HIST_SUB_LOG, /* sub-buckets per octave */
    US_HIST_TOP_LOG = 42,               /* values from 2^42 on share the last bucket */
    US_HIST_BUCKETS = (US_HIST_TOP_LOG - US_HIST_SUB_LOG + 1) * US_HIST_SUB,
};

/* 5,016 bytes. */
typedef struct us_hist {
    uint64_t count;
    uint64_t sum; /* ns */
    uint64_t max; /* ns */
    uint64_t bucket[US_HIST_BUCKETS];
} us_hist_t;

/* The bucket of a value. */
static inline uint32_t us_hist_index(uint64_t ns) {
    if (ns < US_HIST_SUB)
        return (uint32_t)ns;
    uint32_t log = 63u - (uint32_t)__builtin_clzll(ns);
    if (log >= US_HIST_TOP_LOG)
        return US_HIST_BUCKETS - 1;
    uint32_t shift = log - US_HIST_SUB_LOG;
    return (shift << US_HIST_SUB_LOG) + (uint32_t)(ns >> shift);
}

/* By the one writer. No read-modify-write is needed: nobody else stores. */
static inline void us_hist_add(us_hist_t *h, uint64_t ns) {
    uint64_t *b = &h->bucket[us_hist_index(ns)];
    __atomic_store_n(b, __atomic_load_n(b, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&h->count, __atomic_load_n(&h->count, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&h->sum, __atomic_load_n(&h->sum, __ATOMIC_RELAXED) + ns, __ATOMIC_RELAXED);
    if (ns > __atomic_load_n(&h->max, __ATOMIC_RELAXED))
        __atomic_store_n(&h->max, ns, __ATOMIC_RELAXED);
}

/*
 * The value at quantile q (0..1), in nanoseconds: the middle of the bucket that holds the sample of rank
 * ceil(q * count), so within 1/32 of it; never above max, and max itself at q >= 1. 0 when empty.
 */
uint64_t us_hist_quantile(const us_hist_t *h, double q);

/* Adds from's samples to into, which nobody else writes meanwhile. */
void us_hist_merge(us_hist_t *into, const us_hist_t *from);

#endif
