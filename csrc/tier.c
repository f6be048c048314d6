/* SPDX-License-Identifier: MIT
 *
 * The tiers in RAM, and what demotes blocks from tier to tier; writeout.c is the file's half. tier_ops.h says how a
 * block moves.
 *
 * Recompression. What goes to the second or third pool, and has another codec than that, is compressed anew by a worker, from
 * a copy of the object. There are US_RECOMPRESSIONS places for that, taken at the start; a block for which there is none waits
 * where it is. What does not get smaller by it moves as it is, and so does all that goes to the first pool or the file.
 */
#include "tier.h"

#include <string.h>
#include <sys/mman.h>

#include "entry.h"
#include "reclaim.h"
#include "region.h"
#include "sys.h"

enum { BOUNCE = 1 << US_BLOCK_MAX_SHIFT, SLICE = 64 << 10 };
#define FULL_NS 50000000ull

static bool demote(us_pager_t *p, us_tier_t *t);

/* ---- a pool as a tier ------------------------------------------------------------------------------- */

static bool pool_room(const us_pager_t *p, const us_tier_t *t, uint32_t len) {
    (void)p;
    const uint64_t budget = t->s->budget; /* spans are never quite full */
    if (t->full_until != 0 && us_now_ns() < t->full_until)
        return false;
    return us_pool_used(t->pool) + t->coming + len <= budget - budget / 16;
}

static void pool_free(us_pager_t *p, us_tier_t *t, us_entry_t e) {
    (void)p;
    t->full_until = 0;
    us_pool_free(t->pool, us_offset_of(e), US_LENGTH_OF(e));
}

static uint64_t pool_used(const us_tier_t *t) { return us_pool_used(t->pool); }

static int pool_put(us_tier_t *t, uint32_t i, uint16_t gen, const void *bytes, uint32_t len, uint64_t *where) {
    uint64_t off;
    const int err = us_pool_alloc(t->pool, len, i, gen, &off);
    if (err != 0)
        return err;
    memcpy(us_pool_at(t->pool, off), bytes, len);
    *where = us_where(t->id, off);
    return 0;
}

static bool pool_compact(us_tier_t *t, uint64_t bytes) {
    return us_pool_compact(t->pool, bytes, us_entry_shifted, t) > 0;
}

/* Copies an object in and commits it. 0; -ENOSPC: the block stays where it was; -ESTALE: it was another by now. */
static int settle_in(us_pager_t *p, us_tier_t *t, uint32_t i, uint16_t gen, uint64_t from, uint32_t size,
                     const void *bytes) {
    const uint32_t len = size & 0xffffffu;
    uint64_t where;
    int err = pool_put(t, i, gen, bytes, len, &where);
    if (err == -ENOSPC && pool_compact(t, 1 << 20))
        err = pool_put(t, i, gen, bytes, len, &where);
    if (err == -ENOSPC && us_reclaim(p, t, 4ull * len) == US_DONE)
        err = pool_put(t, i, gen, bytes, len, &where);
    if (err != 0) {
        /* Its spans are too sparse for what its marks promise: until something leaves, and something has to. */
        t->full_until = us_now_ns() + FULL_NS;
        t->goal = us_min(t->goal, us_pool_used(t->pool) - us_pool_used(t->pool) / 8);
        us_entry_unmoved(p, i, gen, from);
        return -ENOSPC;
    }
    US_DELAY(US_D_COMMIT);
    if (!us_entry_moved(p, i, gen, from, where, size)) {
        us_pool_free(t->pool, us_offset_of((us_entry_t){.where = where}), len);
        return -ESTALE;
    }
    t->s->came_blocks++;
    t->s->came += len;
    return 0;
}

static us_recompress_t *free_recompression(us_pager_t *p) {
    for (int k = 0; k < US_RECOMPRESSIONS; k++) {
        if (p->recompress[k].job == NULL)
            return &p->recompress[k];
    }
    return NULL;
}

/* Does, or will, what leaves t make room in it? */
static bool helps(const us_pager_t *p, const us_tier_t *t) {
    return t->next != NULL && (t->leaving > 0 || t->next->ops->helps(p, t->next, t));
}

static bool pool_helps(const us_pager_t *p, const us_tier_t *t, const us_tier_t *from) {
    if (from->cold.head == US_NONE)
        return false;
    return pool_room(p, t, US_LENGTH_OF(p->mm.space.table[from->cold.head])) || helps(p, t);
}

