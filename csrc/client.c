/* SPDX-License-Identifier: MIT
 *
 * The client half: what Python calls in the process whose memory is paged.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mover.h"
#include "sys.h"
#include "watchdog.h"

enum {
    STAGING = 4 << 20, /* two of the largest blocks */
    HUGE_MIN = 4 << 20 /* from here on NumPy asks for huge pages */
};

struct us_client {
    us_space_t space;
    us_mover_t mover;
    us_watchdog_t watchdog;
};

static void close_all(const us_mover_t *m) {
    const int fd[] = {m->self, m->ksm, m->pagemap};
    for (size_t k = 0; k < sizeof fd / sizeof *fd; k++) {
        if (fd[k] >= 0)
            close(fd[k]);
    }
}

uint32_t us_version(void) { return US_SPACE_VERSION; }

int us_client_open(us_client_t **out, int uffd, int space_fd, int doorbell, int notify, int drop) {
    us_client_t *c = calloc(1, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    int err = us_space_map(&c->space, space_fd, false);
    if (err < 0)
        goto fail;
    void *staging = mmap(NULL, STAGING, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (staging == MAP_FAILED) {
        err = -errno;
        goto unmap;
    }
    us_mover_t *m = &c->mover;
    *m = (us_mover_t){.space = &c->space,
                      .uffd = uffd,
                      .doorbell = doorbell,
                      .notify = notify,
                      .self = us_sys_pidfd(getpid()),
                      .ksm = open("/sys/kernel/mm/ksm/pages_scanned", O_RDONLY | O_CLOEXEC),
                      .pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
                      .staging = (uint64_t)(uintptr_t)staging,
                      .staging_len = STAGING,
                      .vector = drop == US_DROP_VECTOR};
    err = us_client_register(c, m->staging, STAGING, 0, 1);
    if (err == 0)
        err = us_watchdog_start(&c->watchdog);
    if (err == 0)
        err = us_mover_start(m);
    if (err == 0) {
        *out = c;
        return 0;
    }
    us_watchdog_stop(&c->watchdog);
    close_all(m);
    munmap(staging, STAGING);
unmap:
    us_space_unmap(&c->space);
fail:
    free(c);
    return err;
}

int us_client_watch(us_client_t *c, int pidfd) {
    return us_watchdog_set(&c->watchdog, pidfd);
}

uint64_t us_client_staging(us_client_t *c, uint64_t *len) {
    *len = c->mover.staging_len;
    return c->mover.staging;
}

int us_client_tid(us_client_t *c) { return atomic_load(&c->mover.tid); }

int us_client_register(us_client_t *c, uint64_t addr, uint64_t len, uint64_t plain, int fresh) {
    void *at = (void *)(uintptr_t)addr, *rest = (void *)(uintptr_t)(addr + plain);
    if (fresh) { /* after mlockall(MCL_FUTURE) it is locked and populated, and could never leave */
        munlock(at, len);
        if (madvise(at, len, MADV_DONTNEED) < 0)
            return -errno;
    }
    /* A kernel without huge pages says EINVAL, and then there is nothing to keep off. */
    if (plain < len && madvise(rest, len - plain, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
        return -errno;
    if (fresh && len >= HUGE_MIN && plain > 0)
        madvise(at, plain, MADV_HUGEPAGE);
    if (madvise(at, len, MADV_DONTFORK) < 0)
        return -errno;
    /* A page that KSM merges loses its write protection, and the next write to it would not be seen. EINVAL: a kernel
     * without KSM. */
    if (madvise(at, len, MADV_UNMERGEABLE) < 0 && errno != EINVAL)
        return -errno;
    int err = 0;
    if (!fresh) {
        err = us_sys_register(c->mover.uffd, addr, len);
        if (err == 0 && plain > 0)
            err = us_sys_unregister(c->mover.uffd, addr, plain);
        if (err != 0) /* what is registered of it may not stay so */
            us_sys_unregister(c->mover.uffd, addr, len);
    } else if (plain < len) {
        err = us_sys_register(c->mover.uffd, addr + plain, len - plain);
    }
    if (err != 0)
        madvise(at, len, MADV_DOFORK);
    return err;
}

int us_client_unregister(us_client_t *c, uint64_t addr, uint64_t len, int hugepage) {
    int err = us_sys_unregister(c->mover.uffd, addr, len);
    if (err != 0)
        return err;
    madvise((void *)(uintptr_t)addr, len, MADV_DOFORK);
    if (hugepage)
        madvise((void *)(uintptr_t)addr, len, MADV_HUGEPAGE);
    return 0;
}

int us_client_states(us_client_t *c, uint64_t first, uint64_t n, uint8_t *out) {
    if (first + n > c->space.at.table_cap || first + n < first)
        return -EINVAL;
    for (uint64_t i = 0; i < n; i++)
        out[i] = __atomic_load_n(&c->space.table[first + i].state, __ATOMIC_RELAXED);
    return 0;
}

int us_client_tiers(us_client_t *c, uint64_t first, uint64_t n, uint8_t *out) {
    if (first + n > c->space.at.table_cap || first + n < first)
        return -EINVAL;
    for (uint64_t i = 0; i < n; i++) {
        const us_entry_t *e = &c->space.table[first + i];
        const uint8_t state = __atomic_load_n(&e->state, __ATOMIC_RELAXED);
        const bool out_there = state == US_POOLED || state == US_STORED;
        out[i] = out_there ? (uint8_t)(__atomic_load_n(&e->where, __ATOMIC_RELAXED) >> 56) : 0;
    }
    return 0;
}

int us_client_stats(us_client_t *c, us_stats_t *out) {
    const uint64_t *from = (const uint64_t *)&c->space.stats->s;
    uint64_t *to = (uint64_t *)out;
    for (size_t i = 0; i < sizeof *out / sizeof *to; i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    out->move_retries = atomic_load(&c->space.ring->move_retries);
    return 0;
}

uint64_t us_client_quantile(us_client_t *c, int kind, double q) {
    if (kind < 0 || kind >= US_KINDS)
        return 0;
    return us_hist_quantile(&c->space.stats->hist[kind], q);
}

int us_client_close(us_client_t *c) {
    us_watchdog_stop(&c->watchdog);
    us_mover_stop(&c->mover);
    us_sys_unregister(c->mover.uffd, c->mover.staging, c->mover.staging_len);
    munmap((void *)(uintptr_t)c->mover.staging, c->mover.staging_len);
    close_all(&c->mover);
    us_space_unmap(&c->space);
    free(c);
    return 0;
}

int us_child_cover(uint64_t addr, uint64_t len) {
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
    void *at = (void *)(uintptr_t)addr;
    void *m = mmap(at, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                   -1, 0);
    if (m == MAP_FAILED)
        return -errno;
    if (m != at) { /* a kernel before 4.17 takes it as a hint */
        munmap(m, len);
        return -EEXIST;
    }
    return 0;
}
