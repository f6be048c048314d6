/* SPDX-License-Identifier: MIT
 *
 * Threads as fibers, one of which runs. sim_point is where another one may go on; which one, and how often, the seed says.
 * A fiber that waits says by a function of its own what it waits for, so nothing need be woken: whoever is ready may run.
 * But a futex is as the kernel's: who waits goes on when he is woken, and not because the word has changed meanwhile.
 */
#include "fibers.h"
#include "memory.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

enum { FIBERS = 256, STACK = 1 << 20, NAMED = 24, LINES = 400, LINE = 160 };

struct sim_fiber {
    int id;
    char name[NAMED];
    bool client, deaf, done, blocked, woken, expired;
    void *sp;
    uint8_t *stack;
    void *(*run)(void *);
    void *arg, *result;
    bool (*ready)(void *);
    void *of;
    uint64_t until, away; /* ns */
    const char *what;
    const void *word; /* futex or condition */
    int err;
    uint64_t steps;
    void *fake; /* of AddressSanitizer */
};

uint64_t sim_steps, sim_now = 1000 * SIM_MS;
sim_pace_t sim_pace = {.switch_one_in = 8, .steps_max = UINT64_MAX};
bool sim_loud;
void (*sim_on_fail)(void);
static uint64_t rng, seed_used;
static sim_fiber_t fiber[FIBERS];
static int fibers = 1;
static sim_fiber_t *me = &fiber[0];
static uint32_t quiet; /* points until the next switch */
static uint64_t stopped_until;

/* ---- chance ----------------------------------------------------------------------------------------- */

void sim_seed(uint64_t seed) {
    rng = seed_used = seed;
    snprintf(fiber[0].name, NAMED, "main");
    fiber[0].client = true;
}

uint64_t sim_random64(void) { /* splitmix64 */
    uint64_t z = rng += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

uint32_t sim_below(uint32_t n) { return (uint32_t)((sim_random64() >> 32) * n >> 32); }
bool sim_spurious(void) { return sim_one_in(sim_pace.spurious_one_in); }

/* ---- what is not so --------------------------------------------------------------------------------- */

static char line[LINES][LINE];
static uint32_t lines;

static void add_line(const char *format, va_list args) {
    char *at = line[lines++ % LINES];
    const int n =
        snprintf(at, LINE, "%10llu %12.6f %-14s ", (unsigned long long)sim_steps, (double)sim_now / 1e9, me->name);
    vsnprintf(at + n, LINE - (size_t)n, format, args);
    if (sim_loud)
        puts(at);
}

void sim_log(const char *format, ...) {
    va_list args;
    va_start(args, format);
    add_line(format, args);
    va_end(args);
}

_Noreturn void sim_fail(const char *format, ...) {
    va_list args;
    if (!sim_loud) {
        for (uint32_t k = lines > LINES ? lines - LINES : 0; k < lines; k++)
            puts(line[k % LINES]);
    }
    for (int k = 0; k < fibers; k++) {
        const sim_fiber_t *f = &fiber[k];
        if (!f->done)
            printf("fiber %-14s %s%s%s\n", f->name,
                   f == me      ? "runs"
                   : f->blocked ? "waits for "
                                : "can run",
                   f != me && f->blocked ? f->what : "", f->away > sim_now ? ", away" : "");
    }
    if (sim_on_fail != NULL)
        sim_on_fail();
    printf("seed %llu, step %llu: ", (unsigned long long)seed_used, (unsigned long long)sim_steps);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    puts("");
    fflush(stdout);
    _exit(1);
}

struct sim_failure sim_failure;

int sim_call(int kind) {
    sim_failure.calls[kind]++;
    if (sim_failure.at == 0 || sim_failure.call != kind || sim_failure.calls[kind] != sim_failure.at)
        return 0;
    sim_log("this call fails: %s", strerror(sim_failure.error));
    return -sim_failure.error;
}

bool sim_fails(int kind) {
    const int err = sim_call(kind);
    if (err != 0)
        errno = -err;
    return err != 0;
}

/* ---- switching -------------------------------------------------------------------------------------- */

void sim_switch(void **save, void *load);
__asm__(".text\n"
        ".globl sim_switch\n"
        ".type sim_switch,@function\n"
        "sim_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp,(%rdi)\n"
        "  movq %rsi,%rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n"
        ".size sim_switch,.-sim_switch\n");

static void arrived(void) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(me->fake, NULL, NULL);
#endif
    errno = me->err;
}

