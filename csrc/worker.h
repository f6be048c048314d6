/* SPDX-License-Identifier: MIT
 *
 * The workers: C threads of the pager that compress what is in the outbox, decompress and install what
 * read-ahead wants, and recompress what is demoted to a denser pool. They decide nothing and write no entry: a job says all they need, its result goes back
 * to the loop.
 *
 *   loop     todo[kind] ring ->  worker  -> done ring (one for each worker)   loop
 *
 * A job is the loop's, then (from the store of todo's head) a worker's, then (from the store of done's
 * head) the loop's again. `phase` is the one word both touch meanwhile.
 */
#ifndef US_WORKER_H
#define US_WORKER_H

#include <pthread.h>

#include "choice.h"
#include "types.h"

_Static_assert(US_FILTERS <= US_FILL >> 4, "a filled block is told apart from a filtered one");

enum { US_JOBS = 1024 };
enum { US_JOB_SWAP_IN = 0, US_JOB_COMPRESS = 1, US_JOB_RECOMPRESS = 2, US_JOB_KINDS = 3 };
enum { US_QUEUED = 0, US_BUSY = 1, US_CANCELLED = 2 };

typedef struct us_job {
    uint8_t kind;
    uint8_t codec; /* COMPRESS: out; SWAP_IN: how it is; RECOMPRESS: how it is, then how it is in out, or as it was */
    uint8_t to_codec; /* RECOMPRESS; without a filter */
    uint8_t from;     /* SWAP_IN: the tier whose read has the bytes; 0: they lie in memory */
    int32_t to_level;
    bool clean; /* SWAP_IN: install write-protected */
    _Atomic uint8_t phase;
    uint16_t gen;
    uint32_t entry, region;
    uint32_t raw;  /* bytes of the block */
    uint32_t len;  /* bytes compressed */
    uint32_t slot; /* COMPRESS: in the outbox */
    uint32_t part; /* RECOMPRESS: which us_recompress_t; SWAP_IN with `from`: which part of the tier's reads */
    int32_t
        status; /* SWAP_IN: 0 or -errno.  COMPRESS: 0, or 1 raw, 2 raw and not tried.  RECOMPRESS: 1 compressed anew */
    uint64_t dst;    /* SWAP_IN: client address */
    int uffd;        /* SWAP_IN: of the region */
    uint64_t copied; /* SWAP_IN: out: ns, when its bytes were in, with status 0 */
    uint32_t turn;   /* the order in which jobs were posted */
    uint64_t word;   /* a filled block's */
    const void *src;
    void *out;           /* COMPRESS, RECOMPRESS: room for raw bytes */
    us_choice_t *choice; /* COMPRESS, RECOMPRESS: the region's, for the pool it goes to */
    struct us_job *more; /* SWAP_IN: the block behind it, for which the same copy will do; NULL: none */
} us_job_t;

typedef struct us_worker {
    struct us_crew *crew;
    pthread_t thread;
    us_codec_ctx_t *codec;
    us_probe_t probe, reprobe;
    uint8_t *scratch;                        /* 2 MiB */
    _Alignas(64) _Atomic uint32_t done_head; /* written by the worker */
    _Alignas(64) uint32_t done_seen;         /* by the loop */
    uint16_t done[US_JOBS];
    _Atomic uint64_t cpu_ns;
    int tid;
} us_worker_t;

typedef struct us_crew {
    int uffd, notify;
    int codec, level;
    us_ring_t *ring;     /* for loop_asleep and urgent */
    const uint8_t *zero; /* 2 MiB of zeros */
    int n, made;         /* running; of worker[] */
    uint32_t max_block;
    uint32_t turn; /* of the next job */
    us_worker_t *worker;
    us_job_t *job;  /* US_JOBS of them */
    uint16_t *idle; /* the loop's stack of free jobs */
    uint32_t idle_n;
    struct { /* neighbours that were posted and not yet handed over */
        us_job_t *first, *last;
        uint32_t bytes;
    } run;
    struct {
        _Alignas(64) _Atomic uint32_t head; /* the loop */
        _Alignas(64) _Atomic uint32_t tail; /* workers, by compare and swap */
        _Atomic uint16_t id[US_JOBS];
    } todo[US_JOB_KINDS];
    _Alignas(64) _Atomic uint32_t bell; /* futex: counts calls */
    _Atomic uint32_t sleepers;
    _Atomic uint32_t stop;
} us_crew_t;

int us_crew_start(us_crew_t *c, int workers, uint32_t max_block);
void us_crew_stop(us_crew_t *c);
/* A context and a scratch buffer, without a thread. After a failure us_worker_close takes back what there is. */
int us_worker_open(us_worker_t *w, us_crew_t *c, uint32_t max_block);
void us_worker_close(us_worker_t *w, uint32_t max_block);
/* Decompresses and copies in, as the job says; its status tells how that went. */
void us_worker_swap_in(us_worker_t *w, us_job_t *job);
/* A free job, or NULL. */
us_job_t *us_crew_job(us_crew_t *c);
/* A worker may have it at once, but what is swapped in perhaps only after us_crew_ring, which rings the bell: neighbours
 * that are posted one after the other, in order, are swapped in by one copy. */
void us_crew_post(us_crew_t *c, us_job_t *job);
void us_crew_ring(us_crew_t *c);
/* The finished job that was posted first, or nearly, or NULL. The caller gives it back with us_crew_free. */
us_job_t *us_crew_done(us_crew_t *c);
void us_crew_free(us_crew_t *c, us_job_t *job);
static inline uint32_t us_crew_busy(const us_crew_t *c) { return US_JOBS - c->idle_n; }

#endif
