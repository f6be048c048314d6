/* SPDX-License-Identifier: MIT
 *
 * What the benchmark needs to be in C: one access timed, memory read at full speed, codecs by themselves,
 * and the floor that any userfaultfd pager has.
 */
#include "types.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codec.h"
#include "sys.h"

/* A write is one instruction that reads and writes, so that a page which is not there faults once, and
 * for writing, as in a[i] += 1. */
int us_touch(const uint64_t *addr, uint64_t n, int write, uint64_t *ns) {
    uint8_t nothing = 0;
    __asm__ volatile("" : "+q"(nothing)); /* or the compiler sees that 0 is added, and only reads */
    for (uint64_t i = 0; i < n; i++) {
        volatile uint8_t *p = (volatile uint8_t *)(uintptr_t)addr[i];
        uint64_t t = us_now_ns();
        if (write)
            __atomic_fetch_add(p, nothing, __ATOMIC_RELAXED);
        else
            (void)*p;
        ns[i] = us_now_ns() - t;
    }
    return 0;
}

/* Four sums, so that memory is waited for and not the adder. */
uint64_t us_sweep(uint64_t addr, uint64_t len, int write) {
    uint64_t *p = (uint64_t *)(uintptr_t)addr;
    const uint64_t n = len / sizeof *p & ~3ull;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    if (write) {
        for (uint64_t i = 0; i < n; i += 4) {
            a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3];
            p[i] ^= 1, p[i + 1] ^= 1, p[i + 2] ^= 1, p[i + 3] ^= 1;
        }
    } else {
        for (uint64_t i = 0; i < n; i += 4)
            a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3];
    }
    return a + b + c + d;
}

/* The block that is decompressed as the i-th: far from the one before, as blocks are that come back for
 * random faults, whose compressed bytes no cache holds. */
static uint64_t scattered(uint64_t i, uint64_t n) {
    const uint64_t step = 2654435761u; /* a prime above any n in use, so all of 0..n-1 are reached */
    return i * step % n;
}

int us_measure_codec(us_codec_run_t *run) {
    const uint64_t n = run->block == 0 ? 0 : run->len / run->block;
    if (n == 0 || n >= 1u << 31 || !us_codec_ready(run->codec))
        return -EINVAL;
    us_codec_ctx_t *ctx = NULL;
    int err = us_codec_ctx_new(&ctx, run->block);
    if (err != 0)
        return err;
    const uint32_t worth = run->block - run->block / 16;
    uint8_t *packed = malloc(run->len);
    uint64_t *at = malloc((n + 1) * sizeof *at);
    uint8_t *out = aligned_alloc(US_PAGE, run->block);
    err = -ENOMEM;
    if (packed == NULL || at == NULL || out == NULL)
        goto done;
    memset(packed, 0, run->len); /* the page faults are not to be measured */
    memset(out, 0, run->block);
    at[0] = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint8_t *src = (const uint8_t *)run->src + i * run->block;
        uint64_t t = us_now_ns();
        int len = us_compress(ctx, run->codec, run->level, src, run->block, packed + at[i], worth);
        run->compress_ns[i] = us_now_ns() - t;
        if (len < 0) {
            err = len;
            goto done;
        }
        if (len == 0) { /* kept as it is */
            memcpy(packed + at[i], src, run->block);
            len = (int)run->block;
        }
        at[i + 1] = at[i] + (uint64_t)len;
    }
    run->packed = at[n];
    for (uint64_t k = 0; k < n; k++) {
        const uint64_t i = run->scattered ? scattered(k, n) : k;
        const uint32_t len = (uint32_t)(at[i + 1] - at[i]);
        const int codec = len == run->block ? US_CODEC_NONE : run->codec;
        uint64_t t = us_now_ns();
        err = us_decompress(ctx, codec, packed + at[i], len, out, run->block);
        run->decompress_ns[k] = us_now_ns() - t;
        if (err == 0 && memcmp(out, (const uint8_t *)run->src + i * run->block, run->block) != 0)
            err = -EILSEQ;
        if (err != 0)
            goto done;
    }
done:
    free(out);
    free(at);
    free(packed);
    us_codec_ctx_free(ctx);
    return err;
}

typedef struct us_floor_handler {
    int uffd;
    cpu_set_t cpu;
    const uint8_t *page;
    uint32_t len;
    _Atomic int stop;
} us_floor_handler_t;

/* The handler of a pager that has nothing to do: it reads the message and copies a page that is ready. */
static void *floor_main(void *arg) {
    us_floor_handler_t *h = arg;
    sched_setaffinity(0, sizeof h->cpu, &h->cpu);
    while (us_atomic_load(&h->stop) == 0) {
        struct pollfd f = {.fd = h->uffd, .events = POLLIN};
        poll(&f, 1, 20);
        us_msg_t m;
        while (us_sys_read(h->uffd, &m, 1) == 1) {
            uint64_t done;
            us_sys_copy(h->uffd, m.addr & ~(uint64_t)(h->len - 1), h->page, h->len, false, &done);
        }
    }
    return NULL;
}

int us_floor(uint64_t n, uint32_t len, uint64_t *ns) {
    if (n == 0 || len < US_PAGE || (len & (len - 1)) != 0)
        return -EINVAL;
    us_uffd_t u;
    int err = us_uffd_open(US_UFFD_AUTO, 0, &u);
    if (err < 0)
        return err;
    cpu_set_t before;
    sched_getaffinity(0, sizeof before, &before);
    us_floor_handler_t h = {.uffd = u.fd, .len = len};
    const int cpu = sched_getcpu();
    CPU_ZERO(&h.cpu);
    CPU_SET((size_t)(cpu < 0 ? 0 : cpu), &h.cpu);
    sched_setaffinity(0, sizeof h.cpu, &h.cpu);

    const uint64_t size = n * len;
    uint8_t *page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *area = mmap(NULL, size + len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    pthread_t thread;
    err = -ENOMEM;
    if (page == MAP_FAILED || area == MAP_FAILED)
        goto out;
    memset(page, 1, len);
    h.page = page;
    uint8_t *from = (uint8_t *)us_align_up((uint64_t)(uintptr_t)area, len);
    madvise(from, size, MADV_NOHUGEPAGE);
    err = us_sys_register(u.fd, (uint64_t)(uintptr_t)from, size);
    if (err == 0)
        err = -pthread_create(&thread, NULL, floor_main, &h);
    if (err == 0) {
        for (uint64_t i = 0; i < n; i++) {
            volatile uint8_t *p = from + i * len;
            uint64_t t = us_now_ns();
            (void)*p;
            ns[i] = us_now_ns() - t;
        }
        us_atomic_store(&h.stop, 1);
        pthread_join(thread, NULL);
    }
out:
    if (page != MAP_FAILED)
        munmap(page, len);
    if (area != MAP_FAILED)
        munmap(area, size + len);
    close(u.fd);
    sched_setaffinity(0, sizeof before, &before);
    return err;
}
