/* SPDX-License-Identifier: MIT */
/*
 * Tests of the I/O engines: io_test FILE [seed], or io_test bench FILE for their speed beside plain pread
 * and pwrite. FILE is made and removed. Exit 0 when all holds; else it says what did not, and where.
 */
#define _GNU_SOURCE
#include "../../csrc/io.h"
#include "../../csrc/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t seed_used;
static const char *engine_name = "";

#define CHECK(x)                                                                                            \
    do {                                                                                                    \
        if (!(x)) {                                                                                         \
            fprintf(stderr, "%s:%d: not so: %s (%s, seed %" PRIu64 ", errno %d)\n", __FILE__, __LINE__, #x, \
                    engine_name, seed_used, errno);                                                         \
            exit(1);                                                                                        \
        }                                                                                                   \
    } while (0)

enum { PAGE = 4096, BLOCK = 64 << 10, BLOCKS = 64, READS = 6, WRITES = 10 };

static uint32_t mixes; /* requests of a test_mix */

static uint64_t rng;

static uint64_t rnd(void) { /* splitmix64 */
    uint64_t z = rng += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint32_t below(uint32_t n) { return (uint32_t)(rnd() % n); }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *pages(size_t len) {
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

/* ---- one file, one engine, a loop that sleeps as the pager's does --------------------------------- */

typedef struct bed {
    us_io_t *io;
    int fd, event;
    _Atomic uint32_t asleep;
} bed_t;

/* direct: in, whether O_DIRECT is wanted; out, whether it is had. */
static int open_file(const char *path, bool *direct) {
    int fd = *direct ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600) : -1;
    *direct = fd >= 0;
    if (fd < 0)
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(unlink(path) == 0);
    return fd;
}

static int bed_open(bed_t *b, int fd, int engine, int threads, unsigned reads, unsigned writes) {
    b->fd = fd;
    b->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(b->event >= 0);
    atomic_store(&b->asleep, 0);
    int err = us_io_open(&b->io, fd, engine, threads, reads, writes, b->event, &b->asleep);
    if (err != 0)
        close(b->event);
    return err;
}

static void bed_close(bed_t *b) {
    us_io_close(b->io);
    close(b->event);
}

/* A completion that is never rung ends the test: nothing here may take 20 seconds. */
static us_io_req_t *wait_one(bed_t *b) {
    for (;;) {
        us_io_req_t *q = us_io_done(b->io);
        if (q != NULL)
            return q;
        atomic_store(&b->asleep, 1);
        if (!us_io_ready(b->io)) {
            struct pollfd p = {.fd = b->event, .events = POLLIN};
            int n = poll(&p, 1, 20000);
            CHECK(n == 1 || (n < 0 && errno == EINTR));
        }
        atomic_store(&b->asleep, 0);
        uint64_t rung;
        CHECK(read(b->event, &rung, sizeof rung) == sizeof rung || errno == EAGAIN);
    }
}

static int run_one(bed_t *b, us_io_req_t *q) {
    CHECK(us_io_submit(b->io, q) == 0);
    CHECK(us_io_flush(b->io) == 0);
    CHECK(wait_one(b) == q);
    return q->res;
}

/* ---- contents ------------------------------------------------------------------------------------- */

static void fill(uint8_t *buf, uint32_t len, uint64_t off, uint32_t version) {
    for (uint32_t i = 0; i < len; i += 8) {
        uint64_t word = (off + i) * 0x9e3779b97f4a7c15ull + version;
        memcpy(buf + i, &word, 8);
    }
}

static uint64_t wrong_bits(const uint8_t *buf, uint32_t len, uint64_t off, uint32_t version) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < len; i += 8) {
        uint64_t word;
        memcpy(&word, buf + i, 8);
        n += (uint64_t)__builtin_popcountll(word ^ ((off + i) * 0x9e3779b97f4a7c15ull + version));
    }
    return n;
}

/* ---- tests ---------------------------------------------------------------------------------------- */

/* Reads and writes of random spans, many in flight, never two on one block: what comes back is what was
 * written last. With every > 0, that many-th ones are cut short, or fail; failed writes change nothing. */
