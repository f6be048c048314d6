/* SPDX-License-Identifier: MIT
 *
 * Sleeping and waking: a worker reads `bell`, looks at both rings, and sleeps only while `bell` still has
 * that value. The loop posts, then raises `bell`, then looks for sleepers; a worker counts itself a sleeper
 * before it waits. So either the worker's wait sees the new bell, or the loop sees the sleeper.
 */
#include "worker.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"
#include "sys.h"

enum { COPY_TRIES = 16, RUN_MAX = 64 << 10 /* bytes, of neighbours */ };

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void futex_wake(_Atomic uint32_t *word, int n) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* ---- rings ------------------------------------------------------------------------------------------ */

/* Outstanding jobs are at most US_JOBS, so a position is not written again before it was taken. */
static us_job_t *take(us_crew_t *c, int kind) {
    uint32_t tail = us_atomic_load_explicit(&c->todo[kind].tail, memory_order_relaxed);
    for (;;) {
        uint32_t head = us_atomic_load_explicit(&c->todo[kind].head, memory_order_acquire);
        if (tail == head)
            return NULL;
        uint16_t id = us_atomic_load_explicit(&c->todo[kind].id[tail % US_JOBS], memory_order_relaxed);
        if (us_atomic_compare_exchange_weak_explicit(&c->todo[kind].tail, &tail, tail + 1, memory_order_acq_rel,
                                                     memory_order_relaxed))
            return &c->job[id];
    }
}

us_job_t *us_crew_job(us_crew_t *c) { return c->idle_n == 0 ? NULL : &c->job[c->idle[--c->idle_n]]; }

void us_crew_free(us_crew_t *c, us_job_t *job) { c->idle[c->idle_n++] = (uint16_t)(job - c->job); }

static void hand_over(us_crew_t *c, us_job_t *job) {
    int k = job->kind;
    us_atomic_store_explicit(&job->phase, US_QUEUED, memory_order_relaxed);
    uint32_t head = us_atomic_load_explicit(&c->todo[k].head, memory_order_relaxed);
    us_atomic_store_explicit(&c->todo[k].id[head % US_JOBS], (uint16_t)(job - c->job), memory_order_relaxed);
    us_atomic_store_explicit(&c->todo[k].head, head + 1, memory_order_release);
}

static void end_run(us_crew_t *c) {
    if (c->run.first != NULL)
        hand_over(c, c->run.first);
    c->run.first = NULL;
}

void us_crew_post(us_crew_t *c, us_job_t *job) {
    job->more = NULL;
    job->turn = c->turn++;
    if (job->kind != US_JOB_SWAP_IN || job->codec == US_FILL) {
        hand_over(c, job);
        return;
    }
    us_job_t *last = c->run.last;
    if (c->run.first != NULL && last->dst + last->raw == job->dst && last->region == job->region &&
        last->clean == job->clean && c->run.bytes + job->raw <= RUN_MAX) {
        last->more = job;
        c->run.bytes += job->raw;
    } else {
        end_run(c);
        c->run.first = job;
        c->run.bytes = job->raw;
    }
    c->run.last = job;
}

void us_crew_ring(us_crew_t *c) {
    end_run(c);
    us_atomic_fetch_add(&c->bell, 1);
    if (us_atomic_load(&c->sleepers) > 0)
        futex_wake(&c->bell, INT_MAX);
}

/* A worker finishes jobs of one kind in the order in which they were posted, so the oldest of a kind is the first that some
 * worker has of it. Kinds are mixed seldom enough that a worker's very first will do. */
us_job_t *us_crew_done(us_crew_t *c) {
    us_worker_t *from = NULL;
    us_job_t *first = NULL;
    for (int i = 0; i < c->n; i++) {
        us_worker_t *w = &c->worker[i];
        if (us_atomic_load_explicit(&w->done_head, memory_order_acquire) == w->done_seen)
            continue;
        us_job_t *j = &c->job[w->done[w->done_seen % US_JOBS]];
        if (first == NULL || (int32_t)(j->turn - first->turn) < 0) {
            first = j;
            from = w;
        }
    }
    if (from != NULL)
        from->done_seen++;
    return first;
}

