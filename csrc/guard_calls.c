/* SPDX-License-Identifier: MIT
 *
 * The functions whose operands are held whole for the length of the call: a line for each says which argument is what,
 * with the size in bytes. ioctl, fcntl and the like by their commands; syscall() by its number.
 */
#include "guard_call.h"

#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/utsname.h>

/* clang-format off */
#define IN(arg, size) {US_OP_FIXED, arg, 0, false, size}
#define OUT(arg, size) {US_OP_FIXED, arg, 0, true, size}
#define IN_N(arg, by, size) {US_OP_TIMES, arg, by, false, size}
#define OUT_N(arg, by, size) {US_OP_TIMES, arg, by, true, size}
#define IN_I(arg, by, size) {US_OP_TIMES32, arg, by, false, size}
#define OUT_I(arg, by, size) {US_OP_TIMES32, arg, by, true, size}
#define OUT_AT(arg, by) {US_OP_BEHIND, arg, by, true, 0}
#define BITS(arg, by) {US_OP_BITS32, arg, by, true, 0}
#define TEXT(arg) {US_OP_STRING, arg, 0, false, 0}
enum { STAT = sizeof(struct stat), TS = sizeof(struct timespec), ITS = 2 * TS, STATX = 256, EVENT = sizeof(struct epoll_event) };

