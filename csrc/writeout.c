/* SPDX-License-Identifier: MIT
 *
 * The file as a tier: pool to file, and the file's own housekeeping; fetch.c is the way back. All of it is the
 * loop's; the I/O engine only carries bytes.
 *
 *   out    the coldest objects of the pool above, as they are, into a segment's buffer   file_demote
 *          one write; meanwhile the pool's object is the block: a fault is served from it
 *          done: entry unchanged (generation)?  STORED, the pool's object goes.  else: garbage
 *   log    few free segments: victims are read, what lives in them is packed anew    clean
 *
 * No memory is allocated on these ways: the buffers are there from the start. Nothing is decompressed on
 * the way out or in cleaning. Reads have slots and buffers that writes can't use up, so a fault never
 * waits for a write, and a write never needs a fault to be served.
 *
 * Failures. A write that fails: the blocks stay where they were; EIO retires the segment, and when the next
 * write fails too nothing is written for a while; ENOSPC and EDQUOT stop writing for a while at once.
 */
#include "writeout.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "entry.h"
#include "event.h"
#include "fetch.h"
#include "region.h"
#include "sys.h"

enum { SLICE = 64 << 10, GATHER = 128 << 10, PIECE = 64 << 10, LARGE = 64 << 10, THREADS = 4 };
/* KEEP_FREE: segments that only the cleaner may use. AHEAD: that it sees to beyond these, or a 256th of all.
 * POOR: percent of its objects' bytes that may live in a segment that is cleaned: no byte gained costs more than ten. */
enum { KEEP_FREE = 2, AHEAD = 2, AHEAD_PART = 256, POOR = 90 };
enum { READ_BUF = (1 << US_BLOCK_MAX_SHIFT) + 3 * (int)US_PAGE };
#define FULL_NS 1000000000ull
#define PACE_NS 5000000ull
#define GATHER_NS 20000000ull

static const us_tier_ops_t file_ops; /* below: what the file can do as a tier */

/* ---- life ------------------------------------------------------------------------------------------- */

int us_store_open(us_pager_t *p, int fd, uint64_t bytes, uint32_t segment, int engine) {
    us_store_t *s = &p->store;
    uint64_t id = 0;
    if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id)
        return -errno;
    s->fd = fd;
    s->segment = segment;
    s->old_id = -1;
    s->largest = segment - US_SEG_ALIGN - US_OBJ_HEAD;
    int err = us_log_new(&s->log, bytes, segment, id);
    if (err < 0)
        return err;
    s->ring_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->ring_fd < 0)
        return -errno;
    p->place.fd[US_WAKES - 1] = s->ring_fd; /* before there is a fault, so before the monitor looks */
    s->on = true;                           /* us_store_close frees what there is */
    err = us_io_open(&s->io, fd, engine, THREADS, US_READS + 1, US_WRITES, s->ring_fd, &p->mm.space.ring->loop_asleep);
    if (err < 0)
        return err;
    uint8_t *bufs = us_sys_reserve_huge((US_WRITES + 1ull) * segment);
    if (bufs == NULL)
        return -ENOMEM;
    s->old = bufs + (uint64_t)US_WRITES * segment;
    for (int k = 0; k < US_WRITES; k++) {
        us_write_t *w = &s->write[k];
        w->room = segment / 64; /* a header and 32 bytes */
        w->buf = bufs + (uint64_t)k * segment;
        w->record = us_sys_reserve(w->room * sizeof *w->record);
        if (w->record == NULL)
            return -ENOMEM;
    }
    for (int k = 0; k < US_READS; k++) {
        s->read[k].buf = us_sys_reserve(READ_BUF);
        if (s->read[k].buf == NULL)
            return -ENOMEM;
    }
    p->mm.s->swap = (uint64_t)us_log_segments(s->log) * segment;
    us_tier_t *t = &p->tier[US_TIER_FILE];
    *t = (us_tier_t){
        .ops = &file_ops, .id = US_TIER_FILE, .s = &p->mm.s->tier[US_TIER_FILE], .pager = p, .largest = s->largest};
    t->s->budget = p->mm.s->swap;
    for (s->above = &p->tier[1]; s->above->next != NULL; s->above = s->above->next)
        ;
    s->above->next = t;
    return 0;
}

