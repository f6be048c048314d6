/* SPDX-License-Identifier: MIT
 *
 * The pager's life, its regions, and the step that the asyncio loop calls whenever something is readable.
 */
#include "pager.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"
#include "sys.h"

/* Messages in a step, while nobody waits in Python, and while somebody does: a task that is woken takes a
 * few turns of the asyncio loop, and who comes by uffd meanwhile must not have all the turns. */
enum { ROUNDS = 512, ROUNDS_PARKED = 8, MAX_BLOCK = 1 << US_BLOCK_MAX_SHIFT };

/* What Python calls has the pager's lock from here to the end of the function. */
static us_pager_t *locked(us_pager_t *p) {
    us_server_lock(p, &p->servers.loop);
    return p;
}
static void unlocked(us_pager_t **p) {
#ifdef US_DEBUG
    us_must_hold(*p);
#endif
    us_server_unlock(*p);
}
#define LOCKED(p) us_pager_t *guard_ __attribute__((cleanup(unlocked), unused)) = locked(p)

/* ---- life ------------------------------------------------------------------------------------------- */

static void want(us_pager_t *p);
static void publish(us_pager_t *p);

static void set_marks(us_pager_t *p) {
    const uint64_t limit = p->cfg.limit;
    const uint64_t slack = us_min(limit / 16, 4u << 20);
    p->mark_high = limit - slack;
    p->mark_low = limit - 2 * slack;
}

static int open_outbox(us_pager_t *p) {
    us_outbox_t *o = &p->outbox;
    o->pages = (uint32_t)(p->space.at.outbox_len >> US_PAGE_SHIFT);
    o->span = us_calloc(o->pages, sizeof *o->span);
    o->job = us_calloc(o->pages, sizeof(us_job_t *));
    o->press = us_sys_reserve(p->space.at.outbox_len);
    return o->span == NULL || o->job == NULL || o->press == NULL ? -ENOMEM : 0;
}

static int open_all(us_pager_t *p) {
    if (p->cfg.shuffle != 0 && us_filter_functions().shuffle == NULL)
        return -EINVAL;
    int err = us_space_map(&p->space, p->cfg.space_fd, true);
    if (err < 0)
        return err;
    p->cfg.layout = p->space.at;
    p->s = &p->space.stats->s;
    p->s->limit = p->cfg.limit;
    err = us_tiers_open(p);
    if (err < 0)
        return err;
    const uint64_t cap = p->space.at.table_cap;
    p->node = us_sys_reserve(cap * sizeof *p->node);
    p->stamp = us_sys_reserve(cap * sizeof *p->stamp);
    p->pins = us_sys_reserve(cap * sizeof *p->pins);
    p->rounds = us_sys_reserve(cap * sizeof *p->rounds);
    p->raw = us_sys_reserve(MAX_BLOCK);
    p->filled = us_sys_reserve(MAX_BLOCK);
    p->zero = mmap(NULL, MAX_BLOCK, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->node == NULL || p->stamp == NULL || p->pins == NULL || p->rounds == NULL || p->raw == NULL ||
        p->filled == NULL || p->zero == MAP_FAILED)
        return -ENOMEM;
    p->queue[0] = p->queue[1] = (us_queue_t){.head = US_NONE, .tail = US_NONE};
    err = us_codec_ctx_new(&p->codec, MAX_BLOCK);
    if (err == 0)
        err = open_outbox(p);
    if (err < 0)
        return err;
    p->worker_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->worker_fd < 0)
        return -errno;
    p->crew = (us_crew_t){.uffd = p->cfg.uffd,
                          .notify = p->worker_fd,
                          .codec = p->cfg.pool[0].codec,
                          .level = p->cfg.pool[0].level,
                          .zero = p->zero,
                          .ring = p->space.ring};
    err = us_crew_start(&p->crew, p->cfg.workers, MAX_BLOCK);
    const int wakes[US_WAKES] = {p->cfg.uffd, p->cfg.notify, p->worker_fd, -1};
    if (err == 0 && p->cfg.follow)
        err = us_place_start(&p->place, p->cfg.client_pid, p->cfg.mover_tid, wakes);
    if (err == 0 && p->cfg.servers > 1)
        err = us_server_start(p);
    return err;
}

int us_pager_open(us_pager_t **out, const us_pager_config_t *cfg) {
    us_pager_t *p = us_aligned_alloc(64, us_align_up(sizeof *p, 64));
    if (p == NULL)
        return -ENOMEM;
    memset(p, 0, sizeof *p);
    p->cfg = *cfg;
    p->worker_fd = -1;
    int err = us_server_open(p);
    if (err == 0)
        err = open_all(p);
    if (err < 0) {
        us_pager_close(p);
        return err;
    }
    set_marks(p);
    *out = p;
    return 0;
}

