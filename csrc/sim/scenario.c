/* SPDX-License-Identifier: MIT
 *
 * A scenario: sizes, tiers, failures and a schedule that a seed draws; a few user threads that read, write and call; and a
 * model of what their memory must hold, which each access is compared with.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../claim.h"
#include "../codec.h"
#include "../guard.h"
#include "../inline.h"
#include "../sigchain.h"
#include "../state.h"
#include "loop.h"
#include "disk.h"
#include "doors.h"
#include "fibers.h"
#include "memory.h"
#include "scenario.h"

enum { AREAS = 4, USERS = 6, PAGES_MAX = 512 };

typedef struct area {
    uint64_t addr, len;
    uint32_t shift;
    uint8_t *model;
    bool maybe_zero[PAGES_MAX]; /* given back by the user: what it held, or zeros */
    bool given_back[PAGES_MAX]; /* ever: a pin may find it missing, or just coming */
    bool dma[PAGES_MAX];        /* a device has it */
    bool gone[PAGES_MAX];       /* unmapped by the user */
    uint32_t backs[PAGES_MAX];  /* so often it was given back */
    bool handled;               /* inline */
    uint32_t holds;             /* system calls under way */
    bool beginning;             /* there are to be none: its next region does not know of them */
    us_registration_t *reg;
    us_registration_info_t info;
    uint32_t users;    /* calls under way that need it registered */
    uint32_t accesses; /* under way */
    bool changing;     /* its registration begins or ends */
    bool dead;         /* it is being discarded: nobody may touch it */
} area_t;

static struct {
    uint32_t areas, users, ops;
    bool copy, lossy, tricks, stops, limits, ends, unmaps;
    bool handled;   /* there are inline regions */
    bool adjacent;  /* areas lie next to each other */
    bool overwrite; /* at random, in a file that is nearly full: the cleaner is busy */
    uint64_t total;
    uint64_t patience; /* ns: that an access may take at most */
} plan;
static area_t area[AREAS];
static uint64_t holds; /* system calls on inline regions */
static us_client_t *client;
static sim_pager_t pager;
static uint64_t accesses;
bool sim_lz4, sim_zstd, sim_each;

/* By the true calloc, as ours may be the call that fails. */
void *__real_calloc(size_t n, size_t size);
static uint8_t *zeros(uint64_t len) {
    uint8_t *m = __real_calloc(1, len);
    SIM_CHECK(m != NULL, "no memory");
    return m;
}

static uint32_t pages_of(const area_t *a) { return (uint32_t)(a->len / US_PAGE); }
static uint8_t *memory(const area_t *a, uint32_t page) {
    return (uint8_t *)(uintptr_t)(a->addr + (uint64_t)page * US_PAGE);
}
static uint8_t *model(area_t *a, uint32_t page) { return a->model + (uint64_t)page * US_PAGE; }

/* Has a call of the kernel's failed, so that one of ours may say that it can't? */
static bool excused(void) { return sim_failure.at != 0 && sim_failure.calls[sim_failure.call] >= sim_failure.at; }

/* ---- what must hold --------------------------------------------------------------------------------- */

static void check_promised(us_pager_t *p);

#define PEEK(x) __atomic_load_n((__typeof__((void)0, (x)) *)(uintptr_t)&(x), __ATOMIC_RELAXED) /* no point is passed */

/* Resident bytes are on their way down from above the limit, after a wrap. */
static bool above;
static void see_above(const us_mm_t *m) {
    if (m->top > 0 || m->resident > m->cfg.limit)
        above = true;
    else if (PEEK(m->space.in->resident) <= m->cfg.limit)
        above = false;
}

/* Called after each call of the core; all of it is looked at after some. */
void __real_us_must_hold(us_pager_t *p);
void __wrap_us_must_hold(us_pager_t *p);
void __wrap_us_must_hold(us_pager_t *p) {
    see_above(&p->mm);
    if (sim_one_in(pager.check_one_in)) {
        pager.checks++;
        __real_us_must_hold(p);
        check_promised(p);
    }
}

/* Who has the block. No point is passed. */
static uint16_t claim_of(us_pager_t *p, const area_t *a, uint32_t i) {
    return a->handled ? __atomic_load_n((uint16_t *)(uintptr_t)&p->mm.space.claim[i], __ATOMIC_RELAXED) & US_CLAIM_WHO
                      : US_CLAIM_FREE;
}

/* What the entries and claims say of the client's pages. pre: no point is passed meanwhile. */
static void check_pages(us_pager_t *p) {
    const bool left_behind =
        sim_kernel.again_one_in != 0 || plan.tricks || excused(); /* COPY and drops may have been cut short */
    for (uint32_t k = 0; k < plan.areas; k++) {
        const area_t *a = &area[k];
        if (a->reg == NULL || a->changing || !us_registration_active(a->reg))
            continue;
        for (uint32_t page = 0; page < pages_of(a); page++) {
            const uint64_t addr = (uint64_t)(uintptr_t)memory(a, page);
            const uint32_t i = (uint32_t)a->info.first + (page >> (a->shift - US_PAGE_SHIFT));
            const us_entry_t e = p->mm.space.table[i];
            const uint16_t who = claim_of(p, a, i);
            if (who == US_CLAIM_BUSY || who == US_CLAIM_PAGER)
                continue;
            const bool locked = (e.flags & US_F_LOCKED) != 0;
            const bool clean = who == US_CLAIM_FREE ? (e.flags & US_F_CLEAN) != 0 : who == US_CLAIM_CLEAN;
            const bool in = e.state == US_RESIDENT || who != US_CLAIM_FREE;
            const bool out = !in && e.state != US_PLAIN && e.state != US_LEAVING && e.state != US_LOST;
            SIM_CHECK(!(out && !locked && !left_behind) || !sim_is_present(addr),
                      "page %u of area %u is there, and its block (state %d) is out", page, k, e.state);
            if (!in || !clean || a->gone[page])
                continue;
            SIM_CHECK(!sim_is_present(addr) || sim_is_protected(addr), "page %u of area %u is clean and not protected",
                      page, k);
            SIM_CHECK(sim_is_present(addr) || a->maybe_zero[page] || left_behind,
                      "page %u of area %u is clean and not there", page, k);
        }
    }
}

