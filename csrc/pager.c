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
#include "entry.h"
#include "event.h"
#include "evict.h"
#include "fault.h"
#include "invariants.h"
#include "lock.h"
#include "mm.h"
#include "notes.h"
#include "plain.h"
#include "policy.h"
#include "pump.h"
#include "region.h"
#include "server.h"
#include "tier.h"
#include "work.h"
#include "writeout.h"
#include "sys.h"
#include "turn.h"

/* Messages in a step, while nobody waits in Python, and while somebody does: a task that is woken takes a
 * few turns of the asyncio loop, and who comes by uffd meanwhile must not have all the turns. */
enum { ROUNDS = 512, ROUNDS_PARKED = 8, MAX_BLOCK = 1 << US_BLOCK_MAX_SHIFT };

/* What Python calls has the pager's lock from here to the end of the function. */
us_pager_t *us_pager_locked(us_pager_t *p) {
    us_server_lock(p, &p->servers.loop);
    us_notes(p); /* what it asks about is in the books */
    return p;
}
void us_pager_unlocked(us_pager_t **p) {
#ifdef US_DEBUG
    us_must_hold(*p);
#endif
    us_server_unlock(*p);
}

/* ---- life ------------------------------------------------------------------------------------------- */

static int open_all(us_pager_t *p, const us_mm_config_t *client) {
    int err = us_mm_open(&p->mm, client);
    if (err == 0)
        err = us_tiers_open(p);
    if (err < 0)
        return err;
    p->raw = us_sys_reserve(MAX_BLOCK);
    p->filled = us_sys_reserve(MAX_BLOCK);
    p->zero = mmap(NULL, MAX_BLOCK, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->raw == NULL || p->filled == NULL || p->zero == MAP_FAILED)
        return -ENOMEM;
    err = us_codec_ctx_new(&p->codec, MAX_BLOCK);
    if (err < 0)
        return err;
    p->worker_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->worker_fd < 0)
        return -errno;
    p->crew = (us_crew_t){.uffd = p->mm.cfg.uffd,
                          .notify = p->worker_fd,
                          .codec = p->cfg.pool[0].codec,
                          .level = p->cfg.pool[0].level,
                          .zero = p->zero,
                          .ring = p->mm.space.ring};
    err = us_crew_start(&p->crew, p->cfg.workers, MAX_BLOCK);
    const int wakes[US_WAKES] = {p->mm.cfg.uffd, p->mm.cfg.notify, p->worker_fd, -1};
    if (err == 0 && p->cfg.follow)
        err = us_place_start(&p->place, p->mm.cfg.client_pid, p->mm.cfg.mover_tid, wakes);
    if (err == 0 && p->cfg.servers > 1)
        err = us_server_start(p);
    return err;
}

int us_pager_open(us_pager_t **out, const us_pager_config_t *cfg, const us_mm_config_t *client) {
    us_pager_t *p = us_aligned_alloc(64, us_align_up(sizeof *p, 64));
    if (p == NULL)
        return -ENOMEM;
    memset(p, 0, sizeof *p);
    p->cfg = *cfg;
    p->worker_fd = -1;
    int err = us_server_open(p);
    if (err == 0)
        err = open_all(p, client);
    if (err < 0) {
        us_pager_close(p);
        return err;
    }
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
    free(p->event);
    if (p->worker_fd >= 0)
        close(p->worker_fd);
    if (p->codec != NULL)
        us_codec_ctx_free(p->codec);
    us_tiers_close(p);
    unreserve(p->raw, MAX_BLOCK);
    unreserve(p->filled, MAX_BLOCK);
    if (p->zero != MAP_FAILED)
        unreserve((void *)(uintptr_t)p->zero, MAX_BLOCK);
    us_mm_close(&p->mm);
    free(p);
}

int us_pager_worker_fd(us_pager_t *p) { return p->worker_fd; }

int us_pager_swap(us_pager_t *p, int fd, uint64_t bytes, uint32_t segment, int engine) {
    return p->mm.live > 0 ? -EBUSY : us_store_open(p, fd, bytes, segment, engine);
}

