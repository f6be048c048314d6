/* SPDX-License-Identifier: MIT */
#include "space.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pool.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

static int make_memfd(void) {
    int fd = memfd_create("uswap-space", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before 6.3 */
        fd = memfd_create("uswap-space", MFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int us_space_create(uint64_t outbox, const uint64_t *pool_budget, uint64_t table_cap, us_layout_t *out) {
    us_layout_t l = {0};
    uint64_t at = us_align_up(sizeof(us_ring_t), US_PAGE);
    l.inline_off = at;
    at = us_align_up(at + sizeof(us_inline_t), US_PAGE);
    l.stats_off = at;
    at = us_align_up(at + sizeof(us_shared_stats_t), US_PAGE);
    l.outbox_off = at;
    l.outbox_len = us_align_up(outbox, US_PAGE);
    at += l.outbox_len;
    l.table_off = at;
    l.table_cap = table_cap;
    at = us_align_up(at + table_cap * sizeof(us_entry_t), US_PAGE);
    l.claim_off = at;
    at = us_align_up(at + table_cap * sizeof(us_claim_t), US_PAGE);
    for (int k = 0; k < US_POOLS; k++) {
        at = us_align_up(at, 2u << 20);
        l.pool_off[k] = at;
        l.pool_len[k] = pool_budget[k] == 0 ? 0 : us_pool_virtual(pool_budget[k]);
        at += l.pool_len[k];
    }
    l.size = at;
    *out = l;

    int fd = make_memfd();
    if (fd < 0)
        return fd;
    if (ftruncate(fd, (off_t)l.size) < 0)
        goto fail;
    us_ring_t *ring = mmap(NULL, sizeof(us_ring_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ring == MAP_FAILED)
        goto fail;
    ring->layout = l;
    ring->version = US_SPACE_VERSION;
    ring->magic = US_SPACE_MAGIC;
    munmap(ring, sizeof(us_ring_t));
    return fd;
fail:;
    int err = -errno;
    close(fd);
    return err;
}

static void *map_part(int fd, uint64_t off, uint64_t len, int prot) {
    void *m = mmap(NULL, len, prot, MAP_SHARED | MAP_NORESERVE, fd, (off_t)off);
    return m == MAP_FAILED ? NULL : m;
}

int us_space_map(us_space_t *s, int fd, bool pager) {
    memset(s, 0, sizeof *s);
    const int rw = PROT_READ | PROT_WRITE, mine = pager ? rw : PROT_READ;
    s->ring = map_part(fd, 0, sizeof(us_ring_t), rw);
    if (s->ring == NULL)
        return -errno;
    if (s->ring->magic != US_SPACE_MAGIC || s->ring->version != US_SPACE_VERSION) {
        us_space_unmap(s);
        return -EPROTO;
    }
    s->at = s->ring->layout;
    s->stats = map_part(fd, s->at.stats_off, sizeof(us_shared_stats_t), mine);
    s->outbox = map_part(fd, s->at.outbox_off, s->at.outbox_len, rw);
    s->in = map_part(fd, s->at.inline_off, sizeof(us_inline_t), rw);
    bool all = s->stats != NULL && s->outbox != NULL && s->in != NULL;
    if (all && pager) {
        s->table = map_part(fd, s->at.table_off, s->at.table_cap * sizeof(us_entry_t), rw);
        s->claim = map_part(fd, s->at.claim_off, s->at.table_cap * sizeof(us_claim_t), rw);
        all = s->table != NULL && s->claim != NULL;
    }
    for (int k = 0; pager && all && k < US_POOLS && s->at.pool_len[k] > 0; k++) {
        s->pool[k] = map_part(fd, s->at.pool_off[k], s->at.pool_len[k], rw);
        all = s->pool[k] != NULL;
    }
    /* A forked child has no use for them, and would keep their memory after this process is gone. */
    if (all && !pager) {
        madvise(s->ring, sizeof(us_ring_t), MADV_DONTFORK);
        madvise(s->stats, sizeof(us_shared_stats_t), MADV_DONTFORK);
        madvise(s->outbox, s->at.outbox_len, MADV_DONTFORK);
        madvise(s->in, sizeof(us_inline_t), MADV_DONTFORK);
    }
    if (!all) {
        int err = -errno;
        us_space_unmap(s);
        return err;
    }
    return 0;
}

/* Mapped without access it is not filled where all of the process's memory is locked, now and later. */
static void *map_late(int fd, uint64_t off, uint64_t len, int prot) {
    void *m = map_part(fd, off, len, PROT_NONE);
    if (m == NULL)
        return NULL;
    munlock(m, len);
    if (mprotect(m, len, prot) == 0 && madvise(m, len, MADV_DONTFORK) == 0) {
        madvise(m, len, MADV_DONTDUMP); /* a core of the client is large enough without */
        return m;
    }
    const int err = errno;
    munmap(m, len);
    errno = err;
    return NULL;
}

int us_space_map_inline(us_space_t *s, int fd) {
    if (s->claim != NULL)
        return 0;
    us_space_t t = *s;
    t.table = map_late(fd, s->at.table_off, s->at.table_cap * sizeof(us_entry_t), PROT_READ);
    t.claim = t.table == NULL
                  ? NULL
                  : map_late(fd, s->at.claim_off, s->at.table_cap * sizeof(us_claim_t), PROT_READ | PROT_WRITE);
    bool all = t.claim != NULL;
    for (int k = 0; all && k < US_POOLS && s->at.pool_len[k] > 0; k++) {
        t.pool[k] = map_late(fd, s->at.pool_off[k], s->at.pool_len[k], PROT_READ);
        all = t.pool[k] != NULL;
    }
    const int err = all ? 0 : -errno;
    if (all) {
        *s = t;
        return 0;
    }
    t.ring = NULL, t.stats = NULL, t.outbox = NULL, t.in = NULL;
    us_space_unmap(&t);
    return err;
}

uint32_t us_space_seek(const us_space_t *s, int fd, uint32_t i, uint32_t end) {
    if (i >= end)
        return end;
    const off_t at = lseek(fd, (off_t)(s->at.table_off + (uint64_t)i * sizeof(us_entry_t)), SEEK_DATA);
    if (at < 0) /* ENXIO: nothing behind; else it can't be told */
        return errno == ENXIO ? end : i;
    const uint64_t k = ((uint64_t)at - s->at.table_off) / sizeof(us_entry_t);
    return (uint32_t)us_min(us_max(k, i), end);
}

void us_space_unmap(us_space_t *s) {
    if (s->ring != NULL)
        munmap(s->ring, sizeof(us_ring_t));
    if (s->stats != NULL)
        munmap(s->stats, sizeof(us_shared_stats_t));
    if (s->outbox != NULL)
        munmap(s->outbox, s->at.outbox_len);
    if (s->in != NULL)
        munmap(s->in, sizeof(us_inline_t));
    if (s->table != NULL)
        munmap(s->table, s->at.table_cap * sizeof(us_entry_t));
    if (s->claim != NULL)
        munmap((void *)(uintptr_t)s->claim, s->at.table_cap * sizeof(us_claim_t));
    for (int k = 0; k < US_POOLS; k++) {
        if (s->pool[k] != NULL)
            munmap(s->pool[k], s->at.pool_len[k]);
    }
    memset(s, 0, sizeof *s);
}
