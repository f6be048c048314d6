/* SPDX-License-Identifier: MIT
 *
 * The way in from the file. A read has a slot and a buffer of its own that writes can't use up.
 *
 *   wanted now       one object; the loop itself checks, decompresses, copies         us_store_fetch
 *   ahead            several that lie near each other; workers do that                us_store_fetch_run
 *   to another tier  one object, whose bytes that tier stores                         us_store_load
 *   only to see      one object, which stays where it is                              us_store_verify
 *
 * Its blocks are locked until the read is over, and its segment is pinned. A fault on a block that is not being
 * swapped in waits for that, and asks again.
 *
 * Failures. A read of one object that fails, or an object that is not what its entry says, is tried again READ_TRIES
 * times; then the block is LOST: its pages are poisoned, a touch is SIGBUS, and a line says which. What was read ahead
 * and is not right stays out, and is read by itself when it is wanted.
 */
#include "fetch.h"

#include "entry.h"
#include "install.h"
#include "mm.h"
#include "record.h"
#include "tier.h"
#include "sys.h"
#include "turn.h"

enum { READ_TRIES = 3, RUN_MAX = 256 << 10, GAP_MAX = 64 << 10 }; /* bytes: of a run of objects; between two of them */

/* us_store_submit hands it over. */
static bool start_read(us_pager_t *p, us_read_t *rd) {
    rd->req = (us_io_req_t){
        .op = US_IO_READ, .buf = rd->buf, .off = rd->from, .len = rd->bytes, .user = {(uint64_t)(uintptr_t)rd}};
    p->mm.s->reads++;
    p->mm.s->read_bytes += rd->bytes;
    rd->begun = us_now_ns();
    if (rd->demand)
        p->demand_at = rd->begun;
    return us_io_submit(p->store.io, &rd->req) == 0;
}

void us_store_submit(us_pager_t *p, us_tier_t *t) {
    (void)t;
    us_io_flush(p->store.io);
}

static us_read_t *free_read(us_store_t *s, bool demand) {
    if (s->reads >= (demand ? US_READS : US_READS_AHEAD))
        return NULL;
    for (int k = 0; k < US_READS; k++) {
        if (!s->read[k].busy)
            return &s->read[k];
    }
    return NULL;
}

/* The parts, and with them `from` and `bytes`, are added after. What stands behind the parts is not read before it is
 * written. */
static void begin_read(us_read_t *rd, const us_region_t *r) {
    rd->region = r->id;
    rd->tries = rd->parts = 0;
    rd->write = rd->demand = rd->verify = false;
    rd->to = 0;
    rd->since = 0;
}

static void add_part(us_mm_t *m, us_read_t *rd, uint32_t i) {
    const us_entry_t e = m->space.table[i];
    uint64_t from;
    uint32_t bytes;
    us_obj_span(us_offset_of(e), US_LENGTH_OF(e), &from, &bytes);
    uint64_t end = from + bytes;
    if (rd->parts > 0) {
        end = us_max(end, rd->from + rd->bytes);
        from = us_min(from, rd->from);
    }
    rd->from = from;
    rd->bytes = (uint32_t)(end - from);
    rd->part[rd->parts++] = (us_part_t){
        .off = us_offset_of(e), .entry = i, .length = US_LENGTH_OF(e), .gen = e.gen, .codec = (uint8_t)US_CODEC_OF(e)};
}

/* Its blocks are locked until they have been swapped in. */
static bool post_read(us_pager_t *p, us_region_t *r, us_read_t *rd) {
    us_store_t *s = &p->store;
    if (!start_read(p, rd))
        return false;
    rd->busy = true;
    rd->left = rd->parts;
    s->reads++;
    p->demand += rd->demand;
    s->verifying += rd->verify;
    for (uint32_t k = 0; k < rd->parts; k++) {
        us_log_pin(s->log, rd->part[k].off);
        r->jobs++;
        if (rd->to != 0 || rd->verify)
            us_entry_lock(p, rd->part[k].entry);
        else
            us_entry_reserve(p, r, rd->part[k].entry);
    }
    return true;
}

bool us_store_fetch(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, bool write, uint64_t since) {
    (void)t;
    us_read_t *rd = free_read(&p->store, true);
    if (rd == NULL)
        return false;
    begin_read(rd, r);
    add_part(&p->mm, rd, i);
    rd->write = write;
    rd->demand = true;
    rd->since = since;
    if (!post_read(p, r, rd))
        return false;
    us_entry_flag(&p->mm, i, 0, US_F_WAKE);
    us_io_flush(p->store.io);
    return true;
}

/* Can block i be swapped in, and does it lie by what rd has? Several workers compress what leaves, so neighbours lie
 * next to each other in the file, but not always in their order. */
