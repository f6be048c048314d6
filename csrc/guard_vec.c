/* SPDX-License-Identifier: MIT
 *
 * Vectors of buffers, and messages. The vectors themselves, names and control data may lie in inline memory too: they are
 * held. What can't be held whole is cut as in guard_rw.c; then the kernel is given a copy of the vector, cut.
 */
#include "guard_call.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum {
    READV,
    WRITEV,
    PREADV,
    PREADV64,
    PWRITEV,
    PWRITEV64,
    PREADV2,
    PREADV64V2,
    PWRITEV2,
    PWRITEV64V2,
    RECVMSG,
    SENDMSG,
    RECVMMSG,
    SENDMMSG,
    SENDMMSG_,
    VMSPLICE,
    PROCESS_VM_READV,
    PROCESS_VM_WRITEV
};
#define OTHER(i) ((us_call_t)us_guard_vec[i].other)

static bool any_near(const struct iovec *v, uint64_t n) {
    if (n > IOV_MAX || !v)
        return false; /* the kernel refuses it */
    if (us_guard_near(v, n * sizeof *v))
        return true;
    for (uint64_t i = 0; i < n; i++)
        if (us_guard_near(v[i].iov_base, v[i].iov_len))
            return true;
    return false;
}

/* A place in a vector. */
typedef struct cursor {
    const struct iovec *v;
    uint64_t n, at, offset;
} cursor_t;

/* Holds what comes next, as much as can be, into out. How many of out's, or -errno; *whole: all that was left. */
static int64_t hold_next(us_holds_t *h, cursor_t c, bool in, struct iovec *out, uint64_t *bytes, bool *whole) {
    uint64_t n = 0;
    *bytes = 0;
    *whole = true;
    for (; c.at < c.n; c.at++, c.offset = 0) {
        char *p = (char *)c.v[c.at].iov_base + c.offset;
        uint64_t len = c.v[c.at].iov_len - c.offset;
        int64_t got = us_holds_part(h, p, len, in);
        if (got < 0 && *bytes == 0)
            return got;
        got = got < 0 ? 0 : got;
        out[n++] = (struct iovec){p, (size_t)got};
        *bytes += (uint64_t)got;
        if ((uint64_t)got < len) {
            *whole = false;
            break;
        }
    }
    return (int64_t)n;
}

static void move_on(cursor_t *c, uint64_t bytes) {
    while (c->at < c->n && bytes >= c->v[c->at].iov_len - c->offset) {
        bytes -= c->v[c->at++].iov_len - c->offset;
        c->offset = 0;
    }
    c->offset += bytes;
}

typedef struct vector_call {
    us_call_t call;
    long a[6]; /* a[1] is the vector and a[2] its length, or a[1] the message */
    bool in, placed;
    struct msghdr *message; /* a[1], or NULL */
    int flags;              /* MSG_... */
} vector_call_t;

/* Calls until it comes short, like go_in_pieces of guard_rw.c. copy: room for the vector. */
static long call_vector(vector_call_t *c, cursor_t cursor, struct iovec *copy) {
    us_fd_kind_t kind = US_FD_UNKNOWN;
    uint64_t done = 0;
    long at = c->a[3];
    struct msghdr message;
    if (c->message) {
        message = *c->message;
        c->a[1] = (long)&message;
    } else {
        c->a[1] = (long)copy;
    }
    for (;;) {
        us_holds_t h = {.n = 0};
        uint64_t bytes = 0;
        bool whole = true;
        int64_t n = us_holds_all(&h, cursor.v, cursor.n * sizeof *cursor.v, false);
        if (n == 0 && c->message)
            n = us_holds_all(&h, message.msg_name, message.msg_namelen, c->in);
        if (n == 0 && c->message)
            n = us_holds_all(&h, message.msg_control, message.msg_controllen, c->in);
        if (n == 0)
            n = hold_next(&h, cursor, c->in, copy, &bytes, &whole);
        if (n >= 0 && !whole && kind == US_FD_UNKNOWN) {
            kind = us_fd_kind((int)c->a[0]);
            n = kind == US_FD_WHOLE || (c->flags & MSG_OOB) ? -ENOMEM : n;
        }
        if (n < 0) {
            us_holds_end(&h);
            errno = (int)-n;
            return done > 0 ? (long)done : -1;
        }
        if (c->message)
            message.msg_iov = copy, message.msg_iovlen = (size_t)n;
        else
            c->a[2] = n;
        if (c->placed)
            c->a[3] = at + (long)done;
        long result = us_call_ending(&h, c->call, c->a);
        if (result < 0)
            return done > 0 ? (long)done : result;
        if (c->message && c->in && done == 0) {
            struct msghdr *to = c->message;
            to->msg_namelen = message.msg_namelen;
            to->msg_controllen = message.msg_controllen;
            to->msg_flags = message.msg_flags;
        }
        done += (uint64_t)result;
        if (whole || (uint64_t)result < bytes || (c->flags & MSG_PEEK) ||
            (c->in && kind != US_FD_FILE && (c->message || !(c->flags & MSG_WAITALL))))
            return (long)done;
        if (c->message) /* what goes along has gone */
            message.msg_control = NULL, message.msg_controllen = 0;
        move_on(&cursor, (uint64_t)result);
    }
}

