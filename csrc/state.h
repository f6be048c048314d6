/* SPDX-License-Identifier: MIT
 *
 * The pager's state: structs, and what can be read off them. Who has the pager's lock owns all of it; what workers touch is
 * in worker.h and says so.
 */
#ifndef US_STATE_H
#define US_STATE_H

#include "debug.h"
#include "place.h"
#include "space.h"
#include "store.h"
#include "tier_ops.h"
#include "trace.h"
#include "sys.h"
#include "worker.h"

enum { US_STREAMS = 4, US_BATCH = 256 };

/* A run of faults at rising blocks. The blocks before `ahead` are in or on their way, but one, the
 * marker: it is left out on purpose, so that the fault on it tells how far the reader has come. */
typedef struct us_stream {
    uint32_t marker; /* block whose fault starts the next window */
    uint32_t ahead;  /* first block that no window has covered */
    uint32_t window; /* blocks; 0: not yet a run */
    uint32_t used;   /* region's clock, for replacement */
} us_stream_t;

typedef struct us_region {
    uint64_t addr, len;
    uint32_t id, first, count; /* first: index in the table */
    uint8_t shift;
    bool active, frozen;
    bool wrapped;                  /* it held bytes before it was a region */
    bool going;                    /* it is being removed: a fault on it is a stray */
    bool handled;                  /* inline: handlers in the client may claim its blocks */
    int uffd;                      /* it is registered with */
    uint32_t plain_from, plain_to; /* blocks, counted from first: E8 */
    uint32_t jobs;                 /* of workers, not yet committed */
    uint32_t clock;                /* faults that read-ahead has looked at */
    uint32_t tries;                /* blocks that would be swapped in writable, but for each so-manieth */
    uint32_t write_bias;           /* 0..US_BIAS_MAX: how often a clean block of ours is written soon */
    us_stream_t stream[US_STREAMS];
    us_choice_t choice[US_POOLS]; /* the workers': how its blocks are compressed for each pool */
} us_region_t;

typedef struct us_node {
    uint32_t prev, next;
} us_node_t;

enum { US_SMALL = 0, US_MAIN = 1 };
enum { US_ROUNDS = 7, US_TURNS = 8 }; /* that a block can earn; of blocks that go round for one that leaves */

/* left <= earned <= US_ROUNDS; left > 0 only in the main queue. */
typedef struct us_rounds {
    uint8_t earned : 4; /* by coming back lately */
    uint8_t left : 4;   /* of these, as long as it is queued */
} us_rounds_t;
enum { US_BIAS_MAX = 1024, US_BIAS_WRITE = 768, US_STREAM_MIN = 2 };

#define US_SLOT_FREE 0x80000000u

/* The ring of slots: [tail, head) in use, in pages; a freed slot goes when it reaches the tail. */
typedef struct us_outbox {
    uint32_t pages, head, tail, used;
    uint32_t *span;      /* at a slot's first page: its pages, and US_SLOT_FREE when given up */
    us_job_t **job;      /* at a slot's first page: the job that compresses it */
    uint8_t *compressed; /* private, as large as the outbox: where a slot's job writes its output */
} us_outbox_t;

/* A command as the pager posted it. The ring's copy is in memory that the client can write: of that only the status is
 * read back. */
typedef struct us_posted {
    uint32_t entry, region; /* entry US_NONE: a NOFORK, of no block */
    uint32_t len, slot;     /* as in us_cmd_t */
    us_job_t *job;          /* of MOVE and COPY; else NULL */
} us_posted_t;

/* A fault on a block that is being swapped in: who swaps it in wakes the thread. */
enum { US_WAITERS = 64 };
typedef struct us_waiter {
    uint32_t entry;
    uint64_t since; /* ns: its message */
} us_waiter_t;

