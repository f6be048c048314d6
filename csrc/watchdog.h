/* SPDX-License-Identifier: MIT
 *
 * The watchdog: a thread of the client that ends the process when the pager is gone, since the pages that are out are gone
 * with it and whoever touches one would wait for ever.
 *
 * It is a thread of its own, and not the mover, because the mover may be waiting for the pager at that very moment: it reads
 * the client's memory, and a page that was never there is a fault that the pager serves. The watchdog touches no memory but
 * its own stack and this structure, takes no lock and never allocates.
 */
#ifndef US_WATCHDOG_H
#define US_WATCHDOG_H

#include <pthread.h>
#include <stdbool.h>

typedef struct us_watchdog {
    int wake;          /* eventfd, the watchdog's own: it has to look at `pager` again */
    _Atomic int pager; /* pidfd of the pager; -1: there is nothing to watch */
    _Atomic int stop;
    pthread_t thread;
    bool on;
} us_watchdog_t;

int us_watchdog_start(us_watchdog_t *w);
/* Watches another process, or none (-1). The descriptor stays the caller's, who closes it only after a later call. */
int us_watchdog_set(us_watchdog_t *w, int pidfd);
void us_watchdog_stop(us_watchdog_t *w);

/* Ends the process by SIGABRT: loud, and never zeros. Writes text to stderr if that can take it at once. */
_Noreturn void us_die(const char *text);

#endif