/* What handlers have promised themselves is of the blocks that they have, no more and no less; and never above the limit, where
 * nothing else can be. */
static void check_promised(us_pager_t *p) {
    const us_mm_t *m = &p->mm;
    const uint64_t all = PEEK(m->space.in->resident), books = m->resident + m->held;
    uint64_t least = 0, most = 0;
    for (uint32_t k = 0; k < m->live; k++) {
        const us_region_t *r = m->byfirst[k];
        for (uint32_t i = r->first; r->handled && i < r->first + r->count; i++) {
            const uint16_t who = PEEK(m->space.claim[i]) & US_CLAIM_WHO;
            const bool in = (who == US_CLAIM_CLEAN || who == US_CLAIM_DIRTY) && m->space.table[i].state != US_RESIDENT;
            least += in ? us_block_len(r, i) : 0;
            most += in || who == US_CLAIM_BUSY ? us_block_len(r, i) : 0;
        }
    }
    SIM_CHECK(all >= books + least && all <= books + most,
              "%llu bytes are promised beside the books, and not %llu to %llu", (unsigned long long)(all - books),
              (unsigned long long)least, (unsigned long long)most);
    const bool gave_way =
        above || plan.limits || plan.ends || m->s->over_limit > 0 || m->s->refused_noroom > 0 || m->s->pinned > 0;
    SIM_CHECK(gave_way || all <= m->cfg.limit || books > m->cfg.limit, "handlers go %llu bytes above the limit",
              (unsigned long long)(all - m->cfg.limit));
}

void sim_check(us_pager_t *p) {
    if (*(int *)(void *)&p->servers.lock != 0)
        return;
    check_pages(p);
    check_promised(p);
}

void sim_check_end(us_pager_t *p) {
    const us_mm_t *m = &p->mm;
    for (uint32_t k = 0; k < US_ASKS; k++)
        SIM_CHECK(PEEK(m->space.in->ask[k].state) == US_ASK_FREE, "ask %u is left in state %u", k,
                  PEEK(m->space.in->ask[k].state));
    for (uint64_t i = 0; i < m->space.at.table_cap; i++)
        SIM_CHECK(PEEK(m->space.claim[i]) == 0, "claim %llu is left as %#x", (unsigned long long)i,
                  PEEK(m->space.claim[i]));
    SIM_CHECK(m->asks == 0 && PEEK(m->space.in->resident) == 0, "%u asks and %llu resident bytes are left", m->asks,
              (unsigned long long)PEEK(m->space.in->resident));
}

/* The page is there: is it what it should be? */
static void compare(area_t *a, uint32_t page, const char *when) {
    uint8_t *is = memory(a, page), *should = model(a, page);
    if (memcmp(is, should, US_PAGE) == 0)
        return; /* it may still be either */
    if (a->maybe_zero[page]) {
        static const uint8_t nothing[US_PAGE];
        if (memcmp(is, nothing, US_PAGE) == 0) {
            memset(should, 0, US_PAGE);
            a->maybe_zero[page] = false;
            return;
        }
    }
    uint32_t at = 0;
    while (is[at] == should[at])
        at++;
    sim_fail("wrong byte (%s): area %u, page %u, block %u, offset %u: %#x, not %#x", when, (unsigned)(a - area), page,
             page >> (a->shift - US_PAGE_SHIFT), at, is[at], should[at]);
}

/* ---- the users' accesses ---------------------------------------------------------------------------- */

static bool touch(area_t *a, uint32_t page, bool write) {
    const uint64_t began = sim_now;
    const sim_touch_t got = sim_touch((uint64_t)(uintptr_t)memory(a, page), write);
    accesses++;
    SIM_CHECK(sim_now - began < plan.patience, "%s of area %u, page %u took %.3f s", write ? "a write" : "a read",
              (unsigned)(a - area), page, (double)(sim_now - began) / 1e9);
    if (got == SIM_OK)
        return true;
    if (got == SIM_SEGV && a->gone[page])
        return false;
    SIM_CHECK(got == SIM_BUS && plan.lossy, "%s of area %u, page %u is %s", write ? "a write" : "a read",
              (unsigned)(a - area), page, got == SIM_BUS ? "SIGBUS" : "SIGSEGV");
    return false;
}

static void read_page(area_t *a, uint32_t page) {
    if (touch(a, page, false))
        compare(a, page, "read");
}

