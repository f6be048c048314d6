/* SPDX-License-Identifier: MIT
 *
 * The core's atomic accesses: those of C11. The simulation puts its own in their place, by the name of a header in
 * US_ATOMICS, since it may go on with another thread at each.
 */
#ifndef US_ATOMIC_H
#define US_ATOMIC_H

#include <stdatomic.h>

#ifdef US_ATOMICS
#include US_ATOMICS
#else
#define us_atomic_load atomic_load
#define us_atomic_load_explicit atomic_load_explicit
#define us_atomic_store atomic_store
#define us_atomic_store_explicit atomic_store_explicit
#define us_atomic_exchange atomic_exchange
#define us_atomic_exchange_explicit atomic_exchange_explicit
#define us_atomic_compare_exchange_strong atomic_compare_exchange_strong
#define us_atomic_compare_exchange_weak atomic_compare_exchange_weak
#define us_atomic_compare_exchange_weak_explicit atomic_compare_exchange_weak_explicit
#define us_atomic_fetch_add atomic_fetch_add
#define us_atomic_fetch_add_explicit atomic_fetch_add_explicit
#define us_atomic_fetch_sub atomic_fetch_sub
#define us_point() ((void)0) /* before and after what is shared and not atomic to C */
#endif

#endif