/* ---- the work --------------------------------------------------------------------------------------- */

static void compress_job(us_worker_t *w, us_job_t *j) {
    uint8_t queued = US_QUEUED;
    if (!us_atomic_compare_exchange_strong(&j->phase, &queued, US_BUSY))
        return; /* cancelled: the block has come back and was written */
    US_DELAY(US_D_COMPRESS);
    j->status = 0;
    if (us_is_filled(j->src, j->raw, &j->word)) {
        j->codec = US_FILL;
        j->len = 0;
        return;
    }
    const int codec = w->crew->codec;
    if (codec != US_CODEC_NONE) {
        int how = codec;
        const int n = us_choice_compress(j->choice, &w->probe, w->codec, &how, w->crew->level, j->src, j->raw, j->out,
                                         j->raw - j->raw / 16);
        if (n > 0) {
            j->codec = (uint8_t)how;
            j->len = (uint32_t)n;
            return;
        }
        j->status = n == US_CHOICE_SKIPPED ? 2 : 1;
    }
    j->codec = US_CODEC_NONE;
    j->len = j->raw;
}

/* What gains less than 1/16 stays as it is: to decompress it would then only cost more. */
static void recompress(us_worker_t *w, us_job_t *j) {
    const void *raw = j->src;
    US_DELAY(US_D_COMPRESS);
    j->status = 0;
    if (j->codec != US_CODEC_NONE) {
        if (us_decompress(w->codec, j->codec, j->src, j->len, w->scratch, j->raw) != 0)
            return; /* the next fault finds that out as well */
        raw = w->scratch;
    }
    int how = j->to_codec;
    const int n = us_choice_compress(j->choice, &w->reprobe, w->codec, &how, j->to_level, raw, j->raw, j->out,
                                     j->len - j->len / 16);
    if (n <= 0)
        return;
    j->codec = (uint8_t)how;
    j->len = (uint32_t)n;
    j->status = 1;
}

void us_worker_swap_in(us_worker_t *w, us_job_t *j) {
    const void *from = j->src;
    if (j->codec == US_FILL) {
        from = w->crew->zero;
        if (j->word != 0) {
            us_fill(w->scratch, j->raw, j->word);
            from = w->scratch;
        }
    } else if (j->codec != US_CODEC_NONE) {
        j->status = us_decompress(w->codec, j->codec, j->src, j->len, w->scratch, j->raw);
        if (j->status != 0)
            return;
        from = w->scratch;
    }
    US_DELAY(US_D_SWAP_IN);
    uint64_t off = 0;
    for (int tries = 0; off < j->raw && tries < COPY_TRIES; tries++) {
        uint64_t done;
        j->status = us_sys_copy(j->uffd, j->dst + off, (const uint8_t *)from + off, j->raw - off, j->clean, &done);
        off += done;
        if (j->status != -EAGAIN)
            break;
    }
    j->copied = us_now_ns();
    US_DELAY(US_D_SWAPPED_IN);
}

/* All of a run, in one copy where that goes well. */
static void swap_in_run(us_worker_t *w, us_job_t *first) {
    uint64_t bytes = 0, done = 0;
    for (us_job_t *j = first; j != NULL; bytes += j->raw, j = j->more) {
        if (us_decompress(w->codec, j->codec, j->src, j->len, w->scratch + bytes, j->raw) != 0)
            break;
        j->status = 0;
    }
    US_DELAY(US_D_SWAP_IN);
    if (bytes > 0)
        us_sys_copy(first->uffd, first->dst, w->scratch, bytes, first->clean, &done);
    const uint64_t now = us_now_ns();
    US_DELAY(US_D_SWAPPED_IN);
    uint64_t end = 0;
    for (us_job_t *j = first; j != NULL; j = j->more) {
        end += j->raw;
        j->copied = now;
        if (end > done)
            us_worker_swap_in(w, j);
    }
}

static void ring_loop(us_crew_t *c) {
    if (us_atomic_exchange(&c->ring->loop_asleep, 0) != 0)
        us_sys_eventfd_ring(c->notify);
}

