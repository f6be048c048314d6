/* SPDX-License-Identifier: MIT
 *
 * The guard. A system call on inline memory that is out gets EFAULT, so the functions of libc that hand memory to the
 * kernel pass through ours: the entries of the global offset tables of all loaded objects are changed. Ours hold the
 * memory that is paged, make the call, and end the hold; for other memory they compare two addresses and make the call.
 *
 *   guard.c         the tables of entries, dlopen and dlsym
 *   guard_hold.c    one call: its operands are held, and released also when the thread is cancelled
 *   guard_rw.c      read, write and their kin: what is larger than a hold goes in pieces
 *   guard_vec.c     vectors of buffers and messages
 *   guard_calls.c   all others, a line for each: which argument is what; and syscall() by number
 *   guard_stdio.c   streams
 *   guard_signal.c  signals: what would stand before sigchain.c, or block SIGBUS
 *
 * What is not guarded: raw syscall instructions, objects in a namespace of dlmopen() (they have a libc and an errno of
 * their own), pointers to functions that were got before us_guard_open(). Such a call gets EFAULT, which is loud.
 */
#ifndef US_GUARD_H
#define US_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "inline.h"

/* Changes the entries of all loaded objects but this one. Idempotent, for any thread. 0 or -errno. */
int us_guard_open(void);

/* Puts back what us_guard_open changed. Pointers that dlsym() gave stay valid. */
void us_guard_close(void);

/* Changes the entries of what has been loaded since. How many it changed. us_guard_open and dlopen() call it. */
int us_guard_sweep(void);

/* How many entries are changed now, as counted when they were. */
uint64_t us_guard_changed(void);

/* The name of the function with that index, in no order; NULL after the last. */
const char *us_guard_name(uint32_t index);

/* ---- between the files of the guard -------------------------------------------------------------------- */

/* A function that is guarded: ours, and the one that ours calls. */
typedef struct us_guard {
    const char *name;
    void *ours;
    void *libc;  /* in libc.so.6, or NULL where this libc lacks it; then ours is never reached */
    void *other; /* what objects call: libc's, or that of a library which stands before it (a sanitizer, LD_PRELOAD) */
} us_guard_t;

/* Each file's, ended by one without a name. */
extern us_guard_t us_guard_core[], us_guard_rw[], us_guard_vec[], us_guard_calls[], us_guard_stdio[], us_guard_signal[];

/* Cheap, and false for nearly all memory: may [addr, addr+len) meet an inline region? */
static inline bool us_guard_near(const void *addr, uint64_t len) {
    uint64_t a = (uint64_t)(uintptr_t)addr;
    return __builtin_expect(a < atomic_load_explicit(&us_inline_hi, memory_order_relaxed) &&
                                a + len > atomic_load_explicit(&us_inline_lo, memory_order_relaxed),
                            0);
}

/* What one call holds; ended by us_holds_end, also when the thread is cancelled in between. */
enum { US_HOLDS = 24 };
typedef struct us_holds {
    struct us_held {
        uint64_t addr, len, since;
    } at[US_HOLDS];
    uint32_t n;
    struct us_holds *more; /* mapped, when these are full */
} us_holds_t;

/* Holds as much of [addr, addr+len) as can be. How many bytes from the front, or -errno. */
int64_t us_holds_part(us_holds_t *h, const void *addr, uint64_t len, bool write);
/* Holds all of it, or returns -ENOMEM. */
int us_holds_all(us_holds_t *h, const void *addr, uint64_t len, bool write);
/* Keeps errno. */
void us_holds_end(us_holds_t *h);

#endif
