/* SPDX-License-Identifier: MIT
 *
 * The writer is not rung for records: it looks for itself. A ring of it would be a system call for who serves, and
 * as the writer sleeps most of the time, one for nearly each fault.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "trace.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "alloc.h"
#include "sys.h"

enum { LOOK_MS = 50 };

/* ---- who serves ------------------------------------------------------------------------------------- */

static bool has_room(us_trace_t *t, uint64_t head, uint32_t n) {
    if (head + n <= t->room_until)
        return true;
    /* Acquire: the writer has read what lay there before it is written anew. */
    t->room_until = us_atomic_load_explicit(&t->tail, memory_order_acquire) + t->size;
    return head + n <= t->room_until;
}

static us_trace_rec_t says_missing(const us_trace_t *t, uint64_t when) {
    return (us_trace_rec_t){
        .what = US_TRACE_MISSED, .entry = (uint32_t)(t->missing < UINT32_MAX ? t->missing : UINT32_MAX), .when = when};
}

void us_trace_put(us_trace_t *t, const us_trace_rec_t *rec, uint32_t n, bool needed) {
    uint64_t head = us_atomic_load_explicit(&t->head, memory_order_relaxed);
    const uint32_t first = t->missing > 0; /* then there is one more, which says so */
    if (!has_room(t, head, first + n + (needed ? 0 : US_TRACE_SPARE))) {
        t->missing += n;
        t->missed += n;
        return;
    }
    if (first) {
        t->ring[head++ & (t->size - 1)] = says_missing(t, rec->when);
        t->missing = 0;
    }
    for (uint32_t k = 0; k < n; k++)
        t->ring[head++ & (t->size - 1)] = rec[k];
    us_atomic_store_explicit(&t->head, head, memory_order_release); /* after the records */
}

/* ---- the writer ------------------------------------------------------------------------------------- */

/* errno of what could not be written. A record that was cut short is the file's last. */
static int write_all(int fd, const uint8_t *from, size_t len, size_t *done) {
    *done = 0;
    while (*done < len) {
        const ssize_t n = write(fd, from + *done, len - *done);
        if (n < 0 && errno != EINTR)
            return errno;
        if (n > 0)
            *done += (size_t)n;
    }
    return 0;
}

static void write_out(us_trace_t *t) {
    const uint64_t head = us_atomic_load_explicit(&t->head, memory_order_acquire);
    uint64_t tail = us_atomic_load_explicit(&t->tail, memory_order_relaxed);
    while (tail < head) {
        const uint64_t at = tail & (t->size - 1);
        uint64_t n = head - tail < t->size - at ? head - tail : t->size - at;
        size_t done = 0;
        int err = us_atomic_load_explicit(&t->error, memory_order_relaxed);
        if (err == 0)
            err = write_all(t->fd, (const uint8_t *)&t->ring[at], n * sizeof *t->ring, &done);
        if (err != 0) {
            us_atomic_fetch_add_explicit(&t->unwritten, n - done / sizeof *t->ring, memory_order_relaxed);
            us_atomic_store_explicit(&t->error, err, memory_order_relaxed);
        }
        tail += n;
        us_atomic_store_explicit(&t->tail, tail, memory_order_release);
    }
}

static void *writer_main(void *arg) {
    us_trace_t *t = arg;
    struct pollfd bell = {.fd = t->bell, .events = POLLIN};
    while (poll(&bell, 1, LOOK_MS) <= 0)
        write_out(t);
    write_out(t);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------------- */

int us_trace_open(us_trace_t *t, int fd, uint32_t size) {
    t->fd = fd;
    t->size = size;
    t->ring = us_calloc(size, sizeof *t->ring);
    t->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int err = t->ring == NULL ? -ENOMEM : t->bell < 0 ? -errno : 0;
    if (err == 0)
        err = us_sys_thread(&t->writer, NULL, writer_main, t);
    if (err == 0) {
        t->on = true;
        return 0;
    }
    if (t->bell >= 0)
        close(t->bell);
    free(t->ring);
    t->ring = NULL;
    return err;
}

uint64_t us_trace_lacks(const us_trace_t *t) {
    return t->missed + us_atomic_load_explicit(&t->unwritten, memory_order_relaxed);
}

uint64_t us_trace_close(us_trace_t *t) {
    if (!t->on)
        return us_trace_lacks(t);
    t->on = false;
    us_sys_eventfd_ring(t->bell);
    pthread_join(t->writer, NULL);
    if (t->missing > 0 && us_atomic_load(&t->error) == 0) {
        const us_trace_rec_t last = says_missing(t, t->ring[(us_atomic_load(&t->head) - 1) & (t->size - 1)].when);
        size_t done;
        write_all(t->fd, (const uint8_t *)&last, sizeof last, &done);
    }
    close(t->bell);
    free(t->ring);
    t->ring = NULL;
    return us_trace_lacks(t);
}