static void write_page(area_t *a, uint32_t page, uint32_t how) {
    if (!touch(a, page, true))
        return;
    compare(a, page, "before a write");
    uint64_t *to = (uint64_t *)(void *)memory(a, page);
    const uint32_t words = US_PAGE / sizeof *to;
    const uint64_t word = sim_random64();
    if (how == 0) {
        to[sim_below(words)] = word;
    } else if (how == 1) { /* all the same */
        for (uint32_t k = 0; k < words; k++)
            to[k] = word & 3 ? word : 0;
    } else if (how == 2) { /* small numbers */
        for (uint32_t k = 0; k < words; k++)
            to[k] = (word >> k % 32) & 15;
    } else { /* does not compress, or but a part of it */
        const uint32_t part = how == 3 ? words : words / 4 + sim_below(words / 2);
        for (uint32_t k = 0; k < words; k++)
            to[k] = k < part ? sim_random64() : 0;
    }
    memcpy(model(a, page), to, US_PAGE);
    a->maybe_zero[page] = false;
}

static void access_some(area_t *a) {
    const uint32_t n = pages_of(a), kind = sim_below(8);
    uint32_t at = sim_below(n), run = 1;
    if (kind < 3) /* few pages are hot */
        at = sim_below(1 + sim_below(1 + sim_below(n)));
    else if (kind < 5)
        run = 1 + sim_below(48);
    const bool write = sim_one_in(2);
    const uint32_t how = sim_below(5);
    for (uint32_t k = 0; k < run && at + k < n; k++) {
        if (write && how < 4)
            write_page(a, at + k, how);
        else if (write && sim_one_in(4))
            write_page(a, at + k, 0);
        else
            read_page(a, at + k);
        sim_point();
    }
}

/* ---- the users' calls -------------------------------------------------------------------------------- */

static bool is_free(void *of) { return !((area_t *)of)->changing; }
static bool is_not_held(void *of) { return ((area_t *)of)->holds == 0; }
static bool is_alone(void *of) { return ((area_t *)of)->users == 0; }

/* The area stays registered until leave(). false: it is not. */
static bool enter(area_t *a) {
    sim_wait(is_free, a, SIM_NEVER, "an area");
    if (a->changing || a->reg == NULL)
        return false;
    a->users++;
    return true;
}
static void leave(area_t *a) { a->users--; }

static int ask(uint32_t op, int region, uint64_t a0, uint64_t a1, uint64_t a2) {
    us_request_t q = {.op = op, .region = region, .arg = {a0, a1, a2}};
    us_reply_t reply = {0};
    us_ticket_t *t = us_ticket_new(client);
    SIM_CHECK(t != NULL || excused(), "there is no ticket");
    if (t == NULL)
        return 0;
    int err = us_ticket_ask(t, &q);
    SIM_CHECK(err == 0, "a ticket answers %d", err);
    if (sim_one_in(16)) { /* given up: its answer is nobody's */
        us_ticket_free(t);
        return 0;
    }
    while ((err = us_ticket_wait(t, 50, &reply)) == 0)
        ;
    SIM_CHECK(err == 1, "a ticket's wait answers %d", err);
    us_ticket_free(t);
    sim_log("op %u region %d [%llu, %llu) %llu: %d", op, region, (unsigned long long)a0, (unsigned long long)a1,
            (unsigned long long)a2, -reply.error);
    return -reply.error;
}

/* A system call on the user's memory, as the guard makes it: what it may hand over is held, and then neither missing nor
 * protected, since the kernel waits for nobody. */
static void system_call(area_t *a) {
    const uint32_t n = pages_of(a), from = sim_below(n);
    const uint64_t addr = a->addr + (uint64_t)from * US_PAGE + sim_below(US_PAGE);
    uint64_t end = addr + 1 + sim_below(US_PAGE << sim_below(7));
    const bool write = sim_one_in(2);
    area_t *of[AREAS];
    uint32_t areas = 0;
    for (uint32_t k = 0; k < plan.areas; k++) { /* those that it meets stay, as those do that are touched */
        area_t *b = &area[k];
        if (b->addr >= end || b->addr + b->len <= addr)
            continue;
        if (b->dead || b->beginning) /* up to there */
            end = us_min(end, us_max(b->addr, addr));
        else
            of[areas++] = b;
    }
    if (end == addr || !us_inline_meets(addr, end - addr))
        return;
    for (uint32_t k = 0; k < areas;
         k++) { /* nor is a hole handed over: the kernel says EFAULT, and a touch ends the process */
        for (uint32_t page = 0; page < pages_of(of[k]); page++) {
            const uint64_t hole = (uint64_t)(uintptr_t)memory(of[k], page);
            if (of[k]->gone[page] && hole + US_PAGE > addr && hole < end)
                end = us_max(hole, addr);
        }
    }
    if (end == addr)
        return;
    uint32_t backs[AREAS][PAGES_MAX];
    for (uint32_t k = 0; k < areas; k++) {
        of[k]->accesses++;
        of[k]->holds++;
        memcpy(backs[k], of[k]->backs, sizeof backs[k]);
    }
    const uint64_t began = sim_now;
    uint64_t since;
    int64_t got = us_inline_hold(addr, end - addr, write, &since);
    if (got == -EFAULT && plan.lossy)
        got = 0;
    SIM_CHECK((got > 0 || plan.lossy) && (uint64_t)got <= end - addr, "a hold answers %lld", (long long)got);
    /* Each block of it may wait. */
    SIM_CHECK(sim_now - began < plan.patience * (2 + (end - addr) / US_PAGE / 4), "a hold of %#llx took %.3f s",
              (unsigned long long)addr, (double)(sim_now - began) / 1e9);
    for (uint64_t at = addr, next; at < addr + (uint64_t)got; at = next) {
        next = us_min((at & ~(uint64_t)(US_PAGE - 1)) + US_PAGE, addr + (uint64_t)got);
        uint32_t k = 0;
        while (k < areas && at - of[k]->addr >= of[k]->len)
            k++;
        if (k == areas || !of[k]->handled)
            continue;
        area_t *b = of[k];
        const uint32_t page = (uint32_t)((at - b->addr) / US_PAGE);
        const sim_touch_t is = sim_kernel_touch(at, write);
        const bool given_back = b->backs[page] != backs[k][page];
        const uint32_t i = (uint32_t)b->info.first + (page >> (b->shift - US_PAGE_SHIFT));
        const bool lost = plan.lossy && (sim_is_poisoned(at) || pager.pager->mm.space.table[i].state == US_LOST);
        SIM_CHECK(is == SIM_OK || b->gone[page] || given_back || lost,
                  "a system call that %s page %u of area %u, which is held, is EFAULT", write ? "writes" : "reads",
                  page, k);
        if (is != SIM_OK)
            continue;
        compare(b, page, write ? "a system call writes" : "a system call reads");
        if (write) {
            memset((void *)(uintptr_t)at, (int)sim_below(256), next - at);
            memcpy(model(b, page), memory(b, page), US_PAGE);
            b->maybe_zero[page] = false;
        }
        if (sim_one_in(3))
            sim_wait(NULL, NULL, sim_now + 1 + sim_below(SIM_MS), "a system call");
        else
            sim_point();
    }
    us_inline_release(addr, (uint64_t)got, since);
    holds++;
    for (uint32_t k = 0; k < areas; k++) {
        of[k]->accesses--;
        of[k]->holds--;
    }
}

