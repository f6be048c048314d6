/* SPDX-License-Identifier: MIT
 *
 * What the files of the pager half share. One thread, the loop, owns all of it; what workers touch is in
 * worker.h and says so.
 */
#ifndef US_PAGER_H
#define US_PAGER_H

#include "place.h"
#include "server.h"
#include "space.h"
#include "store.h"
#include "tier.h"
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
    bool wrapped;        /* it held bytes before it was a region */
    bool going;          /* it is being removed: a fault on it is a stray */
    uint32_t plain_from, plain_to; /* blocks, counted from first: E8 */
    uint32_t jobs;       /* of workers, not yet committed */
    uint32_t clock;      /* faults that read-ahead has looked at */
    uint32_t tries;      /* blocks that would be brought in writable, but for each so-manieth */
    uint32_t write_bias; /* 0..US_BIAS_MAX: how often a clean block of ours is written soon */
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
    uint32_t *span;  /* at a slot's first page: its pages, and US_SLOT_FREE when given up */
    us_job_t **job;  /* at a slot's first page: the job that compresses it */
    uint8_t *press;  /* private, as large as the outbox: where a slot's job writes its output */
} us_outbox_t;

/* A command as the pager posted it. The ring's copy is in memory that the client can write: of that only the status is
 * read back. */
typedef struct us_posted {
    uint32_t entry, region; /* entry US_NONE: a NOFORK, of no block */
    uint32_t len, slot; /* as in us_cmd_t */
    us_job_t *job; /* of a take; NULL for a drop */
} us_posted_t;

/* A fault on a block that is being brought in: who brings it wakes the thread. */
enum { US_WAITERS = 64 };
typedef struct us_waiter {
    uint32_t entry;
    uint64_t since; /* ns: its message */
} us_waiter_t;

typedef struct us_pager {
    us_pager_config_t cfg;
    us_space_t space;
    us_stats_t *s;
    us_codec_ctx_t *codec; /* the loop's own */

    us_node_t *node;  /* by entry */
    uint32_t *stamp;  /* by entry: policy clock at which it left; 0 never */
    uint16_t *pins;   /* by entry */
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
    uint64_t head, seen; /* of the ring: posted, and committed */
    uint64_t moved_at;   /* ns: the mover's last status, or a command when there was none under way */
    uint64_t stopped_until; /* ns: the client was found stopped: nothing can leave, so the limit gives way until then */
    us_outbox_t outbox;
    us_crew_t crew;      /* the workers */
    us_tier_t tier[US_TIERS]; /* by id */
    us_store_t store;    /* the swap file */
    us_recode_t recode[US_RECODES];
    uint32_t recodes;    /* in use, or promised to a read */

    us_job_t *stalled[US_JOBS]; /* pressed, and the pool has no room until something is written out */
    uint32_t stalled_n;

    uint64_t resident;   /* E6, and what workers are bringing in */
    uint64_t plain;      /* of these: PLAIN */
    uint64_t plain_until; /* ns: registering failed, and is not tried again until then */
    uint64_t leaving;    /* of these: in posted commands */
    uint64_t pending;    /* raw bytes taken or in the outbox: they will want room in the pool */
    uint64_t mark_high, mark_low;
    uint64_t top;        /* bytes: above the limit by one call (a wrap, a lower limit), and on the way down from here; or 0 */
    uint32_t refused;    /* commands refused in a row: pinned, shared or locked pages */
    uint64_t refused_until; /* ns: no victims are looked for until then */
    uint64_t gate_until, gate_used; /* no takes until then, unless the pool has emptied */
    bool reclaiming;     /* there is more to look at, or to compact: the next step goes on */
    bool said_noroom;
    bool in_step;
    uint32_t parked;     /* faults that are tasks in Python */
    bool want_progress;  /* somebody in Python waits for room */
    us_waiter_t waiter[US_WAITERS];
    uint32_t waiters;

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
    bool said_trace;     /* that it can't be written */
    us_servers_t servers;
} us_pager_t;

/* ---- regions ---- */
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
static inline uint32_t us_table_seek(const us_pager_t *p, uint32_t i, uint32_t end) {
    return us_space_seek(&p->space, p->cfg.space_fd, i, end);
}
static inline uint32_t us_table_next(const us_pager_t *p, uint32_t i, uint32_t end) {
    return us_space_next(&p->space, p->cfg.space_fd, i, end);
}
us_region_t *us_region_at(us_pager_t *p, uint64_t addr);
us_region_t *us_region_of(us_pager_t *p, uint32_t entry);

/* A message of the userfaultfd: served, or handed to Python as an event. */
void us_message(us_pager_t *p, const us_msg_t *msg, uint64_t now);

/* A worker or a read has brought block i in, and no fault: an access to come, but at the end of a region. */
static inline void us_trace_ahead(us_pager_t *p, const us_region_t *r, uint32_t i) {
    if (p->trace.on && !r->frozen)
        us_trace_add(&p->trace, US_TRACE_AHEAD, 0, i, us_now_ns());
}

