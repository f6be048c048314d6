/* SPDX-License-Identifier: MIT
 *
 * Descriptors, and what passes through them: eventfds, the control socket, poll; read and write of these and of the
 * userfaultfd; and syscall().
 */
#include "doors.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "disk.h"
#include "memory.h"

enum { EVENTS = 64, QUEUE = 16, DATAGRAM = 512 };
static uint64_t event[EVENTS];
static int events;

typedef struct way {
    uint8_t data[QUEUE][DATAGRAM];
    size_t len[QUEUE];
    uint32_t head, tail;
} way_t;
static way_t to_pager, to_client;
static bool client_end_closed, pager_gone;

int sim_eventfd(void) {
    SIM_CHECK(events < EVENTS, "more than %d eventfds", EVENTS);
    event[events] = 0;
    return SIM_EVENT + events++;
}

int __wrap_eventfd(unsigned value, int flags) {
    (void)flags;
    const int fd = sim_eventfd();
    event[fd - SIM_EVENT] = value;
    return fd;
}

void sim_pager_gone(void) { pager_gone = true; }

bool sim_fd_ready(int fd, bool out) {
    if (fd >= SIM_EVENT)
        return out || event[fd - SIM_EVENT] > 0;
    switch (fd) {
    case SIM_UFFD: return sim_uffd_pending();
    case SIM_PIDFD: return pager_gone;
    case SIM_SOCK: /* the client's end */
        return out ? to_pager.head - to_pager.tail < QUEUE || pager_gone
                   : to_client.head != to_client.tail || pager_gone || client_end_closed;
    case SIM_SOCK_END:
        return out ? to_client.head - to_client.tail < QUEUE : to_pager.head != to_pager.tail || client_end_closed;
    default: return out && fd == STDERR_FILENO;
    }
}

static int put_datagram(way_t *w, const void *buf, size_t n) {
    if (w->head - w->tail == QUEUE)
        return -EAGAIN;
    SIM_CHECK(n <= DATAGRAM, "a datagram of %zu bytes", n);
    memcpy(w->data[w->head % QUEUE], buf, n);
    w->len[w->head++ % QUEUE] = n;
    return (int)n;
}

static int get_datagram(way_t *w, void *buf, size_t n, bool ended) {
    if (w->head == w->tail)
        return ended ? 0 : -EAGAIN;
    const size_t len = w->len[w->tail % QUEUE] < n ? w->len[w->tail % QUEUE] : n;
    memcpy(buf, w->data[w->tail++ % QUEUE], len);
    return (int)len;
}

int sim_sock_recv(void *buf, size_t n) { return get_datagram(&to_pager, buf, n, client_end_closed); }
int sim_sock_send(const void *buf, size_t n) { return client_end_closed ? -EPIPE : put_datagram(&to_client, buf, n); }

static long said(int r) {
    if (r < 0)
        errno = -r;
    return r < 0 ? -1 : r;
}

ssize_t __wrap_send(int fd, const void *buf, size_t n, int flags) {
    (void)fd, (void)flags;
    sim_point();
    const int err = sim_call(SIM_CALL_SEND);
    const long r = said(err != 0 ? err : pager_gone ? -EPIPE : put_datagram(&to_pager, buf, n));
    sim_point();
    return r;
}
ssize_t __wrap_recv(int fd, void *buf, size_t n, int flags) {
    (void)fd, (void)flags;
    sim_point();
    const int err = sim_call(SIM_CALL_RECV);
    return said(err != 0 ? err : get_datagram(&to_client, buf, n, pager_gone || client_end_closed));
}
int __wrap_shutdown(int fd, int how) {
    (void)fd, (void)how;
    client_end_closed = true;
    return 0;
}

typedef struct polled {
    struct pollfd *f;
    nfds_t n;
} polled_t;

static short ready_of(const struct pollfd *f) {
    short r = 0;
    if ((f->events & POLLIN) && f->fd >= 0 && sim_fd_ready(f->fd, false))
        r |= POLLIN;
    if ((f->events & POLLOUT) && f->fd >= 0 && sim_fd_ready(f->fd, true))
        r |= POLLOUT;
    return r;
}