static uint32_t blocks_of(const area_t *a) { return (uint32_t)((a->len + (1ull << a->shift) - 1) >> a->shift); }

static void range_call(area_t *a, uint32_t op) {
    if (!enter(a))
        return;
    const uint32_t n = blocks_of(a), first = sim_below(n),
                   last = first + 1 + sim_below(sim_one_in(3) ? n - first : (uint32_t)us_min(n - first, 8));
    const int tier = 1 + (int)sim_below(4);
    const int err = ask(op, a->info.id, first, last, (uint64_t)tier);
    const bool may =
        err == 0 || (op == US_OP_MIGRATE && (err == -EINVAL || err == -ENOSPC)) || err == -ECANCELED || excused();
    SIM_CHECK(may, "request %u answers %d", op, err);
    leave(a);
}

static void pin_some(area_t *a) {
    if (!enter(a))
        return;
    const uint32_t n = blocks_of(a), first = sim_below(n), last = first + 1 + sim_below((uint32_t)us_min(n - first, 3));
    us_pin_t *pin = us_pin_new(a->reg);
    SIM_CHECK(pin != NULL || excused(), "there is no pin");
    if (pin == NULL) {
        leave(a);
        return;
    }
    const int err = us_pin_begin(pin, first, last, ((uint64_t)(last - first)) << a->shift, pager.mm.limit / 2);
    bool holes = false;
    for (uint32_t k = first << (a->shift - US_PAGE_SHIFT); k < last << (a->shift - US_PAGE_SHIFT) && k < pages_of(a);
         k++)
        holes |= a->gone[k];
    SIM_CHECK(err == 0 || err == -EDQUOT || (err == -ENOENT && holes) || excused(), "a pin answers %d", err);
    if (err == 0) { /* as a system call: it can wait for nothing */
        const uint32_t end = (uint32_t)us_min((uint64_t)last << (a->shift - US_PAGE_SHIFT), pages_of(a));
        for (uint32_t k = first << (a->shift - US_PAGE_SHIFT); k < end; k++) {
            const uint64_t addr = (uint64_t)(uintptr_t)memory(a, k);
            if (a->given_back[k] || plan.lossy || a->gone[k])
                continue;
            SIM_CHECK(sim_is_present(addr) && !sim_is_protected(addr), "page %u of a pinned range is %s", k,
                      sim_is_present(addr) ? "write-protected" : "not there");
            compare(a, k, "pinned");
            sim_point();
        }
    }
    us_pin_free(pin);
    leave(a);
}

static void give_back(area_t *a) { /* MADV_DONTNEED by the user */
    const uint32_t at = sim_below(pages_of(a)), run = 1 + sim_below(4);
    for (uint32_t k = at; k < at + run && k < pages_of(a); k++) {
        const uint64_t addr = (uint64_t)(uintptr_t)memory(a, k);
        const uint32_t i = (uint32_t)a->info.first + (k >> (a->shift - US_PAGE_SHIFT));
        const uint16_t who = claim_of(pager.pager, a, i);
        const uint8_t state =
            who == US_CLAIM_CLEAN || who == US_CLAIM_DIRTY ? US_RESIDENT : pager.pager->mm.space.table[i].state;
        /* A page that a COPY which was cut short has left may have been written: what comes back is from before that. */
        if (a->dma[k] || a->gone[k] || (sim_is_present(addr) && state != US_RESIDENT && state != US_PLAIN))
            continue;
        if (sim_is_present(addr) || sim_is_poisoned(addr))
            a->maybe_zero[k] = true;
        a->given_back[k] = true;
        a->backs[k]++;
        sim_dontneed(addr, US_PAGE);
    }
}

static void unmap(area_t *a) {
    const uint32_t at = sim_below(pages_of(a)), run = 1 + sim_below(3);
    if (a->holds > 0)
        return;
    for (uint32_t k = at; k < at + run && k < pages_of(a); k++) {
        if (a->dma[k] || a->gone[k])
            continue;
        a->gone[k] = true;
        munmap(memory(a, k), US_PAGE);
    }
}

