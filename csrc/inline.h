/* SPDX-License-Identifier: MIT
 *
 * What the guard and the signal chain ask of the core: memory whose faults the touching thread resolves by itself.
 */
#ifndef US_INLINE_H
#define US_INLINE_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* All inline regions lie in [lo, hi); both are 0 when there is none. One compare tells other memory. */
extern _Atomic uint64_t us_inline_lo, us_inline_hi;

/* Does the range meet an inline region? The slow path, after the compare. */
bool us_inline_meets(uint64_t addr, uint64_t len);

/* Brings in what of [addr, addr+len) is paged, from the front, and holds it so that it can't leave; write: it is going to
 * be written. Returns how many bytes from the front are safe to hand to the kernel (> 0; memory that is not paged counts as
 * safe), at most what the limit can hold, or -errno (-ENOMEM: not even the first block can be held). */
int64_t us_inline_hold(uint64_t addr, uint64_t len, bool write);

/* Ends the hold on a range that hold returned. */
void us_inline_release(uint64_t addr, uint64_t len);

/* The handler of SIGBUS asks: true when the fault was of an inline region and has been served. Async-signal-safe, with all
 * signals masked; errno is kept by the caller. */
bool us_inline_fault(siginfo_t *info, void *ucontext);

#endif
