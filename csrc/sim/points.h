/* SPDX-License-Identifier: MIT
 *
 * What ../atomic.h takes in place of C11's: an atomic access is a point at which another fiber may
 * go on. What one thread does between two points no other sees half done; that is how the accesses are ordered on x86-64
 * too, but for a store that is passed by a later load, which is why those that matter are sequentially consistent.
 */
#ifndef US_SIM_POINTS_H
#define US_SIM_POINTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

void sim_point(void);
bool sim_spurious(void);

#define us_point sim_point

/* Of inline.c: an access of the thread's, which may fault; and no other stack, since a fiber has one of its own. */
#define US_SIMULATED 1
void sim_access(uint64_t addr, bool write);

#define SIM_TYPE(p) __typeof__((void)0, *(p))

#define us_atomic_load_explicit(p, order)               \
    __extension__({                                     \
        __auto_type sim_p = (p);                        \
        SIM_TYPE(sim_p) sim_v;                          \
        sim_point();                                    \
        __atomic_load(sim_p, &sim_v, __ATOMIC_SEQ_CST); \
        sim_v;                                          \
    })
#define us_atomic_load(p) us_atomic_load_explicit(p, 5)

#define us_atomic_store_explicit(p, value, order)        \
    __extension__({                                      \
        __auto_type sim_p = (p);                         \
        SIM_TYPE(sim_p) sim_v = (value);                 \
        sim_point();                                     \
        __atomic_store(sim_p, &sim_v, __ATOMIC_SEQ_CST); \
        sim_point();                                     \
    })
#define us_atomic_store(p, value) us_atomic_store_explicit(p, value, 5)

#define us_atomic_exchange_explicit(p, value, order)                  \
    __extension__({                                                   \
        __auto_type sim_p = (p);                                      \
        SIM_TYPE(sim_p) sim_v = (value), sim_old;                     \
        sim_point();                                                  \
        __atomic_exchange(sim_p, &sim_v, &sim_old, __ATOMIC_SEQ_CST); \
        sim_point();                                                  \
        sim_old;                                                      \
    })
#define us_atomic_exchange(p, value) us_atomic_exchange_explicit(p, value, 5)

#define us_atomic_compare_exchange_strong_explicit(p, expected, value, yes, no)                          \
    __extension__({                                                                                      \
        __auto_type sim_p = (p);                                                                         \
        SIM_TYPE(sim_p) sim_v = (value);                                                                 \
        sim_point();                                                                                     \
        const bool sim_did =                                                                             \
            __atomic_compare_exchange(sim_p, (expected), &sim_v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        sim_point();                                                                                     \
        sim_did;                                                                                         \
    })
#define us_atomic_compare_exchange_strong(p, expected, value) \
    us_atomic_compare_exchange_strong_explicit(p, expected, value, 5, 5)
/* The weak one may fail although the value is the expected one. */
#define us_atomic_compare_exchange_weak_explicit(p, expected, value, yes, no)                      \
    __extension__({                                                                                \
        __auto_type sim_w = (p);                                                                   \
        sim_spurious() ? (__atomic_load(sim_w, (expected), __ATOMIC_SEQ_CST), false)               \
                       : us_atomic_compare_exchange_strong_explicit(sim_w, expected, value, 5, 5); \
    })
#define us_atomic_compare_exchange_weak(p, expected, value) \
    us_atomic_compare_exchange_weak_explicit(p, expected, value, 5, 5)

#define SIM_FETCH(p, value, how)                                           \
    __extension__({                                                        \
        __auto_type sim_p = (p);                                           \
        sim_point();                                                       \
        const __auto_type sim_old = how(sim_p, (value), __ATOMIC_SEQ_CST); \
        sim_point();                                                       \
        sim_old;                                                           \
    })
#define us_atomic_fetch_add_explicit(p, value, order) SIM_FETCH(p, value, __atomic_fetch_add)
#define us_atomic_fetch_add(p, value) SIM_FETCH(p, value, __atomic_fetch_add)
#define us_atomic_fetch_sub_explicit(p, value, order) SIM_FETCH(p, value, __atomic_fetch_sub)
#define us_atomic_fetch_sub(p, value) SIM_FETCH(p, value, __atomic_fetch_sub)

#endif
