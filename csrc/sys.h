/* SPDX-License-Identifier: MIT
 *
 * System calls, one thin function each. Failures can be injected here, and the declarations that header
 * files older than the running kernel lack are in sys.c. All return 0 (or what is said) or -errno.
 */
#ifndef US_SYS_H
#define US_SYS_H

#include "types.h"

#include <poll.h>
#include <pthread.h>

enum { US_FAULT_WRITE = 1, US_FAULT_WP = 2 }; /* flags of a fault message */

typedef struct us_msg {
    uint64_t addr;
    uint32_t flags, tid;
} us_msg_t;

/* pre: msgs holds max. Returns how many fault messages were read; 0 when there is none. */
int us_sys_read(int uffd, us_msg_t *msgs, int max);

/* pre: dst and len are page multiples. *done: bytes copied, never negative, also on failure. */
int us_sys_copy(int uffd, uint64_t dst, const void *src, uint64_t len, bool protect, uint64_t *done);
int us_sys_zero(int uffd, uint64_t dst, uint64_t len);
int us_sys_wake(int uffd, uint64_t addr, uint64_t len);
int us_sys_protect(int uffd, uint64_t addr, uint64_t len, bool on);

/* pre: called by a thread of the process whose memory it is. *done as above. */
int us_sys_move(int uffd, uint64_t dst, uint64_t src, uint64_t len, uint64_t *done);

int us_sys_poison(int uffd, uint64_t addr, uint64_t len); /* Linux 6.6; -ENOTTY or -EINVAL before */
int us_sys_register(int uffd, uint64_t addr, uint64_t len);
int us_sys_unregister(int uffd, uint64_t addr, uint64_t len);

/* Private memory of zeros that takes room only where it is touched; by munmap it goes. NULL: none. */
void *us_sys_reserve(uint64_t len);
/* The same in huge pages, where the kernel has them; it stays until the process ends. */
void *us_sys_reserve_huge(uint64_t len);

/* Gives [addr, addr+len) back; on oneself. */
int us_sys_dontneed(uint64_t addr, uint64_t len);

/* Has the kernel do what a write to each page that is there would do, without writing (Linux 5.14): pages that are shared
 * copy on write become this process's alone. What is missing stays so. pre: len is at most that of a block. */
int us_sys_unshare(uint64_t addr, uint64_t len);

/* Faults all pages of it in. -EFAULT: a userfaultfd would have to; -EINVAL: before Linux 5.14. */
int us_sys_populate(uint64_t addr, uint64_t len, bool write);
/* Is any page of [addr, addr+len) missing? So it is said of a range that is not mapped too, and of pages that the kernel
 * has swapped out. */
bool us_sys_lacks(uint64_t addr, uint64_t len);

/* Is all of [addr, addr+len) mapped? */
bool us_sys_mapped(uint64_t addr, uint64_t len);

/* Copies len bytes out of this process's own memory. What is not mapped, or is marked (UFFDIO_POISON), does not end the process,
 * as it would who reads it, but is -EFAULT; so is a missing page of a userfaultfd of USER_MODE_ONLY. *done: bytes from the
 * front. -ENOSYS, -EPERM: a filter of system calls forbids it. */
int us_sys_peek(uint64_t addr, void *to, uint64_t len, uint64_t *done);

struct iovec;
/* The same for n ranges in one call. *done: bytes, from the front of the vector. */
int us_sys_dontneed_vec(int pidfd, const struct iovec *iov, int n, uint64_t *done);

/* poll() for one or two descriptors, also where RLIMIT_NOFILE is less than that, as a sandbox may have it: then the kernel
 * refuses poll(), whatever the descriptors. Not for POLLOUT together with POLLIN. */
int us_sys_poll(struct pollfd *f, int n, int ms);
int us_sys_pidfd(int pid);
/* pthread_create, for a thread that hears no signal: those are the user's threads' and Python's. 0 or -errno. */
int us_sys_thread(pthread_t *out, const pthread_attr_t *attr, void *(*run)(void *), void *arg);
int us_sys_eventfd_ring(int fd);

/* ---- delays, injected by tests at each transition ---- */
enum {
    US_D_TAKE,       /* the mover, before it takes */
    US_D_TAKEN,      /* the mover, between the move and the copy to the slot */
    US_D_DROP,       /* the mover, before a drop */
    US_D_STATUS,     /* the mover, before it raises the flag */
    US_D_COMPRESS,   /* a worker, before it compresses */
    US_D_COMPRESSED, /* a worker, before it hands the result over */
    US_D_SWAP_IN,    /* a worker or a handler, between decompression and copy */
    US_D_SWAPPED_IN, /* a worker, after the copy; a handler, before it gives the claim */
    US_D_COMMIT,     /* the loop, before it commits a completion */
    US_D_SERVE,      /* the loop or a handler, before it serves a fault */
    US_D_SERVED,     /* the loop, between copy and commit; a handler, before its note */
    US_D_PLAIN,      /* the loop, between registering and looking what is there */
    US_DELAYS
};
extern uint32_t us_delays[US_DELAYS];
uint32_t us_delay_pick(uint32_t usec); /* of the thread's sequence, which the seed gives; below usec */
void us_delay_now(uint32_t usec);
#define US_DELAY(point)                                 \
    do {                                                \
        if (__builtin_expect(us_delays[point] != 0, 0)) \
            us_delay_now(us_delays[point]);             \
    } while (0)

#endif
