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

enum { SLOTS = 32, STACK = 128 << 10, COPY_TRIES = 64, LOOK_MS = 1000 };

_Atomic uint64_t us_inline_lo, us_inline_hi;

/* ---- regions ----------------------------------------------------------------------------------------- */

typedef struct us_range {
    uint64_t addr, len;
    us_handling_t of;
    uint64_t added; /* the how manieth */
    uint32_t first, id;
    uint8_t shift;
    bool ending; /* no more holds */
} us_range_t;

/* Sorted by address. A change makes a new one; the old one goes when no handler can be reading it. */
typedef struct us_ranges {
    uint64_t since; /* the newest's `added` */
    uint32_t n;
    us_range_t at[];
} us_ranges_t;

static _Atomic(us_ranges_t *) ranges;
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint32_t readers[2]; /* in handlers and holds, by the parity of `era` when they came */
static _Atomic uint32_t era;

/* Others have something to do first, and want the CPU. */
static void give_way(void) {
    const struct timespec pause = {0, 50000};
    nanosleep(&pause, NULL);
}

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
        give_way();
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
        by->since = old == NULL ? 1 : old->since + 1;
        for (uint32_t i = 0; i < n; i++)
            by->at[i + (i >= k)] = old->at[i];
        by->at[k] = (us_range_t){.addr = addr,
                                 .len = len,
                                 .of = *of,
                                 .added = by->since,
                                 .first = first,
                                 .id = id,
                                 .shift = (uint8_t)__builtin_ctz(block)};
        replace(by);
    }
    pthread_mutex_unlock(&changing);
    return by == NULL ? -ENOMEM : 0;
}

/* A thread may have touched what was out, and come to its handler when the region has ended: the memory is ordinary then, and
 * the instruction is tried again. The last regions that have ended; a page of another's may lie there by now, so that this is
 * said to a thread so often only. */
enum { GONE = 1024, AGAIN = 16 };
static struct {
    _Atomic uint64_t lo, hi;
} gone[GONE];
static uint32_t gone_n; /* by who has `changing` */

static bool was_ours(uint64_t addr) {
    static _Thread_local __attribute__((tls_model("initial-exec"))) uint64_t at;
    static _Thread_local __attribute__((tls_model("initial-exec"))) uint32_t n;
    for (uint32_t k = 0; k < GONE; k++) {
        if (addr < us_atomic_load_explicit(&gone[k].lo, memory_order_relaxed) ||
            addr >= us_atomic_load_explicit(&gone[k].hi, memory_order_relaxed))
            continue;
        n = at == addr ? n + 1 : 0;
        at = addr;
        return n < AGAIN;
    }
    return false;
}

/* A copy of the regions, to be changed, and which of them begins at addr; NULL: none does. pre: the caller has `changing`. */
static us_ranges_t *copy_for(uint64_t addr, uint32_t *which) {
    const us_ranges_t *old = us_atomic_load(&ranges);
    const us_range_t *x = before(old, addr);
    if (x == NULL || x->addr != addr)
        return NULL;
    const size_t size = sizeof *old + old->n * sizeof old->at[0];
    us_ranges_t *by;
    while ((by = us_malloc(size)) == NULL)
        sched_yield();
    memcpy(by, old, size);
    *which = (uint32_t)(x - old->at);
    return by;
}

void us_inline_remove(uint64_t addr) {
    pthread_mutex_lock(&changing);
    uint32_t k;
    us_ranges_t *by = copy_for(addr, &k);
    if (by != NULL) {
        us_atomic_store(&gone[gone_n % GONE].hi, 0);
        us_atomic_store(&gone[gone_n % GONE].lo, addr);
        us_atomic_store(&gone[gone_n++ % GONE].hi, addr + by->at[k].len);
        memmove(&by->at[k], &by->at[k + 1], (--by->n - k) * sizeof by->at[0]);
        replace(by);
    }
    pthread_mutex_unlock(&changing);
}

