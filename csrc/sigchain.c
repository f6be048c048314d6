/* SPDX-License-Identifier: MIT
 *
 * What the next in the chain asked for is a record that never changes once it is published, so the handler reads it
 * without a lock: the writer takes the next of a ring of records. The handler copies, and looks whether the same record is
 * still the published one.
 *
 * A thread's notes are thread-local, in the block that each thread has from the start (initial-exec): a handler may not
 * allocate one.
 */
#include "sigchain.h"

#include "inline.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RECORDS = 64, SIGNALS = 65 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* writers; nothing of the user's is touched under it */
static struct sigaction records[RECORDS];
static _Atomic uint32_t published; /* counts up; the record is that modulo RECORDS */
static _Atomic bool is_open;
static _Atomic uint64_t masked; /* bit n: signal n's handler asked for SIGBUS in its mask */

#define THREAD static _Thread_local __attribute__((tls_model("initial-exec")))
THREAD volatile sig_atomic_t blocked; /* as the thread sees it */
THREAD volatile sig_atomic_t pending; /* it came meanwhile: `info` */
THREAD volatile sig_atomic_t inside;  /* the next's handler runs, and did not ask for SA_NODEFER */
THREAD siginfo_t info_pending;

static void load(struct sigaction *to) {
    uint32_t n;
    do {
        n = atomic_load(&published);
        memcpy(to, &records[n % RECORDS], sizeof *to);
    } while (atomic_load(&published) - n >= RECORDS - 1);
}

/* pre: lock. */
static void publish(const struct sigaction *act) {
    uint32_t n = atomic_load(&published) + 1;
    records[n % RECORDS] = *act;
    atomic_store(&published, n);
}

static void on_sigbus(int number, siginfo_t *info, void *context);

/* pre: lock. Of the next's flags SA_RESTART is the kernel's to do. */
static int set_ours(int flags) {
    struct sigaction ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | (flags & SA_RESTART)};
    sigfillset(&ours.sa_mask);
    return sigaction(SIGBUS, &ours, NULL) < 0 ? -errno : 0;
}

/* Ends the process as the kernel would have: the signal waits until the handler has returned, so that the core has the
 * instruction that faulted. */
static void end_by_default(siginfo_t *info) {
    struct sigaction none = {.sa_handler = SIG_DFL};
    sigaction(SIGBUS, &none, NULL);
    if (syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)syscall(SYS_gettid), SIGBUS, info) < 0)
        raise(SIGBUS);
}

/* Not ours: what the kernel would do with the next's handler. */
static __attribute__((noinline)) void forward(int number, siginfo_t *info, ucontext_t *context) {
    struct sigaction next;
    bool real = info->si_code > 0; /* a fault, which can be neither ignored nor put off */
    load(&next);
    if (!real && (blocked || inside)) { /* it waits, as it would if it were blocked */
        info_pending = *info;
        pending = 1;
        return;
    }
    bool deadly = real && (blocked || inside || next.sa_handler == SIG_IGN);
    if (next.sa_handler == SIG_DFL || deadly) {
        end_by_default(info);
        return;
    }
    if (next.sa_handler == SIG_IGN)
        return;
    if (next.sa_flags & SA_RESETHAND) {
        struct sigaction none = {.sa_handler = SIG_DFL};
        us_chain_action(SIGBUS, &none, NULL);
    }
    sigset_t now, old;
    sigorset(&now, &context->uc_sigmask, &next.sa_mask);
    sigdelset(&now, SIGBUS); /* it may touch inline memory */
    int before = inside;
    inside = before || !(next.sa_flags & SA_NODEFER);
    pthread_sigmask(SIG_SETMASK, &now, &old);
    if (next.sa_flags & SA_SIGINFO)
        next.sa_sigaction(number, info, context);
    else
        next.sa_handler(number);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    inside = before;
    sigdelset(&context->uc_sigmask, SIGBUS);
    if (pending && !blocked && !inside) { /* it comes when this handler has returned */
        pending = 0;
        syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)syscall(SYS_gettid), SIGBUS, &info_pending);
    }
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
    int err = errno;
    if (!us_inline_fault(info, context))
        forward(number, info, context);
    errno = err;
}

/* ---- what the guard leads here ------------------------------------------------------------------------- */

int us_chain_action(int number, const struct sigaction *act, struct sigaction *old) {
    struct sigaction wanted, before, kernels;
    if (act)
        wanted = *act; /* may fault, so not under the lock */
    if (!atomic_load(&is_open) || number <= 0 || number >= SIGNALS)
        return sigaction(number, act ? &wanted : NULL, old);
    int result = 0;
    sigset_t all, mask;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &mask); /* a handler may come here too */
    pthread_mutex_lock(&lock);
    uint64_t bit = 1ull << (number - 1);
    bool was = atomic_load(&masked) & bit;
    if (number == SIGBUS) {
        load(&before);
        if (act) {
            publish(&wanted);
            result = set_ours(wanted.sa_flags);
            errno = -result;
        }
    } else {
        kernels = wanted;
        if (act)
            sigdelset(&kernels.sa_mask, SIGBUS);
        result = sigaction(number, act ? &kernels : NULL, &before);
        if (was)
            sigaddset(&before.sa_mask, SIGBUS);
        if (act && result == 0) {
            if (sigismember(&wanted.sa_mask, SIGBUS))
                atomic_fetch_or(&masked, bit);
            else
                atomic_fetch_and(&masked, ~bit);
        }
    }
    int err = errno;
    pthread_mutex_unlock(&lock);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    errno = err;
    if (old && result == 0)
        *old = before;
    return result < 0 ? -1 : 0;
}

