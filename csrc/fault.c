/* SPDX-License-Identifier: MIT
 *
 * The way in. us_fault_serve settles what needs no waiting; what does goes to Python, where a task takes
 * the entry's lock, waits for what the answer names, and asks again.
 *
 *    EMPTY FILLED OUTBOX POOLED   room?  ->  bytes  ->  UFFDIO_COPY (which wakes)  ->  RESIDENT
 *    RESIDENT                     written while protected: lift it;  else somebody was faster: wake
 *    LEAVING                      wait for the mover's status
 *    locked by a worker           nothing: its copy wakes; if it fails, US_F_WAKE does
 *    LOST                         its pages are marked: a touch is SIGBUS
 *
 * No fault is lost between COPY and the waiting thread: the kernel looks at the page table once more after
 * it has queued the thread, and COPY wakes the queue after it has set the page table.
 */
#include "pager.h"

#include <string.h>

#include "sys.h"

/* ---- bytes into pages ------------------------------------------------------------------------------- */

static const uint8_t *fill_bytes(us_pager_t *p, uint64_t word, uint32_t len) {
    if (word == 0)
        return p->zero;
    if (word != p->filled_word || len > p->filled_len) {
        us_fill(p->filled, len, word);
        p->filled_word = word;
        p->filled_len = len;
    }
    return p->filled;
}

static const uint8_t *bytes_of(us_pager_t *p, us_entry_t e, uint32_t len) {
    switch (e.state) {
    case US_EMPTY:
        return p->zero;
    case US_FILLED:
        return fill_bytes(p, e.where, len);
    case US_OUTBOX:
        return p->space.outbox + e.where * US_PAGE;
    default:
        break;
    }
    const uint8_t *object = us_object(p, e);
    if (US_CODEC_OF(e) == US_CODEC_NONE)
        return object;
    if (us_decompress(p->codec, (int)US_CODEC_OF(e), object, US_LENGTH_OF(e), p->raw, len) != 0)
        return NULL;
    return p->raw;
}

int us_fault_install(us_pager_t *p, us_region_t *r, uint32_t i, bool write) {
    const us_entry_t e = p->space.table[i];
    const uint32_t len = us_block_len(r, i);
    const uint8_t *src = bytes_of(p, e, len);
    if (src == NULL) { /* the pool's memory is not what it was */
        us_fault_lose(p, r, i, true);
        return US_DONE;
    }
    return us_fault_copy(p, r, i, write, src);
}

bool us_fault_intact(us_pager_t *p, us_region_t *r, uint32_t i) {
    const us_entry_t e = p->space.table[i];
    const uint32_t len = us_block_len(r, i);
    return US_CODEC_OF(e) == US_CODEC_NONE ? US_LENGTH_OF(e) == len : bytes_of(p, e, len) != NULL;
}

void us_fault_bring_job(us_pager_t *p, us_region_t *r, us_job_t *j, uint32_t i, bool clean) {
    j->kind = US_JOB_BRING;
    j->clean = clean;
    j->entry = i;
    j->region = r->id;
    j->raw = us_block_len(r, i);
    j->dst = us_block_addr(r, i);
    j->gen = p->space.table[i].gen;
    j->word = 0;
    j->src = NULL;
    j->slot = 0;
}

/* Where a worker finds the bytes of a block that is EMPTY, FILLED or POOLED. */
static void bytes_for(us_pager_t *p, us_job_t *j, uint32_t i) {
    const us_entry_t e = p->space.table[i];
    if (e.state == US_POOLED) {
        j->codec = (uint8_t)US_CODEC_OF(e);
        j->len = US_LENGTH_OF(e);
        j->src = us_object(p, e);
    } else {
        j->codec = US_FILL;
        j->word = e.state == US_FILLED ? e.where : 0;
    }
}

