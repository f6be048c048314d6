/* SPDX-License-Identifier: MIT
 *
 * The second tier: pool to file, file to pages, and the file's own housekeeping. All of it is the loop's;
 * the I/O engine only carries bytes.
 *
 *   out    the coldest objects of the pool, as they are, packed into a segment buffer    us_store_out
 *          one write; meanwhile the pool's object is the block: a fault is served from it
 *          done: entry unchanged (generation)?  STORED, the pool's object goes.  else: garbage
 *   in     the aligned span that holds the object, into a buffer of the reads' own       us_store_fetch
 *          done: checked, decompressed, copied, RESIDENT; the file's object stays as the clean block's copy
 *   log    few free segments: the poorest is read, what lives is packed into a new one   compact
 *
 * No memory is allocated on these ways: the buffers are there from the start. Nothing is decompressed on
 * the way out or in compaction. Reads have slots and buffers that writes can't use up, so a fault never
 * waits for a write, and a write never needs a fault to be served.
 *
 * Failures. A write that fails: the blocks stay where they were; EIO retires the segment, and when the next
 * write fails too nothing is written for a while; ENOSPC and EDQUOT stop writing for a while at once. A read that fails, or an object that is not what its entry says: tried again
 * READ_TRIES times, then the block is LOST: its pages are poisoned, a touch is SIGBUS, and a line says which.
 */
#include "pager.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "sys.h"

enum { READ_TRIES = 3, LARGE = 64 << 10, KEEP_FREE = 2, POOR = 75, THREADS = 4 };
enum { READ_BUF = (1 << US_BLOCK_MAX_SHIFT) + 3 * (int)US_PAGE };
#define FULL_NS 1000000000ull
#define FROM_POOL UINT64_MAX

static void *reserve(uint64_t len) {
    void *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return m == MAP_FAILED ? NULL : m;
}

/* ---- life ------------------------------------------------------------------------------------------- */

int us_store_open(us_pager_t *p, int fd, uint64_t bytes, uint32_t segment, int engine) {
    us_store_t *s = &p->store;
    uint64_t id = 0;
    if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id)
        return -errno;
    s->fd = fd;
    s->segment = segment;
    s->old_id = -1;
    s->mark_high = p->cfg.pool - p->cfg.pool / 8;
    s->mark_low = p->cfg.pool - p->cfg.pool / 4;
    int err = us_log_new(&s->log, bytes, segment, id);
    if (err < 0)
        return err;
    s->ring_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->ring_fd < 0)
        return -errno;
    p->place.fd[US_WAKES - 1] = s->ring_fd; /* before there is a fault, so before the warden looks */
    s->on = true; /* us_store_close frees what there is */
    err = us_io_open(&s->io, fd, engine, THREADS, US_READS + 1, US_WRITES, s->ring_fd,
                     &p->space.ring->loop_asleep);
    if (err < 0)
        return err;
    s->old = reserve(segment);
    for (int k = 0; k < US_WRITES; k++) {
        us_write_t *w = &s->write[k];
        w->room = segment / 64; /* a header and 32 bytes */
        w->buf = reserve(segment);
        w->record = reserve(w->room * sizeof *w->record);
        if (w->buf == NULL || w->record == NULL)
            return -ENOMEM;
    }
    for (int k = 0; k < US_READS; k++) {
        s->read[k].buf = reserve(READ_BUF);
        if (s->read[k].buf == NULL)
            return -ENOMEM;
    }
    p->s->swap = (uint64_t)us_log_segments(s->log) * segment;
    return s->old == NULL ? -ENOMEM : 0;
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
        if (!s->write[k].busy)
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
    w->records = 0;
    w->compacting = false;
    return true;
}

static bool add(us_write_t *w, uint32_t entry, uint16_t gen, uint8_t codec, uint32_t length, uint32_t raw,
                const void *payload, uint64_t from) {
    if (w->records == w->room)
        return false;
    const int64_t off = us_pack_add(&w->pack, entry, gen, codec, length, raw, payload, length >= LARGE);
    if (off < 0)
        return false;
    w->record[w->records++] =
        (us_record_t){.entry = entry, .gen = gen, .length = length, .off = (uint64_t)off, .from = from};
    return true;
}

static void written(us_pager_t *p, us_write_t *w);

