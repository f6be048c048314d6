/* SPDX-License-Identifier: MIT */
/* Tests of csrc/hist.c against a sorted array. hist_test SEED; exit status 0 passed, 1 failed. */
#include "hist.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void test_index(void) {
    /* Each bucket follows the one before, at every power of two and beside it. */
    uint32_t last = 0;
    for (uint64_t v = 0; v < 1 << 20; v++) {
        uint32_t i = us_hist_index(v);
        CHECK(i == last || i == last + 1);
        last = i;
    }
    for (uint32_t log = US_HIST_SUB_LOG; log < 64; log++) {
        uint64_t v = 1ull << log;
        uint32_t i = us_hist_index(v), want = (log - US_HIST_SUB_LOG + 1) * US_HIST_SUB;
        CHECK(i == (want < US_HIST_BUCKETS ? want : US_HIST_BUCKETS - 1));
        CHECK(us_hist_index(v - 1) == (i == US_HIST_BUCKETS - 1 && want >= US_HIST_BUCKETS ? i : want - 1));
    }
    CHECK(us_hist_index(UINT64_MAX) == US_HIST_BUCKETS - 1);
}

static void check_against(const us_hist_t *h, uint64_t *v, size_t n) {
    qsort(v, n, sizeof *v, compare);
    CHECK(h->count == n && h->max == v[n - 1]);
    uint64_t sum = 0, before = 0;
    for (size_t i = 0; i < n; i++)
        sum += v[i];
    CHECK(h->sum == sum);
    for (int i = 0; i <= 1000; i++) {
        double q = i / 1000.0, exact = q * (double)n;
        size_t rank = (size_t)ceil(exact);
        rank = rank < 1 ? 1 : rank > n ? n : rank;
        uint64_t want = v[rank - 1], got = us_hist_quantile(h, q);
        CHECK(got >= before && got <= h->max);
        CHECK(fabs((double)got - (double)want) <= (double)want / 32);
        before = got;
    }
    CHECK(us_hist_quantile(h, 1) == v[n - 1] && us_hist_quantile(h, 7) == v[n - 1]);
    CHECK(us_hist_quantile(h, NAN) == us_hist_quantile(h, 0));
    CHECK(us_hist_quantile(h, -1) == us_hist_quantile(h, 0));
}

static void test_quantiles(void) {
    enum { MOST = 20000 };
    uint64_t *v = malloc(MOST * sizeof *v);
    CHECK(v);
    for (int round = 0; round < 60; round++) {
        us_hist_t h = {0}, parts[3] = {{0}}, merged = {0};
        size_t n = round < 10 ? 1 + rnd() % 10 : 1 + rnd() % MOST;
        for (size_t i = 0; i < n; i++) {
            switch (round % 4) {
            case 0: /* a few nanoseconds */ v[i] = rnd() % 40; break;
            case 1: /* any octave alike */ v[i] = rnd() % (1ull << (1 + rnd() % (US_HIST_TOP_LOG - 1))); break;
            case 2: /* what faults look like */
                v[i] = 4000 + rnd() % 3000 + (rnd() % 100 == 0 ? rnd() % 900000 : 0);
                break;
            default: /* one value, over and over */ v[i] = 1ull << (round % US_HIST_TOP_LOG); break;
            }
            us_hist_add(&h, v[i]);
            us_hist_add(&parts[rnd() % 3], v[i]);
        }
        for (int i = 0; i < 3; i++)
            us_hist_merge(&merged, &parts[i]);
        CHECK(memcmp(&merged, &h, sizeof h) == 0);
        check_against(&h, v, n);
    }
    free(v);

    us_hist_t h = {0};
    CHECK(us_hist_quantile(&h, 0.5) == 0 && us_hist_quantile(&h, 1) == 0);
    us_hist_add(&h, 1ull << 50); /* longer than the last bucket: max tells */
    CHECK(us_hist_quantile(&h, 0.5) == 1ull << 50 && us_hist_quantile(&h, 1) == 1ull << 50);
}

enum { SAMPLES = 2000000 };

static void *writer(void *arg) {
    for (uint64_t i = 0; i < SAMPLES; i++)
        us_hist_add(arg, 1000 + i % 1000);
    return NULL;
}

/* A reader beside the writer sees a count that grows and quantiles that could be true. */
static void test_reader(void) {
    us_hist_t *h = calloc(1, sizeof *h);
    pthread_t thread;
    CHECK(h && pthread_create(&thread, NULL, writer, h) == 0);
    uint64_t count = 0;
    while (count < SAMPLES) {
        uint64_t now = __atomic_load_n(&h->count, __ATOMIC_RELAXED), q = us_hist_quantile(h, 0.5);
        us_hist_t copy = {0};
        us_hist_merge(&copy, h);
        CHECK(now >= count);
        CHECK(count == 0 || (q >= 1000 && q < 2000));
        CHECK(copy.max < 2000);
        count = now;
    }
    pthread_join(thread, NULL);
    CHECK(h->count == SAMPLES && h->max == 1999);
    free(h);
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    state = seed * 0x9E3779B97F4A7C15u + 1;
    CHECK(sizeof(us_hist_t) <= 5 * 1024);
    test_index();
    test_quantiles();
    test_reader();
    return 0;
}