void us_store_close(us_pager_t *p) {
    us_store_t *s = &p->store;
    if (!s->on)
        return;
    if (s->io != NULL)
        us_io_close(s->io);
    us_log_free(s->log);
    close(s->ring_fd);
    s->on = false; /* the buffers go with the process */
}

int us_pager_io_fd(us_pager_t *p) { return p->store.on ? p->store.ring_fd : -1; }
int us_pager_io_engine(us_pager_t *p) { return p->store.on ? us_io_engine(p->store.io) : -1; }
int us_pager_io_inject(us_pager_t *p, int op, int err, uint32_t every) {
    return p->store.on ? us_io_inject(p->store.io, op, err, every) : -EINVAL;
}

/* ---- out -------------------------------------------------------------------------------------------- */

static us_write_t *free_write(us_store_t *s) {
    for (int k = 0; k < US_WRITES; k++) {
        if (!s->write[k].busy && !s->write[k].filling)
            return &s->write[k];
    }
    return NULL;
}

static bool begin(us_store_t *s, us_write_t *w, uint32_t leave) {
    if (us_log_free_segments(s->log) <= leave)
        return false;
    const int64_t id = us_log_open(s->log);
    if (id < 0)
        return false;
    us_pack_begin(&w->pack, s->log, (uint32_t)id, w->buf);
    w->records = w->victims = 0;
    return true;
}

static bool add(us_write_t *w, uint32_t entry, uint16_t gen, uint8_t codec, uint32_t length, uint32_t raw,
                const void *payload, uint64_t from) {
    if (w->records == w->room) {
        w->pack.full = true;
        return false;
    }
    const int64_t off = us_pack_add(&w->pack, entry, gen, codec, length, raw, payload, length >= LARGE);
    if (off < 0)
        return false;
    w->record[w->records++] =
        (us_record_t){.entry = entry, .gen = gen, .size = US_SIZE(codec, length), .off = (uint64_t)off, .from = from};
    return true;
}

static void written(us_pager_t *p, us_write_t *w);

static void submit(us_pager_t *p, us_write_t *w) {
    us_store_t *s = &p->store;
    w->pack.victims = w->victims;
    const uint32_t bytes = us_pack_end(&w->pack);
    w->req = (us_io_req_t){.op = US_IO_WRITE,
                           .buf = w->buf,
                           .off = w->pack.base,
                           .len = bytes,
                           .bulk = true,
                           .user = {(uint64_t)(uintptr_t)w}};
    uint64_t payload = 0;
    for (uint32_t k = 0; k < w->records; k++)
        payload += w->record[k].size & 0xffffffu;
    w->busy = true;
    s->writes++;
    p->mm.s->written += bytes;
    p->mm.s->written_segments++;
    p->mm.s->padding += bytes - payload;
    if (us_io_submit(s->io, &w->req) != 0) { /* can't be: there are as many slots as writes */
        w->req.res = -EAGAIN;
        written(p, w);
    }
    us_io_flush(s->io);
}

/* Adds block i, which is in a pool. false: the segment is full. */
static bool add_from_pool(us_pager_t *p, us_write_t *w, const us_region_t *r, uint32_t i, const void *payload) {
    const us_entry_t e = p->mm.space.table[i];
    const uint32_t len = US_LENGTH_OF(e);
    if (!add(w, i, e.gen, (uint8_t)US_CODEC_OF(e), len, us_block_len(r, i), payload, e.where))
        return false;
    us_entry_moving(p, i);
    us_tier(p, e)->leaving += len;
    p->mm.s->written_objects++;
    p->mm.s->written_object_bytes += len;
    return true;
}