static void test_mix(int fd, int engine, int threads, int err, uint32_t every) {
    static uint32_t version[BLOCKS][BLOCK / PAGE];
    static us_io_req_t req[READS + WRITES];
    bool busy[BLOCKS] = {false};
    uint32_t failed = 0, idle[READS + WRITES], idle_n = 0;
    bed_t b;
    CHECK(bed_open(&b, fd, engine, threads, READS, WRITES) == 0);
    CHECK(us_io_engine(b.io) == engine);
    uint8_t *mem = pages((size_t)BLOCK * (READS + WRITES));
    for (uint32_t i = 0; i < READS + WRITES; i++)
        idle[idle_n++] = i;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        memset(version[i], 0, sizeof version[i]);
        fill(mem, BLOCK, (uint64_t)i * BLOCK, 0);
        us_io_req_t q = {.op = US_IO_WRITE, .buf = mem, .off = (uint64_t)i * BLOCK, .len = BLOCK};
        CHECK(run_one(&b, &q) == 0);
    }
    if (every > 0) {
        CHECK(us_io_inject(b.io, US_IO_READ, err, every) == 0);
        CHECK(us_io_inject(b.io, US_IO_WRITE, err, every) == 0);
    }
    uint32_t version_next = 1, started = 0;
    while (started < mixes || idle_n < READS + WRITES) {
        for (uint32_t n = below(8); n > 0 && started < mixes && idle_n > 0; n--) {
            uint32_t block = below(BLOCKS), first = below(BLOCK / PAGE);
            uint32_t len = (1 + below(BLOCK / PAGE - first)) * PAGE;
            if (busy[block])
                continue;
            uint32_t i = idle[idle_n - 1];
            us_io_req_t *q = &req[i];
            *q = (us_io_req_t){.op = (uint8_t)below(2),
                               .buf = mem + (size_t)i * BLOCK,
                               .len = len,
                               .off = (uint64_t)block * BLOCK + first * PAGE,
                               .user = {i, block, first}};
            if (q->op == US_IO_WRITE) {
                q->user[3] = version_next++;
                fill(q->buf, len, q->off, (uint32_t)q->user[3]);
            } else {
                memset(q->buf, 0xee, len);
            }
            unsigned in_flight = us_io_in_flight(b.io, q->op);
            int r = us_io_submit(b.io, q);
            CHECK(r == (in_flight == (q->op == US_IO_READ ? READS : WRITES) ? -EAGAIN : 0));
            if (r != 0)
                continue;
            idle_n--;
            busy[block] = true;
            started++;
        }
        CHECK(us_io_flush(b.io) == 0);
        if (idle_n == READS + WRITES)
            continue;
        us_io_req_t *q = wait_one(&b);
        uint32_t block = (uint32_t)q->user[1], first = (uint32_t)q->user[2];
        busy[block] = false;
        idle[idle_n++] = (uint32_t)q->user[0];
        if (q->res != 0) {
            CHECK(every > 0 && q->res == -err);
            failed++;
            continue;
        }
        uint64_t wrong = 0;
        for (uint32_t p = 0; p < q->len / PAGE; p++) {
            uint32_t *v = &version[block][first + p];
            if (q->op == US_IO_WRITE)
                *v = (uint32_t)q->user[3];
            else
                wrong += wrong_bits((uint8_t *)q->buf + p * PAGE, PAGE, q->off + p * PAGE, *v);
        }
        CHECK(wrong == 0);
    }
    CHECK(us_io_done(b.io) == NULL && us_io_in_flight(b.io, US_IO_READ) == 0);
    if (every > 0 && err < US_IO_SHORT)
        CHECK(failed >= mixes / every - 2 && failed <= mixes / every);
    else
        CHECK(failed == 0);
    bed_close(&b);
    munmap(mem, (size_t)BLOCK * (READS + WRITES));
}

/* Writes that take all their slots leave the reads theirs; one more of either is refused, and one that is
 * given back makes room again. */
