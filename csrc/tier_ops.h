/* SPDX-License-Identifier: MIT
 *
 * The tiers: where compressed blocks lie, hot to cold.
 *
 *   pool 1          where the workers' output goes
 *   pool 2, pool 3  denser ones, if there are any: what is cold in the pool before is compressed anew for them
 *   file            the swap file, if there is one; always the last
 *
 * A block that is out lies in one tier, which its entry names. From any tier it goes to any other in one way,
 * through no third one:
 *
 *   load     the object's bytes: from a pool where they lie; from the file in a read's buffer, when it has come
 *   store    a copy of them (or what a worker makes of it) in the tier it goes to; in the file many together
 *   commit   is the entry as it was (generation and place)?  It names the new place, by one store; then the old
 *            one is freed.  Else the new one is.                                           us_entry_moved
 *
 * No lock is held meanwhile: until the commit the block is where it was, and faults are served from there. Room
 * in both tiers is taken only between copy and commit.
 *
 * Each pool has marks. Above the high one its coldest objects are demoted to the next tier, until the low one.
 */
#ifndef US_TIER_OPS_H
#define US_TIER_OPS_H

#include "pool.h"
#include "types.h"

struct us_pager;
struct us_region;
struct us_job;
typedef struct us_tier us_tier_t;

typedef struct us_queue {
    uint32_t head, tail; /* evict at head, insert at tail */
    uint64_t bytes;
} us_queue_t;

/* What a tier can do; `t` is the tier itself. US_WAIT_ROOM: not now, but what is under way will make it possible. */
typedef struct us_tier_ops {
    /* Begins to move some of the coldest of `from` here, no more than takes some ten microseconds: faults wait
     * meanwhile. small: even if there is little. True: something is on its way now that was not. */
    bool (*demote)(struct us_pager *p, us_tier_t *t, us_tier_t *from, bool small);
    /* A batch was begun and wants more, whatever the marks say. */
    bool (*wants)(const struct us_pager *p, const us_tier_t *t);
    /* Begins to move block i here; its object is at payload, and need not stay there. US_DONE, US_WAIT_ROOM, -ENOSPC. */
    int (*store)(struct us_pager *p, us_tier_t *t, struct us_region *r, uint32_t i, const void *payload);
    /* Nothing more is stored for now. */
    void (*flush)(struct us_pager *p, us_tier_t *t);
    /* Begins to move block i, which lies here, to tier `to`: loads it, then `to` stores it. As store. */
    int (*load)(struct us_pager *p, us_tier_t *t, struct us_region *r, uint32_t i, us_tier_t *to);
    void (*free)(struct us_pager *p, us_tier_t *t, us_entry_t e);
    /* Is there room for an object of len bytes now? */
    bool (*room)(const struct us_pager *p, const us_tier_t *t, uint32_t len);
    /* Does, or will, moving what is cold in `from` here make room there? */
    bool (*helps)(const struct us_pager *p, const us_tier_t *t, const us_tier_t *from);
    /* Keeps its own house, a bit at a time. True: call again when no fault waits. */
    bool (*tend)(struct us_pager *p, us_tier_t *t);
    /* Is something under way that is no move of a block, and after which there may be room? */
    bool (*busy)(const struct us_pager *p, const us_tier_t *t);
    /* A block has come here, and its entry says so. */
    void (*arrived)(struct us_pager *p, us_tier_t *t, us_entry_t e);
    /* Bytes that objects take here. */
    uint64_t (*used)(const us_tier_t *t);
    /* Its gauges. */
    void (*publish)(struct us_pager *p, us_tier_t *t);

    /* Of tiers in memory; NULL for others. */
    /* Copies an object in. *where: what an entry says of it. -ENOSPC. */
    int (*put)(us_tier_t *t, uint32_t i, uint16_t gen, const void *bytes, uint32_t len, uint64_t *where);
    /* Merges sparse spans, `bytes` of objects at most. false: there was nothing to gain. */
    bool (*compact)(us_tier_t *t, uint64_t bytes);

    /* Of tiers whose objects have to be read before they are in memory; NULL for others, see us_object(). */
    /* Begins to swap block i in, for which a thread stands still. false: no slot is free. */
    bool (*fetch)(struct us_pager *p, us_tier_t *t, struct us_region *r, uint32_t i, bool write, uint64_t since);
    /* Begins to swap block i in ahead of its use, and with it, in the same read, those after it and before `end` that lie
     * near it; the others only as long as no more than `most` bytes are resident then. Returns how many; 0: no slot is
     * free. `submit` hands the reads over. */
    uint32_t (*fetch_run)(struct us_pager *p, us_tier_t *t, struct us_region *r, uint32_t i, uint32_t end, bool write,
                          uint64_t most);
    /* Begins to read block i to see whether it can be. false: too many are being read just now. */
    bool (*verify)(struct us_pager *p, us_tier_t *t, struct us_region *r, uint32_t i);
    void (*submit)(struct us_pager *p, us_tier_t *t);
    /* A worker is done with a block that was read ahead. */
    void (*swapped_in)(struct us_pager *p, us_tier_t *t, struct us_region *r, struct us_job *j);
    /* Commits what is done. true: something was. */
    bool (*pump)(struct us_pager *p, us_tier_t *t);
    bool (*completed)(const struct us_pager *p, const us_tier_t *t);
    /* Whether completions have to wake the loop. */
    void (*listen)(struct us_pager *p, us_tier_t *t, bool on);
} us_tier_ops_t;

struct us_tier {
    const us_tier_ops_t *ops; /* NULL: there is no such tier */
    int id;                   /* 1 .. US_TIERS - 1 */
    us_tier_t *next;          /* colder; NULL for the last */
    us_tier_stats_t *s;
    struct us_pager *pager;
    uint32_t largest; /* object that it can hold, bytes; what is larger stays in the tier above, and in nobody's way */

    /* of pools: */
    us_pool_t *pool;
    int codec, level;
    uint64_t mark_high, mark_low;
    bool demoting;        /* between the marks, on the way down */
    uint64_t goal;        /* bytes: down to here, whatever the marks say, for somebody who waits; UINT64_MAX: nobody */
    uint64_t leaving;     /* bytes of objects on their way to another tier */
    uint64_t full_until;  /* ns: its spans had no place for what there should have been room for */
    uint64_t coming;      /* bytes of objects that will be stored when a worker is done with them */
    uint32_t kept_hand;   /* the entry where the search for copies of clean blocks goes on */
    uint64_t kept_passed; /* entries that it passed since it last found what was wanted */
    us_queue_t cold;      /* blocks that are out and lie here, in the order in which they came */
};

/* An object that a worker compresses anew. The worker's input is a copy, so the pool's may go meanwhile. */
enum { US_RECOMPRESSIONS = 32 };
typedef struct us_recompress {
    uint8_t *in, *out;  /* 2 MiB each, of which only what is used has memory */
    struct us_job *job; /* NULL: free */
    us_tier_t *to;
    uint64_t from;   /* where the entry had it */
    uint32_t length; /* bytes, there */
} us_recompress_t;

#endif
