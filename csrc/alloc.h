/* SPDX-License-Identifier: MIT
 *
 * The pager half's memory, counted: that the way of a block from tier to tier takes none is shown by the count
 * standing still. Pages of a sparse reservation (us_sys_reserve) are not counted when they are first touched.
 */
#ifndef US_ALLOC_H
#define US_ALLOC_H

#include "atomic.h"
#include <stdint.h>
#include <stdlib.h>

extern _Atomic uint64_t us_allocations; /* calls, of all threads of the process */

static inline void us_alloc_count(void) { us_atomic_fetch_add_explicit(&us_allocations, 1, memory_order_relaxed); }

/* As those of the C library, freed by free(). */
static inline void *us_malloc(size_t n) {
    us_alloc_count();
    return malloc(n);
}
static inline void *us_calloc(size_t n, size_t size) {
    us_alloc_count();
    return calloc(n, size);
}
static inline void *us_realloc(void *p, size_t n) {
    us_alloc_count();
    return realloc(p, n);
}
static inline void *us_aligned_alloc(size_t align, size_t n) {
    us_alloc_count();
    return aligned_alloc(align, n);
}

#endif