static bool any_ready(void *of) {
    const polled_t *p = of;
    for (nfds_t k = 0; k < p->n; k++) {
        if (ready_of(&p->f[k]) != 0)
            return true;
    }
    return false;
}

int __wrap_poll(struct pollfd *f, nfds_t n, int ms) {
    polled_t p = {f, n};
    sim_point();
    if (sim_fails(SIM_CALL_POLL))
        return -1;
    if (ms != 0 && !any_ready(&p))
        sim_wait(any_ready, &p, ms < 0 ? SIM_NEVER : sim_now + (uint64_t)ms * SIM_MS, "a descriptor");
    int some = 0;
    for (nfds_t k = 0; k < n; k++) {
        f[k].revents = ready_of(&f[k]);
        some += f[k].revents != 0;
    }
    return some;
}

ssize_t __real_read(int fd, void *buf, size_t n);

ssize_t __wrap_read(int fd, void *buf, size_t n) {
    if (fd < SIM_FD)
        return __real_read(fd, buf, n);
    sim_point();
    if (sim_fails(SIM_CALL_READ))
        return -1;
    if (fd == SIM_UFFD)
        return sim_uffd_read(buf, n);
    SIM_CHECK(fd >= SIM_EVENT && n == 8, "read of descriptor %d", fd);
    uint64_t *e = &event[fd - SIM_EVENT];
    if (*e == 0)
        return said(-EAGAIN);
    memcpy(buf, e, 8);
    *e = 0;
    return 8;
}

ssize_t __real_write(int fd, const void *buf, size_t n);

ssize_t __wrap_write(int fd, const void *buf, size_t n) {
    if (fd < SIM_FD)
        return __real_write(fd, buf, n);
    sim_point();
    if (sim_fails(SIM_CALL_WRITE))
        return -1;
    SIM_CHECK(fd >= SIM_EVENT && n == 8, "write to descriptor %d", fd);
    uint64_t add;
    memcpy(&add, buf, 8);
    event[fd - SIM_EVENT] += add;
    sim_point();
    return 8;
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    if (strcmp(path, "/proc/self/pagemap") == 0)
        return SIM_PAGEMAP;
    if (strncmp(path, "/proc/", 6) == 0 && strstr(path, "/stat") != NULL)
        return SIM_STAT;
    if (strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/sys/", 5) == 0) {
        errno = ENOENT;
        return -1;
    }
    return __real_open(path, flags);
}

int __real_close(int fd);
int __wrap_close(int fd) { return fd >= SIM_FD ? 0 : __real_close(fd); }

int __real_fcntl(int fd, int op, ...);
int __wrap_fcntl(int fd, int op, long arg) {
    if (fd < SIM_FD)
        return __real_fcntl(fd, op, arg);
    if (op == F_GETFL)
        return fd == SIM_DISK && !sim_disk.cached ? O_RDWR | O_DIRECT : O_RDWR;
    return op == F_DUPFD_CLOEXEC ? fd : 0;
}

/* ---- the rest of the kernel's door ------------------------------------------------------------------- */

long __wrap_syscall(long number, ...) {
    va_list args;
    va_start(args, number);
    long a[6];
    for (int k = 0; k < 6; k++)
        a[k] = va_arg(args, long);
    va_end(args);
    switch (number) {
    case SYS_futex:
        return sim_futex((_Atomic uint32_t *)a[0], (int)a[1], (uint32_t)a[2], (const struct timespec *)a[3]);
    case SYS_gettid: return sim_tid();
    case SYS_pidfd_open: return sim_kernel.vector ? SIM_PIDFD : said(-ENOSYS);
    case 440: /* process_madvise */ return sim_process_madvise((const struct iovec *)a[1], (size_t)a[2], (int)a[3]);
    default: /* io_uring is not simulated: the threads do it */ return said(-ENOSYS);
    }
}

ssize_t __wrap_getrandom(void *buf, size_t n, unsigned flags) {
    (void)flags;
    for (size_t k = 0; k < n; k++)
        ((uint8_t *)buf)[k] = (uint8_t)sim_random64();
    return (ssize_t)n;
}