/* What others do with a page. */
static void trick(area_t *a) {
    const uint32_t k = sim_below(pages_of(a)), which = sim_below(plan.copy ? 2 : 3);
    const uint64_t addr = (uint64_t)(uintptr_t)memory(a, k);
    if (a->dma[k] || a->gone[k])
        return;
    if (which == 0) { /* a child was forked */
        sim_page_set(addr, SIM_SHARED, sim_is_present(addr));
        return;
    }
    if (!touch(a, k, true) || a->dma[k]) /* perhaps another one has come first */
        return;
    compare(a, k, "before a write");
    a->maybe_zero[k] = false;
    a->dma[k] = true;
    sim_page_set(addr, which == 1 ? SIM_LOCKED : SIM_PINNED, true);
    for (uint32_t n = 1 + sim_below(3); n > 0; n--) {
        sim_wait(NULL, NULL, sim_now + 1 + sim_below(3 * SIM_MS), "a device");
        if (which != 2)
            continue;
        SIM_CHECK(sim_is_present(addr), "page %u of area %u was taken from a device", k, (unsigned)(a - area));
        memset(memory(a, k) + 64 * sim_below(64), (int)sim_below(256), 64); /* no page table is asked */
        memcpy(model(a, k), memory(a, k), US_PAGE);
    }
    sim_page_set(addr, which == 1 ? SIM_LOCKED : SIM_PINNED, false);
    a->dma[k] = false;
}

static void begin_area(area_t *a, bool fresh) {
    const uint32_t item = sim_one_in(2) ? 8 : 0;
    us_registration_t *reg = us_registration_new(client);
    const int err = reg == NULL ? -ENOMEM
                                : us_registration_begin(reg, a->addr, a->len, 1u << a->shift, item, !fresh, a->handled,
                                                        0, US_END_RESTORE);
    SIM_CHECK(err == 0 || excused(), "a region's begin answers %d", err);
    if (err != 0) { /* it is ordinary memory, as before */
        if (reg != NULL)
            us_registration_free(reg);
        return;
    }
    us_registration_info(reg, &a->info);
    a->reg = reg;
    sim_log("area %u is region %d: %llu bytes, blocks of %u, %llu plain", (unsigned)(a - area), a->info.id,
            (unsigned long long)a->len, 1u << a->shift, (unsigned long long)a->info.plain);
}

static void end_and_begin(area_t *a) {
    if (!is_free(a) || a->reg == NULL)
        return;
    a->changing = true;
    sim_wait(is_alone, a, SIM_NEVER, "an area's calls");
    sim_log("area %u: region %d ends", (unsigned)(a - area), a->info.id);
    int err = us_registration_end(a->reg, US_END_RESTORE);
    if (err != 0 && excused()) /* and then it can be ended once more */
        err = us_registration_end(a->reg, US_END_RESTORE);
    SIM_CHECK(err == 0, "a region's end answers %d", err);
    us_registration_free(a->reg);
    a->reg = NULL;
    for (uint32_t n = sim_below(3); n > 0; n--)
        access_some(a);
    bool whole = true; /* what has holes can't be registered again */
    for (uint32_t k = 0; k < pages_of(a); k++)
        whole &= !a->gone[k];
    a->beginning = true;
    sim_wait(is_not_held, a, SIM_NEVER, "an area's system calls");
    if (whole)
        begin_area(a, false);
    a->beginning = a->changing = false;
}

static bool is_untouched(void *of) { return ((area_t *)of)->accesses == 0; }

/* What it holds is given up, and its addresses get another owner. */
static void discard(area_t *a) {
    if (!is_free(a) || a->reg == NULL || a->dead)
        return;
    a->changing = a->dead = true;
    sim_wait(is_alone, a, SIM_NEVER, "an area's calls");
    sim_wait(is_untouched, a, SIM_NEVER, "an area's accesses");
    sim_log("area %u: region %d is discarded", (unsigned)(a - area), a->info.id);
    int err = us_registration_end(a->reg, US_END_DISCARD);
    if (err != 0 && excused())
        err = us_registration_end(a->reg, US_END_DISCARD);
    SIM_CHECK(err == 0, "a region's end answers %d", err);
    SIM_CHECK(sim_touch(a->addr, false) == SIM_SEGV, "a region that was discarded can be read");
    us_registration_free(a->reg);
    a->reg = NULL;
    sim_map_again(a->addr, a->len);
    memset(a->model, 0, a->len);
    memset(a->maybe_zero, 0, sizeof a->maybe_zero);
    memset(a->given_back, 0, sizeof a->given_back);
    memset(a->gone, 0, sizeof a->gone);
    begin_area(a, true);
    a->changing = a->dead = false;
}

static void change_limit(void) {
    const uint64_t least = 4ull << US_BLOCK_MIN_SHIFT << 4;
    const uint64_t limit = us_align_up(us_max(plan.total / (1 + sim_below(8)), least), US_PAGE);
    SIM_CHECK(ask(US_OP_LIMIT, 0, limit, 0, 0) == 0 || excused(), "a limit is refused");
}

/* A block is written anew, whole. */
static void overwrite(area_t *a) {
    const uint32_t pages = 1u << (a->shift - US_PAGE_SHIFT), from = sim_below(blocks_of(a)) * pages;
    for (uint32_t k = from; k < from + pages && k < pages_of(a); k++)
        write_page(a, k, 4);
}