static void test_slots(int fd, int engine) {
    bed_t b;
    CHECK(bed_open(&b, fd, engine, 2, 2, 3) == 0);
    uint8_t *mem = pages(6 * PAGE);
    us_io_req_t req[6];
    for (unsigned i = 0; i < 6; i++)
        req[i] = (us_io_req_t){.op = i < 4 ? US_IO_WRITE : US_IO_READ,
                               .buf = mem + i * PAGE,
                               .len = PAGE,
                               .off = i < 4 ? i * PAGE : (uint64_t)8 * PAGE};
    for (unsigned i = 0; i < 3; i++)
        CHECK(us_io_submit(b.io, &req[i]) == 0);
    CHECK(us_io_submit(b.io, &req[3]) == -EAGAIN);
    CHECK(us_io_submit(b.io, &req[4]) == 0 && us_io_submit(b.io, &req[5]) == 0);
    us_io_req_t more = req[5];
    CHECK(us_io_submit(b.io, &more) == -EAGAIN);
    CHECK(us_io_in_flight(b.io, US_IO_READ) == 2 && us_io_in_flight(b.io, US_IO_WRITE) == 3);
    CHECK(us_io_flush(b.io) == 0);
    for (unsigned i = 0; i < 5; i++)
        CHECK(wait_one(&b)->res == 0);
    CHECK(us_io_in_flight(b.io, US_IO_READ) == 0 && us_io_in_flight(b.io, US_IO_WRITE) == 0);
    CHECK(run_one(&b, &req[3]) == 0);
    more.len = 0;
    CHECK(us_io_submit(b.io, &more) == -EINVAL);
    more = (us_io_req_t){.op = 2, .buf = mem, .len = PAGE};
    CHECK(us_io_submit(b.io, &more) == -EINVAL);
    bed_close(&b);
    munmap(mem, 6 * PAGE);
}

/* In place of what was injected before. */
static void inject_only(us_io_t *io, int op, int err, uint32_t every) {
    CHECK(us_io_inject(io, op, EIO, 0) == 0);
    CHECK(us_io_inject(io, op, err, every) == 0);
}

/* The kernel's own failures, and the injected ones, are seen by their request alone. */
static void test_bad_days(int fd, int engine) {
    bed_t b;
    CHECK(bed_open(&b, fd, engine, 0, 4, 4) == 0);
    uint8_t *mem = pages(BLOCK);
    us_io_req_t w = {.op = US_IO_WRITE, .buf = mem, .len = BLOCK};
    us_io_req_t r = {.op = US_IO_READ, .buf = mem, .len = BLOCK};
    fill(mem, BLOCK, 0, 7);
    CHECK(run_one(&b, &w) == 0);
    uint64_t end = (uint64_t)lseek(fd, 0, SEEK_END);
    r.off = end - 2 * PAGE;
    CHECK(run_one(&b, &r) == -EIO); /* ends early */
    r.off = end;
    CHECK(run_one(&b, &r) == -EIO);
    CHECK(ftruncate(fd, (off_t)end + 100) == 0); /* a tail that is no page */
    r.off = end - PAGE;
    CHECK(run_one(&b, &r) == -EIO);
    CHECK(ftruncate(fd, (off_t)end) == 0);
    r.off = 0;

    inject_only(b.io, US_IO_READ, US_IO_FLIP, 2);
    for (int i = 0; i < 8; i++) {
        memset(mem, 0, BLOCK);
        CHECK(run_one(&b, &r) == 0);
        CHECK(wrong_bits(mem, BLOCK, 0, 7) == (uint64_t)(i % 2));
    }
    CHECK(us_io_injected(b.io, US_IO_READ, US_IO_FLIP) == 4);
    CHECK(us_io_inject(b.io, US_IO_READ, US_IO_SHORT, 1) == -EEXIST);
    inject_only(b.io, US_IO_READ, US_IO_SHORT, 1);
    for (uint32_t len = PAGE; len <= BLOCK; len += PAGE) {
        memset(mem, 0, BLOCK);
        r.len = len;
        CHECK(run_one(&b, &r) == 0 && r.done_bytes == len && r.tries == 1);
        CHECK(wrong_bits(mem, len, 0, 7) == 0);
    }
    CHECK(us_io_injected(b.io, US_IO_READ, US_IO_SHORT) == BLOCK / PAGE);
    inject_only(b.io, US_IO_READ, EIO, 1);
    memset(mem, 0xaa, BLOCK);
    CHECK(run_one(&b, &r) == -EIO && mem[0] == 0xaa);
    CHECK(us_io_injected(b.io, US_IO_READ, EIO) == 1);
    inject_only(b.io, US_IO_READ, EAGAIN, 1); /* retried, but not for ever */
    CHECK(run_one(&b, &r) == -EAGAIN && r.tries > 1);
    CHECK(us_io_injected(b.io, US_IO_READ, 0) == 1ull + r.tries);
    CHECK(us_io_inject(b.io, US_IO_READ, EIO, 0) == 0);
    CHECK(us_io_inject(b.io, US_IO_WRITE, ENOSPC, 1) == 0);
    CHECK(run_one(&b, &w) == -ENOSPC && us_io_injected(b.io, US_IO_WRITE, ENOSPC) == 1);
    CHECK(us_io_inject(b.io, US_IO_WRITE, US_IO_FLIP, 1) == -EINVAL);
    CHECK(run_one(&b, &r) == 0 && wrong_bits(mem, BLOCK, 0, 7) == 0); /* nothing was written */
    bed_close(&b);

    int full = open("/dev/full", O_RDWR | O_CLOEXEC);
    CHECK(full >= 0 && bed_open(&b, full, engine, 1, 1, 1) == 0);
    w.len = PAGE;
    CHECK(run_one(&b, &w) == -ENOSPC);
    bed_close(&b);
    close(full);
    munmap(mem, BLOCK);
}

