/* SPDX-License-Identifier: MIT
 *
 * A wake-up across CPUs costs more than the rest of a fault, so the loop follows the faulting thread: it
 * looks at /proc/PID/task/TID/stat each 8th fault (each 64th while nothing changes, the first after a pause) and binds itself, and
 * the mover, which shares the address space, to that CPU.
 *
 * Following is not enough. When COPY wakes the thread, the kernel finds the loop on that CPU, calls it
 * busy, and puts the thread on an idle one; the loop follows, and the next wake-up throws the thread back.
 * Each such move is a wake-up across CPUs. Measured, random 4 KiB reads 4x overcommitted: 20,000 a second
 * and 5,500 moves among 46,000 faults. But a CPU that runs only SCHED_IDLE tasks counts as idle
 * (sched_idle_cpu() in the kernel's select_idle_sibling), so the thread stays when the loop is one: 80,000
 * a second, 20 moves. When moves come thick the loop therefore yields, that is, becomes SCHED_IDLE.
 *
 * A SCHED_IDLE task starves beside a busy thread on its CPU. So while the loop yields, a second thread,
 * the monitor, looks after 2 ms, and then, as long as nothing is amiss, after 4, 8 and each 16, since a look can
 * itself make the kernel throw the thread away. If faults wait and the loop has not stepped since, and
 * not after 2 ms more, the monitor makes the loop an ordinary task again, for a second at least. A loop that was pushed
 * aside by the thread it has just woken keeps nobody waiting, and does not count. When no faults come it does the same
 * and goes to sleep.
 *
 * While a thread stands still for a read of the swap file the loop keeps the CPU and looks for the end of the
 * read, where it would else sleep: to be woken on a CPU that has gone to sleep costs as much as half the read.
 * It does so only as long as a read takes on average, and not where others want the CPU: each time that it was
 * taken from the loop meanwhile, the loop sleeps through reads for a while, longer each time.
 *
 * To come back from SCHED_IDLE takes CAP_SYS_NICE or RLIMIT_NICE of 20; a thread that is thrown away tries
 * it at start. Without it the loop only follows.
 */
#include "place.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sys.h"

enum { LOOK_MIN = 8, LOOK_MAX = 64, LOOK_YIELDING = 16, UNREST = 4, QUIET_NS = 100 * 1000 * 1000 };
enum { WATCH_MIN_NS = 2 * 1000 * 1000, WATCH_MAX_NS = 16 * 1000 * 1000 };
#define REST_NS 1000000000ull
#define IDLE_NS 20000000ull
#define SPIN_MAX_NS 400000ull /* of an average read: a slower disk's is slept through */
#define SPIN_MORE_NS 20000ull
#define SPIN_REST_NS 2000000ull
#define SPIN_REST_MAX_NS 256000000ull

static int set_policy(int tid, int policy) {
    const struct sched_param zero = {0};
    return sched_setscheduler(tid, policy, &zero) == 0 ? 0 : -errno;
}

static void *try_policy(void *out) {
    const int tid = (int)syscall(SYS_gettid);
    *(bool *)out = set_policy(tid, SCHED_IDLE) == 0 && set_policy(tid, SCHED_OTHER) == 0;
    return NULL;
}

/* ---- the monitor ------------------------------------------------------------------------------------- */