int us_pager_trace(us_pager_t *p, int fd) {
    US_LOCKED(p);
    if (p->mm.live > 0 || p->trace.on)
        return -EBUSY;
    p->mm.follows = true;
    us_mm_limit(&p->mm, p->mm.cfg.limit);
    return us_trace_open(&p->trace, fd, US_TRACE_RING);
}

int64_t us_pager_trace_end(us_pager_t *p) {
    US_LOCKED(p);
    return (int64_t)us_trace_close(&p->trace);
}

/* ---- regions ---------------------------------------------------------------------------------------- */

int us_pager_add(us_pager_t *p, uint64_t addr, uint64_t len, uint32_t block, uint32_t item, int handled,
                 uint64_t *first_entry, uint64_t *entries) {
    US_LOCKED(p);
    if (handled && p->mm.cfg.sigbus < 0)
        return -EINVAL;
    if (len == 0 || addr % US_PAGE != 0 || len % US_PAGE != 0 || (block & (block - 1)) != 0 ||
        block < (1u << US_BLOCK_MIN_SHIFT) || block > MAX_BLOCK)
        return -EINVAL;
    us_region_t *r;
    const int err = us_region_new(&p->mm, addr, len, block, &r);
    if (err != 0)
        return err;
    r->handled = handled != 0;
    r->uffd = handled ? p->mm.cfg.sigbus : p->mm.cfg.uffd;
    p->mm.handled += r->handled;
    for (int pool = 0; pool < US_POOLS; pool++)
        us_choice_init(&r->choice[pool], p->cfg.shuffle != 0, item);
    if (p->trace.on) {
        const us_trace_rec_t rec[] = {
            {.what = US_TRACE_REGION, .flags = r->shift, .entry = r->first, .when = us_now_ns()},
            {.what = US_TRACE_MORE, .entry = r->id, .when = len},
            {.what = US_TRACE_MORE, .entry = r->count, .when = addr},
        };
        us_trace_put(&p->trace, rec, 3, true);
    }
    *first_entry = r->first;
    *entries = r->count;
    return (int)r->id;
}

int64_t us_pager_plain(us_pager_t *p, int id) {
    US_LOCKED(p);
    us_region_t *r = us_region_by_id(&p->mm, id);
    if (r == NULL || r->active)
        return -EINVAL;
    return (int64_t)us_plain_room(&p->mm, r);
}

int us_pager_fill(us_pager_t *p, int id, uint32_t *cursor, uint64_t plain, int resident) {
    US_LOCKED(p);
    us_region_t *r = us_region_by_id(&p->mm, id);
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
        us_evict_begin(&p->mm);
    *cursor = to;
    return to < end ? US_AGAIN : US_DONE;
}

int us_pager_probe(us_pager_t *p, int id, uint32_t *cursor) {
    US_LOCKED(p);
    us_region_t *r = us_region_by_id(&p->mm, id);
    if (r == NULL || !r->active || *cursor > r->count)
        return -EINVAL;
    return r->wrapped && !r->frozen && us_plain_probe(p, r, cursor) ? US_AGAIN : US_DONE;
}

int us_pager_activate(us_pager_t *p, int id) {
    US_LOCKED(p);
    us_region_t *r = us_region_by_id(&p->mm, id);
    if (r == NULL)
        return -EINVAL;
    r->active = true;
    return 0;
}

int us_pager_limit(us_pager_t *p, uint64_t limit) {
    US_LOCKED(p);
    if (limit < US_PAGE)
        return -EINVAL;
    us_mm_limit(&p->mm, limit);
    us_evict_begin(&p->mm);
    const int room = us_evict_make_room(p, 0);
    if (room == US_WAIT_ROOM) {
        us_want(p);
        return US_WAIT_ROOM;
    }
    return US_DONE;
}

int us_pager_pool(us_pager_t *p, uint64_t budget) {
    US_LOCKED(p);
    p->gate_until = 0; /* there may be room now */
    const int res = us_tier_budget(p, &p->tier[1], budget);
    if (res == US_WAIT_ROOM)
        us_want(p);
    us_pager_publish(p);
    return res;
}

int us_pager_freeze(us_pager_t *p, int id) {
    US_LOCKED(p);
    us_region_t *r = us_region_by_id(&p->mm, id);
    if (r == NULL)
        return -EINVAL;
    r->frozen = true;
    return 0;
}