static bool goes_on(const us_pager_t *p, const us_read_t *rd, uint32_t i) {
    const us_entry_t e = p->mm.space.table[i];
    const uint64_t from = rd->from, end = rd->from + rd->bytes;
    const uint64_t off = us_offset_of(e), behind = off + US_OBJ_HEAD + US_LENGTH_OF(e);
    return rd->parts < US_PARTS && e.state == US_STORED && !(e.flags & US_F_LOCKED) && off <= end + GAP_MAX &&
           behind + GAP_MAX >= from && off / p->store.segment == rd->part[0].off / p->store.segment &&
           us_max(behind, end) - us_min(off, from) <= RUN_MAX;
}

uint32_t us_store_fetch_run(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, uint32_t end, bool write,
                            uint64_t most) {
    (void)t;
    us_read_t *rd = free_read(&p->store, false);
    if (rd == NULL)
        return 0;
    /* Promised, not looked at: a handler may take the same room meanwhile. */
    uint64_t bytes = us_block_len(r, i);
    if (!us_mm_admit(&p->mm, bytes, most))
        return 0;
    begin_read(rd, r);
    rd->write = write;
    add_part(&p->mm, rd, i);
    for (uint32_t k = i + 1; k < end && goes_on(p, rd, k); k++) {
        if (!us_mm_admit(&p->mm, bytes + us_block_len(r, k), most)) {
            if (!us_mm_admit(&p->mm, bytes, most))
                return 0;
            break;
        }
        bytes += us_block_len(r, k);
        add_part(&p->mm, rd, k);
    }
    return post_read(p, r, rd) ? rd->parts : 0;
}

/* A place is promised in which a worker may compress it anew, so that who reads need not wait for one. */
int us_store_load(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, us_tier_t *to) {
    (void)t;
    if (p->recompressions >= US_RECOMPRESSIONS)
        return US_WAIT_ROOM;
    const int room = us_tier_make_room(p, to, US_LENGTH_OF(p->mm.space.table[i]));
    if (room != US_DONE)
        return room == -ENOSPC && p->recompressions > 0 ? US_WAIT_ROOM : room;
    us_read_t *rd = free_read(&p->store, false);
    if (rd == NULL)
        return US_WAIT_ROOM;
    begin_read(rd, r);
    add_part(&p->mm, rd, i);
    rd->to = (uint8_t)to->id;
    if (!post_read(p, r, rd))
        return US_WAIT_ROOM;
    p->recompressions++;
    return US_DONE;
}

bool us_store_verify(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i) {
    (void)t;
    us_read_t *rd = p->store.verifying < US_READS_VERIFY ? free_read(&p->store, false) : NULL;
    if (rd == NULL)
        return false;
    begin_read(rd, r);
    add_part(&p->mm, rd, i);
    rd->verify = true;
    return post_read(p, r, rd);
}

/* A part is done with: its block is not locked any more. Whoever waits for the block finds it there, or asks again. */
static void end_part(us_pager_t *p, us_region_t *r, us_read_t *rd, const us_part_t *part, bool wake) {
    us_store_t *s = &p->store;
    r->jobs--;
    us_log_unpin(s->log, part->off);
    if (wake)
        us_wake(&p->mm, r, us_block_addr(r, part->entry), us_block_len(r, part->entry));
    us_record_waited(&p->mm, part->entry, 0);
    if (--rd->left == 0) {
        rd->busy = false;
        s->reads--;
        p->demand -= rd->demand;
        s->verifying -= rd->verify;
    }
}

static bool unlock_part(us_pager_t *p, us_region_t *r, const us_part_t *part) {
    const bool wake = (p->mm.space.table[part->entry].flags & US_F_WAKE) != 0;
    us_entry_unreserve(p, r, part->entry);
    return wake;
}

static const uint8_t *object_of(const us_read_t *rd, const us_part_t *part) { return rd->buf + (part->off - rd->from); }

static int check_part(us_pager_t *p, const us_read_t *rd, const us_part_t *part) {
    return us_log_check(p->store.log, part->off, object_of(rd, part), rd->bytes - (uint32_t)(part->off - rd->from),
                        part->entry, part->gen, part->length);
}

/* The block's bytes, by the loop itself: in *src, which is the read's buffer or p->raw. */
static int unpack_part(us_pager_t *p, const us_region_t *r, const us_read_t *rd, const us_part_t *part,
                       const uint8_t **src) {
    const uint32_t raw = us_block_len(r, part->entry);
    *src = object_of(rd, part) + US_OBJ_HEAD;
    if (part->codec == US_CODEC_NONE)
        return part->length == raw ? 0 : -EILSEQ;
    const int err = us_decompress(p->codec, part->codec, *src, part->length, p->raw, raw);
    *src = p->raw;
    return err;
}