/* ---- invariants.c ---- */
/* 0, or the number of the invariant that does not hold. pre: the caller has the lock, between two transitions. */
int us_invariants(us_pager_t *p);
/* Ends the process unless all of them hold. */
void us_must_hold(us_pager_t *p);

/* ---- events ---- */
void us_event(us_pager_t *p, us_event_t ev);

/* ---- entry.c: one function a transition ---- */
void us_entry_bring(us_pager_t *p, us_region_t *r, uint32_t i, bool clean);
void us_entry_reserve(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_unreserve(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_dirty(us_pager_t *p, uint32_t i);
void us_entry_leave(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t slot);
void us_entry_left(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_stay(us_pager_t *p, us_region_t *r, uint32_t i);
bool us_entry_moved(us_pager_t *p, uint32_t i, uint16_t gen, uint64_t from, uint64_t to, uint32_t size);
void us_entry_moving(us_pager_t *p, uint32_t i);
void us_entry_unmoved(us_pager_t *p, uint32_t i, uint16_t gen, uint64_t from);
void us_entry_lock(us_pager_t *p, uint32_t i);
void us_entry_unlock(us_pager_t *p, uint32_t i);
void us_entry_lost(us_pager_t *p, us_region_t *r, uint32_t i);
int us_entry_pressed(us_pager_t *p, const us_job_t *job);
void us_entry_uncopy(us_pager_t *p, uint32_t i);
bool us_entry_shifted(void *tier, uint32_t owner, uint32_t tag, uint64_t from, uint64_t to);
void us_entry_plain(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_wrapped(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_absent(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_registered(us_pager_t *p, us_region_t *r, uint32_t i, bool there);
void us_entry_forget(us_pager_t *p, us_region_t *r, uint32_t i);
void us_entry_free_object(us_pager_t *p, us_entry_t e);

/* ---- policy.c ---- */
void us_policy_in(us_pager_t *p, us_region_t *r, uint32_t i);
void us_policy_back(us_pager_t *p, us_region_t *r, uint32_t i);
void us_policy_out(us_pager_t *p, us_region_t *r, uint32_t i);
uint32_t us_policy_victim(us_pager_t *p, uint64_t passed[2]);
void us_policy_pass(us_pager_t *p, us_region_t *r, uint32_t i, uint64_t passed[2]);
void us_policy_left(us_pager_t *p, us_region_t *r, uint32_t i);
void us_policy_ahead(us_pager_t *p, us_region_t *r, uint32_t i, bool write);
/* Whether a block that a read brings in is installed write-protected. ahead: before anybody has asked for it. */
bool us_policy_clean(us_region_t *r, bool ahead);
void us_policy_wrote(us_region_t *r);
void us_policy_dropped(us_region_t *r);
bool us_policy_is_valid(us_pager_t *p, uint64_t *bytes);

void us_policy_cold(us_pager_t *p, uint32_t i);
void us_policy_cold_first(us_pager_t *p, uint32_t i);
void us_policy_warm(us_pager_t *p, uint32_t i);

/* ---- plain.c ---- */
/* How much from the region's start the limit has room for, to be plain; bytes. */
uint64_t us_plain_room(const us_pager_t *p, const us_region_t *r);
/* Makes blocks [from, to), counted from the region's first, plain. pre: those before them are, or from is 0. */
void us_plain_begin(us_pager_t *p, us_region_t *r, uint32_t from, uint32_t to);
/* Looks at a piece of what is registered, from block *cursor: blocks of which no page is there become EMPTY. false: there is
 * no more to look at. */
bool us_plain_probe(us_pager_t *p, us_region_t *r, uint32_t *cursor);
/* Registers a part of what is plain. false: there is nothing, or it can't be done now. */
bool us_plain_end_some(us_pager_t *p);
/* The same for what is plain of a region, if it has some in [first, last): US_DONE, US_AGAIN or -errno. */
int us_plain_end(us_pager_t *p, us_region_t *r, uint32_t first, uint32_t last);
/* The region goes. */
void us_plain_forget(us_pager_t *p, us_region_t *r);

/* ---- tier.c ---- */
int us_tiers_open(us_pager_t *p);
void us_tiers_close(us_pager_t *p);
/* A bit of what brings pools that are over their high mark under the low one. True: call again when no fault waits. */
bool us_tiers_sink(us_pager_t *p);
/* Room for len bytes in a pool: US_DONE, US_WAIT_ROOM or -ENOSPC. The marks alone may leave less than a large block
 * needs, so who waits says how far it has to sink. */
int us_tier_ask(us_pager_t *p, us_tier_t *t, uint32_t len);
/* As us_pager_pool. */
int us_tier_budget(us_pager_t *p, us_tier_t *t, uint64_t budget);
/* The first pool is under its marks and has no room all the same, since its spans are sparse: moves a batch all the
 * same. false: nothing is on its way out of it. */
bool us_tiers_squeeze(us_pager_t *p);
/* Merges spans a little at a time while a pool holds much more than it uses. true: there may be more. */
bool us_tiers_tidy(us_pager_t *p);
/* Is one of them busy? See us_tier_ops_t. */
bool us_tiers_busy(const us_pager_t *p);
/* Does, or will, something that leaves the first pool make room in it? */
bool us_tiers_help(const us_pager_t *p);
/* A worker is done. */
void us_tier_recoded(us_pager_t *p, us_region_t *r, us_job_t *j);
static inline us_tier_t *us_tier(us_pager_t *p, us_entry_t e) { return &p->tier[us_tier_of(e)]; }
/* Where an object lies that is in a pool. */
static inline const uint8_t *us_object(us_pager_t *p, us_entry_t e) {
    return us_pool_at(us_tier(p, e)->pool, us_offset_of(e));
}

/* ---- writeout.c ---- */
int us_store_open(us_pager_t *p, int fd, uint64_t bytes, uint32_t segment, int engine);
void us_store_close(us_pager_t *p);
/* Block numbers first to first + count - 1 get other blocks: what is being written of them is garbage. */
void us_store_forget(us_pager_t *p, uint32_t first, uint32_t count);
/* Begins to bring STORED block i in, for which a thread stands still. false: no slot is free. */
bool us_store_fetch(us_pager_t *p, us_region_t *r, uint32_t i, bool write, uint64_t since);
/* Begins to bring STORED block i in ahead of its use, and with it, in the same read, those after it and before `end`
 * that lie near it in the file; the others only as long as no more than `most` bytes are resident then. Returns how
 * many; 0: no slot is free. us_store_flush hands the reads over. */
uint32_t us_store_fetch_run(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t end, bool write, uint64_t most);
void us_store_flush(us_pager_t *p);
/* Begins to read STORED block i to see whether it can be. false: too many are being read just now. */
bool us_store_verify(us_pager_t *p, us_region_t *r, uint32_t i);
/* A worker is done with a block that was read ahead. */
void us_store_brought(us_pager_t *p, us_region_t *r, us_job_t *j);
/* Begins to read what lies in the file for tier `to`; see us_tier_ops_t. */
int us_store_load(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, us_tier_t *to);
/* A read is done. */
void us_store_fetched(us_pager_t *p, us_read_t *rd);
bool us_store_pump(us_pager_t *p);
bool us_store_completed(us_pager_t *p);
void us_store_listen(us_pager_t *p, bool on);

/* ---- evict.c ---- */
void us_evict_some(us_pager_t *p);
/* Has the mover keep [addr, addr+len) from children, before it takes anything out of it. false: the ring is full. */
bool us_evict_nofork(us_pager_t *p, uint64_t addr, uint64_t len);
int us_evict_range(us_pager_t *p, us_region_t *r, uint32_t *i, uint32_t last);
void us_pump(us_pager_t *p);
/* What is resident was raised above the limit, or the limit lowered: faults get their share of the way down. */
void us_evict_begin(us_pager_t *p);
/* Room for len more resident bytes: US_DONE, US_WAIT_ROOM, or -ENOSPC when nothing can leave. */
int us_evict_room(us_pager_t *p, uint64_t len);
void us_slot_free(us_pager_t *p, uint32_t slot);
/* Gives up copies of clean blocks in a pool until `bytes` of payload are freed: US_DONE; US_AGAIN: a step's worth was looked
 * at, and the next step goes on; -ENOSPC: there are too few. */
int us_reclaim(us_pager_t *p, us_tier_t *t, uint64_t bytes);

/* ---- fault.c ---- */
int us_fault_serve(us_pager_t *p, const us_event_t *f);
/* Brings block i in: US_DONE, US_AGAIN, or -errno when the memory is gone. */
int us_fault_install(us_pager_t *p, us_region_t *r, uint32_t i, bool write);
/* POOLED block i, decompressed and let go of again. false: it does not decompress. */
bool us_fault_intact(us_pager_t *p, us_region_t *r, uint32_t i);
/* POOLED or STORED block i can't be read back: LOST. wanted: a thread waits for it. */
void us_fault_lose(us_pager_t *p, us_region_t *r, uint32_t i, bool wanted);
int us_fault_copy(us_pager_t *p, us_region_t *r, uint32_t i, bool write, const uint8_t *src);
/* Counts a fault on block i that was served, and has it traced. */
void us_fault_record(us_pager_t *p, int kind, uint32_t i, bool write, uint64_t since);
/* Block i is brought in, or was not: ends the wait of the faults that came meanwhile. copied: ns, when the copy was done
 * that has woken those from before it; 0: they are woken just now, as the others are. */
void us_fault_waited(us_pager_t *p, uint32_t i, uint64_t copied);
/* Fills in a job that brings block i in, but for the bytes. */
void us_fault_bring_job(us_pager_t *p, us_region_t *r, us_job_t *j, uint32_t i, bool clean);
bool us_fault_ahead(us_pager_t *p, us_region_t *r, uint32_t i, bool clean);
int us_fault_unprotect(us_pager_t *p, us_region_t *r, uint32_t i);

#endif
