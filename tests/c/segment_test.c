/* SPDX-License-Identifier: MIT */
/*
 * Tests of the log of segments against a model: segment_test [seed [steps]], or segment_test bench for its
 * speed. Exit 0 when all holds; else it says what did not, where, and with which seed.
 */
#include "../../csrc/segment.h"
#include "../../csrc/uswap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t seed_used;

#define CHECK(x)                                                                                          \
    do {                                                                                                  \
        if (!(x)) {                                                                                       \
            fprintf(stderr, "%s:%d: not so: %s (seed %" PRIu64 ")\n", __FILE__, __LINE__, #x, seed_used); \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

static uint64_t rng;

static uint64_t rnd(void) { /* splitmix64 */
    uint64_t z = rng += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint32_t below(uint32_t n) { return (uint32_t)(rnd() % n); }
static uint32_t between(uint32_t a, uint32_t b) { return a + below(b - a + 1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *aligned(size_t bytes) {
    void *at = aligned_alloc(4096, bytes);
    CHECK(at);
    return at;
}

static void fill(uint8_t *to, uint32_t n, uint64_t seed) {
    uint64_t old = rng;
    rng = seed;
    for (uint32_t i = 0; i < n; i += 8) {
        uint64_t v = rnd();
        memcpy(to + i, &v, n - i < 8 ? n - i : 8);
    }
    rng = old;
}

/* ---- checksums ------------------------------------------------------------------------------------- */

static void test_crc(void) {
    CHECK(us_crc32c(0, "123456789", 9) == 0xe3069283u); /* the polynomial's check value */
    CHECK(us_crc32c_table(0, "123456789", 9) == 0xe3069283u);
    uint8_t *data = malloc(20000);
    CHECK(data);
    fill(data, 20000, rnd());
    for (uint32_t i = 0; i < 1200; i++) {
        uint32_t at = below(64), n = i < 600 ? i : below(19000), cut = n ? below(n) : 0, from = (uint32_t)rnd();
        uint32_t want = us_crc32c_table(from, data + at, n);
        CHECK(us_crc32c(from, data + at, n) == want);
        CHECK(us_crc32c(us_crc32c(from, data + at, cut), data + at + cut, n - cut) == want);
        CHECK(us_crc32c_table(us_crc32c_table(from, data + at, cut), data + at + cut, n - cut) == want);
    }
    free(data);
}

/* ---- the format ------------------------------------------------------------------------------------ */

typedef struct seen {
    uint64_t off[64];
    bool ok[64];
    const void *payload[64];
    int n, stop;
} seen_t;

static bool see(void *ctx, uint64_t off, const us_obj_header_t *h, const void *payload, bool ok) {
    seen_t *s = ctx;
    (void)h;
    CHECK(s->n < 64);
    s->off[s->n] = off;
    s->payload[s->n] = payload;
    s->ok[s->n++] = ok;
    return s->n != s->stop;
}

static void test_format(void) {
    enum { SEG = 16384 };
    us_log_t *l;
    CHECK(us_log_new(&l, 4 * SEG, SEG, 77) == 0);
    uint8_t *buf = aligned(SEG), *copy = aligned(SEG), data[4096];
    fill(data, sizeof data, 5);
    memset(buf, 0xee, SEG); /* a buffer is used again: nothing of it may get into the file */
    CHECK(us_log_open(l) == 0 && us_log_open(l) == 1);
    us_packer_t k;
    us_pack_begin(&k, l, 1, buf);
    CHECK(us_pack_end(&k) == 0); /* empty: stays open */
    us_pack_begin(&k, l, 1, buf);
    int64_t a = us_pack_add(&k, 10, 3, 1, 101, 4096, data, false);
    int64_t b = us_pack_add(&k, 11, 65535, 2, 0, 8192, data, false);
    int64_t c = us_pack_add(&k, UINT32_MAX, 0, 255, 4096, 4096, data, true);
    int64_t d = us_pack_add(&k, 12, 1, 0, 333, 333, data, false);
    CHECK(a == SEG + 64 && b == SEG + 64 + 32 + 104 && c == SEG + 4096 && d == SEG + 2 * 4096 + 32);
    CHECK(us_pack_add(&k, 1, 1, 1, SEG - 4096, 1, data, true) == -EINVAL);
    CHECK(us_pack_add(&k, 1, 1, 1, SEG - 64 - 31, 1, data, false) == -EINVAL);
    CHECK(us_pack_add(&k, 1, 1, 1, 4096, 1, data, true) == -ENOSPC);
    CHECK(us_pack_end(&k) == 3 * 4096);
    CHECK(us_log_padding(l) == 3 * 4096 - (4 * 32 + 101 + 4096 + 333));
    uint32_t used = 2 * 4096 + 64 + 333;
    CHECK(us_log_used_in(l, 1) == used);
    for (uint32_t i = 64 + 32 + 101; i < 64 + 32 + 104; i++)
        CHECK(buf[i] == 0);
    for (uint32_t i = 64 + 32 + 104 + 32; i < 4096; i++)
        CHECK(buf[i] == 0);
    for (uint32_t i = used; i < 3 * 4096; i++)
        CHECK(buf[i] == 0);

    CHECK(us_obj_check(buf + 64, SEG, 10, 3, 101) == 0 && us_obj_check(buf + 64, 133, 10, 3, 101) == 0);
    CHECK(us_log_check(l, (uint64_t)a, buf + 64, SEG, 10, 3, 101) == 0);
    CHECK(us_obj_check(buf + 64, 132, 10, 3, 101) == -EILSEQ);
    CHECK(us_obj_check(buf + 64, 31, 10, 3, 101) == -EILSEQ);
    CHECK(us_obj_check(buf + 64, SEG, 11, 3, 101) == -EILSEQ);
    CHECK(us_obj_check(buf + 64, SEG, 10, 4, 101) == -EILSEQ);
    CHECK(us_obj_check(buf + 64, SEG, 10, 3, 100) == -EILSEQ);

    seen_t s = {0};
    CHECK(us_seg_walk(buf, 3 * 4096, SEG, 0, see, &s) == 4 && s.n == 4);
    CHECK(s.off[0] == (uint64_t)a && s.off[1] == (uint64_t)b && s.off[2] == (uint64_t)c && s.off[3] == (uint64_t)d);
    CHECK(s.ok[0] && s.ok[1] && s.ok[2] && s.ok[3] && memcmp(s.payload[2], data, 4096) == 0);
    s = (seen_t){.stop = 2};
    CHECK(us_seg_walk(buf, SEG, SEG, 77, see, &s) == 2);
    CHECK(us_seg_walk(buf, SEG, SEG, 78, see, &s) == -EILSEQ);
    CHECK(us_seg_walk(buf, SEG, 0, 77, see, &s) == -EILSEQ);
    CHECK(us_seg_walk(buf, 63, SEG, 77, see, &s) == -EILSEQ);

    /* Any flipped bit of an object is found, and costs no other object. */
    us_fsck_obj_t out[8];
    us_fsck_seg_t seg;
    for (uint32_t at = 0; at < 12288; at++) {
        memcpy(copy, buf, SEG);
        copy[at] ^= (uint8_t)(1u << below(8));
        int n = us_fsck_segment(copy, 12288, SEG, out, 8, &seg);
        bool in_a = at >= 64 && at < 64 + 32 + 101, in_b = at >= 200 && at < 232;
        bool in_c = at >= 4096 && at < 8192 + 32, in_d = at >= 8192 + 32 && at < used;
        if (at < 64) {
            CHECK(n == (at < 8 ? -ENODATA : -EILSEQ));
            continue;
        }
        CHECK(n >= 3 && n <= 4 && seg.objects == 4 && seg.sequence == 2 && seg.space == 77 && seg.used == used);
        CHECK(seg.bad == (uint32_t)(in_a || in_b || in_c || in_d) && seg.good == 4 - seg.bad);
        CHECK((us_obj_check(copy + 64, SEG, 10, 3, 101) == 0) == !in_a);
        CHECK((us_obj_check(copy + 200, SEG, 11, 65535, 0) == 0) == !in_b);
        CHECK((us_obj_check(copy + 4096, SEG, UINT32_MAX, 0, 4096) == 0) == !in_c);
        CHECK((us_obj_check(copy + 8192 + 32, SEG, 12, 1, 333) == 0) == !in_d);
    }
    CHECK(us_fsck_segment(buf, 12288, SEG, out, 2, &seg) == 2 && seg.good == 4);                /* max */
    CHECK(us_fsck_segment(buf, 8192, SEG, out, 8, &seg) == 3 && seg.good == 2 && seg.bad == 2); /* torn */
    memset(copy, 0, SEG);
    CHECK(us_fsck_segment(copy, SEG, SEG, out, 8, &seg) == -ENODATA);

    /* The same place, entry, generation and length, but from a former use. */
    us_log_written(l, 1);
    us_log_live(l, (uint64_t)a, 101);
    us_log_settle(l, 1);
    memcpy(copy, buf, SEG);
    us_log_dead(l, (uint64_t)a, 101);
    CHECK(us_log_open(l) == 1);
    us_pack_begin(&k, l, 1, buf);
    CHECK(us_pack_add(&k, 10, 3, 1, 101, 4096, data, false) == a && us_pack_end(&k) == 4096);
    CHECK(us_log_check(l, (uint64_t)a, buf + 64, SEG, 10, 3, 101) == 0);
    CHECK(us_obj_check(copy + 64, SEG, 10, 3, 101) == 0);
    CHECK(us_log_check(l, (uint64_t)a, copy + 64, SEG, 10, 3, 101) == -EILSEQ);
    memcpy(copy, buf, 64); /* its header came through, the rest was lost */
    CHECK(us_fsck_segment(copy, SEG, SEG, out, 8, &seg) == 0 && seg.bad == 1);
    us_log_free(l);
    free(buf);
    free(copy);

    CHECK(us_seg_stamp(1, 2) != us_seg_stamp(1, 3) && us_seg_stamp(1, 2) != us_seg_stamp(2, 2));
    uint64_t from;
    uint32_t bytes;
    us_obj_span(4096 * 5 + 64, 4000, &from, &bytes);
    CHECK(from == 4096 * 5 && bytes == 4096);
    us_obj_span(4096 * 5 + 64, 4001, &from, &bytes);
    CHECK(from == 4096 * 5 && bytes == 8192);
    us_obj_span((1ull << 40) + 4088, 0, &from, &bytes);
    CHECK(from == 1ull << 40 && bytes == 8192);
}

static void test_edges(void) {
    us_log_t *l;
    CHECK(us_log_new(&l, 4096, 4096, 1) == -EINVAL && l == NULL);
    CHECK(us_log_new(&l, 3 * 4096, 8192, 1) == -EINVAL);
    CHECK(us_log_new(&l, 16384 + 1, 4096, 1) == -EINVAL);
    CHECK(us_log_new(&l, 16384, 4100, 1) == -EINVAL && us_log_new(&l, 16384, 0, 1) == -EINVAL);
    us_log_free(NULL);
    CHECK(us_log_new(&l, 5 * 4096, 8192, 1) == 0); /* the odd page at the end is not used */
    CHECK(us_log_segments(l) == 2 && us_log_segment_size(l) == 8192 && us_log_free_segments(l) == 2);
    CHECK(us_log_victim(l, 100) == -ENOENT);
    CHECK(us_log_open(l) == 0 && us_log_open(l) == 1 && us_log_open(l) == -ENOSPC);
    CHECK(us_log_used_bytes(l) == 16384);
    us_log_abandon(l, 0, true);
    us_log_abandon(l, 1, false);
    CHECK(us_log_free_segments(l) == 1 && us_log_retired(l) == 1 && us_log_used_bytes(l) == 8192);

    uint8_t *buf = aligned(8192), data[8] = {0};
    us_packer_t k;
    for (int round = 0; round < 2; round++) { /* a shunned segment is not offered; freed, it is like any other */
        CHECK(us_log_open(l) == 1);
        us_pack_begin(&k, l, 1, buf);
        int64_t a = us_pack_add(&k, 1, 1, 1, 8, 8, data, false), b = us_pack_add(&k, 2, 1, 1, 8, 8, data, false);
        CHECK(a > 0 && b > 0 && us_pack_end(&k) == 4096);
        us_log_written(l, 1);
        us_log_live(l, (uint64_t)a, 8);
        us_log_settle(l, 1);
        CHECK(us_log_victim(l, 1) == -ENOENT && us_log_victim(l, 2) == 1); /* short: 144 bytes of 8192 */
        us_log_shun(l, 1);
        CHECK(us_log_victim(l, 100) == -ENOENT && us_log_is_valid(l));
        us_log_dead(l, (uint64_t)a, 8);
        CHECK(us_log_free_segments(l) == 1);
    }
    CHECK(us_log_open(l) == 1); /* written, and all of it garbage */
    us_pack_begin(&k, l, 1, buf);
    CHECK(us_pack_add(&k, 1, 1, 1, 8, 8, data, false) > 0 && us_pack_end(&k) == 4096);
    us_log_written(l, 1);
    CHECK(us_log_free_segments(l) == 0);
    us_log_settle(l, 1);
    CHECK(us_log_free_segments(l) == 1 && us_log_is_valid(l));
    us_log_free(l);
    free(buf);
}

/* ---- the model ------------------------------------------------------------------------------------- */

enum { SEG = 32768, SEGMENTS = 24, ENTRIES = 600, IN_FLIGHT = 3, LARGE = 8192 };

typedef struct ent { /* off: 0 when it is not in the file */
    uint64_t off, seed;
    uint32_t length;
    uint16_t gen;
    uint32_t pins; /* reads in flight */
} ent_t;

typedef struct rec {
    uint32_t entry;
    uint16_t gen;
    uint64_t off, from; /* from: compaction's; 0 when new */
    uint64_t seed;
    uint32_t length;
} rec_t;

typedef struct flight {
    bool busy;
    us_packer_t k;
    uint8_t *buf;
    uint32_t bytes, n;
    rec_t rec[SEG / 32];
} flight_t;

typedef struct read_in_flight {
    bool busy;
    uint32_t entry, length;
    uint16_t gen;
    uint64_t off, seed;
} read_t;

static us_log_t *lg;
static uint8_t *file, *span;
static ent_t ent[ENTRIES];
static flight_t flight[IN_FLIGHT];
static read_t reads[8];
static uint8_t payload[SEG];
static uint32_t model_retired;
static uint32_t model_packed[SEGMENTS], model_used[SEGMENTS]; /* bytes of objects, and with all that is between them */
static bool model_short[SEGMENTS];
static uint64_t moved;

static void verify(uint64_t off, uint32_t entry, uint16_t gen, uint32_t length, uint64_t seed) {
    uint64_t from;
    uint32_t bytes;
    us_obj_span(off, length, &from, &bytes);
    CHECK(from % 4096 == 0 && bytes % 4096 == 0 && from <= off && off + 32 + length <= from + bytes);
    memcpy(span, file + from, bytes);
    uint8_t *at = span + (off - from);
    CHECK(us_obj_check(at, bytes - (uint32_t)(off - from), entry, gen, length) == 0);
    CHECK(us_log_check(lg, off, at, bytes - (uint32_t)(off - from), entry, gen, length) == 0);
    fill(payload, length, seed);
    CHECK(memcmp(at + 32, payload, length) == 0);
}

static void forget(uint32_t i) {
    if (ent[i].off)
        us_log_dead(lg, ent[i].off, ent[i].length);
    ent[i].off = 0;
    ent[i].gen++;
}

static flight_t *take_flight(void) {
    for (int i = 0; i < IN_FLIGHT; i++)
        if (!flight[i].busy)
            return &flight[i];
    return NULL;
}

static bool begin(flight_t *f) {
    uint32_t had = us_log_free_segments(lg);
    int64_t id = us_log_open(lg);
    CHECK((id == -ENOSPC) == (had == 0));
    if (id < 0)
        return false;
    memset(f->buf, 0xa5, SEG);
    us_pack_begin(&f->k, lg, (uint32_t)id, f->buf);
    f->n = 0;
    return true;
}

static void submit(flight_t *f) {
    f->bytes = us_pack_end(&f->k);
    if (f->bytes == 0) {
        CHECK(f->n == 0);
        us_log_abandon(lg, f->k.id, false);
        return;
    }
    CHECK(f->n > 0 && f->bytes % 4096 == 0 && f->bytes <= SEG);
    f->busy = true;
    const rec_t *last = &f->rec[f->n - 1];
    model_used[f->k.id] = (uint32_t)(last->off - f->k.base) + 32 + last->length;
    model_packed[f->k.id] = 0;
    for (uint32_t i = 0; i < f->n; i++)
        model_packed[f->k.id] += 32 + f->rec[i].length;
}

static void write_out(void) {
    flight_t *f = take_flight();
    if (!f || !begin(f))
        return;
    uint32_t most = between(0, 60);
    model_short[f->k.id] = true;
    for (uint32_t i = 0; i < most; i++) {
        uint32_t e = below(ENTRIES);
        if (ent[e].off) { /* it was fetched and written to since */
            if (below(2))
                continue;
            forget(e);
        }
        uint32_t length = below(8) ? between(1, 3000) : between(LARGE, 12000);
        uint64_t seed = rnd();
        fill(payload, length, seed);
        int64_t off = us_pack_add(&f->k, e, ent[e].gen, (uint8_t)below(3), length, 4096, payload, length >= LARGE);
        if (off == -ENOSPC) {
            model_short[f->k.id] = false;
            break;
        }
        CHECK(off > 0 && off / SEG == f->k.id && off % 8 == 0 && (length < LARGE || off % 4096 == 0));
        f->rec[f->n++] = (rec_t){.entry = e, .gen = ent[e].gen, .off = (uint64_t)off, .seed = seed, .length = length};
    }
    submit(f);
}

static void land(flight_t *f) {
    uint32_t fate = below(20);
    if (fate == 0 && model_retired < 4) {
        us_log_abandon(lg, f->k.id, true);
        model_retired++;
    } else if (fate <= 1) {
        memset(file + f->k.base, 0x11, f->bytes / 2); /* a torn write */
        us_log_abandon(lg, f->k.id, false);
    } else {
        memcpy(file + f->k.base, f->buf, f->bytes);
        us_log_written(lg, f->k.id);
        for (uint32_t i = 0; i < f->n; i++) {
            rec_t *r = &f->rec[i];
            ent_t *e = &ent[r->entry];
            if (e->gen != r->gen || e->off != r->from)
                continue; /* garbage */
            us_log_live(lg, r->off, r->length);
            if (r->from) {
                us_log_dead(lg, r->from, r->length);
                us_log_moved(lg, r->length);
            }
            e->off = r->off;
            e->seed = r->seed;
            e->length = r->length;
        }
        us_log_settle(lg, f->k.id);
    }
    f->busy = false;
}

static bool move(void *ctx, uint64_t off, const us_obj_header_t *h, const void *data, bool ok) {
    flight_t *f = ctx;
    CHECK(ok && h->entry < ENTRIES);
    ent_t *e = &ent[h->entry];
    if (e->off != off)
        return true;
    CHECK(h->gen == e->gen && h->length == e->length);
    int64_t to = us_pack_add(&f->k, h->entry, h->gen, h->codec, h->length, h->raw, data, h->length >= LARGE);
    CHECK(to > 0); /* what was live in one segment fits into another */
    f->rec[f->n++] = (rec_t){h->entry, h->gen, (uint64_t)to, off, e->seed, e->length};
    moved++;
    return true;
}

static uint32_t model_live(uint32_t id) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < ENTRIES; i++)
        if (ent[i].off && ent[i].off / SEG == id)
            sum += 32 + ent[i].length;
    return sum;
}

static bool model_pinned(uint32_t id) {
    for (uint32_t i = 0; i < 8; i++)
        if (reads[i].busy && reads[i].off / SEG == id)
            return true;
    return false;
}

/* Does packing it anew gain? Its own dead bytes count, and room at its end if nothing was too large for that. */
static bool model_gains(uint32_t id, uint32_t live, uint32_t percent) {
    return (model_short[id] && model_used[id] * 100 <= percent * SEG) ||
           (live < model_packed[id] && live * 100 <= percent * model_packed[id]);
}

static void compact(void) {
    flight_t *f = take_flight();
    uint32_t percent = below(4) ? between(10, 90) : 0;
    int64_t id = us_log_victim(lg, percent);
    uint32_t best = UINT32_MAX; /* what the model says */
    for (uint32_t i = 0; i < SEGMENTS; i++) {
        uint32_t live = model_live(i);
        if (live && !model_pinned(i) && model_gains(i, live, percent) && live < best)
            best = live;
    }
    CHECK((id == -ENOENT) == (best == UINT32_MAX));
    if (id < 0 || !f)
        return;
    CHECK(model_live((uint32_t)id) == best && us_log_live_in(lg, (uint32_t)id) == best);
    if (!begin(f))
        return;
    f->k.victims = 1;
    model_short[f->k.id] = false;
    CHECK(us_seg_walk(file + (uint64_t)id * SEG, us_log_used_in(lg, (uint32_t)id), (uint64_t)id * SEG, 0, move, f) >=
          1);
    submit(f);
}

static void read_one(void) {
    read_t *r = &reads[below(8)];
    if (r->busy) { /* done: still there, whatever has become of the entry */
        verify(r->off, r->entry, r->gen, r->length, r->seed);
        us_log_unpin(lg, r->off);
        r->busy = false;
        return;
    }
    uint32_t i = below(ENTRIES);
    if (!ent[i].off)
        return;
    *r = (read_t){true, i, ent[i].length, ent[i].gen, ent[i].off, ent[i].seed};
    us_log_pin(lg, r->off);
}

static void agree(bool all) {
    CHECK(us_log_is_valid(lg));
    uint64_t live = 0;
    for (uint32_t i = 0; i < SEGMENTS; i++) {
        CHECK(us_log_live_in(lg, i) == model_live(i));
        live += model_live(i);
    }
    CHECK(us_log_live_bytes(lg) == live && us_log_retired(lg) == model_retired);
    uint32_t taken = 0;
    for (uint32_t i = 0; i < SEGMENTS; i++) {
        bool flying = false;
        for (int f = 0; f < IN_FLIGHT; f++)
            flying |= flight[f].busy && flight[f].k.id == i;
        taken += flying || model_live(i) || model_pinned(i);
    }
    CHECK(us_log_free_segments(lg) == SEGMENTS - taken - model_retired); /* no segment is held for nothing */
    CHECK(us_log_used_bytes(lg) == (uint64_t)(taken + model_retired) * SEG);
    for (uint32_t i = 0; all && i < ENTRIES; i++)
        if (ent[i].off)
            verify(ent[i].off, i, ent[i].gen, ent[i].length, ent[i].seed);
}

static void test_model(uint32_t steps) {
    CHECK(us_log_new(&lg, SEGMENTS * SEG, SEG, rnd()) == 0);
    file = aligned(SEGMENTS * SEG);
    span = aligned(SEG + 8192);
    memset(file, 0, SEGMENTS * SEG);
    for (int i = 0; i < IN_FLIGHT; i++)
        flight[i].buf = aligned(SEG);
    for (uint32_t i = 0; i < ENTRIES; i++)
        ent[i].gen = (uint16_t)rnd();
    for (uint32_t step = 0; step < steps; step++) {
        uint32_t what = below(100);
        if (what < 25)
            write_out();
        else if (what < 50) {
            flight_t *f = &flight[below(IN_FLIGHT)];
            if (f->busy)
                land(f);
        } else if (what < 70)
            for (uint32_t n = below(12); n; n--)
                forget(below(ENTRIES));
        else if (what < 85)
            compact();
        else
            read_one();
        agree(step % 64 == 0);
    }
    for (int i = 0; i < IN_FLIGHT; i++)
        if (flight[i].busy)
            land(&flight[i]);
    for (uint32_t i = 0; i < 8; i++)
        if (reads[i].busy) {
            us_log_unpin(lg, reads[i].off);
            reads[i].busy = false;
        }
    agree(true);
    CHECK(moved > 0 || steps < 1000);
    for (uint32_t i = 0; i < ENTRIES; i++)
        forget(i);
    agree(true);
    CHECK(us_log_free_segments(lg) == SEGMENTS - model_retired && us_log_live_bytes(lg) == 0);
    us_log_free(lg);
    for (int i = 0; i < IN_FLIGHT; i++)
        free(flight[i].buf);
    free(span);
    free(file);
}

/* ---- cleaning ends ---- */

enum { CSEG = 1 << 16, CSEGMENTS = 40, CENTRIES = 2000 };

typedef struct cent {
    uint64_t off; /* 0: not in the file */
    uint32_t length;
} cent_t;

static us_log_t *cl;
static cent_t cent[CENTRIES];
static uint32_t cleaned_writes, in_cleaner[CENTRIES], in_cleaner_n;
static us_packer_t cleaner;
static bool cleaner_on;
static uint8_t *cbuf, cdata[CSEG];

static int64_t cpack(us_packer_t *k, uint32_t e) {
    return us_pack_add(k, e, 1, 0, cent[e].length, cent[e].length, cdata, cent[e].length >= CSEG / 16);
}

/* What is packed is written, and its entries name it; those that did before are what is moved. */
static void cwrite(us_packer_t *k, const uint32_t *e, const uint64_t *off, uint32_t n) {
    CHECK(us_pack_end(k) > 0);
    us_log_written(cl, k->id);
    for (uint32_t i = 0; i < n; i++) {
        const cent_t old = cent[e[i]];
        us_log_live(cl, off[i], old.length);
        cent[e[i]].off = off[i];
        if (old.off) {
            us_log_dead(cl, old.off, old.length);
            us_log_moved(cl, old.length);
        }
    }
    us_log_settle(cl, k->id);
}

static uint64_t cleaner_off[CENTRIES];
static int64_t cvictim[64];
static uint32_t cvictims;

static void cleaner_ends(void) {
    if (!cleaner_on)
        return;
    cleaner_on = false;
    cleaner.victims = cvictims;
    cwrite(&cleaner, in_cleaner, cleaner_off, in_cleaner_n);
    cleaned_writes++;
    for (uint32_t i = 0; i < cvictims; i++)
        us_log_unpin(cl, (uint64_t)cvictim[i] * CSEG);
}

static void cleaner_begins(void) {
    int64_t id = us_log_open(cl);
    CHECK(id >= 0); /* what is kept for it is enough */
    us_pack_begin(&cleaner, cl, (uint32_t)id, cbuf);
    in_cleaner_n = cvictims = 0;
    cleaner_on = true;
}

/* One victim goes into the cleaner's segment, and into the next if it does not fit. False: there is none. */
static bool clean_one(void) {
    const int64_t id = us_log_victim(cl, 90);
    if (id < 0)
        return false;
    CHECK(us_log_live_in(cl, (uint32_t)id) > 0);
    for (uint64_t at = 0;;) { /* by offset, as a walk shows them */
        uint32_t next = CENTRIES;
        for (uint32_t e = 0; e < CENTRIES; e++)
            if (cent[e].off / CSEG == (uint64_t)id && cent[e].off > at &&
                (next == CENTRIES || cent[e].off < cent[next].off))
                next = e;
        if (next == CENTRIES)
            break;
        if (!cleaner_on)
            cleaner_begins();
        const int64_t off = cpack(&cleaner, next);
        if (off < 0) {
            CHECK(off == -ENOSPC && in_cleaner_n > 0);
            us_log_pin(cl, (uint64_t)id * CSEG); /* it waits for the second write */
            cleaner_ends();
            cleaner_begins();
            us_log_unpin(cl, (uint64_t)id * CSEG);
            continue;
        }
        if (cvictims == 0 || cvictim[cvictims - 1] != id) {
            us_log_pin(cl, (uint64_t)id * CSEG);
            cvictim[cvictims++] = id;
        }
        in_cleaner[in_cleaner_n] = next;
        cleaner_off[in_cleaner_n++] = (uint64_t)off;
        at = cent[next].off;
    }
    if (cvictims == 64)
        cleaner_ends();
    return true;
}

/* Objects of a quarter of a segment and more leave gaps at each end. However they die, cleaning ends when they do not,
 * and no segment is offered whose objects all live. */
static void test_cleaning_ends(uint32_t rounds) {
    const uint32_t largest = between(2, 60) * 1000;
    CHECK(us_log_new(&cl, (uint64_t)CSEGMENTS * CSEG, CSEG, 5) == 0);
    cbuf = aligned(CSEG);
    uint8_t *buf = aligned(CSEG);
    memset(cent, 0, sizeof cent);
    for (uint32_t round = 0; round < rounds; round++) {
        while (us_log_free_segments(cl) > 4) { /* the pool writes; at times not much */
            us_packer_t k;
            uint32_t e[CENTRIES], n = 0;
            uint64_t off[CENTRIES];
            us_pack_begin(&k, cl, (uint32_t)us_log_open(cl), buf);
            const uint32_t most = below(4) ? CENTRIES : between(1, 3);
            for (uint32_t i = 0; i < CENTRIES && n < most; i++) {
                if (cent[i].off)
                    continue;
                cent[i].length = between(largest / 4, largest);
                const int64_t at = cpack(&k, i);
                if (at < 0)
                    break;
                e[n] = i;
                off[n++] = (uint64_t)at;
            }
            if (n == 0) {
                us_log_abandon(cl, k.id, false);
                break;
            }
            cwrite(&k, e, off, n);
        }
        uint32_t steps = 0;
        while (clean_one())
            CHECK(++steps < 4 * CSEGMENTS); /* without a death there is an end */
        cleaner_ends();
        while (clean_one())
            CHECK(++steps < 8 * CSEGMENTS);
        cleaner_ends();
        CHECK(us_log_is_valid(cl) && us_log_overspent(cl) == 0);
        for (uint32_t n = below(30); n; n--) {
            const uint32_t i = below(CENTRIES);
            if (cent[i].off)
                us_log_dead(cl, cent[i].off, cent[i].length);
            cent[i].off = 0;
        }
    }
    CHECK(cleaned_writes > 0 || rounds < 100);
    us_log_free(cl);
    free(cbuf);
    free(buf);
}

/* ---- speed ----------------------------------------------------------------------------------------- */

static void bench(void) {
    enum { SIZE = 1 << 20, ROUNDS = 200 };
    uint8_t *buf = aligned(SIZE), *data = aligned(SIZE);
    us_log_t *l;
    CHECK(us_log_new(&l, 2ull * SIZE, SIZE, 1) == 0 && us_log_open(l) == 0);
    fill(data, SIZE, 1);
    memset(buf, 1, SIZE);
    for (uint32_t length = 2048; length <= 65536; length *= length == 2048 ? 8 : 4) {
        double add = 1, check = 1, tables = 1; /* the best round of each, in seconds an object */
        for (int r = 0; r < ROUNDS; r++) {
            us_packer_t k;
            us_pack_begin(&k, l, 0, buf);
            double t0 = now();
            uint32_t i = 0;
            while (us_pack_add(&k, i, 1, 1, length, length, data + (uint64_t)i * length % (SIZE - length), false) > 0)
                i++;
            double t1 = now();
            for (uint32_t j = 0; j < i; j++)
                CHECK(us_obj_check(buf + 64 + (uint64_t)j * (32 + length), 32 + length, j, 1, length) == 0);
            double t2 = now();
            for (uint32_t j = 0; j < i; j++)
                CHECK(us_crc32c_table(0, buf + 64 + (uint64_t)j * (32 + length), 32 + length) != 1);
            double t3 = now();
            add = (t1 - t0) / i < add ? (t1 - t0) / i : add;
            check = (t2 - t1) / i < check ? (t2 - t1) / i : check;
            tables = (t3 - t2) / i < tables ? (t3 - t2) / i : tables;
        }
        printf("%6u bytes: pack_add %6.0f ns, check %6.0f ns (by tables %6.0f)\n", length, add * 1e9, check * 1e9,
               tables * 1e9);
    }
    us_log_free(l);
    CHECK(us_log_new(&l, 100000ull * SIZE, SIZE, 1) == 0);
    us_packer_t k;
    for (uint32_t i = 0; i < 100000; i++) {
        int64_t id = us_log_open(l);
        us_pack_begin(&k, l, (uint32_t)id, buf);
        int64_t off = us_pack_add(&k, i, 1, 1, 1000 + below(3000), 1, data, false);
        us_pack_end(&k);
        us_log_written(l, (uint32_t)id);
        us_log_live(l, (uint64_t)off, 100);
    }
    double t = now();
    for (uint32_t i = 0; i < 100; i++)
        CHECK(us_log_victim(l, 90) >= 0);
    printf("poorest of 100,000: %.1f us found", (now() - t) * 1e4);
    t = now();
    CHECK(us_log_victim(l, 1) == -ENOENT);
    printf(", %.1f us in vain the first time", (now() - t) * 1e6);
    t = now();
    for (uint32_t i = 0; i < 1000; i++)
        CHECK(us_log_victim(l, 1) == -ENOENT);
    printf(", %.3f us from then on\n", (now() - t) * 1e3);
    us_log_free(l);
    free(buf);
    free(data);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        bench();
        return 0;
    }
    seed_used = rng = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 6000;
    test_crc();
    test_format();
    test_edges();
    test_model(steps);
    for (int i = 0; i < 4; i++)
        test_cleaning_ends(100);
    return 0;
}
