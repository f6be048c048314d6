/* SPDX-License-Identifier: MIT */
#include "hist.h"

_Static_assert(sizeof(us_hist_t) <= 5 * 1024, "a histogram is at most 5 KiB");

/* pre: i < US_HIST_BUCKETS */
static uint64_t bucket_low(uint32_t i, uint64_t *width) {
    if (i < US_HIST_SUB) {
        *width = 1;
        return i;
    }
    uint32_t shift = (i >> US_HIST_SUB_LOG) - 1;
    *width = 1ull << shift;
    return (uint64_t)((i & (US_HIST_SUB - 1)) + US_HIST_SUB) << shift;
}

uint64_t us_hist_quantile(const us_hist_t *h, double q) {
    /* One look at each bucket: two passes over a histogram in use would not agree on the total. */
    uint64_t bucket[US_HIST_BUCKETS], total = 0;
    for (uint32_t i = 0; i < US_HIST_BUCKETS; i++)
        total += bucket[i] = __atomic_load_n(&h->bucket[i], __ATOMIC_RELAXED);
    if (total == 0)
        return 0;
    uint64_t max = __atomic_load_n(&h->max, __ATOMIC_RELAXED);

    double exact = q > 0 ? q * (double)total : 0; /* also a NaN is 0 */
    uint64_t rank = (uint64_t)exact;
    if ((double)rank < exact || rank == 0)
        rank++;
    if (rank > total)
        rank = total;
    uint32_t i = 0;
    for (uint64_t seen = bucket[0]; seen < rank; seen += bucket[i])
        i++;

    uint64_t width, low = bucket_low(i, &width), mid = low + width / 2;
    if (max < low)
        return mid;                       /* the writer is between bucket and max */
    bool open = i == US_HIST_BUCKETS - 1; /* at the top: it has no middle */
    return q >= 1 || open || mid > max ? max : mid;
}

void us_hist_merge(us_hist_t *into, const us_hist_t *from) {
    for (uint32_t i = 0; i < US_HIST_BUCKETS; i++)
        into->bucket[i] += __atomic_load_n(&from->bucket[i], __ATOMIC_RELAXED);
    into->count += __atomic_load_n(&from->count, __ATOMIC_RELAXED);
    into->sum += __atomic_load_n(&from->sum, __ATOMIC_RELAXED);
    uint64_t max = __atomic_load_n(&from->max, __ATOMIC_RELAXED);
    if (max > into->max)
        into->max = max;
}