static void submit(us_pager_t *p, us_write_t *w) {
    us_store_t *s = &p->store;
    const uint32_t bytes = us_pack_end(&w->pack);
    w->req = (us_io_req_t){.op = US_IO_WRITE,
                           .buf = w->buf,
                           .off = w->pack.base,
                           .len = bytes,
                           .user = {(uint64_t)(uintptr_t)w}};
    uint64_t payload = 0;
    for (uint32_t k = 0; k < w->records; k++) {
        payload += w->record[k].length;
        s->writing += w->record[k].from == FROM_POOL ? w->record[k].length : 0;
    }
    w->busy = true;
    s->writes++;
    p->s->written += bytes;
    p->s->written_segments++;
    p->s->padding += bytes - payload;
    if (us_io_submit(s->io, &w->req) != 0) { /* can't be: there are as many slots as writes */
        w->req.res = -EAGAIN;
        written(p, w);
    }
    us_io_flush(s->io);
}

/* Adds objects from the cold end of the pool until the segment is full. Returns how many. */
static uint32_t add_cold(us_pager_t *p, us_write_t *w) {
    const uint32_t before = w->records;
    for (uint32_t i = p->cold.head, next; i != US_NONE; i = next) {
        const us_entry_t e = p->space.table[i];
        next = p->node[i].next;
        if (e.flags & US_F_LOCKED)
            continue;
        const us_region_t *r = us_region_of(p, i);
        if (!add(w, i, e.gen, (uint8_t)US_CODEC_OF(e), US_LENGTH_OF(e), us_block_len(r, i),
                 us_pool_at(p->pool, us_offset_of(e)), FROM_POOL))
            break;
        us_policy_warm(p, i);
        us_entry_t now = p->space.table[i];
        now.flags |= US_F_WRITING;
        us_entry_store(&p->space.table[i], now);
        p->s->written_objects++;
        p->s->written_object_bytes += US_LENGTH_OF(e);
    }
    return w->records - before;
}

/* Writes one segment. false: there was nothing to write, or no segment for it. */
static bool write_cold(us_pager_t *p, us_write_t *w) {
    us_store_t *s = &p->store;
    if (!begin(s, w, KEEP_FREE))
        return false;
    if (add_cold(p, w) == 0) {
        us_log_abandon(s->log, w->pack.id, false);
        return false;
    }
    submit(p, w);
    return true;
}

/* Is there enough to fill a segment? Short ones cost the file more than they hold. */
static bool enough(const us_pager_t *p) { return p->cold.bytes >= p->store.segment - p->store.segment / 8; }

bool us_store_helps(const us_pager_t *p) {
    const us_store_t *s = &p->store;
    if (!s->on)
        return false;
    if (s->writes > 0 || s->old_id >= 0)
        return true;
    return enough(p) && s->full_until == 0 && us_log_free_segments(s->log) > KEEP_FREE;
}

static void compact(us_pager_t *p);

static void old_done(us_store_t *s) {
    us_log_unpin(s->log, (uint64_t)s->old_id * s->segment);
    s->old_id = -1;
}

static void say_full(us_pager_t *p) {
    us_store_t *s = &p->store;
    s->full_until = us_now_ns() + FULL_NS;
    if (!s->said_full) {
        s->said_full = true;
        us_event(p, (us_event_t){.kind = US_EV_IO, .flags = ENOSPC});
    }
}

void us_store_out(us_pager_t *p) {
    us_store_t *s = &p->store;
    if (!s->on)
        return;
    if (s->full_until != 0 && us_now_ns() >= s->full_until)
        s->full_until = 0;
    if (us_pool_used(p->pool) + p->pending > s->mark_high)
        s->out = true;
    compact(p);
    while (s->out && s->full_until == 0 && enough(p)) {
        if (us_pool_used(p->pool) + p->pending - s->writing <= s->mark_low) {
            s->out = false;
            break;
        }
        us_write_t *w = free_write(s);
        if (w == NULL)
            break;
        if (!write_cold(p, w)) {
            if (p->cold.head != US_NONE && us_log_free_segments(s->log) <= KEEP_FREE && s->old_id < 0 &&
                s->writes == 0)
                say_full(p);
            s->out = p->cold.head != US_NONE;
            break;
        }
    }
}

