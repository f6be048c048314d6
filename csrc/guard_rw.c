/* SPDX-License-Identifier: MIT
 *
 * One buffer: read, write, recv, send and their kin.
 *
 * What can't be held whole goes in pieces where a count may be short. A write goes on until one piece comes short, as the
 * kernel does itself, and so does a read of a file, or with MSG_WAITALL; any other read returns its first piece. What is a
 * message (a datagram, a device that is no stream) goes whole or not at all: ENOMEM. Another writer's bytes may come
 * between two pieces.
 */
#include "guard_call.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

enum {
    READ,
    READ_,
    WRITE,
    WRITE_,
    PREAD,
    PREAD64,
    PREAD64_,
    PWRITE,
    PWRITE64,
    PWRITE64_,
    RECV,
    RECV_,
    SEND,
    SEND_,
    RECVFROM,
    SENDTO,
    READ_CHK,
    PREAD_CHK,
    PREAD64_CHK,
    RECV_CHK,
    RECVFROM_CHK,
    GETRANDOM,
    GETENTROPY
};

extern void __chk_fail(void) __attribute__((noreturn));

us_fd_kind_t us_fd_kind(int fd) {
    struct stat st;
    int type;
    socklen_t size = sizeof type;
    if (fstat(fd, &st) < 0)
        return US_FD_WHOLE;
    switch (st.st_mode & S_IFMT) {
    case S_IFREG:
    case S_IFBLK: return US_FD_FILE;
    case S_IFIFO: return fcntl(fd, F_GETFL) & O_DIRECT ? US_FD_WHOLE : US_FD_STREAM; /* O_DIRECT: packets */
    case S_IFSOCK:
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
            return US_FD_WHOLE;
        return type == SOCK_STREAM ? US_FD_STREAM : US_FD_WHOLE;
    case S_IFCHR: /* major 1: /dev/null, /dev/zero, /dev/urandom */
        return major(st.st_rdev) == 1 ? US_FD_FILE : isatty(fd) ? US_FD_STREAM : US_FD_WHOLE;
    default: return US_FD_WHOLE;
    }
}

typedef struct in_pieces {
    us_call_t call;
    long a[6];
    int buffer, offset; /* which arguments: the buffer, followed by its length; the place in the file, or -1 */
    bool in;            /* the kernel writes to the buffer */
    us_fd_kind_t kind;
    int flags; /* MSG_... */
    const us_op_t *ops;
    uint32_t n; /* what else is held */
} in_pieces_t;

static __attribute__((noinline)) long go_in_pieces(in_pieces_t p) {
    char *buffer = (char *)p.a[p.buffer];
    uint64_t len = (uint64_t)p.a[p.buffer + 1], done = 0;
    long at = p.offset < 0 ? 0 : p.a[p.offset];
    for (;;) {
        us_holds_t h = {.n = 0};
        int64_t n = us_ops_hold(&h, p.ops, p.n, p.a);
        if (n == 0)
            n = us_holds_part(&h, buffer + done, len - done, p.in);
        if (n >= 0 && (uint64_t)n < len - done && p.kind == US_FD_UNKNOWN) {
            p.kind = us_fd_kind((int)p.a[0]);
            if (p.kind == US_FD_WHOLE || (p.flags & MSG_OOB))
                n = -ENOMEM;
        }
        if (n < 0) {
            us_holds_end(&h);
            errno = (int)-n;
            return done > 0 ? (long)done : -1;
        }
        p.a[p.buffer] = (long)(buffer + done);
        p.a[p.buffer + 1] = n;
        if (p.offset >= 0)
            p.a[p.offset] = at + (long)done;
        long result = us_call_ending(&h, p.call, p.a);
        if (result < 0)
            return done > 0 ? (long)done : result;
        done += (uint64_t)result;
        if (done >= len || result < n || (p.flags & MSG_PEEK))
            return (long)done;
        if (p.in && p.kind != US_FD_FILE && !(p.flags & MSG_WAITALL))
            return (long)done;
    }
}