/* Adds up to so many bytes of objects from the cold end of a pool. True: the segment would hold more, and there is. */
static bool add_cold(us_pager_t *p, us_write_t *w, const us_tier_t *from, uint32_t bytes) {
    const uint32_t before = w->pack.used;
    for (uint32_t i = from->cold.head, next; i != US_NONE; i = next) {
        const us_entry_t e = p->mm.space.table[i];
        next = p->mm.node[i].next;
        if (e.flags & US_F_LOCKED)
            continue;
        if (w->pack.used - before >= bytes)
            return true;
        if (!add_from_pool(p, w, us_region_of(&p->mm, i), i, us_object(p, e)))
            break;
    }
    return false;
}

/* Is there enough to fill a segment? Short ones cost the file more than they hold. */
static bool enough(const us_store_t *s, const us_tier_t *from) {
    return from->cold.bytes >= s->segment - s->segment / 8;
}

static bool file_busy(const us_pager_t *p, const us_tier_t *t) {
    const us_store_t *s = &p->store;
    (void)t;
    return s->writes > 0 || s->demoted != NULL || (s->old_id >= 0 && (!s->old_read || s->gathering));
}

static bool file_helps(const us_pager_t *p, const us_tier_t *t, const us_tier_t *from) {
    const us_store_t *s = &p->store;
    if (file_busy(p, t))
        return true;
    return enough(s, from) && s->full_until == 0 && us_log_free_segments(s->log) > KEEP_FREE;
}

static bool clean(us_pager_t *p);

static void old_done(us_store_t *s) {
    us_log_unpin(s->log, (uint64_t)s->old_id * s->segment);
    s->old_id = -1;
}

static void say_full(us_pager_t *p) {
    us_store_t *s = &p->store;
    if (!s->said_full) {
        s->said_full = true;
        us_event(p, (us_event_t){.kind = US_EV_IO, .error = ENOSPC});
    }
}

static void file_flush(us_pager_t *p, us_tier_t *t);

/* Has a thread stood still for a read just now? Then writes make room for the next one. */
static bool wanted(const us_pager_t *p) { return p->demand > 0 || us_now_ns() - p->demand_at < PACE_NS; }

/* Keeps enough segments free. */
static bool file_tend(us_pager_t *p, us_tier_t *t) {
    us_store_t *s = &p->store;
    if (s->full_until != 0 && us_now_ns() >= s->full_until)
        s->full_until = 0;
    if (s->gather != NULL && us_now_ns() - s->gathered > GATHER_NS) /* who began it has gone */
        file_flush(p, t);
    us_io_pace(s->io, wanted(p) ? PIECE : 0);
    return clean(p);
}

/* A slice of a segment; the last one writes it. */
static bool file_demote(us_pager_t *p, us_tier_t *t, us_tier_t *from, bool small) {
    us_store_t *s = &p->store;
    (void)t;
    us_write_t *w = s->demoted;
    if (w == NULL) {
        w = free_write(s);
        if (w == NULL || s->full_until != 0 || (!small && !enough(s, from)) || (s->writes > 0 && wanted(p)))
            return false;
        if (!begin(s, w, KEEP_FREE)) {
            from->demoting = true; /* wanted, whatever the marks say */
            clean(p);
            if (from->cold.head != US_NONE && !file_busy(p, t))
                say_full(p);
            return false;
        }
        s->demoted = w;
        w->filling = true;
    }
    const uint32_t before = w->records;
    if (add_cold(p, w, from, SLICE)) /* it would hold more, and there is more */
        return true;
    s->demoted = NULL;
    w->filling = false;
    if (w->records == 0)
        us_log_abandon(s->log, w->pack.id, false);
    else
        submit(p, w);
    return w->records > before;
}