void us_inline_ending(uint64_t addr, bool on) {
    pthread_mutex_lock(&changing);
    uint32_t k;
    us_ranges_t *by = copy_for(addr, &k);
    if (by != NULL) {
        by->at[k].ending = on;
        replace(by);
    }
    pthread_mutex_unlock(&changing);
}

/* ---- slots ------------------------------------------------------------------------------------------- */

/* Faults in order: the block at `next` goes on with them, and `blocks` come in at once. */
typedef struct us_run {
    uint64_t next; /* address */
    uint32_t blocks;
} us_run_t;

enum { RUNS = 8, RUN_BYTES = 64 << 10 };

typedef struct us_slot {
    _Alignas(64) _Atomic uint32_t busy;
    uint32_t hand;  /* of run: the next to be forgotten */
    uint8_t *stack; /* of STACK bytes */
    uint8_t *raw;   /* of `room` bytes: a block, or a run of them */
    uint32_t room;
    int codecs; /* that `codec` has */
    us_codec_ctx_t *codec;
    us_run_t run[RUNS]; /* a thread mostly finds the slot of its CPU again */
} us_slot_t;

static us_slot_t slot[SLOTS];

static int codecs(void) { return us_codec_ready(US_CODEC_LZ4) | us_codec_ready(US_CODEC_ZSTD) << 1; }

static void free_slot(const us_slot_t *s) {
    if (s->stack != NULL)
        munmap(s->stack, STACK);
    if (s->raw != NULL)
        munmap(s->raw, s->room);
    us_codec_ctx_free(s->codec);
}

/* Makes the slot fit for blocks of that size, and for the codecs that are loaded. 0 or -errno. */
static int fit_slot(us_slot_t *s, uint32_t block) {
    us_slot_t by = {.room = us_max(block, (uint32_t)RUN_BYTES), .codecs = codecs()};
    if (s->room >= by.room && s->codecs == by.codecs)
        return 0;
    by.room = us_max(by.room, s->room);
    by.stack = us_sys_reserve(STACK);
    by.raw = us_sys_reserve(by.room);
    const int err = by.stack == NULL || by.raw == NULL ? -ENOMEM : us_codec_ctx_new(&by.codec, by.room);
    if (err != 0) {
        free_slot(&by);
        return err;
    }
    uint32_t is_free = 0;
    while (!us_atomic_compare_exchange_strong(&s->busy, &is_free, 1)) {
        is_free = 0;
        sched_yield();
    }
    const us_slot_t old = {.stack = s->stack, .raw = s->raw, .room = s->room, .codec = s->codec};
    s->stack = by.stack;
    s->raw = by.raw;
    s->room = by.room;
    s->codec = by.codec;
    s->codecs = by.codecs;
    us_atomic_store(&s->busy, 0);
    free_slot(&old);
    return 0;
}

int us_inline_open(uint32_t block) {
    int err = 0;
    pthread_mutex_lock(&changing);
    for (int k = 0; k < SLOTS && err == 0; k++)
        err = fit_slot(&slot[k], block);
    pthread_mutex_unlock(&changing);
    return err;
}

void us_inline_in_child(void) {
    pthread_mutex_init(&changing, NULL); /* other threads of the parent may have had these */
    us_atomic_store(&ranges, NULL);
    us_atomic_store(&us_inline_lo, 0);
    us_atomic_store(&us_inline_hi, 0);
    us_atomic_store(&readers[0], 0);
    us_atomic_store(&readers[1], 0);
    for (int k = 0; k < SLOTS; k++)
        us_atomic_store(&slot[k].busy, 0);
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
    uint32_t len;      /* bytes of block i */
    us_entry_t e;      /* as it is while the block is claimed */
    bool write, there; /* there: the page is, and protected */
    bool clean;        /* it comes in protected */
    uint32_t n;        /* blocks from i on that are claimed, and their bytes reserved */
    uint32_t done;     /* of these: in */
    int kind;
    int err;
} us_touch_t;

static void ring(const us_handling_t *of) {
    if (us_atomic_exchange(&of->space->ring->loop_asleep, 0) != 0)
        us_sys_eventfd_ring(of->notify);
}