static void send_pending(void) {
    if (!pending || blocked)
        return;
    pending = 0;
    siginfo_t info = info_pending;
    syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)syscall(SYS_gettid), SIGBUS, &info);
}

int us_chain_mask(int how, const sigset_t *set, sigset_t *old) {
    sigset_t wanted, before;
    if (set)
        wanted = *set;
    if (!atomic_load(&is_open))
        return pthread_sigmask(how, set ? &wanted : NULL, old);
    bool has = set && sigismember(&wanted, SIGBUS), was = blocked;
    if (has && how != SIG_UNBLOCK)
        sigdelset(&wanted, SIGBUS);
    int err = pthread_sigmask(how, set ? &wanted : NULL, &before);
    if (err != 0)
        return err;
    if (set)
        blocked = how == SIG_SETMASK ? has : how == SIG_BLOCK ? was || has : was && !has;
    if (was)
        sigaddset(&before, SIGBUS);
    if (old)
        *old = before;
    send_pending();
    return 0;
}

bool us_chain_blocked(void) { return blocked; }

const sigset_t *us_chain_swap(const sigset_t *set, sigset_t *to, int *before) {
    *before = blocked;
    if (!set)
        return NULL;
    *to = (sigset_t){0};
    memcpy(to, set, sizeof(uint64_t)); /* all that the kernel looks at */
    if (atomic_load(&is_open)) {
        blocked = sigismember(to, SIGBUS);
        sigdelset(to, SIGBUS);
        if (pending && !blocked) {
            *before |= US_CHAIN_CAME;
            send_pending();
        }
    }
    return to;
}

void us_chain_unswap(int before) { blocked = before & ~US_CHAIN_CAME; }

void us_chain_forget(int number) {
    if (number > 0 && number < SIGNALS)
        atomic_fetch_and(&masked, ~(1ull << (number - 1)));
}

bool us_chain_pending(siginfo_t *info, bool take) {
    if (!pending)
        return false;
    if (info)
        *info = info_pending;
    if (take)
        pending = 0;
    return true;
}

/* ---- life ---------------------------------------------------------------------------------------------- */

/* pre: lock. Handlers that are set already may mask SIGBUS; on: not any longer, off: again. */
static void set_masks(bool on) {
    for (int number = 1; number < SIGNALS; number++) {
        struct sigaction act;
        uint64_t bit = 1ull << (number - 1);
        if (number == SIGBUS || sigaction(number, NULL, &act) < 0 || act.sa_handler == SIG_DFL ||
            act.sa_handler == SIG_IGN)
            continue;
        if (on ? !sigismember(&act.sa_mask, SIGBUS) : !(atomic_load(&masked) & bit))
            continue;
        if (on) {
            sigdelset(&act.sa_mask, SIGBUS);
            atomic_fetch_or(&masked, bit);
        } else {
            sigaddset(&act.sa_mask, SIGBUS);
        }
        sigaction(number, &act, NULL);
    }
}

int us_sigchain_open(void) {
    struct sigaction before;
    int err = 0;
    pthread_mutex_lock(&lock);
    if (!atomic_load(&is_open)) {
        if (sigaction(SIGBUS, NULL, &before) < 0) {
            err = -errno;
        } else {
            publish(&before);
            err = set_ours(before.sa_flags);
        }
        if (err == 0) {
            sigset_t bus, old;
            sigemptyset(&bus);
            sigaddset(&bus, SIGBUS);
            pthread_sigmask(SIG_UNBLOCK, &bus, &old);
            blocked = sigismember(&old, SIGBUS);
            set_masks(true);
            atomic_store(&is_open, true);
        }
    }
    pthread_mutex_unlock(&lock);
    return err;
}

void us_sigchain_close(void) {
    struct sigaction next;
    pthread_mutex_lock(&lock);
    if (atomic_exchange(&is_open, false)) {
        set_masks(false);
        atomic_store(&masked, 0);
        load(&next);
        sigaction(SIGBUS, &next, NULL);
        if (blocked) {
            sigset_t bus;
            sigemptyset(&bus);
            sigaddset(&bus, SIGBUS);
            pthread_sigmask(SIG_BLOCK, &bus, NULL);
            blocked = 0;
        }
    }
    pthread_mutex_unlock(&lock);
}
