/* SPDX-License-Identifier: MIT
 *
 * A double of the core, for tests of the guard and the signal chain: memory whose faults are SIGBUS, without a pager.
 * double_new(blocks) gives memory of 4 KiB blocks; double_out() takes all of it that is not held out; double_at(i) is the
 * byte that the program stored there, wherever it lies. The limit of what can be held is in blocks.
 */
#include "inline.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK = 4096, MOST = 4096 };

_Atomic uint64_t us_inline_lo, us_inline_hi;
uint64_t double_faults, double_holds, double_releases;
uint64_t double_limit = MOST;

static int uffd = -1;
static uint64_t base, blocks, held_blocks;
static unsigned char *copies; /* what is out */
static uint32_t holds[MOST];
static bool out[MOST]; /* by the lock */
static _Atomic int lock;

/* The holder's faults are within its own critical section nowhere, and signals are masked in it. */
static void enter(sigset_t *old) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, old);
    while (atomic_exchange(&lock, 1))
        ;
}
static void leave(const sigset_t *old) {
    atomic_store(&lock, 0);
    pthread_sigmask(SIG_SETMASK, old, NULL);
}

static void bring(uint64_t i) {
    if (!out[i])
        return;
    struct uffdio_copy c = {.dst = base + i * BLOCK, .src = (uint64_t)(uintptr_t)(copies + i * BLOCK), .len = BLOCK};
    if (ioctl(uffd, UFFDIO_COPY, &c) < 0 && errno != EEXIST)
        __builtin_trap();
    out[i] = false;
}

/* 0: no userfaultfd here. The memory is all zeros. */
void *double_new(uint64_t n) {
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS};
    if (uffd < 0 || n > MOST || ioctl(uffd, UFFDIO_API, &api) < 0)
        return NULL;
    char *p = mmap(NULL, (n + 2) * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    copies = mmap(NULL, n * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || copies == MAP_FAILED)
        return NULL;
    p += BLOCK; /* a page of other memory on each side */
    struct uffdio_register reg = {.range = {(uint64_t)(uintptr_t)p, n * BLOCK}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (madvise(p, n * BLOCK, MADV_NOHUGEPAGE) < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
        return NULL;
    base = (uint64_t)(uintptr_t)p;
    blocks = n;
    for (uint64_t i = 0; i < n; i++)
        out[i] = true;
    us_inline_hi = base + n * BLOCK;
    us_inline_lo = base;
    return p;
}

/* How many blocks went out. */
uint64_t double_out(void) {
    uint64_t n = 0;
    sigset_t old;
    enter(&old);
    for (uint64_t i = 0; i < blocks; i++)
        if (!out[i] && holds[i] == 0) {
            memcpy(copies + i * BLOCK, (void *)(uintptr_t)(base + i * BLOCK), BLOCK);
            madvise((void *)(uintptr_t)(base + i * BLOCK), BLOCK, MADV_DONTNEED);
            out[i] = true;
            n++;
        }
    leave(&old);
    return n;
}

uint64_t double_held(void) { return held_blocks; }

bool us_inline_meets(uint64_t addr, uint64_t len) { return addr < base + blocks * BLOCK && addr + len > base; }

int64_t us_inline_hold(uint64_t addr, uint64_t len, bool write, uint64_t *since) {
    sigset_t old;
    (void)write;
    *since = 0;
    uint64_t end = addr + len, first = addr < base ? 0 : (addr - base) / BLOCK, i = first;
    enter(&old);
    for (; i < blocks && base + i * BLOCK < end; i++) {
        if (holds[i] == 0 && held_blocks == double_limit)
            break;
        held_blocks += holds[i]++ == 0;
        bring(i);
    }
    uint64_t safe = i < blocks && base + i * BLOCK < end ? base + i * BLOCK : end;
    int64_t n = safe <= addr || (i == first && safe < end) ? -ENOMEM : (int64_t)(safe - addr);
    if (n > 0)
        double_holds++;
    leave(&old);
    return n;
}

void us_inline_release(uint64_t addr, uint64_t len, uint64_t since) {
    sigset_t old;
    (void)since;
    enter(&old);
    for (uint64_t i = 0; i < blocks; i++)
        if (base + i * BLOCK < addr + len && base + (i + 1) * BLOCK > addr) {
            if (holds[i] == 0)
                __builtin_trap();
            held_blocks -= --holds[i] == 0;
        }
    double_releases++;
    leave(&old);
}

bool us_inline_fault(const siginfo_t *info, void *ucontext) {
    (void)ucontext;
    uint64_t at = (uint64_t)(uintptr_t)info->si_addr;
    if (info->si_code != BUS_ADRERR || at < base || at >= base + blocks * BLOCK)
        return false;
    while (atomic_exchange(&lock, 1))
        ;
    bring((at - base) / BLOCK);
    double_faults++;
    atomic_store(&lock, 0);
    return true;
}