int us_tier_make_room(us_pager_t *p, us_tier_t *t, uint32_t len) {
    if (pool_room(p, t, len))
        return US_DONE;
    /* Few were a long search for little. */
    if (t->s->kept >= len && us_reclaim(p, t, 4ull * len) == US_AGAIN)
        return US_WAIT_ROOM;
    if (pool_room(p, t, len))
        return US_DONE;
    if (!helps(p, t))
        return -ENOSPC;
    const uint64_t room = t->s->budget - t->s->budget / 16;
    t->goal = us_min(t->goal, room > len ? room - len : 0);
    return US_WAIT_ROOM;
}

static int pool_store(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, const void *payload) {
    const us_entry_t e = p->mm.space.table[i];
    const uint32_t len = US_LENGTH_OF(e);
    const int room = us_tier_make_room(p, t, len);
    if (room != US_DONE)
        return room;
    if (t->id == 1 || t->codec == us_codec_base((int)US_CODEC_OF(e)) || t->codec == US_CODEC_NONE) {
        us_entry_moving(p, i);
        return settle_in(p, t, i, e.gen, e.where, e.size, payload) == -ENOSPC ? -ENOSPC : US_DONE;
    }
    us_recompress_t *c = p->recompressions < US_RECOMPRESSIONS ? free_recompression(p) : NULL;
    if (c == NULL || p->crew.idle_n <= US_JOBS / 4)
        return US_WAIT_ROOM;
    us_job_t *j = us_crew_job(&p->crew);
    *c = (us_recompress_t){.in = c->in, .out = c->out, .job = j, .to = t, .from = e.where, .length = len};
    memcpy(c->in, payload, len);
    j->kind = US_JOB_RECOMPRESS;
    j->codec = (uint8_t)US_CODEC_OF(e);
    j->to_codec = (uint8_t)t->codec;
    j->to_level = t->level;
    j->entry = i;
    j->region = r->id;
    j->raw = us_block_len(r, i);
    j->len = len;
    j->gen = e.gen;
    j->part = (uint32_t)(c - p->recompress);
    j->src = c->in;
    j->out = c->out;
    j->choice = &r->choice[t->id - 1];
    us_entry_moving(p, i);
    p->recompressions++;
    t->coming += len;
    if (us_tier_of(e) != US_TIER_FILE)
        us_tier(p, e)->leaving += len;
    r->jobs++;
    us_crew_post(&p->crew, j);
    return US_DONE;
}

static void pool_flush(us_pager_t *p, us_tier_t *t) {
    (void)t;
    us_crew_ring(&p->crew);
}

void us_tier_recompressed(us_pager_t *p, us_region_t *r, us_job_t *j) {
    us_recompress_t *c = &p->recompress[j->part];
    us_tier_t *t = c->to;
    const int from = (int)(c->from >> 56);
    t->coming -= c->length;
    if (from != US_TIER_FILE)
        p->tier[from].leaving -= c->length;
    const void *bytes = j->status == 1 ? j->out : j->src;
    const uint32_t size = US_SIZE(j->codec, j->len);
    if (j->entry != US_NONE && settle_in(p, t, j->entry, j->gen, c->from, size, bytes) == 0 && j->status == 1) {
        t->s->recompressed_blocks++;
        t->s->recompressed_in += c->length;
        t->s->recompressed_out += j->len;
    }
    c->job = NULL;
    p->recompressions--;
    r->jobs--;
    us_crew_free(&p->crew, j);
}

static int pool_load(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, us_tier_t *to) {
    (void)t;
    return to->ops->store(p, to, r, i, us_object(p, p->mm.space.table[i]));
}

/* As many as there are places for. What is promised to reads of the file (they have their block locked) is left. */
static bool pool_demote(us_pager_t *p, us_tier_t *t, us_tier_t *from, bool small) {
    bool any = false;
    uint64_t moved = 0;
    (void)small;
    for (uint32_t i = from->cold.head, next; i != US_NONE && moved < SLICE && p->recompressions < US_RECOMPRESSIONS;
         i = next) {
        const us_entry_t e = p->mm.space.table[i];
        next = p->mm.node[i].next;
        if (e.flags & US_F_LOCKED)
            continue;
        if (pool_store(p, t, us_region_of(&p->mm, i), i, us_object(p, e)) != US_DONE)
            break;
        moved += US_LENGTH_OF(e);
        any = true;
    }
    pool_flush(p, t);
    if (!any && t->next != NULL && t->goal != UINT64_MAX) /* it has been asked for room */
        any = demote(p, t);
    return any;
}

static bool pool_wants(const us_pager_t *p, const us_tier_t *t) {
    (void)p, (void)t;
    return false;
}