/* Closing waits: every write is in the file, flushed or not, resumed or not, and reads have their bytes. */
static void test_close(int fd, int engine) {
    enum { N = 32 };
    static us_io_req_t req[2 * N];
    uint8_t *mem = pages((size_t)N * 2 * BLOCK), *seen = pages(BLOCK);
    for (uint32_t round = 0; round < 20; round++) {
        bed_t b;
        CHECK(bed_open(&b, fd, engine, (int)(1 + below(4)), N, N) == 0);
        CHECK(us_io_inject(b.io, US_IO_WRITE, US_IO_SHORT, 3) == 0);
        for (uint32_t i = 0; i < N; i++) {
            fill(mem + (size_t)i * BLOCK, BLOCK, (uint64_t)i * BLOCK, round);
            req[i] = (us_io_req_t){
                .op = US_IO_WRITE, .buf = mem + (size_t)i * BLOCK, .len = BLOCK, .off = (uint64_t)i * BLOCK};
            CHECK(us_io_submit(b.io, &req[i]) == 0);
            req[N + i] = (us_io_req_t){
                .op = US_IO_READ, .buf = mem + (size_t)(N + i) * BLOCK, .len = BLOCK, .off = (uint64_t)(N + i) * BLOCK};
            CHECK(us_io_submit(b.io, &req[N + i]) == 0);
            if (round % 2 == 0 && i == N / 2)
                CHECK(us_io_flush(b.io) == 0);
        }
        bed_close(&b);
        for (uint32_t i = 0; i < N; i++) {
            CHECK(req[i].res == 0 && req[N + i].res == 0);
            CHECK(pread(fd, seen, BLOCK, (off_t)i * BLOCK) == BLOCK);
            CHECK(wrong_bits(seen, BLOCK, (uint64_t)i * BLOCK, round) == 0);
        }
    }
    munmap(mem, (size_t)N * 2 * BLOCK);
    munmap(seen, BLOCK);
}

/* Without O_DIRECT: neither writes nor reads leave anything in the page cache, whoever reads beside them, nor
 * does the kernel read ahead of them. The same by plain calls leaves all of it there. */