static bool file_wants(const us_pager_t *p, const us_tier_t *t) {
    (void)t;
    return p->store.demoted != NULL;
}

static void file_flush(us_pager_t *p, us_tier_t *t) {
    us_write_t *w = p->store.gather;
    (void)t;
    if (w != NULL) {
        p->store.gather = NULL;
        w->filling = false;
        submit(p, w);
    }
}

static bool file_room(const us_pager_t *p, const us_tier_t *t, uint32_t len) {
    (void)t;
    return len <= p->store.largest && p->store.full_until == 0 && us_log_free_segments(p->store.log) > KEEP_FREE;
}

static int file_store(us_pager_t *p, us_tier_t *t, us_region_t *r, uint32_t i, const void *payload) {
    us_store_t *s = &p->store;
    if (US_LENGTH_OF(p->mm.space.table[i]) > s->largest)
        return -ENOSPC;
    s->gathered = us_now_ns();
    if (s->gather != NULL && add_from_pool(p, s->gather, r, i, payload))
        return US_DONE;
    file_flush(p, t);
    us_write_t *w = s->writes > 0 && wanted(p) ? NULL : free_write(s);
    if (w == NULL)
        return US_WAIT_ROOM;
    if (!file_room(p, t, 0) || !begin(s, w, KEEP_FREE)) {
        s->above->demoting = true;
        clean(p);
        return file_busy(p, t) ? US_WAIT_ROOM : -ENOSPC;
    }
    s->gather = w;
    w->filling = true;
    return add_from_pool(p, w, r, i, payload) ? US_DONE : -ENOSPC;
}

static void file_free(us_pager_t *p, us_tier_t *t, us_entry_t e) {
    (void)t;
    us_log_dead(p->store.log, us_offset_of(e), US_LENGTH_OF(e));
}

static void written(us_pager_t *p, us_write_t *w) {
    us_store_t *s = &p->store;
    const int res = w->req.res;
    w->busy = false;
    s->writes--;
    if (res == 0)
        us_log_written(s->log, w->pack.id);
    for (uint32_t k = 0; k < w->records; k++) {
        const us_record_t *rec = &w->record[k];
        us_tier_t *from = &p->tier[rec->from >> 56];
        const bool pool = from->pool != NULL;
        const uint32_t len = rec->size & 0xffffffu;
        if (pool)
            from->leaving -= len;
        US_DELAY(US_D_COMMIT);
        if (rec->entry == US_NONE)
            continue;
        if (res != 0) {
            us_entry_unmoved(p, rec->entry, rec->gen, rec->from);
            continue;
        }
        const bool ok = us_entry_moved(p, rec->entry, rec->gen, rec->from, us_where(US_TIER_FILE, rec->off), rec->size);
        p->mm.s->write_garbage += pool && !ok;
        if (!pool && ok) {
            p->mm.s->rewritten += len;
            us_log_moved(s->log, len);
        }
        if (pool && ok) {
            p->tier[US_TIER_FILE].s->came_blocks++;
            p->tier[US_TIER_FILE].s->came += len;
        }
    }
    if (res != 0) {
        p->mm.s->write_errors++;
        const bool full = res == -ENOSPC || res == -EDQUOT;
        us_log_abandon(s->log, w->pack.id, !full);
        if (full) {
            s->full_until = us_now_ns() + FULL_NS;
            say_full(p);
        } else
            us_event(p, (us_event_t){.kind = US_EV_IO, .error = -res});
        if (s->failing) /* a device that is away for a moment must not cost every segment */
            s->full_until = us_now_ns() + FULL_NS;
        s->failing = true;
    } else {
        s->failing = false;
        us_log_settle(s->log, w->pack.id);
    }
    for (uint32_t k = 0; k < w->victims; k++)
        us_log_unpin(s->log, (uint64_t)w->victim[k] * s->segment);
}

/* ---- cleaning ---------------------------------------------------------------------------------------- */

