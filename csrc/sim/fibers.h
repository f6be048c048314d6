/* SPDX-License-Identifier: MIT
 *
 * The simulation: the real code of client and pager in one process, on one thread, over a simulated kernel, disk and
 * clock. README.md here says what is real and what is not.
 *
 *   fibers.c   who runs: threads are fibers, one seed decides which of them goes on at each point; futexes, mutexes, time
 *   memory.c   the client's memory: page tables, userfaultfd, madvise, pagemap
 *   disk.c     the swap file
 *   doors.c    descriptors: eventfds, the control socket, poll, read, write; and syscall()
 *   loop.c     what the pager process's asyncio loop does, in C
 *   main.c     scenarios, the users' threads, the model of their bytes, and what must hold
 *
 * The code under test calls libc as always. The linker gives it ours instead (--wrap), and points.h makes each atomic
 * access a point at which another fiber may go on.
 */
#ifndef US_SIM_FIBERS_H
#define US_SIM_FIBERS_H

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
/* It has all signals blocked. */
bool sim_hears_nothing(void);
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
/* Told then as well. */
extern void (*sim_on_fail)(void);
/* The last things that happened, printed when something is not so. */
void sim_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern bool sim_loud;
/* futex(2). */
struct timespec;
long sim_futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *most);

/* ---- one call that fails ---- */
/* clang-format off */
#define SIM_CALLS(X) \
    X(COPY) X(ZERO) X(MOVE) X(PROTECT) X(REGISTER) X(UNREGISTER) X(MADVISE) X(VECTOR) X(MINCORE) X(PAGEMAP) X(PREAD) \
    X(PWRITE) X(POLL) X(READ) X(WRITE) X(SEND) X(RECV) X(MMAP) X(CALLOC) X(THREAD) X(PEEK)
/* clang-format on */
#define SIM_CALL(name) SIM_CALL_##name,
enum { SIM_CALLS(SIM_CALL) SIM_CALL_KINDS };
extern struct sim_failure {
    int call, error;
    uint64_t at; /* of its kind, from 1 on; 0: none fails */
    uint64_t calls[SIM_CALL_KINDS];
} sim_failure;
/* Counts a call. -errno: it fails. */
int sim_call(int kind);
/* The same for what answers by errno. */
bool sim_fails(int kind);

#endif