/* The same with the pager's lock given back while the bytes are decompressed and copied in, for the other server. */
static int install_apart(us_pager_t *p, us_region_t *r, uint32_t i, bool write) {
    us_worker_t *hand = p->servers.hand;
    us_job_t j = {0};
    us_fault_bring_job(p, r, &j, i, !write && us_policy_clean(r, false));
    bytes_for(p, &j, i);
    us_entry_reserve(p, r, i);
    r->jobs++;
    p->servers.apart++;
    const bool loop = us_server_is_loop(&p->servers);
    if (loop) /* pushed aside from here on it keeps others waiting for this block */
        atomic_store_explicit(&p->place.busy, 1, memory_order_relaxed);
    us_server_unlock(p);
    us_worker_bring(hand, &j);
    us_server_lock(p, hand);
    if (loop)
        atomic_store_explicit(&p->place.busy, 0, memory_order_relaxed);
    US_DELAY(US_D_COMMIT);
    r->jobs--;
    p->servers.apart--;
    const bool wake = (p->space.table[i].flags & US_F_WAKE) != 0;
    us_entry_unreserve(p, r, i);
    int res = US_DONE;
    if (j.status == 0)
        us_entry_bring(p, r, i, j.clean);
    else /* a page was there, or the kernel had no time, or there is nothing that can be read back */
        res = us_fault_install(p, r, i, write);
    if (wake) {
        us_sys_wake(p->cfg.uffd, j.dst, j.raw);
        us_fault_waited(p, i, j.status == 0 ? j.copied : 0);
    }
    if (p->want_progress) { /* as after a worker's copy */
        p->want_progress = false;
        us_event(p, (us_event_t){.kind = US_EV_PROGRESS});
    }
    return res;
}

/* ---- bytes that can't be had ------------------------------------------------------------------------ */

/* A touch of the range is SIGBUS from here on, but for pages that a copy which was cut short has left. */
static int mark(us_pager_t *p, uint64_t addr, uint64_t len) {
    int err = us_sys_poison(p->cfg.uffd, addr, len);
    if (err != -EEXIST && err != -ENOENT)
        return err;
    for (uint64_t off = 0; off < len; off += US_PAGE) {
        err = us_sys_poison(p->cfg.uffd, addr + off, US_PAGE);
        if (err != 0 && err != -EEXIST && err != -ENOENT) /* there already; unmapped by the user */
            return err;
    }
    return 0;
}

/* Kernels before 6.6 can't mark pages. Then who waits for the block would wait for ever, and flags say so:
 * the process ends. One that nobody waits for is let be until somebody does. */
void us_fault_lose(us_pager_t *p, us_region_t *r, uint32_t i, bool wanted) {
    const uint64_t addr = us_block_addr(r, i);
    const uint32_t len = us_block_len(r, i);
    const int tier = us_tier_of(p->space.table[i]);
    us_entry_lost(p, r, i);
    const int err = mark(p, addr, len);
    us_event(p, (us_event_t){.kind = US_EV_LOST,
                             .entry = i,
                             .addr = addr,
                             .flags = wanted ? (uint32_t)-err : 0,
                             .tid = r->id,
                             .offset = addr - r->addr,
                             .length = len,
                             .tier = (uint32_t)tier});
}

static int unprotect_range(us_pager_t *p, uint64_t addr, uint64_t len) {
    int err = -EAGAIN;
    for (int tries = 0; tries < US_TRIES && err == -EAGAIN; tries++)
        err = us_sys_protect(p->cfg.uffd, addr, len, false);
    return err;
}

/* Lifts a block's protection. Kernels before 6.4 refuse a range of several mappings or with holes: then page by page. */
static int unprotect(us_pager_t *p, us_region_t *r, uint32_t i) {
    const uint64_t addr = us_block_addr(r, i), len = us_block_len(r, i);
    int err = unprotect_range(p, addr, len);
    if (err != -ENOENT)
        return err;
    for (uint64_t off = 0; off < len; off += US_PAGE) {
        const int page = unprotect_range(p, addr + off, US_PAGE);
        if (page != -ENOENT && (err = page) != 0)
            return err;
    }
    return err;
}

