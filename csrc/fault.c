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
#include "fault.h"

#include <string.h>

#include "entry.h"
#include "event.h"
#include "evict.h"
#include "tier.h"
#include "install.h"
#include "lock.h"
#include "policy.h"
#include "readahead.h"
#include "record.h"
#include "region.h"
#include "sys.h"
#include "turn.h"

/* The same with the pager's lock given back while the bytes are decompressed and copied in, for the other server. */
static int install_apart(us_pager_t *p, us_region_t *r, uint32_t i, bool write) {
    us_worker_t *owner = p->servers.owner;
    us_job_t j = {0};
    us_install_job(&p->mm, r, &j, i, !write && us_policy_clean(r, false));
    us_install_bytes(p, &j, i);
    us_entry_reserve(p, r, i);
    r->jobs++;
    p->servers.apart++;
    const bool loop = us_server_is_loop(&p->servers);
    if (loop) /* pushed aside from here on it keeps others waiting for this block */
        us_atomic_store_explicit(&p->place.busy, 1, memory_order_relaxed);
    us_server_unlock(p);
    us_worker_swap_in(owner, &j);
    us_server_lock(p, owner);
    if (loop)
        us_atomic_store_explicit(&p->place.busy, 0, memory_order_relaxed);
    US_DELAY(US_D_COMMIT);
    r->jobs--;
    p->servers.apart--;
    const bool wake = (p->mm.space.table[i].flags & US_F_WAKE) != 0;
    int res = US_DONE;
    if (j.status == 0)
        us_entry_swap_in(p, r, i, j.clean);
    else { /* a page was there, or the kernel had no time, or there is nothing that can be read back */
        us_entry_unreserve(p, r, i);
        res = us_install(p, r, i, write);
    }
    if (wake) {
        us_wake(&p->mm, r, j.dst, j.raw);
        us_record_waited(&p->mm, i, j.status == 0 ? j.copied : 0);
    }
    if (p->want_progress) { /* as after a worker's copy */
        p->want_progress = false;
        us_event(p, (us_event_t){.kind = US_EV_PROGRESS});
    }
    return res;
}

/* A fault can't be served, and no later try will do it: the page was unmapped, or its memory is another's by now. The
 * thread is woken all the same; it touches again, and the kernel tells it what is there. Nobody else would wake it: the
 * kernel wakes who waits only for what it still knows as registered. */
static int give_up(us_mm_t *m, const us_region_t *r, uint64_t page) {
    us_wake(m, r, page, US_PAGE);
    return US_DONE;
}

/* Copies one page of zeros in, where pages may be there already. */
static int zero_page(us_pager_t *p, const us_region_t *r, uint64_t page, bool protect) {
    int err = -EAGAIN;
    for (int tries = 0; tries < US_TRIES && err == -EAGAIN; tries++) {
        uint64_t done;
        err = us_sys_copy(r == NULL ? p->mm.cfg.uffd : r->uffd, page, p->zero, US_PAGE, protect, &done);
    }
    if (err == 0)
        return US_DONE;
    return err == -EAGAIN || err == -ENOMEM ? US_AGAIN : give_up(&p->mm, r, page);
}

/* ---- one fault -------------------------------------------------------------------------------------- */

/* A message, and what it is of. */
typedef struct us_fault {
    const us_event_t *f;
    us_region_t *r;
    uint32_t i;    /* its block */
    uint64_t page; /* address */
    bool write;
    bool waited; /* it is asked again, by a task in Python */
} us_fault_t;

static void record(us_pager_t *p, int kind, const us_fault_t *x) {
    us_record(p, x->waited ? US_KIND_WAITED : kind, x->i, x->write, x->f->since);
}

/* The pages are said to be there, but this one was not when the thread came by. Either somebody was
 * faster, or the user has given the page back: then it is zeros, and the block is not what it was. */