static us_entry_t read_entry(const us_range_t *r, uint32_t i) {
    us_entry_t e;
    us_point();
    const __m128i v = _mm_load_si128((const __m128i *)(const void *)&r->of.space->table[i]);
    us_point();
    memcpy(&e, &v, sizeof e);
    return e;
}

static uint64_t addr_of(const us_range_t *r, uint32_t i) { return r->addr + ((uint64_t)(i - r->first) << r->shift); }

static uint32_t len_of(const us_range_t *r, uint32_t i) {
    return (uint32_t)us_min(1ull << r->shift, r->addr + r->len - addr_of(r, i));
}

/* It has its bytes in RAM, or needs none, and nobody but a handler may have it. */
static bool is_out(us_entry_t e) {
    const uint32_t out = 1u << US_EMPTY | 1u << US_FILLED | 1u << US_POOLED | 1u << US_OUTBOX;
    return (e.flags & US_F_LOCKED) == 0 && (out >> e.state & 1) != 0;
}

static bool is_writable(const us_range_t *r) {
    return us_atomic_load_explicit(&r->of.space->in->writable[r->id % US_BIASES], memory_order_relaxed) != 0;
}

/* What was done to n blocks from i on, for the pager's books. The first is the fault's. */
static void note(const us_touch_t *t, uint32_t n) {
    us_inline_t *in = t->r->of.space->in;
    US_DELAY(US_D_SERVED);
    const uint32_t first = us_atomic_fetch_add(&in->note_head, n);
    while (first + n - us_atomic_load_explicit(&in->note_tail, memory_order_acquire) > US_NOTES) {
        ring(&t->r->of);
        give_way();
    }
    const uint32_t ns = (uint32_t)us_min(us_now_ns() - t->since, UINT32_MAX);
    for (uint32_t k = 0; k < n; k++) {
        us_note_t *at = &in->note[(first + k) % US_NOTES];
        at->entry = t->i + k;
        at->kind = (uint8_t)(k == 0 ? t->kind : US_NOTE_AHEAD);
        at->write = t->write;
        at->ns = ns;
        us_atomic_store_explicit(&at->turn, first + k + 1, memory_order_release);
    }
    if (us_atomic_load(&in->resident) > us_atomic_load_explicit(&in->mark, memory_order_relaxed) ||
        first + n - us_atomic_load_explicit(&in->note_tail, memory_order_relaxed) > US_NOTES / 2)
        ring(&t->r->of);
}

static bool reserve(const us_range_t *r, uint64_t len) {
    us_inline_t *in = r->of.space->in;
    const uint64_t limit = us_atomic_load_explicit(&in->limit, memory_order_relaxed);
    uint64_t now = us_atomic_load_explicit(&in->resident, memory_order_relaxed);
    do {
        if (now + len > limit)
            return false;
    } while (!us_atomic_compare_exchange_weak(&in->resident, &now, now + len));
    return true;
}

/* How many blocks the fault's is the first of. */
static uint32_t run_of(us_slot_t *s, const us_touch_t *t) {
    const uint64_t at = addr_of(t->r, t->i);
    const uint64_t ahead = us_atomic_load_explicit(&t->r->of.space->in->ahead, memory_order_relaxed);
    const uint32_t most = us_max((uint32_t)(us_min(RUN_BYTES, ahead) >> t->r->shift), 1u);
    for (int k = 0; k < RUNS; k++) {
        if (s->run[k].next != at)
            continue;
        s->run[k].blocks = us_min(s->run[k].blocks * 2, most);
        s->hand = s->hand == (uint32_t)k ? (s->hand + 1) % RUNS : s->hand;
        return s->run[k].blocks;
    }
    s->run[s->hand] = (us_run_t){.next = at + t->len, .blocks = 1};
    s->hand = (s->hand + 1) % RUNS;
    return 1;
}

