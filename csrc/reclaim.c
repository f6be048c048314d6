/* SPDX-License-Identifier: MIT
 *
 * Copies of clean blocks are given up where their room in a pool is wanted.
 */
#include "reclaim.h"

#include "entry.h"
#include "event.h"
#include "region.h"

/* Where the hand goes on from: an entry that may be in use, of a region. pre: there are regions. */
static us_region_t *turn_hand(us_mm_t *m, us_tier_t *t) {
    us_region_t *r = us_region_of(m, t->kept_hand);
    if (r != NULL)
        return r;
    r = m->byfirst[0]; /* past the last, unless there is one after the gap */
    for (uint32_t k = 0; k < m->live; k++) {
        if (m->byfirst[k]->first >= t->kept_hand) {
            r = m->byfirst[k];
            break;
        }
    }
    t->kept_hand = r->first;
    return r;
}

int us_reclaim(us_pager_t *p, us_tier_t *t, uint64_t bytes) {
    enum { LOOK = 1 << 16 };  /* entries: 1 MiB of the table, 0.1 to 0.2 ms */
    if (t->ops->used(t) == 0) /* who asks again after US_DONE must find more than before */
        return -ENOSPC;
    const uint64_t want = t->ops->used(t) > bytes ? t->ops->used(t) - bytes : 0;
    uint64_t circle = 0;
    uint32_t looked = 0;
    for (uint32_t k = 0; k < p->mm.live; k++)
        circle += p->mm.byfirst[k]->count;
    us_region_t *r = NULL;
    while (t->ops->used(t) > want) {
        if (t->s->kept == 0 || t->kept_passed >= circle) {
            t->kept_passed = 0;
            return -ENOSPC;
        }
        if (looked++ == LOOK) {
            us_go_on(p);
            return US_AGAIN;
        }
        if (r == NULL || t->kept_hand >= r->first + r->count)
            r = turn_hand(&p->mm, t);
        const uint32_t end = r->first + r->count;
        if (t->kept_hand == r->first || t->kept_hand % (US_PAGE / sizeof(us_entry_t)) == 0) {
            const uint32_t at = us_table_seek(&p->mm, t->kept_hand, end);
            t->kept_passed += at - t->kept_hand;
            t->kept_hand = at;
            if (at == end)
                continue;
        }
        const us_entry_t e = p->mm.space.table[t->kept_hand];
        if ((e.flags & US_F_KEPT) && e.state == US_RESIDENT && !(e.flags & US_F_LOCKED) && US_CODEC_OF(e) != US_FILL &&
            us_tier_of(e) == t->id)
            us_entry_uncopy(p, t->kept_hand);
        t->kept_hand++;
        t->kept_passed++;
    }
    t->kept_passed = 0;
    return US_DONE;
}
