/* SPDX-License-Identifier: MIT
 *
 * Plain memory: the part of a region that is not registered yet.
 *
 * Memory that fits need not be paged, and what is not registered costs nothing: the kernel gives a page, or a
 * huge page, at the first touch, and nobody else is asked. So as much of a new region as the limit has room for
 * stays plain, from its start on, and the pager registers it when it wants that room: a piece at a time,
 * before it looks for victims. The piece's pages that are there become resident blocks, which were changed as
 * far as anybody knows; the others were never touched, and their room is free at once.
 *
 *       plain_from                plain_to
 *           v                        v
 *    [ registered | plain             | registered from the start ]       a region
 *
 * Until then plain memory counts as resident, touched or not: the pager does not see it grow, and so must have
 * promised all of it. What has been registered stays so.
 *
 * Wrapped memory for which there is no room is registered from the start. It may have been reserved and never touched, so it
 * is looked at once it is registered: from then on a missing page comes by a fault alone, which waits for the lock.
 *
 * Nothing can be missed. A touch of a missing page that comes before the piece is registered ends before that
 * does, since registering has the address space's lock for itself; one that comes later is a fault, and the loop,
 * which is in here, looks at it when the entries are right. Pages do not go away but by the user's own advice, and a
 * RESIDENT block whose page is missing reads as zeros (see entry.c).
 */
#include "plain.h"

#include <string.h>

#include "entry.h"
#include "outbox.h"
#include "sys.h"

/* HUGE: no huge page lies on both sides of a border. PIECE: about 100 us. AGAIN_NS: after registering failed. */
enum { HUGE = 2 << 20, PIECE = 16 << 20, AGAIN_NS = 50 * 1000 * 1000 };

static uint64_t bytes_of(const us_region_t *r, uint32_t from, uint32_t to) {
    return us_min((uint64_t)to << r->shift, r->len) - us_min((uint64_t)from << r->shift, r->len);
}

static void set(us_mm_t *m, us_region_t *r, uint32_t from, uint32_t to) {
    m->plain -= bytes_of(r, r->plain_from, r->plain_to);
    r->plain_from = from;
    r->plain_to = to;
    m->plain += bytes_of(r, from, to);
    m->s->plain = m->plain;
}

uint64_t us_plain_room(const us_mm_t *m, const us_region_t *r) {
    const uint64_t room = m->cfg.limit - us_min(m->cfg.limit, us_mm_resident(m));
    if (!m->cfg.late || m->cfg.pagemap < 0)
        return 0;
    if (r->len <= room)
        return r->len;
    const uint64_t end = (r->addr + room) & ~(uint64_t)(HUGE - 1);
    /* A region may begin anywhere, and blocks are counted from there. */
    return end > r->addr ? (end - r->addr) & ~((1ull << r->shift) - 1) : 0;
}

void us_plain_begin(us_pager_t *p, us_region_t *r, uint32_t from, uint32_t to) {
    for (uint32_t k = from; k < to; k++)
        us_entry_plain(p, r, r->first + k);
    set(&p->mm, r, 0, to);
}

/* A byte for each of blocks [from, to): whether a page of it is there. 0 or -errno: it can't be told. */
static int look(const us_mm_t *m, const us_region_t *r, uint32_t from, uint32_t to, uint8_t *there) {
    return us_present(m->cfg.pagemap, us_block_addr(r, r->first + from), bytes_of(r, from, to), 1u << r->shift, there);
}

/* Registers a piece from the start of what is plain of a region. */
static int end_piece(us_pager_t *p, us_region_t *r) {
    uint8_t there[PIECE >> US_BLOCK_MIN_SHIFT];
    const uint32_t from = r->plain_from, to = (uint32_t)us_min(r->plain_to, from + (uint64_t)(PIECE >> r->shift));
    const uint64_t addr = us_block_addr(r, r->first + from), len = bytes_of(r, from, to);
    /* A child that is forked before the mover has done this inherits the piece by copy on write, all of it: nothing of it
     * is taken out before. */
    if (!us_outbox_nofork(&p->mm, addr, len))
        return -EAGAIN;
    const int err = us_sys_register(r->uffd, addr, len);
    US_DELAY(US_D_PLAIN);
    if (err == -EINVAL) { /* unmapped by the user, or something else by now: there is nothing to page */
        memset(there, 0, to - from);
    } else if (err != 0) { /* of several mappings some may be registered, whose faults would find nobody */
        us_sys_unregister(r->uffd, addr, len);
        return err;
    } else if (look(&p->mm, r, from, to, there) != 0) {
        memset(there, 1, to - from); /* can't be told: what is missing will turn out to be zeros */
    }
    set(&p->mm, r, to, r->plain_to);
    for (uint32_t k = from; k < to; k++)
        us_entry_registered(p, r, r->first + k, there[k - from] != 0);
    return 0;
}

bool us_plain_probe(us_pager_t *p, us_region_t *r, uint32_t *cursor) {
    uint8_t there[PIECE >> US_BLOCK_MIN_SHIFT];
    const uint32_t from = us_max(*cursor, r->plain_to);
    const uint32_t to = (uint32_t)us_min(r->count, from + (uint64_t)(PIECE >> r->shift));
    *cursor = to;
    if (from >= to || p->mm.cfg.pagemap < 0 || look(&p->mm, r, from, to, there) != 0)
        return false; /* can't be told: what is missing will turn out to be zeros */
    for (uint32_t k = from; k < to; k++) {
        if (there[k - from] == 0)
            us_entry_absent(p, r, r->first + k);
    }
    return to < r->count;
}

bool us_plain_end_some(us_pager_t *p) {
    bool failed = false;
    if (p->mm.plain_until != 0 && us_now_ns() < p->mm.plain_until)
        return false;
    for (uint32_t k = 0; k < p->mm.live; k++) {
        us_region_t *r = p->mm.byfirst[k];
        if (r->plain_from == r->plain_to || !r->active || r->frozen)
            continue;
        if (end_piece(p, r) == 0) {
            p->mm.plain_until = 0;
            return true;
        }
        failed = true; /* another one may do */
    }
    if (failed)
        p->mm.plain_until = us_now_ns() + AGAIN_NS;
    return false;
}

int us_plain_end(us_pager_t *p, us_region_t *r, uint32_t first, uint32_t last) {
    if (r->frozen || r->plain_from == r->plain_to || first >= r->plain_to || last <= r->plain_from)
        return US_DONE;
    const int err = end_piece(p, r);
    return err == 0 || err == -EAGAIN ? US_AGAIN : err; /* and is asked again, when others had their turn */
}

void us_plain_forget(us_mm_t *m, us_region_t *r) { set(m, r, 0, 0); }
