/* SPDX-License-Identifier: MIT
 *
 * Signals: what sets a handler of SIGBUS, or blocks it, goes through sigchain.c. Of other signals libc's functions do it.
 */
#include "guard_call.h"
#include "sigchain.h"

#include <errno.h>
#include <pthread.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum {
    SIGACTION,
    SIGACTION_,
    SIGNAL,
    SSIGNAL,
    BSD_SIGNAL,
    SYSV_SIGNAL,
    SYSV_SIGNAL_,
    SIGSET,
    SIGHOLD,
    SIGRELSE,
    SIGIGNORE,
    SIGINTERRUPT,
    SIGPROCMASK,
    PTHREAD_SIGMASK,
    SIGBLOCK,
    SIGSETMASK,
    SIGGETMASK,
    SIGSUSPEND,
    SIGSUSPEND_,
    SIGPENDING,
    SIGPAUSE,
    XPG_SIGPAUSE,
    SIGWAIT,
    SIGWAITINFO,
    SIGTIMEDWAIT,
    SIGTIMEDWAIT_,
    PPOLL,
    PPOLL_CHK,
    PSELECT,
    EPOLL_PWAIT,
    EPOLL_PWAIT2,
    ATTR_SETSIGMASK
};
#define OTHER(i) ((us_call_t)us_guard_signal[i].other)
#define COUNT(ops) (uint32_t)(sizeof(ops) / sizeof *(ops))
typedef void (*handler_t)(int);

static int guarded_sigaction(int number, const struct sigaction *act, struct sigaction *old) {
    return us_chain_action(number, act, old);
}

/* ---- older ways to set a handler ----------------------------------------------------------------------- */

static handler_t set_handler(int which, int number, handler_t handler, int flags) {
    if (number != SIGBUS) {
        handler_t old = (handler_t)OTHER(which)(number, (long)handler, 0, 0, 0, 0);
        if (old != SIG_ERR)
            us_chain_forget(number);
        return old;
    }
    struct sigaction act = {.sa_handler = handler, .sa_flags = flags}, old;
    if (handler == SIG_ERR) {
        errno = EINVAL;
        return SIG_ERR;
    }
    if (!(flags & SA_NODEFER))
        sigaddset(&act.sa_mask, SIGBUS);
    return us_chain_action(number, &act, &old) < 0 ? SIG_ERR : old.sa_handler;
}

static int interrupted; /* siginterrupt(SIGBUS, 1) */

static handler_t guarded_signal(int number, handler_t handler) {
    return set_handler(SIGNAL, number, handler, interrupted ? 0 : SA_RESTART);
}

static handler_t guarded_sysv_signal(int number, handler_t handler) {
    return set_handler(SYSV_SIGNAL, number, handler, SA_RESETHAND | SA_NODEFER);
}

static int guarded_siginterrupt(int number, int on) {
    if (number != SIGBUS)
        return (int)OTHER(SIGINTERRUPT)(number, on, 0, 0, 0, 0);
    struct sigaction act;
    if (us_chain_action(number, NULL, &act) < 0)
        return -1;
    interrupted = on != 0;
    act.sa_flags = on ? act.sa_flags & ~SA_RESTART : act.sa_flags | SA_RESTART;
    return us_chain_action(number, &act, NULL);
}

static int mask_one(int how, int number, sigset_t *old) {
    sigset_t set;
    sigemptyset(&set);
    if (sigaddset(&set, number) < 0)
        return -1;
    int err = us_chain_mask(how, &set, old);
    errno = err ? err : errno;
    return err ? -1 : 0;
}

static int guarded_sighold(int number) { return mask_one(SIG_BLOCK, number, NULL); }
static int guarded_sigrelse(int number) { return mask_one(SIG_UNBLOCK, number, NULL); }

static int guarded_sigignore(int number) {
    struct sigaction act = {.sa_handler = SIG_IGN};
    return us_chain_action(number, &act, NULL);
}

static handler_t guarded_sigset(int number, handler_t handler) {
    if (number != SIGBUS)
        return set_handler(SIGSET, number, handler, 0);
    struct sigaction act = {.sa_handler = handler}, old;
    if (handler == SIG_ERR) {
        errno = EINVAL;
        return SIG_ERR;
    }
    bool was = us_chain_blocked();
    if (handler == SIG_HOLD) {
        if (mask_one(SIG_BLOCK, number, NULL) < 0 || us_chain_action(number, NULL, &old) < 0)
            return SIG_ERR;
    } else if (us_chain_action(number, &act, &old) < 0 || mask_one(SIG_UNBLOCK, number, NULL) < 0) {
        return SIG_ERR;
    }
    return was ? SIG_HOLD : old.sa_handler;
}

/* ---- masks --------------------------------------------------------------------------------------------- */

static int guarded_sigmask(int how, const sigset_t *set, sigset_t *old) { return us_chain_mask(how, set, old); }