#define OTHER(i) ((us_call_t)us_guard_rw[i].other)
#define NEAR(p, n) us_guard_near((const void *)(p), (uint64_t)(n))

/* read and write, which are called most: the compare, then libc's. */
#define SIMPLE(name, index, takes_in)                                                                                \
    static long name(long fd, long p, long n) {                                                                      \
        if (NEAR(p, n))                                                                                              \
            return go_in_pieces((in_pieces_t){OTHER(index), {fd, p, n}, .buffer = 1, .offset = -1, .in = takes_in}); \
        return ((long (*)(long, long, long))us_guard_rw[index].other)(fd, p, n);                                     \
    }
#define PLACED(name, index, takes_in)                                                                   \
    static long name(long fd, long p, long n, long at) {                                                \
        if (NEAR(p, n))                                                                                 \
            return go_in_pieces(                                                                        \
                (in_pieces_t){OTHER(index), {fd, p, n, at}, .buffer = 1, .offset = 3, .in = takes_in}); \
        return ((long (*)(long, long, long, long))us_guard_rw[index].other)(fd, p, n, at);              \
    }
SIMPLE(guarded_read, READ, true)
SIMPLE(guarded_write, WRITE, false)
PLACED(guarded_pread, PREAD64, true)
PLACED(guarded_pwrite, PWRITE64, false)

static long guarded_recv(long fd, long p, long n, long flags) {
    if (!NEAR(p, n))
        return OTHER(RECV)(fd, p, n, flags, 0, 0);
    return go_in_pieces(
        (in_pieces_t){OTHER(RECV), {fd, p, n, flags}, .buffer = 1, .offset = -1, .in = true, .flags = (int)flags});
}

static long guarded_send(long fd, long p, long n, long flags) {
    if (!NEAR(p, n))
        return OTHER(SEND)(fd, p, n, flags, 0, 0);
    return go_in_pieces(
        (in_pieces_t){OTHER(SEND), {fd, p, n, flags}, .buffer = 1, .offset = -1, .flags = (int)flags & ~MSG_WAITALL});
}

static const us_op_t peer_out[] = {{US_OP_BEHIND, 4, 5, true, 0}}, peer_in[] = {{US_OP_TIMES32, 4, 5, false, 1}};

static long guarded_recvfrom(long fd, long p, long n, long flags, long peer, long size) {
    long a[6] = {fd, p, n, flags, peer, size};
    if (!NEAR(p, n) && !us_ops_near(peer_out, 1, a))
        return OTHER(RECVFROM)(fd, p, n, flags, peer, size);
    return go_in_pieces((in_pieces_t){OTHER(RECVFROM),
                                      {fd, p, n, flags, peer, size},
                                      .buffer = 1,
                                      .offset = -1,
                                      .in = true,
                                      .flags = (int)flags,
                                      .ops = peer_out,
                                      .n = 1});
}

static long guarded_sendto(long fd, long p, long n, long flags, long peer, long size) {
    long a[6] = {fd, p, n, flags, peer, size};
    if (!NEAR(p, n) && !us_ops_near(peer_in, 1, a))
        return OTHER(SENDTO)(fd, p, n, flags, peer, size);
    return go_in_pieces((in_pieces_t){OTHER(SENDTO),
                                      {fd, p, n, flags, peer, size},
                                      .buffer = 1,
                                      .offset = -1,
                                      .flags = (int)flags & ~MSG_WAITALL,
                                      .ops = peer_in,
                                      .n = 1});
}

static long guarded_getrandom(long p, long n, long flags) {
    if (!NEAR(p, n))
        return OTHER(GETRANDOM)(p, n, flags, 0, 0, 0);
    return go_in_pieces(
        (in_pieces_t){OTHER(GETRANDOM), {p, n, flags}, .buffer = 0, .offset = -1, .in = true, .kind = US_FD_FILE});
}