static void *user(void *number) {
    (void)number;
    for (uint32_t n = 0; n < plan.ops; n++) {
        area_t *a = &area[sim_below(plan.areas)];
        const uint32_t what = sim_below(100);
        const bool touches =
            what < 66 || (what >= 86 && what < 93); /* not a call, which leaves the memory to the core */
        if (touches && a->dead)
            continue;
        a->accesses += touches;
        if (touches && plan.overwrite && !sim_one_in(8))
            overwrite(a);
        else if (touches && plan.handled && sim_one_in(4))
            system_call(a);
        else if (what < 66)
            access_some(a);
        else if (what < 72)
            range_call(a, US_OP_EVICT);
        else if (what < 75)
            range_call(a, US_OP_PREFETCH);
        else if (what < 78)
            range_call(a, US_OP_VERIFY);
        else if (what < 82)
            range_call(a, US_OP_MIGRATE);
        else if (what < 86)
            pin_some(a);
        else if (what < 89)
            give_back(a);
        else if (what < 92 && plan.tricks)
            trick(a);
        else if (what < 93 && plan.unmaps)
            unmap(a);
        else if (what == 93 && plan.ends)
            end_and_begin(a);
        else if (what == 94 && plan.ends && sim_one_in(2))
            discard(a);
        else if (what == 95 && plan.limits)
            change_limit();
        else if (what == 96 && plan.limits)
            ask(US_OP_POOL, 0, us_align_up(pager.cfg.pool[0].budget / (1 + sim_below(4)), US_PAGE), 0, 0);
        else if (what == 97 && plan.stops)
            sim_stop_client(sim_now + sim_below(200 * SIM_MS));
        else
            sim_wait(NULL, NULL, sim_now + 1 + sim_below(5 * SIM_MS), "its pleasure");
        a->accesses -= touches;
    }
    return NULL;
}

/* ---- a scenario -------------------------------------------------------------------------------------- */

static uint64_t pick(const uint64_t *of, uint32_t n) { return of[sim_below(n)]; }
#define PICK(...) pick((const uint64_t[]){__VA_ARGS__}, sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

static void draw(us_pager_config_t *c, us_mm_config_t *m, uint64_t *outbox) {
    const uint32_t shift = (uint32_t)PICK(12, 12, 13, 14, 14, 16);
    plan.areas = 1 + sim_below(AREAS - 1);
    plan.users = 1 + sim_below(USERS);
    plan.ops = 40 + sim_below(120);
    for (uint32_t k = 0; k < plan.areas; k++) {
        area_t *a = &area[k];
        a->shift = sim_one_in(4) ? 12 + sim_below(4) : shift;
        a->len = (uint64_t)(8 + sim_below(PAGES_MAX - 8)) * US_PAGE;
        plan.total += a->len;
    }
    const uint64_t least = 4ull << 16;
    m->limit = us_align_up(us_max(plan.total / PICK(2, 4, 8, 1), least), US_PAGE);
    *outbox = PICK(2, 4, 16) << 16;
    const uint32_t pools = 1 + sim_below(US_POOLS);
    for (uint32_t k = 0; k < pools; k++) {
        c->pool[k].budget = us_align_up(us_max(plan.total / PICK(1, 2, 4, 8), 192 << 10), US_PAGE);
        c->pool[k].codec = k == 0 && sim_lz4 && !sim_one_in(4)   ? US_CODEC_LZ4
                           : k > 0 && sim_zstd && !sim_one_in(4) ? US_CODEC_ZSTD
                                                                 : 0;
        c->pool[k].level = 1;
    }
    if (!sim_one_in(4)) {
        pager.segment = (uint32_t)PICK(128 << 10, 256 << 10, 1 << 20);
        pager.swap = (uint64_t)pager.segment * (6 + sim_below((4 << 20) / pager.segment));
    }
    plan.overwrite = sim_one_in(5);
    if (plan.overwrite) {
        plan.areas = 1;
        plan.ops = 300 + sim_below(500);
        plan.total = area[0].len = (PAGES_MAX - sim_below(64)) * US_PAGE;
        area[0].shift = (uint32_t)PICK(12, 13, 14);
        m->limit = least;
        memset(c->pool, 0, sizeof c->pool);
        pager.segment = (uint32_t)PICK(64 << 10, 128 << 10);
        c->pool[0] = (us_pool_config_t){
            .budget = 4 * pager.segment + (sim_below(4) << 16), .codec = sim_lz4 ? US_CODEC_LZ4 : 0, .level = 1};
        pager.swap = us_align_up(plan.total * PICK(7, 8, 10, 12) / 10, pager.segment);
    }
    m->readahead = (uint32_t)PICK(0, 32 << 10, 256 << 10);
    c->workers = 1 + (int)sim_below(3);
    plan.copy = sim_one_in(4);
    m->take = plan.copy ? US_TAKE_COPY : US_TAKE_MOVE;
    c->servers = 1 + (int)sim_below(2);
    c->follow = c->servers > 1 || sim_one_in(2);
    m->late = sim_one_in(2);
    m->pagemap = sim_one_in(8) ? -1 : SIM_PAGEMAP;

    sim_pace.switch_one_in = (uint32_t)PICK(1, 3, 8, 20, 100);
    sim_pace.stall_one_in = (uint32_t)PICK(0, 20, 200, 2000);
    sim_pace.stall_ns = PICK(20000, SIM_MS, 60 * SIM_MS);
    sim_pace.spurious_one_in = (uint32_t)PICK(0, 0, 16);
    sim_pace.steps_max = 24u << 20;
    if (sim_one_in(2)) { /* a transition that takes its time */
        us_delays[sim_below(US_DELAYS)] = (uint32_t)PICK(100, 3000, 40000);
        us_delays[sim_below(US_DELAYS)] = (uint32_t)PICK(100, 3000);
    }
    bool slow = (sim_pace.stall_one_in != 0 && sim_pace.stall_ns > SIM_MS) || plan.lossy;
    for (int k = 0; k < US_DELAYS; k++)
        slow |= us_delays[k] > 100;
    /* Nothing but stalled threads and a slow disk takes longer; waits that begin anew by themselves take 50 ms. */
    plan.patience = slow ? 60000 * SIM_MS : 1000 * SIM_MS;
    sim_kernel.again_one_in = (uint32_t)PICK(0, 0, 3, 50);
    sim_kernel.short_one_in = (uint32_t)PICK(0, 10);
    sim_kernel.move = !plan.copy;
    sim_kernel.old = plan.copy && sim_one_in(2);
    sim_kernel.vector = !sim_one_in(4);
    sim_disk.bytes = pager.swap;
    sim_disk.slow_ns = PICK(0, 20000, 200000, 3 * SIM_MS);
    sim_disk.cached = sim_one_in(4);
    if (sim_one_in(2)) {
        sim_disk.short_one_in = (uint32_t)PICK(0, 5);
        sim_disk.eintr_one_in = (uint32_t)PICK(0, 8);
        plan.lossy = sim_one_in(2);
        if (plan.lossy) {
            sim_disk.eio_one_in = (uint32_t)PICK(0, 10, 100);
            sim_disk.flip_one_in = (uint32_t)PICK(0, 10, 100);
            sim_disk.full_one_in = (uint32_t)PICK(0, 20);
            sim_disk.lost_one_in = (uint32_t)PICK(0, 100);
        }
    }
    plan.tricks = sim_one_in(3);
    plan.stops = sim_one_in(4);
    plan.limits = sim_one_in(3);
    plan.ends = sim_one_in(2);
    plan.unmaps = sim_one_in(4);
    sim_kernel.user_mode = sim_one_in(3);
    sim_kernel.no_peek =
        !plan.unmaps && !plan.lossy && sim_one_in(4); /* else what can't be read just then ends the process */
    pager.check_one_in = (uint32_t)PICK(1, 8, 8, 32);
    pager.trace = sim_one_in(4);
    plan.handled = sim_one_in(2);
    plan.adjacent = sim_one_in(2);
    m->sigbus = plan.handled ? SIM_SIGBUS : -1;
    if (plan.handled) { /* as client.py has it */
        c->follow = 0;
        c->servers = 1;
    }
    const bool all = sim_one_in(2);
    for (uint32_t k = 0; k < plan.areas; k++)
        area[k].handled = plan.handled && (all || sim_one_in(2));
}