/* Copies in what was checked. */
static int swap_in_part(us_pager_t *p, us_region_t *r, us_read_t *rd, const us_part_t *part, bool write, bool *wake) {
    const uint8_t *src;
    const int err = unpack_part(p, r, rd, part, &src);
    if (err != 0)
        return err;
    *wake = unlock_part(p, r, part);
    const int res = us_install_copy(p, r, part->entry, write, src);
    if (res < 0) /* unmapped by the user: there is nowhere to put it, and nobody to miss it */
        us_entry_swap_in(p, r, part->entry, false);
    if (res != US_DONE)
        return 0;
    *wake = false; /* the copy has woken all whose faults were read, and no other was since */
    if (rd->since != 0)
        us_record(p, US_KIND_STORED, part->entry, write, rd->since);
    else
        us_trace_ahead(p, r, part->entry);
    return 0;
}

static void fetched_one(us_pager_t *p, us_region_t *r, us_read_t *rd) {
    const us_part_t *part = &rd->part[0];
    const uint32_t i = part->entry;
    const uint8_t *src;
    bool wake = false;
    if (rd->demand)
        us_place_read(&p->place, us_now_ns() - rd->begun, us_server_is_loop(&p->servers));
    int err = rd->req.res;
    if (err == 0)
        err = check_part(p, rd, part);
    if (err == 0 && rd->verify)
        err = unpack_part(p, r, rd, part, &src);
    else if (err == 0 && rd->to == 0)
        err = swap_in_part(p, r, rd, part, rd->write, &wake);
    if (err != 0 && ++rd->tries < READ_TRIES) {
        p->mm.s->read_retries++;
        if (start_read(p, rd)) {
            us_io_flush(p->store.io);
            return;
        }
    }
    if (rd->to != 0 || rd->verify) {
        wake = (p->mm.space.table[i].flags & US_F_WAKE) != 0;
        us_entry_unlock(p, i);
        p->recompressions -= rd->to != 0;
        if (err == 0 && rd->to != 0) { /* if there is no room for it any more it stays in the file */
            us_tier_t *to = &p->tier[rd->to];
            to->ops->store(p, to, r, i, object_of(rd, part) + US_OBJ_HEAD);
            to->ops->flush(p, to);
        }
    } else if (err != 0) {
        wake = unlock_part(p, r, part);
    }
    /* Cleaning may have moved it meanwhile: who waits for it reads it where it lies now. */
    if (err != 0 && p->mm.space.table[i].where == us_where(US_TIER_FILE, part->off))
        us_install_lose(p, r, i, wake);
    end_part(p, r, rd, part, wake);
}

/* Workers decompress and copy. What can't be read or is not what it should be stays out: a fault reads it by itself. */
static void fetched_run(us_pager_t *p, us_region_t *r, us_read_t *rd) {
    const uint32_t parts = rd->parts;
    bool posted = false;
    for (uint32_t k = 0; k < parts; k++) {
        const us_part_t *part = &rd->part[k];
        bool wake = false;
        us_job_t *j = NULL;
        if (rd->req.res != 0 || check_part(p, rd, part) != 0) {
            p->mm.s->read_retries++;
            wake = unlock_part(p, r, part);
        } else if (p->crew.idle_n > US_JOBS / 4 && (j = us_crew_job(&p->crew)) != NULL) {
            const uint32_t n = (uint32_t)(rd - p->store.read) * US_PARTS + k;
            us_install_job(&p->mm, r, j, part->entry, !rd->write);
            j->codec = part->codec;
            j->len = part->length;
            j->src = object_of(rd, part) + US_OBJ_HEAD;
            j->from = US_TIER_FILE;
            j->part = n;
            us_crew_post(&p->crew, j);
            posted = true;
            continue;
        } else if (swap_in_part(p, r, rd, part, rd->write, &wake) != 0) {
            wake = unlock_part(p, r, part);
        }
        end_part(p, r, rd, part, wake);
    }
    if (posted)
        us_crew_ring(&p->crew);
}

void us_store_swapped_in(us_pager_t *p, us_tier_t *t, us_region_t *r, us_job_t *j) {
    (void)t;
    us_read_t *rd = &p->store.read[j->part / US_PARTS];
    const us_part_t *part = &rd->part[j->part % US_PARTS];
    bool wake = false;
    if (j->status == -EEXIST || j->status == -ENOENT) { /* a page was there, or it is several mappings */
        if (swap_in_part(p, r, rd, part, true, &wake) != 0)
            wake = unlock_part(p, r, part);
    } else {
        wake = unlock_part(p, r, part);
        if (j->status == 0) { /* who has written to it since the copy waits, and is not woken by that */
            us_entry_swap_in(p, r, part->entry, j->clean);
            us_trace_ahead(p, r, part->entry);
            us_record_waited(&p->mm, part->entry, j->copied);
        }
    }
    end_part(p, r, rd, part, wake);
}

void us_store_fetched(us_pager_t *p, us_read_t *rd) {
    us_region_t *r = p->mm.region[rd->region];
    if (rd->parts == 1 && (rd->demand || rd->to != 0 || rd->verify))
        fetched_one(p, r, rd);
    else
        fetched_run(p, r, rd);
}