static int serve_present(us_pager_t *p, const us_fault_t *x) {
    /* Protected, so that nothing is written to it before the block is known to be changed. */
    uint64_t done;
    int err = us_sys_copy(x->r->uffd, x->page, p->zero, US_PAGE, true, &done);
    if (err == -EEXIST) {
        us_wake(&p->mm, x->r, x->page, US_PAGE);
        return US_DONE;
    }
    if (err == -EAGAIN || err == -ENOMEM)
        return US_AGAIN;
    if (err != 0)
        return err;
    if (p->mm.space.table[x->i].flags & US_F_CLEAN)
        us_entry_dirty(p, x->i);         /* the copy is not what the block holds any more */
    us_install_unprotect(p, x->r, x->i); /* should it fail, the first write finds the page protected and does it */
    return US_DONE;
}

static int serve_resident(us_pager_t *p, const us_fault_t *x, us_entry_t e) {
    const bool protected = (x->f->flags & US_FAULT_WP) != 0;
    if (protected && (e.flags & US_F_CLEAN))
        us_policy_wrote(x->r);
    const int res = protected ? us_install_unprotect(p, x->r, x->i) : serve_present(p, x);
    if (res == US_DONE)
        record(p, protected ? US_KIND_PROTECTED : US_KIND_PRESENT, x);
    return res < 0 ? give_up(&p->mm, x->r, x->page) : res;
}

/* Only the mover's own fault is served before it is done: it unshares a page, without a write, or meets a hole in what it
 * copies, which is protected like the rest. */
static int serve_leaving(us_pager_t *p, const us_fault_t *x, us_entry_t e) {
    if (x->f->tid == (uint32_t)p->mm.cfg.mover_tid) {
        if (!(x->f->flags & US_FAULT_WP))
            return zero_page(p, x->r, x->page, true);
        const int err = us_sys_protect(x->r->uffd, x->page, US_PAGE, false);
        return err == 0 ? US_DONE : err == -EAGAIN ? US_AGAIN : give_up(&p->mm, x->r, x->page);
    }
    if (!(e.flags & US_F_WAITED))
        us_entry_flag(&p->mm, x->i, 0, US_F_WAITED);
    us_atomic_store_explicit(&p->mm.space.ring->urgent, 1, memory_order_relaxed);
    p->mm.s->waited_locked += !x->waited;
    return US_WAIT_ENTRY;
}

/* The mark is gone with the user's own MADV_DONTNEED, or it came just now; or this is a page that was there when the rest
 * was lost, and protected. */
static int serve_lost(us_pager_t *p, const us_fault_t *x) {
    const bool protected = (x->f->flags & US_FAULT_WP) != 0;
    int err = 0; /* a handler knows that the block is lost */
    if (protected)
        err = us_sys_protect(x->r->uffd, x->page, US_PAGE, false);
    else if (!x->r->handled)
        err = us_install_mark(x->r, x->page, US_PAGE);
    if (err == -EAGAIN)
        return US_AGAIN;
    if (err != 0 && !protected)
        us_event(p, (us_event_t){.kind = US_EV_LOST,
                                 .entry = x->i,
                                 .addr = x->page,
                                 .error = -err,
                                 .region = x->r->id,
                                 .offset = x->page - x->r->addr,
                                 .length = US_PAGE});
    us_wake(&p->mm, x->r, x->page, US_PAGE); /* the thread touches again and gets SIGBUS */
    return US_DONE;
}

/* Room within the limit, for this fault. What others wait for is not to be had by who comes last. */
static int make_room(us_pager_t *p, const us_fault_t *x) {
    const uint64_t len = us_block_len(x->r, x->i);
    int room = us_evict_make_room(p, x->waited ? len : len * (1 + p->parked));
    if (room == -ENOSPC && !x->waited && p->parked > 0)
        room = us_evict_make_room(p, len);
    if (room == US_WAIT_ROOM) {
        p->mm.s->throttled += !x->waited;
        us_atomic_store_explicit(&p->mm.space.ring->urgent, 1, memory_order_relaxed);
        return US_WAIT_ROOM;
    }
    p->mm.s->over_limit += room < 0;
    return US_DONE;
}