static int guarded_sigprocmask(int how, const sigset_t *set, sigset_t *old) {
    int err = us_chain_mask(how, set, old);
    if (err == 0)
        return 0;
    errno = err;
    return -1;
}

/* The old masks are an int: the first 32 signals. */
static int old_mask(int how, int mask) {
    sigset_t set = {0}, old = {0};
    memcpy(&set, &mask, sizeof mask);
    us_chain_mask(how, how < 0 ? NULL : &set, &old);
    memcpy(&mask, &old, sizeof mask);
    return mask;
}

static int guarded_sigblock(int mask) { return old_mask(SIG_BLOCK, mask); }
static int guarded_sigsetmask(int mask) { return old_mask(SIG_SETMASK, mask); }
static int guarded_siggetmask(void) { return old_mask(SIG_BLOCK, 0); }

static int guarded_sigpending(sigset_t *set) {
    int result = (int)OTHER(SIGPENDING)((long)set, 0, 0, 0, 0, 0);
    if (result == 0 && us_chain_pending(NULL, false))
        sigaddset(set, SIGBUS);
    return result;
}

static int guarded_attr_setsigmask(pthread_attr_t *attr, const sigset_t *set) {
    sigset_t mask;
    if (set) {
        mask = *set;
        sigdelset(&mask, SIGBUS);
    }
    return (int)OTHER(ATTR_SETSIGMASK)((long)attr, (long)(set ? &mask : NULL), 0, 0, 0, 0);
}

/* ---- waits --------------------------------------------------------------------------------------------- */

static void unswap(void *before) { us_chain_unswap(*(int *)before); }

/* A wait whose argument `mask` is a set; with the operands held. */
static long wait_with(int which, int mask, const us_op_t *ops, uint32_t n, long *a) {
    sigset_t set;
    int before;
    volatile long result = -1; /* beside a setjmp of pthread_cleanup_push */
    a[mask] = (long)us_chain_swap((const sigset_t *)a[mask], &set, &before);
    pthread_cleanup_push(unswap, &before);
    if (before & US_CHAIN_CAME)
        errno = EINTR;
    else
        result = us_call_held(OTHER(which), ops, n, -1, a);
    pthread_cleanup_pop(1);
    return result;
}

static long guarded_sigsuspend(const sigset_t *set) {
    long a[6] = {(long)set};
    return wait_with(SIGSUSPEND, 0, NULL, 0, a);
}

/* X/Open: the signal is taken out of the mask; BSD (is_mask): it is the mask. */
static int guarded_sigpause(int what, int is_mask) {
    sigset_t set = {0};
    if (is_mask) {
        memcpy(&set, &what, sizeof what);
    } else {
        us_chain_mask(SIG_BLOCK, NULL, &set);
        if (sigdelset(&set, what) < 0)
            return -1;
    }
    return (int)guarded_sigsuspend(&set);
}
static int guarded_xpg_sigpause(int number) { return guarded_sigpause(number, 0); }
static int guarded_bsd_sigpause(int mask) { return guarded_sigpause(mask, 1); }

/* Meanwhile SIGBUS is blocked indeed, so that it can't come between the look and the wait; all memory is our own. */
typedef struct restore {
    sigset_t mask;
} restore_t;
static void unblock(void *r) { pthread_sigmask(SIG_SETMASK, &((restore_t *)r)->mask, NULL); }

static int guarded_sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout) {
    sigset_t want = {0}, bus;
    siginfo_t got;
    struct timespec limit;
    restore_t r;
    int result, err;
    memcpy(&want, set, sizeof(uint64_t));
    if (timeout)
        limit = *timeout;
    sigemptyset(&bus);
    if (sigismember(&want, SIGBUS))
        sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_BLOCK, &bus, &r.mask);
    pthread_cleanup_push(unblock, &r);
    if (sigismember(&want, SIGBUS) && us_chain_pending(&got, true))
        result = SIGBUS;
    else
        result = (int)OTHER(SIGTIMEDWAIT)((long)&want, (long)&got, (long)(timeout ? &limit : NULL), 0, 0, 0);
    err = errno;
    pthread_cleanup_pop(1);
    errno = err;
    if (result > 0 && info)
        *info = got;
    return result;
}

static int guarded_sigwaitinfo(const sigset_t *set, siginfo_t *info) { return guarded_sigtimedwait(set, info, NULL); }

static int guarded_sigwait(const sigset_t *set, int *number) {
    int err = errno, got;
    do
        got = guarded_sigtimedwait(set, NULL, NULL);
    while (got < 0 && errno == EINTR);
    int failed = errno;
    errno = err;
    if (got < 0)
        return failed;
    *number = got;
    return 0;
}

static long guarded_ppoll(long fds, long n, long timeout, long mask) {
    static const us_op_t ops[] = {{US_OP_TIMES, 0, 1, true, sizeof(struct pollfd)}, {US_OP_FIXED, 2, 0, false, 16}};
    long a[6] = {fds, n, timeout, mask};
    return wait_with(PPOLL, 3, ops, COUNT(ops), a);
}

