/* SPDX-License-Identifier: MIT
 *
 * Calls over a range of a region's blocks: evict, prefetch, move, verify, pin, restore. Each works from a cursor as far as it
 * gets without waiting, and says what to wait for.
 */
#include "pager.h"

#include "entry.h"
#include "event.h"
#include "evict.h"
#include "install.h"
#include "notes.h"
#include "plain.h"
#include "region.h"
#include "sys.h"
#include "tier.h"
#include "turn.h"

static us_region_t *range(us_mm_t *m, int id, const uint32_t *cursor, uint32_t last) {
    us_region_t *r = us_region_by_id(m, id);
    return r == NULL || last > r->count || *cursor > last ? NULL : r;
}

/* The same for calls that another thread's release may overtake: 0, -ECANCELED when the region is no more, or -EINVAL. */
static int range_now(us_mm_t *m, int id, const uint32_t *cursor, uint32_t last, us_region_t **r) {
    *r = range(m, id, cursor, last);
    return *r != NULL ? 0 : us_region_by_id(m, id) == NULL ? -ECANCELED : -EINVAL;
}

int us_pager_evict(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    US_LOCKED(p);
    us_region_t *r = range(&p->mm, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    const int plain = us_plain_end(p, r, *cursor, last);
    return plain != US_DONE ? plain : us_evict_range(p, r, cursor, last);
}

/* A block that was settled once is not looked at again: other threads may keep the range busy for ever. */
int us_pager_settle(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    US_LOCKED(p);
    us_region_t *r = range(&p->mm, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(&p->mm, r->first + *cursor, end);
    for (uint32_t n = 0; i < end && us_is_settled(&p->mm, i); i = us_table_next(&p->mm, i, end)) {
        if (n++ == US_SLICE) {
            *cursor = i - r->first;
            return US_AGAIN;
        }
    }
    *cursor = i - r->first;
    if (*cursor == last && !(r->frozen && r->jobs != 0))
        return US_DONE;
    us_want(p);
    return US_WAIT_ROOM;
}

int us_pager_move(us_pager_t *p, int id, uint32_t *cursor, uint32_t last, int to) {
    US_LOCKED(p);
    us_region_t *r;
    int err = range_now(&p->mm, id, cursor, last, &r);
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
    uint32_t i = us_table_seek(&p->mm, r->first + *cursor, end), looked = 0;
    for (; i < end; i = us_table_next(&p->mm, i, end)) {
        const us_entry_t e = p->mm.space.table[i];
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
    us_tiers_submit(p);
    if (result == US_WAIT_ROOM) {
        us_tiers_demote(p);
        us_want(p);
    }
    return result;
}

int us_pager_moved(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    US_LOCKED(p);
    us_region_t *r;
    const int err = range_now(&p->mm, id, cursor, last, &r);
    if (err != 0)
        return err;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(&p->mm, r->first + *cursor, end);
    for (uint32_t n = 0; i < end; i = us_table_next(&p->mm, i, end)) {
        const us_entry_t e = p->mm.space.table[i];
        *cursor = i - r->first;
        if (n++ == US_SLICE)
            return US_AGAIN;
        if ((e.state == US_POOLED || e.state == US_STORED) && (e.flags & (US_F_WRITING | US_F_LOCKED)) != 0) {
            us_want(p);
            return US_WAIT_ROOM;
        }
    }
    *cursor = last;
    us_pager_publish(p);
    return US_DONE;
}

int us_pager_prefetch(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    US_LOCKED(p);
    us_region_t *r = range(&p->mm, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    int result = US_DONE;
    bool posted = false;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(&p->mm, r->first + *cursor, end);
    for (uint32_t n = 0; i < end; i = us_table_next(&p->mm, i, end)) {
        const us_entry_t e = p->mm.space.table[i];
        if (n++ == US_SLICE) {
            result = US_AGAIN;
            break;
        }
        if (e.state == US_RESIDENT || e.state == US_PLAIN || e.state == US_EMPTY || e.state == US_LOST ||
            (e.flags & US_F_LOCKED))
            continue;
        const int room = us_evict_make_room(p, us_block_len(r, i));
        if (room == -ENOSPC) { /* nothing can leave for it: it is only a hint */
            i = end;
            break;
        }
        if (room == US_DONE && e.state == US_STORED &&
            us_tier_fetch_run(p, r, i, r->first + last, false, p->mm.cfg.limit) > 0)
            continue; /* those after it are locked, and passed by */
        if (room == US_DONE && e.state != US_OUTBOX && e.state != US_STORED && us_install_ahead(p, r, i, true)) {
            posted = true;
            continue;
        }
        if (room == US_DONE && e.state == US_OUTBOX && us_take(&p->mm, r, i)) {
            const int res = us_install(p, r, i, false);
            us_give(&p->mm, r, i);
            if (res != US_AGAIN)
                continue;
        }
        result = US_WAIT_ROOM;
        break;
    }
    *cursor = i - r->first;
    if (posted)
        us_crew_ring(&p->crew);
    us_tiers_submit(p);
    if (result == US_WAIT_ROOM)
        us_want(p);
    return result;
}

int us_pager_verify(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    US_LOCKED(p);
    us_region_t *r;
    const int err = range_now(&p->mm, id, cursor, last, &r);
    if (err != 0)
        return err;
    if (r->frozen)
        return -ECANCELED;
    enum { AT_ONCE = 128 << 10 }; /* bytes decompressed here: then the loop has its turn */
    uint64_t decompressed = 0;
    int result = US_DONE;
    const uint32_t end = r->first + last;
    uint32_t i = us_table_seek(&p->mm, r->first + *cursor, end);
    for (int n = 0; i < end; i = us_table_next(&p->mm, i, end), n++) {
        const us_entry_t e = p->mm.space.table[i];
        if (n == US_SLICE || decompressed >= AT_ONCE) {
            result = US_AGAIN;
            break;
        }
        if (e.flags & US_F_LOCKED) /* leaving, or who has it finds out what it is worth */
            continue;
        if (e.state == US_STORED && !us_tier_verify(p, r, i)) {
            us_want(p);
            result = US_WAIT_ROOM;
            break;
        }
        if (e.state == US_POOLED) {
            decompressed += us_block_len(r, i);
            if (!us_install_intact(p, r, i) && us_take(&p->mm, r, i)) { /* who has it finds that out by himself */
                us_install_lose(p, r, i, false);
                us_give(&p->mm, r, i);
            }
        }
    }
    *cursor = i - r->first;
    us_tiers_submit(p);
    return result;
}

/* Pages of a changed block that are not there (never touched before it was wrapped, or given back) are
 * zeros; a system call of an unprivileged process can't wait for them. */
static int populate(us_region_t *r, uint32_t i) {
    const uint64_t addr = us_block_addr(r, i);
    for (uint64_t off = 0; off < us_block_len(r, i); off += US_PAGE) {
        int err = -EAGAIN;
        for (int tries = 0; tries < US_TRIES && err == -EAGAIN; tries++) /* page by page, so that each try gets on */
            err = us_sys_zero(r->uffd, addr + off, US_PAGE);
        if (err == -EAGAIN)
            return US_AGAIN;
        if (err != 0 && err != -EEXIST)
            return err;
    }
    return US_DONE;
}

/* pre: the caller has taken it. */
static int hold_taken(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t last, bool within_limit) {
    enum { AHEAD = 256 };
    const us_entry_t e = p->mm.space.table[i];
    if (e.flags & US_F_LOCKED)
        return US_WAIT_ENTRY;
    if (e.state == US_RESIDENT && (e.flags & US_F_CLEAN))
        return us_install_unprotect(p, r, i);
    if (e.state == US_RESIDENT && !within_limit)
        return US_DONE;
    if (e.state == US_RESIDENT) { /* single pages may be protected: what a DROP or a COPY that was cut short has left */
        const int res = us_install_unprotect(p, r, i);
        return res != US_DONE ? res : populate(r, i);
    }
    if (e.state == US_PLAIN) /* of a pin none is left */
        return US_DONE;
    if (!within_limit && (e.state == US_EMPTY || (e.state == US_FILLED && e.where == 0)))
        return US_DONE; /* zeros are what the kernel gives by itself, page by page and when they are wanted */
    if (within_limit && us_evict_make_room(p, us_block_len(r, i)) == US_WAIT_ROOM)
        return US_WAIT_ROOM;
    if (e.state == US_LOST) /* a touch says so */
        return US_DONE;
    if (e.state == US_STORED) {
        /* This one by itself, until it is in or LOST; behind it as many as there are slots, so that the disk has something to
         * choose from. */
        us_tier_fetch(p, r, i, true, 0);
        const uint32_t end = (uint32_t)us_min(r->first + last, (uint64_t)i + AHEAD);
        const uint64_t most = within_limit ? p->mm.cfg.limit : UINT64_MAX;
        for (uint32_t k = i + 1, n; k < end; k += n) {
            const us_entry_t next = p->mm.space.table[k];
            n = 1;
            if (next.state != US_STORED || (next.flags & US_F_LOCKED))
                continue;
            if (us_mm_resident(&p->mm) + us_block_len(r, k) > most)
                break;
            n = us_tier_fetch_run(p, r, k, end, true, most);
            if (n == 0)
                break;
        }
        us_tiers_submit(p);
        return US_WAIT_ENTRY;
    }
    return us_install(p, r, i, true);
}

/* Swaps block i in, written or not, whatever it needs; for pins and for the end. */
static int hold(us_pager_t *p, us_region_t *r, uint32_t i, uint32_t last, bool within_limit) {
    us_notes(p);
    if (!us_take(&p->mm, r, i))
        return US_AGAIN;
    const int res = hold_taken(p, r, i, last, within_limit);
    us_give(&p->mm, r, i);
    return res;
}

static int hold_range(us_pager_t *p, int id, uint32_t *cursor, uint32_t last, bool pin) {
    us_region_t *r = range(&p->mm, id, cursor, last);
    if (r == NULL)
        return -EINVAL;
    enum { SLICE = 64, LOOKS = US_SLICE / SLICE }; /* blocks; of those with nothing to do, so many count as one */
    const uint32_t end = r->first + last;
    uint32_t looks = 0;
    for (uint32_t i = r->first + *cursor;; i++) {
        if (!pin && (i == r->first + *cursor || i % (US_PAGE / sizeof(us_entry_t)) == 0))
            i = us_table_seek(&p->mm, i, end); /* zeros are there without our doing */
        *cursor = us_min(i, end) - r->first;
        if (i >= end)
            break;
        const us_entry_t e = p->mm.space.table[i];
        looks += pin || (e.state != US_EMPTY && e.state != US_RESIDENT && e.state != US_PLAIN) ? LOOKS : 1;
        if (looks > US_SLICE)
            return US_AGAIN;
        if (pin && p->mm.pins[i] == UINT16_MAX)
            return -EOVERFLOW;
        int res = hold(p, r, i, last, pin);
        if (res == -ENOENT && !pin) /* unmapped by the user: nothing to restore, nobody to miss it */
            continue;
        if (res != US_DONE) {
            if (res == US_WAIT_ENTRY || res == US_WAIT_ROOM)
                us_want(p);
            return res;
        }
        if (pin && p->mm.pins[i]++ == 0)
            p->mm.s->pinned += us_block_len(r, i);
    }
    return US_DONE;
}

int us_pager_pin(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    US_LOCKED(p);
    us_region_t *r = range(&p->mm, id, cursor, last);
    const int plain = r == NULL ? -EINVAL : us_plain_end(p, r, *cursor, last);
    return plain != US_DONE ? plain : hold_range(p, id, cursor, last, true);
}

int us_pager_restore(us_pager_t *p, int id, uint32_t *cursor, uint32_t last) {
    US_LOCKED(p);
    return hold_range(p, id, cursor, last, false);
}

int us_pager_unpin(us_pager_t *p, int id, uint32_t first, uint32_t last) {
    US_LOCKED(p);
    us_region_t *r = range(&p->mm, id, &first, last);
    if (r == NULL)
        return -EINVAL;
    for (uint32_t i = r->first + first; i < r->first + last; i++) {
        if (p->mm.pins[i] == 0)
            return -EINVAL;
        if (--p->mm.pins[i] == 0)
            p->mm.s->pinned -= us_block_len(r, i);
    }
    return 0;
}