/* No page of the block is there. */
static int serve_out(us_pager_t *p, const us_fault_t *x, us_entry_t e, int kind) {
    if (e.flags & US_F_LOCKED) { /* a worker or a read swaps it in; or a read only looks, and then it is asked again */
        if (!(e.flags & US_F_WAKE))
            us_entry_flag(&p->mm, x->i, 0, US_F_WAKE);
        us_readahead(p, x->r, x->i, x->write);
        us_record_wait(p, x->i, x->write, x->f->since);
        return US_DONE;
    }
    if (make_room(p, x) == US_WAIT_ROOM)
        return US_WAIT_ROOM;
    if (kind == US_KIND_STORED) { /* the read's completion copies, wakes and records */
        if (us_tier_fetch(p, x->r, x->i, x->write, x->f->since)) {
            us_readahead(p, x->r, x->i, x->write);
            return US_DONE;
        }
        p->want_progress = true;
        return US_WAIT_ROOM;
    }
    const bool apart = kind != US_KIND_OUTBOX && us_server_shared(&p->servers);
    const int res = apart ? install_apart(p, x->r, x->i, x->write) : us_install(p, x->r, x->i, x->write);
    if (res == US_AGAIN)
        return US_AGAIN;
    if (res != US_DONE)
        return give_up(&p->mm, x->r, x->page);
    record(p, kind, x);
    us_readahead(p, x->r, x->i, x->write);
    return US_DONE;
}

static int serve(us_pager_t *p, us_fault_t x) {
    const us_entry_t e = p->mm.space.table[x.i];
    switch (e.state) {
    case US_RESIDENT: return serve_resident(p, &x, e);
    case US_LEAVING: return serve_leaving(p, &x, e);
    case US_LOST: return serve_lost(p, &x);
    case US_PLAIN: /* a fault from before it was plain: registering was only tried */
        us_wake(&p->mm, x.r, x.page, US_PAGE);
        return US_DONE;
    case US_EMPTY: return serve_out(p, &x, e, US_KIND_EMPTY);
    case US_FILLED: return serve_out(p, &x, e, US_KIND_FILLED);
    case US_OUTBOX: return serve_out(p, &x, e, US_KIND_OUTBOX);
    case US_STORED: return serve_out(p, &x, e, US_KIND_STORED);
    default: return serve_out(p, &x, e, US_KIND_POOLED);
    }
}

int us_fault_serve(us_pager_t *p, const us_event_t *f) {
    us_fault_t x = {.f = f,
                    .r = us_region_at(&p->mm, f->addr),
                    .page = f->addr & ~(uint64_t)(US_PAGE - 1),
                    .write = (f->flags & US_FAULT_WRITE) != 0,
                    .waited = f->kind == US_EV_FAULT};
    US_DELAY(US_D_SERVE);
    if (x.r == NULL || x.r->going)
        return x.page - p->mm.cfg.staging < p->mm.cfg.staging_len ? zero_page(p, NULL, x.page, false) : US_STRAY;
    x.i = x.r->first + (uint32_t)((x.page - x.r->addr) >> x.r->shift);
    if (!us_take(&p->mm, x.r, x.i)) { /* a handler is at it, and will be done; then the thread touches again */
        us_wake(&p->mm, x.r, x.page, US_PAGE);
        return US_DONE;
    }
    const int res = serve(p, x);
    us_give(&p->mm, x.r, x.i);
    if (res == US_DONE && (p->mm.space.table[x.i].flags & US_F_LOCKED) == 0)
        us_ask_answer(&p->mm, x.page, US_PAGE);
    return res;
}

void us_message(us_pager_t *p, const us_msg_t *msg, uint64_t now) {
    us_event_t f = {.since = now, .addr = msg->addr, .flags = msg->flags, .tid = msg->tid};
    p->mm.s->messages++;
    const int res = us_fault_serve(p, &f);
    if (res == US_DONE)
        return;
    us_region_t *r = us_region_at(&p->mm, f.addr);
    f.entry = r == NULL ? US_NONE : r->first + (uint32_t)((f.addr - r->addr) >> r->shift);
    f.kind = US_EV_FAULT;
    p->parked++;
    p->mm.s->stray += res == US_STRAY;
    us_event(p, f);
}
