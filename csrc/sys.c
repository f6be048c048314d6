/* SPDX-License-Identifier: MIT
 *
 * The numbers below are the kernel's ABI (include/uapi/linux/userfaultfd.h, up to 6.18); Debian 12's
 * header stops at feature bit 12. What is there is asked of the kernel at run time.
 */
#include "sys.h"

#include "alloc.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define F_THREAD_ID (1ull << 8)
#define F_WP (1ull << 0)
#define F_SIGBUS (1ull << 7)
#define F_POISON (1ull << 14)
#define F_MOVE (1ull << 16)
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define IOC_NEW _IO(0xAA, 0x00) /* on /dev/userfaultfd */

typedef struct us_move_arg {
    uint64_t dst, src, len, mode;
    int64_t move;
} us_move_arg_t;
#define IOC_MOVE _IOWR(0xAA, 0x05, us_move_arg_t)
#define MOVE_ALLOW_SRC_HOLES 2u

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* ---- injection -------------------------------------------------------------------------------------- */

enum {
    OP_COPY,
    OP_ZERO,
    OP_WAKE,
    OP_PROTECT,
    OP_MOVE,
    OP_MADVISE,
    OP_VECTOR,
    OP_DIO,
    OP_RESERVE,
    OP_POISON,
    OP_UNSHARE,
    OP_PEEK,
    OPS
};
static const char *const op_names[OPS] = {"copy",   "zero", "wake",    "protect", "move",    "madvise",
                                          "vector", "dio",  "reserve", "poison",  "unshare", "peek"};

static struct {
    int err;
    uint32_t every;
    _Atomic uint32_t calls;
    _Atomic uint64_t fired;
} injected[OPS];
_Static_assert((int)OPS <= (int)US_INJECT_READ, "the system calls come before the swap file's operations");

int us_inject_set(const char *op, int err, uint32_t every) {
    for (int i = 0; i < OPS; i++) {
        if (strcmp(op, op_names[i]) == 0) {
            if (every != 0 && injected[i].every != 0 && injected[i].err != err)
                return -EEXIST;
            injected[i].err = err;
            injected[i].every = every;
            return 0;
        }
    }
    return -EINVAL;
}

uint64_t us_injected(int i) {
    return i < 0 || i >= OPS ? 0 : us_atomic_load_explicit(&injected[i].fired, memory_order_relaxed);
}

const char *us_injected_name(int i) {
    static const char *const kinds[US_INJECTS - US_INJECT_READ] = {
        "read",  "read:SHORT",  "read:FLIP",  "read:LATE",  "read:SLOW",
        "write", "write:SHORT", "write:FLIP", "write:LATE", "write:SLOW"};
    if (i >= US_INJECT_READ && i < US_INJECTS)
        return kinds[i - US_INJECT_READ];
    return i >= 0 && i < OPS ? op_names[i] : NULL;
}

static inline int inject(int op) {
    if (__builtin_expect(injected[op].every == 0, 1))
        return 0;
    uint32_t n = us_atomic_fetch_add_explicit(&injected[op].calls, 1, memory_order_relaxed);
    if ((n + 1) % injected[op].every != 0)
        return 0;
    us_atomic_fetch_add_explicit(&injected[op].fired, 1, memory_order_relaxed);
    return -injected[op].err;
}

uint32_t us_delays[US_DELAYS];
static const char *const delay_names[US_DELAYS] = {"take",   "taken",   "drop",   "status", "compress", "compressed",
                                                   "swapin", "swapped", "commit", "serve",  "served",   "plain"};

static uint32_t delay_seed = 1;
static _Atomic uint32_t delay_threads;

int us_delay_set(const char *point, uint32_t usec) {
    int found = 0;
    if (strcmp(point, "seed") == 0) {
        delay_seed = usec;
        return 0;
    }
    for (int i = 0; i < US_DELAYS; i++) {
        if (strcmp(point, "all") == 0 || strcmp(point, delay_names[i]) == 0) {
            us_delays[i] = usec;
            found = 1;
        }
    }
    return found ? 0 : -EINVAL;
}

/* Threads of a process are numbered in the order of their first delays. */
uint32_t us_delay_pick(uint32_t usec) {
    /* initial-exec: a handler may not allocate it */
    static _Thread_local __attribute__((tls_model("initial-exec"))) uint64_t state;
    if (state == 0) {
        const uint64_t thread = us_atomic_fetch_add(&delay_threads, 1) + 1;
        state = ((thread << 32 | delay_seed) * 0x9E3779B97F4A7C15ull) | 1;
    }
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((state >> 33) % usec);
}