bool us_store_squeeze(us_pager_t *p) {
    us_store_t *s = &p->store;
    if (!s->on)
        return false;
    us_store_out(p);
    us_write_t *w = free_write(s);
    if (s->writes == 0 && s->full_until == 0 && w != NULL)
        write_cold(p, w);
    return s->writes > 0;
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
        const bool pool = rec->from == FROM_POOL;
        if (pool)
            s->writing -= rec->length;
        US_DELAY(US_D_COMMIT);
        if (res != 0) {
            const us_entry_t e = p->space.table[rec->entry];
            if (pool && e.state == US_POOLED && (e.flags & US_F_WRITING)) {
                us_policy_warm(p, rec->entry);
                us_policy_cold_first(p, rec->entry);
            }
            continue;
        }
        const bool ok = pool ? us_entry_stored(p, rec->entry, rec->gen, rec->off)
                             : us_entry_rewritten(p, rec->entry, rec->gen, rec->from, rec->off);
        p->s->write_garbage += pool && !ok;
        p->s->rewritten += !pool && ok ? rec->length : 0;
    }
    if (res != 0) {
        p->s->write_errors++;
        const bool full = res == -ENOSPC || res == -EDQUOT;
        us_log_abandon(s->log, w->pack.id, !full);
        if (full)
            say_full(p);
        else
            us_event(p, (us_event_t){.kind = US_EV_IO, .flags = (uint32_t)-res});
        if (s->failing) /* a device that is away for a moment must not cost every segment */
            s->full_until = us_now_ns() + FULL_NS;
        s->failing = true;
    } else {
        s->failing = false;
        us_log_settle(s->log, w->pack.id);
    }
    if (w->compacting)
        old_done(s);
}

/* ---- compaction ------------------------------------------------------------------------------------- */

typedef struct us_moving {
    us_pager_t *p;
    us_write_t *w;
    bool full;
} us_moving_t;

static bool move_object(void *ctx, uint64_t off, const us_obj_header_t *h, const void *payload, bool ok) {
    us_moving_t *m = ctx;
    us_pager_t *p = m->p;
    if (!ok || h->entry >= p->space.at.table_cap)
        return true; /* what is broken and live shows at its next read */
    const us_entry_t e = p->space.table[h->entry];
    if ((e.state != US_STORED && !(e.flags & US_F_KEPT)) || US_CODEC_OF(e) == US_FILL ||
        e.where != us_where(US_TIER_FILE, off) || e.gen != h->gen)
        return true;
    if (!add(m->w, h->entry, h->gen, h->codec, h->length, h->raw, payload, off)) {
        m->full = true;
        return false;
    }
    return true;
}

/* Is the new segment's content less than what the old one held? Else nothing would be won by writing it. */
static bool gains(const us_store_t *s, const us_write_t *w) {
    return (uint64_t)w->pack.used * 100 <= (uint64_t)us_log_used_in(s->log, (uint32_t)s->old_id) * POOR;
}

/* One segment at a time: read, then packed into a new one; its last live byte frees it. */
static void compact(us_pager_t *p) {
    us_store_t *s = &p->store;
    if (s->old_id < 0) {
        if (s->failing && s->full_until != 0)
            return;
        const uint32_t n = us_log_segments(s->log), want = (uint32_t)us_max(KEEP_FREE + 2, n / 8);
        if (us_log_free_segments(s->log) > want)
            return;
        const int64_t id = us_log_poorest(s->log, POOR);
        if (id < 0)
            return;
        s->old_id = id;
        s->old_read = false;
        us_log_pin(s->log, (uint64_t)id * s->segment);
        s->old_req = (us_io_req_t){.op = US_IO_READ,
                                   .buf = s->old,
                                   .off = (uint64_t)id * s->segment,
                                   .len = s->segment,
                                   .user = {0, 1}};
        if (us_io_submit(s->io, &s->old_req) != 0)
            old_done(s);
        us_io_flush(s->io);
        return;
    }
    us_write_t *w = free_write(s);
    if (!s->old_read || w == NULL || !begin(s, w, 0))
        return;
    w->compacting = true;
    s->old_read = false;
    us_moving_t m = {.p = p, .w = w};
    const int n = us_seg_walk(s->old, s->segment, (uint64_t)s->old_id * s->segment, 0, move_object, &m);
    if (n < 0 || w->records == 0) { /* nothing can be moved out of it: it empties by itself, or never */
        us_log_shun(s->log, (uint32_t)s->old_id);
        us_log_abandon(s->log, w->pack.id, false);
        old_done(s);
        return;
    }
    /* What is left of the new one goes to the pool's coldest, so that short segments become full ones. */
    if (add_cold(p, w) == 0 && !gains(s, w)) {
        us_log_shun(s->log, (uint32_t)s->old_id);
        us_log_abandon(s->log, w->pack.id, false);
        old_done(s);
        return;
    }
    submit(p, w); /* the old one stays pinned until the new one is written and its objects are committed */
}

/* ---- in --------------------------------------------------------------------------------------------- */

