/* SPDX-License-Identifier: MIT
 *
 * The client's half of inline faults: the handler of SIGBUS, and holds.
 */
#ifndef US_INLINE_H
#define US_INLINE_H

#include <signal.h>

#include "space.h"

/* All inline regions lie in [lo, hi); both 0 when there is none. */
extern _Atomic uint64_t us_inline_lo, us_inline_hi;

/* Of a client: what a handler needs. */
typedef struct us_handling {
    us_space_t *space;
    int uffd;   /* with UFFD_FEATURE_SIGBUS */
    int notify; /* rings the loop */
} us_handling_t;

/* Before a region of such blocks: slots to work in, with the codecs that are loaded. 0 or -errno. */
int us_inline_open(uint32_t block);
/* From here on a touch of [addr, addr+len) that is out is a handler's; first: its entry in the table. 0 or -ENOMEM. */
int us_inline_add(const us_handling_t *of, uint64_t addr, uint64_t len, uint32_t first, uint32_t id, uint32_t block);
/* on: no system call holds a block of it from here on that does not hold it already; off: they may again. */
void us_inline_ending(uint64_t addr, bool on);
/* No more. No handler works on it after the return. */
void us_inline_remove(uint64_t addr);

/* A forked child has no inline regions. */
void us_inline_in_child(void);

/* The signal: true when it was a fault of an inline region, which is served. */
bool us_inline_fault(const siginfo_t *info, void *context);

/* Does the range meet an inline region? */
bool us_inline_meets(uint64_t addr, uint64_t len);
/* Brings in what of the range is paged, from its front, and holds it, so that it can't leave; write: it will be written.
 * Returns how many bytes from the front may be handed to the kernel, at most a part of the limit (and a block); memory that
 * is not paged counts as such. Or -EFAULT: it is lost, or not mapped; -ENOMEM: it has all holds that there are. */
int64_t us_inline_hold(uint64_t addr, uint64_t len, bool write, uint64_t *since);
/* Ends the hold on what us_inline_hold returned, with the *since that it gave. Of a region that has ended nothing is held. */
void us_inline_release(uint64_t addr, uint64_t len, uint64_t since);

#endif
