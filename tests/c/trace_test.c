/* SPDX-License-Identifier: MIT
 *
 * trace_test [SEED]: records through a small ring into a pipe that is read slowly, in fits: each is there, in order,
 * or counted where it is missing; the spare room is kept for what is needed; and a file that takes nothing costs
 * no more than its records.
 */
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "uswap.h"

#define CHECK(x)                                                              \
    do {                                                                      \
        if (!(x)) {                                                           \
            fprintf(stderr, "%s:%d: %s is not so\n", __FILE__, __LINE__, #x); \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

enum { RING = 64, ROUNDS = 200 };

static uint64_t seed;

static uint32_t below(uint32_t n) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(seed >> 33) % n;
}

typedef struct reader {
    int fd;
    uint64_t seed;
    uint64_t records, missed, marks, needed;
    uint32_t next;
} reader_t;

/* Numbers rise by one, but for as many as are said to be missing. */
static void *read_all(void *arg) {
    reader_t *r = arg;
    us_trace_rec_t rec;
    size_t have = 0;
    ssize_t n;
    for (uint64_t k = 0; (n = read(r->fd, (uint8_t *)&rec + have, sizeof rec - have)) > 0; k++) {
        have += (size_t)n;
        if (have < sizeof rec)
            continue;
        have = 0;
        if (rec.what == US_TRACE_MISSED) {
            CHECK(rec.entry > 0);
            r->missed += rec.entry;
            r->next += rec.entry;
            r->marks++;
            continue;
        }
        CHECK(rec.entry == r->next && rec.when == rec.entry * 3ull && rec.zero == 0);
        r->next++;
        r->records++;
        r->needed += rec.what == US_TRACE_GONE;
        if (k % 1500 == 0)
            usleep(3000);
    }
    CHECK(n == 0 && have == 0);
    return NULL;
}

static void slow_reader(void) {
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    CHECK(fcntl(pipes[1], F_SETPIPE_SZ, 4096) >= 0);
    static us_trace_t t;
    memset(&t, 0, sizeof t);
    reader_t r = {.fd = pipes[0]};
    pthread_t thread;
    CHECK(us_trace_open(&t, pipes[1], RING) == 0 && t.on);
    uint32_t number = 0;
    for (; number < 1000; number++) /* more than ring and pipe hold */
        us_trace_add(&t, US_KIND_POOLED, 1, number, number * 3ull);
    CHECK(us_trace_lacks(&t) > 0);
    CHECK(pthread_create(&thread, NULL, read_all, &r) == 0);
    uint64_t needed = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t n = below(2 * RING); n > 0; n--) {
            const uint64_t lacks = us_trace_lacks(&t);
            if (below(8) == 0) {
                const us_trace_rec_t rec = {.what = US_TRACE_GONE, .entry = number, .when = number * 3ull};
                us_trace_put(&t, &rec, 1, true);
                needed += us_trace_lacks(&t) == lacks;
            } else {
                us_trace_add(&t, US_KIND_POOLED, 1, number, number * 3ull);
            }
            number++;
        }
        if (below(4) == 0)
            usleep(below(2000));
        if (round % 50 == 25) /* longer than the writer sleeps */
            usleep(120 * 1000);
    }
    const uint64_t lacks = us_trace_close(&t);
    close(pipes[1]);
    CHECK(pthread_join(thread, NULL) == 0);
    close(pipes[0]);
    CHECK(r.next == number);
    CHECK(r.records + r.missed == number);
    CHECK(r.missed == lacks && r.needed == needed);
    CHECK(r.missed > 0 && r.marks > 0 && r.records > RING);
}

/* Nobody reads: the ring fills, all but its spare part. */
static void full_ring(void) {
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    CHECK(fcntl(pipes[1], F_SETPIPE_SZ, 4096) >= 0);
    static uint8_t page[4096];
    CHECK(write(pipes[1], page, sizeof page) == sizeof page); /* the writer stands still from its first write on */
    static us_trace_t t;
    memset(&t, 0, sizeof t);
    CHECK(us_trace_open(&t, pipes[1], RING) == 0);
    for (uint32_t k = 0; k < RING; k++)
        us_trace_add(&t, US_TRACE_OUT, 0, k, k);
    CHECK(us_trace_lacks(&t) == US_TRACE_SPARE);
    us_trace_rec_t three[3] = {{.what = US_TRACE_REGION}, {.what = US_TRACE_MORE}, {.what = US_TRACE_MORE}};
    for (int k = 0; k < (US_TRACE_SPARE - 1) / 3; k++) /* one for what says that some are missing */
        us_trace_put(&t, three, 3, true);
    CHECK(us_trace_lacks(&t) == US_TRACE_SPARE);
    us_trace_put(&t, three, 3, true);
    CHECK(us_trace_lacks(&t) == US_TRACE_SPARE + 3);
    close(pipes[0]);                                        /* and is woken by this, with an error */
    CHECK(us_trace_close(&t) == RING + US_TRACE_SPARE + 3); /* all that the ring holds, and what it does not */
    CHECK(atomic_load(&t.error) == EPIPE);
    close(pipes[1]);
}

static void full_disk(void) {
    const int fd = open("/dev/full", O_WRONLY);
    CHECK(fd >= 0);
    static us_trace_t t;
    memset(&t, 0, sizeof t);
    CHECK(us_trace_open(&t, fd, RING) == 0);
    for (uint32_t k = 0; k < 10; k++)
        us_trace_add(&t, US_TRACE_OUT, 0, k, k);
    CHECK(us_trace_close(&t) == 10 && atomic_load(&t.error) == ENOSPC);
    CHECK(us_trace_close(&t) == 10); /* once more is nothing */
    close(fd);
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    slow_reader();
    full_ring();
    full_disk();
    puts("ok");
    return 0;
}
