/* SPDX-License-Identifier: MIT
 *
 * Bytes into pages: what a block holds, copied in and committed; and what is done when they can't be had.
 */
#include "install.h"

#include <string.h>

#include "entry.h"
#include "event.h"
#include "mm.h"
#include "policy.h"
#include "sys.h"
#include "turn.h"

/* ---- what a block holds ------------------------------------------------------------------------------ */

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
    case US_EMPTY: return p->zero;
    case US_FILLED: return fill_bytes(p, e.where, len);
    case US_OUTBOX: return p->mm.space.outbox + e.where * US_PAGE;
    default: break;
    }
    const uint8_t *object = us_object(p, e);
    if (US_CODEC_OF(e) == US_CODEC_NONE)
        return object;
    if (us_decompress(p->codec, (int)US_CODEC_OF(e), object, US_LENGTH_OF(e), p->raw, len) != 0)
        return NULL;
    return p->raw;
}

/* ---- bytes that can't be had ------------------------------------------------------------------------- */

/* A touch of the range is SIGBUS from here on, but for pages that a copy which was cut short has left. */
int us_install_mark(const us_region_t *r, uint64_t addr, uint64_t len) {
    int err = us_sys_poison(r->uffd, addr, len);
    if (err != -EEXIST && err != -ENOENT)
        return err;
    for (uint64_t off = 0; off < len; off += US_PAGE) {
        err = us_sys_poison(r->uffd, addr + off, US_PAGE);
        if (err != 0 && err != -EEXIST && err != -ENOENT) /* there already; unmapped by the user */
            return err;
    }
    return 0;
}

/* Kernels before 6.6 can't mark pages. Then who waits for the block would wait for ever, and flags say so:
 * the process ends. One that nobody waits for is let be until somebody does. */
void us_install_lose(us_pager_t *p, us_region_t *r, uint32_t i, bool wanted) {
    const uint64_t addr = us_block_addr(r, i);
    const uint32_t len = us_block_len(r, i);
    const int tier = us_tier_of(p->mm.space.table[i]);
    us_entry_lost(p, r, i);
    const int err = us_install_mark(r, addr, len);
    us_event(p, (us_event_t){.kind = US_EV_LOST,
                             .entry = i,
                             .addr = addr,
                             .error = wanted ? -err : 0,
                             .region = r->id,
                             .offset = addr - r->addr,
                             .length = len,
                             .tier = (uint32_t)tier});
}

/* ---- into pages -------------------------------------------------------------------------------------- */

static int unprotect_range(const us_region_t *r, uint64_t addr, uint64_t len) {
    int err = -EAGAIN;
    for (int tries = 0; tries < US_TRIES && err == -EAGAIN; tries++)
        err = us_sys_protect(r->uffd, addr, len, false);
    return err;
}

/* Lifts a block's protection. Kernels before 6.4 refuse a range of several mappings or with holes: then page by page. */
static int unprotect(const us_region_t *r, uint32_t i) {
    const uint64_t addr = us_block_addr(r, i), len = us_block_len(r, i);
    int err = unprotect_range(r, addr, len);
    if (err != -ENOENT)
        return err;
    for (uint64_t off = 0; off < len; off += US_PAGE) {
        const int page = unprotect_range(r, addr + off, US_PAGE);
        if (page != -ENOENT && (err = page) != 0)
            return err;
    }
    return err;
}

/* Copies a block's bytes in and commits: US_DONE, US_AGAIN, or -errno when the memory is gone. */
int us_install_copy(us_pager_t *p, us_region_t *r, uint32_t i, bool write, const uint8_t *src) {
    const uint32_t len = us_block_len(r, i);
    const uint64_t dst = us_block_addr(r, i);
    bool clean = !write && us_policy_clean(r, false), was_there = false, any = false, holes = false;
    uint64_t off = 0, step = len;
    int tries = 0;
    while (off < len) {
        uint64_t done;
        int err = us_sys_copy(r->uffd, dst + off, src + off, us_min(step, len - off), clean, &done);
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
            p->mm.s->copy_retries++;
        } else if (err == -EAGAIN || err == -ENOMEM) {
            return US_AGAIN;
        } else {
            return err; /* ENOENT, ESRCH: the memory or the process is gone */
        }
    }
    if (was_there) { /* what is there may be protected, and whoever wants it unprotected (a pin) must find it so */
        if (unprotect(r, i) == -EAGAIN)
            return US_AGAIN;
        clean = false;
    }
    us_entry_swap_in(p, r, i, clean);
    if (was_there || holes) /* COPY has woken only who waits for what it has copied */
        us_wake(&p->mm, r, dst, len);
    return US_DONE;
}

int us_install(us_pager_t *p, us_region_t *r, uint32_t i, bool write) {
    const us_entry_t e = p->mm.space.table[i];
    const uint32_t len = us_block_len(r, i);
    const uint8_t *src = bytes_of(p, e, len);
    if (src == NULL) { /* the pool's memory is not what it was */
        us_install_lose(p, r, i, true);
        return US_DONE;
    }
    return us_install_copy(p, r, i, write, src);
}

bool us_install_intact(us_pager_t *p, us_region_t *r, uint32_t i) {
    const us_entry_t e = p->mm.space.table[i];
    const uint32_t len = us_block_len(r, i);
    return US_CODEC_OF(e) == US_CODEC_NONE ? US_LENGTH_OF(e) == len : bytes_of(p, e, len) != NULL;
}

int us_install_unprotect(us_pager_t *p, us_region_t *r, uint32_t i) {
    const int err = unprotect(r, i);
    if (err == -EAGAIN)
        return US_AGAIN;
    if (err != 0)
        return err;
    if (p->mm.space.table[i].flags & US_F_CLEAN)
        us_entry_dirty(p, i);
    return US_DONE;
}

/* ---- by a worker ------------------------------------------------------------------------------------- */

void us_install_job(us_mm_t *m, us_region_t *r, us_job_t *j, uint32_t i, bool clean) {
    j->kind = US_JOB_SWAP_IN;
    j->clean = clean;
    j->entry = i;
    j->region = r->id;
    j->raw = us_block_len(r, i);
    j->dst = us_block_addr(r, i);
    j->uffd = r->uffd;
    j->gen = m->space.table[i].gen;
    j->word = 0;
    j->src = NULL;
    j->from = 0;
}

/* Where a worker finds the bytes of a block that is EMPTY, FILLED or POOLED. */
void us_install_bytes(us_pager_t *p, us_job_t *j, uint32_t i) {
    const us_entry_t e = p->mm.space.table[i];
    if (e.state == US_POOLED) {
        j->codec = (uint8_t)US_CODEC_OF(e);
        j->len = US_LENGTH_OF(e);
        j->src = us_object(p, e);
    } else {
        j->codec = US_FILL;
        j->word = e.state == US_FILLED ? e.where : 0;
    }
}

/* Hands block i to a worker. false: it can't be had now without waiting. */
bool us_install_ahead(us_pager_t *p, us_region_t *r, uint32_t i, bool clean) {
    const uint32_t len = us_block_len(r, i);
    if (p->crew.idle_n <= US_JOBS / 4 || !us_mm_admit(&p->mm, len, p->mm.cfg.limit) || !us_take(&p->mm, r, i))
        return false;
    us_job_t *j = us_crew_job(&p->crew);
    us_install_job(&p->mm, r, j, i, clean);
    us_install_bytes(p, j, i);
    us_entry_reserve(p, r, i);
    us_give(&p->mm, r, i);
    r->jobs++;
    us_crew_post(&p->crew, j);
    return true;
}
