/* SPDX-License-Identifier: MIT */
/*
 * The pool: compressed blocks in RAM, in a range of the space's memfd.
 *
 * One thread owns a pool (the pager's loop); there are no locks. Other threads may read or write the
 * payload of an object which the loop has locked: objects stand still, except that us_pool_compact()
 * moves those whose owner agrees.
 *
 * Functions return 0, a count, or -errno. Offsets are bytes from `base`, never pointers; an offset names
 * the payload, is a multiple of 8, is never 0 and is below 2^US_POOL_OFF_BITS.
 */
#ifndef US_POOL_H
#define US_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define US_POOL_LEN_MAX (2u << 20) /* largest payload, bytes */
#define US_POOL_OFF_BITS 46        /* offsets stay below 2^46: 64 TiB of address space at most */

typedef struct us_pool us_pool_t;

/* What stands in the 8 bytes before each payload. The pool writes it once and copies it when it moves. */
typedef struct us_pool_head {
    uint32_t owner; /* index of the entry that owns the object */
    uint32_t tag;   /* the caller's */
} us_pool_head_t;

/* Called with the bytes already copied to new_off and the object still at old_off. True: the owner now
   points to new_off, the old place is given up. False: the object stays where it is. It must not call
   back into the pool. */
typedef bool us_pool_moved_fn(void *ctx, uint32_t owner, uint32_t tag, uint64_t old_off, uint64_t new_off);

/* room: bytes the object's size class can hold, at least the length asked for. False ends the walk. It
   may free the object it is shown, and must not call into the pool otherwise. */
typedef bool us_pool_each_fn(void *ctx, uint64_t off, uint32_t room, uint32_t owner, uint32_t tag);

/* Bytes of address space and of (sparse) file to reserve for a budget; a multiple of the page size. It is
   about 240 times the budget, and only what is used is ever backed by memory. */
size_t us_pool_virtual(uint64_t budget);

/* fd: the memfd; base: where its bytes [file_off, file_off + virt) are mapped shared and writable, and hold
   no pool yet; budget: bytes of physical memory the pool may take.
   pre: virt >= us_pool_virtual(budget); file_off and base page-aligned. -EINVAL, -ENOMEM. */
int us_pool_init(us_pool_t **out, int fd, uint64_t file_off, void *base, uint64_t virt, uint64_t budget);

/* Frees the private metadata only; the memory goes with the file. NULL is allowed. */
void us_pool_destroy(us_pool_t *p);

/* Room for len bytes (1 to US_POOL_LEN_MAX). -ENOSPC: the budget has no room (compact, write out, try
   again); -ENOMEM: the kernel has none; -EINVAL: len. */
int us_pool_alloc(us_pool_t *p, uint32_t len, uint32_t owner, uint32_t tag, uint64_t *off);

/* pre: off came from us_pool_alloc() (or a move) for this len. Checked in US_DEBUG builds. */
void us_pool_free(us_pool_t *p, uint64_t off, uint32_t len);

/* Would us_pool_alloc() of len find room in the budget now? */
bool us_pool_would_fit(us_pool_t *p, uint32_t len);

static inline void *us_pool_at(us_pool_t *p, uint64_t off) {
    return *(char **)p + off; /* base is the pool's first field */
}
static inline us_pool_head_t *us_pool_head(us_pool_t *p, uint64_t off) {
    return (us_pool_head_t *)us_pool_at(p, off) - 1;
}

uint64_t us_pool_used(const us_pool_t *p);      /* payload bytes of live objects, as asked for */
uint64_t us_pool_allocated(const us_pool_t *p); /* physical bytes held: spans in use and cached empty ones */
uint64_t us_pool_objects(const us_pool_t *p);   /* live objects */
uint64_t us_pool_sparse(const us_pool_t *p);    /* bytes compaction could give back, at least */
uint64_t us_pool_metadata(const us_pool_t *p);  /* bytes of private memory the pool needs for itself */

/* A smaller budget is met by the caller (compact, write out, free); cached spans go at once.
   -EINVAL above what the pool was laid out for: the budget given to us_pool_init(), rounded up to a
   power of two. */
int us_pool_set_budget(us_pool_t *p, uint64_t budget);

/* Empties sparse spans into free slots of fuller ones, sparsest first, and gives them back. Copies at most
   max_bytes; a span that is not finished is gone on with by the next call. A span with a refused object
   is left alone for the rest of the call. Returns the bytes given back: 0 when nothing is worth doing, or
   when max_bytes did not suffice for one span (192 KiB always do). */
int64_t us_pool_compact(us_pool_t *p, uint64_t max_bytes, us_pool_moved_fn *moved, void *ctx);

/* Gives cached empty spans back to the kernel; returns the bytes. */
int64_t us_pool_trim(us_pool_t *p);

/* Shows all live objects. Returns 0, or 1 when `each` ended the walk. */
int us_pool_walk(us_pool_t *p, us_pool_each_fn *each, void *ctx);

/* Checks the invariants that stand in pool.c. Time: a few ns for each span. */
bool us_pool_is_valid(const us_pool_t *p);

#endif