static void test_cache(int fd, int engine) {
    enum { SEGMENT = 1 << 20, SEGMENTS = 16, N = 4, ROUNDS = 600 };
    const uint64_t all = (uint64_t)SEGMENT * SEGMENTS;
    static us_io_req_t req[N];
    uint8_t *mem = pages((size_t)N * SEGMENT);
    const bool in_ram = us_in_ram(fd) == 1;
    for (uint64_t off = 0; off < all; off += SEGMENT) {
        fill(mem, SEGMENT, off, 1);
        CHECK(pwrite(fd, mem, SEGMENT, (off_t)off) == SEGMENT);
    }
    CHECK(us_file_cached(fd, 0, all) == (int64_t)all);
    bed_t b;
    CHECK(bed_open(&b, fd, engine, 2, N, N) == 0);
    for (uint32_t i = 0; i < SEGMENTS; i += N) {
        for (uint32_t k = 0; k < N; k++) {
            uint8_t *buf = mem + (size_t)k * SEGMENT;
            req[k] = (us_io_req_t){.op = US_IO_WRITE, .buf = buf, .len = SEGMENT, .off = (uint64_t)(i + k) * SEGMENT};
            fill(buf, SEGMENT, req[k].off, 2);
            CHECK(us_io_submit(b.io, &req[k]) == 0);
        }
        CHECK(us_io_flush(b.io) == 0);
        for (uint32_t k = 0; k < N; k++)
            CHECK(wait_one(&b)->res == 0);
    }
    bed_close(&b);
    CHECK(us_file_cached(fd, 0, all) == (in_ram ? (int64_t)all : 0));

    CHECK(bed_open(&b, fd, engine, 2, N, N) == 0);
    for (uint32_t n = 0; n < ROUNDS; n += N) {
        for (uint32_t k = 0; k < N; k++) { /* neighbours and the same page twice among them */
            uint32_t len = (1 + below(5)) * PAGE;
            uint64_t off = (uint64_t)below(n % 8 ? 64 : (uint32_t)((all - 5 * PAGE) / PAGE)) * PAGE;
            req[k] = (us_io_req_t){.op = US_IO_READ, .buf = mem + (size_t)k * SEGMENT, .len = len, .off = off};
            CHECK(us_io_submit(b.io, &req[k]) == 0);
        }
        CHECK(us_io_flush(b.io) == 0);
        for (uint32_t k = 0; k < N; k++) {
            us_io_req_t *q = wait_one(&b);
            CHECK(q->res == 0 && wrong_bits(q->buf, q->len, q->off, 2) == 0);
        }
    }
    for (uint64_t off = 0; off < SEGMENT; off += 4 * PAGE) { /* a run, which would be read ahead of */
        us_io_req_t q = {.op = US_IO_READ, .buf = mem, .len = 4 * PAGE, .off = off};
        CHECK(run_one(&b, &q) == 0);
    }
    bed_close(&b);
    CHECK(us_file_cached(fd, 0, all) == (in_ram ? (int64_t)all : 0));
    munmap(mem, (size_t)N * SEGMENT);
}

/* What fails on its way from the page cache to the device fails its write, and those under way beside it,
 * since it may have been theirs. Later ones are good. */
static void test_late(int fd, int engine) {
    enum { N = 4 };
    bed_t b;
    CHECK(bed_open(&b, fd, engine, 1, N, N) == 0);
    CHECK(us_io_inject(b.io, US_IO_READ, US_IO_LATE, 1) == -EINVAL);
    uint8_t *mem = pages(BLOCK);
    us_io_req_t req[N];
    for (int round = 0; round < 3; round++) {
        const bool good = us_in_ram(fd) == 1; /* nothing is on its way */
        us_io_req_t w = {.op = US_IO_WRITE, .buf = mem, .len = BLOCK};
        for (uint32_t k = 0; k < N; k++) {
            req[k] = (us_io_req_t){.op = US_IO_WRITE, .buf = mem, .len = BLOCK, .off = (uint64_t)k * BLOCK};
            if (k == 0) /* the first of them */
                CHECK(us_io_inject(b.io, US_IO_WRITE, US_IO_LATE, 1) == 0);
            CHECK(us_io_submit(b.io, &req[k]) == 0);
            CHECK(us_io_inject(b.io, US_IO_WRITE, US_IO_LATE, 0) == 0);
        }
        CHECK(us_io_flush(b.io) == 0);
        for (uint32_t k = 0; k < N; k++)
            wait_one(&b);
        CHECK(req[0].res == (good ? 0 : -EIO));
        for (uint32_t k = 1; k < N; k++) /* one thread does them in order */
            CHECK(req[k].res == req[0].res || (engine == US_IO_URING && req[k].res == 0));
        CHECK(run_one(&b, &w) == 0);
    }
    bed_close(&b);
    munmap(mem, BLOCK);
}