/* Segments that will be free when the cleaner's writes under way are done. */
static uint32_t coming(const us_store_t *s) {
    uint32_t n = 0;
    for (int k = 0; k < US_WRITES; k++)
        n += s->write[k].busy && s->write[k].victims > 0 ? s->write[k].victims - 1 : 0;
    return n;
}

typedef struct us_moving {
    us_pager_t *p;
    us_write_t *w;
    uint32_t bytes;
    bool full, paused;
} us_moving_t;

static bool move_object(void *ctx, uint64_t off, const us_obj_header_t *h, const void *payload, bool ok) {
    us_moving_t *m = ctx;
    us_pager_t *p = m->p;
    if (!ok || h->entry >= p->mm.space.at.table_cap)
        return true; /* what is broken and live shows at its next read */
    const us_entry_t e = p->mm.space.table[h->entry];
    if ((e.state != US_STORED && !(e.flags & US_F_KEPT)) || US_CODEC_OF(e) == US_FILL ||
        e.where != us_where(US_TIER_FILE, off) || e.gen != h->gen)
        return true;
    if (!add(m->w, h->entry, h->gen, h->codec, h->length, h->raw, payload, e.where)) {
        m->full = true;
        p->store.old_at = off;
        return false;
    }
    m->bytes += h->length;
    m->paused = m->bytes >= GATHER;
    p->store.old_at = off + US_OBJ_HEAD + h->length;
    return !m->paused;
}

/* What has been gathered is written; with it go the victims, unless one has more than found room. */
static void finish(us_pager_t *p) {
    us_store_t *s = &p->store;
    us_write_t *w = s->cleaner;
    s->cleaner = NULL;
    w->filling = false;
    submit(p, w);
}

/* The victim is in its buffer: what lives in it goes to the cleaner's write, and the rest of it to the next. A slice
 * at a time; true: call again when no fault waits. */
static bool gather(us_pager_t *p) {
    us_store_t *s = &p->store;
    const uint64_t base = (uint64_t)s->old_id * s->segment;
    for (;;) {
        us_write_t *w = s->cleaner;
        if (w == NULL) {
            w = free_write(s);
            if (w == NULL || !begin(s, w, 0))
                return false; /* when a write is done */
            s->cleaner = w;
            w->filling = true;
        }
        us_moving_t m = {.p = p, .w = w};
        const uint32_t before = w->records;
        const int n = us_seg_walk_from(s->old, s->old_req.len, base, 0, s->old_at, move_object, &m);
        if (w->records > before && (w->victims == 0 || w->victim[w->victims - 1] != (uint32_t)s->old_id)) {
            s->old_moved = true;
            us_log_pin(s->log, base);
            w->victim[w->victims++] = (uint32_t)s->old_id;
        }
        s->gathering = m.paused;
        if (m.paused)
            return true;
        const bool whole = !m.full || w->records == 0;
        if (whole && (n < 0 || !s->old_moved)) /* nothing can be moved out of it: it empties by itself, or never */
            us_log_shun(s->log, (uint32_t)s->old_id);
        if (whole)
            old_done(s);
        if (w->records > 0 && (m.full || w->victims == US_VICTIMS))
            finish(p);
        if (whole)
            return false;
    }
}

/* Cleans as late as can be, since what is left alone loses more of its objects, and what lost most first. What is gathered is
 * not mixed with what comes from the pool: it has been let be for longer, and likely will be. */