int us_pager_remove(us_pager_t *p, int id, uint32_t *cursor) {
    US_LOCKED(p);
    us_region_t *r = us_region_by_id(&p->mm, id);
    if (r == NULL || *cursor > r->count)
        return -EINVAL;
    if (!r->frozen || r->jobs != 0)
        return -EBUSY;
    if (!r->going) {
        r->going = true;
        us_work_forget(p, r->first, r->count);
        us_plain_forget(&p->mm, r);
    }
    const uint32_t end = r->first + r->count;
    uint32_t i = us_table_seek(&p->mm, r->first + *cursor, end);
    for (uint32_t n = 0; i < end; i = us_table_next(&p->mm, i, end), n++) {
        *cursor = i - r->first;
        if (!us_is_settled(&p->mm, i))
            return -EBUSY;
        if (n == US_SLICE || !us_take(&p->mm, r, i)) /* a note of it is on its way */
            return US_AGAIN;
        us_entry_forget(p, r, i);
        us_forget(&p->mm, r, i); /* what a system call holds is ordinary memory now */
    }
    *cursor = r->count;
    const uint64_t page_entries = US_PAGE / sizeof(us_entry_t);
    const uint64_t from = us_align_up(r->first, page_entries);
    const uint64_t to = (r->first + r->count) & ~(page_entries - 1);
    if (to > from) /* zeros either way; this gives the memory back too */
        madvise(&p->mm.space.table[from], (to - from) * sizeof(us_entry_t), MADV_REMOVE);
    p->mm.handled -= r->handled;
    if (p->trace.on) {
        const us_trace_rec_t gone = {.what = US_TRACE_GONE, .entry = r->first, .when = us_now_ns()};
        us_trace_put(&p->trace, &gone, 1, true);
    }
    us_region_free(&p->mm, r);
    return 0;
}

void us_pager_publish(us_pager_t *p) {
    us_stats_t *s = p->mm.s;
    us_tiers_publish(p);
    uint64_t ns = 0;
    for (int i = 0; i < p->crew.n; i++)
        ns += us_atomic_load_explicit(&p->crew.worker[i].cpu_ns, memory_order_relaxed);
    s->worker_cpu_ns = ns;
    s->trace_missed = us_trace_lacks(&p->trace);
    s->allocations = us_atomic_load_explicit(&us_allocations, memory_order_relaxed);
    for (int i = 0; i < US_INJECT_READ; i++)
        s->injected[i] = us_injected(i);
    s->decompressions = us_codec_decompressions(p->codec);
    for (int i = 0; i < p->crew.n; i++)
        s->decompressions += us_codec_decompressions(p->crew.worker[i].codec);
    if (p->servers.on)
        s->decompressions +=
            us_codec_decompressions(p->servers.loop.codec) + us_codec_decompressions(p->servers.second.codec);
}

/* ---- the step --------------------------------------------------------------------------------------- */

/* Serves what handlers ask for. Returns how many there were. */
static int drain_asks(us_pager_t *p) {
    enum { AT_ONCE = 16 };
    us_msg_t msg;
    uint64_t since;
    int n = 0;
    for (; n < AT_ONCE && us_ask_next(&p->mm, &msg, &since); n++)
        us_message(p, &msg, since);
    return n;
}

/* Returns how many messages there were; negative when the client is gone. */
static int drain(us_pager_t *p) {
    us_msg_t msg[16];
    const bool shared = us_server_shared(&p->servers); /* then one at a time */
    us_place_step(&p->place, true);
    if (shared)
        us_server_unlock(p);
    int n = us_sys_read(p->mm.cfg.uffd, msg, shared ? 1 : 16);
    const uint64_t now = us_now_ns(); /* a fault's time runs while the second server has the lock, too */
    if (shared)
        us_server_lock(p, &p->servers.loop);
    if (n <= 0) {
        us_place_step(&p->place, false);
        return n;
    }
    p->mm.s->read_batches++;
    for (int k = 0; k < n; k++) {
        if (k == n - 1)
            us_place_step(&p->place, false);
        p->mm.s->cpu_moves += us_place_fault(&p->place, msg[k].tid, now, shared ? p->servers.cpu : -1);
        us_server_seen(p, msg[k].tid, now);
        us_message(p, &msg[k], now);
    }
    return n;
}