/* Claims what follows block i, as far as it is out. It comes in as that does: who writes in order goes on writing. */
static void claim_run(us_touch_t *t, uint32_t most) {
    const us_range_t *r = t->r;
    const uint32_t end =
        (uint32_t)us_min((uint64_t)t->i + most, r->first + ((r->len + (1ull << r->shift) - 1) >> r->shift));
    uint32_t i = t->i + 1;
    for (; i < end; i++) {
        us_claim_t *claim = &r->of.space->claim[i];
        if (!us_claim_turn(claim, US_CLAIM_FREE, US_CLAIM_BUSY))
            break;
        if (is_out(read_entry(r, i)) && reserve(r, len_of(r, i)))
            continue;
        us_claim_give(claim, US_CLAIM_BUSY, US_CLAIM_FREE);
        break;
    }
    t->n = i - t->i;
    for (int k = 0; k < RUNS; k++) {
        if (t->slot->run[k].next == addr_of(r, t->i))
            t->slot->run[k].next = addr_of(r, i);
    }
}

/* The bytes of a block that is out: at `to`, or where they lie; or NULL: not to be had here. */
static const uint8_t *bytes_of(const us_touch_t *t, us_entry_t e, uint8_t *to, uint32_t len) {
    const us_space_t *s = t->r->of.space;
    switch (e.state) {
    case US_EMPTY: us_fill(to, len, 0); return to;
    case US_FILLED: us_fill(to, len, e.where); return to;
    case US_OUTBOX: return s->outbox + e.where * US_PAGE;
    default: break;
    }
    const uint8_t *object = s->pool[us_tier_of(e) - 1] + us_offset_of(e);
    if (US_CODEC_OF(e) == US_CODEC_NONE)
        return object;
    return us_decompress(t->slot->codec, (int)US_CODEC_OF(e), object, US_LENGTH_OF(e), to, len) == 0 ? to : NULL;
}

/* The same of all blocks of the run, one after the other. total: bytes of those that are to be had. */
static const uint8_t *bytes_of_run(us_touch_t *t, uint64_t *total) {
    const uint8_t *src = bytes_of(t, t->e, t->slot->raw, t->len);
    *total = src == NULL ? 0 : t->len;
    if (t->n == 1 || src == NULL)
        return src;
    if (src != t->slot->raw)
        memcpy(t->slot->raw, src, t->len);
    for (uint32_t k = 1; k < t->n; k++) {
        const uint32_t len = len_of(t->r, t->i + k);
        uint8_t *to = t->slot->raw + *total;
        const uint8_t *at = bytes_of(t, read_entry(t->r, t->i + k), to, len);
        if (at == NULL)
            break;
        if (at != to)
            memcpy(to, at, len);
        *total += len;
    }
    return t->slot->raw;
}

/* pre: n blocks are claimed, and their bytes are reserved. err: 0, or what the pager must see to; done blocks are in. */
static void swap_in(us_touch_t *t) {
    const uint64_t dst = addr_of(t->r, t->i);
    uint64_t total, off = 0;
    const uint8_t *src = bytes_of_run(t, &total);
    t->err = src == NULL ? -EILSEQ : 0;
    US_DELAY(US_D_SWAP_IN);
    for (int tries = 0; t->err == 0 && off < total && tries < COPY_TRIES; tries++) {
        uint64_t copied;
        const int err = us_sys_copy(t->r->of.uffd, dst + off, src + off, total - off, t->clean, &copied);
        off += copied;
        if (err != 0 && err != -EAGAIN)
            t->err = err;
    }
    if (t->err == 0 && off < total)
        t->err = -EAGAIN;
    US_DELAY(US_D_SWAPPED_IN);
    uint64_t in = 0;
    for (t->done = 0; t->done < t->n && (in += len_of(t->r, t->i + t->done)) <= off; t->done++)
        us_claim_give(&t->r->of.space->claim[t->i + t->done], US_CLAIM_BUSY,
                      t->clean ? US_CLAIM_CLEAN : US_CLAIM_DIRTY);
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
                     : "rax", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc", "xmm0", "xmm1",
                       "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
                       "xmm13", "xmm14", "xmm15");
}
#endif