/* What --with asks for. */
const char *sim_with;
static void draw_with(void) {
    const struct {
        const char *name;
        bool *of;
    } all[] = {{"tricks", &plan.tricks},
               {"stops", &plan.stops},
               {"limits", &plan.limits},
               {"ends", &plan.ends},
               {"unmaps", &plan.unmaps}};
    bool known = sim_with == NULL;
    for (size_t k = 0; k < sizeof all / sizeof *all && !known; k++) {
        known = strcmp(sim_with, all[k].name) == 0;
        *all[k].of |= known;
    }
    SIM_CHECK(known, "what is %s?", sim_with);
    sim_kernel.no_peek &= !plan.unmaps;
}

/* Of one scenario each call may fail; what is random otherwise does not. */
static void draw_plain(void) {
    plan.users = 2;
    plan.ops = 30;
    plan.patience = 60000 * SIM_MS;
    plan.lossy = plan.tricks = plan.stops = plan.overwrite = plan.unmaps = false;
    plan.ends = true;
    sim_kernel.again_one_in = sim_kernel.short_one_in = 0;
    sim_disk.short_one_in = sim_disk.eintr_one_in = sim_disk.eio_one_in = sim_disk.flip_one_in = sim_disk.full_one_in =
        sim_disk.lost_one_in = 0;
    sim_pace.stall_one_in = 0;
    sim_pace.switch_one_in = 8;
    memset(us_delays, 0, sizeof us_delays);
}

static bool is_ready(void *of) { return ((sim_pager_t *)of)->ready; }
static bool has_ended(void *of) { return ((sim_pager_t *)of)->ended; }

/* Writes down which lines were reached, in a build for that (make coverage): the process ends without its destructors. */
#ifdef SIM_COVERAGE
void __gcov_dump(void);
#else
static void __gcov_dump(void) {}
#endif

/* Ends the process with what it has done. */
static _Noreturn void done(uint64_t seed, const us_stats_t *s) {
    static const us_stats_t none;
    if (s == NULL)
        s = &none;
    printf("%llu %llu %llu %llu %llu %llu %llu %llu %llu\n", (unsigned long long)seed, (unsigned long long)sim_steps,
           (unsigned long long)accesses, (unsigned long long)s->evicted_blocks,
           (unsigned long long)s->faults[US_KIND_STORED], (unsigned long long)s->cleaned_segments,
           (unsigned long long)pager.lost, (unsigned long long)s->second_server, (unsigned long long)pager.checks);
    for (int k = 0; sim_each && k < SIM_CALL_KINDS; k++)
        printf("%llu ", (unsigned long long)sim_failure.calls[k]);
    fflush(stdout);
    __gcov_dump();
    _exit(0);
}

