/* SPDX-License-Identifier: MIT
 *
 * The thread that touches what is out swaps it in by itself.
 *
 *   SIGBUS -> claim the block -> reserve its bytes -> decompress into the slot's buffer -> UFFDIO_COPY
 *          -> claim CLEAN or DIRTY -> note -> return: the instruction is tried again
 *
 * What needs more than bytes in RAM (STORED, leaving, locked by a worker, no room) is asked of the pager, and waited for.
 *
 * Rules of the handler. It runs wherever a thread may touch memory: no malloc, no lock that a thread outside a handler could
 * hold, errno kept, all signals masked, little of the thread's stack (the work is done on the slot's). A slot belongs to one
 * handler at a time, and never while it waits for the pager.
 */
#include "inline.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "alloc.h"
#include "claim.h"
#include "codec.h"
#include "sys.h"

enum { SLOTS = 32, STACK = 128 << 10, BLOCK_MAX = 1 << US_BLOCK_MAX_SHIFT, COPY_TRIES = 64, LOOK_MS = 1000 };

_Atomic uint64_t us_inline_lo, us_inline_hi;

/* ---- regions ----------------------------------------------------------------------------------------- */

typedef struct us_range {
    uint64_t addr, len;
    us_handling_t of;
    uint32_t first, id;
    uint8_t shift;
    bool ending; /* no more holds */
} us_range_t;

/* Sorted by address. A change makes a new one; the old one goes when no handler can be reading it. */
typedef struct us_ranges {
    uint32_t n;
    us_range_t at[];
} us_ranges_t;

static _Atomic(us_ranges_t *) ranges;
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint32_t readers[2]; /* in handlers and holds, by the parity of `era` when they came */
static _Atomic uint32_t era;

static uint32_t enter(void) {
    for (;;) {
        const uint32_t now = us_atomic_load(&era) & 1;
        us_atomic_fetch_add(&readers[now], 1);
        if ((us_atomic_load(&era) & 1) == now)
            return now;
        us_atomic_fetch_sub(&readers[now], 1);
    }
}

static void leave(uint32_t then) { us_atomic_fetch_sub(&readers[then], 1); }

/* pre: the caller has `changing`. */
static void replace(us_ranges_t *by) {
    us_ranges_t *old = us_atomic_load(&ranges);
    us_atomic_store(&ranges, by);
    us_atomic_store(&us_inline_lo, by->n == 0 ? 0 : by->at[0].addr);
    us_atomic_store(&us_inline_hi, by->n == 0 ? 0 : by->at[by->n - 1].addr + by->at[by->n - 1].len);
    const uint32_t then = us_atomic_fetch_add(&era, 1) & 1;
    while (us_atomic_load(&readers[then]) != 0) {
        const struct timespec pause = {0, 50000};
        nanosleep(&pause, NULL);
    }
    free(old);
}