void us_delay_now(uint32_t usec) {
    struct timespec t = {0, (long)us_delay_pick(usec) * 1000};
    nanosleep(&t, NULL);
}

/* ---- userfaultfd ------------------------------------------------------------------------------------ */

uint64_t us_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static int open_by(int how) {
    if (how == US_UFFD_DEVICE) {
        int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (dev < 0)
            return -errno;
        int fd = ioctl(dev, IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        int err = errno;
        close(dev);
        return fd < 0 ? -err : fd;
    }
    int mode = how == US_UFFD_USER_MODE ? UFFD_USER_MODE_ONLY : 0;
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | mode);
    return fd < 0 ? -errno : fd;
}

/* UFFDIO_API can be asked once for each descriptor, so the features are asked of another one. */
static int features_by(int how, uint64_t *features) {
    int fd = open_by(how);
    if (fd < 0)
        return fd;
    struct uffdio_api api = {.api = UFFD_API};
    int err = ioctl(fd, UFFDIO_API, &api) < 0 ? -errno : 0;
    close(fd);
    *features = api.features;
    return err;
}

int us_uffd_open(int how, int sigbus, us_uffd_t *out) {
    const uint64_t wanted = F_THREAD_ID | F_WP | F_POISON | F_MOVE | (sigbus ? F_SIGBUS : 0);
    int err = -ENOSYS;
    for (int way = US_UFFD_DEVICE; way <= US_UFFD_USER_MODE; way++) {
        if (how != US_UFFD_AUTO && how != way)
            continue;
        uint64_t features = 0;
        int r = features_by(way, &features);
        if (r < 0) {
            if (err == -ENOSYS)
                err = r;
            continue;
        }
        struct uffdio_api api = {.api = UFFD_API, .features = features & wanted};
        int fd = open_by(way);
        if (fd < 0)
            return fd;
        if (ioctl(fd, UFFDIO_API, &api) < 0) {
            err = -errno;
            close(fd);
            continue;
        }
        *out = (us_uffd_t){.fd = fd, .how = way, .features = features, .enabled = features & wanted};
        return 0;
    }
    return err;
}

int us_probe_kernel(us_probe_report_t *out) {
    memset(out, 0, sizeof *out);
    uint64_t f = 0;
    out->user_mode_errno = -features_by(US_UFFD_USER_MODE, &f);
    out->syscall_errno = -features_by(US_UFFD_SYSCALL, &f);
    out->device_errno = -features_by(US_UFFD_DEVICE, &f);
    out->features = f;
    out->has_wp = (f & F_WP) != 0;
    out->has_move = (f & F_MOVE) != 0;
    out->has_poison = (f & F_POISON) != 0;
    out->has_thread_id = (f & F_THREAD_ID) != 0;
    int pidfd = us_sys_pidfd(getpid());
    out->pidfd_errno = pidfd < 0 ? -pidfd : 0;
    if (pidfd >= 0) {
        void *m = mmap(NULL, US_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (m != MAP_FAILED) {
            *(char *)m = 1;
            struct iovec v = {m, US_PAGE};
            uint64_t done;
            out->self_advice_errno = -us_sys_dontneed_vec(pidfd, &v, 1, &done);
            if (out->self_advice_errno == 0 && *(volatile char *)m != 0)
                out->self_advice_errno = EILSEQ;
            munmap(m, US_PAGE);
        }
        close(pidfd);
    } else {
        out->self_advice_errno = ENOSYS;
    }
    return 0;
}

int us_sys_read(int uffd, us_msg_t *msgs, int max) {
    struct uffd_msg raw[16];
    if (max > 16)
        max = 16;
    for (;;) {
        ssize_t n = read(uffd, raw, sizeof raw[0] * (size_t)max);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return errno == EAGAIN ? 0 : -errno;
        }
        int got = 0;
        for (size_t i = 0; i < (size_t)n / sizeof raw[0]; i++) {
            if (raw[i].event != UFFD_EVENT_PAGEFAULT)
                continue; /* no other event was asked for */
            uint64_t fl = raw[i].arg.pagefault.flags;
            msgs[got++] = (us_msg_t){
                .addr = raw[i].arg.pagefault.address,
                .flags = (fl & UFFD_PAGEFAULT_FLAG_WRITE ? US_FAULT_WRITE : 0) |
                         (fl & UFFD_PAGEFAULT_FLAG_WP ? US_FAULT_WP | US_FAULT_WRITE : 0),
                .tid = raw[i].arg.pagefault.feat.ptid,
            };
        }
        return got;
    }
}