static bool clean(us_pager_t *p) {
    us_store_t *s = &p->store;
    if (s->old_id >= 0) {
        if (s->old_read && gather(p))
            return true;
        if (s->old_id >= 0)
            return false;
    }
    const uint32_t free_now = us_log_free_segments(s->log);
    const uint32_t ahead = (uint32_t)us_max(AHEAD, us_log_segments(s->log) / AHEAD_PART);
    if (!s->above->demoting || s->full_until != 0 || free_now + coming(s) > KEEP_FREE + ahead)
        return false;
    const int64_t id = us_log_victim(s->log, POOR);
    if (id < 0) { /* nothing more is gained until something dies; what is gathered makes what room it can */
        if (s->cleaner != NULL && s->cleaner->records > 0 && free_now <= KEEP_FREE) {
            add_cold(p, s->cleaner, s->above, UINT32_MAX);
            finish(p);
        }
        return false;
    }
    s->old_id = id;
    s->old_read = s->old_moved = false;
    s->old_at = 0;
    us_log_pin(s->log, (uint64_t)id * s->segment);
    s->old_req = (us_io_req_t){.op = US_IO_READ,
                               .buf = s->old,
                               .off = (uint64_t)id * s->segment,
                               .len = (uint32_t)us_align_up(us_log_used_in(s->log, (uint32_t)id), US_SEG_ALIGN),
                               .bulk = true,
                               .user = {0, 1}};
    p->mm.s->cleaned_segments++;
    p->mm.s->cleaned_bytes += s->old_req.len;
    if (us_io_submit(s->io, &s->old_req) != 0)
        old_done(s);
    us_io_flush(s->io);
    return false;
}

/* ---- completions ------------------------------------------------------------------------------------ */

static void file_listen(us_pager_t *p, us_tier_t *t, bool on) {
    (void)t;
    us_io_listen(p->store.io, on);
}

static bool file_completed(const us_pager_t *p, const us_tier_t *t) {
    (void)t;
    return us_io_ready(p->store.io);
}

static bool file_pump(us_pager_t *p, us_tier_t *t) {
    us_store_t *s = &p->store;
    bool any = false;
    (void)t;
    for (us_io_req_t *q; (q = us_io_done(s->io)) != NULL; any = true) {
        if (q->op == US_IO_WRITE) {
            written(p, (us_write_t *)(uintptr_t)q->user[0]);
        } else if (q->user[1] == 1) {
            s->old_read = q->res == 0;
            if (q->res != 0) { /* what lives there shows at its next read */
                us_log_shun(s->log, (uint32_t)s->old_id);
                old_done(s);
            }
        } else {
            us_store_fetched(p, (us_read_t *)(uintptr_t)q->user[0]);
        }
    }
    return any;
}

static void file_arrived(us_pager_t *p, us_tier_t *t, us_entry_t e) {
    (void)t;
    us_log_live(p->store.log, us_offset_of(e), US_LENGTH_OF(e));
}

static uint64_t file_used(const us_tier_t *t) { return us_log_live_bytes(t->pager->store.log); }

static void file_publish(us_pager_t *p, us_tier_t *t) {
    us_stats_t *s = p->mm.s;
    s->swap_used = t->s->allocated = us_log_used_bytes(p->store.log);
    s->swap_live = t->s->used = us_log_live_bytes(p->store.log);
    for (int k = 0; k < US_IO_OPS * US_IO_KINDS; k++)
        s->injected[US_INJECT_READ + k] =
            us_io_injected(p->store.io, k / US_IO_KINDS, US_IO_SHORT - 1 + k % US_IO_KINDS);
}

static const us_tier_ops_t file_ops = {.demote = file_demote,
                                       .wants = file_wants,
                                       .store = file_store,
                                       .flush = file_flush,
                                       .load = us_store_load,
                                       .free = file_free,
                                       .room = file_room,
                                       .helps = file_helps,
                                       .tend = file_tend,
                                       .busy = file_busy,
                                       .arrived = file_arrived,
                                       .used = file_used,
                                       .publish = file_publish,
                                       .fetch = us_store_fetch,
                                       .fetch_run = us_store_fetch_run,
                                       .verify = us_store_verify,
                                       .submit = us_store_submit,
                                       .swapped_in = us_store_swapped_in,
                                       .pump = file_pump,
                                       .completed = file_completed,
                                       .listen = file_listen};