/* Of a block that was taken as `from` and is clean: its first write. */
static bool unprotect(us_touch_t *t, uint16_t from) {
    us_claim_t *claim = &t->r->of.space->claim[t->i];
    int err = -EAGAIN;
    for (int tries = 0; err == -EAGAIN && tries < COPY_TRIES; tries++)
        err = us_sys_protect(t->r->of.uffd, addr_of(t->r, t->i), t->len, false);
    us_claim_give(claim, US_CLAIM_BUSY, err == 0 ? US_CLAIM_DIRTY : from);
    t->kind = US_KIND_PROTECTED;
    if (err == 0)
        note(t, 1);
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
        else if (k % US_ASKS == US_ASKS - 1) { /* all wait for the pager, which wants the CPU */
            give_way();
        }
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
static void wait_turn(us_claim_t *claim, uint16_t who) {
    for (uint32_t n = 0; (us_claim_of(claim) & US_CLAIM_WHO) == who; n++) {
        if (n < 200)
            _mm_pause();
        else if (n < 2000)
            sched_yield();
        else {
            give_way();
        }
    }
}

/* A page is missing of a block that is in. Somebody was faster, or the user has given the page back: then it is zeros, and
 * the block is not what it was, which the pager sees to. pre: claimed. */
static bool is_there(const us_touch_t *t) { return !us_sys_lacks(t->page, US_PAGE); }

/* pre: block i is out and claimed, and its bytes are reserved. done: how many are in, 0 or more. */
static void swap_in_run(us_touch_t *t) {
    static const uint8_t kind[] = {[US_EMPTY] = US_KIND_EMPTY,
                                   [US_FILLED] = US_KIND_FILLED,
                                   [US_OUTBOX] = US_KIND_OUTBOX,
                                   [US_POOLED] = US_KIND_POOLED};
    t->kind = kind[t->e.state];
    t->clean = !t->write && !is_writable(t->r);
    t->slot = take_slot();
    t->n = 1;
    const uint32_t most = run_of(t->slot, t);
    if (most > 1)
        claim_run(t, most);
    on_slot_stack(t, swap_in);
    us_atomic_store_explicit(&t->slot->busy, 0, memory_order_release);
    uint64_t back = 0;
    for (uint32_t i = t->i + t->done; i < t->i + t->n; i++)
        back += len_of(t->r, i);
    if (back > 0) /* before the claims: what is promised is of blocks that somebody has */
        us_atomic_fetch_sub(&t->r->of.space->in->resident, back);
    for (uint32_t i = t->i + t->done; i < t->i + t->n; i++)
        us_claim_give(&t->r->of.space->claim[i], US_CLAIM_BUSY, US_CLAIM_FREE);
    if (t->done > 0)
        note(t, t->done);
}

/* false: there is nothing to wait for. */
static bool serve(us_touch_t *t) {
    US_DELAY(US_D_SERVE);
    us_space_t *s = t->r->of.space;
    us_claim_t *claim = &s->claim[t->i];
    for (;;) {
        const uint16_t who = us_claim_of(claim) & US_CLAIM_WHO;
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
            ask(t); /* the pager has read the note by then */
            return true;
        }
        if (us_claim_turn(claim, US_CLAIM_FREE, US_CLAIM_BUSY))
            break;
    }
    t->e = read_entry(t->r, t->i);
    const bool in = t->e.state == US_RESIDENT && !(t->e.flags & US_F_LOCKED);
    if (in && t->write && t->there && (t->e.flags & US_F_CLEAN)) {
        if (unprotect(t, US_CLAIM_FREE))
            return true;
    } else if (is_out(t->e) && reserve(t->r, t->len)) {
        swap_in_run(t);
        if (t->done > 0)
            return true;
    } else {
        us_claim_give(claim, US_CLAIM_BUSY, US_CLAIM_FREE);
        if (in && !t->there && is_there(t))
            return true;
    }
    ask(t);
    return t->e.state != US_LOST ||
           t->there; /* what is lost is not ours: a touch of it is SIGBUS, and the pager says so */
}