static void unreserve(void *m, uint64_t len) {
    if (m != NULL)
        munmap(m, len);
}

void us_pager_close(us_pager_t *p) {
    us_server_close(p);
    us_place_stop(&p->place);
    us_trace_close(&p->trace);
    us_store_close(p);
    us_crew_stop(&p->crew);
    const uint64_t cap = p->space.at.table_cap;
    for (uint32_t i = 0; i < p->regions; i++)
        free(p->region[i]);
    free(p->region);
    free(p->byaddr);
    free(p->byfirst);
    free(p->event);
    if (p->worker_fd >= 0)
        close(p->worker_fd);
    if (p->codec != NULL)
        us_codec_ctx_free(p->codec);
    us_tiers_close(p);
    free(p->outbox.span);
    free(p->outbox.job);
    unreserve(p->outbox.press, p->space.at.outbox_len);
    unreserve(p->node, cap * sizeof *p->node);
    unreserve(p->stamp, cap * sizeof *p->stamp);
    unreserve(p->pins, cap * sizeof *p->pins);
    unreserve(p->rounds, cap * sizeof *p->rounds);
    unreserve(p->raw, MAX_BLOCK);
    unreserve(p->filled, MAX_BLOCK);
    if (p->zero != MAP_FAILED)
        unreserve((void *)(uintptr_t)p->zero, MAX_BLOCK);
    us_space_unmap(&p->space);
    free(p);
}

int us_pager_worker_fd(us_pager_t *p) { return p->worker_fd; }

int us_pager_swap(us_pager_t *p, int fd, uint64_t bytes, uint32_t segment, int engine) {
    return p->live > 0 ? -EBUSY : us_store_open(p, fd, bytes, segment, engine);
}

int us_pager_trace(us_pager_t *p, int fd) {
    LOCKED(p);
    return p->live > 0 || p->trace.on ? -EBUSY : us_trace_open(&p->trace, fd, US_TRACE_RING);
}

int64_t us_pager_trace_end(us_pager_t *p) {
    LOCKED(p);
    return (int64_t)us_trace_close(&p->trace);
}

/* ---- regions ---------------------------------------------------------------------------------------- */