static bool pool_tend(us_pager_t *p, us_tier_t *t) {
    (void)p, (void)t; /* us_tiers_tidy does it */
    return false;
}

static bool pool_busy(const us_pager_t *p, const us_tier_t *t) {
    (void)p, (void)t;
    return false;
}

static void pool_arrived(us_pager_t *p, us_tier_t *t, us_entry_t e) {
    (void)p, (void)t, (void)e; /* the pool has counted it when it was given a place */
}

static void pool_publish(us_pager_t *p, us_tier_t *t) {
    p->mm.s->pool_used += t->s->used = us_pool_used(t->pool);
    p->mm.s->pool_allocated += t->s->allocated = us_pool_allocated(t->pool);
}

static const us_tier_ops_t pool_ops = {.demote = pool_demote,
                                       .wants = pool_wants,
                                       .store = pool_store,
                                       .flush = pool_flush,
                                       .load = pool_load,
                                       .free = pool_free,
                                       .room = pool_room,
                                       .helps = pool_helps,
                                       .tend = pool_tend,
                                       .busy = pool_busy,
                                       .arrived = pool_arrived,
                                       .used = pool_used,
                                       .put = pool_put,
                                       .compact = pool_compact,
                                       .publish = pool_publish};

/* ---- demotion --------------------------------------------------------------------------------------- */

static uint64_t used(const us_pager_t *p, const us_tier_t *t) {
    return us_pool_used(t->pool) + (t->id == 1 ? p->pending : 0);
}

static bool demote(us_pager_t *p, us_tier_t *t) {
    const uint64_t now = used(p, t);
    if (now > us_min(t->mark_high, t->goal))
        t->demoting = true;
    if (t->demoting && now - us_min(t->leaving, now) <= us_min(t->mark_low, t->goal)) {
        t->demoting = false;
        t->goal = UINT64_MAX;
    }
    return (t->demoting || t->next->ops->wants(p, t->next)) && t->next->ops->demote(p, t->next, t, false);
}

/* What a range call has begun the loop goes on with. */
static void come_back(us_pager_t *p, bool more) {
    for (const us_tier_t *t = &p->tier[1]; t != NULL; t = t->next)
        more |= t->ops->wants(p, t);
    if (!p->in_step && more)
        us_sys_eventfd_ring(p->worker_fd);
}

bool us_tiers_busy(const us_pager_t *p) {
    bool busy = false;
    for (const us_tier_t *t = &p->tier[1]; t != NULL; t = t->next)
        busy |= t->ops->busy(p, t);
    return busy;
}

void us_tiers_submit(us_pager_t *p) {
    for (us_tier_t *t = &p->tier[1]; t != NULL; t = t->next) {
        if (t->ops->submit != NULL)
            t->ops->submit(p, t);
    }
}

bool us_tiers_pump(us_pager_t *p) {
    bool any = false;
    for (us_tier_t *t = &p->tier[1]; t != NULL; t = t->next)
        any |= t->ops->pump != NULL && t->ops->pump(p, t);
    return any;
}

bool us_tiers_completed(const us_pager_t *p) {
    for (const us_tier_t *t = &p->tier[1]; t != NULL; t = t->next) {
        if (t->ops->completed != NULL && t->ops->completed(p, t))
            return true;
    }
    return false;
}

void us_tiers_listen(us_pager_t *p, bool on) {
    for (us_tier_t *t = &p->tier[1]; t != NULL; t = t->next) {
        if (t->ops->listen != NULL)
            t->ops->listen(p, t, on);
    }
}

void us_tiers_publish(us_pager_t *p) {
    p->mm.s->pool_used = p->mm.s->pool_allocated = 0; /* sums, of all pools */
    for (us_tier_t *t = &p->tier[1]; t != NULL; t = t->next)
        t->ops->publish(p, t);
}

/* The coldest first, so that there is room for what comes from above. */
bool us_tiers_demote(us_pager_t *p) {
    bool any = false;
    for (us_tier_t *t = &p->tier[1]; t != NULL; t = t->next)
        any |= t->ops->tend(p, t);
    for (int k = US_POOLS; k >= 1; k--) {
        if (p->tier[k].pool != NULL && p->tier[k].next != NULL)
            any |= demote(p, &p->tier[k]);
    }
    come_back(p, any);
    return any;
}

bool us_tiers_help(const us_pager_t *p) { return helps(p, &p->tier[1]); }