static void go_to(sim_fiber_t *to) {
    sim_fiber_t *from = me;
    from->err = errno;
    me = to;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(from->done ? NULL : &from->fake, to->stack, STACK);
#endif
    sim_switch(&from->sp, to->sp);
    arrived();
}

static bool can_run(sim_fiber_t *f) {
    if (f->done || f->away > sim_now || (f->client && stopped_until > sim_now))
        return false;
    if (!f->blocked)
        return true;
    if (f->ready != NULL && f->ready(f->of))
        return true;
    f->expired = f->until <= sim_now;
    return f->expired;
}

/* Who goes on. others: not the one that runs, unless nobody else can. */
static sim_fiber_t *choose(bool others) {
    for (;;) {
        sim_fiber_t *can[FIBERS];
        uint32_t n = 0;
        for (int k = 0; k < fibers; k++) {
            if (!(others && &fiber[k] == me) && can_run(&fiber[k]))
                can[n++] = &fiber[k];
        }
        if (n > 0)
            return can[sim_below(n)];
        if (others && can_run(me))
            return me;
        uint64_t next = SIM_NEVER; /* nobody: the clock goes on to where somebody can */
        for (int k = 0; k < fibers; k++) {
            const sim_fiber_t *f = &fiber[k];
            if (f->done)
                continue;
            const uint64_t held = f->client && stopped_until > f->away ? stopped_until : f->away;
            uint64_t at = f->blocked ? f->until : held;
            if (f->blocked && held > sim_now && held < SIM_NEVER && (f->ready != NULL && f->ready(f->of)))
                at = held;
            if (at > sim_now && at < next)
                next = at;
            else if (at <= sim_now && held > sim_now && held < next)
                next = held;
        }
        if (next == SIM_NEVER)
            sim_fail("deadlock: nobody can run, and no time ends that");
        sim_now = next;
    }
}

static void switch_away(bool others) {
    sim_fiber_t *to = choose(others);
    if (to != me)
        go_to(to);
}

static void next_quiet(void) {
    const uint32_t mean = sim_pace.switch_one_in;
    quiet = mean <= 1 ? 0 : sim_below(2 * mean - 1);
}

void sim_point(void) {
    sim_steps++;
    me->steps++;
    if (quiet > 0) {
        quiet--;
        sim_now += 10; /* so that who spins until a time gets there */
        return;
    }
    if (sim_steps > sim_pace.steps_max)
        sim_fail("not done after %llu steps", (unsigned long long)sim_pace.steps_max);
    sim_now += 50 + sim_below(1000);
    next_quiet();
    if (sim_one_in(sim_pace.stall_one_in))
        me->away = sim_now + sim_below((uint32_t)sim_pace.stall_ns);
    switch_away(false);
}

void sim_yield(void) {
    sim_steps++;
    sim_now += 500;
    switch_away(true);
}

static void fiber_main(void) {
    arrived();
    me->result = me->run(me->arg);
    me->done = true;
    switch_away(true);
    sim_fail("a fiber that has ended goes on");
}

void *__real_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off);