static __attribute__((noinline)) long go_in_pieces(vector_call_t c, const struct iovec *v, uint64_t n) {
    enum { FEW = 32 };
    struct iovec few[FEW], *copy = few;
    if (n > FEW) { /* no malloc in a signal handler */
        copy = mmap(NULL, n * sizeof *copy, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (copy == MAP_FAILED)
            return -1;
    }
    long result = call_vector(&c, (cursor_t){v, n, 0, 0}, copy);
    int err = errno;
    if (copy != few)
        munmap(copy, n * sizeof *copy);
    errno = err;
    return result;
}

#define VECTOR(name, index, takes_in, ...)                                                               \
    static long name(long fd, long v, long n, long at, long flags) {                                     \
        if (!any_near((const void *)v, (uint64_t)(int)n))                                                \
            return OTHER(index)(fd, v, n, at, flags, 0);                                                 \
        return go_in_pieces(                                                                             \
            (vector_call_t){OTHER(index), {fd, v, n, at, flags}, .in = takes_in, .placed = __VA_ARGS__}, \
            (const void *)v, (uint64_t)(int)n);                                                          \
    }
VECTOR(guarded_readv, READV, true, false)
VECTOR(guarded_writev, WRITEV, false, false)
VECTOR(guarded_preadv, PREADV64, true, true)
VECTOR(guarded_pwritev, PWRITEV64, false, true)
VECTOR(guarded_preadv2, PREADV64V2, true, at != -1)
VECTOR(guarded_pwritev2, PWRITEV64V2, false, at != -1)

/* ---- messages ------------------------------------------------------------------------------------------ */

static bool message_near(const struct msghdr *m) {
    return us_guard_near(m, sizeof *m) || us_guard_near(m->msg_name, m->msg_namelen) ||
           us_guard_near(m->msg_control, m->msg_controllen) || any_near(m->msg_iov, m->msg_iovlen);
}

static long guarded_recvmsg(long fd, long message, long flags) {
    struct msghdr *m = (struct msghdr *)message;
    if (!m || !message_near(m) || m->msg_iovlen > IOV_MAX)
        return OTHER(RECVMSG)(fd, message, flags, 0, 0, 0);
    return go_in_pieces(
        (vector_call_t){OTHER(RECVMSG), {fd, message, flags}, .in = true, .message = m, .flags = (int)flags},
        m->msg_iov, m->msg_iovlen);
}

static long guarded_sendmsg(long fd, long message, long flags) {
    struct msghdr *m = (struct msghdr *)message;
    if (!m || !message_near(m) || m->msg_iovlen > IOV_MAX)
        return OTHER(SENDMSG)(fd, message, flags, 0, 0, 0);
    return go_in_pieces(
        (vector_call_t){OTHER(SENDMSG), {fd, message, flags}, .message = m, .flags = (int)flags & ~MSG_WAITALL},
        m->msg_iov, m->msg_iovlen);
}

static int hold_message(us_holds_t *h, const struct msghdr *m, bool in) {
    int err = us_holds_all(h, m->msg_name, m->msg_namelen, in);
    if (err == 0)
        err = us_holds_all(h, m->msg_control, m->msg_controllen, in);
    if (err == 0 && m->msg_iovlen <= IOV_MAX)
        err = us_holds_all(h, m->msg_iov, m->msg_iovlen * sizeof *m->msg_iov, false);
    for (size_t i = 0; i < m->msg_iovlen && i < IOV_MAX && err == 0; i++)
        err = us_holds_all(h, m->msg_iov[i].iov_base, m->msg_iov[i].iov_len, in);
    return err;
}

/* Each message whole; as many messages as can be held, which is a short count. */
static long many_messages(us_call_t call, long *a, bool in) {
    struct mmsghdr *m = (struct mmsghdr *)a[1];
    uint32_t n = (uint32_t)a[2] < UIO_MAXIOV ? (uint32_t)a[2] : UIO_MAXIOV, held = 0;
    bool near = us_guard_near(m, n * sizeof *m) || us_guard_near((const void *)a[4], 16);
    for (uint32_t i = 0; i < n && !near; i++)
        near = message_near(&m[i].msg_hdr);
    if (!near)
        return call(a[0], a[1], a[2], a[3], a[4], 0);
    us_holds_t h = {.n = 0};
    int err = us_holds_all(&h, m, n * sizeof *m, true);
    if (err == 0 && a[4])
        err = us_holds_all(&h, (const void *)a[4], 16, true);
    for (; held < n && err == 0; held++)
        if ((err = hold_message(&h, &m[held].msg_hdr, in)) != 0)
            break;
    if (err != 0 && held == 0) {
        us_holds_end(&h);
        errno = -err;
        return -1;
    }
    a[2] = held;
    return us_call_ending(&h, call, a);
}

static long guarded_recvmmsg(long fd, long messages, long n, long flags, long timeout) {
    long a[6] = {fd, messages, n, flags, timeout};
    return many_messages(OTHER(RECVMMSG), a, true);
}

static long guarded_sendmmsg(long fd, long messages, long n, long flags) {
    long a[6] = {fd, messages, n, flags};
    return many_messages(OTHER(SENDMMSG), a, false);
}

/* ---- others -------------------------------------------------------------------------------------------- */

/* A pipe would keep the pages, and they may leave: inline memory is copied into it instead. */
static long guarded_vmsplice(long fd, long v, long n, long flags) {
    if (!any_near((const void *)v, (uint64_t)n))
        return OTHER(VMSPLICE)(fd, v, n, flags, 0, 0);
    if ((fcntl((int)fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
        return go_in_pieces((vector_call_t){OTHER(VMSPLICE), {fd, v, n, flags}, .in = true}, (const void *)v,
                            (uint64_t)n);
    struct pollfd room = {.fd = (int)fd, .events = POLLOUT};
    if (flags & SPLICE_F_NONBLOCK && poll(&room, 1, 0) == 0) {
        errno = EAGAIN;
        return -1;
    }
    struct iovec first = {0}; /* without blocking for more than there is room for: PIPE_BUF at least */
    const struct iovec *from = (const void *)v;
    if (!(flags & SPLICE_F_NONBLOCK))
        return guarded_writev(fd, v, n, 0, 0);
    for (long i = 0; i < n && first.iov_len == 0; i++)
        first = from[i];
    first.iov_len = first.iov_len < PIPE_BUF ? first.iov_len : PIPE_BUF;
    return guarded_writev(fd, (long)&first, 1, 0, 0);
}

/* Short counts are at the borders of elements of the other process's, so here it is all or ENOMEM. */
static long process_vm(int which, const long *a, bool reads) {
    const struct iovec *mine = (const void *)a[1], *others = (const void *)a[3];
    uint64_t n = (uint64_t)a[2], m = (uint64_t)a[4];
    bool self = (pid_t)a[0] == getpid(), near = any_near(mine, n) || us_guard_near(others, m * sizeof *others);
    if (!near && !(self && any_near(others, m)))
        return OTHER(which)(a[0], a[1], a[2], a[3], a[4], a[5]);
    us_holds_t h = {.n = 0};
    long result = -1;
    int err = n > IOV_MAX || m > IOV_MAX ? -EINVAL : us_holds_all(&h, mine, n * sizeof *mine, false);
    if (err == 0)
        err = us_holds_all(&h, others, m * sizeof *others, false);
    for (uint64_t i = 0; i < n && err == 0; i++)
        err = us_holds_all(&h, mine[i].iov_base, mine[i].iov_len, reads);
    for (uint64_t i = 0; i < m && err == 0 && self; i++)
        err = us_holds_all(&h, others[i].iov_base, others[i].iov_len, !reads);
    if (err == 0)
        result = OTHER(which)(a[0], a[1], a[2], a[3], a[4], a[5]); /* no cancellation point */
    else
        errno = -err;
    us_holds_end(&h);
    return result;
}

static long guarded_process_vm_readv(long pid, long mine, long n, long others, long m, long flags) {
    long a[6] = {pid, mine, n, others, m, flags};
    return process_vm(PROCESS_VM_READV, a, true);
}

static long guarded_process_vm_writev(long pid, long mine, long n, long others, long m, long flags) {
    long a[6] = {pid, mine, n, others, m, flags};
    return process_vm(PROCESS_VM_WRITEV, a, false);
}

us_guard_t us_guard_vec[] = {
    [READV] = {.name = "readv", .ours = guarded_readv},
    [WRITEV] = {.name = "writev", .ours = guarded_writev},
    [PREADV] = {.name = "preadv", .ours = guarded_preadv},
    [PREADV64] = {.name = "preadv64", .ours = guarded_preadv},
    [PWRITEV] = {.name = "pwritev", .ours = guarded_pwritev},
    [PWRITEV64] = {.name = "pwritev64", .ours = guarded_pwritev},
    [PREADV2] = {.name = "preadv2", .ours = guarded_preadv2},
    [PREADV64V2] = {.name = "preadv64v2", .ours = guarded_preadv2},
    [PWRITEV2] = {.name = "pwritev2", .ours = guarded_pwritev2},
    [PWRITEV64V2] = {.name = "pwritev64v2", .ours = guarded_pwritev2},
    [RECVMSG] = {.name = "recvmsg", .ours = guarded_recvmsg},
    [SENDMSG] = {.name = "sendmsg", .ours = guarded_sendmsg},
    [RECVMMSG] = {.name = "recvmmsg", .ours = guarded_recvmmsg},
    [SENDMMSG] = {.name = "sendmmsg", .ours = guarded_sendmmsg},
    [SENDMMSG_] = {.name = "__sendmmsg", .ours = guarded_sendmmsg},
    [VMSPLICE] = {.name = "vmsplice", .ours = guarded_vmsplice},
    [PROCESS_VM_READV] = {.name = "process_vm_readv", .ours = guarded_process_vm_readv},
    [PROCESS_VM_WRITEV] = {.name = "process_vm_writev", .ours = guarded_process_vm_writev},
    {.name = NULL},
};

/* Not preadv2 and pwritev2, whose place in the file takes two arguments. */
us_call_t us_vec_by_number(long number) {
    switch (number) {
    case SYS_readv: return (us_call_t)(void *)guarded_readv;
    case SYS_writev: return (us_call_t)(void *)guarded_writev;
    case SYS_preadv: return (us_call_t)(void *)guarded_preadv;
    case SYS_pwritev: return (us_call_t)(void *)guarded_pwritev;
    case SYS_recvmsg: return (us_call_t)(void *)guarded_recvmsg;
    case SYS_sendmsg: return (us_call_t)(void *)guarded_sendmsg;
    case SYS_recvmmsg: return (us_call_t)(void *)guarded_recvmmsg;
    case SYS_sendmmsg: return (us_call_t)(void *)guarded_sendmmsg;
    case SYS_vmsplice: return (us_call_t)(void *)guarded_vmsplice;
    case SYS_process_vm_readv: return (us_call_t)(void *)guarded_process_vm_readv;
    case SYS_process_vm_writev: return (us_call_t)(void *)guarded_process_vm_writev;
    default: return NULL;
    }
}