static void test_open(int fd, int engine) {
    us_io_t *io;
    CHECK(us_io_open(&io, fd, 3, 0, 1, 1, -1, NULL) == -EINVAL && io == NULL);
    CHECK(us_io_open(&io, fd, engine, -1, 1, 1, -1, NULL) == -EINVAL);
    CHECK(us_io_open(&io, fd, engine, 0, 0, 1, -1, NULL) == -EINVAL);
    CHECK(us_io_open(&io, fd, engine, 0, 1, US_IO_SLOTS_MAX + 1, -1, NULL) == -EINVAL);
    CHECK(us_io_open(&io, fd, US_IO_AUTO, 0, 5, 9, -1, NULL) == 0);
    CHECK(us_io_engine(io) == US_IO_URING || us_io_engine(io) == US_IO_THREADS);
    CHECK(us_io_flush(io) == 0 && us_io_done(io) == NULL && !us_io_ready(io));
    us_io_close(io);
    us_io_close(NULL);
}

static int test(const char *path) {
    static const int engines[] = {US_IO_URING, US_IO_THREADS};
    for (int e = 0; e < 4; e++) {
        const int engine = engines[e / 2];
        bool direct = e % 2 == 0;
        mixes = direct ? 3000 : 700; /* each write is waited for by the disk */
        engine_name = engine == US_IO_URING ? "io_uring" : "threads";
        int fd = open_file(path, &direct);
        us_io_t *io;
        int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        CHECK(event >= 0);
        int err = us_io_open(&io, fd, engine, 0, 1, 1, event, NULL);
        if (engine == US_IO_URING && (err == -EPERM || err == -ENOSYS)) {
            CHECK(us_io_open(&io, fd, US_IO_AUTO, 0, 1, 1, event, NULL) == 0);
            CHECK(us_io_engine(io) == US_IO_THREADS);
            us_io_close(io);
            close(event);
            close(fd);
            printf("io_uring: refused (%s)\n", strerror(-err));
            continue;
        }
        CHECK(err == 0);
        us_io_close(io);
        close(event);
        test_open(fd, engine);
        for (int threads = 1; threads <= (engine == US_IO_THREADS ? 4 : 1); threads++)
            test_mix(fd, engine, threads, 0, 0);
        test_mix(fd, engine, 4, US_IO_SHORT, 3);
        test_mix(fd, engine, 4, EIO, 7);
        test_slots(fd, engine);
        test_bad_days(fd, engine);
        test_close(fd, engine);
        close(fd);
        if (!direct) {
            fd = open_file(path, &direct);
            test_cache(fd, engine);
            test_late(fd, engine);
            close(fd);
        }
        printf("%s: good, %s\n", engine_name, direct ? "direct" : "buffered");
    }
    return 0;
}

/* ---- bench ---------------------------------------------------------------------------------------- */