bool us_tiers_squeeze(us_pager_t *p) {
    us_tiers_demote(p);
    for (int k = US_POOLS; k >= 1; k--) {
        us_tier_t *t = &p->tier[k];
        if (t->pool != NULL && t->next != NULL && t->leaving == 0)
            t->next->ops->demote(p, t->next, t, true);
    }
    come_back(p, false);
    return p->tier[1].leaving > 0 || us_tiers_busy(p);
}

bool us_tiers_tidy(us_pager_t *p) {
    bool more = false;
    for (us_tier_t *t = &p->tier[1]; t != NULL && t->pool != NULL; t = t->next) {
        const uint64_t used = us_pool_used(t->pool), held = us_pool_allocated(t->pool);
        if (held <= used + used / 8 + (512 << 10))
            continue;
        int64_t n = us_pool_compact(t->pool, 256 << 10, us_entry_shifted, t);
        if (n > 0) {
            p->mm.s->compactions++;
            p->mm.s->compacted += (uint64_t)n;
            more = true;
        }
    }
    return more;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static void set_marks(us_tier_t *t, uint64_t budget) {
    t->mark_high = budget - budget / 8;
    t->mark_low = budget - budget / 4;
    t->s->budget = budget;
}

int us_tier_budget(us_pager_t *p, us_tier_t *t, uint64_t budget) {
    const uint64_t was = t->s->budget;
    const int err = us_pool_set_budget(t->pool, budget);
    if (err != 0)
        return err;
    p->mm.s->pool_budget += budget - was;
    p->cfg.pool[t->id - 1].budget = budget;
    set_marks(t, budget);
    t->full_until = 0;
    if (us_pool_allocated(t->pool) <= budget)
        return US_DONE;
    us_pool_trim(t->pool);
    if (pool_compact(t, 1 << 20))
        return us_pool_allocated(t->pool) <= budget ? US_DONE : US_AGAIN;
    if (t->s->kept > 0 && us_reclaim(p, t, us_min(t->s->kept, 1 << 20)) != -ENOSPC)
        return US_AGAIN;
    if (!helps(p, t))
        return US_DONE; /* nothing takes more of it: it shrinks as blocks come back */
    /* Its spans may be sparse, and what is used below the budget: then more must be demoted all the same, until a span is empty. */
    const uint64_t now = us_pool_used(t->pool);
    t->goal = us_min(t->goal, us_min(budget - budget / 8, now - us_min(now, now / 8 + 1)));
    us_tiers_demote(p);
    return US_WAIT_ROOM;
}

int us_tiers_open(us_pager_t *p) {
    us_tier_t *before = NULL;
    int pools = 0;
    for (int k = 0; k < US_POOLS && p->cfg.pool[k].budget > 0; k++) {
        const us_pool_config_t *c = &p->cfg.pool[k];
        us_tier_t *t = &p->tier[k + 1];
        *t = (us_tier_t){.id = k + 1,
                         .s = &p->mm.s->tier[k + 1],
                         .pager = p,
                         .largest = US_POOL_LEN_MAX,
                         .codec = c->codec,
                         .level = c->level,
                         .goal = UINT64_MAX,
                         .cold = {.head = US_NONE, .tail = US_NONE}};
        const int err = us_pool_init(&t->pool, p->mm.cfg.space_fd, p->mm.space.at.pool_off[k], p->mm.space.pool[k],
                                     p->mm.space.at.pool_len[k], c->budget);
        if (err < 0)
            return err;
        t->ops = &pool_ops;
        set_marks(t, c->budget);
        p->mm.s->pool_budget += c->budget;
        if (before != NULL)
            before->next = t;
        before = t;
        pools++;
    }
    if (pools == 0)
        return -EINVAL;
    for (int k = 0; pools > 1 && k < US_RECOMPRESSIONS; k++) {
        p->recompress[k].in = us_sys_reserve(BOUNCE);
        p->recompress[k].out = us_sys_reserve(BOUNCE);
        if (p->recompress[k].in == NULL || p->recompress[k].out == NULL)
            return -ENOMEM;
    }
    return 0;
}

void us_tiers_close(us_pager_t *p) {
    for (int k = 0; k < US_RECOMPRESSIONS; k++) {
        if (p->recompress[k].in != NULL)
            munmap(p->recompress[k].in, BOUNCE);
        if (p->recompress[k].out != NULL)
            munmap(p->recompress[k].out, BOUNCE);
    }
    for (int k = 1; k < US_TIERS; k++) {
        if (p->tier[k].pool != NULL)
            us_pool_destroy(p->tier[k].pool);
    }
}
