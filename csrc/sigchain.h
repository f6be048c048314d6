/* SPDX-License-Identifier: MIT
 *
 * The signal chain: our handler of SIGBUS stands first. Who sets one, before or later, is the next in the chain and gets
 * what is not ours. Nobody blocks SIGBUS in a thread: a fault of inline memory would end the process. The guard leads the
 * functions of libc here (guard_signal.c).
 *
 * A thread that had SIGBUS blocked before us_sigchain_open, other than the caller's, still has: it must not touch inline
 * memory. So must not threads that libc itself makes with all signals blocked (aio, timers with SIGEV_THREAD).
 */
#ifndef US_SIGCHAIN_H
#define US_SIGCHAIN_H

#include <signal.h>
#include <stdbool.h>

/* Puts our handler first. Idempotent. 0 or -errno. */
int us_sigchain_open(void);
/* The next in the chain has SIGBUS by itself again. */
void us_sigchain_close(void);

/* ---- for guard_signal.c -------------------------------------------------------------------------------- */

typedef int (*us_sigaction_t)(int, const struct sigaction *, struct sigaction *);

/* As sigaction(): of SIGBUS it is of the next in the chain; of other signals handlers' masks lack SIGBUS, and *old shows
 * what was asked. */
int us_chain_action(int number, const struct sigaction *act, struct sigaction *old);

/* As sigprocmask(), but SIGBUS is only noted down. 0 or the error's number. */
int us_chain_mask(int how, const sigset_t *set, sigset_t *old);

/* Is SIGBUS blocked in this thread, as far as the thread knows? */
bool us_chain_blocked(void);

/* For a wait with a mask of its own: copies set to *to without SIGBUS; returns to, or NULL when set is. While the mask holds,
 * the thread's note says what set does; us_chain_unswap(before) ends that. US_CHAIN_CAME in *before: SIGBUS was pending and has been
 * delivered, so the wait is over (EINTR). */
enum { US_CHAIN_CAME = 2 };
const sigset_t *us_chain_swap(const sigset_t *set, sigset_t *to, int *before);
void us_chain_unswap(int before);

/* Did SIGBUS come while the thread had it blocked? take: it is no longer pending then. */
bool us_chain_pending(siginfo_t *info, bool take);

/* The signal has a handler without a mask now. */
void us_chain_forget(int number);

#endif