enum { SAMPLES = 4000, BENCH_MIB = 256, DEPTH = 8 };

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void read_latency(int fd, uint32_t len, uint8_t *mem) {
    static const char *const names[] = {"pread", "io_uring", "threads"};
    static uint64_t ns[3][SAMPLES];
    bed_t b[3];
    bool have[3] = {true, false, false};
    for (int k = 1; k < 3; k++)
        have[k] = bed_open(&b[k], fd, k, 0, 32, 32) == 0;
    for (int i = 0; i < SAMPLES; i++)
        for (int k = 0; k < 3; k++) { /* in turns: the disk's mood is the same for all */
            if (!have[k])
                continue;
            uint64_t off = (uint64_t)below((uint32_t)((uint64_t)BENCH_MIB << 20 >> 12) - len / PAGE) * PAGE;
            us_io_req_t q = {.op = US_IO_READ, .buf = mem, .off = off, .len = len};
            uint64_t t = now_ns();
            CHECK(k == 0 ? pread(fd, mem, len, (off_t)off) == len : run_one(&b[k], &q) == 0);
            ns[k][i] = now_ns() - t;
        }
    for (int k = 0; k < 3; k++) {
        if (!have[k])
            continue;
        qsort(ns[k], SAMPLES, sizeof ns[k][0], by_value);
        printf("read %2u KiB, one at a time  %-8s p50 %7.1f us  p99 %7.1f us  ratio %.2f %.2f\n", len >> 10, names[k],
               (double)ns[k][SAMPLES / 2] / 1e3, (double)ns[k][SAMPLES * 99 / 100] / 1e3,
               (double)ns[k][SAMPLES / 2] / (double)ns[0][SAMPLES / 2],
               (double)ns[k][SAMPLES * 99 / 100] / (double)ns[0][SAMPLES * 99 / 100]);
        if (k > 0)
            bed_close(&b[k]);
    }
}

static double write_rate(int fd, int engine, uint8_t *mem) {
    const uint32_t len = 1 << 20;
    static us_io_req_t req[DEPTH];
    uint64_t t;
    if (engine == 0) {
        t = now_ns();
        for (uint32_t i = 0; i < BENCH_MIB; i++)
            CHECK(pwrite(fd, mem, len, (off_t)i * len) == len);
        return BENCH_MIB / ((double)(now_ns() - t) / 1e9);
    }
    bed_t b;
    if (bed_open(&b, fd, engine, 0, 32, DEPTH) != 0)
        return 0;
    t = now_ns();
    uint32_t done = 0, next = 0;
    while (done < BENCH_MIB) {
        us_io_req_t *q = next < DEPTH ? &req[next] : wait_one(&b);
        if (next >= DEPTH) {
            CHECK(q->res == 0);
            done++;
        }
        if (next < BENCH_MIB) {
            *q = (us_io_req_t){
                .op = US_IO_WRITE, .len = len, .off = (uint64_t)next * len, .buf = mem + (size_t)(q - req) * len};
            CHECK(us_io_submit(b.io, q) == 0 && us_io_flush(b.io) == 0);
        }
        next++;
    }
    double rate = BENCH_MIB / ((double)(now_ns() - t) / 1e9);
    bed_close(&b);
    return rate;
}

static int bench(const char *path) {
    bool direct = true;
    int fd = open_file(path, &direct);
    uint8_t *mem = pages((size_t)DEPTH << 20);
    for (size_t i = 0; i < (size_t)DEPTH << 20; i += 8) {
        uint64_t word = rnd();
        memcpy(mem + i, &word, 8);
    }
    printf("%s, %d MiB\n", direct ? "O_DIRECT" : "buffered", BENCH_MIB);
    write_rate(fd, 0, mem);
    read_latency(fd, 4 << 10, mem);
    read_latency(fd, 16 << 10, mem);
    for (int round = 0; round < 3; round++) {
        double plain = write_rate(fd, 0, mem);
        for (int k = 1; k < 3; k++) {
            double rate = write_rate(fd, k, mem);
            printf("write 1 MiB, %d in flight  %-8s %6.0f MiB/s  plain pwrite %6.0f MiB/s  ratio %.2f\n", DEPTH,
                   k == US_IO_URING ? "io_uring" : "threads", rate, plain, rate / plain);
        }
    }
    munmap(mem, (size_t)DEPTH << 20);
    close(fd);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "bench") == 0)
        return bench(argv[2]);
    if (argc < 2) {
        fprintf(stderr, "usage: io_test FILE [seed] | io_test bench FILE\n");
        return 2;
    }
    seed_used = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    rng = seed_used;
    return test(argv[1]);
}