/* What changes how the process calls libc is not linked. */
int us_sigchain_open(void) { return 0; }
int us_guard_open(void) { return 0; }

void sim_run_seed(uint64_t seed) {
    sim_seed(seed);
    sim_memory_open();
    us_pager_config_t *c = &pager.cfg;
    us_mm_config_t *m = &pager.mm;
    uint64_t outbox;
    us_layout_t layout;
    draw(c, m, &outbox);
    draw_with();
    if (sim_each)
        draw_plain();
    sim_disk_open();
    sim_log("%u areas, %llu bytes, limit %llu, outbox %llu, pools %llu %llu %llu codecs %d %d %d, swap %llu by %u",
            plan.areas, (unsigned long long)plan.total, (unsigned long long)m->limit, (unsigned long long)outbox,
            (unsigned long long)c->pool[0].budget, (unsigned long long)c->pool[1].budget,
            (unsigned long long)c->pool[2].budget, c->pool[0].codec, c->pool[1].codec, c->pool[2].codec,
            (unsigned long long)pager.swap, pager.segment);
    sim_log("%u users, %u calls; %s, %d servers, %d workers, read-ahead %u, late %d, pagemap %d%s%s%s%s%s%s%s",
            plan.users, plan.ops, plan.copy ? "copy" : "move", c->servers, c->workers, m->readahead, m->late,
            m->pagemap, plan.lossy ? ", lossy" : "", plan.tricks ? ", tricks" : "", plan.stops ? ", stops" : "",
            plan.limits ? ", limits" : "", plan.ends ? ", ends" : "", plan.unmaps ? ", unmaps" : "",
            plan.overwrite ? ", overwrites" : "");
    for (uint32_t k = 0; k < plan.areas; k++)
        sim_log("area %u: %llu bytes, blocks of %u%s", k, (unsigned long long)area[k].len, 1u << area[k].shift,
                area[k].handled ? ", inline" : "");
    const uint64_t budgets[US_POOLS] = {c->pool[0].budget, c->pool[1].budget, c->pool[2].budget};
    m->space_fd = us_space_create(outbox, budgets, 1 << 14, &layout);
    SIM_CHECK(m->space_fd >= 0, "no space: %d", m->space_fd);
    m->uffd = SIM_UFFD;
    m->doorbell = sim_eventfd();
    m->notify = sim_eventfd();
    m->client_pid = 1;
    client = us_client_new();
    SIM_CHECK(client != NULL || excused(), "there is no client");
    if (client == NULL)
        done(seed, NULL);
    int err = us_client_open(client, m->uffd, m->sigbus, m->space_fd, m->doorbell, m->notify,
                             sim_kernel.vector ? US_DROP_VECTOR : US_DROP_SINGLE);
    SIM_CHECK(err == 0 || excused(), "the client does not open: %d", err);
    if (err != 0) {
        us_client_free(client);
        done(seed, NULL);
    }
    m->mover_tid = us_client_tid(client);
    m->staging = us_client_staging(client, &m->staging_len);
    sim_spawn("loop", false, sim_pager_main, &pager);
    sim_wait(is_ready, &pager, SIM_NEVER, "the pager");
    SIM_CHECK(pager.error == 0 || excused(), "the pager does not open: %d", pager.error);
    if (pager.error != 0) {
        us_client_free(client);
        done(seed, NULL);
    }
    err = us_client_attach(client, SIM_SOCK, SIM_PIDFD);
    SIM_CHECK(err == 0, "attach: %d", err);
    uint64_t together = plan.adjacent ? sim_map(plan.total) : 0;
    for (uint32_t k = 0; k < plan.areas; k++) {
        area_t *a = &area[k];
        a->addr = plan.adjacent ? together : sim_map(a->len);
        together += a->len;
        a->model = zeros(a->len);
        const bool fresh = sim_one_in(2);
        for (uint32_t page = 0; !fresh && page < pages_of(a); page++) {
            if (sim_one_in(2))
                write_page(a, page, sim_below(4));
        }
        begin_area(a, fresh);
    }
    pthread_t thread[USERS];
    for (uint32_t k = 0; k < plan.users; k++) {
        thread[k] = (pthread_t)(uintptr_t)sim_spawn("user", true, user, NULL);
    }
    for (uint32_t k = 0; k < plan.users; k++)
        pthread_join(thread[k], NULL);
    sim_log("all users are done");
    for (uint32_t k = 0; k < plan.areas; k++) {
        for (uint32_t page = 0; page < pages_of(&area[k]); page++)
            read_page(&area[k], page);
    }
    us_stats_t s;
    us_client_stats(client, &s);
    for (uint32_t k = 0; k < plan.areas; k++)
        area[k].changing = true;
    int left = us_client_close(client, US_END_RESTORE);
    if (left != 0 && excused())
        left = us_client_close(client, US_END_RESTORE);
    SIM_CHECK(left == 0, "close answers %d", left);
    for (uint32_t k = 0; k < plan.areas; k++) {
        for (uint32_t page = 0; page < pages_of(&area[k]); page++)
            read_page(&area[k], page);
        if (area[k].reg != NULL)
            us_registration_free(area[k].reg);
    }
    sim_wait(has_ended, &pager, SIM_NEVER, "the pager's end");
    us_client_free(client);
    SIM_CHECK(plan.lossy || pager.lost == 0, "%llu blocks are lost", (unsigned long long)pager.lost);
    done(seed, &s);
}