static bool completed(us_pager_t *p) {
    if (us_tiers_completed(p))
        return true;
    if (p->mm.seen < p->mm.head && us_atomic_load_explicit(&p->mm.space.ring->cmd[p->mm.seen & (US_RING - 1)].status,
                                                           memory_order_acquire) != US_PENDING)
        return true;
    for (int i = 0; i < p->crew.n; i++) {
        if (us_atomic_load(&p->crew.worker[i].done_head) != p->crew.worker[i].done_seen)
            return true;
    }
    return false;
}

/* A thread stands still for a read: looks for its end, and for anything else, a few microseconds long. false:
 * it is time to sleep. */
static bool spin(us_pager_t *p) {
    enum { LOOKS = 64 };
    if (p->demand == 0 || !us_place_spins(&p->place, p->demand_at, us_now_ns()))
        return false;
    us_atomic_store_explicit(&p->place.busy, 1,
                             memory_order_relaxed); /* the monitor hears of no completion meanwhile */
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
    US_LOCKED(p);
    us_ring_t *ring = p->mm.space.ring;
    bool more = false;
    p->in_step = true;
    us_atomic_store(&ring->loop_asleep, 0);
    us_tiers_listen(p, false);
    for (int round = 0; round < (p->parked > 0 ? ROUNDS_PARKED : ROUNDS); round++) {
        us_notes(p);
        us_pump(p);
        int n = drain_asks(p);
        if (n == 0)
            n = drain(p);
        if (n < 0) {
            us_event(p, (us_event_t){.kind = US_EV_GONE});
            break;
        }
        if (n > 0)
            continue;
        if (us_mm_resident(&p->mm) - p->mm.leaving > p->mm.mark_high)
            us_evict_some(p);
        const bool demoting = us_tiers_demote(p);
        us_tiers_submit(p);
        more = us_tiers_tidy(p);
        if (demoting || (p->events == 0 && spin(p)))
            continue;
        /* Say that we sleep, then look again: they finish, then look whether we sleep. */
        us_atomic_store_explicit(&p->place.parked, p->parked + p->demand, memory_order_relaxed);
        us_atomic_store_explicit(&ring->urgent, p->want_progress || p->parked > 0, memory_order_relaxed);
        us_atomic_store(&ring->loop_asleep, 1);
        us_tiers_listen(p, true);
        if (!completed(p) && !us_notes_wait(p))
            break;
        us_atomic_store(&ring->loop_asleep, 0);
        us_tiers_listen(p, false);
    }
    us_pager_publish(p);
    const int unwritten = us_atomic_load_explicit(&p->trace.error, memory_order_relaxed);
    if (unwritten != 0 && !p->said_trace) {
        p->said_trace = true;
        us_event(p, (us_event_t){.kind = US_EV_TRACE, .error = unwritten});
    }
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    p->mm.s->loop_cpu_ns = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
    int n = (int)us_min(p->events, (uint64_t)max);
    if (n > 0) {
        memcpy(ev, p->event, sizeof *ev * (size_t)n);
        p->events -= (uint32_t)n;
        memmove(p->event, p->event + n, sizeof *ev * p->events);
    }
    p->in_step = false;
    if (p->events > 0 || more || us_atomic_load(&ring->loop_asleep) == 0) /* come back at once: nobody will ring */
        us_sys_eventfd_ring(p->worker_fd);
    return n;
}

int us_pager_serve(us_pager_t *p, const us_event_t *fault) {
    US_LOCKED(p);
    int res = us_fault_serve(p, fault);
    p->parked -= res == US_DONE;
    return res;
}

void us_pager_drop(us_pager_t *p, const us_event_t *fault) {
    US_LOCKED(p);
    us_wake(&p->mm, us_region_at(&p->mm, fault->addr), fault->addr & ~(uint64_t)(US_PAGE - 1), US_PAGE);
    p->parked--;
}

int us_pager_pending(us_pager_t *p) {
    US_LOCKED(p);
    return p->mm.head != p->mm.seen || us_crew_busy(&p->crew) > 0 || p->events > 0;
}

/* ---- invariants ------------------------------------------------------------------------------------- */

int us_pager_is_valid(us_pager_t *p) {
    US_LOCKED(p);
    errno = us_invariants(p);
    return errno == 0;
}