int us_sys_copy(int uffd, uint64_t dst, const void *src, uint64_t len, bool protect, uint64_t *done) {
    *done = 0;
    int err = inject(OP_COPY);
    if (err)
        return err;
    struct uffdio_copy c = {
        .dst = dst, .src = (uint64_t)(uintptr_t)src, .len = len, .mode = protect ? UFFDIO_COPY_MODE_WP : 0};
    if (ioctl(uffd, UFFDIO_COPY, &c) == 0) {
        *done = len;
        return 0;
    }
    err = -errno;
    if (c.copy > 0) /* 0 or -EAGAIN when nothing was, by the kernel's age */
        *done = (uint64_t)c.copy;
    return err;
}

int us_sys_zero(int uffd, uint64_t dst, uint64_t len) {
    int err = inject(OP_ZERO);
    if (err)
        return err;
    struct uffdio_zeropage z = {.range = {dst, len}};
    return ioctl(uffd, UFFDIO_ZEROPAGE, &z) == 0 ? 0 : -errno;
}

int us_sys_wake(int uffd, uint64_t addr, uint64_t len) {
    struct uffdio_range r = {addr, len};
    return ioctl(uffd, UFFDIO_WAKE, &r) == 0 ? 0 : -errno;
}

int us_sys_protect(int uffd, uint64_t addr, uint64_t len, bool on) {
    int err = inject(OP_PROTECT);
    if (err)
        return err;
    struct uffdio_writeprotect w = {.range = {addr, len}, .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    return ioctl(uffd, UFFDIO_WRITEPROTECT, &w) == 0 ? 0 : -errno;
}

int us_sys_move(int uffd, uint64_t dst, uint64_t src, uint64_t len, uint64_t *done) {
    *done = 0;
    int err = inject(OP_MOVE);
    if (err)
        return err;
    us_move_arg_t m = {.dst = dst, .src = src, .len = len, .mode = MOVE_ALLOW_SRC_HOLES};
    if (ioctl(uffd, IOC_MOVE, &m) == 0) {
        *done = len;
        return 0;
    }
    err = -errno;
    if (m.move > 0)
        *done = (uint64_t)m.move;
    return err;
}

typedef struct us_poison_arg {
    uint64_t start, len, mode;
    int64_t updated;
} us_poison_arg_t;
#define IOC_POISON _IOWR(0xAA, 0x08, us_poison_arg_t)

int us_sys_poison(int uffd, uint64_t addr, uint64_t len) {
    int err = inject(OP_POISON);
    if (err)
        return err;
    us_poison_arg_t a = {.start = addr, .len = len};
    return ioctl(uffd, IOC_POISON, &a) == 0 ? 0 : -errno;
}

int us_sys_register(int uffd, uint64_t addr, uint64_t len) {
    struct uffdio_register r = {.range = {addr, len}, .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
    return ioctl(uffd, UFFDIO_REGISTER, &r) == 0 ? 0 : -errno;
}

int us_sys_unregister(int uffd, uint64_t addr, uint64_t len) {
    struct uffdio_range r = {addr, len};
    const int err = ioctl(uffd, UFFDIO_UNREGISTER, &r) == 0 ? 0 : -errno;
    /* The kernel wakes who waits in the range, but before it takes the mapping out of the userfaultfd: where a fault takes
     * only the mapping's own lock (Linux 6.4 and newer), a thread that was woken can be back in the queue by then, and
     * nobody would wake it again. Seen on 6.18. */
    us_sys_wake(uffd, addr, len);
    return err;
}

int us_present(int pagemap, uint64_t addr, uint64_t len, uint32_t block, uint8_t *out) {
    enum { AT_ONCE = 2048 };
    const uint64_t there = 3ull << 62; /* present, or swapped out by the kernel or just being moved by it */
    uint64_t page[AT_ONCE];
    memset(out, 0, (len + block - 1) / block);
    for (uint64_t off = 0; off < len;) {
        const uint64_t n = us_min((len - off) / US_PAGE, AT_ONCE);
        const ssize_t got = pread(pagemap, page, n * sizeof *page, (off_t)((addr + off) / US_PAGE * sizeof *page));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < (ssize_t)sizeof *page)
            return got < 0 ? -errno : -ESRCH; /* the process is no more */
        for (uint64_t k = 0; k < (uint64_t)got / sizeof *page; k++)
            out[(off + k * US_PAGE) / block] |= (page[k] & there) != 0;
        off += (uint64_t)got / sizeof *page * US_PAGE;
    }
    return 0;
}

/* ---- memory and processes --------------------------------------------------------------------------- */

void *us_sys_reserve(uint64_t len) {
    us_alloc_count();
    void *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return m == MAP_FAILED ? NULL : m;
}

void *us_sys_reserve_huge(uint64_t len) {
    enum { HUGE = 2 << 20 };
    uint8_t *m = us_sys_reserve(us_align_up(len, HUGE) + HUGE);
    if (m == NULL)
        return NULL;
    m = (uint8_t *)us_align_up((uintptr_t)m, HUGE);
    madvise(m, us_align_up(len, HUGE), MADV_HUGEPAGE); /* advice: without it the device has more to gather */
    return m;
}

int us_sys_dontneed(uint64_t addr, uint64_t len) {
    int err = inject(OP_MADVISE);
    if (err)
        return err;
    return madvise((void *)(uintptr_t)addr, len, MADV_DONTNEED) == 0 ? 0 : -errno;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
enum { LOOK_PAGES = 1 << (US_BLOCK_MAX_SHIFT - US_PAGE_SHIFT) };

bool us_sys_mapped(uint64_t addr, uint64_t len) {
    unsigned char there[LOOK_PAGES];
    for (uint64_t off = 0; off < len; off += sizeof there * US_PAGE) {
        const uint64_t part = us_min(len - off, sizeof there * US_PAGE);
        if (mincore((void *)(uintptr_t)(addr + off), part, there) != 0 && errno == ENOMEM)
            return false;
    }
    return true;
}

int us_sys_peek(uint64_t addr, void *to, uint64_t len, uint64_t *done) {
    const struct iovec there = {(void *)(uintptr_t)addr, len}, here = {to, len};
    *done = 0;
    const int err = inject(OP_PEEK);
    if (err)
        return err;
    const ssize_t n = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (n < 0)
        return -errno;
    *done = (uint64_t)n;
    return *done == len ? 0 : -EFAULT;
}

int us_sys_unshare(uint64_t addr, uint64_t len) {
    unsigned char there[LOOK_PAGES];
    const int err = inject(OP_UNSHARE);
    if (err)
        return err;
    if (len > sizeof there * US_PAGE || mincore((void *)(uintptr_t)addr, len, there) != 0)
        return -EINVAL;
    for (uint64_t k = 0; k < len / US_PAGE; k++) {
        if ((there[k] & 1) && madvise((void *)(uintptr_t)(addr + k * US_PAGE), US_PAGE, MADV_POPULATE_WRITE) != 0)
            return -errno;
    }
    return 0;
}

int us_sys_populate(uint64_t addr, uint64_t len, bool write) {
    const int advice = write ? MADV_POPULATE_WRITE : MADV_POPULATE_WRITE - 1;
    return madvise((void *)(uintptr_t)addr, len, advice) == 0 ? 0 : -errno;
}

bool us_sys_lacks(uint64_t addr, uint64_t len) {
    unsigned char there[LOOK_PAGES];
    for (uint64_t off = 0; off < len; off += sizeof there * US_PAGE) {
        const uint64_t part = us_min(len - off, sizeof there * US_PAGE);
        if (mincore((void *)(uintptr_t)(addr + off), part, there) != 0)
            return true;
        for (uint64_t k = 0; k < part / US_PAGE; k++) {
            if (!(there[k] & 1))
                return true;
        }
    }
    return false;
}

int us_sys_dontneed_vec(int pidfd, const struct iovec *iov, int n, uint64_t *done) {
    *done = 0;
    int err = inject(OP_VECTOR);
    if (err)
        return err;
    long r = syscall(SYS_process_madvise, pidfd, iov, (size_t)n, MADV_DONTNEED, 0);
    if (r < 0)
        return -errno;
    *done = (uint64_t)r;
    return 0;
}

int us_sys_thread(pthread_t *out, const pthread_attr_t *attr, void *(*run)(void *), void *arg) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int err = pthread_create(out, attr, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -err;
}

/* select() looks at no limit. Its sets are as large as the descriptors' numbers, and a thread's stack may be small. */
static int poll_by_select(struct pollfd *f, int n, int ms) {
    enum { WORD = 64 };
    int end = 0;
    for (int k = 0; k < n; k++) {
        f[k].revents = f[k].fd >= 0 && fcntl(f[k].fd, F_GETFD) < 0 ? POLLNVAL : 0;
        end = f[k].fd >= end ? f[k].fd + 1 : end;
    }
    for (int k = 0; k < n; k++) {
        if (f[k].revents != 0)
            return 1;
    }
    const uint64_t words = ((uint64_t)end + WORD - 1) / WORD, len = 2 * words * sizeof(uint64_t);
    uint64_t *in = us_sys_reserve(len), *out = in + words;
    if (in == NULL) {
        usleep(1000);
        return -1;
    }
    for (int k = 0; k < n; k++) {
        if (f[k].fd >= 0)
            (f[k].events & POLLOUT ? out : in)[f[k].fd / WORD] |= 1ull << f[k].fd % WORD;
    }
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    const long ready = syscall(SYS_pselect6, end, in, out, NULL, ms < 0 ? NULL : &t, NULL);
    const int err = errno;
    int some = 0;
    for (int k = 0; ready > 0 && k < n; k++) {
        if (f[k].fd >= 0 && ((f[k].events & POLLOUT ? out : in)[f[k].fd / WORD] >> f[k].fd % WORD & 1)) {
            f[k].revents = f[k].events;
            some++;
        }
    }
    munmap(in, len);
    errno = err;
    return ready < 0 ? -1 : some;
}

int us_sys_poll(struct pollfd *f, int n, int ms) {
    const int ready = poll(f, (nfds_t)n, ms);
    return ready < 0 && errno == EINVAL ? poll_by_select(f, n, ms) : ready;
}

int us_sys_pidfd(int pid) {
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    return fd < 0 ? -errno : fd;
}

int us_sys_eventfd_ring(int fd) {
    uint64_t one = 1;
    for (;;) {
        if (write(fd, &one, sizeof one) == (ssize_t)sizeof one)
            return 0;
        if (errno != EINTR) /* EAGAIN: it rings already */
            return errno == EAGAIN ? 0 : -errno;
    }
}

/* ---- files ------------------------------------------------------------------------------------------ */

/* struct statx up to what Linux 6.1 added for direct I/O (include/uapi/linux/stat.h). */
typedef struct us_statx {
    uint32_t mask, other[37];
    uint32_t dio_mem_align, dio_offset_align;
    uint32_t rest[24];
} us_statx_t;
_Static_assert(sizeof(us_statx_t) == 256, "the kernel's");
#define ASK_DIOALIGN 0x2000u

int us_dio_align(int fd, uint32_t *mem, uint32_t *off) {
    *mem = *off = 0;
    int err = inject(OP_DIO);
    if (err)
        return err;
    us_statx_t s = {0};
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, ASK_DIOALIGN, &s) != 0)
        return errno == ENOSYS || errno == EINVAL ? -ENODATA : -errno;
    if (!(s.mask & ASK_DIOALIGN))
        return -ENODATA;
    *mem = s.dio_mem_align;
    *off = s.dio_offset_align;
    return s.dio_offset_align == 0 ? -EOPNOTSUPP : 0;
}

/* For a device node fstatfs answers for the directory that it stands in. */
int us_in_ram(int fd) {
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0)
        return -errno;
    return S_ISREG(st.st_mode) &&
           (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC);
}

int64_t us_file_cached(int fd, uint64_t off, uint64_t len) {
    enum { PAGES = 4096 };
    unsigned char present[PAGES];
    int64_t n = 0;
    for (uint64_t at = 0; at < len; at += (uint64_t)PAGES * US_PAGE) {
        const uint64_t part = us_min(len - at, (uint64_t)PAGES * US_PAGE);
        void *m = mmap(NULL, part, PROT_READ, MAP_SHARED, fd, (off_t)(off + at));
        if (m == MAP_FAILED)
            return -errno;
        const int err = mincore(m, part, present) != 0 ? -errno : 0;
        munmap(m, part);
        if (err)
            return err;
        for (uint64_t i = 0; i < (part + US_PAGE - 1) / US_PAGE; i++)
            n += present[i] & 1;
    }
    return n * (int64_t)US_PAGE;
}

int us_file_reserve(int fd, uint64_t bytes) {
    int err = inject(OP_RESERVE);
    if (err)
        return err;
    while (fallocate(fd, 0, 0, (off_t)bytes) != 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}