static bool start_read(us_pager_t *p, us_read_t *rd) {
    rd->req = (us_io_req_t){.op = US_IO_READ,
                            .buf = rd->buf,
                            .off = rd->from,
                            .len = rd->bytes,
                            .user = {(uint64_t)(uintptr_t)rd}};
    p->s->reads++;
    p->s->read_bytes += rd->bytes;
    rd->begun = us_now_ns();
    if (rd->demand)
        p->store.begun = rd->begun;
    if (us_io_submit(p->store.io, &rd->req) != 0)
        return false;
    us_io_flush(p->store.io);
    return true;
}

bool us_store_fetch(us_pager_t *p, us_region_t *r, uint32_t i, bool write, bool demand, uint64_t since) {
    us_store_t *s = &p->store;
    if (!s->on || s->reads >= (demand ? US_READS : US_READS_AHEAD))
        return false;
    us_read_t *rd = NULL;
    for (int k = 0; k < US_READS && rd == NULL; k++) {
        if (!s->read[k].busy)
            rd = &s->read[k];
    }
    if (rd == NULL)
        return false;
    us_entry_t e = p->space.table[i];
    uint8_t *buf = rd->buf;
    *rd = (us_read_t){.buf = buf,
                      .off = us_offset_of(e),
                      .entry = i,
                      .region = r->id,
                      .length = US_LENGTH_OF(e),
                      .gen = e.gen,
                      .codec = (uint8_t)US_CODEC_OF(e),
                      .busy = true,
                      .write = write,
                      .demand = demand,
                      .since = since};
    us_obj_span(rd->off, rd->length, &rd->from, &rd->bytes);
    if (!start_read(p, rd)) {
        rd->busy = false;
        return false;
    }
    us_log_pin(s->log, rd->off);
    s->reads++;
    s->demand += demand;
    r->jobs++;
    us_entry_reserve(p, r, i);
    if (demand) {
        e = p->space.table[i];
        e.flags |= US_F_WAKE;
        us_entry_store(&p->space.table[i], e);
    }
    return true;
}

static void lose(us_pager_t *p, us_region_t *r, uint32_t i) {
    const uint64_t addr = us_block_addr(r, i);
    us_entry_lost(p, r, i);
    const int err = us_sys_poison(p->cfg.uffd, addr, us_block_len(r, i));
    us_event(p, (us_event_t){.kind = US_EV_LOST, .entry = i, .addr = addr, .flags = (uint32_t)-err, .tid = r->id});
}

static void fetched(us_pager_t *p, us_read_t *rd) {
    us_store_t *s = &p->store;
    us_region_t *r = p->region[rd->region];
    const uint32_t i = rd->entry, raw = us_block_len(r, i);
    const uint8_t *object = rd->buf + (rd->off - rd->from);
    int err = rd->req.res;
    if (rd->demand)
        us_place_read(&p->place, us_now_ns() - rd->begun);
    const uint8_t *payload = object + US_OBJ_HEAD, *src = payload;
    if (err == 0)
        err = us_log_check(s->log, rd->off, object, rd->bytes - (uint32_t)(rd->off - rd->from), i, rd->gen,
                           rd->length);
    if (err == 0 && rd->codec != US_CODEC_NONE) {
        err = us_decompress(p->codec, rd->codec, payload, rd->length, p->raw, raw);
        src = p->raw;
    }
    if (err != 0 && ++rd->tries < READ_TRIES) {
        p->s->read_retries++;
        if (start_read(p, rd))
            return;
    }
    const bool wake = (p->space.table[i].flags & US_F_WAKE) != 0;
    rd->busy = false;
    s->reads--;
    s->demand -= rd->demand;
    r->jobs--;
    us_entry_unreserve(p, r, i);
    if (err != 0)
        lose(p, r, i);
    else if (us_fault_copy(p, r, i, rd->write, src) == US_DONE && rd->since != 0)
        us_fault_record(p, US_KIND_STORED, rd->since);
    us_log_unpin(s->log, rd->off);
    if (wake) /* copying has woken already; but not if it could not */
        us_sys_wake(p->cfg.uffd, us_block_addr(r, i), raw);
}

/* ---- completions ------------------------------------------------------------------------------------ */

void us_store_listen(us_pager_t *p, bool on) {
    if (p->store.on)
        us_io_listen(p->store.io, on);
}

bool us_store_completed(us_pager_t *p) { return p->store.on && us_io_ready(p->store.io); }

bool us_store_pump(us_pager_t *p) {
    us_store_t *s = &p->store;
    bool any = false;
    if (!s->on)
        return false;
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
            fetched(p, (us_read_t *)(uintptr_t)q->user[0]);
        }
    }
    return any;
}