sim_fiber_t *sim_spawn(const char *name, bool client, void *(*run)(void *), void *arg) {
    int k = 1;
    while (k < fibers && !(fiber[k].done && fiber[k].stack != NULL && fiber[k].word == &fiber[k]))
        k++;
    SIM_CHECK(k < FIBERS, "more than %d fibers", FIBERS);
    sim_fiber_t *f = &fiber[k];
    uint8_t *stack = f->stack;
    if (k == fibers) {
        fibers++;
        stack = __real_mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        SIM_CHECK(stack != MAP_FAILED, "no stack");
    }
    *f = (sim_fiber_t){.id = k, .client = client, .stack = stack, .run = run, .arg = arg};
    snprintf(f->name, NAMED, "%s", name);
    uint64_t *top = (uint64_t *)(void *)(stack + STACK);
    *--top = 0; /* where fiber_main would return to, so that the stack is aligned as after a call */
    *--top = (uint64_t)(uintptr_t)fiber_main;
    for (int r = 0; r < 6; r++)
        *--top = 0;
    f->sp = top;
    return f;
}

/* Its place may be another's from now on. */
static void reap(sim_fiber_t *f) { f->word = f; }

bool sim_done(const sim_fiber_t *f) { return f->done; }

bool sim_wait(bool (*ready)(void *), void *of, uint64_t until, const char *what) {
    sim_steps++;
    me->ready = ready;
    me->of = of;
    me->until = until;
    me->what = what;
    me->expired = false;
    me->blocked = true;
    switch_away(false);
    me->blocked = false;
    return !me->expired;
}

bool sim_is_client(void) { return me->client; }
bool sim_hears_nothing(void) { return me->deaf; }
int sim_tid(void) { return 1000 + me->id; }
const char *sim_name(void) { return me->name; }
void sim_stop_client(uint64_t until) { stopped_until = until; }
bool sim_client_stopped(void) { return stopped_until > sim_now; }

/* ---- threads ---------------------------------------------------------------------------------------- */

int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attr, void *(*run)(void *), void *arg) {
    (void)attr;
    const int err = sim_call(SIM_CALL_THREAD);
    if (err != 0)
        return -err;
    sim_fiber_t *f = sim_spawn("thread", me->client, run, arg);
    f->deaf = true; /* us_sys_thread has blocked all signals */
    *out = (pthread_t)(uintptr_t)f;
    sim_point();
    return 0;
}

static bool is_done(void *of) { return ((sim_fiber_t *)of)->done; }

int __wrap_pthread_join(pthread_t thread, void **result) {
    sim_fiber_t *f = (sim_fiber_t *)(uintptr_t)thread;
    sim_wait(is_done, f, SIM_NEVER, "a thread's end");
    if (result != NULL)
        *result = f->result;
    reap(f);
    return 0;
}

int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old) {
    (void)how, (void)set, (void)old;
    return 0;
}

int __wrap_prctl(int op, const char *name, ...) {
    (void)op; /* PR_SET_NAME */
    snprintf(me->name, NAMED, "%s.%d", strncmp(name, "uswap-", 6) == 0 ? name + 6 : name, me->id);
    return 0;
}

/* A mutex is its first word. */
static bool is_unlocked(void *of) { return *(int *)of == 0; }

int __wrap_pthread_mutex_lock(pthread_mutex_t *m) {
    sim_point();
    while (!is_unlocked(m))
        sim_wait(is_unlocked, m, SIM_NEVER, "a mutex");
    *(int *)(void *)m = me->id + 1;
    return 0;
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t *m) {
    sim_point();
    if (!is_unlocked(m))
        return EBUSY;
    *(int *)(void *)m = me->id + 1;
    return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m) {
    SIM_CHECK(*(int *)(void *)m == me->id + 1, "a mutex is unlocked by who does not have it");
    *(int *)(void *)m = 0;
    sim_point();
    return 0;
}

static bool is_woken(void *of) { return ((sim_fiber_t *)of)->woken; }

