/* SPDX-License-Identifier: MIT */
/*
 * The log of segments: format, checks, and which segment is in which state with how many live bytes.
 *
 * Why arrays and no lists or heaps: a fault on a stored block changes one segment's live bytes, which must cost
 * nothing. A victim is asked for once for each segment that is compacted, which takes the disk a
 * millisecond; a scan of 4 bytes a segment (100,000 segments: 90 us) is hidden behind that. What must not
 * happen is a scan in vain at each step of a loop that has nothing to compact: see `in_vain`.
 *
 * What is not known is not kept: which objects a segment holds is said by the segment itself and by the entries
 * that name it.
 */
#include "segment.h"
#include "alloc.h"
#include "debug.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "crc32c.h"
#include "uswap.h"

enum { FREE = 0, OPEN = 1, WRITING = 2, SEALED = 3, RETIRED = 4 };

#define NOT_NOW UINT32_MAX

/*
 * Invariants, checked by us_log_is_valid():
 *  1. free[0 .. nfree) are the FREE segments, each once; retired counts the RETIRED ones
 *  2. live > 0 implies WRITING or SEALED;  live <= used <= segment_size
 *  3. total_live = sum of live
 *  4. key = live for SEALED segments without pins that are not shunned, else NOT_NOW
 *  5. no segment with a key is poor() at in_vain percent (when in_vain >= 0)
 *  6. pins > 0 implies WRITING or SEALED
 *  7. live <= packed <= used;  rewritten stays within its account: overspent = 0
 */
struct us_log {
    uint32_t segment_size; /* bytes */
    uint32_t nsegments, nfree, retired;
    int32_t in_vain;              /* percent that us_log_victim() found nothing for; -1: not known */
    uint64_t space, sequence;     /* sequence: of the segment begun last */
    uint64_t total_live, padding; /* bytes */
    uint64_t died, moved;         /* bytes of objects: named no more, or never; those of them that live on elsewhere */
    uint64_t rewritten, fresh;    /* bytes of objects packed for victims; segments written by the pool */
    uint64_t overspent;
    uint32_t *free;        /* a stack of ids */
    uint32_t *live, *used; /* bytes, by id */
    uint32_t *packed;      /* bytes of objects, by id */
    uint32_t *key;         /* live bytes of those that may be compacted, by id */
    uint32_t *pins;
    uint64_t *stamp; /* of the present use */
    uint8_t *state;
    bool *shunned, *is_short, *cleaned; /* cleaned: it takes the place of others */
    uint8_t *seen;                      /* us_log_is_valid()'s, which must not ask for memory: that is counted */
};

static inline uint32_t up(uint32_t n, uint32_t to) { return (n + to - 1) & ~(to - 1); }

uint32_t us_crc32c(uint32_t crc, const void *data, size_t n) { return crc32c(crc, data, n); }
uint32_t us_crc32c_table(uint32_t crc, const void *data, size_t n) { return crc32c_table(crc, data, n); }

/* ---- the format -------------------------------------------------------------------------------------- */

