/* SPDX-License-Identifier: MIT
 *
 * The client's end of the control socket: questions by any thread, answers in any order.
 *
 * It is in C for one reason. A signal handler's exception (Ctrl-C, a time limit) can come between any two bytecodes, and a
 * question that is half asked, or an answer that is half taken, leaves client and pager of different minds. Between two
 * bytecodes each function here has run wholly or not at all.
 *
 * One thread at a time reads, for all; the others wait until their answer is put down. A ticket that is freed before its
 * answer has come is forgotten, and the answer with it.
 */
#ifndef US_CONTROL_H
#define US_CONTROL_H

#include <pthread.h>

#include "types.h"

typedef struct us_pending {
    struct us_pending *next;
    uint64_t id;
    bool done;
    us_reply_t reply;
} us_pending_t;

typedef struct us_control {
    int fd;
    pthread_mutex_t lock;
    pthread_cond_t answered;
    bool reading; /* a thread reads for all */
    bool gone;    /* the other end is closed */
    uint64_t last_id;
    us_pending_t *pending;
} us_control_t;

int us_control_open(us_control_t *k, int fd);
void us_control_close(us_control_t *k);
/* Sends a request. q stays known until it is forgotten. -EPIPE: the pager is gone. */
int us_control_send(us_control_t *k, us_pending_t *q, const us_request_t *request);
/* 1: the answer is in q; 0: not within ms, or a signal came; -EPIPE. ms -1: as long as it takes, signals or not. */
int us_control_wait(us_control_t *k, us_pending_t *q, int ms);
void us_control_forget(us_control_t *k, us_pending_t *q);
/* Asks and awaits the answer: 0, or the pager's error or -EPIPE; reply may be NULL. */
int us_control_ask(us_control_t *k, const us_request_t *request, us_reply_t *reply);

#endif