/* How many of the n regions of a begin at or before key (by address or by first entry). */
static uint32_t upto(us_region_t **a, uint32_t n, uint64_t key, bool by_addr) {
    uint32_t lo = 0, hi = n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        uint64_t at = by_addr ? a[mid]->addr : a[mid]->first;
        if (at <= key)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

us_region_t *us_region_at(us_pager_t *p, uint64_t addr) {
    uint32_t k = upto(p->byaddr, p->live, addr, true);
    if (k == 0 || addr - p->byaddr[k - 1]->addr >= p->byaddr[k - 1]->len)
        return NULL;
    return p->byaddr[k - 1];
}

us_region_t *us_region_of(us_pager_t *p, uint32_t entry) {
    uint32_t k = upto(p->byfirst, p->live, entry, false);
    if (k == 0 || entry - p->byfirst[k - 1]->first >= p->byfirst[k - 1]->count)
        return NULL;
    return p->byfirst[k - 1];
}

static int grow(us_pager_t *p) {
    const uint32_t n = p->regions == 0 ? 16 : p->regions * 2;
    us_region_t **a = us_realloc(p->region, n * sizeof *a);
    if (a != NULL)
        p->region = a;
    us_region_t **b = us_realloc(p->byaddr, n * sizeof *b);
    if (b != NULL)
        p->byaddr = b;
    us_region_t **c = us_realloc(p->byfirst, n * sizeof *c);
    if (c != NULL)
        p->byfirst = c;
    if (a == NULL || b == NULL || c == NULL)
        return -ENOMEM;
    memset(p->region + p->regions, 0, (n - p->regions) * sizeof *a);
    p->regions = n;
    return 0;
}

/* The first gap of the table that holds n entries. */
static uint32_t find_gap(const us_pager_t *p, uint64_t n) {
    uint64_t at = 0;
    for (uint32_t k = 0; k < p->live; k++) {
        if (p->byfirst[k]->first - at >= n)
            return (uint32_t)at;
        at = (uint64_t)p->byfirst[k]->first + p->byfirst[k]->count;
    }
    return at + n <= p->space.at.table_cap ? (uint32_t)at : US_NONE;
}

static void insert(us_region_t **a, uint32_t n, uint32_t at, us_region_t *r) {
    memmove(a + at + 1, a + at, (n - at) * sizeof(us_region_t *));
    a[at] = r;
}

static void erase(us_region_t **a, uint32_t n, const us_region_t *r) {
    for (uint32_t k = 0; k < n; k++) {
        if (a[k] == r) {
            memmove(a + k, a + k + 1, (n - k - 1) * sizeof(us_region_t *));
            return;
        }
    }
}

int us_pager_add(us_pager_t *p, uint64_t addr, uint64_t len, uint32_t block, uint32_t item, uint64_t *first_entry,
                 uint64_t *entries) {
    LOCKED(p);
    if (len == 0 || addr % US_PAGE != 0 || len % US_PAGE != 0 || (block & (block - 1)) != 0 ||
        block < (1u << US_BLOCK_MIN_SHIFT) || block > MAX_BLOCK)
        return -EINVAL;
    uint32_t k = upto(p->byaddr, p->live, addr + len - 1, true);
    if (k > 0 && p->byaddr[k - 1]->addr + p->byaddr[k - 1]->len > addr)
        return -EEXIST;
    if (p->live == p->regions && grow(p) < 0)
        return -ENOMEM;
    /* Not the last one that was given up: a late request must not find another region under its id. */
    uint32_t id = p->next_id % p->regions;
    while (p->region[id] != NULL)
        id = (id + 1) % p->regions;
    p->next_id = id + 1;
    const uint64_t count = (len + block - 1) / block;
    const uint32_t first = find_gap(p, count);
    if (first == US_NONE)
        return -ENOSPC;
    us_region_t *r = us_calloc(1, sizeof *r);
    if (r == NULL)
        return -ENOMEM;
    *r = (us_region_t){.addr = addr,
                       .len = len,
                       .id = id,
                       .first = first,
                       .count = (uint32_t)count,
                       .shift = (uint8_t)__builtin_ctz(block)};
    for (int pool = 0; pool < US_POOLS; pool++)
        us_choice_init(&r->choice[pool], p->cfg.shuffle != 0, item);
    p->region[id] = r;
    insert(p->byaddr, p->live, upto(p->byaddr, p->live, addr, true), r);
    insert(p->byfirst, p->live, upto(p->byfirst, p->live, first, false), r);
    p->live++;
    p->s->regions++;
    p->s->region_bytes += len;
    if (p->trace.on) {
        const us_trace_rec_t rec[] = {
            {.what = US_TRACE_REGION, .flags = r->shift, .entry = first, .when = us_now_ns()},
            {.what = US_TRACE_MORE, .entry = id, .when = len},
            {.what = US_TRACE_MORE, .entry = r->count, .when = addr},
        };
        us_trace_put(&p->trace, rec, 3, true);
    }
    *first_entry = first;
    *entries = count;
    return (int)id;
}

static us_region_t *region(us_pager_t *p, int id) {
    return id < 0 || (uint32_t)id >= p->regions ? NULL : p->region[id];
}

int64_t us_pager_plain(us_pager_t *p, int id) {
    LOCKED(p);
    us_region_t *r = region(p, id);
    if (r == NULL || r->active)
        return -EINVAL;
    return (int64_t)us_plain_room(p, r);
}

int us_pager_fill(us_pager_t *p, int id, uint32_t *cursor, uint64_t plain, int resident) {
    LOCKED(p);
    us_region_t *r = region(p, id);
    if (r == NULL || r->active || *cursor > r->count || plain > r->len)
        return -EINVAL;
    const uint32_t blocks = us_region_blocks(r, plain), end = resident ? r->count : blocks;
    uint32_t k = *cursor;
    const uint32_t to = (uint32_t)us_min(end, (uint64_t)k + US_SLICE);
    r->wrapped = resident != 0;
    if (k < blocks) {
        const uint32_t last = (uint32_t)us_min(blocks, to);
        us_plain_begin(p, r, k, last);
        k = last;
    }
    for (; k < to; k++) /* changed, as far as we know: what a wrapped buffer holds was never seen */
        us_entry_wrapped(p, r, r->first + k);
    if (*cursor < to)
        us_evict_begin(p);
    *cursor = to;
    return to < end ? US_AGAIN : US_DONE;
}

int us_pager_probe(us_pager_t *p, int id, uint32_t *cursor) {
    LOCKED(p);
    us_region_t *r = region(p, id);
    if (r == NULL || !r->active || *cursor > r->count)
        return -EINVAL;
    return r->wrapped && !r->frozen && us_plain_probe(p, r, cursor) ? US_AGAIN : US_DONE;
}

int us_pager_activate(us_pager_t *p, int id) {
    LOCKED(p);
    us_region_t *r = region(p, id);
    if (r == NULL)
        return -EINVAL;
    r->active = true;
    return 0;
}

int us_pager_limit(us_pager_t *p, uint64_t limit) {
    LOCKED(p);
    if (limit < US_PAGE)
        return -EINVAL;
    p->cfg.limit = p->s->limit = limit;
    set_marks(p);
    us_evict_begin(p);
    const int room = us_evict_room(p, 0);
    if (room == US_WAIT_ROOM) {
        want(p);
        return US_WAIT_ROOM;
    }
    return US_DONE;
}

int us_pager_pool(us_pager_t *p, uint64_t budget) {
    LOCKED(p);
    p->gate_until = 0; /* there may be room now */
    const int res = us_tier_budget(p, &p->tier[1], budget);
    if (res == US_WAIT_ROOM)
        want(p);
    publish(p);
    return res;
}

int us_pager_freeze(us_pager_t *p, int id) {
    LOCKED(p);
    us_region_t *r = region(p, id);
    if (r == NULL)
        return -EINVAL;
    r->frozen = true;
    return 0;
}

static bool is_settled(const us_pager_t *p, uint32_t i) {
    const us_entry_t e = p->space.table[i];
    return e.state != US_LEAVING && e.state != US_OUTBOX && (e.flags & US_F_LOCKED) == 0;
}

int us_pager_remove(us_pager_t *p, int id, uint32_t *cursor) {
    LOCKED(p);
    us_region_t *r = region(p, id);
    if (r == NULL || *cursor > r->count)
        return -EINVAL;
    if (!r->frozen || r->jobs != 0)
        return -EBUSY;
    if (!r->going) {
        r->going = true;
        us_store_forget(p, r->first, r->count);
        us_plain_forget(p, r);
    }
    const uint32_t end = r->first + r->count;
    uint32_t i = us_table_seek(p, r->first + *cursor, end);
    for (uint32_t n = 0; i < end; i = us_table_next(p, i, end), n++) {
        *cursor = i - r->first;
        if (!is_settled(p, i))
            return -EBUSY;
        if (n == US_SLICE)
            return US_AGAIN;
        us_entry_forget(p, r, i);
    }
    *cursor = r->count;
    const uint64_t page_entries = US_PAGE / sizeof(us_entry_t);
    const uint64_t from = us_align_up(r->first, page_entries);
    const uint64_t to = (r->first + r->count) & ~(page_entries - 1);
    if (to > from) /* zeros either way; this gives the memory back too */
        madvise(&p->space.table[from], (to - from) * sizeof(us_entry_t), MADV_REMOVE);
    erase(p->byaddr, p->live, r);
    erase(p->byfirst, p->live, r);
    p->live--;
    p->region[id] = NULL;
    p->s->regions--;
    p->s->region_bytes -= r->len;
    if (p->trace.on) {
        const us_trace_rec_t gone = {.what = US_TRACE_GONE, .entry = r->first, .when = us_now_ns()};
        us_trace_put(&p->trace, &gone, 1, true);
    }
    free(r);
    return 0;
}

/* What is counted elsewhere goes into the statistics. */
static void publish(us_pager_t *p) {
    us_stats_t *s = p->s;
    s->pool_used = s->pool_allocated = 0;
    for (us_tier_t *t = &p->tier[1]; t != NULL && t->pool != NULL; t = t->next) {
        s->pool_used += t->s->used = us_pool_used(t->pool);
        s->pool_allocated += t->s->allocated = us_pool_allocated(t->pool);
    }
    if (p->store.on) {
        s->swap_used = s->tier[US_TIER_FILE].allocated = us_log_used_bytes(p->store.log);
        s->swap_live = s->tier[US_TIER_FILE].used = us_log_live_bytes(p->store.log);
    }
    uint64_t ns = 0;
    for (int i = 0; i < p->crew.n; i++)
        ns += atomic_load_explicit(&p->crew.worker[i].cpu_ns, memory_order_relaxed);
    s->worker_cpu_ns = ns;
    s->trace_missed = us_trace_lacks(&p->trace);
    s->allocations = atomic_load_explicit(&us_allocations, memory_order_relaxed);
    for (int i = 0; i < US_INJECT_READ; i++)
        s->injected[i] = us_injected(i);
    for (int k = 0; p->store.on && k < US_IO_OPS * US_IO_KINDS; k++)
        s->injected[US_INJECT_READ + k] = us_io_injected(p->store.io, k / US_IO_KINDS, US_IO_SHORT - 1 + k % US_IO_KINDS);
    s->decompressions = us_codec_unpressed(p->codec);
    for (int i = 0; i < p->crew.n; i++)
        s->decompressions += us_codec_unpressed(p->crew.worker[i].codec);
    if (p->servers.on)
        s->decompressions += us_codec_unpressed(p->servers.loop.codec) + us_codec_unpressed(p->servers.second.codec);
}

/* ---- range calls ------------------------------------------------------------------------------------ */

static us_region_t *range(us_pager_t *p, int id, const uint32_t *cursor, uint32_t last) {
    us_region_t *r = region(p, id);
    return r == NULL || last > r->count || *cursor > last ? NULL : r;
}

/* The same for calls that another thread's release may overtake: 0, -ECANCELED when the region is no more, or -EINVAL. */
static int range_now(us_pager_t *p, int id, const uint32_t *cursor, uint32_t last, us_region_t **r) {
    *r = range(p, id, cursor, last);
    return *r != NULL ? 0 : region(p, id) == NULL ? -ECANCELED : -EINVAL;
}

int us_pager_evict(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    LOCKED(p);
    us_region_t *r = range(p, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    const int plain = us_plain_end(p, r, *cursor, last);
    return plain != US_DONE ? plain : us_evict_range(p, r, cursor, last);
}

static void want(us_pager_t *p) {
    p->want_progress = true;
    atomic_store_explicit(&p->space.ring->urgent, 1, memory_order_relaxed);
}

/* A block that was settled once is not looked at again: other threads may keep the range busy for ever. */
int us_pager_settle(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    LOCKED(p);
    us_region_t *r = range(p, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(p, r->first + *cursor, end);
    for (uint32_t n = 0; i < end && is_settled(p, i); i = us_table_next(p, i, end)) {
        if (n++ == US_SLICE) {
            *cursor = i - r->first;
            return US_AGAIN;
        }
    }
    *cursor = i - r->first;
    if (*cursor == last && !(r->frozen && r->jobs != 0))
        return US_DONE;
    want(p);
    return US_WAIT_ROOM;
}

int us_pager_move(us_pager_t *p, int id, uint32_t *cursor, uint32_t last, int to) {
    LOCKED(p);
    us_region_t *r;
    int err = range_now(p, id, cursor, last, &r);
    if (err == 0 && (to < 1 || to >= US_TIERS || p->tier[to].ops == NULL))
        err = -EINVAL;
    if (err != 0)
        return err;
    if (r->frozen)
        return -ECANCELED;
    us_tier_t *t = &p->tier[to];
    const uint64_t slice = 64 << 10; /* bytes; then the loop has its turn */
    uint64_t moved = 0;
    int result = US_DONE;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(p, r->first + *cursor, end), looked = 0;
    for (; i < end; i = us_table_next(p, i, end)) {
        const us_entry_t e = p->space.table[i];
        if (moved >= slice || looked++ == US_SLICE) {
            result = US_AGAIN;
            break;
        }
        if ((e.state != US_POOLED && e.state != US_STORED) || us_tier_of(e) == to || (e.flags & US_F_LOCKED) ||
            (e.flags & US_F_WRITING))
            continue;
        result = us_tier(p, e)->ops->load(p, us_tier(p, e), r, i, t);
        if (result != US_DONE)
            break;
        moved += US_LENGTH_OF(e);
    }
    *cursor = i - r->first;
    if (t->pool != NULL || result != US_AGAIN) /* a segment is gone on with by the next call */
        t->ops->flush(p, t);
    us_store_flush(p);
    if (result == US_WAIT_ROOM) {
        us_tiers_sink(p);
        want(p);
    }
    return result;
}

int us_pager_moved(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    LOCKED(p);
    us_region_t *r;
    const int err = range_now(p, id, cursor, last, &r);
    if (err != 0)
        return err;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(p, r->first + *cursor, end);
    for (uint32_t n = 0; i < end; i = us_table_next(p, i, end)) {
        const us_entry_t e = p->space.table[i];
        *cursor = i - r->first;
        if (n++ == US_SLICE)
            return US_AGAIN;
        if ((e.state == US_POOLED || e.state == US_STORED) && (e.flags & (US_F_WRITING | US_F_LOCKED)) != 0) {
            want(p);
            return US_WAIT_ROOM;
        }
    }
    *cursor = last;
    publish(p);
    return US_DONE;
}

int us_pager_prefetch(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    LOCKED(p);
    us_region_t *r = range(p, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    int result = US_DONE;
    bool posted = false;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(p, r->first + *cursor, end);
    for (uint32_t n = 0; i < end; i = us_table_next(p, i, end)) {
        const us_entry_t e = p->space.table[i];
        if (n++ == US_SLICE) {
            result = US_AGAIN;
            break;
        }
        if (e.state == US_RESIDENT || e.state == US_PLAIN || e.state == US_EMPTY || e.state == US_LOST || (e.flags & US_F_LOCKED))
            continue;
        const int room = us_evict_room(p, us_block_len(r, i));
        if (room == -ENOSPC) { /* nothing can leave for it: it is only a hint */
            i = end;
            break;
        }
        if (room == US_DONE && e.state == US_STORED && us_store_fetch_run(p, r, i, r->first + last, false, p->cfg.limit) > 0)
            continue; /* those after it are locked, and passed by */
        if (room == US_DONE && e.state != US_OUTBOX && e.state != US_STORED && us_fault_ahead(p, r, i, true)) {
            posted = true;
            continue;
        }
        if (room == US_DONE && e.state == US_OUTBOX && us_fault_install(p, r, i, false) != US_AGAIN)
            continue;
        result = US_WAIT_ROOM;
        break;
    }
    *cursor = i - r->first;
    if (posted)
        us_crew_ring(&p->crew);
    us_store_flush(p);
    if (result == US_WAIT_ROOM)
        want(p);
    return result;
}

int us_pager_verify(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    LOCKED(p);
    us_region_t *r;
    const int err = range_now(p, id, cursor, last, &r);
    if (err != 0)
        return err;
    if (r->frozen)
        return -ECANCELED;
    enum { PRESSED = 128 << 10 }; /* bytes decompressed here: then the loop has its turn */
    uint64_t pressed = 0;
    int result = US_DONE;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(p, r->first + *cursor, end);
    for (int n = 0; i < end; i = us_table_next(p, i, end), n++) {
        const us_entry_t e = p->space.table[i];
        if (n == US_SLICE || pressed >= PRESSED) {
            result = US_AGAIN;
            break;
        }
        if (e.flags & US_F_LOCKED) /* leaving, or who has it finds out what it is worth */
            continue;
        if (e.state == US_STORED && !us_store_verify(p, r, i)) {
            want(p);
            result = US_WAIT_ROOM;
            break;
        }
        if (e.state == US_POOLED) {
            pressed += us_block_len(r, i);
            if (!us_fault_intact(p, r, i))
                us_fault_lose(p, r, i, false);
        }
    }
    *cursor = i - r->first;
    us_store_flush(p);
    return result;
}

/* Pages of a changed block that are not there (never touched before it was wrapped, or given back) are
 * zeros; a system call of an unprivileged process can't wait for them. */
static int populate(us_pager_t *p, us_region_t *r, uint32_t i) {
    const uint64_t addr = us_block_addr(r, i);
    for (uint64_t off = 0; off < us_block_len(r, i); off += US_PAGE) {
        int err = -EAGAIN;
        for (int tries = 0; tries < US_TRIES && err == -EAGAIN; tries++) /* page by page, so that each try gets on */
            err = us_sys_zero(p->cfg.uffd, addr + off, US_PAGE);
        if (err == -EAGAIN)
            return US_AGAIN;
        if (err != 0 && err != -EEXIST)
            return err;
    }
    return US_DONE;
}

/* Brings block i in, written or not, whatever it takes; for pins and for the end. */
static int hold(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t last, bool within_limit) {
    enum { AHEAD = 256 };
    const us_entry_t e = p->space.table[i];
    if (e.flags & US_F_LOCKED)
        return US_WAIT_ENTRY;
    if (e.state == US_RESIDENT && (e.flags & US_F_CLEAN))
        return us_fault_unprotect(p, r, i);
    if (e.state == US_RESIDENT && !within_limit)
        return US_DONE;
    if (e.state == US_RESIDENT) { /* single pages may be protected: what a drop or a COPY that was cut short has left */
        const int res = us_fault_unprotect(p, r, i);
        return res != US_DONE ? res : populate(p, r, i);
    }
    if (e.state == US_PLAIN) /* of a pin none is left */
        return US_DONE;
    if (!within_limit && (e.state == US_EMPTY || (e.state == US_FILLED && e.where == 0)))
        return US_DONE; /* zeros are what the kernel gives by itself, page by page and when they are wanted */
    if (within_limit && us_evict_room(p, us_block_len(r, i)) == US_WAIT_ROOM)
        return US_WAIT_ROOM;
    if (e.state == US_LOST) /* a touch says so */
        return US_DONE;
    if (e.state == US_STORED) {
        /* This one by itself, until it is in or LOST; behind it as many as there are slots, so that the disk has something to
         * choose from. */
        us_store_fetch(p, r, i, true, 0);
        const uint32_t end = (uint32_t)us_min(r->first + last, (uint64_t)i + AHEAD);
        const uint64_t most = within_limit ? p->cfg.limit : UINT64_MAX;
        for (uint32_t k = i + 1, n; k < end; k += n) {
            const us_entry_t next = p->space.table[k];
            n = 1;
            if (next.state != US_STORED || (next.flags & US_F_LOCKED))
                continue;
            if (p->resident + us_block_len(r, k) > most)
                break;
            n = us_store_fetch_run(p, r, k, end, true, most);
            if (n == 0)
                break;
        }
        us_store_flush(p);
        return US_WAIT_ENTRY;
    }
    return us_fault_install(p, r, i, true);
}

static int hold_range(us_pager_t *p, int id, uint32_t *cursor, uint32_t last, bool pin) {
    us_region_t *r = range(p, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    enum { SLICE = 64, LOOKS = US_SLICE / SLICE }; /* blocks; of those with nothing to do, so many count as one */
    const uint32_t end = r->first + last;
    uint32_t looks = 0;
    for (uint32_t i = r->first + *cursor;; i++) {
        if (!pin && (i == r->first + *cursor || i % (US_PAGE / sizeof(us_entry_t)) == 0))
            i = us_table_seek(p, i, end); /* zeros are there without our doing */
        *cursor = us_min(i, end) - r->first;
        if (i >= end)
            break;
        const us_entry_t e = p->space.table[i];
        looks += pin || (e.state != US_EMPTY && e.state != US_RESIDENT && e.state != US_PLAIN) ? LOOKS : 1;
        if (looks > US_SLICE)
            return US_AGAIN;
        if (pin && p->pins[i] == UINT16_MAX)
            return -EOVERFLOW;
        int res = hold(p, r, i, last, pin);
        if (res == -ENOENT && !pin) /* unmapped by the user: nothing to restore, nobody to miss it */
            continue;
        if (res != US_DONE) {
            if (res == US_WAIT_ENTRY || res == US_WAIT_ROOM)
                want(p);
            return res;
        }
        if (pin && p->pins[i]++ == 0)
            p->s->pinned += us_block_len(r, i);
    }
    return US_DONE;
}

int us_pager_pin(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    LOCKED(p);
    us_region_t *r = range(p, id, cursor, last);
    const int plain = r == NULL ? -EINVAL : us_plain_end(p, r, *cursor, last);
    return plain != US_DONE ? plain : hold_range(p, id, cursor, last, true);
}

int us_pager_restore(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    LOCKED(p);
    return hold_range(p, id, cursor, last, false);
}

int us_pager_unpin(us_pager_t *p, int id, uint32_t first, uint32_t last) {
    LOCKED(p);
    us_region_t *r = range(p, id, &first, last);
    if (r == NULL)
        return -EINVAL;
    for (uint32_t i = r->first + first; i < r->first + last; i++) {
        if (p->pins[i] == 0)
            return -EINVAL;
        if (--p->pins[i] == 0)
            p->s->pinned -= us_block_len(r, i);
    }
    return 0;
}

/* ---- the step --------------------------------------------------------------------------------------- */

void us_event(us_pager_t *p, us_event_t ev) {
    if (!p->in_step) /* a range call or a retry: the loop must come and fetch it */
        us_sys_eventfd_ring(p->worker_fd);
    if (p->events == p->event_cap) {
        uint32_t cap = p->event_cap == 0 ? 64 : p->event_cap * 2;
        us_event_t *e = us_realloc(p->event, cap * sizeof *e);
        if (e == NULL)
            abort(); /* to drop one is to hang a thread */
        p->event = e;
        p->event_cap = cap;
    }
    p->event[p->events++] = ev;
}

void us_message(us_pager_t *p, const us_msg_t *msg, uint64_t now) {
    us_event_t f = {.since = now, .addr = msg->addr, .flags = msg->flags, .tid = msg->tid};
    p->s->messages++;
    us_server_seen(p, msg->tid, now);
    const int res = us_fault_serve(p, &f);
    if (res == US_DONE)
        return;
    us_region_t *r = us_region_at(p, f.addr);
    f.entry = r == NULL ? US_NONE : r->first + (uint32_t)((f.addr - r->addr) >> r->shift);
    f.kind = US_EV_FAULT;
    p->parked++;
    p->s->stray += res == US_STRAY;
    us_event(p, f);
}

/* Returns how many messages there were; negative when the client is gone. */
static int drain(us_pager_t *p) {
    us_msg_t msg[16];
    const bool shared = us_server_shared(&p->servers); /* then one at a time */
    us_place_step(&p->place, true);
    if (shared)
        us_server_unlock(p);
    int n = us_sys_read(p->cfg.uffd, msg, shared ? 1 : 16);
    const uint64_t now = us_now_ns(); /* a fault's time runs while the second server has the lock, too */
    if (shared)
        us_server_lock(p, &p->servers.loop);
    if (n <= 0) {
        us_place_step(&p->place, false);
        return n;
    }
    p->s->read_batches++;
    for (int k = 0; k < n; k++) {
        if (k == n - 1)
            us_place_step(&p->place, false);
        p->s->cpu_moves += us_place_fault(&p->place, msg[k].tid, now, shared ? p->servers.cpu : -1);
        us_message(p, &msg[k], now);
    }
    return n;
}

static bool completed(us_pager_t *p) {
    if (us_store_completed(p))
        return true;
    if (p->seen < p->head && atomic_load_explicit(&p->space.ring->cmd[p->seen & (US_RING - 1)].status,
                                                  memory_order_acquire) != US_PENDING)
        return true;
    for (int i = 0; i < p->crew.n; i++) {
        if (atomic_load(&p->crew.worker[i].done_head) != p->crew.worker[i].done_seen)
            return true;
    }
    return false;
}

/* A thread stands still for a read: looks for its end, and for anything else, a few microseconds long. false:
 * it is time to sleep. */
static bool spin(us_pager_t *p) {
    enum { LOOKS = 64 };
    if (p->store.demand == 0 || !us_place_spins(&p->place, p->store.begun, us_now_ns()))
        return false;
    atomic_store_explicit(&p->place.busy, 1, memory_order_relaxed); /* the warden hears of no completion meanwhile */
    for (int k = 0; k < LOOKS && !completed(p); k++)
        _mm_pause();
    return true;
}

void us_pager_rung(us_pager_t *p, int fd) {
    uint64_t n;
    ssize_t got = read(fd, &n, sizeof n);
    (void)p, (void)got;
}

int us_pager_step(us_pager_t *p, us_event_t *ev, int max) {
    LOCKED(p);
    us_ring_t *ring = p->space.ring;
    bool more = false;
    p->in_step = true;
    atomic_store(&ring->loop_asleep, 0);
    us_store_listen(p, false);
    for (int round = 0; round < (p->parked > 0 ? ROUNDS_PARKED : ROUNDS); round++) {
        us_pump(p);
        int n = drain(p);
        if (n < 0) {
            us_event(p, (us_event_t){.kind = US_EV_GONE});
            break;
        }
        if (n > 0)
            continue;
        if (p->resident - p->leaving > p->mark_high)
            us_evict_some(p);
        const bool sinks = us_tiers_sink(p);
        us_store_flush(p);
        more = us_tiers_tidy(p);
        if (sinks || (p->events == 0 && spin(p)))
            continue;
        /* Say that we sleep, then look again: they finish, then look whether we sleep. */
        atomic_store_explicit(&p->place.parked, p->parked + p->store.demand, memory_order_relaxed);
        atomic_store_explicit(&ring->urgent, p->want_progress || p->parked > 0, memory_order_relaxed);
        atomic_store(&ring->loop_asleep, 1);
        us_store_listen(p, true);
        if (!completed(p))
            break;
        atomic_store(&ring->loop_asleep, 0);
        us_store_listen(p, false);
    }
    publish(p);
    const int unwritten = atomic_load_explicit(&p->trace.error, memory_order_relaxed);
    if (unwritten != 0 && !p->said_trace) {
        p->said_trace = true;
        us_event(p, (us_event_t){.kind = US_EV_TRACE, .flags = (uint32_t)unwritten});
    }
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    p->s->loop_cpu_ns = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
    int n = (int)us_min(p->events, (uint64_t)max);
    if (n > 0) {
        memcpy(ev, p->event, sizeof *ev * (size_t)n);
        p->events -= (uint32_t)n;
        memmove(p->event, p->event + n, sizeof *ev * p->events);
    }
    p->in_step = false;
    if (p->events > 0 || more || atomic_load(&ring->loop_asleep) == 0) /* come back at once: nobody will ring */
        us_sys_eventfd_ring(p->worker_fd);
    return n;
}

int us_pager_serve(us_pager_t *p, const us_event_t *fault) {
    LOCKED(p);
    int res = us_fault_serve(p, fault);
    p->parked -= res == US_DONE;
    return res;
}

void us_pager_drop(us_pager_t *p, const us_event_t *fault) {
    LOCKED(p);
    us_sys_wake(p->cfg.uffd, fault->addr & ~(uint64_t)(US_PAGE - 1), US_PAGE);
    p->parked--;
}

int us_pager_pending(us_pager_t *p) {
    LOCKED(p);
    return p->head != p->seen || us_crew_busy(&p->crew) > 0 || p->events > 0;
}

/* ---- invariants ------------------------------------------------------------------------------------- */

int us_pager_is_valid(us_pager_t *p) {
    LOCKED(p);
    errno = us_invariants(p);
    return errno == 0;
}