/* The last region that begins at or before addr, or NULL. */
static const us_range_t *before(const us_ranges_t *all, uint64_t addr) {
    uint32_t lo = 0, hi = all == NULL ? 0 : all->n;
    while (lo < hi) {
        const uint32_t mid = (lo + hi) / 2;
        if (all->at[mid].addr <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo == 0 ? NULL : &all->at[lo - 1];
}

static const us_range_t *find(uint64_t addr) {
    const us_range_t *x = before(us_atomic_load(&ranges), addr);
    return x != NULL && addr - x->addr < x->len ? x : NULL;
}

int us_inline_add(const us_handling_t *of, uint64_t addr, uint64_t len, uint32_t first, uint32_t id, uint32_t block) {
    pthread_mutex_lock(&changing);
    const us_ranges_t *old = us_atomic_load(&ranges);
    const uint32_t n = old == NULL ? 0 : old->n;
    us_ranges_t *by = us_malloc(sizeof *by + (n + 1) * sizeof by->at[0]);
    if (by != NULL) {
        const us_range_t *left = before(old, addr);
        const uint32_t k = left == NULL ? 0 : (uint32_t)(left - old->at) + 1;
        by->n = n + 1;
        for (uint32_t i = 0; i < n; i++)
            by->at[i + (i >= k)] = old->at[i];
        by->at[k] = (us_range_t){.addr = addr, .len = len, .of = *of, .first = first, .id = id, .shift = (uint8_t)__builtin_ctz(block)};
        replace(by);
    }
    pthread_mutex_unlock(&changing);
    return by == NULL ? -ENOMEM : 0;
}

void us_inline_remove(uint64_t addr) {
    pthread_mutex_lock(&changing);
    us_ranges_t *old = us_atomic_load(&ranges);
    const us_range_t *x = before(old, addr);
    us_ranges_t *by = NULL;
    while (x != NULL && x->addr == addr && (by = us_malloc(sizeof *by + old->n * sizeof by->at[0])) == NULL)
        sched_yield();
    if (by != NULL) {
        const uint32_t k = (uint32_t)(x - old->at);
        by->n = old->n - 1;
        for (uint32_t i = 0; i < by->n; i++)
            by->at[i] = old->at[i + (i >= k)];
        replace(by);
    }
    pthread_mutex_unlock(&changing);
}

void us_inline_ending(uint64_t addr, bool on) {
    pthread_mutex_lock(&changing);
    const us_ranges_t *old = us_atomic_load(&ranges);
    const us_range_t *x = before(old, addr);
    us_ranges_t *by = NULL;
    while (x != NULL && x->addr == addr && (by = us_malloc(sizeof *by + old->n * sizeof by->at[0])) == NULL)
        sched_yield();
    if (by != NULL) {
        memcpy(by, old, sizeof *by + old->n * sizeof by->at[0]);
        by->at[x - old->at].ending = on;
        replace(by);
    }
    pthread_mutex_unlock(&changing);
}

/* ---- slots ------------------------------------------------------------------------------------------- */

typedef struct us_slot {
    _Alignas(64) _Atomic uint32_t busy;
    uint8_t *stack; /* of STACK bytes */
    uint8_t *raw;   /* a block */
    us_codec_ctx_t *codec;
} us_slot_t;

static us_slot_t slot[SLOTS];
static bool opened;

static struct sigaction next;

static void on_sigbus(int number, siginfo_t *info, void *context) {
    if (us_inline_fault(info, context))
        return;
    if (next.sa_flags & SA_SIGINFO)
        next.sa_sigaction(number, info, context);
    else if (next.sa_handler != SIG_DFL && next.sa_handler != SIG_IGN)
        next.sa_handler(number);
    else
        sigaction(number, &next, NULL); /* the instruction is tried again, and ends the process as ever */
}

static int stand_first(void) {
    struct sigaction a = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&a.sa_mask);
    return sigaction(SIGBUS, &a, &next) == 0 ? 0 : -errno;
}

int us_inline_open(void) {
    int err = 0;
    pthread_mutex_lock(&changing);
    for (int k = 0; k < SLOTS && !opened && err == 0; k++) {
        us_slot_t *s = &slot[k];
        if (s->stack == NULL)
            s->stack = us_sys_reserve(STACK);
        if (s->raw == NULL)
            s->raw = us_sys_reserve(BLOCK_MAX);
        if (s->stack == NULL || s->raw == NULL)
            err = -ENOMEM;
        else if (s->codec == NULL)
            err = us_codec_ctx_new(&s->codec, BLOCK_MAX);
    }
    if (err == 0 && !opened)
        err = stand_first();
    opened = err == 0;
    pthread_mutex_unlock(&changing);
    return err;
}

static us_slot_t *take_slot(void) {
    for (uint32_t k = (uint32_t)sched_getcpu();; k++) {
        us_slot_t *s = &slot[k % SLOTS];
        uint32_t is_free = 0;
        if (us_atomic_load_explicit(&s->busy, memory_order_relaxed) == 0 &&
            us_atomic_compare_exchange_strong(&s->busy, &is_free, 1))
            return s;
        if (k % SLOTS == SLOTS - 1)
            sched_yield();
    }
}

/* ---- one fault --------------------------------------------------------------------------------------- */

typedef struct us_touch {
    const us_range_t *r;
    us_slot_t *slot;
    uint64_t page;
    uint64_t since;
    uint32_t i;
    uint32_t len;
    us_entry_t e; /* as it is while the block is claimed */
    bool write, there; /* there: the page is, and protected */
    int kind;
    int err;
} us_touch_t;

static void ring(const us_handling_t *of) {
    if (us_atomic_exchange(&of->space->ring->loop_asleep, 0) != 0)
        us_sys_eventfd_ring(of->notify);
}

static us_entry_t read_entry(const us_touch_t *t) {
    us_entry_t e;
    us_point();
    const __m128i v = _mm_load_si128((const __m128i *)(const void *)&t->r->of.space->table[t->i]);
    us_point();
    memcpy(&e, &v, sizeof e);
    return e;
}

/* The pager has something to do first, and wants the CPU. */
static void give_way(void) {
    const struct timespec pause = {0, 50000};
    nanosleep(&pause, NULL);
}

/* What was done, for the pager's books. */
static void note(const us_touch_t *t) {
    us_inline_t *in = t->r->of.space->in;
    const uint32_t n = us_atomic_fetch_add(&in->note_head, 1);
    while (n - us_atomic_load_explicit(&in->note_tail, memory_order_acquire) >= US_NOTES) {
        ring(&t->r->of);
        give_way();
    }
    us_note_t *at = &in->note[n % US_NOTES];
    at->entry = t->i;
    at->kind = (uint8_t)t->kind;
    at->write = t->write;
    at->ns = (uint32_t)us_min(us_now_ns() - t->since, UINT32_MAX);
    us_atomic_store(&at->turn, n + 1);
    if (us_atomic_load_explicit(&in->resident, memory_order_relaxed) >
            us_atomic_load_explicit(&in->mark, memory_order_relaxed) ||
        n - us_atomic_load_explicit(&in->note_tail, memory_order_relaxed) > US_NOTES / 2)
        ring(&t->r->of);
}

static bool reserve(const us_touch_t *t) {
    us_inline_t *in = t->r->of.space->in;
    const uint64_t limit = us_atomic_load_explicit(&in->limit, memory_order_relaxed);
    uint64_t now = us_atomic_load_explicit(&in->resident, memory_order_relaxed);
    do {
        if (now + t->len > limit)
            return false;
    } while (!us_atomic_compare_exchange_weak(&in->resident, &now, now + t->len));
    return true;
}

/* The bytes of a block that is out, or NULL: not to be had here. */
static const uint8_t *bytes_of(const us_touch_t *t) {
    const us_space_t *s = t->r->of.space;
    const us_entry_t e = t->e;
    switch (e.state) {
    case US_EMPTY: us_fill(t->slot->raw, t->len, 0); return t->slot->raw;
    case US_FILLED: us_fill(t->slot->raw, t->len, e.where); return t->slot->raw;
    case US_OUTBOX: return s->outbox + e.where * US_PAGE;
    default: break;
    }
    const uint8_t *object = s->pool[us_tier_of(e) - 1] + us_offset_of(e);
    if (US_CODEC_OF(e) == US_CODEC_NONE)
        return object;
    if (us_decompress(t->slot->codec, (int)US_CODEC_OF(e), object, US_LENGTH_OF(e), t->slot->raw, t->len) != 0)
        return NULL;
    return t->slot->raw;
}

/* pre: the block is claimed and its bytes are reserved. err: 0, or what the pager must see to. */
static void swap_in(us_touch_t *t) {
    const bool clean =
        !t->write && us_atomic_load_explicit(&t->r->of.space->in->writable[t->r->id % US_BIASES], memory_order_relaxed) == 0;
    const uint64_t dst = t->r->addr + ((uint64_t)(t->i - t->r->first) << t->r->shift);
    const uint8_t *src = bytes_of(t);
    t->err = src == NULL ? -EILSEQ : 0;
    uint64_t off = 0;
    for (int tries = 0; t->err == 0 && off < t->len && tries < COPY_TRIES; tries++) {
        uint64_t done;
        const int err = us_sys_copy(t->r->of.uffd, dst + off, src + off, t->len - off, clean, &done);
        off += done;
        if (err != 0 && err != -EAGAIN)
            t->err = err;
    }
    if (t->err == 0 && off < t->len)
        t->err = -EAGAIN;
    if (t->err == 0)
        us_claim_give(&t->r->of.space->claim[t->i], US_CLAIM_BUSY, clean ? US_CLAIM_CLEAN : US_CLAIM_DIRTY);
}

/* Calls function(t) on the slot's stack: the thread's own, or its alternate one, may be small. */
#ifdef US_SIMULATED
static void on_slot_stack(us_touch_t *t, void (*function)(us_touch_t *)) { function(t); }
#else
__attribute__((noinline)) static void on_slot_stack(us_touch_t *t, void (*function)(us_touch_t *)) {
    uint8_t *top = t->slot->stack + STACK - 64;
    __asm__ volatile("movq %%rsp, %%rbx\n\t"
                     "movq %[top], %%rsp\n\t"
                     "callq *%[function]\n\t"
                     "movq %%rbx, %%rsp"
                     : "+D"(t)
                     : [top] "r"(top), [function] "r"(function)
                     : "rax", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2",
                       "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
                       "xmm14", "xmm15");
}
#endif

/* Of a block that was taken as `from` and is clean: its first write. */
static bool unprotect(us_touch_t *t, uint8_t from) {
    _Atomic uint8_t *claim = &t->r->of.space->claim[t->i];
    const uint64_t addr = t->r->addr + ((uint64_t)(t->i - t->r->first) << t->r->shift);
    int err = -EAGAIN;
    for (int tries = 0; err == -EAGAIN && tries < COPY_TRIES; tries++)
        err = us_sys_protect(t->r->of.uffd, addr, t->len, false);
    us_claim_give(claim, US_CLAIM_BUSY, err == 0 ? US_CLAIM_DIRTY : from);
    t->kind = US_KIND_PROTECTED;
    if (err == 0)
        note(t);
    return err == 0;
}

/* Has the pager serve it, and waits. */
static void ask(const us_touch_t *t) {
    us_inline_t *in = t->r->of.space->in;
    const uint32_t tid = (uint32_t)syscall(SYS_gettid);
    us_ask_t *a = NULL;
    for (uint32_t k = tid; a == NULL; k++) {
        uint32_t is_free = US_ASK_FREE;
        if (us_atomic_compare_exchange_strong(&in->ask[k % US_ASKS].state, &is_free, US_ASK_FILLED))
            a = &in->ask[k % US_ASKS];
        else if (k % US_ASKS == US_ASKS - 1)
            give_way();
    }
    a->addr = t->page;
    a->flags = (t->write ? US_FAULT_WRITE : 0u) | (t->there ? US_FAULT_WP : 0u);
    a->tid = tid;
    a->since = t->since;
    us_atomic_store(&a->state, US_ASK_POSTED);
    us_atomic_fetch_add(&in->asked, 1);
    ring(&t->r->of);
    for (uint32_t now; (now = us_atomic_load(&a->state)) != US_ASK_ANSWERED;) {
        const struct timespec look = {LOOK_MS / 1000, 0};
        syscall(SYS_futex, &a->state, FUTEX_WAIT, now, &look, NULL, 0);
        ring(&t->r->of);
    }
    us_atomic_store(&a->state, US_ASK_FREE);
}

/* Waits until somebody else, who has the block for a moment, is done. */
static void wait_turn(_Atomic uint8_t *claim, uint8_t who) {
    for (uint32_t n = 0; (us_claim_of(claim) & US_CLAIM_WHO) == who; n++) {
        if (n < 200)
            _mm_pause();
        else if (n < 2000)
            sched_yield();
        else
            give_way();
    }
}

/* A page is missing of a block that is in. Somebody was faster, or the user has given the page back: then it is zeros, and
 * the block is not what it was, which the pager sees to. pre: claimed. */
static bool is_there(const us_touch_t *t) {
    return !us_sys_lacks(t->page, US_PAGE);
}

static bool serve(us_touch_t *t) {
    us_space_t *s = t->r->of.space;
    _Atomic uint8_t *claim = &s->claim[t->i];
    for (;;) {
        const uint8_t who = us_claim_of(claim) & US_CLAIM_WHO;
        if (who == US_CLAIM_PAGER || who == US_CLAIM_BUSY) {
            wait_turn(claim, who);
            if (who == US_CLAIM_BUSY)
                return true; /* it is tried again */
            continue;
        }
        if (who == US_CLAIM_CLEAN && t->write && t->there) {
            if (us_claim_turn(claim, US_CLAIM_CLEAN, US_CLAIM_BUSY))
                unprotect(t, US_CLAIM_CLEAN); /* if that fails it is tried again */
            else
                continue;
            return true;
        }
        if (who != US_CLAIM_FREE) {
            if (is_there(t))
                return true;
            ring(&t->r->of); /* into the books, and then it is asked */
            sched_yield();
            return true;
        }
        if (us_claim_turn(claim, US_CLAIM_FREE, US_CLAIM_BUSY))
            break;
    }
    t->e = read_entry(t);
    const uint32_t out = 1u << US_EMPTY | 1u << US_FILLED | 1u << US_POOLED | 1u << US_OUTBOX;
    const bool locked = (t->e.flags & US_F_LOCKED) != 0;
    if (!locked && t->e.state == US_RESIDENT && t->write && t->there && (t->e.flags & US_F_CLEAN)) {
        if (unprotect(t, US_CLAIM_FREE))
            return true;
    } else if (!locked && t->e.state == US_RESIDENT && !t->there && is_there(t)) {
        us_claim_give(claim, US_CLAIM_BUSY, US_CLAIM_FREE);
        return true;
    } else if (!locked && (out >> t->e.state & 1) && reserve(t)) {
        static const uint8_t kind[] = {[US_EMPTY] = US_KIND_EMPTY,
                                       [US_FILLED] = US_KIND_FILLED,
                                       [US_OUTBOX] = US_KIND_OUTBOX,
                                       [US_POOLED] = US_KIND_POOLED};
        t->kind = kind[t->e.state];
        t->slot = take_slot();
        on_slot_stack(t, swap_in);
        us_atomic_store_explicit(&t->slot->busy, 0, memory_order_release);
        if (t->err == 0) {
            note(t);
            return true;
        }
        us_atomic_fetch_sub(&s->in->resident, t->len);
        us_claim_give(claim, US_CLAIM_BUSY, US_CLAIM_FREE);
    } else {
        us_claim_give(claim, US_CLAIM_BUSY, US_CLAIM_FREE);
    }
    ask(t);
    return true;
}

bool us_inline_fault(const siginfo_t *info, void *context) {
    const uint64_t addr = (uint64_t)(uintptr_t)info->si_addr;
    if (info->si_code != BUS_ADRERR) /* a page that is lost is BUS_MCEERR_AR */
        return false;
    const int saved = errno;
    const uint32_t then = enter();
    const us_range_t *r = find(addr);
    bool ours = r != NULL;
    if (ours) {
        const ucontext_t *u = context;
        const uint64_t error = (uint64_t)u->uc_mcontext.gregs[REG_ERR];
        us_touch_t t = {.r = r,
                        .page = addr & ~(uint64_t)(US_PAGE - 1),
                        .since = us_now_ns(),
                        .i = r->first + (uint32_t)((addr - r->addr) >> r->shift),
                        .write = (error & 2) != 0,
                        .there = (error & 1) != 0};
        t.len = (uint32_t)us_min(1ull << r->shift, r->len - ((uint64_t)(t.i - r->first) << r->shift));
        ours = serve(&t);
    }
    leave(then);
    errno = saved;
    return ours;
}

/* ---- holds ------------------------------------------------------------------------------------------- */

/* A call holds this part of the limit at most, and a block at least. */
enum { HOLD_PART = 4, HOLD_MOST = US_CLAIM_WHO ^ 0xff };

bool us_inline_meets(uint64_t addr, uint64_t len) {
    if (len == 0 || addr >= us_atomic_load_explicit(&us_inline_hi, memory_order_relaxed) ||
        addr + len <= us_atomic_load_explicit(&us_inline_lo, memory_order_relaxed))
        return false;
    const uint32_t then = enter();
    const us_range_t *x = before(us_atomic_load(&ranges), addr + len - 1);
    const bool meets = x != NULL && addr < x->addr + x->len;
    leave(then);
    return meets;
}

/* The region that has the first paged byte of [addr, end), or NULL. */
static const us_range_t *first_in(uint64_t addr, uint64_t end) {
    const us_ranges_t *all = us_atomic_load(&ranges);
    for (uint32_t k = 0; all != NULL && k < all->n; k++) {
        if (all->at[k].addr + all->at[k].len > addr)
            return all->at[k].addr < end ? &all->at[k] : NULL;
    }
    return NULL;
}

/* Touches a byte as the kernel will. A write of what is there is one for the page's protection, and no change for others. */
static void touch(uint64_t at, bool write) {
#ifdef US_SIMULATED
    sim_access(at, write);
    return;
#endif
    uint8_t *byte = (uint8_t *)(uintptr_t)at;
    if (write)
        __atomic_fetch_or(byte, 0, __ATOMIC_RELAXED);
    else
        (void)*(volatile uint8_t *)byte;
}

/* Holds block i of r, of which [from, to) will be handed over. false: it has all holds that there are.
 *
 * That a page can be touched does not say that its block is in: a copy or a drop that was cut short leaves pages of a block
 * that is out. The pager brings such a block in when it is asked. A block that is lost is held as it is, and not touched:
 * the kernel answers EFAULT, where a touch would be SIGBUS. */
static bool hold_block(const us_range_t *r, uint32_t i, uint64_t from, uint64_t to, bool write) {
    _Atomic uint8_t *claim = &r->of.space->claim[i];
    us_touch_t t = {.r = r, .page = from & ~(uint64_t)(US_PAGE - 1), .i = i, .write = write};
    for (;;) {
        t.e = read_entry(&t);
        if (t.e.state != US_LOST)
            touch(from, write);
        uint8_t now = us_claim_of(claim);
        const uint8_t who = now & US_CLAIM_WHO;
        if (who == US_CLAIM_PAGER || who == US_CLAIM_BUSY) {
            wait_turn(claim, who);
            continue;
        }
        if ((now & HOLD_MOST) == HOLD_MOST)
            return false;
        if (!us_atomic_compare_exchange_strong(claim, &now, (uint8_t)(now + US_CLAIM_HOLD)))
            continue;
        /* Held it can't leave any more; has it, since it was touched, or is it clean again? */
        const us_entry_t e = read_entry(&t);
        if (e.state == US_LOST)
            return true;
        const bool in = who != US_CLAIM_FREE || e.state == US_PLAIN || (e.state == US_RESIDENT && !(e.flags & US_F_LOCKED));
        const bool clean = who == US_CLAIM_CLEAN || (who == US_CLAIM_FREE && (e.flags & US_F_CLEAN) != 0);
        if (in && !(write && clean))
            break;
        us_atomic_fetch_sub(claim, US_CLAIM_HOLD);
        if (!in) {
            t.since = us_now_ns();
            ask(&t);
        }
    }
    for (uint64_t at = (from & ~(uint64_t)(US_PAGE - 1)) + US_PAGE; at < to; at += US_PAGE)
        touch(at, write); /* single pages may be missing, or protected */
    return true;
}

int64_t us_inline_hold(uint64_t addr, uint64_t len, bool write) {
    const uint64_t end = addr + len;
    uint32_t then = enter();
    uint64_t at = addr, held = 0;
    int64_t res = 0;
    for (const us_range_t *r; at < end && (r = first_in(at, end)) != NULL;) {
        at = us_max(at, r->addr);
        if (r->ending) { /* soon it is ordinary memory */
            if (at > addr) {
                res = (int64_t)(at - addr);
                break;
            }
            leave(then);
            give_way();
            then = enter();
            continue;
        }
        const uint64_t most = us_atomic_load_explicit(&r->of.space->in->limit, memory_order_relaxed) / HOLD_PART;
        const uint32_t i = r->first + (uint32_t)((at - r->addr) >> r->shift);
        const uint64_t behind = us_min(r->addr + ((uint64_t)(i - r->first + 1) << r->shift), r->addr + r->len);
        const uint64_t to = us_min(behind, end);
        if (held > 0 && held + (1ull << r->shift) > most) {
            res = (int64_t)(at - addr);
            break;
        }
        if (!hold_block(r, i, at, to, write)) {
            res = at > addr ? (int64_t)(at - addr) : -ENOMEM;
            break;
        }
        held += 1ull << r->shift;
        at = to;
    }
    leave(then);
    return res != 0 ? res : (int64_t)len;
}

void us_inline_release(uint64_t addr, uint64_t len) {
    const uint64_t end = addr + len;
    const uint32_t then = enter();
    for (const us_range_t *r; addr < end && (r = first_in(addr, end)) != NULL;) {
        addr = us_max(addr, r->addr);
        const uint32_t i = r->first + (uint32_t)((addr - r->addr) >> r->shift);
        us_atomic_fetch_sub(&r->of.space->claim[i], US_CLAIM_HOLD);
        addr = us_min(r->addr + ((uint64_t)(i - r->first + 1) << r->shift), r->addr + r->len);
    }
    leave(then);
}