/* X(name, what it returns on failure, operands...) */
#define CALLS(X) \
    /* waiting */ \
    X(poll, -1, OUT_N(0, 1, sizeof(struct pollfd))) X(__poll, -1, OUT_N(0, 1, sizeof(struct pollfd))) X(__poll_chk, -1, OUT_N(0, 1, sizeof(struct pollfd))) \
    X(select, -1, BITS(1, 0), BITS(2, 0), BITS(3, 0), OUT(4, 16)) X(__select, -1, BITS(1, 0), BITS(2, 0), BITS(3, 0), OUT(4, 16)) \
    X(epoll_wait, -1, OUT_I(1, 2, EVENT)) X(epoll_ctl, -1, IN(3, EVENT)) \
    /* sockets */ \
    X(bind, -1, IN_I(1, 2, 1)) X(connect, -1, IN_I(1, 2, 1)) X(__connect, -1, IN_I(1, 2, 1)) \
    X(accept, -1, OUT_AT(1, 2)) X(accept4, -1, OUT_AT(1, 2)) X(getsockname, -1, OUT_AT(1, 2)) X(getpeername, -1, OUT_AT(1, 2)) \
    X(getsockopt, -1, OUT_AT(3, 4)) X(setsockopt, -1, IN_I(3, 4, 1)) X(socketpair, -1, OUT(3, 8)) \
    /* from descriptor to descriptor: their offsets */ \
    X(sendfile, -1, OUT(2, 8)) X(sendfile64, -1, OUT(2, 8)) X(copy_file_range, -1, OUT(1, 8), OUT(3, 8)) \
    X(splice, -1, OUT(1, 8), OUT(3, 8)) X(pipe, -1, OUT(0, 8)) X(__pipe, -1, OUT(0, 8)) X(pipe2, -1, OUT(0, 8)) \
    /* files by their names */ \
    X(open, -1, TEXT(0)) X(open64, -1, TEXT(0)) X(__open, -1, TEXT(0)) X(__open64, -1, TEXT(0)) \
    X(__open_2, -1, TEXT(0)) X(__open64_2, -1, TEXT(0)) X(openat, -1, TEXT(1)) X(openat64, -1, TEXT(1)) \
    X(__openat_2, -1, TEXT(1)) X(__openat64_2, -1, TEXT(1)) X(creat, -1, TEXT(0)) X(creat64, -1, TEXT(0)) \
    X(stat, -1, TEXT(0), OUT(1, STAT)) X(stat64, -1, TEXT(0), OUT(1, STAT)) X(lstat, -1, TEXT(0), OUT(1, STAT)) \
    X(lstat64, -1, TEXT(0), OUT(1, STAT)) X(fstat, -1, OUT(1, STAT)) X(fstat64, -1, OUT(1, STAT)) \
    X(fstatat, -1, TEXT(1), OUT(2, STAT)) X(fstatat64, -1, TEXT(1), OUT(2, STAT)) \
    X(__xstat, -1, TEXT(1), OUT(2, STAT)) X(__xstat64, -1, TEXT(1), OUT(2, STAT)) X(__lxstat, -1, TEXT(1), OUT(2, STAT)) \
    X(__lxstat64, -1, TEXT(1), OUT(2, STAT)) X(__fxstat, -1, OUT(2, STAT)) X(__fxstat64, -1, OUT(2, STAT)) \
    X(__fxstatat, -1, TEXT(2), OUT(3, STAT)) X(__fxstatat64, -1, TEXT(2), OUT(3, STAT)) X(statx, -1, TEXT(1), OUT(4, STATX)) \
    X(statfs, -1, TEXT(0), OUT(1, sizeof(struct statfs))) X(statfs64, -1, TEXT(0), OUT(1, sizeof(struct statfs))) \
    X(__statfs, -1, TEXT(0), OUT(1, sizeof(struct statfs))) \
    X(fstatfs, -1, OUT(1, sizeof(struct statfs))) X(fstatfs64, -1, OUT(1, sizeof(struct statfs))) \
    X(statvfs, -1, TEXT(0)) X(statvfs64, -1, TEXT(0)) X(access, -1, TEXT(0)) X(faccessat, -1, TEXT(1)) X(euidaccess, -1, TEXT(0)) \
    X(eaccess, -1, TEXT(0)) X(chdir, -1, TEXT(0)) X(chroot, -1, TEXT(0)) X(chmod, -1, TEXT(0)) X(fchmodat, -1, TEXT(1)) X(lchmod, -1, TEXT(0)) \
    X(chown, -1, TEXT(0)) X(lchown, -1, TEXT(0)) X(fchownat, -1, TEXT(1)) X(link, -1, TEXT(0), TEXT(1)) \
    X(linkat, -1, TEXT(1), TEXT(3)) X(symlink, -1, TEXT(0), TEXT(1)) X(symlinkat, -1, TEXT(0), TEXT(2)) \
    X(unlink, -1, TEXT(0)) X(unlinkat, -1, TEXT(1)) X(remove, -1, TEXT(0)) X(rmdir, -1, TEXT(0)) X(mkdir, -1, TEXT(0)) X(mkdirat, -1, TEXT(1)) \
    X(mknod, -1, TEXT(0)) X(mknodat, -1, TEXT(1)) X(mkfifo, -1, TEXT(0)) X(mkfifoat, -1, TEXT(1)) X(__xmknod, -1, TEXT(1)) X(__xmknodat, -1, TEXT(2)) \
    X(rename, -1, TEXT(0), TEXT(1)) X(renameat, -1, TEXT(1), TEXT(3)) X(renameat2, -1, TEXT(1), TEXT(3)) \
    X(truncate, -1, TEXT(0)) X(truncate64, -1, TEXT(0)) X(acct, -1, TEXT(0)) X(swapon, -1, TEXT(0)) X(swapoff, -1, TEXT(0)) \
    X(umount, -1, TEXT(0)) X(umount2, -1, TEXT(0)) X(pivot_root, -1, TEXT(0), TEXT(1)) X(uselib, -1, TEXT(0)) \
    X(utime, -1, TEXT(0), IN(1, 16)) X(utimes, -1, TEXT(0), IN(1, 32)) X(lutimes, -1, TEXT(0), IN(1, 32)) X(futimes, -1, IN(1, 32)) \
    X(futimesat, -1, TEXT(1), IN(2, 32)) X(utimensat, -1, TEXT(1), IN(2, ITS)) X(futimens, -1, IN(1, ITS)) \
    X(readlink, -1, TEXT(0), OUT_N(1, 2, 1)) X(readlinkat, -1, TEXT(1), OUT_N(2, 3, 1)) \
    X(__readlink_chk, -1, TEXT(0), OUT_N(1, 2, 1)) X(__readlinkat_chk, -1, TEXT(1), OUT_N(2, 3, 1)) \
    X(getcwd, 0, OUT_N(0, 1, 1)) X(__getcwd_chk, 0, OUT_N(0, 1, 1)) X(getdents64, -1, OUT_N(1, 2, 1)) \
    X(getdirentries, -1, OUT_N(1, 2, 1)) X(getdirentries64, -1, OUT_N(1, 2, 1)) \
    X(opendir, 0, TEXT(0)) X(inotify_add_watch, -1, TEXT(1)) X(fanotify_mark, -1, TEXT(4)) X(memfd_create, -1, TEXT(0)) \
    X(name_to_handle_at, -1, TEXT(1), {US_OP_HEADED, 2, 0, true, 8}, OUT(3, 4)) X(open_by_handle_at, -1, {US_OP_HEADED, 1, 0, false, 8}) \
    X(shm_open, -1, TEXT(0)) X(shm_unlink, -1, TEXT(0)) X(fsopen, -1, TEXT(0)) X(fspick, -1, TEXT(1)) X(open_tree, -1, TEXT(1)) \
    X(move_mount, -1, TEXT(1), TEXT(3)) X(mount_setattr, -1, TEXT(1), IN_N(3, 4, 1)) \
    /* extended attributes */ \
    X(getxattr, -1, TEXT(0), TEXT(1), OUT_N(2, 3, 1)) X(lgetxattr, -1, TEXT(0), TEXT(1), OUT_N(2, 3, 1)) \
    X(fgetxattr, -1, TEXT(1), OUT_N(2, 3, 1)) X(setxattr, -1, TEXT(0), TEXT(1), IN_N(2, 3, 1)) \
    X(lsetxattr, -1, TEXT(0), TEXT(1), IN_N(2, 3, 1)) X(fsetxattr, -1, TEXT(1), IN_N(2, 3, 1)) \
    X(listxattr, -1, TEXT(0), OUT_N(1, 2, 1)) X(llistxattr, -1, TEXT(0), OUT_N(1, 2, 1)) X(flistxattr, -1, OUT_N(1, 2, 1)) \
    X(removexattr, -1, TEXT(0), TEXT(1)) X(lremovexattr, -1, TEXT(0), TEXT(1)) X(fremovexattr, -1, TEXT(1)) \
    /* time */ \
    X(clock_gettime, -1, OUT(1, TS)) X(__clock_gettime, -1, OUT(1, TS)) X(clock_getres, -1, OUT(1, TS)) X(clock_settime, -1, IN(1, TS)) \
    X(clock_nanosleep, US_FAIL_NUMBER, IN(2, TS), OUT(3, TS)) X(nanosleep, -1, IN(0, TS), OUT(1, TS)) X(__nanosleep, -1, IN(0, TS), OUT(1, TS)) \
    X(clock_adjtime, -1, OUT(1, sizeof(struct timex))) X(adjtimex, -1, OUT(0, sizeof(struct timex))) X(__adjtimex, -1, OUT(0, sizeof(struct timex))) \
    X(ntp_adjtime, -1, OUT(0, sizeof(struct timex))) X(getitimer, -1, OUT(1, 32)) X(setitimer, -1, IN(1, 32), OUT(2, 32)) \
    X(timerfd_gettime, -1, OUT(1, ITS)) X(timerfd_settime, -1, IN(2, ITS), OUT(3, ITS)) \
    X(timer_create, -1, IN(1, 64), OUT(2, 8)) X(timer_gettime, -1, OUT(1, ITS)) X(timer_settime, -1, IN(2, ITS), OUT(3, ITS)) \
    X(times, -1, OUT(0, 32)) X(sched_rr_get_interval, -1, OUT(1, TS)) \
    /* the process */ \
    X(getrusage, -1, OUT(1, sizeof(struct rusage))) X(getrlimit, -1, OUT(1, 16)) X(getrlimit64, -1, OUT(1, 16)) X(__getrlimit, -1, OUT(1, 16)) \
    X(setrlimit, -1, IN(1, 16)) X(setrlimit64, -1, IN(1, 16)) X(prlimit, -1, IN(2, 16), OUT(3, 16)) X(prlimit64, -1, IN(2, 16), OUT(3, 16)) \
    X(getgroups, -1, OUT_I(1, 0, 4)) X(__getgroups_chk, -1, OUT_I(1, 0, 4)) X(setgroups, -1, IN_N(1, 0, 4)) \
    X(getresuid, -1, OUT(0, 4), OUT(1, 4), OUT(2, 4)) X(getresgid, -1, OUT(0, 4), OUT(1, 4), OUT(2, 4)) \
    X(capget, -1, OUT(0, 8), OUT(1, 24)) X(capset, -1, OUT(0, 8), IN(1, 24)) \
    X(sched_getaffinity, -1, OUT_N(2, 1, 1)) X(sched_setaffinity, -1, IN_N(2, 1, 1)) \
    X(pthread_getaffinity_np, US_FAIL_NUMBER, OUT_N(2, 1, 1)) X(pthread_setaffinity_np, US_FAIL_NUMBER, IN_N(2, 1, 1)) \
    X(pthread_getname_np, US_FAIL_NUMBER, OUT_N(1, 2, 1)) X(pthread_setname_np, US_FAIL_NUMBER, TEXT(1)) \
    X(sched_getparam, -1, OUT(1, 4)) X(__sched_getparam, -1, OUT(1, 4)) X(sched_setparam, -1, IN(1, 4)) \
    X(sched_setscheduler, -1, IN(2, 4)) X(__sched_setscheduler, -1, IN(2, 4)) X(getcpu, -1, OUT(0, 4), OUT(1, 4)) \
    X(wait, -1, OUT(0, 4)) X(__wait, -1, OUT(0, 4)) X(waitpid, -1, OUT(1, 4)) X(__waitpid, -1, OUT(1, 4)) \
    X(wait3, -1, OUT(0, 4), OUT(2, sizeof(struct rusage))) X(wait4, -1, OUT(1, 4), OUT(3, sizeof(struct rusage))) X(waitid, -1, OUT(2, 128)) \
    X(sigaltstack, -1, IN(0, 24), OUT(1, 24)) X(pidfd_send_signal, -1, IN(2, 128)) X(signalfd, -1, IN(1, 8)) \
    /* the machine */ \
    X(uname, -1, OUT(0, sizeof(struct utsname))) X(sysinfo, -1, OUT(0, sizeof(struct sysinfo))) X(ustat, -1, OUT(1, 32)) \
    X(sethostname, -1, IN_N(0, 1, 1)) X(setdomainname, -1, IN_N(0, 1, 1)) X(klogctl, -1, OUT_I(1, 2, 1)) \
    X(mincore, -1, {US_OP_TIMES, 2, 1, true, 1}) X(modify_ldt, -1, OUT_N(1, 2, 1)) X(quotactl, -1, TEXT(1)) \
    X(init_module, -1, IN_N(0, 1, 1), TEXT(2)) X(delete_module, -1, TEXT(0)) \
    X(tcgetattr, -1, OUT(1, sizeof(struct termios))) X(tcsetattr, -1, IN(2, sizeof(struct termios))) \
    /* queues and semaphores */ \
    X(msgsnd, -1, {US_OP_MESSAGE, 1, 2, false, 8}) X(msgrcv, -1, {US_OP_MESSAGE, 1, 2, true, 8}) \
    X(__libc_msgsnd, -1, {US_OP_MESSAGE, 1, 2, false, 8}) X(__libc_msgrcv, -1, {US_OP_MESSAGE, 1, 2, true, 8}) \
    X(semop, -1, IN_N(1, 2, sizeof(struct sembuf))) X(semtimedop, -1, IN_N(1, 2, sizeof(struct sembuf)), IN(3, TS)) \
    X(mq_send, -1, IN_N(1, 2, 1)) X(mq_timedsend, -1, IN_N(1, 2, 1), IN(4, TS)) \
    X(mq_receive, -1, OUT_N(1, 2, 1), OUT(3, 4)) X(mq_timedreceive, -1, OUT_N(1, 2, 1), OUT(3, 4), IN(4, TS)) \
    X(mq_getattr, -1, OUT(1, 64)) X(mq_setattr, -1, IN(1, 64), OUT(2, 64)) X(mq_unlink, -1, TEXT(0)) \
    X(msgctl, -1, OUT(2, sizeof(struct msqid_ds))) X(shmctl, -1, OUT(2, sizeof(struct shmid_ds)))

