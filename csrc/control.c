/* SPDX-License-Identifier: MIT */
#include "control.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "sys.h"

int us_control_open(us_control_t *k, int fd) {
    *k = (us_control_t){.fd = fd};
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    const int err = pthread_cond_init(&k->answered, &a);
    pthread_condattr_destroy(&a);
    return err != 0 ? -err : -pthread_mutex_init(&k->lock, NULL);
}

void us_control_close(us_control_t *k) {
    pthread_mutex_lock(&k->lock);
    k->gone = true;
    pthread_cond_broadcast(&k->answered);
    pthread_mutex_unlock(&k->lock);
}

void us_control_forget(us_control_t *k, us_pending_t *q) {
    pthread_mutex_lock(&k->lock);
    for (us_pending_t **at = &k->pending; *at != NULL; at = &(*at)->next) {
        if (*at == q) {
            *at = q->next;
            break;
        }
    }
    pthread_mutex_unlock(&k->lock);
}

int us_control_send(us_control_t *k, us_pending_t *q, const us_request_t *request) {
    us_request_t r = *request;
    pthread_mutex_lock(&k->lock);
    q->id = r.id = ++k->last_id;
    q->done = false;
    q->next = k->pending;
    k->pending = q;
    bool gone = k->gone;
    pthread_mutex_unlock(&k->lock);
    while (!gone) {
        if (send(k->fd, &r, sizeof r, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof r)
            return 0;
        if (errno == EAGAIN) { /* the pager is busy, and the socket full */
            struct pollfd room = {.fd = k->fd, .events = POLLOUT};
            us_sys_poll(&room, 1, 50);
        } else if (errno != EINTR) {
            break;
        }
    }
    us_control_forget(k, q);
    return -EPIPE;
}

/* Reads one answer and puts it down. pre: the caller is the reader, and does not have the lock. false: the end.
 * *interrupted: a signal came. */
static bool read_one(us_control_t *k, int ms, bool *interrupted) {
    us_reply_t reply;
    struct pollfd f = {.fd = k->fd, .events = POLLIN};
    const int ready = us_sys_poll(&f, 1, ms);
    *interrupted = ready < 0 && errno == EINTR;
    if (ready <= 0)
        return true;
    const ssize_t n = recv(k->fd, &reply, sizeof reply, MSG_DONTWAIT);
    if (n != (ssize_t)sizeof reply)
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    reply.text[sizeof reply.text - 1] = 0;
    pthread_mutex_lock(&k->lock);
    for (us_pending_t *q = k->pending; q != NULL; q = q->next) {
        if (q->id == reply.id) {
            q->reply = reply;
            q->done = true;
        }
    }
    pthread_mutex_unlock(&k->lock);
    return true;
}

int us_control_wait(us_control_t *k, us_pending_t *q, int ms) {
    enum { SLICE = 50 }; /* ms; then whoever reads looks whether it is still wanted */
    const uint64_t until = ms < 0 ? UINT64_MAX : us_now_ns() + (uint64_t)ms * 1000000u;
    pthread_mutex_lock(&k->lock);
    while (!q->done && !k->gone) {
        const uint64_t now = us_now_ns();
        if (now >= until)
            break;
        const int slice = (int)us_min((until - now) / 1000000u + 1, SLICE);
        if (!k->reading) {
            k->reading = true;
            pthread_mutex_unlock(&k->lock);
            bool interrupted;
            const bool more = read_one(k, slice, &interrupted);
            pthread_mutex_lock(&k->lock);
            k->reading = false;
            k->gone |= !more;
            pthread_cond_broadcast(&k->answered);
            if (interrupted && ms >= 0) /* Python has a handler to run */
                break;
        } else {
            struct timespec t;
            clock_gettime(CLOCK_MONOTONIC, &t);
            t.tv_nsec += slice * 1000000l;
            t.tv_sec += t.tv_nsec / 1000000000l;
            t.tv_nsec %= 1000000000l;
            pthread_cond_timedwait(&k->answered, &k->lock, &t);
        }
    }
    const int result = q->done ? 1 : k->gone ? -EPIPE : 0;
    pthread_mutex_unlock(&k->lock);
    return result;
}

int us_control_ask(us_control_t *k, const us_request_t *request, us_reply_t *reply) {
    us_pending_t q = {0};
    int err = us_control_send(k, &q, request);
    if (err != 0)
        return err;
    err = us_control_wait(k, &q, -1);
    us_control_forget(k, &q);
    if (err < 0)
        return err;
    if (reply != NULL)
        *reply = q.reply;
    return q.reply.error <= 0 ? q.reply.error : -q.reply.error;
}