static void *worker_main(void *arg) {
    us_worker_t *w = arg;
    us_crew_t *c = w->crew;
    prctl(PR_SET_NAME, "uswap-worker");
    w->tid = (int)syscall(SYS_gettid);
    bool told = true;
    for (;;) {
        const uint32_t bell = us_atomic_load(&c->bell); /* before stop and the rings are looked at */
        if (us_atomic_load(&c->stop) != 0)
            break;
        us_job_t *j = take(c, US_JOB_SWAP_IN);
        if (j == NULL)
            j = take(c, US_JOB_COMPRESS);
        if (j == NULL)
            j = take(c, US_JOB_RECOMPRESS);
        if (j == NULL) {
            if (!told) {
                ring_loop(c);
                told = true;
            }
            struct timespec t;
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
            us_atomic_store_explicit(&w->cpu_ns, (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec,
                                     memory_order_relaxed);
            us_atomic_fetch_add(&c->sleepers, 1);
            futex_wait(&c->bell, bell);
            us_atomic_fetch_sub(&c->sleepers, 1);
            continue;
        }
        if (j->kind == US_JOB_COMPRESS)
            compress_job(w, j);
        else if (j->kind == US_JOB_RECOMPRESS)
            recompress(w, j);
        else if (j->more != NULL)
            swap_in_run(w, j);
        else
            us_worker_swap_in(w, j);
        US_DELAY(US_D_COMPRESSED);
        uint32_t head = us_atomic_load_explicit(&w->done_head, memory_order_relaxed);
        for (; j != NULL; j = j->more)
            w->done[head++ % US_JOBS] = (uint16_t)(j - c->job);
        us_atomic_store(&w->done_head, head); /* before loop_asleep is looked at */
        told = false;
        if (us_atomic_load_explicit(&c->ring->urgent, memory_order_relaxed) != 0) {
            ring_loop(c);
            told = true;
        }
    }
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------------- */

int us_worker_open(us_worker_t *w, us_crew_t *c, uint32_t max_block) {
    w->crew = c;
    w->scratch = us_sys_reserve(max_block);
    return w->scratch == NULL ? -ENOMEM : us_codec_ctx_new(&w->codec, max_block);
}

void us_worker_close(us_worker_t *w, uint32_t max_block) {
    us_codec_ctx_free(w->codec);
    if (w->scratch != NULL)
        munmap(w->scratch, max_block);
    w->codec = NULL;
    w->scratch = NULL;
}

int us_crew_start(us_crew_t *c, int workers, uint32_t max_block) {
    if (workers < 1 || workers > US_WORKERS_MAX)
        return -EINVAL;
    c->worker = us_aligned_alloc(64, us_align_up(sizeof *c->worker * (size_t)workers, 64));
    c->job = us_calloc(US_JOBS, sizeof *c->job);
    c->idle = us_calloc(US_JOBS, sizeof *c->idle);
    if (c->worker == NULL || c->job == NULL || c->idle == NULL)
        return -ENOMEM;
    memset(c->worker, 0, sizeof *c->worker * (size_t)workers);
    c->made = workers;
    c->max_block = max_block;
    for (int i = US_JOBS - 1; i >= 0; i--)
        c->idle[c->idle_n++] = (uint16_t)i;
    int err = 0;
    for (int i = 0; i < workers && err == 0; i++) {
        us_worker_t *w = &c->worker[i];
        err = us_worker_open(w, c, max_block);
        if (err == 0)
            err = us_sys_thread(&w->thread, NULL, worker_main, w);
        if (err == 0)
            c->n++;
    }
    return err;
}

void us_crew_stop(us_crew_t *c) {
    us_atomic_store(&c->stop, 1);
    us_atomic_fetch_add(&c->bell, 1);
    futex_wake(&c->bell, INT_MAX);
    for (int i = 0; i < c->n; i++)
        pthread_join(c->worker[i].thread, NULL);
    for (int i = 0; i < c->made; i++)
        us_worker_close(&c->worker[i], c->max_block);
    free(c->worker);
    free(c->job);
    free(c->idle);
    c->worker = NULL;
    c->job = NULL;
    c->idle = NULL;
    c->n = c->made = 0;
}