static us_touch_t touch_of(const us_range_t *r, uint64_t addr, bool write, bool there) {
    us_touch_t t = {.r = r,
                    .page = addr & ~(uint64_t)(US_PAGE - 1),
                    .since = us_now_ns(),
                    .i = r->first + (uint32_t)((addr - r->addr) >> r->shift),
                    .write = write,
                    .there = there};
    t.len = len_of(r, t.i);
    return t;
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
        us_touch_t t = touch_of(r, addr, (error & 2) != 0, (error & 1) != 0);
        ours = serve(&t);
    } else {
        ours = was_ours(addr);
    }
    leave(then);
    errno = saved;
    return ours;
}

/* ---- holds ------------------------------------------------------------------------------------------- */

/* A call holds this part of the limit at most, and a block at least. */
enum { HOLD_PART = 4, HOLD_MOST = US_CLAIM_WHO ^ 0xffff, HOLD_TRIES = 1000 };

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

/* The first region that meets [addr, end), or NULL. */
static const us_range_t *first_in(const us_ranges_t *all, uint64_t addr, uint64_t end) {
    const us_range_t *x = before(all, addr);
    if (x == NULL || addr - x->addr >= x->len)
        x = x == NULL ? &all->at[0] : x + 1;
    return x < &all->at[all->n] && x->addr < end ? x : NULL;
}

/* A hold is one more, unless the block has all that there are. */
static bool add_hold(us_claim_t *claim, uint16_t now) {
    return us_atomic_compare_exchange_strong(claim, &now, (uint16_t)(now + US_CLAIM_HOLD));
}

/* A block that is plain is registered at any moment, with the pages that it has then: those of a call must be there. 0; -EAGAIN:
 * it is not plain any more; -EFAULT. */
static int populate(uint64_t from, uint64_t to, bool write) {
    const uint64_t first = from & ~(uint64_t)(US_PAGE - 1), len = us_align_up(to, US_PAGE) - first;
    const int err = us_sys_populate(first, len, write);
    if (err == -EFAULT)
        return us_sys_mapped(first, len) ? -EAGAIN : -EFAULT;
    /* Not mapped, or may not be so used: the call itself will say. */
    if (err != -EINVAL || us_sys_populate((uintptr_t)slot[0].stack, US_PAGE, true) == 0)
        return 0;
    for (uint64_t at = first; at < first + len; at += US_PAGE) { /* before Linux 5.14 */
        uint8_t *byte = (uint8_t *)(uintptr_t)at;
        if (write)
            __atomic_fetch_or(byte, 0, __ATOMIC_RELAXED);
        else
            (void)*(volatile uint8_t *)byte;
    }
    return 0;
}

/* Single pages of a held block may be missing, or protected: what the user has given back, or what a copy or a drop that was
 * cut short has left. 0 or -EFAULT. */
static int complete(const us_range_t *r, uint64_t from, uint64_t to, bool write) {
    const uint64_t first = from & ~(uint64_t)(US_PAGE - 1), end = us_align_up(to, US_PAGE);
    if (us_sys_lacks(first, end - first)) {
        for (uint64_t at = first; at < end; at += US_PAGE) {
            us_touch_t t = touch_of(r, at, write, false);
            for (int tries = 0; tries < 3 && us_sys_lacks(at, US_PAGE); tries++)
                serve(&t); /* what the kernel itself has swapped out is no better after it */
        }
        if (!us_sys_mapped(first, end - first))
            return -EFAULT;
    }
    int err = write ? -EAGAIN : 0;
    for (int tries = 0; err == -EAGAIN && tries < HOLD_TRIES; tries++)
        err = us_sys_protect(r->of.uffd, first, end - first, false);
    return err == 0 || err == -ENOENT ? 0 : -EFAULT; /* ENOENT: it is plain, or has ended */
}