/* At most 256 bytes, all of them or none. */
static long guarded_getentropy(long p, long n) {
    static const us_op_t op[] = {{US_OP_TIMES, 0, 1, true, 1}};
    long a[6] = {p, n};
    if (n > 256 || !NEAR(p, n))
        return OTHER(GETENTROPY)(p, n, 0, 0, 0, 0);
    return us_call_held(OTHER(GETENTROPY), op, 1, -1, a);
}

/* _FORTIFY_SOURCE: the size of the room is known, and more than that ends the program. */
static long guarded_read_chk(long fd, long p, size_t n, size_t room) {
    if (n > room)
        __chk_fail();
    return guarded_read(fd, p, (long)n);
}

static long guarded_pread_chk(long fd, long p, size_t n, long at, size_t room) {
    if (n > room)
        __chk_fail();
    return guarded_pread(fd, p, (long)n, at);
}

static long guarded_recv_chk(long fd, long p, size_t n, size_t room, long flags) {
    if (n > room)
        __chk_fail();
    return guarded_recv(fd, p, (long)n, flags);
}

static long guarded_recvfrom_chk(long fd, long p, size_t n, size_t room, long flags, long peer, long size) {
    if (n > room)
        __chk_fail();
    return guarded_recvfrom(fd, p, (long)n, flags, peer, size);
}

us_guard_t us_guard_rw[] = {
    [READ] = {.name = "read", .ours = guarded_read},
    [READ_] = {.name = "__read", .ours = guarded_read},
    [WRITE] = {.name = "write", .ours = guarded_write},
    [WRITE_] = {.name = "__write", .ours = guarded_write},
    [PREAD] = {.name = "pread", .ours = guarded_pread},
    [PREAD64] = {.name = "pread64", .ours = guarded_pread},
    [PREAD64_] = {.name = "__pread64", .ours = guarded_pread},
    [PWRITE] = {.name = "pwrite", .ours = guarded_pwrite},
    [PWRITE64] = {.name = "pwrite64", .ours = guarded_pwrite},
    [PWRITE64_] = {.name = "__pwrite64", .ours = guarded_pwrite},
    [RECV] = {.name = "recv", .ours = guarded_recv},
    [RECV_] = {.name = "__recv", .ours = guarded_recv},
    [SEND] = {.name = "send", .ours = guarded_send},
    [SEND_] = {.name = "__send", .ours = guarded_send},
    [RECVFROM] = {.name = "recvfrom", .ours = guarded_recvfrom},
    [SENDTO] = {.name = "sendto", .ours = guarded_sendto},
    [READ_CHK] = {.name = "__read_chk", .ours = guarded_read_chk},
    [PREAD_CHK] = {.name = "__pread_chk", .ours = guarded_pread_chk},
    [PREAD64_CHK] = {.name = "__pread64_chk", .ours = guarded_pread_chk},
    [RECV_CHK] = {.name = "__recv_chk", .ours = guarded_recv_chk},
    [RECVFROM_CHK] = {.name = "__recvfrom_chk", .ours = guarded_recvfrom_chk},
    [GETRANDOM] = {.name = "getrandom", .ours = guarded_getrandom},
    [GETENTROPY] = {.name = "getentropy", .ours = guarded_getentropy},
    {.name = NULL},
};

us_call_t us_rw_by_number(long number) {
    switch (number) {
    case SYS_read: return (us_call_t)(void *)guarded_read;
    case SYS_write: return (us_call_t)(void *)guarded_write;
    case SYS_pread64: return (us_call_t)(void *)guarded_pread;
    case SYS_pwrite64: return (us_call_t)(void *)guarded_pwrite;
    case SYS_recvfrom: return (us_call_t)(void *)guarded_recvfrom;
    case SYS_sendto: return (us_call_t)(void *)guarded_sendto;
    case SYS_getrandom: return (us_call_t)(void *)guarded_getrandom;
    default: return NULL;
    }
}