static int wake_up(const void *word, int n) {
    int woken = 0;
    const int first = (int)sim_below((uint32_t)fibers);
    for (int k = 0; k < fibers && woken < n; k++) {
        sim_fiber_t *f = &fiber[(first + k) % fibers];
        if (!f->done && f->blocked && f->word == word && !f->woken) {
            f->woken = true;
            woken++;
        }
    }
    return woken;
}

static bool sleep_on(const void *word, uint64_t until, const char *what) {
    me->word = word;
    me->woken = false;
    const bool woken = sim_wait(is_woken, me, until, what);
    me->word = NULL;
    return woken;
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t) {
    const uint64_t until = (uint64_t)t->tv_sec * 1000000000ull + (uint64_t)t->tv_nsec;
    *(int *)(void *)m = 0; /* no point between: that is what a condition is for */
    const bool woken = sleep_on(c, until, "a condition");
    __wrap_pthread_mutex_lock(m);
    return woken ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c) {
    sim_point();
    wake_up(c, INT_MAX);
    return 0;
}

long sim_futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *most) {
    const void *key = op & FUTEX_PRIVATE_FLAG ? (const void *)word : sim_shared((const void *)word);
    sim_point();
    if ((op & FUTEX_CMD_MASK) == FUTEX_WAKE) {
        const int n = wake_up(key, (int)value);
        sim_point();
        return n;
    }
    if (__atomic_load_n((uint32_t *)(void *)word, __ATOMIC_SEQ_CST) != value) {
        errno = EAGAIN;
        return -1;
    }
    if (sim_spurious())
        return 0;
    const uint64_t ns = most == NULL ? 0 : (uint64_t)most->tv_sec * 1000000000ull + (uint64_t)most->tv_nsec;
    if (sleep_on(key, most == NULL ? SIM_NEVER : sim_now + ns, "a futex"))
        return 0;
    errno = ETIMEDOUT;
    return -1;
}

int __wrap_sched_yield(void) {
    sim_yield();
    return 0;
}

int __wrap_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    (void)pid;
    memset(set, 0, size);
    CPU_SET(0, set);
    CPU_SET(1, set);
    return 0;
}
int __wrap_sched_getcpu(void) { return (int)sim_below(2); }
int __wrap_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set) {
    (void)pid, (void)size, (void)set;
    return 0;
}
int __wrap_sched_setscheduler(pid_t pid, int policy, const struct sched_param *param) {
    (void)pid, (void)policy, (void)param;
    errno = EPERM;
    return -1;
}
int __wrap_getrusage(int who, struct rusage *u) {
    (void)who;
    memset(u, 0, sizeof *u);
    return 0;
}

/* ---- time ------------------------------------------------------------------------------------------- */

int __wrap_clock_gettime(clockid_t clock, struct timespec *t) {
    (void)clock;
    *t = (struct timespec){(time_t)(sim_now / 1000000000ull), (long)(sim_now % 1000000000ull)};
    sim_now += 20;
    return 0;
}

static void sleep_ns(uint64_t ns) { sim_wait(NULL, NULL, sim_now + ns + 1, "time"); }

int __wrap_nanosleep(const struct timespec *t, struct timespec *rest) {
    (void)rest;
    sleep_ns((uint64_t)t->tv_sec * 1000000000ull + (uint64_t)t->tv_nsec);
    return 0;
}
int __wrap_usleep(useconds_t us) {
    sleep_ns(us * 1000ull);
    return 0;
}

/* ---- memory, and the end ----------------------------------------------------------------------------- */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size) { return sim_call(SIM_CALL_CALLOC) != 0 ? NULL : __real_calloc(n, size); }

_Noreturn void __wrap_abort(void) { sim_fail("the process aborts"); }
_Noreturn void __wrap___assert_fail(const char *text, const char *file, unsigned at, const char *function) {
    sim_fail("%s:%u: %s: assertion %s", file, at, function, text);
}
/* us_die has said why. */
int __wrap_raise(int number) { sim_fail("the client ends by signal %d", number); }
