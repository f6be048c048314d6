/* SPDX-License-Identifier: MIT
 *
 * worker_test [SEED]: what several workers finish comes back in the order in which it was posted; neighbours are brought
 * in by one copy, and each of them is there, or is said not to be, however the copy and the bytes turn out.
 *
 * In place of UFFDIO_COPY (-Wl,--wrap=us_sys_copy) pages are copied to an array, which notes which of them are there.
 */
#include "worker.h"

#include <string.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "sys.h"

enum { BLOCKS = 256, MAX_BLOCK = 2 << 20 };
#define BASE 0x100000000ull /* where the client's memory is said to be */

static uint8_t memory[BLOCKS * US_PAGE];
static bool there[BLOCKS];
static uint64_t copied[BLOCKS], copies; /* bytes that each call was asked for */
static uint64_t cut;                    /* the next call that is longer stops here, by EAGAIN; 0: none does */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int __wrap_us_sys_copy(int uffd, uint64_t dst, const void *src, uint64_t len, bool protect, uint64_t *done);
int __wrap_us_sys_copy(int uffd, uint64_t dst, const void *src, uint64_t len, bool protect, uint64_t *done) {
    (void)uffd, (void)protect;
    int res = 0;
    pthread_mutex_lock(&lock);
    copied[copies++ % BLOCKS] = len;
    *done = 0;
    while (*done < len && res == 0) {
        const uint64_t page = (dst - BASE + *done) / US_PAGE;
        if (there[page]) {
            res = -EEXIST;
        } else if (cut != 0 && *done == cut) {
            cut = 0;
            res = -EAGAIN;
        } else {
            memcpy(memory + page * US_PAGE, (const uint8_t *)src + *done, US_PAGE);
            there[page] = true;
            *done += US_PAGE;
        }
    }
    pthread_mutex_unlock(&lock);
    return res;
}

static us_ring_t ring;
static us_crew_t crew;
static uint8_t zero[MAX_BLOCK], pages[BLOCKS][US_PAGE] __attribute__((aligned(64))), out[BLOCKS][US_PAGE];

static void start(int workers) {
    crew = (us_crew_t){.ring = &ring, .zero = zero, .codec = US_CODEC_NONE};
    CHECK(us_crew_start(&crew, workers, MAX_BLOCK) == 0);
    memset(memory, 0, sizeof memory);
    memset(there, 0, sizeof there);
    memset(copied, 0, sizeof copied);
    copies = cut = 0;
}

static us_job_t *job(int kind, uint32_t block) {
    us_job_t *j = us_crew_job(&crew);
    CHECK(j != NULL);
    j->kind = (uint8_t)kind;
    j->codec = US_CODEC_NONE;
    j->clean = true;
    j->entry = block;
    j->region = 0;
    j->raw = j->len = US_PAGE;
    j->status = -1;
    j->word = 0;
    j->dst = BASE + (uint64_t)block * US_PAGE;
    j->src = pages[block];
    j->out = out[block];
    return j;
}

static us_job_t *next_done(void) {
    us_job_t *j;
    while ((j = us_crew_done(&crew)) == NULL)
        usleep(20);
    return j;
}

/* All are finished before the first result is asked for. */
static void in_order(void) {
    us_delays[US_D_COMPRESSED] = 50; /* so that each of them has a part */
    start(3);
    us_choice_t none = {0};
    for (uint32_t k = 0; k < BLOCKS; k++) {
        us_job_t *j = job(US_JOB_COMPRESS, k);
        j->choice = &none;
        us_crew_post(&crew, j);
        if (below(8) == 0)
            us_crew_ring(&crew);
    }
    us_crew_ring(&crew);
    for (uint32_t done = 0; done < BLOCKS;) {
        done = 0;
        for (int i = 0; i < crew.n; i++)
            done += atomic_load(&crew.worker[i].done_head);
        usleep(20);
    }
    for (uint32_t k = 0; k < BLOCKS; k++) {
        us_job_t *j = us_crew_done(&crew);
        CHECK(j != NULL && j->entry == k && j->codec == US_CODEC_NONE);
        us_crew_free(&crew, j);
    }
    CHECK(us_crew_done(&crew) == NULL && us_crew_busy(&crew) == 0);
    us_crew_stop(&crew);
    us_delays[US_D_COMPRESSED] = 0;
}

/* Asks for `n` results; blocks whose bit is set in `bad` are said to have failed by `why`. */
static void take(uint32_t n, const bool *bad, int why) {
    for (uint32_t k = 0; k < n; k++) {
        us_job_t *j = next_done();
        CHECK(j->status == (bad != NULL && bad[j->entry] ? why : 0));
        if (j->status == 0)
            CHECK(memcmp(memory + (uint64_t)j->entry * US_PAGE, pages[j->entry], US_PAGE) == 0);
        us_crew_free(&crew, j);
    }
    CHECK(us_crew_done(&crew) == NULL && us_crew_busy(&crew) == 0);
}

