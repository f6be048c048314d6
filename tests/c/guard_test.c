/* SPDX-License-Identifier: MIT */
/*
 * Tests of csrc/guard.c and csrc/sigchain.c from a program whose own entries are changed; the guard, the chain and the
 * double are in a shared object beside it. guard_test SEED; exit status 0 passed, 1 failed, 77 no userfaultfd.
 */
#include "guard.h"
#include "sigchain.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>
#include <sys/uio.h>

#include "check.h"

enum { BLOCKS = 64, BLOCK = 4096, SIZE = BLOCKS * BLOCK };
extern void *double_new(uint64_t blocks);
extern uint64_t double_out(void), double_held(void), double_limit;

static unsigned char *m, copy[SIZE], got[SIZE];

static void fill(void) {
    for (int i = 0; i < SIZE; i++)
        m[i] = copy[i] = (unsigned char)rnd();
    double_out();
}

static void test_files(void) {
    char name[] = "guard_test_XXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0 && unlink(name) == 0);
    for (int round = 0; round < 50; round++) {
        size_t at = below(SIZE - 1), n = 1 + below((uint32_t)(SIZE - at));
        double_limit = round % 2 ? BLOCKS : 1 + below(5);
        fill();
        CHECK(pwrite(fd, m + at, n, 3) == (ssize_t)n);
        CHECK(pread(fd, got, n, 3) == (ssize_t)n && memcmp(got, copy + at, n) == 0);
        memset(m, 0, SIZE);
        double_out();
        CHECK(pread(fd, m + at, n, 3) == (ssize_t)n && memcmp(m + at, copy + at, n) == 0);
        for (size_t i = 0; i < at; i++)
            CHECK(m[i] == 0);
        for (size_t i = at + n; i < SIZE; i++)
            CHECK(m[i] == 0);
        double_out();
        struct iovec v[2] = {{m + at, n / 2}, {m + at + n / 2, n - n / 2}};
        CHECK(pwritev(fd, v, 2, 3) == (ssize_t)n);
        CHECK(pread(fd, got, n, 3) == (ssize_t)n && memcmp(got, copy + at, n) == 0);
        CHECK(double_held() == 0);
    }
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && close(fd) == 0);
    double_limit = BLOCKS;
}

/* ---- the chain */

static volatile int plain_calls, info_calls, nested;
static sigset_t mask_inside;
static siginfo_t seen;

static void plain(int number) {
    plain_calls += number == SIGBUS;
    pthread_sigmask(SIG_BLOCK, NULL, &mask_inside);
}

static void with_info(int number, siginfo_t *info, void *context) {
    CHECK(number == SIGBUS && context);
    seen = *info;
    info_calls++;
    double_out();
    CHECK(memcmp(m, copy, SIZE) == 0); /* memory that is out, in the next's handler */
    if (nested-- > 0)
        raise(SIGBUS);
}

static void test_actions(void) {
    struct sigaction act = {.sa_handler = plain, .sa_flags = SA_RESTART}, old;
    fill();
    sigaddset(&act.sa_mask, SIGUSR1);
    CHECK(sigaction(SIGBUS, &act, NULL) == 0 && sigaction(SIGBUS, NULL, &old) == 0);
    CHECK(old.sa_handler == plain && (old.sa_flags & ~0x4000000) == SA_RESTART && sigismember(&old.sa_mask, SIGUSR1));
    CHECK(raise(SIGBUS) == 0 && plain_calls == 1 && sigismember(&mask_inside, SIGUSR1) &&
          !sigismember(&mask_inside, SIGUSR2));
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask_inside) == 0 && !sigismember(&mask_inside, SIGUSR1));
    double_out();
    CHECK(memcmp(m, copy, SIZE) == 0 && plain_calls == 1);

    /* SA_SIGINFO; what is raised inside waits until the handler has returned, and with SA_NODEFER does not. */
    act = (struct sigaction){.sa_sigaction = with_info, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGBUS, &act, &old) == 0 && old.sa_handler == plain);
    nested = 1;
    union sigval value = {.sival_int = 4711};
    CHECK(sigqueue(getpid(), SIGBUS, value) == 0);
    CHECK(info_calls == 2);
    nested = 0;
    CHECK(sigqueue(getpid(), SIGBUS, value) == 0 && info_calls == 3 && seen.si_value.sival_int == 4711 &&
          seen.si_code == SI_QUEUE);
    act.sa_flags |= SA_NODEFER;
    CHECK(sigaction(SIGBUS, &act, NULL) == 0);
    nested = 3;
    CHECK(raise(SIGBUS) == 0 && info_calls == 7);

    /* SA_RESETHAND: once. */
    act = (struct sigaction){.sa_handler = plain, .sa_flags = (int)SA_RESETHAND};
    CHECK(sigaction(SIGBUS, &act, NULL) == 0 && raise(SIGBUS) == 0 && plain_calls == 2);
    CHECK(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_handler == SIG_DFL);

    /* The older ways. */
    CHECK(signal(SIGBUS, plain) == SIG_DFL && raise(SIGBUS) == 0 && plain_calls == 3);
    CHECK(sigset(SIGBUS, SIG_IGN) == plain && raise(SIGBUS) == 0 && plain_calls == 3);
    CHECK(sigset(SIGBUS, plain) == SIG_IGN);
    CHECK(sighold(SIGBUS) == 0 && raise(SIGBUS) == 0 && plain_calls == 3);
    double_out();
    CHECK(memcmp(m, copy, SIZE) == 0);
    CHECK(sigrelse(SIGBUS) == 0 && plain_calls == 4);
    CHECK(signal(SIGBUS, SIG_DFL) == plain);
}

static volatile int other_calls;
static void other(int number) {
    (void)number;
    other_calls++;
    double_out();
    CHECK(memcmp(m, copy, SIZE) == 0);
}

static void test_masks(void) {
    struct sigaction act = {.sa_handler = other}, old;
    sigset_t set, before;
    fill();
    sigfillset(&act.sa_mask);
    CHECK(sigaction(SIGUSR1, &act, NULL) == 0 && sigaction(SIGUSR1, NULL, &old) == 0 &&
          sigismember(&old.sa_mask, SIGBUS));
    CHECK(raise(SIGUSR1) == 0 && other_calls == 1);
    sigfillset(&set);
    CHECK(sigprocmask(SIG_SETMASK, &set, &before) == 0 && !sigismember(&before, SIGBUS));
    double_out();
    CHECK(memcmp(m, copy, SIZE) == 0);
    CHECK(sigprocmask(SIG_SETMASK, &before, &set) == 0 && sigismember(&set, SIGBUS));
    CHECK(sigprocmask(SIG_BLOCK, NULL, &set) == 0 && !sigismember(&set, SIGBUS));
    CHECK(sigprocmask(4711, &set, NULL) == -1 && errno == EINVAL);
}

int main(int argc, char **argv) {
    seed = strtoull(argc > 1 ? argv[1] : "1", NULL, 0);
    state = seed * 2 + 1;
    if (!(m = double_new(BLOCKS))) {
        puts("no userfaultfd with UFFD_FEATURE_SIGBUS");
        return 77;
    }
    CHECK(us_sigchain_open() == 0 && us_guard_open() == 0 && us_guard_changed() > 0);
    test_files();
    test_actions();
    test_masks();
    us_guard_close();
    us_sigchain_close();
    struct sigaction old;
    CHECK(sigaction(SIGBUS, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
    return 0;
}