uint64_t us_seg_stamp(uint64_t space, uint64_t sequence) {
    uint64_t z = space + sequence * 0x9e3779b97f4a7c15ull; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint32_t seg_crc(us_seg_header_t h) { /* a copy */
    h.crc = 0;
    return us_crc32c(0, &h, sizeof h);
}

static uint32_t obj_crc(us_obj_header_t h, const void *payload) { /* a copy */
    h.crc = 0;
    return us_crc32c(us_crc32c(0, &h, sizeof h), payload, h.length);
}

void us_obj_span(uint64_t off, uint32_t length, uint64_t *from, uint32_t *bytes) {
    uint64_t end = (off + US_OBJ_HEAD + length + US_SEG_ALIGN - 1) & ~(uint64_t)(US_SEG_ALIGN - 1);
    *from = off & ~(uint64_t)(US_SEG_ALIGN - 1);
    *bytes = (uint32_t)(end - *from);
}

static int check(const void *at, uint32_t avail, uint32_t entry, uint16_t gen, uint32_t length, const uint64_t *stamp) {
    us_obj_header_t h;
    if (avail < US_OBJ_HEAD || avail - US_OBJ_HEAD < length)
        return -EILSEQ;
    memcpy(&h, at, sizeof h);
    if (h.magic != US_OBJ_MAGIC || h.entry != entry || h.gen != gen || h.length != length)
        return -EILSEQ;
    if (stamp && h.stamp != *stamp)
        return -EILSEQ;
    return h.crc == obj_crc(h, (const uint8_t *)at + US_OBJ_HEAD) ? 0 : -EILSEQ;
}

int us_obj_check(const void *at, uint32_t avail, uint32_t entry, uint16_t gen, uint32_t length) {
    return check(at, avail, entry, gen, length, NULL);
}

int us_log_check(const us_log_t *l, uint64_t off, const void *at, uint32_t avail, uint32_t entry, uint16_t gen,
                 uint32_t length) {
    return check(at, avail, entry, gen, length, &l->stamp[off / l->segment_size]);
}

static bool seg_header_ok(const us_seg_header_t *h, uint64_t seg_off, uint64_t space) {
    return h->magic == US_SEG_MAGIC && h->version == US_SEG_VERSION && h->crc == seg_crc(*h) &&
           h->used <= h->segment_size && (uint64_t)h->id * h->segment_size == seg_off &&
           (space == 0 || h->space == space);
}

int us_seg_walk(const void *buf, uint32_t bytes, uint64_t seg_off, uint64_t space, us_seg_each_fn *each, void *ctx) {
    return us_seg_walk_from(buf, bytes, seg_off, space, 0, each, ctx);
}

int us_seg_walk_from(const void *buf, uint32_t bytes, uint64_t seg_off, uint64_t space, uint64_t from,
                     us_seg_each_fn *each, void *ctx) {
    const us_seg_header_t *s = buf;
    if (bytes < US_SEG_HEAD || !seg_header_ok(s, seg_off, space))
        return -EILSEQ;
    uint64_t stamp = us_seg_stamp(s->space, s->sequence);
    uint32_t end = s->used < bytes ? s->used : bytes;
    uint32_t at = from <= seg_off + US_SEG_HEAD ? US_SEG_HEAD : up((uint32_t)(from - seg_off), 8);
    int shown = 0;
    while (at < end && end - at >= US_OBJ_HEAD) {
        const us_obj_header_t *h = (const void *)((const uint8_t *)buf + at);
        if (h->magic != US_OBJ_MAGIC || h->stamp != stamp) {
            at += 8; /* a gap, or behind a bad object */
            continue;
        }
        bool fits = h->length <= end - at - US_OBJ_HEAD;
        bool ok = fits && h->crc == obj_crc(*h, h + 1);
        shown++;
        if (!each(ctx, seg_off + at, h, fits ? h + 1 : NULL, ok))
            break;
        at += ok ? up(US_OBJ_HEAD + h->length, 8) : 8; /* a bad one's length says nothing */
    }
    return shown;
}

typedef struct fsck {
    us_fsck_obj_t *out;
    uint32_t max, n, good;
} fsck_t;

static bool fsck_each(void *ctx, uint64_t off, const us_obj_header_t *h, const void *payload, bool ok) {
    fsck_t *f = ctx;
    (void)payload;
    if (f->n < f->max)
        f->out[f->n++] = (us_fsck_obj_t){.off = off,
                                         .entry = h->entry,
                                         .length = h->length,
                                         .raw = h->raw,
                                         .gen = h->gen,
                                         .codec = h->codec,
                                         .ok = ok,
                                         .known = us_codec_known(h->codec),
                                         .filtered = us_codec_filter(h->codec) != US_FILTER_NONE};
    f->good += ok;
    return true;
}

int us_fsck_segment(const void *buf, uint32_t bytes, uint64_t seg_off, us_fsck_obj_t *out, uint32_t max,
                    us_fsck_seg_t *seg) {
    fsck_t f = {.out = out, .max = max};
    us_seg_header_t h;
    *seg = (us_fsck_seg_t){0};
    if (bytes < sizeof h)
        return -ENODATA;
    memcpy(&h, buf, sizeof h);
    if (h.magic != US_SEG_MAGIC)
        return -ENODATA;
    *seg = (us_fsck_seg_t){.space = h.space,
                           .sequence = h.sequence,
                           .version = h.version,
                           .id = h.id,
                           .segment_size = h.segment_size,
                           .used = h.used,
                           .objects = h.objects};
    int n = us_seg_walk(buf, bytes, seg_off, 0, fsck_each, &f);
    if (n < 0)
        return n;
    seg->good = f.good;
    seg->bad = h.objects > f.good ? h.objects - f.good : 0;
    return (int)f.n;
}

/* ---- a log ------------------------------------------------------------------------------------------- */

int us_log_new(us_log_t **out, uint64_t bytes, uint32_t segment_size, uint64_t space) {
    *out = NULL;
    if (segment_size == 0 || segment_size % US_SEG_ALIGN || segment_size > 1u << 30 || bytes % US_SEG_ALIGN)
        return -EINVAL;
    uint64_t n = bytes / segment_size;
    if (n < 2 || n > INT32_MAX)
        return -EINVAL;
    us_log_t *l = us_calloc(1, sizeof *l);
    if (!l)
        return -ENOMEM;
    *l = (us_log_t){
        .segment_size = segment_size, .nsegments = (uint32_t)n, .nfree = (uint32_t)n, .in_vain = -1, .space = space};
    l->free = us_malloc(n * sizeof *l->free);
    l->live = us_calloc(n, sizeof *l->live);
    l->used = us_calloc(n, sizeof *l->used);
    l->packed = us_calloc(n, sizeof *l->packed);
    l->key = us_malloc(n * sizeof *l->key);
    l->pins = us_calloc(n, sizeof *l->pins);
    l->stamp = us_calloc(n, sizeof *l->stamp);
    l->state = us_calloc(n, sizeof *l->state);
    l->shunned = us_calloc(n, sizeof *l->shunned);
    l->is_short = us_calloc(n, sizeof *l->is_short);
    l->cleaned = us_calloc(n, sizeof *l->cleaned);
    l->seen = us_calloc(n, 1);
    if (!l->free || !l->live || !l->used || !l->packed || !l->key || !l->pins || !l->stamp || !l->state ||
        !l->shunned || !l->is_short || !l->cleaned || !l->seen) {
        us_log_free(l);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        l->free[i] = (uint32_t)n - 1 - i;
        l->key[i] = NOT_NOW;
    }
    *out = l;
    return 0;
}

void us_log_free(us_log_t *l) {
    if (!l)
        return;
    free(l->free);
    free(l->live);
    free(l->used);
    free(l->packed);
    free(l->key);
    free(l->pins);
    free(l->stamp);
    free(l->state);
    free(l->shunned);
    free(l->is_short);
    free(l->cleaned);
    free(l->seen);
    free(l);
}

uint32_t us_log_segments(const us_log_t *l) { return l->nsegments; }
uint32_t us_log_segment_size(const us_log_t *l) { return l->segment_size; }
uint32_t us_log_free_segments(const us_log_t *l) { return l->nfree; }
uint32_t us_log_retired(const us_log_t *l) { return l->retired; }
uint64_t us_log_live_bytes(const us_log_t *l) { return l->total_live; }
uint64_t us_log_padding(const us_log_t *l) { return l->padding; }
uint32_t us_log_live_in(const us_log_t *l, uint32_t id) { return l->live[id]; }
uint32_t us_log_pins_in(const us_log_t *l, uint32_t id) { return l->pins[id]; }
uint32_t us_log_used_in(const us_log_t *l, uint32_t id) { return l->used[id]; }

uint64_t us_log_used_bytes(const us_log_t *l) { return (uint64_t)(l->nsegments - l->nfree) * l->segment_size; }

static inline bool poor(const us_log_t *l, uint32_t id, uint32_t percent) {
    if (l->key[id] == NOT_NOW)
        return false;
    if (l->is_short[id] && (uint64_t)l->used[id] * 100 <= (uint64_t)percent * l->segment_size)
        return true;
    return l->key[id] < l->packed[id] && (uint64_t)l->key[id] * 100 <= (uint64_t)percent * l->packed[id];
}

static inline uint32_t key_of(const us_log_t *l, uint32_t id) {
    return l->state[id] == SEALED && l->pins[id] == 0 && !l->shunned[id] ? l->live[id] : NOT_NOW;
}

/* After every change of what key_of() looks at. */
static void rekey(us_log_t *l, uint32_t id) {
    l->key[id] = key_of(l, id);
    if (l->in_vain >= 0 && poor(l, id, (uint32_t)l->in_vain))
        l->in_vain = -1;
}

static void give_back(us_log_t *l, uint32_t id) {
    l->state[id] = FREE;
    l->used[id] = l->packed[id] = 0;
    l->key[id] = NOT_NOW;
    l->shunned[id] = false;
    l->free[l->nfree++] = id;
}

static void free_if_empty(us_log_t *l, uint32_t id) {
    if (l->state[id] == SEALED && l->live[id] == 0 && l->pins[id] == 0)
        give_back(l, id);
    else
        rekey(l, id);
}

/* ---- writing ----------------------------------------------------------------------------------------- */

int64_t us_log_open(us_log_t *l) {
    if (l->nfree == 0)
        return -ENOSPC;
    uint32_t id = l->free[--l->nfree];
    l->state[id] = OPEN;
    return id;
}

void us_pack_begin(us_packer_t *k, us_log_t *l, uint32_t id, void *buf) {
    US_ASSERT(id < l->nsegments && l->state[id] == OPEN);
    *k = (us_packer_t){.log = l, .buf = buf, .id = id, .base = (uint64_t)id * l->segment_size, .used = US_SEG_HEAD};
    k->sequence = ++l->sequence;
    k->stamp = us_seg_stamp(l->space, k->sequence);
}

int64_t us_pack_add(us_packer_t *k, uint32_t entry, uint16_t gen, uint8_t codec, uint32_t length, uint32_t raw,
                    const void *payload, bool page_aligned) {
    uint32_t size = k->log->segment_size;
    uint32_t first = page_aligned ? US_SEG_ALIGN : US_SEG_HEAD; /* where it would start in an empty segment */
    uint32_t at = up(k->used, page_aligned ? US_SEG_ALIGN : 8);
    if (first > size || size - first < US_OBJ_HEAD || size - first - US_OBJ_HEAD < length)
        return -EINVAL;
    if (at > size || size - at < US_OBJ_HEAD || size - at - US_OBJ_HEAD < length) {
        k->full = true;
        return -ENOSPC;
    }
    memset(k->buf + k->used, 0, at - k->used);
    us_obj_header_t *h = (void *)(k->buf + at);
    memcpy(h + 1, payload, length);
    *h = (us_obj_header_t){.magic = US_OBJ_MAGIC,
                           .entry = entry,
                           .gen = gen,
                           .codec = codec,
                           .length = length,
                           .raw = raw,
                           .stamp = k->stamp};
    h->crc = obj_crc(*h, h + 1); /* of the copy: what the disk gets is what was checked */
    k->padding += at - k->used;
    k->used = at + US_OBJ_HEAD + length;
    k->objects++;
    return (int64_t)(k->base + at);
}

uint32_t us_pack_end(us_packer_t *k) {
    us_log_t *l = k->log;
    if (k->objects == 0)
        return 0;
    US_ASSERT(l->state[k->id] == OPEN);
    uint32_t bytes = up(k->used, US_SEG_ALIGN);
    memset(k->buf + k->used, 0, bytes - k->used);
    us_seg_header_t *h = (void *)k->buf;
    *h = (us_seg_header_t){.magic = US_SEG_MAGIC,
                           .version = US_SEG_VERSION,
                           .space = l->space,
                           .sequence = k->sequence,
                           .id = k->id,
                           .segment_size = l->segment_size,
                           .used = k->used,
                           .objects = k->objects};
    h->crc = seg_crc(*h);
    l->state[k->id] = WRITING;
    l->used[k->id] = k->used;
    l->packed[k->id] = k->used - US_SEG_HEAD - k->padding; /* what aligns a header is padding */
    l->cleaned[k->id] = k->victims > 0;
    l->is_short[k->id] = !k->full && k->victims != 1;
    l->stamp[k->id] = k->stamp;
    l->padding += US_SEG_HEAD + k->padding + (bytes - k->used);
    return bytes;
}

void us_log_written(us_log_t *l, uint32_t id) {
    US_ASSERT(l->state[id] == WRITING);
    l->state[id] = SEALED;
    if (l->cleaned[id])
        l->rewritten += l->packed[id];
    else
        l->fresh++;
    rekey(l, id);
}

void us_log_settle(us_log_t *l, uint32_t id) {
    l->died += l->packed[id] - l->live[id]; /* garbage when it arrived */
    free_if_empty(l, id);
}

void us_log_abandon(us_log_t *l, uint32_t id, bool retire) {
    US_ASSERT((l->state[id] == OPEN || l->state[id] == WRITING) && l->live[id] == 0 && l->pins[id] == 0);
    if (!retire) {
        give_back(l, id);
        return;
    }
    l->state[id] = RETIRED;
    l->used[id] = l->packed[id] = 0;
    l->retired++;
}

/* ---- accounting -------------------------------------------------------------------------------------- */

static inline uint32_t segment_of(const us_log_t *l, uint64_t off) {
    uint32_t id = (uint32_t)(off / l->segment_size);
    US_ASSERT(id < l->nsegments && (l->state[id] == WRITING || l->state[id] == SEALED));
    return id;
}

void us_log_live(us_log_t *l, uint64_t off, uint32_t length) {
    uint32_t id = segment_of(l, off);
    US_ASSERT(l->packed[id] - l->live[id] >= US_OBJ_HEAD + length);
    l->live[id] += US_OBJ_HEAD + length;
    l->total_live += US_OBJ_HEAD + length;
    rekey(l, id);
}

void us_log_dead(us_log_t *l, uint64_t off, uint32_t length) {
    uint32_t id = segment_of(l, off);
    US_ASSERT(l->live[id] >= US_OBJ_HEAD + length);
    l->live[id] -= US_OBJ_HEAD + length;
    l->total_live -= US_OBJ_HEAD + length;
    l->died += US_OBJ_HEAD + length;
    free_if_empty(l, id);
}

void us_log_moved(us_log_t *l, uint32_t length) { l->moved += US_OBJ_HEAD + length; }

uint64_t us_log_overspent(const us_log_t *l) { return l->overspent; }

/* The account of us_log_victim(). That it is in credit follows from what is chosen; should it not be, then cleaning
 * stops all the same. */
static bool in_credit(const us_log_t *l) {
    return l->rewritten <= 10 * (l->died - l->moved) + (2 * l->fresh + 8) * l->segment_size;
}

void us_log_pin(us_log_t *l, uint64_t off) {
    uint32_t id = segment_of(l, off);
    l->pins[id]++;
    rekey(l, id);
}

void us_log_unpin(us_log_t *l, uint64_t off) {
    uint32_t id = segment_of(l, off);
    US_ASSERT(l->pins[id] > 0);
    l->pins[id]--;
    free_if_empty(l, id);
}

void us_log_shun(us_log_t *l, uint32_t id) {
    US_ASSERT(l->state[id] == SEALED);
    l->shunned[id] = true;
    rekey(l, id);
}

int64_t us_log_victim(us_log_t *l, uint32_t max_percent) {
    if (l->in_vain >= 0 && max_percent <= (uint32_t)l->in_vain)
        return -ENOENT;
    if (max_percent <= 90 && !in_credit(l)) {
        l->overspent++;
        US_ASSERT(!"cleaning costs more than it can gain");
        return -ENOENT;
    }
    uint32_t best = NOT_NOW;
    int64_t found = -ENOENT;
    for (uint32_t i = 0; i < l->nsegments; i++)
        if (l->key[i] < best && poor(l, i, max_percent)) {
            best = l->key[i];
            found = i;
        }
    if (found < 0 && max_percent <= 100)
        l->in_vain = (int32_t)max_percent;
    return found;
}

bool us_log_is_valid(const us_log_t *l) {
    uint64_t live = 0;
    uint32_t nfree = 0, retired = 0;
    for (uint32_t i = 0; i < l->nsegments; i++) {
        bool holds = l->state[i] == WRITING || l->state[i] == SEALED;
        nfree += l->state[i] == FREE;
        retired += l->state[i] == RETIRED;
        live += l->live[i];
        if (l->live[i] > l->used[i] || l->used[i] > l->segment_size || (l->live[i] && !holds)) /* 2 */
            return false;
        if (l->live[i] > l->packed[i] || l->packed[i] > l->used[i]) /* 7 */
            return false;
        if (l->key[i] != key_of(l, i)) /* 4 */
            return false;
        if (l->in_vain >= 0 && poor(l, i, (uint32_t)l->in_vain)) /* 5 */
            return false;
        if (l->pins[i] && !holds) /* 6 */
            return false;
    }
    if (nfree != l->nfree || retired != l->retired || live != l->total_live) /* 1, 3 */
        return false;
    if (l->overspent != 0) /* 7 */
        return false;
    bool once = true; /* 1: as many as there are, all FREE, and none twice */
    memset(l->seen, 0, l->nsegments);
    for (uint32_t i = 0; i < l->nfree; i++) {
        once &= l->free[i] < l->nsegments && l->state[l->free[i]] == FREE && !l->seen[l->free[i]];
        l->seen[l->free[i] < l->nsegments ? l->free[i] : 0] = 1;
    }
    return once;
}
