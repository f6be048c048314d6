/* SPDX-License-Identifier: MIT */
/*
 * What the tests in C of codecs, filters and buckets share: CHECK, which names what is not so and the seed, random
 * numbers, and memory behind which nothing may be touched. Each program is one file, so it has a seed of its own.
 */
#ifndef US_CHECK_H
#define US_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define CHECK(cond)                                                                          \
    do {                                                                                     \
        if (!(cond)) {                                                                       \
            printf("%s:%d: %s: seed %llu: %s\n", __FILE__, __LINE__, __func__, seed, #cond); \
            fflush(stdout);                                                                  \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

static unsigned long long seed;
static uint64_t state; /* not 0 */

static inline uint64_t rnd(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545F4914F6CDD1Du >> 8;
}

static inline uint32_t below(uint32_t n) { return (uint32_t)(rnd() % n); }

/* Room for size bytes that end where an unmapped page begins: neither reads nor writes may pass the end. */
static inline unsigned char *fenced(size_t size) {
    enum { FENCE = 4096 };
    size_t room = (size + FENCE - 1) / FENCE * FENCE;
    unsigned char *p = mmap(NULL, room + FENCE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    CHECK(mprotect(p + room, FENCE, PROT_NONE) == 0);
    return p + room;
}

#endif