/* Copies a block's bytes in and commits: US_DONE, US_AGAIN, or -errno when the memory is gone. */
int us_fault_copy(us_pager_t *p, us_region_t *r, uint32_t i, bool write, const uint8_t *src) {
    const uint32_t len = us_block_len(r, i);
    const uint64_t dst = us_block_addr(r, i);
    bool clean = !write && us_policy_clean(r, false), was_there = false, any = false, holes = false;
    uint64_t off = 0, step = len;
    int tries = 0;
    while (off < len) {
        uint64_t done;
        int err = us_sys_copy(p->cfg.uffd, dst + off, src + off, us_min(step, len - off), clean, &done);
        off += done;
        any |= done > 0;
        if (err == 0)
            continue;
        if (err == -EEXIST) { /* left by a try that was cut short, and perhaps written since */
            was_there = any = true;
            off += US_PAGE;
        } else if (err == -ENOENT && step > US_PAGE) { /* not one mapping any more: page by page */
            step = US_PAGE;
        } else if (err == -ENOENT && (any || off + US_PAGE < len)) { /* the user has unmapped this one */
            holes = true;
            off += US_PAGE;
        } else if (err == -EAGAIN && ++tries < US_TRIES) {
            p->s->copy_retries++;
        } else if (err == -EAGAIN || err == -ENOMEM) {
            return US_AGAIN;
        } else {
            return err; /* ENOENT, ESRCH: the memory or the process is gone */
        }
    }
    if (was_there) { /* what is there may be protected, and whoever wants it unprotected (a pin) must find it so */
        if (unprotect(p, r, i) == -EAGAIN)
            return US_AGAIN;
        clean = false;
    }
    us_entry_bring(p, r, i, clean);
    if (was_there || holes) /* COPY has woken only who waits for what it has copied */
        us_sys_wake(p->cfg.uffd, dst, len);
    return US_DONE;
}

/* A fault can't be served, and no later try will do it: the page was unmapped, or its memory is another's by now. The
 * thread is woken all the same; it touches again, and the kernel tells it what is there. Nobody else would wake it: the
 * kernel wakes who waits only for what it still knows as registered. */
static int give_up(us_pager_t *p, uint64_t page) {
    us_sys_wake(p->cfg.uffd, page, US_PAGE);
    return US_DONE;
}

/* Copies one page of zeros in, where pages may be there already. */
static int zero_page(us_pager_t *p, uint64_t page, bool protect) {
    int err = -EAGAIN;
    for (int tries = 0; tries < US_TRIES && err == -EAGAIN; tries++) {
        uint64_t done;
        err = us_sys_copy(p->cfg.uffd, page, p->zero, US_PAGE, protect, &done);
    }
    if (err == 0)
        return US_DONE;
    return err == -EAGAIN || err == -ENOMEM ? US_AGAIN : give_up(p, page);
}

/* Hands block i to a worker. false: it can't be had now without waiting. */
bool us_fault_ahead(us_pager_t *p, us_region_t *r, uint32_t i, bool clean) {
    const uint32_t len = us_block_len(r, i);
    if (p->crew.idle_n <= US_JOBS / 4 || p->resident + len > p->cfg.limit)
        return false;
    us_job_t *j = us_crew_job(&p->crew);
    us_fault_bring_job(p, r, j, i, clean);
    bytes_for(p, j, i);
    us_entry_reserve(p, r, i);
    r->jobs++;
    us_crew_post(&p->crew, j);
    return true;
}

int us_fault_unprotect(us_pager_t *p, us_region_t *r, uint32_t i) {
    const int err = unprotect(p, r, i);
    if (err == -EAGAIN)
        return US_AGAIN;
    if (err != 0)
        return err;
    if (p->space.table[i].flags & US_F_CLEAN)
        us_entry_dirty(p, i);
    return US_DONE;
}

/* ---- one fault -------------------------------------------------------------------------------------- */