extern void __chk_fail(void) __attribute__((noreturn));
static long guarded_ppoll_chk(long fds, long n, long timeout, long mask, size_t room) {
    if (room / sizeof(struct pollfd) < (size_t)n)
        __chk_fail();
    return guarded_ppoll(fds, n, timeout, mask);
}

static long guarded_pselect(long n, long in, long out, long except, long timeout, long mask) {
    static const us_op_t ops[] = {{US_OP_BITS32, 1, 0, true, 0},
                                  {US_OP_BITS32, 2, 0, true, 0},
                                  {US_OP_BITS32, 3, 0, true, 0},
                                  {US_OP_FIXED, 4, 0, false, 16}};
    long a[6] = {n, in, out, except, timeout, mask};
    return wait_with(PSELECT, 5, ops, COUNT(ops), a);
}

static long guarded_epoll_pwait(long fd, long events, long n, long timeout, long mask) {
    static const us_op_t ops[] = {{US_OP_TIMES32, 1, 2, true, sizeof(struct epoll_event)}};
    long a[6] = {fd, events, n, timeout, mask};
    return wait_with(EPOLL_PWAIT, 4, ops, COUNT(ops), a);
}

static long guarded_epoll_pwait2(long fd, long events, long n, long timeout, long mask) {
    static const us_op_t ops[] = {{US_OP_TIMES32, 1, 2, true, sizeof(struct epoll_event)},
                                  {US_OP_FIXED, 3, 0, false, 16}};
    long a[6] = {fd, events, n, timeout, mask};
    return wait_with(EPOLL_PWAIT2, 4, ops, COUNT(ops), a);
}

us_guard_t us_guard_signal[] = {
    [SIGACTION] = {.name = "sigaction", .ours = guarded_sigaction},
    [SIGACTION_] = {.name = "__sigaction", .ours = guarded_sigaction},
    [SIGNAL] = {.name = "signal", .ours = guarded_signal},
    [SSIGNAL] = {.name = "ssignal", .ours = guarded_signal},
    [BSD_SIGNAL] = {.name = "bsd_signal", .ours = guarded_signal},
    [SYSV_SIGNAL] = {.name = "sysv_signal", .ours = guarded_sysv_signal},
    [SYSV_SIGNAL_] = {.name = "__sysv_signal", .ours = guarded_sysv_signal},
    [SIGSET] = {.name = "sigset", .ours = guarded_sigset},
    [SIGHOLD] = {.name = "sighold", .ours = guarded_sighold},
    [SIGRELSE] = {.name = "sigrelse", .ours = guarded_sigrelse},
    [SIGIGNORE] = {.name = "sigignore", .ours = guarded_sigignore},
    [SIGINTERRUPT] = {.name = "siginterrupt", .ours = guarded_siginterrupt},
    [SIGPROCMASK] = {.name = "sigprocmask", .ours = guarded_sigprocmask},
    [PTHREAD_SIGMASK] = {.name = "pthread_sigmask", .ours = guarded_sigmask},
    [SIGBLOCK] = {.name = "sigblock", .ours = guarded_sigblock},
    [SIGSETMASK] = {.name = "sigsetmask", .ours = guarded_sigsetmask},
    [SIGGETMASK] = {.name = "siggetmask", .ours = guarded_siggetmask},
    [SIGSUSPEND] = {.name = "sigsuspend", .ours = guarded_sigsuspend},
    [SIGSUSPEND_] = {.name = "__sigsuspend", .ours = guarded_sigsuspend},
    [SIGPENDING] = {.name = "sigpending", .ours = guarded_sigpending},
    [SIGPAUSE] = {.name = "sigpause", .ours = guarded_bsd_sigpause},
    [XPG_SIGPAUSE] = {.name = "__xpg_sigpause", .ours = guarded_xpg_sigpause},
    [SIGWAIT] = {.name = "sigwait", .ours = guarded_sigwait},
    [SIGWAITINFO] = {.name = "sigwaitinfo", .ours = guarded_sigwaitinfo},
    [SIGTIMEDWAIT] = {.name = "sigtimedwait", .ours = guarded_sigtimedwait},
    [SIGTIMEDWAIT_] = {.name = "__sigtimedwait", .ours = guarded_sigtimedwait},
    [PPOLL] = {.name = "ppoll", .ours = guarded_ppoll},
    [PPOLL_CHK] = {.name = "__ppoll_chk", .ours = guarded_ppoll_chk},
    [PSELECT] = {.name = "pselect", .ours = guarded_pselect},
    [EPOLL_PWAIT] = {.name = "epoll_pwait", .ours = guarded_epoll_pwait},
    [EPOLL_PWAIT2] = {.name = "epoll_pwait2", .ours = guarded_epoll_pwait2},
    [ATTR_SETSIGMASK] = {.name = "pthread_attr_setsigmask_np", .ours = guarded_attr_setsigmask},
    {.name = NULL},
};