/* Who serves, see lock.h and server.h. */
typedef struct us_servers {
    pthread_mutex_t lock;
    bool has_lock;      /* it was initialised */
    bool on;            /* there is a second server */
    us_worker_t *owner; /* of the lock: the loop's or the second one's context and scratch */
    us_worker_t loop, second;
    uint32_t apart;          /* blocks that are copied in with the lock given back */
    uint32_t last_tid;       /* of the last fault */
    uint32_t mixed;          /* 0..MIXED_MAX: how often lately the thread was another than the one before */
    uint32_t count;          /* messages of the second server, for when to look where its thread is */
    int cpu;                 /* where it is bound; -1 nowhere */
    uint64_t last;           /* ns: the last fault */
    _Atomic uint32_t active; /* futex: the second server serves */
    _Atomic uint32_t stop;
} us_servers_t;

/* One client's memory: what of it is where, what leaves it, and how much of it may be resident. */
typedef struct us_mm {
    us_mm_config_t cfg;
    us_space_t space;
    us_stats_t *s;

    us_node_t *node;     /* by entry */
    uint32_t *stamp;     /* by entry: policy clock at which it left; 0 never */
    uint16_t *pins;      /* by entry */
    us_rounds_t *rounds; /* by entry */
    us_queue_t queue[2];
    uint32_t evict_clock; /* pages that have left, ever */

    us_region_t **region; /* by id; NULL where free */
    uint32_t regions;     /* length of region[] */
    us_region_t **byaddr; /* active and inactive ones, by address */
    us_region_t **byfirst;
    uint32_t live;
    uint32_t next_id;

    us_posted_t posted[US_RING];
    uint64_t head, seen;    /* of the ring: posted, and committed */
    uint64_t moved_at;      /* ns: the mover's last status, or a command when there was none under way */
    uint64_t stopped_until; /* ns: the client was found stopped: nothing can leave, so the limit gives way until then */
    us_outbox_t outbox;

    uint64_t resident;    /* E6, and what workers are swapping in; in the books */
    uint64_t held;        /* admitted, and not resident yet: counted in space.in->resident alone */
    uint32_t asks;        /* TAKEN */
    uint32_t asks_seen;   /* of space.in->asked */
    uint32_t ask_hand;    /* the next of space.in->ask to look at */
    uint32_t handled;     /* inline regions */
    bool follows;         /* each note is read at once */
    uint64_t plain;       /* of these: PLAIN */
    uint64_t plain_until; /* ns: registering failed, and is not tried again until then */
    uint64_t leaving;     /* of these: in posted commands */
    uint64_t mark_high, mark_low;
    uint64_t top; /* bytes: above the limit by one call (a wrap, a lower limit), and on the way down from here; or 0 */
    uint32_t refused;       /* commands refused in a row: pinned, shared or locked pages */
    uint64_t refused_until; /* ns: no victims are looked for until then */
    us_waiter_t waiter[US_WAITERS];
    uint32_t waiters;
} us_mm_t;

/* The process: who serves, and where what has left lies. */
typedef struct us_pager {
    us_pager_config_t cfg;
    us_mm_t mm;               /* of its client */
    us_codec_ctx_t *codec;    /* the loop's own */
    us_crew_t crew;           /* the workers */
    us_tier_t tier[US_TIERS]; /* by id */
    uint32_t demand;          /* reads under way that threads stand still for */
    uint64_t demand_at;       /* ns: the last of these was begun */
    us_store_t store;         /* the swap file */
    us_recompress_t recompress[US_RECOMPRESSIONS];
    uint32_t recompressions; /* in use, or promised to a read */

    us_job_t *stalled[US_JOBS]; /* compressed, and the pool has no room until something is written out */
    uint32_t stalled_n;
    uint64_t pending;               /* raw bytes taken or in the outbox: they will want room in the pool */
    uint64_t gate_until, gate_used; /* no takes until then, unless the pool has emptied */

    bool reclaiming; /* there is more to look at, or to compact: the next step goes on */
    bool said_noroom;
    bool in_step;
    uint32_t parked;    /* faults that are tasks in Python */
    bool want_progress; /* somebody in Python waits for room */

    uint8_t *raw;        /* a decompressed block, 2 MiB */
    const uint8_t *zero; /* 2 MiB of zeros */
    uint8_t *filled;     /* a filled block, 2 MiB, of filled_word up to filled_len */
    uint64_t filled_word;
    uint32_t filled_len;

    us_event_t *event;
    uint32_t events, event_cap;
    int worker_fd;

    us_place_t place;
    us_trace_t trace;
    bool said_trace; /* that it can't be written */
    us_servers_t servers;
} us_pager_t;