void us_fault_record(us_pager_t *p, int kind, uint32_t i, bool write, uint64_t since) {
    p->s->faults[kind]++;
    us_hist_add(&p->space.stats->hist[kind], us_now_ns() - since);
    if (p->trace.on)
        us_trace_add(&p->trace, kind, write, i, since);
}

/* The trace has it at once, in the order of faults; counted it is when the thread is woken. Where there is no place left,
 * after as many threads, it is counted without its wait. */
static void wait_for_bringer(us_pager_t *p, uint32_t i, bool write, uint64_t since) {
    if (p->waiters == US_WAITERS) {
        us_fault_record(p, US_KIND_PRESENT, i, write, since);
        return;
    }
    if (p->trace.on)
        us_trace_add(&p->trace, US_KIND_PRESENT, write, i, since);
    p->waiter[p->waiters++] = (us_waiter_t){.entry = i, .since = since};
}

void us_fault_waited(us_pager_t *p, uint32_t i, uint64_t copied) {
    uint64_t now = 0;
    for (uint32_t k = p->waiters; k-- > 0;) {
        const us_waiter_t w = p->waiter[k];
        if (w.entry != i)
            continue;
        p->waiter[k] = p->waiter[--p->waiters];
        if (copied <= w.since && now == 0)
            now = us_now_ns();
        p->s->faults[US_KIND_PRESENT]++;
        us_hist_add(&p->space.stats->hist[US_KIND_PRESENT], (copied > w.since ? copied : now) - w.since);
    }
}

static void record(us_pager_t *p, int kind, uint32_t i, const us_event_t *f) {
    us_fault_record(p, kind, i, (f->flags & US_FAULT_WRITE) != 0, f->since);
}

/* The pages are said to be there, but this one was not when the thread came by. Either somebody was
 * faster, or the user has given the page back: then it is zeros, and the block is not what it was. */
static int serve_present(us_pager_t *p, us_region_t *r, uint32_t i, uint64_t page) {
    /* Protected, so that nothing is written to it before the block is known to be changed. */
    uint64_t done;
    int err = us_sys_copy(p->cfg.uffd, page, p->zero, US_PAGE, true, &done);
    if (err == -EEXIST) {
        us_sys_wake(p->cfg.uffd, page, US_PAGE);
        return US_DONE;
    }
    if (err == -EAGAIN || err == -ENOMEM)
        return US_AGAIN;
    if (err != 0)
        return err;
    if (p->space.table[i].flags & US_F_CLEAN)
        us_entry_dirty(p, i); /* the copy is not what the block holds any more */
    us_fault_unprotect(p, r, i); /* should it fail, the first write finds the page protected and does it */
    return US_DONE;
}

