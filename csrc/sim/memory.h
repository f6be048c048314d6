/* SPDX-License-Identifier: MIT */
#ifndef US_SIM_MEMORY_H
#define US_SIM_MEMORY_H

#include "fibers.h"

#include <sys/types.h>
#include <sys/uio.h>

typedef struct sim_kernel {
    uint32_t again_one_in; /* EAGAIN of COPY, MOVE, WRITEPROTECT before a page */
    uint32_t short_one_in; /* process_madvise ends early */
    bool vector, move;     /* the kernel has them */
    bool no_peek;          /* process_vm_readv is forbidden */
    bool user_mode;        /* the userfaultfd is of USER_MODE_ONLY: the kernel's own faults are errors */
    bool old;              /* WRITEPROTECT of one mapping only, as before 6.4 */
} sim_kernel_t;
extern sim_kernel_t sim_kernel;
typedef enum { SIM_OK, SIM_BUS, SIM_SEGV } sim_touch_t;

void sim_memory_open(void);
/* Memory of the client: zeros, nobody has touched it. */
uint64_t sim_map(uint64_t len);
/* The same addresses get another owner: munmap and mmap. */
void sim_map_again(uint64_t addr, uint64_t len);
/* As an access of the running thread to one page: on SIM_OK it is there, and writable if write, until the next point. */
sim_touch_t sim_touch(uint64_t addr, bool write);
/* As one of the kernel's in a system call: SIM_BUS (EFAULT) where it may not wait. */
sim_touch_t sim_kernel_touch(uint64_t addr, bool write);
extern uint64_t sim_signals; /* that accesses have raised */
/* Where a word in shared memory is, whoever has mapped it where. */
const void *sim_shared(const void *at);
bool sim_is_present(uint64_t addr);
bool sim_is_protected(uint64_t addr);
bool sim_is_poisoned(uint64_t addr); /* lost, and marked so */
enum { SIM_PINNED = 1, SIM_SHARED = 2, SIM_LOCKED = 4 };
void sim_page_set(uint64_t addr, int what, bool on);
int sim_dontneed(uint64_t addr, uint64_t len);
void sim_show_faults(void); /* prints who stands in one */

/* The userfaultfd, pagemap and process_madvise, as doors.c and disk.c hand them on. */
bool sim_uffd_pending(void);
ssize_t sim_uffd_read(void *buf, size_t n);
ssize_t sim_pagemap_read(void *buf, size_t n, uint64_t off);
long sim_process_madvise(const struct iovec *iov, size_t n, int advice);

#endif