/* Resident bytes, those that are promised included: of what handlers swap in too. */
static inline uint64_t us_mm_resident(const us_mm_t *m) {
    return us_atomic_load_explicit(&m->space.in->resident, memory_order_relaxed);
}

static inline uint64_t us_block_addr(const us_region_t *r, uint32_t i) {
    return r->addr + ((uint64_t)(i - r->first) << r->shift);
}
static inline uint32_t us_block_len(const us_region_t *r, uint32_t i) {
    uint64_t off = (uint64_t)(i - r->first) << r->shift;
    return (uint32_t)us_min(1ull << r->shift, r->len - off);
}
/* Of a call that the kernel refuses for the moment (EAGAIN), while the client's mappings change: so often in one go. */
enum { US_TRIES = 16 };
/* The blocks that the region's first `bytes` take, the last one maybe in part. */
static inline uint32_t us_region_blocks(const us_region_t *r, uint64_t bytes) {
    return (uint32_t)((bytes + (1ull << r->shift) - 1) >> r->shift);
}
/* Entries looked at without memory of their own to work on, in one go; then the loop has its turn. */
enum { US_SLICE = 16384 };
/* The first entry of [i, end) that may be other than EMPTY, and the one after i. */
static inline uint32_t us_table_seek(const us_mm_t *m, uint32_t i, uint32_t end) {
    return us_space_seek(&m->space, m->cfg.space_fd, i, end);
}
static inline uint32_t us_table_next(const us_mm_t *m, uint32_t i, uint32_t end) {
    return us_space_next(&m->space, m->cfg.space_fd, i, end);
}

/* Sets and clears flags of who waits for a block and how it is queued; all else of an entry is changed by entry.c alone. */
static inline void us_entry_flag(us_mm_t *m, uint32_t i, uint8_t clear, uint8_t set) {
    US_ASSERT(((clear | set) & (US_F_LOCKED | US_F_CLEAN | US_F_KEPT)) == 0 && (set & US_F_WRITING) == 0);
    us_entry_t e = m->space.table[i];
    e.flags = (uint8_t)((e.flags & ~clear) | set);
    us_entry_store(&m->space.table[i], e);
}

/* A worker or a read has swapped block i in, and no fault: an access to come, but at the end of a region. */
static inline void us_trace_ahead(us_pager_t *p, const us_region_t *r, uint32_t i) {
    if (p->trace.on && !r->frozen)
        us_trace_add(&p->trace, US_TRACE_AHEAD, 0, i, us_now_ns());
}

static inline us_tier_t *us_tier(us_pager_t *p, us_entry_t e) { return &p->tier[us_tier_of(e)]; }
/* Where an object lies that is in a pool. */
static inline const uint8_t *us_object(us_pager_t *p, us_entry_t e) {
    return us_pool_at(us_tier(p, e)->pool, us_offset_of(e));
}

/* Nobody has block i, and it is not on its way out. */
static inline bool us_is_settled(const us_mm_t *m, uint32_t i) {
    const us_entry_t e = m->space.table[i];
    return e.state != US_LEAVING && e.state != US_OUTBOX && (e.flags & US_F_LOCKED) == 0;
}

/* Is it the loop that has the lock? pre: the caller has it. */
static inline bool us_server_is_loop(const us_servers_t *s) { return s->owner == &s->loop; }

static inline bool us_server_shared(const us_servers_t *s) {
    return us_atomic_load_explicit(&s->active, memory_order_relaxed) != 0;
}

#endif
