/* SPDX-License-Identifier: MIT
 *
 * The mover: the only code of ours that runs in the client beside the user's threads. It is a pair of
 * hands: it takes commands from the ring and gives each its status. It holds no state, never touches the
 * interpreter, never allocates, takes no lock, and blocks all signals.
 */
#ifndef US_MOVER_H
#define US_MOVER_H

#include <pthread.h>

#include "ksm.h"
#include "space.h"

typedef struct us_mover {
    us_space_t *space;
    int uffd, doorbell, notify;
    int sigbus; /* userfaultfd of inline regions; -1 */
    us_ksm_t ksm;
    int pagemap; /* -1: not there */
    int self;    /* pidfd of this process, for the vectored madvise; -1 without */
    uint64_t staging, staging_len;
    bool vector;           /* drop by vectors */
    us_cmd_t cmd[US_RING]; /* what it works on: the commands that it has taken from the ring, checked */
    pthread_t thread;
    _Atomic int tid;
} us_mover_t;

int us_mover_start(us_mover_t *m);
void us_mover_stop(us_mover_t *m);

#endif
