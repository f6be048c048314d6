/* SPDX-License-Identifier: MIT
 *
 * A userfaultfd pager as one writes it at first, for `uswap bench peers` to show what uswap's design brings.
 * One thread reads one message, makes room for one page of 4 KiB, swaps one page in, and sleeps. First in,
 * first out; no batches, no read-ahead, no worker, no say in which CPU it runs on; compressed copies come
 * from malloc. The codec is uswap's own, so that it is not what makes the difference.
 *
 * It runs in the process whose memory it pages, without the GIL, so a thread that holds the GIL may fault.
 *
 * Why no write is lost: a page is write-protected before it is compressed. A write in between is a fault that
 * waits in the descriptor's queue; when it is read, the page has gone, and a wake makes it a fault of a page
 * that is missing.
 */
#include "types.h"

#include <poll.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codec.h"
#include "sys.h"

enum { POLL_MS = 20, COPY_TRIES = 100000 };

typedef struct us_naive_page {
    void *copy;   /* malloc'ed; NULL: resident, or never touched */
    uint32_t len; /* bytes of it; US_PAGE: as it was */
    uint8_t resident;
} us_naive_page_t;

struct us_naive {
    int uffd, codec;
    uint8_t *area;
    uint64_t pages, room; /* pages; of these resident, at most */
    us_naive_page_t *page;
    uint32_t *queue; /* of resident pages, a ring of room entries, oldest at `oldest` */
    uint64_t oldest, resident;
    us_codec_ctx_t *ctx;
    uint8_t *buffer; /* US_PAGE, aligned */
    pthread_t thread;
    _Atomic int stop, error;
    _Atomic uint64_t faults, evicted, kept_raw, kept;
};

static void failed(us_naive_t *n, int err) {
    int none = 0;
    us_atomic_compare_exchange_strong(&n->error, &none, err);
}

static uint64_t address(const us_naive_t *n, uint64_t i) { return (uint64_t)(uintptr_t)n->area + i * US_PAGE; }

/* What a copy takes of RAM, the allocator's own word before it included. */
static uint64_t taken(void *copy) { return malloc_usable_size(copy) + sizeof(size_t); }

/* The oldest page leaves. */
static int evict(us_naive_t *n) {
    const uint32_t i = n->queue[n->oldest % n->room];
    us_naive_page_t *p = &n->page[i];
    int err = us_sys_protect(n->uffd, address(n, i), US_PAGE, true);
    if (err != 0)
        return err;
    int len =
        us_compress(n->ctx, n->codec, 0, n->area + (uint64_t)i * US_PAGE, US_PAGE, n->buffer, US_PAGE - US_PAGE / 16);
    p->len = len > 0 ? (uint32_t)len : US_PAGE;
    p->copy = len < 0 ? NULL : malloc(p->len);
    if (p->copy == NULL)
        return len < 0 ? len : -ENOMEM;
    memcpy(p->copy, len > 0 ? n->buffer : n->area + (uint64_t)i * US_PAGE, p->len);
    err = us_sys_dontneed(address(n, i), US_PAGE);
    if (err != 0)
        return err;
    p->resident = 0;
    n->oldest++, n->resident--;
    us_atomic_fetch_add(&n->evicted, 1);
    us_atomic_fetch_add(&n->kept_raw, US_PAGE);
    us_atomic_fetch_add(&n->kept, taken(p->copy));
    return us_sys_wake(n->uffd, address(n, i), US_PAGE);
}

static int swap_in(us_naive_t *n, uint64_t i) {
    us_naive_page_t *p = &n->page[i];
    int err = 0;
    if (p->copy == NULL)
        memset(n->buffer, 0, US_PAGE);
    else if (p->len == US_PAGE)
        memcpy(n->buffer, p->copy, US_PAGE);
    else
        err = us_decompress(n->ctx, n->codec, p->copy, p->len, n->buffer, US_PAGE);
    if (err != 0)
        return err;
    uint64_t done;
    for (int tries = 0; tries < COPY_TRIES; tries++) {
        err = us_sys_copy(n->uffd, address(n, i), n->buffer, US_PAGE, false, &done);
        if (err != -EAGAIN)
            break;
        sched_yield();
    }
    if (err != 0)
        return err;
    if (p->copy != NULL) {
        us_atomic_fetch_sub(&n->kept_raw, US_PAGE);
        us_atomic_fetch_sub(&n->kept, taken(p->copy));
        free(p->copy);
        p->copy = NULL;
    }
    p->resident = 1;
    n->queue[(n->oldest + n->resident++) % n->room] = (uint32_t)i;
    return 0;
}