int us_fault_serve(us_pager_t *p, const us_event_t *f) {
    const uint64_t page = f->addr & ~(uint64_t)(US_PAGE - 1);
    const bool waited = f->kind == US_EV_FAULT;
    us_region_t *r = us_region_at(p, f->addr);
    US_DELAY(US_D_SERVE);
    if (r == NULL || r->going) {
        if (page - p->cfg.staging < p->cfg.staging_len) {
            return zero_page(p, page, false);
        }
        return US_STRAY;
    }
    const uint32_t i = r->first + (uint32_t)((page - r->addr) >> r->shift);
    us_entry_t e = p->space.table[i];
    const bool write = (f->flags & US_FAULT_WRITE) != 0;
    int kind;
    switch (e.state) {
    case US_RESIDENT: {
        int res;
        if (f->flags & US_FAULT_WP) {
            kind = US_KIND_PROTECTED;
            if (e.flags & US_F_CLEAN)
                us_policy_wrote(r);
            res = us_fault_unprotect(p, r, i);
        } else {
            kind = US_KIND_PRESENT;
            res = serve_present(p, r, i, page);
        }
        if (res == US_DONE)
            record(p, waited ? US_KIND_WAITED : kind, i, f);
        return res < 0 ? give_up(p, page) : res;
    }
    case US_LEAVING:
        if (f->tid == (uint32_t)p->cfg.mover_tid && (f->flags & US_FAULT_WP)) { /* it unshares a page, without a write */
            const int err = us_sys_protect(p->cfg.uffd, page, US_PAGE, false);
            return err == 0 ? US_DONE : err == -EAGAIN ? US_AGAIN : give_up(p, page);
        }
        if (f->tid == (uint32_t)p->cfg.mover_tid)
            return zero_page(p, page, true); /* a hole in what it copies, protected like the rest */
        if (!(e.flags & US_F_WAITED)) {
            e.flags |= US_F_WAITED;
            us_entry_store(&p->space.table[i], e);
        }
        atomic_store_explicit(&p->space.ring->urgent, 1, memory_order_relaxed);
        if (!waited)
            p->s->waited_locked++;
        return US_WAIT_ENTRY;
    case US_PLAIN: /* a fault from before it was plain: registering was only tried */
        us_sys_wake(p->cfg.uffd, page, US_PAGE);
        return US_DONE;
    case US_EMPTY:
        kind = US_KIND_EMPTY;
        break;
    case US_FILLED:
        kind = US_KIND_FILLED;
        break;
    case US_OUTBOX:
        kind = US_KIND_OUTBOX;
        break;
    case US_STORED:
        kind = US_KIND_STORED;
        break;
    case US_LOST: { /* the mark is gone with the user's own MADV_DONTNEED, or it came just now */
        /* Or it is a page that was there when the rest was lost, and protected. */
        const int err = f->flags & US_FAULT_WP ? us_sys_protect(p->cfg.uffd, page, US_PAGE, false) : mark(p, page, US_PAGE);
        if (err == -EAGAIN)
            return US_AGAIN;
        if (err != 0 && !(f->flags & US_FAULT_WP))
            us_event(p, (us_event_t){.kind = US_EV_LOST, .entry = i, .addr = page, .flags = (uint32_t)-err,
                                     .tid = r->id, .offset = page - r->addr, .length = US_PAGE});
        us_sys_wake(p->cfg.uffd, page, US_PAGE); /* the thread touches again and gets SIGBUS */
        return US_DONE;
    }
    default:
        kind = US_KIND_POOLED;
    }
    if (e.flags & US_F_LOCKED) { /* a worker or a read brings it in; or a read only looks, and then it is asked again */
        if (!(e.flags & US_F_WAKE)) {
            e.flags |= US_F_WAKE;
            us_entry_store(&p->space.table[i], e);
        }
        us_policy_ahead(p, r, i, write);
        wait_for_bringer(p, i, write, f->since);
        return US_DONE;
    }
    /* Room that others wait for is not to be had by who comes last. */
    const uint64_t len = us_block_len(r, i);
    int room = us_evict_room(p, waited ? len : len * (1 + p->parked));
    if (room == -ENOSPC && !waited && p->parked > 0)
        room = us_evict_room(p, len);
    if (room == US_WAIT_ROOM) {
        if (!waited)
            p->s->throttled++;
        atomic_store_explicit(&p->space.ring->urgent, 1, memory_order_relaxed);
        return US_WAIT_ROOM;
    }
    if (room < 0)
        p->s->over_limit++;
    if (kind == US_KIND_STORED) { /* the read's completion copies, wakes and records */
        if (us_store_fetch(p, r, i, write, f->since)) {
            us_policy_ahead(p, r, i, write);
            return US_DONE;
        }
        p->want_progress = true;
        return US_WAIT_ROOM;
    }
    const bool apart = kind != US_KIND_OUTBOX && us_server_shared(&p->servers);
    int res = apart ? install_apart(p, r, i, write) : us_fault_install(p, r, i, write);
    if (res == US_AGAIN)
        return US_AGAIN;
    if (res == US_DONE) {
        record(p, waited ? US_KIND_WAITED : kind, i, f);
        us_policy_ahead(p, r, i, write);
        return US_DONE;
    }
    return give_up(p, page);
}
