/* SPDX-License-Identifier: MIT */
/*
 * Tests of the pool against a model: pool_test [seed [steps]], or pool_test bench for its speed.
 * Exit 0 when all holds; else it says what did not, where, and with which seed.
 */
#define _GNU_SOURCE
#include "../../csrc/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t seed_used;

#define CHECK(x)                                                                                          \
    do {                                                                                                  \
        if (!(x)) {                                                                                       \
            fprintf(stderr, "%s:%d: not so: %s (seed %" PRIu64 ")\n", __FILE__, __LINE__, #x, seed_used); \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

#define KiB(n) ((uint64_t)(n) << 10)
#define MiB(n) ((uint64_t)(n) << 20)
#define GiB(n) ((uint64_t)(n) << 30)

static uint64_t rng;

static uint64_t rnd(void) { /* splitmix64 */
    uint64_t z = rng += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint32_t below(uint32_t n) { return (uint32_t)(rnd() % n); }
static uint32_t between(uint32_t a, uint32_t b) { return a + below(b - a + 1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- a space to put a pool in ------------------------------------------------------------------- */

#define FILE_OFF KiB(12) /* the pool is not the first in the file */

typedef struct space {
    us_pool_t *pool;
    int fd;
    char *base;
    size_t virt;
} space_t;

/* False when this machine has not the addresses. */
static bool open_space(space_t *s, uint64_t budget) {
    s->virt = us_pool_virtual(budget);
    CHECK(s->virt % 4096 == 0 && s->virt <= 1ull << US_POOL_OFF_BITS);
    s->fd = memfd_create("pool_test", MFD_CLOEXEC);
    CHECK(s->fd >= 0);
    CHECK(ftruncate(s->fd, (off_t)(FILE_OFF + s->virt)) == 0);
    s->base = mmap(NULL, s->virt, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->fd, FILE_OFF);
    if (s->base == MAP_FAILED) {
        close(s->fd);
        return false;
    }
    CHECK(us_pool_init(&s->pool, s->fd, FILE_OFF, s->base, s->virt, budget) == 0);
    return true;
}

static void close_space(space_t *s) {
    us_pool_destroy(s->pool);
    munmap(s->base, s->virt);
    close(s->fd);
}

static uint64_t file_bytes(const space_t *s) {
    struct stat st;
    CHECK(fstat(s->fd, &st) == 0);
    return (uint64_t)st.st_blocks * 512;
}

/* ---- the model ---------------------------------------------------------------------------------- */

typedef struct object {
    uint64_t off; /* 0: none */
    uint32_t len, tag;
} object_t;

typedef struct model {
    us_pool_t *pool;
    object_t *objects; /* the index is the owner */
    uint32_t cap;
    uint32_t *live, nlive; /* owners, and where in live each is */
    uint32_t *place;
    uint64_t bytes;
    uint32_t refuse;       /* percent of moves */
    uint64_t asked, moved; /* calls of the callback, and those accepted */
    bool check_moves;
} model_t;

static void open_model(model_t *m, us_pool_t *pool, uint32_t cap) {
    *m = (model_t){.pool = pool, .cap = cap, .check_moves = true};
    m->objects = calloc(cap, sizeof *m->objects);
    m->live = calloc(cap, sizeof *m->live);
    m->place = calloc(cap, sizeof *m->place);
    CHECK(m->objects != NULL && m->live != NULL && m->place != NULL);
}

static void close_model(model_t *m) {
    free(m->objects);
    free(m->live);
    free(m->place);
}

/* The content of an object follows from owner and tag; large ones are written at both ends only. */
static void pattern(void *at, uint32_t len, uint32_t owner, uint32_t tag, bool write) {
    uint64_t v = ((uint64_t)owner << 32 | tag) * 0x9e3779b97f4a7c15ull;
    unsigned char *b = at;
    for (uint32_t i = 0; i < len; i++, v = v << 7 | v >> 57) {
        if (i == 6000 && len > 12000)
            i = len - 6000;
        if (write)
            b[i] = (unsigned char)(v + i);
        else
            CHECK(b[i] == (unsigned char)(v + i));
    }
}

static void check_object(model_t *m, uint32_t owner) {
    const object_t *o = &m->objects[owner];
    CHECK(o->off != 0 && o->off % 8 == 0);
    CHECK(us_pool_head(m->pool, o->off)->owner == owner && us_pool_head(m->pool, o->off)->tag == o->tag);
    pattern(us_pool_at(m->pool, o->off), o->len, owner, o->tag, false);
}

static int model_alloc(model_t *m, uint32_t owner, uint32_t len) {
    object_t *o = &m->objects[owner];
    CHECK(o->off == 0);
    bool fits = us_pool_would_fit(m->pool, len);
    uint32_t tag = (uint32_t)rnd();
    int r = us_pool_alloc(m->pool, len, owner, tag, &o->off);
    CHECK(r == (fits ? 0 : -ENOSPC));
    if (r != 0)
        return r;
    o->len = len;
    o->tag = tag;
    m->bytes += len;
    m->place[owner] = m->nlive;
    m->live[m->nlive++] = owner;
    pattern(us_pool_at(m->pool, o->off), len, owner, tag, true);
    return 0;
}

static void model_free(model_t *m, uint32_t owner) {
    object_t *o = &m->objects[owner];
    check_object(m, owner);
    us_pool_free(m->pool, o->off, o->len);
    o->off = 0;
    m->bytes -= o->len;
    uint32_t last = m->live[--m->nlive];
    m->live[m->place[owner]] = last;
    m->place[last] = m->place[owner];
}

static bool moved(void *ctx, uint32_t owner, uint32_t tag, uint64_t old_off, uint64_t new_off) {
    model_t *m = ctx;
    m->asked++;
    CHECK(owner < m->cap && old_off != new_off);
    object_t *o = &m->objects[owner];
    CHECK(o->off == old_off && o->tag == tag);
    if (below(100) < m->refuse)
        return false;
    o->off = new_off;
    if (m->check_moves)
        check_object(m, owner);
    m->moved++;
    return true;
}

static bool seen(void *ctx, uint64_t off, uint32_t room, uint32_t owner, uint32_t tag) {
    model_t *m = ctx;
    CHECK(owner < m->cap);
    const object_t *o = &m->objects[owner];
    CHECK(o->off == off && o->tag == tag && o->len <= room);
    CHECK(m->nlive-- > 0);
    return true;
}

static void check_walk(model_t *m) {
    uint32_t n = m->nlive;
    CHECK(us_pool_walk(m->pool, seen, m) == 0);
    CHECK(m->nlive == 0);
    m->nlive = n;
}

static void check_model(model_t *m) {
    CHECK(us_pool_is_valid(m->pool));
    CHECK(us_pool_objects(m->pool) == m->nlive && us_pool_used(m->pool) == m->bytes);
    CHECK(us_pool_used(m->pool) <= us_pool_allocated(m->pool));
    check_walk(m);
}

static double ratio(const us_pool_t *p) { return (double)us_pool_used(p) / (double)us_pool_allocated(p); }

/* ---- tests -------------------------------------------------------------------------------------- */

static void test_arguments(void) {
    space_t s;
    us_pool_t *p = NULL;
    uint64_t off = 0;
    CHECK(open_space(&s, MiB(8)));
    CHECK(us_pool_init(&p, -1, 0, s.base, s.virt, MiB(8)) == -EINVAL && p == NULL);
    CHECK(us_pool_init(&p, s.fd, 1, s.base, s.virt, MiB(8)) == -EINVAL);
    CHECK(us_pool_init(&p, s.fd, 0, s.base + 1, s.virt, MiB(8)) == -EINVAL);
    CHECK(us_pool_init(&p, s.fd, 0, NULL, s.virt, MiB(8)) == -EINVAL);
    CHECK(us_pool_init(&p, s.fd, 0, s.base, s.virt - 1, MiB(8)) == -EINVAL);
    CHECK(us_pool_init(&p, s.fd, 0, s.base, s.virt, 0) == -EINVAL);
    CHECK(us_pool_alloc(s.pool, 0, 0, 0, &off) == -EINVAL);
    CHECK(us_pool_alloc(s.pool, US_POOL_LEN_MAX + 1, 0, 0, &off) == -EINVAL);
    CHECK(!us_pool_would_fit(s.pool, 0) && !us_pool_would_fit(s.pool, US_POOL_LEN_MAX + 1));
    CHECK(us_pool_compact(s.pool, MiB(1), moved, NULL) == 0);
    CHECK(us_pool_trim(s.pool) == 0 && us_pool_sparse(s.pool) == 0);
    CHECK(us_pool_used(s.pool) == 0 && us_pool_allocated(s.pool) == 0 && us_pool_is_valid(s.pool));
    us_pool_destroy(NULL);
    close_space(&s);
}

static bool one_room(void *ctx, uint64_t off, uint32_t room, uint32_t owner, uint32_t tag) {
    (void)off, (void)owner, (void)tag;
    *(uint32_t *)ctx = room;
    return false;
}

static uint32_t room_of(us_pool_t *p, uint32_t len) {
    uint64_t off;
    uint32_t room = 0;
    CHECK(us_pool_alloc(p, len, 0, 0, &off) == 0);
    CHECK(us_pool_walk(p, one_room, &room) == 1);
    us_pool_free(p, off, len);
    CHECK(room >= len);
    return room;
}

/* An object wastes at most a step; blocks that did not compress waste nothing. */
static void test_classes(uint64_t budget, uint32_t steps) {
    space_t s;
    CHECK(open_space(&s, budget));
    CHECK(room_of(s.pool, 1) == 64);
    for (uint32_t len = 65; len < 9000; len++)
        CHECK(room_of(s.pool, len) - len <= 7 + len / steps);
    for (uint32_t shift = 12; shift <= 21; shift++)
        CHECK(room_of(s.pool, 1u << shift) == 1u << shift);
    for (uint32_t shift = 7; shift <= 21; shift++)
        for (uint32_t j = 0; j < 40; j++) {
            uint32_t len = (1u << shift) - (j < 16 ? j : below(1u << (shift - 1)));
            CHECK(room_of(s.pool, len) - len < 8 + len / steps + 8);
        }
    CHECK(us_pool_is_valid(s.pool));
    close_space(&s);
}

/* Budgets up to 512 GiB can be mapped, and the far end of the addresses works. */
static void test_large_budgets(void) {
    static const uint64_t budgets[] = {GiB(2), GiB(512), GiB(4096)};
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        space_t s;
        if (!open_space(&s, budgets[i])) {
            printf("skipped: no address space for a budget of %" PRIu64 " GiB here\n", budgets[i] >> 30);
            continue;
        }
        uint64_t off;
        for (uint32_t owner = 0; owner < 3; owner++) {
            uint32_t len = US_POOL_LEN_MAX >> (owner * 8);
            CHECK(us_pool_alloc(s.pool, len, owner, 7, &off) == 0);
            CHECK(off + len <= s.virt);
            pattern(us_pool_at(s.pool, off), len, owner, 7, true);
            pattern(us_pool_at(s.pool, off), len, owner, 7, false);
            us_pool_free(s.pool, off, len);
        }
        CHECK(us_pool_is_valid(s.pool));
        CHECK(us_pool_trim(s.pool) >= 0 && file_bytes(&s) <= KiB(64)); /* the kernel may round */
        close_space(&s);
    }
}

static uint32_t any_length(void) {
    switch (below(8)) {
    case 0: return between(1, 128);
    case 1: return 4096u << below(5);
    case 2: return between(4096, 70000);
    case 3: return below(20) == 0 ? between(65536, US_POOL_LEN_MAX) : between(60000, 140000);
    default: return between(60, 4200);
    }
}

/* Any operation in any order; the model has the last word. */
static void test_random(uint64_t budget, uint32_t steps) {
    space_t s;
    model_t m;
    CHECK(open_space(&s, budget));
    open_model(&m, s.pool, 40000);
    uint32_t full = 0;
    uint64_t limit = budget;
    bool filling = true;
    for (uint32_t step = 0; step < steps; step++) {
        uint32_t what = below(1000);
        if (m.nlive == m.cap || (full > 0 && below(300) == 0))
            filling = false;
        if (m.nlive < 10)
            filling = true, full = 0;
        if (what < (filling ? 600 : 350)) {
            uint32_t owner = below(m.cap);
            if (m.objects[owner].off != 0)
                check_object(&m, owner);
            else if (model_alloc(&m, owner, any_length()) != 0)
                full++;
        } else if (what < 980) {
            if (m.nlive != 0)
                model_free(&m, m.live[below(m.nlive)]);
        } else if (what < 994) {
            m.refuse = below(3) * 20;
            uint64_t max = (uint64_t)between(1, 256) << 10, before = us_pool_allocated(s.pool);
            int64_t r = us_pool_compact(s.pool, max, moved, &m);
            CHECK(r >= 0 && (uint64_t)r == before - us_pool_allocated(s.pool));
        } else if (what < 996) {
            uint64_t before = us_pool_allocated(s.pool);
            CHECK((uint64_t)us_pool_trim(s.pool) == before - us_pool_allocated(s.pool));
        } else if (what == 996) {
            limit = below(3) == 0 ? budget / between(1, 8) : budget;
            CHECK(us_pool_set_budget(s.pool, limit) == 0);
        } else if (what == 997 && below(10) == 0) {
            while (m.nlive != 0)
                model_free(&m, m.live[below(m.nlive)]);
        }
        CHECK(limit < budget || us_pool_allocated(s.pool) <= budget);
        if (step % 500 == 0)
            check_model(&m);
    }
    check_model(&m);
    for (uint32_t i = 0; i < m.nlive; i++)
        check_object(&m, m.live[i]);
    while (m.nlive != 0)
        model_free(&m, m.live[m.nlive - 1]);
    CHECK(us_pool_trim(s.pool) >= 0);
    check_model(&m);
    CHECK(us_pool_allocated(s.pool) == 0 && file_bytes(&s) == 0);
    close_model(&m);
    close_space(&s);
}

/* Compaction ends, moves nothing and loses nothing when all objects are locked; goes on when they are not. */
static void test_refusals(void) {
    space_t s;
    model_t m;
    CHECK(open_space(&s, MiB(32)));
    open_model(&m, s.pool, 30000);
    for (uint32_t owner = 0; owner < 20000; owner++)
        CHECK(model_alloc(&m, owner, between(900, 1100)) == 0);
    for (uint32_t owner = 0; owner < 20000; owner++)
        if (below(100) < 75)
            model_free(&m, owner);
    uint64_t sparse = us_pool_sparse(s.pool), before = us_pool_allocated(s.pool);
    CHECK(sparse > MiB(10));
    m.refuse = 100;
    CHECK(us_pool_compact(s.pool, MiB(64), moved, &m) == 0);
    CHECK(m.moved == 0 && m.asked > 0 && m.asked <= before / KiB(16)); /* once a span */
    check_model(&m);
    m.refuse = 1;
    int64_t freed = 0;
    for (int i = 0; i < 200; i++)
        freed += us_pool_compact(s.pool, MiB(1), moved, &m);
    CHECK(us_pool_allocated(s.pool) == before - (uint64_t)freed);
    m.refuse = 0;
    while (us_pool_compact(s.pool, KiB(64), moved, &m) > 0)
        continue;
    CHECK(us_pool_sparse(s.pool) == 0 && us_pool_allocated(s.pool) <= before - sparse);
    check_model(&m);
    CHECK(file_bytes(&s) <= us_pool_allocated(s.pool));
    m.asked = 0;
    CHECK(us_pool_compact(s.pool, MiB(64), moved, &m) == 0 && m.asked == 0);
    close_model(&m);
    close_space(&s);
}

/* A call that may copy only little gets done over several. */
static void test_small_steps(void) {
    space_t s;
    model_t m;
    CHECK(open_space(&s, MiB(64)));
    open_model(&m, s.pool, 10000);
    for (uint32_t owner = 0; owner < 5000; owner++)
        CHECK(model_alloc(&m, owner, 1000) == 0);
    for (uint32_t owner = 0; owner < 5000; owner += 2)
        model_free(&m, owner);
    uint64_t sparse = us_pool_sparse(s.pool);
    CHECK(sparse > 0 && us_pool_compact(s.pool, 500, moved, &m) == 0 && m.asked == 0);
    int64_t freed = 0;
    for (int i = 0; i < 3000; i++) {
        m.asked = 0;
        freed += us_pool_compact(s.pool, 2500, moved, &m);
        CHECK(m.asked <= 2);
    }
    CHECK((uint64_t)freed == sparse && us_pool_sparse(s.pool) == 0);
    check_model(&m);
    close_model(&m);
    close_space(&s);
}

static void test_exhaustion(uint64_t budget, uint32_t low, uint32_t high, double least) {
    space_t s;
    model_t m;
    CHECK(open_space(&s, budget));
    open_model(&m, s.pool, (uint32_t)(budget / low) + 1);
    uint32_t owner = 0, misses = 0;
    while (misses < 50) { /* would_fit is checked in model_alloc */
        if (model_alloc(&m, owner, between(low, high)) == 0)
            owner++;
        else
            misses++;
        CHECK(us_pool_allocated(s.pool) <= budget);
    }
    check_model(&m);
    CHECK(file_bytes(&s) <= us_pool_allocated(s.pool));
    CHECK((double)us_pool_used(s.pool) >= least * (double)budget);
    model_free(&m, 0);
    CHECK(model_alloc(&m, 0, low) == 0); /* there is room again */
    while (m.nlive != 0)
        model_free(&m, m.live[m.nlive - 1]);
    CHECK(us_pool_allocated(s.pool) <= budget / 64);    /* little is cached .. */
    CHECK(file_bytes(&s) <= us_pool_allocated(s.pool)); /* .. and the rest is the kernel's again */
    CHECK(us_pool_trim(s.pool) >= 0 && us_pool_allocated(s.pool) == 0 && file_bytes(&s) == 0);
    check_model(&m);
    close_model(&m);
    close_space(&s);
}

/* Cached spans of other classes do not stand in the way of a large object. */
static void test_cache_gives_way(void) {
    space_t s;
    uint64_t off[3];
    CHECK(open_space(&s, MiB(512)));
    for (uint32_t len = 100; len < 60000; len += len / 4) {
        CHECK(us_pool_alloc(s.pool, len, 0, 0, &off[0]) == 0);
        us_pool_free(s.pool, off[0], len);
    }
    CHECK(us_pool_allocated(s.pool) > MiB(1) && us_pool_used(s.pool) == 0);
    uint64_t cached = us_pool_allocated(s.pool);
    CHECK(us_pool_set_budget(s.pool, MiB(600)) == -EINVAL && us_pool_set_budget(s.pool, 0) == -EINVAL);
    CHECK(us_pool_set_budget(s.pool, MiB(3)) == 0);
    CHECK(us_pool_allocated(s.pool) < cached);
    CHECK(us_pool_alloc(s.pool, MiB(2), 0, 0, &off[1]) == 0);
    CHECK(us_pool_alloc(s.pool, MiB(2), 0, 0, &off[2]) == -ENOSPC);
    us_pool_free(s.pool, off[1], MiB(2));
    CHECK(us_pool_is_valid(s.pool));
    close_space(&s);
}

/* Random sizes, random frees down to `keep` percent, compaction in between. Returns used / allocated, the least. */
static double churn(uint64_t budget, uint32_t keep, uint32_t rounds, double *copied, double *seconds) {
    const uint32_t low = 200, high = 4100;
    space_t s;
    model_t m;
    CHECK(open_space(&s, budget));
    open_model(&m, s.pool, (uint32_t)(budget / low) + 1);
    m.check_moves = seconds == NULL;
    double least = 1, spent = 0, bytes = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t i = 0, owner = 0; i < m.cap && us_pool_allocated(s.pool) < budget / 8 * 7; i++, owner++)
            if (m.objects[owner].off == 0 && model_alloc(&m, owner, between(low, high)) != 0)
                break;
        uint32_t leave = (uint32_t)((uint64_t)m.nlive * keep / 100);
        while (m.nlive > leave)
            model_free(&m, m.live[below(m.nlive)]);
        double t = now();
        while (us_pool_compact(s.pool, MiB(1), moved, &m) > 0)
            continue;
        spent += now() - t;
        if (ratio(s.pool) < least)
            least = ratio(s.pool);
    }
    bytes = (double)m.moved * (low + high) / 2;
    if (seconds != NULL)
        *seconds = spent, *copied = bytes;
    check_model(&m);
    close_model(&m);
    close_space(&s);
    return least;
}

/* Where the kernel refuses to take memory back, it is kept for later use and counted. */
static void test_refused_punch(void) {
    uint64_t budget = MiB(64);
    size_t virt = us_pool_virtual(budget);
    char *base = mmap(NULL, virt, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(base != MAP_FAILED && fd >= 0);
    us_pool_t *p;
    model_t m;
    CHECK(us_pool_init(&p, fd, 0, base, virt, budget) == 0);
    open_model(&m, p, 20000);
    for (int round = 0; round < 3; round++) {
        for (uint32_t owner = 0; owner < 10000; owner++)
            CHECK(model_alloc(&m, owner, 4000) == 0);
        while (m.nlive > 500)
            model_free(&m, m.live[below(m.nlive)]);
        CHECK(us_pool_compact(p, MiB(64), moved, &m) == 0);
        check_model(&m);
        while (m.nlive > 0)
            model_free(&m, m.live[below(m.nlive)]);
        CHECK(us_pool_allocated(p) > MiB(30) && us_pool_trim(p) < 0);
        check_model(&m);
    }
    us_pool_destroy(p);
    close_model(&m);
    close(fd);
    munmap(base, virt);
}

static void free_wrongly(us_pool_t *p, int how) {
    uint64_t a, b;
    CHECK(us_pool_alloc(p, 1000, 0, 0, &a) == 0 && us_pool_alloc(p, 1000, 0, 0, &b) == 0);
    us_pool_free(p, a, 1000);
    if (how == 0)
        us_pool_free(p, a, 1000);
    if (how == 1)
        us_pool_free(p, b + 8, 1000);
    if (how == 2)
        us_pool_free(p, b + 4, 1000);
    if (how == 3)
        us_pool_free(p, b, 2000);
    if (how == 4)
        us_pool_free(p, b + MiB(1), 1000);
}

/* A debug build stops at a double free, and at offsets that are none. */
static void test_misuse(void) {
#ifndef US_DEBUG
    return;
#endif
    for (int how = 0; how < 5; how++) {
        fflush(NULL);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            struct rlimit none = {0, 0};
            setrlimit(RLIMIT_CORE, &none);
            CHECK(freopen("/dev/null", "w", stderr) != NULL);
            space_t s;
            CHECK(open_space(&s, MiB(64)));
            free_wrongly(s.pool, how);
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    }
}

static bool free_seen(void *ctx, uint64_t off, uint32_t room, uint32_t owner, uint32_t tag) {
    model_t *m = ctx;
    (void)room, (void)tag;
    CHECK(m->objects[owner].off == off);
    if (owner % 2 == 0)
        model_free(m, owner);
    return true;
}

static void test_walk_frees(void) {
    space_t s;
    model_t m;
    CHECK(open_space(&s, MiB(16)));
    open_model(&m, s.pool, 2000);
    for (uint32_t owner = 0; owner < 2000; owner++)
        CHECK(model_alloc(&m, owner, between(1, 9000)) == 0);
    CHECK(us_pool_walk(s.pool, free_seen, &m) == 0);
    CHECK(m.nlive == 1000);
    check_model(&m);
    close_model(&m);
    close_space(&s);
}

/* ---- the bench ---------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n) {
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static void bench_speed(const char *what, uint32_t low, uint32_t high) {
    enum { N = 20000, RUNS = 15 };
    static uint64_t off[N];
    static uint32_t len[N], order[N];
    double fresh[RUNS], release[RUNS], take[RUNS], give[RUNS];
    for (int run = 0; run < RUNS; run++) {
        space_t s;
        CHECK(open_space(&s, MiB(256)));
        for (uint32_t i = 0; i < N; i++)
            len[i] = between(low, high), order[i] = i;
        for (uint32_t i = N - 1; i > 0; i--) {
            uint32_t j = below(i + 1), t = order[i];
            order[i] = order[j], order[j] = t;
        }
        double t = now();
        for (uint32_t i = 0; i < N; i++)
            CHECK(us_pool_alloc(s.pool, len[i], i, 0, &off[i]) == 0);
        fresh[run] = (now() - t) / N * 1e9;
        take[run] = give[run] = 0;
        for (uint32_t round = 0; round < 8; round++) { /* a quarter goes and comes back: steady state */
            uint32_t at = round % 4 * (N / 4);
            t = now();
            for (uint32_t i = at; i < at + N / 4; i++)
                us_pool_free(s.pool, off[order[i]], len[order[i]]);
            double half = now();
            for (uint32_t i = at; i < at + N / 4; i++)
                CHECK(us_pool_alloc(s.pool, len[order[i]], i, 0, &off[order[i]]) == 0);
            give[run] += (half - t) / (2 * N) * 1e9;
            take[run] += (now() - half) / (2 * N) * 1e9;
        }
        t = now();
        for (uint32_t i = 0; i < N; i++)
            us_pool_free(s.pool, off[order[i]], len[order[i]]);
        release[run] = (now() - t) / N * 1e9;
        close_space(&s);
    }
    printf("%-22s alloc %5.0f ns  free %5.0f ns   taking spans %5.0f  giving them back %5.0f\n", what,
           median(take, RUNS), median(give, RUNS), median(fresh, RUNS), median(release, RUNS));
}

/* Ways to get a fresh range of the memfd ready. */
static void bench_populate(uint32_t bytes) {
    enum { RUNS = 400 };
    static double cost[3][RUNS], punch[RUNS];
    space_t s;
    CHECK(open_space(&s, MiB(64)));
    for (int run = 0; run < RUNS; run++) {
        char *at = s.base + (size_t)run % 8 * (1u << 20);
        off_t in_file = (off_t)FILE_OFF + (at - s.base);
        for (int pass = 0; pass < 3; pass++) {
            double t = now();
            if (pass == 1)
                (void)madvise(at, bytes, 23 /* MADV_POPULATE_WRITE */);
            if (pass == 2)
                CHECK(fallocate(s.fd, FALLOC_FL_KEEP_SIZE, in_file, bytes) == 0);
            for (uint32_t i = 0; i < bytes; i += 4096)
                *(volatile char *)(at + i) = 1;
            cost[pass][run] = (now() - t) * 1e6;
            t = now();
            CHECK(fallocate(s.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, in_file, bytes) == 0);
            punch[run] = (now() - t) * 1e6;
        }
    }
    double touch = median(cost[0], RUNS), populate = median(cost[1], RUNS), allocate = median(cost[2], RUNS);
    printf("%4u KiB fresh: faults %.1f us, populate %.1f us (%.2f), fallocate %.1f us (%.2f), punch %.1f us\n",
           bytes >> 10, touch, populate, populate / touch, allocate, allocate / touch, median(punch, RUNS));
    close_space(&s);
}

static void bench(void) {
    bench_populate(16u << 10);
    bench_populate(64u << 10);
    bench_populate(256u << 10);
    bench_speed("1000 bytes", 1000, 1000);
    bench_speed("4096 bytes", 4096, 4096);
    bench_speed("200 to 4100 bytes", 200, 4100);
    bench_speed("2000 to 12000 bytes", 2000, 12000);
    for (uint64_t budget = MiB(2); budget <= MiB(256); budget *= 2) {
        double copied, seconds;
        printf("churn, %3" PRIu64 " MiB, 200 to 4100 bytes:", budget >> 20);
        for (uint32_t keep = 90; keep < 100; keep -= 20) {
            double least = churn(budget, keep, 12, &copied, &seconds);
            printf("  %2u %% kept %.3f (%.0f MB/s)", keep, least, copied / 1e6 / seconds);
        }
        printf("\n");
    }
    space_t s;
    CHECK(open_space(&s, MiB(256)));
    uint64_t off, empty = us_pool_metadata(s.pool);
    while (us_pool_would_fit(s.pool, 1000))
        CHECK(us_pool_alloc(s.pool, 1000, 0, 0, &off) == 0);
    printf("metadata: %" PRIu64 " bytes, and %.0f for each 64 KiB of 1000-byte objects\n", empty,
           (double)(us_pool_metadata(s.pool) - empty) / (double)(us_pool_allocated(s.pool) >> 16));
    close_space(&s);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        bench();
        return 0;
    }
    seed_used = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 30000;
    printf("seed %" PRIu64 "\n", seed_used);
    rng = seed_used;
    test_arguments();
    test_classes(MiB(64), 16);
    test_classes(MiB(16), 16);
    test_classes(MiB(8), 8);
    test_large_budgets();
    test_random(MiB(64), steps);
    test_random(MiB(20), steps);
    test_random(MiB(4), steps);
    test_random(KiB(300), steps);
    test_refusals();
    test_small_steps();
    test_exhaustion(MiB(32), 200, 4100, 0.90);
    test_exhaustion(MiB(3), 200, 4100, 0.80);
    test_exhaustion(MiB(64), 4096, 4096, 0.94);
    test_exhaustion(MiB(64), 65536, 65536, 0.94);
    test_cache_gives_way();
    test_refused_punch();
    test_walk_frees();
    test_misuse();
    double large = churn(MiB(64), 50, 5, NULL, NULL), small = churn(MiB(4), 50, 10, NULL, NULL);
    printf("used/allocated after churn: %.3f of 64 MiB, %.3f of 4 MiB\n", large, small);
    CHECK(large >= 0.85 && small >= 0.75);
    return 0;
}
