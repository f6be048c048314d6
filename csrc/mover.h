/* SPDX-License-Identifier: MIT
 *
 * The mover: the only code of ours that runs in the client beside the user's threads. It is a pair of
 * hands: it takes commands from the ring and gives each its status. It holds no state, never touches the
 * interpreter, never allocates, takes no lock, and blocks all signals.
 */
#ifndef US_MOVER_H
#define US_MOVER_H

#include <pthread.h>

#include "space.h"

typedef struct us_mover {
    us_space_t *space;
    int uffd, doorbell, notify;
    int self;              /* pidfd of this process, for the vectored madvise; -1 without */
    _Atomic int pager;     /* pidfd of the pager; -1 until it is known */
    uint64_t staging, staging_len;
    bool vector;           /* drop by vectors */
    pthread_t thread;
    _Atomic int tid;
} us_mover_t;

int us_mover_start(us_mover_t *m);
void us_mover_stop(us_mover_t *m);

#endif