/* Copies of these lengths, in pages, in whatever order the workers came to them. */
static void was_copied(const uint32_t *lengths, uint32_t n) {
    CHECK(copies == n);
    for (uint32_t k = 0; k < n; k++) {
        uint32_t at = 0;
        while (at < n && copied[at] != lengths[k] * US_PAGE)
            at++;
        CHECK(at < n);
        copied[at] = 0;
    }
}

static void runs(void) {
    start(1); /* neighbours: of 40 pages the first 16, the next, the rest */
    for (uint32_t k = 0; k < 40; k++)
        us_crew_post(&crew, job(US_JOB_SWAP_IN, k));
    us_crew_ring(&crew);
    take(40, NULL, 0);
    was_copied((uint32_t[]){16, 16, 8}, 3);
    us_crew_stop(&crew);

    start(2); /* a gap, another protection, another region, a filled block, the other way round */
    for (uint32_t k = 0; k < 10; k++) {
        if (k == 3)
            continue;
        us_job_t *j = job(US_JOB_SWAP_IN, k);
        j->clean = k < 6;
        j->region = k >= 8;
        us_crew_post(&crew, j);
    }
    us_job_t *filled = job(US_JOB_SWAP_IN, 10);
    filled->codec = US_FILL;
    memset(pages[10], 0, US_PAGE);
    us_crew_post(&crew, filled);
    us_crew_post(&crew, job(US_JOB_SWAP_IN, 12));
    us_crew_post(&crew, job(US_JOB_SWAP_IN, 11));
    us_crew_ring(&crew);
    take(12, NULL, 0);
    was_copied((uint32_t[]){3, 2, 2, 2, 1, 1, 1}, 7);
    us_crew_stop(&crew);
}

/* Whatever goes wrong with one block does not harm its neighbours. */
static void failures(void) {
    bool bad[BLOCKS] = {false};
    start(1); /* one can't be undone: the first, one in the middle, the last */
    for (uint32_t run = 0; run < 3; run++) {
        const uint32_t wrong = (uint32_t[]){0, 7, 15}[run];
        for (uint32_t k = 0; k < 16; k++) {
            us_job_t *j = job(US_JOB_SWAP_IN, 16 * run + k);
            if (k == wrong) {
                j->codec = US_CODEC_ZSTD; /* which is not loaded */
                bad[16 * run + k] = true;
            }
            us_crew_post(&crew, j);
        }
        us_crew_ring(&crew);
    }
    take(48, bad, -ENOSYS);
    us_crew_stop(&crew);

    start(1); /* the kernel has no time, at a block's border: the rest comes by itself */
    cut = 5 * US_PAGE;
    for (uint32_t k = 0; k < 16; k++)
        us_crew_post(&crew, job(US_JOB_SWAP_IN, k));
    us_crew_ring(&crew);
    take(16, NULL, 0);
    CHECK(cut == 0 && copies == 12);
    us_crew_stop(&crew);

    start(
        1); /* a page is there already, in the middle of a block of two: that block is said to be, those after it come */
    memset(bad, 0, sizeof bad);
    there[7] = true;
    bad[6] = true;
    for (uint32_t k = 0; k < 16; k += 2) {
        us_job_t *j = job(US_JOB_SWAP_IN, k);
        j->raw = j->len = 2 * US_PAGE;
        us_crew_post(&crew, j);
    }
    us_crew_ring(&crew);
    take(8, bad, -EEXIST);
    for (uint32_t k = 0; k < 16; k++)
        CHECK(there[k] && (k == 7 || memcmp(memory + k * US_PAGE, pages[k], US_PAGE) == 0));
    us_crew_stop(&crew);
}

/* Neighbours, blocks by themselves and blocks to compress, by several workers, with results taken meanwhile. */
static void at_random(void) {
    start(3);
    us_choice_t none = {0};
    uint32_t out_there = 0, posted = 0, brought = 0;
    while (posted < BLOCKS || out_there > 0) {
        for (uint32_t n = posted < BLOCKS ? below(40) : 0; n > 0 && posted < BLOCKS; n--, posted++, out_there++) {
            const bool press = below(4) == 0;
            us_job_t *j = job(press ? US_JOB_COMPRESS : US_JOB_SWAP_IN, posted);
            j->choice = &none;
            j->clean = below(8) != 0;
            brought += !press;
            us_crew_post(&crew, j);
        }
        us_crew_ring(&crew);
        for (us_job_t *j; (j = us_crew_done(&crew)) != NULL; out_there--) {
            CHECK(j->kind == US_JOB_COMPRESS || j->status == 0);
            CHECK(j->kind == US_JOB_COMPRESS || memcmp(memory + j->entry * US_PAGE, pages[j->entry], US_PAGE) == 0);
            brought -= j->kind == US_JOB_SWAP_IN;
            us_crew_free(&crew, j);
        }
    }
    CHECK(brought == 0 && us_crew_busy(&crew) == 0);
    us_crew_stop(&crew);
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    state = seed | 1;
    for (uint32_t k = 0; k < BLOCKS; k++) {
        for (uint32_t i = 0; i < US_PAGE / 8; i++)
            ((uint64_t *)(void *)pages[k])[i] = rnd();
    }
    in_order();
    runs();
    failures();
    for (int k = 0; k < 100; k++)
        at_random();
    return 0;
}
