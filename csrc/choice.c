/* SPDX-License-Identifier: MIT */
#include "choice.h"

#include <string.h>

enum { SAMPLE = 4096, FIRST = 64 << 10, INTERVAL = 8 << 20, ACCELERATION = 4 };

static uint32_t min32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Fibonacci hashing: what is near each other gets numbers, below n, that are not. */
static uint32_t spread(uint64_t at, uint32_t n) {
    return (uint32_t)((uint64_t)((uint32_t)(at / 4096 + 1) * 2654435769u) * n >> 32);
}

/* Bytes of blocks from the try at `at` to the next. Up to a quarter less than the interval, lest a region of just so
 * many bytes that goes out in order be tried at the same block each time. */
static uint64_t pause_after(uint64_t at) {
    const uint64_t p = 3 * at;
    return p < FIRST ? FIRST : p < INTERVAL ? p : INTERVAL - spread(at, INTERVAL / 4);
}

void us_choice_init(us_choice_t *c, bool on, uint32_t item) {
    c->on = on;
    c->item = item == 2 || item == 4 || item == 8 ? (uint8_t)item : 0;
    for (int f = US_FILTER_BYTE2; on && f <= US_FILTER_BYTE8; f++) { /* the first guess */
        if (us_filter_item(f) == c->item)
            us_atomic_store(&c->filter, f);
    }
    us_atomic_store(&c->usual, 256);
}

/* Counts the block, and says whether this thread is to try with it. */
static bool is_due(us_choice_t *c, uint32_t n, uint64_t *seen) {
    *seen = us_atomic_fetch_add_explicit(&c->seen, n, memory_order_relaxed);
    uint64_t due = us_atomic_load_explicit(&c->due, memory_order_relaxed);
    if (*seen < due || !us_atomic_compare_exchange_strong(&c->due, &due, *seen + pause_after(*seen)))
        return false;
    us_atomic_store_explicit(&c->last, *seen, memory_order_relaxed);
    return true;
}

/* It does not come out as it did: the next try is made in half the time. */
static void hurry(us_choice_t *c) {
    const uint64_t last = us_atomic_load_explicit(&c->last, memory_order_relaxed);
    const uint64_t sooner = last + pause_after(last) / 2;
    if (sooner < us_atomic_load_explicit(&c->due, memory_order_relaxed))
        us_atomic_store_explicit(&c->due, sooner, memory_order_relaxed);
}

/* What it costs to undo, in bytes of a sample of n. */
static uint32_t extra(int codec, int filter, uint32_t n) {
    if (filter == US_FILTER_NONE)
        return 0;
    if (codec == US_CODEC_LZ4)
        return n / 32 + (us_filter_is_bit(filter) ? n / 12 : 0);
    return us_filter_is_bit(filter) ? n / 128 : 0;
}

/* Tries all filters on a part of the block. True: what was chosen compresses it. */
static bool try_all(us_choice_t *c, us_codec_ctx_t *ctx, int codec, int level, const void *p, uint32_t n,
                    uint64_t seen) {
    const uint32_t len = min32(n, SAMPLE);
    const uint8_t *sample = (const uint8_t *)p + (spread(seen, n - len) & ~63u);
    const int now = us_atomic_load_explicit(&c->filter, memory_order_relaxed);
    /* Before the first try "none" is nobody's choice, and nothing in its favour. */
    const bool chosen = now != US_FILTER_NONE || us_atomic_load_explicit(&c->tried, memory_order_relaxed);
    uint8_t out[SAMPLE];
    int best = US_FILTER_NONE;
    uint32_t best_score = UINT32_MAX, best_len = len;
    for (int f = US_FILTER_NONE; f < US_FILTERS; f++) {
        if (f != US_FILTER_NONE && c->item != 0 && us_filter_item(f) != c->item)
            continue;
        const int got = us_compress(ctx, us_codec_with(codec, f), level, sample, len, out, len - len / 16);
        if (f == US_FILTER_NONE && got > 0 && (uint32_t)got < len / 16) {
            /* Nearly empty: says nothing about what the others hold. */
            us_atomic_store_explicit(&c->due, seen + FIRST, memory_order_relaxed);
            return true;
        }
        if (got <= 0 && f != US_FILTER_NONE)
            continue;
        const uint32_t size = got > 0 ? (uint32_t)got : len;
        uint32_t score = got > 0 ? size + extra(codec, f, len) : len - len / 8;
        if (f == now && chosen) /* no change for nothing */
            score -= min32(score, len / 64);
        if (score < best_score) {
            best_score = score;
            best_len = size;
            best = f;
        }
    }
    us_atomic_store_explicit(&c->tried, true, memory_order_relaxed);
    if (best != now) {
        us_atomic_store_explicit(&c->filter, (uint8_t)best, memory_order_relaxed);
        us_atomic_store_explicit(&c->usual, (uint16_t)(best_len * 256ull / len), memory_order_relaxed);
    }
    return best_len < len;
}

/* Notes what a block of n bytes has come to. True: that is a good deal worse than usual. */
static bool is_worse(us_choice_t *c, uint32_t len, uint32_t n) {
    const int is = (int)(len * 256ull / n), usual = us_atomic_load_explicit(&c->usual, memory_order_relaxed);
    const int step = (is - usual) / 16;
    us_atomic_store_explicit(&c->usual, (uint16_t)(usual + (step != 0 ? step : (is > usual) - (is < usual))),
                             memory_order_relaxed);
    return is > usual + 256 / 8;
}

/* Of the level 0 LZ4 has its own idea, which is 1. Planes of bytes either repeat or are noise, which is passed faster so. */
static int level_of(int codec, int level) {
    const bool shuffled = us_codec_base(codec) == US_CODEC_LZ4 && us_codec_filter(codec) != US_FILTER_NONE;
    return level == 0 && shuffled ? ACCELERATION : level;
}

int us_choice_compress(us_choice_t *c, us_probe_t *probe, us_codec_ctx_t *ctx, int *codec, int level, const void *p,
                       uint32_t n, void *out, uint32_t cap) {
    const int base = *codec;
    uint64_t seen;
    if (c->on && is_due(c, n, &seen)) {
        const int before = us_atomic_load_explicit(&c->filter, memory_order_relaxed);
        const bool compresses = try_all(c, ctx, base, level, p, n, seen);
        if (compresses && before != us_atomic_load_explicit(&c->filter, memory_order_relaxed))
            probe->score = 0; /* it was right about another filter */
    }
    const int filter = c->on ? us_atomic_load_explicit(&c->filter, memory_order_relaxed) : US_FILTER_NONE;
    *codec = us_codec_with(base, filter);
    if (!us_probe_worth(probe, ctx, *codec, p, n))
        return US_CHOICE_SKIPPED;
    int len = us_compress(ctx, *codec, level_of(*codec, level), p, n, out, cap);
    if (len < 0)
        len = 0;
    if (c->on && is_worse(c, len > 0 ? (uint32_t)len : n, n)) {
        hurry(c);
        if (filter != US_FILTER_NONE) { /* it may be text among numbers */
            void *spare = us_codec_spare(ctx);
            const int plain = us_compress(ctx, base, level, p, n, spare, len > 0 ? (uint32_t)len - 1 : cap);
            if (plain > 0) {
                memcpy(out, spare, (uint32_t)plain);
                *codec = base;
                len = plain;
            }
        }
    }
    us_probe_result(probe, len > 0);
    return len > 0 ? len : US_CHOICE_RAW;
}