static int serve(us_naive_t *n, const us_msg_t *m) {
    const uint64_t i = (m->addr - address(n, 0)) / US_PAGE;
    if (i >= n->pages)
        return -EFAULT;
    us_atomic_fetch_add(&n->faults, 1);
    if (n->page[i].resident) /* another thread's fault swapped it in */
        return us_sys_wake(n->uffd, address(n, i), US_PAGE);
    int err = n->resident == n->room ? evict(n) : 0;
    return err != 0 ? err : swap_in(n, i);
}

static void *naive_main(void *arg) {
    us_naive_t *n = arg;
    while (us_atomic_load(&n->stop) == 0) {
        struct pollfd f = {.fd = n->uffd, .events = POLLIN};
        poll(&f, 1, POLL_MS);
        us_msg_t m;
        while (us_sys_read(n->uffd, &m, 1) == 1) {
            int err = serve(n, &m);
            if (err != 0) { /* the thread stands still, and the benchmark's time limit says so */
                failed(n, err);
                return NULL;
            }
        }
    }
    return NULL;
}

int us_naive_open(us_naive_t **out, uint64_t bytes, uint64_t limit, int codec) {
    const uint64_t pages = bytes / US_PAGE, room = us_min(limit / US_PAGE, pages);
    if (room == 0 || pages > UINT32_MAX || bytes % US_PAGE != 0 || !us_codec_ready(codec))
        return -EINVAL;
    us_uffd_t u;
    int err = us_uffd_open(US_UFFD_AUTO, 0, &u);
    if (err < 0)
        return err;
    us_naive_t *n = calloc(1, sizeof *n);
    if (n == NULL) {
        close(u.fd);
        return -ENOMEM;
    }
    n->uffd = u.fd, n->codec = codec, n->pages = pages, n->room = room;
    n->page = calloc(pages, sizeof *n->page);
    n->queue = calloc(room, sizeof *n->queue);
    n->buffer = aligned_alloc(US_PAGE, US_PAGE);
    n->area = us_sys_reserve(bytes);
    err = n->page == NULL || n->queue == NULL || n->buffer == NULL || n->area == NULL ? -ENOMEM : 0;
    if (err == 0)
        err = us_codec_ctx_new(&n->ctx, US_PAGE);
    if (err == 0) {
        madvise(n->area, bytes, MADV_NOHUGEPAGE);
        err = us_sys_register(n->uffd, address(n, 0), bytes);
    }
    if (err == 0) {
        err = us_sys_thread(&n->thread, NULL, naive_main, n);
    }
    if (err != 0) {
        n->stop = 1;
        us_naive_close(n);
        return err;
    }
    *out = n;
    return 0;
}

uint64_t us_naive_address(const us_naive_t *n) { return address(n, 0); }

int us_naive_stats(us_naive_t *n, us_naive_stats_t *out) {
    *out = (us_naive_stats_t){
        .faults = us_atomic_load(&n->faults),
        .evicted = us_atomic_load(&n->evicted),
        .kept_raw = us_atomic_load(&n->kept_raw),
        .kept = us_atomic_load(&n->kept),
    };
    return us_atomic_load(&n->error);
}

void us_naive_close(us_naive_t *n) {
    if (us_atomic_exchange(&n->stop, 1) == 0)
        pthread_join(n->thread, NULL);
    if (n->area != NULL)
        munmap(n->area, n->pages * US_PAGE);
    for (uint64_t i = 0; n->page != NULL && i < n->pages; i++)
        free(n->page[i].copy);
    us_codec_ctx_free(n->ctx);
    free(n->page);
    free(n->queue);
    free(n->buffer);
    close(n->uffd);
    free(n);
}
