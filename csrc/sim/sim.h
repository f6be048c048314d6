/* SPDX-License-Identifier: MIT
 *
 * The simulation: the real code of client and pager in one process, on one thread, over a simulated kernel, disk and
 * clock. README.md here says what is real and what is not.
 *
 *   fibers.c   who runs: threads are fibers, one seed decides which of them goes on at each point; futexes, mutexes,
 *              eventfds, sockets, poll, time
 *   memory.c   the client's memory: page tables, userfaultfd, madvise, pagemap
 *   disk.c     the swap file
 *   loop.c     what the pager process's asyncio loop does, in C
 *   main.c     scenarios, the users' threads, the model of their bytes, and what must hold
 *
 * The code under test calls libc as always. The linker gives it ours instead (--wrap), and points.h makes each atomic
 * access a point at which another fiber may go on.
 */
#ifndef US_SIM_H
#define US_SIM_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_NEVER UINT64_MAX
#define SIM_MS 1000000ull

/* ---- chance: all of it comes from the seed ---- */
void sim_seed(uint64_t seed);
uint64_t sim_random64(void);
uint32_t sim_below(uint32_t n); /* 0 .. n - 1 */
static inline bool sim_one_in(uint32_t n) { return n != 0 && sim_below(n) == 0; }

/* ---- fibers ---- */
typedef struct sim_fiber sim_fiber_t;
extern uint64_t sim_steps; /* points passed, by all */
extern uint64_t sim_now;   /* ns: the simulated clock */

/* A place at which another fiber may go on. */
void sim_point(void);
/* Another one goes on, if any can. */
void sim_yield(void);
sim_fiber_t *sim_spawn(const char *name, bool client, void *(*run)(void *), void *arg);
/* Sleeps until ready(of), or until the clock says `until`: false then. ready must not change anything. */
bool sim_wait(bool (*ready)(void *), void *of, uint64_t until, const char *what);
bool sim_done(const sim_fiber_t *f);
/* Is the fiber that runs a thread of the client process? */
bool sim_is_client(void);
int sim_tid(void);
const char *sim_name(void);
/* The client's threads stand still until the clock says so, as after SIGSTOP. */
void sim_stop_client(uint64_t until);
bool sim_client_stopped(void);

/* Of each point, one in so many goes to another fiber; and one in so many of these stays away for a while. */
typedef struct sim_pace {
    uint32_t switch_one_in, stall_one_in;
    uint64_t stall_ns;
    uint32_t spurious_one_in; /* of waits and weak compare-and-swaps: for no reason */
    uint64_t steps_max;
} sim_pace_t;
extern sim_pace_t sim_pace;

/* What is not so. Prints it with the seed, the step and where each fiber is, and ends the process with status 1. */
_Noreturn void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define SIM_CHECK(x, ...)          \
    do {                           \
        if (!(x))                  \
            sim_fail(__VA_ARGS__); \
    } while (0)
/* The last things that happened, printed when something is not so. */
void sim_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern bool sim_loud;

/* ---- descriptors ---- */
enum { SIM_FD = 10000, SIM_UFFD = SIM_FD, SIM_PAGEMAP, SIM_DISK, SIM_PIDFD, SIM_STAT, SIM_SOCK, SIM_SOCK_END, SIM_EVENT = SIM_FD + 100 };
int sim_eventfd(void);
bool sim_fd_ready(int fd, bool out); /* of poll */
void sim_pager_gone(void);           /* its end of the socket is closed */
int sim_sock_recv(void *buf, size_t n); /* the pager's end: bytes, 0 at the end, -EAGAIN */
int sim_sock_send(const void *buf, size_t n);

/* ---- one call that fails ---- */
#define SIM_CALLS(X)                                                                                            \
    X(COPY) X(ZERO) X(MOVE) X(PROTECT) X(REGISTER) X(UNREGISTER) X(MADVISE) X(VECTOR) X(MINCORE) X(PAGEMAP) X(PREAD)  \
    X(PWRITE) X(POLL) X(READ) X(WRITE) X(SEND) X(RECV) X(MMAP) X(CALLOC) X(THREAD) X(PEEK)
#define SIM_CALL(name) SIM_CALL_##name,
enum { SIM_CALLS(SIM_CALL) SIM_CALL_KINDS };
extern struct sim_failure {
    int call, error;
    uint64_t at;              /* of its kind, from 1 on; 0: none fails */
    uint64_t calls[SIM_CALL_KINDS];
} sim_failure;
/* Counts a call. -errno: it fails. */
int sim_call(int kind);

/* ---- memory ---- */
typedef struct sim_kernel {
    uint32_t again_one_in;  /* EAGAIN of COPY, MOVE, WRITEPROTECT before a page */
    uint32_t short_one_in;  /* process_madvise ends early */
    bool vector, move, poison; /* the kernel has them */
    bool no_peek;           /* process_vm_readv is forbidden */
    bool user_mode;         /* the userfaultfd is of USER_MODE_ONLY: the kernel's own faults are errors */
    bool old;               /* WRITEPROTECT of one mapping only, as before 6.4 */
} sim_kernel_t;
extern sim_kernel_t sim_kernel;
typedef enum { SIM_OK, SIM_BUS, SIM_SEGV } sim_touch_t;

void sim_memory_open(void);
/* Memory of the client: zeros, nobody has touched it. */
uint64_t sim_map(uint64_t len);
bool sim_in_memory(const void *at);
/* As an access of the running thread to one page: on SIM_OK it is there, and writable if write, until the next point. */
sim_touch_t sim_touch(uint64_t addr, bool write);
bool sim_is_present(uint64_t addr);
bool sim_is_protected(uint64_t addr);
bool sim_is_poisoned(uint64_t addr); /* lost, and marked so */
enum { SIM_PINNED = 1, SIM_SHARED = 2, SIM_LOCKED = 4 };
void sim_page_set(uint64_t addr, int what, bool on);
void sim_split(uint64_t addr); /* a border between mappings */
int sim_dontneed(uint64_t addr, uint64_t len);
bool sim_uffd_pending(void);
void sim_show_faults(void); /* prints who stands in one */

/* ---- disk ---- */
typedef struct sim_disk {
    uint64_t bytes;
    uint64_t slow_ns;       /* a request takes up to so long, one in 16 sixteen times */
    uint32_t eio_one_in, short_one_in, flip_one_in, full_one_in, lost_one_in, eintr_one_in;
    bool cached;            /* opened without O_DIRECT */
} sim_disk_t;
extern sim_disk_t sim_disk;
void sim_disk_open(void);

#endif