static void *monitor_main(void *arg) {
    us_place_t *l = arg;
    prctl(PR_SET_NAME, "uswap-monitor");
    us_atomic_store(&l->monitor_tid, (int)syscall(SYS_gettid));
    uint32_t seen = 0;
    long quiet = 0, watch = WATCH_MIN_NS;
    bool waiting = false;
    while (us_atomic_load(&l->stop) == 0) {
        if (us_atomic_load(&l->yielding) == 0) {
            syscall(SYS_futex, &l->yielding, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
            quiet = 0;
            watch = WATCH_MIN_NS;
            waiting = false;
            continue;
        }
        const struct timespec t = {0, waiting ? WATCH_MIN_NS : watch};
        nanosleep(&t, NULL);
        const uint32_t steps = us_atomic_load_explicit(&l->steps, memory_order_relaxed);
        const bool same = steps == seen;
        seen = steps;
        struct pollfd f[US_WAKES];
        for (int k = 0; k < US_WAKES; k++)
            f[k] = (struct pollfd){.fd = l->fd[k], .events = POLLIN};
        const bool all = us_atomic_load_explicit(&l->parked, memory_order_relaxed) != 0; /* or reads */
        const bool wants = us_atomic_load_explicit(&l->busy, memory_order_relaxed) != 0 ||
                           us_atomic_load_explicit(&l->held_up, memory_order_relaxed) != 0 ||
                           poll(f, all ? US_WAKES : 1, 0) > 0;
        quiet = same && !wants ? quiet + t.tv_nsec : 0;
        const bool starved = same && wants && waiting;
        watch = us_min(2 * watch, WATCH_MAX_NS);
        waiting = same && wants;
        if (starved || quiet >= QUIET_NS) {
            set_policy(l->loop_tid, SCHED_OTHER);
            if (starved)
                us_atomic_store(&l->starved, us_now_ns());
            us_atomic_store(&l->yielding, 0);
        }
    }
    return NULL;
}

/* Called by the loop only; the way back is the monitor's. */
static void yield(us_place_t *l) {
    if (us_atomic_load(&l->yielding) != 0)
        return;
    const uint64_t now = us_now_ns(), starved = us_atomic_load(&l->starved);
    if (starved != 0 && now - starved < REST_NS)
        return;
    if (set_policy(l->loop_tid, SCHED_IDLE) != 0)
        return;
    us_atomic_store(&l->yielding, 1);
    syscall(SYS_futex, &l->yielding, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* ---- following -------------------------------------------------------------------------------------- */

static int stat_fd(us_place_t *l, uint32_t tid) {
    const uint32_t k = tid % (sizeof l->stat / sizeof l->stat[0]);
    if (l->stat[k].tid == tid)
        return l->stat[k].fd;
    if (l->stat[k].tid != 0 && l->stat[k].fd >= 0)
        close(l->stat[k].fd);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%u/stat", l->client_pid, tid);
    l->stat[k].tid = tid;
    l->stat[k].fd = open(path, O_RDONLY | O_CLOEXEC);
    return l->stat[k].fd;
}

/* /proc/PID/task/TID/stat from behind the thread's name, which may hold anything but ends at the last ')'. NULL: the
 * thread has ended. */
static const char *read_stat(us_place_t *l, uint32_t tid, char text[512]) {
    const int fd = stat_fd(l, tid);
    const ssize_t n = fd < 0 ? -1 : pread(fd, text, 511, 0);
    if (n <= 0) { /* the thread has ended; its number may come again */
        const uint32_t k = tid % (sizeof l->stat / sizeof l->stat[0]);
        if (fd >= 0)
            close(fd);
        l->stat[k].tid = 0;
        l->stat[k].fd = -1;
        return NULL;
    }
    text[n] = 0;
    return strrchr(text, ')');
}

bool us_place_stopped(us_place_t *l) {
    char text[512];
    const char *at = read_stat(l, (uint32_t)l->mover_tid, text);
    return at != NULL && at[1] == ' ' && (at[2] == 'T' || at[2] == 't');
}

/* The 39th field: the CPU the thread last ran on. */
int us_place_cpu(us_place_t *l, uint32_t tid) {
    char text[512];
    const char *at = read_stat(l, tid, text);
    for (int field = 2; at != NULL && field < 39; field++)
        at = strchr(at + 1, ' ');
    return at == NULL ? -1 : atoi(at + 1);
}

/* The monitor's ticks would make the CPU look busy to the kernel, and the thread that is woken just then
 * would be sent elsewhere. */
static void keep_away(us_place_t *l, int cpu) {
    cpu_set_t set = l->allowed;
    CPU_CLR((size_t)cpu, &set);
    const int tid = us_atomic_load(&l->monitor_tid);
    if (tid != 0 && CPU_COUNT(&set) > 0)
        sched_setaffinity(tid, sizeof set, &set);
}

uint32_t us_place_fault(us_place_t *l, uint32_t tid, uint64_t now, int taken) {
    if (now - l->last > IDLE_NS) /* who knows where the thread is by now */
        l->every = 1;
    l->last = now;
    if (!l->on || tid == 0 || ++l->count < l->every)
        return 0;
    l->count = 0;
    const int cpu = us_place_cpu(l, tid);
    if (cpu < 0 || cpu == l->cpu || cpu == taken || cpu >= CPU_SETSIZE) {
        const bool yields = us_atomic_load_explicit(&l->yielding, memory_order_relaxed) != 0;
        l->every = (uint32_t)us_min(l->every * 2, yields ? LOOK_YIELDING : LOOK_MAX);
        l->unrest -= l->unrest > 0;
        return 0;
    }
    l->every = LOOK_MIN;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        return 0;
    l->cpu = cpu;
    sched_setaffinity(l->mover_tid, sizeof set, &set);
    keep_away(l, cpu);
    if (l->may_yield && ++l->unrest >= UNREST) {
        l->unrest = UNREST;
        yield(l);
    }
    return 1;
}

/* ---- spinning --------------------------------------------------------------------------------------- */

static long switches(void) {
    struct rusage u;
    return getrusage(RUSAGE_THREAD, &u) == 0 ? u.ru_nivcsw : 0;
}

bool us_place_spins(us_place_t *l, uint64_t since, uint64_t now) {
    if (!l->on || l->took > SPIN_MAX_NS || now < l->spin_from || now - since > 2 * l->took + SPIN_MORE_NS)
        return false;
    if (l->spin_of != since) {
        l->spin_of = since;
        l->switched = switches();
    }
    return true;
}

void us_place_read(us_place_t *l, uint64_t ns, bool loop) {
    l->took = l->took - l->took / 8 + ns / 8;
    if (l->spin_of == 0)
        return;
    l->spin_of = 0;
    if (!loop)
        return;
    if (switches() != l->switched) {
        l->rest = us_min(us_max(2 * l->rest, SPIN_REST_NS), SPIN_REST_MAX_NS);
        l->spin_from = us_now_ns() + l->rest;
    } else {
        l->rest -= l->rest / 8;
    }
}

/* ---- life ------------------------------------------------------------------------------------------- */

int us_place_start(us_place_t *l, int client_pid, int mover_tid, const int fd[US_WAKES]) {
    *l = (us_place_t){.on = true,
                      .client_pid = client_pid,
                      .mover_tid = mover_tid,
                      .loop_tid = (int)syscall(SYS_gettid),
                      .cpu = -1,
                      .every = 1,
                      .took = SPIN_MAX_NS};
    memcpy(l->fd, fd, sizeof l->fd);
    sched_getaffinity(0, sizeof l->allowed, &l->allowed);
    pthread_t trial;
    int err = us_sys_thread(&trial, NULL, try_policy, &l->may_yield);
    if (err == 0)
        pthread_join(trial, NULL);
    if (err == 0 && l->may_yield) {
        err = us_sys_thread(&l->monitor, NULL, monitor_main, l);
        l->has_monitor = err == 0;
    }
    return err;
}

void us_place_stop(us_place_t *l) {
    if (l->has_monitor) {
        us_atomic_store(&l->stop, 1);
        us_atomic_store(&l->yielding, 1);
        syscall(SYS_futex, &l->yielding, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
        pthread_join(l->monitor, NULL);
        l->has_monitor = false;
    }
    for (size_t k = 0; k < sizeof l->stat / sizeof l->stat[0]; k++) {
        if (l->stat[k].tid != 0 && l->stat[k].fd >= 0)
            close(l->stat[k].fd);
    }
    l->on = false;
}