/* Holds block i of r, of which [from, to) will be handed over. 0; -EFAULT: it can't be had; -ENOMEM: no more holds. */
static int hold_block(const us_range_t *r, uint32_t i, uint64_t from, uint64_t to, bool write) {
    us_claim_t *claim = &r->of.space->claim[i];
    for (int tries = 0; tries < HOLD_TRIES;) {
        us_touch_t t = touch_of(r, from, write, false);
        const uint16_t now = us_claim_of(claim), who = now & US_CLAIM_WHO;
        if (who == US_CLAIM_PAGER || who == US_CLAIM_BUSY) {
            wait_turn(claim, who);
            continue;
        }
        if ((now & HOLD_MOST) == HOLD_MOST)
            return -ENOMEM;
        if (!add_hold(claim, now))
            continue;
        /* Held it can't leave any more. Is it in, and may it be written? */
        t.e = read_entry(r, i);
        const bool in =
            who != US_CLAIM_FREE || t.e.state == US_PLAIN || (t.e.state == US_RESIDENT && !(t.e.flags & US_F_LOCKED));
        const bool clean = who == US_CLAIM_CLEAN || (who == US_CLAIM_FREE && (t.e.flags & US_F_CLEAN) != 0);
        if (in && !(write && clean)) {
            const int err = t.e.state == US_PLAIN ? populate(from, to, write) : complete(r, from, to, write);
            if (err != 0)
                us_atomic_fetch_sub(claim, US_CLAIM_HOLD);
            if (err != -EAGAIN)
                return err;
            give_way(); /* it is registered, and will be RESIDENT or EMPTY in a moment */
            continue;
        }
        us_atomic_fetch_sub(claim, US_CLAIM_HOLD);
        if (t.e.state == US_LOST)
            return -EFAULT;
        t.there = in;
        serve(&t);
        if (++tries % 16 == 0 && !us_sys_mapped(t.page, US_PAGE))
            return -EFAULT;
    }
    return -EFAULT;
}

int64_t us_inline_hold(uint64_t addr, uint64_t len, bool write, uint64_t *since) {
    const uint64_t end = addr + len;
    uint32_t then = enter();
    const us_ranges_t *all = us_atomic_load(&ranges);
    uint64_t at = addr, held = 0;
    int64_t res = (int64_t)len;
    *since = all == NULL ? 0 : all->since;
    for (const us_range_t *r; all != NULL && at < end && (r = first_in(all, at, end)) != NULL;) {
        at = us_max(at, r->addr);
        if (r->ending && at > addr) {
            res = (int64_t)(at - addr);
            break;
        }
        if (r->ending) { /* soon it is ordinary memory */
            leave(then);
            give_way();
            then = enter();
            all = us_atomic_load(&ranges);
            *since = all->since;
            continue;
        }
        const uint64_t most = us_atomic_load_explicit(&r->of.space->in->limit, memory_order_relaxed) / HOLD_PART;
        const uint32_t i = r->first + (uint32_t)((at - r->addr) >> r->shift);
        const uint64_t behind = us_min(r->addr + ((uint64_t)(i - r->first + 1) << r->shift), r->addr + r->len);
        const uint64_t to = us_min(behind, end);
        const bool enough = held > 0 && held + (1ull << r->shift) > most;
        const int err = enough ? 0 : hold_block(r, i, at, to, write);
        if (enough || err != 0) {
            res = at > addr ? (int64_t)(at - addr) : err;
            break;
        }
        held += 1ull << r->shift;
        at = to;
    }
    leave(then);
    return res;
}

void us_inline_release(uint64_t addr, uint64_t len, uint64_t since) {
    const uint64_t end = addr + len;
    const uint32_t then = enter();
    const us_ranges_t *all = us_atomic_load(&ranges);
    for (const us_range_t *r; all != NULL && addr < end && (r = first_in(all, addr, end)) != NULL;) {
        addr = us_max(addr, r->addr);
        const uint32_t i = r->first + (uint32_t)((addr - r->addr) >> r->shift);
        if (r->added <= since) /* it is not another region, where one has ended meanwhile */
            us_atomic_fetch_sub(&r->of.space->claim[i], US_CLAIM_HOLD);
        addr = us_min(r->addr + ((uint64_t)(i - r->first + 1) << r->shift), r->addr + r->len);
    }
    leave(then);
}