#define NAMED(name, fail, ...) CALL_##name,
enum { CALLS(NAMED) IOCTL, FCNTL, FCNTL64, FCNTL_, PRCTL, SEMCTL, MLOCK, MLOCK2, MADVISE, MADVISE_, SYSCALL };
#define OTHER(i) ((us_call_t)us_guard_calls[i].other)

#define OPERANDS(name, fail, ...) static const us_op_t ops_##name[] = {__VA_ARGS__ __VA_OPT__(,) {.kind = US_OP_FIXED}};
CALLS(OPERANDS)
#define COUNT(name) (uint32_t)(sizeof ops_##name / sizeof *ops_##name - 1)

#define FUNCTION(name, fail, ...) \
    static long guarded_##name(long p, long q, long r, long s, long t, long u) { \
        long a[6] = {p, q, r, s, t, u}; \
        if (!us_ops_near(ops_##name, COUNT(name), a)) \
            return OTHER(CALL_##name)(p, q, r, s, t, u); \
        return us_call_held(OTHER(CALL_##name), ops_##name, COUNT(name), fail, a); \
    }
CALLS(FUNCTION)
/* clang-format on */

/* ---- by command ---------------------------------------------------------------------------------------- */

/* The size of what an old request, whose number does not say it, points to; -1: it points to nothing, or is unknown. */
static int old_ioctl(uint32_t request) {
    switch (request) {
    case TCGETS:
    case TCSETS:
    case TCSETSW:
    case TCSETSF: return 36;
    case TCGETA:
    case TCSETA:
    case TCSETAW:
    case TCSETAF: return 18;
    case TIOCGWINSZ:
    case TIOCSWINSZ: return 8;
    case FIONREAD:
    case FIONBIO:
    case FIOASYNC:
    case TIOCOUTQ:
    case TIOCGPGRP:
    case TIOCSPGRP:
    case TIOCGSID:
    case TIOCMGET:
    case TIOCMSET:
    case TIOCMBIS:
    case TIOCMBIC:
    case 0x8904 /* SIOCGPGRP */:
    case 0x8902 /* SIOCSPGRP */:
    case 0x8905 /* SIOCATMARK */: return 4;
    case TIOCSTI: return 1;
    default: break;
    }
    return request >= 0x8910 && request <= 0x89ff ? 40 : -1; /* sockets': struct ifreq, arpreq and smaller */
}

static long guarded_ioctl(long fd, long request, long arg) {
    uint32_t r = (uint32_t)request;
    long a[6] = {fd, request, arg};
    us_op_t op = {US_OP_FIXED, 2, 0, true, 0};
    if (!us_guard_near((const void *)arg, 1 << 14))
        return OTHER(IOCTL)(fd, request, arg, 0, 0, 0);
    int old = old_ioctl(r);
    if (old >= 0) {
        op.size = (uint32_t)old;
    } else if (_IOC_DIR(r) != _IOC_NONE) {
        op.size = _IOC_SIZE(r);
        op.write = true; /* drivers write behind _IOW too */
    }
    return us_call_held(OTHER(IOCTL), &op, 1, -1, a);
}

static long guarded_fcntl(long fd, long command, long arg) {
    us_op_t op = {US_OP_FIXED, 2, 0, true, 0};
    long a[6] = {fd, command, arg};
    switch ((int)command) {
    case F_GETLK:
    case F_SETLK:
    case F_SETLKW:
    case F_OFD_GETLK:
    case F_OFD_SETLK:
    case F_OFD_SETLKW: op.size = sizeof(struct flock); break;
    case F_GETOWN_EX:
    case F_SETOWN_EX:
    case F_GET_RW_HINT:
    case F_SET_RW_HINT:
    case F_GET_FILE_RW_HINT:
    case F_SET_FILE_RW_HINT: op.size = 8; break;
    default: break;
    }
    if (op.size == 0 || !us_ops_near(&op, 1, a))
        return OTHER(FCNTL)(fd, command, arg, 0, 0, 0);
    return us_call_held(OTHER(FCNTL), &op, 1, -1, a);
}

/* Of its commands those with a pointer have it first, to 16 bytes at most, but for filters and names of memory. */
static long guarded_prctl(long option, long p, long q, long r, long s) {
    static const us_op_t op = {US_OP_FIXED, 1, 0, true, 16};
    long a[6] = {option, p, q, r, s};
    if (!us_ops_near(&op, 1, a))
        return OTHER(PRCTL)(option, p, q, r, s, 0);
    return us_call_held(OTHER(PRCTL), &op, 1, -1, a);
}

static long guarded_semctl(long id, long number, long command, long arg) {
    us_op_t op = {US_OP_FIXED, 3, 0, true, sizeof(struct semid_ds)};
    long a[6] = {id, number, command, arg};
    if (command == SETVAL || !us_guard_near((const void *)arg, 1 << 16))
        return OTHER(SEMCTL)(id, number, command, arg, 0, 0);
    if (command == GETALL || command == SETALL) {
        struct semid_ds about;
        if (semctl((int)id, 0, IPC_STAT, &about) < 0)
            return -1;
        op.size = (uint32_t)about.sem_nsems * 2;
    }
    return us_call_held(OTHER(SEMCTL), &op, 1, -1, a);
}

/* ---- what faults all of a range in ---------------------------------------------------------------------- */

/* Piece by piece, each as large as can be held: what is done to one stays done. */
static __attribute__((noinline)) long range_in_pieces(us_call_t call, long addr, uint64_t len, long how, bool write) {
    for (uint64_t done = 0;;) {
        us_holds_t h = {.n = 0};
        const int64_t n = us_holds_part(&h, (const void *)(addr + (long)done), len - done, write);
        if (n < 0)
            errno = (int)-n;
        const long result = n < 0 ? -1 : call(addr + (long)done, n, how, 0, 0, 0);
        us_holds_end(&h);
        if (result != 0 || (done += (uint64_t)n) >= len)
            return result;
    }
}

static long guarded_mlock(long addr, long len) {
    return us_guard_near((const void *)addr, (uint64_t)len)
               ? range_in_pieces(OTHER(MLOCK), addr, (uint64_t)len, 0, true)
               : OTHER(MLOCK)(addr, len, 0, 0, 0, 0);
}

static long guarded_mlock2(long addr, long len, long flags) {
    enum { ON_FAULT = 1 };
    return us_guard_near((const void *)addr, (uint64_t)len) && !(flags & ON_FAULT)
               ? range_in_pieces(OTHER(MLOCK2), addr, (uint64_t)len, flags, true)
               : OTHER(MLOCK2)(addr, len, flags, 0, 0, 0);
}

static long guarded_madvise(long addr, long len, long advice) {
    enum { POPULATE_READ = 22, POPULATE_WRITE = 23 };
    return us_guard_near((const void *)addr, (uint64_t)len) && (advice == POPULATE_READ || advice == POPULATE_WRITE)
               ? range_in_pieces(OTHER(MADVISE), addr, (uint64_t)len, advice, advice == POPULATE_WRITE)
               : OTHER(MADVISE)(addr, len, advice, 0, 0, 0);
}

/* ---- syscall() ----------------------------------------------------------------------------------------- */

/* Those whose arguments are as libc's. */
/* clang-format off */
#define NUMBERS(N) \
    N(poll) N(epoll_wait) N(epoll_ctl) N(bind) N(connect) N(accept) N(accept4) N(getsockname) N(getpeername) \
    N(getsockopt) N(setsockopt) N(socketpair) N(sendfile) N(copy_file_range) N(splice) N(pipe) N(pipe2) N(open) \
    N(openat) N(creat) N(stat) N(lstat) N(fstat) N(statx) N(statfs) N(fstatfs) N(access) N(chdir) N(chmod) \
    N(chown) N(lchown) N(link) N(symlink) N(unlink) N(unlinkat) N(rmdir) N(mkdir) N(mkdirat) N(rename) \
    N(renameat) N(renameat2) N(truncate) N(utimensat) N(readlink) N(readlinkat) N(getcwd) N(getdents64) \
    N(inotify_add_watch) N(memfd_create) N(name_to_handle_at) N(getxattr) N(lgetxattr) N(fgetxattr) N(setxattr) \
    N(lsetxattr) N(fsetxattr) N(listxattr) N(llistxattr) N(flistxattr) N(clock_gettime) N(clock_getres) \
    N(clock_nanosleep) N(nanosleep) N(getrusage) N(prlimit64) N(getgroups) N(sched_getaffinity) \
    N(sched_setaffinity) N(wait4) N(waitid) N(uname) N(sysinfo) N(mincore) N(msgsnd) N(msgrcv) N(semop) \
    N(semtimedop) N(mq_timedsend) N(mq_timedreceive) N(getcpu) N(capget) N(capset)
/* clang-format on */

#define BY_NUMBER(name) [SYS_##name] = {ops_##name, COUNT(name)},
static const struct by_number {
    const us_op_t *ops;
    uint32_t n;
} by_number[512] = {NUMBERS(BY_NUMBER)[SYS_newfstatat] = {ops_fstatat, COUNT(fstatat)}};

/* The number takes a register, so that the last argument is on the stack. */
static long guarded_syscall(long number, long p, long q, long r, long s, long t, long u) {
    long a[6] = {p, q, r, s, t, u};
    us_call_t call = us_rw_by_number(number);
    if (!call)
        call = us_vec_by_number(number);
    if (call)
        return call(p, q, r, s, t, u);
    switch (number) {
    case SYS_ioctl: return guarded_ioctl(p, q, r);
    case SYS_mlock: return guarded_mlock(p, q);
    case SYS_mlock2: return guarded_mlock2(p, q, r);
    case SYS_madvise: return guarded_madvise(p, q, r);
    default: break;
    }
    const struct by_number *k = number >= 0 && number < 512 ? &by_number[number] : NULL;
    if (!k || !k->ops || !us_ops_near(k->ops, k->n, a))
        return ((us_syscall_t)us_guard_calls[SYSCALL].other)(number, p, q, r, s, t, u);
    return us_syscall_held((us_syscall_t)us_guard_calls[SYSCALL].other, number, k->ops, k->n, a);
}

#define ENTRY(which, ...) [CALL_##which] = {.name = #which, .ours = guarded_##which},
us_guard_t us_guard_calls[] = {
    CALLS(ENTRY)[IOCTL] = {.name = "ioctl", .ours = guarded_ioctl},
    [FCNTL] = {.name = "fcntl", .ours = guarded_fcntl},
    [FCNTL64] = {.name = "fcntl64", .ours = guarded_fcntl},
    [FCNTL_] = {.name = "__fcntl", .ours = guarded_fcntl},
    [PRCTL] = {.name = "prctl", .ours = guarded_prctl},
    [SEMCTL] = {.name = "semctl", .ours = guarded_semctl},
    [MLOCK] = {.name = "mlock", .ours = guarded_mlock},
    [MLOCK2] = {.name = "mlock2", .ours = guarded_mlock2},
    [MADVISE] = {.name = "madvise", .ours = guarded_madvise},
    [MADVISE_] = {.name = "__madvise", .ours = guarded_madvise},
    [SYSCALL] = {.name = "syscall", .ours = guarded_syscall},
    {.name = NULL},
};
