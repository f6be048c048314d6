/* SPDX-License-Identifier: MIT */
/*
 * Tests of csrc/filter.c and csrc/choice.c with real libraries: filter_test CODEC CODEC_PATH FILTER_PATH SEED,
 * or filter_test_main called inside an interpreter, whose symbols the codecs' wheels need. FILTER_PATH is the blosc2
 * library, with whose bytes those of the filters are compared, or empty. Exit status 0 passed, 1 failed, 77 the
 * codec's library is not there.
 */
#include "choice.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { MAX = 2 << 20, PAGE = 4096, BLOCK = 16 << 10 };

/* About normal, deviation 1, a multiple of 1 / 2^bits. */
static double normal_of(int bits) {
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (double)(rnd() & ((1ull << bits) - 1)) / (double)(1ull << bits);
    return sum;
}

/* So fine that of a walk's doubles no codec by itself finds as much as a filter does, in any sample. */
static double normal(void) { return normal_of(32); }

/* ---- the filters ---- */

/* Where bit b of byte k of the block goes, by the definition. */
static uint64_t goes_to(int filter, uint32_t n, uint32_t k, uint32_t b) {
    const uint32_t item = us_filter_item(filter), row = n / item;
    const uint64_t plane = k % item, at = k / item; /* after the bytes are turned: byte plane * row + at */
    if (!us_filter_is_bit(filter))
        return (plane * row + at) * 8 + b;
    return plane * row * 8 + (uint64_t)b * row + at;
}

static bool bit_of(const unsigned char *p, uint64_t bit) { return p[bit / 8] >> bit % 8 & 1; }

typedef int32_t (*blosc2_fn)(int32_t, int32_t, const void *, void *);

/* A function of the library at path; NULL where path is empty. */
static blosc2_fn blosc2(const char *path, const char *name) {
    if (*path == 0)
        return NULL;
    void *lib = dlopen(path, RTLD_NOW), *symbol = lib == NULL ? NULL : dlsym(lib, name);
    CHECK(symbol != NULL);
    blosc2_fn fn;
    memcpy(&fn, &symbol, sizeof fn);
    return fn;
}

/* Each level by the definition, between pages that nobody may touch, from and to any address. */
static void test_levels(const char *path) {
    const blosc2_fn shuffle = blosc2(path, "blosc2_shuffle"), unshuffle = blosc2(path, "blosc2_unshuffle");
    unsigned char *src = fenced(MAX), *out = fenced(MAX), *back = fenced(MAX), *theirs = malloc(MAX);
    CHECK(theirs && us_shuffle_level() >= US_SHUFFLE_SSE2 && us_shuffle_level() < US_SHUFFLES);
    for (uint32_t i = 0; i < 300; i++) {
        const uint32_t n = i < 128    ? (i + 1) * US_FILTER_UNIT
                           : i == 128 ? (uint32_t)MAX
                                      : (1 + below(400)) * US_FILTER_UNIT;
        const uint32_t off = n == MAX ? 0 : below(3) * below(64), item = 2u << i % 3;
        unsigned char *a = src - n - off, *b = out - n - off, *c = back - n - off;
        for (uint32_t k = 0; k < n; k++)
            a[k] = (unsigned char)rnd();
        for (int level = US_SHUFFLE_C; level <= us_shuffle_level(); level++) {
            memset(b, 0, n + off);
            memset(c, 0, n + off);
            us_shuffle(level, item, a, b, n);
            for (uint32_t k = 0; k < n; k++)
                CHECK(b[k % item * (n / item) + k / item] == a[k]);
            us_unshuffle(level, item, b, c, n);
            CHECK(memcmp(a, c, n) == 0);
            for (uint32_t k = n; k < n + off; k++)
                CHECK(b[k] == 0 && c[k] == 0);
            if (shuffle == NULL)
                continue;
            CHECK(shuffle((int32_t)item, (int32_t)n, a, theirs) == (int32_t)n && memcmp(b, theirs, n) == 0);
            CHECK(unshuffle((int32_t)item, (int32_t)n, b, theirs) == (int32_t)n && memcmp(a, theirs, n) == 0);
        }
    }
    free(theirs);
}

static void test_layout(const char *path) {
    const blosc2_fn theirs = blosc2(path, "blosc2_bitshuffle");
    unsigned char *src = fenced(MAX), *out = fenced(MAX), *spare = fenced(MAX), *back = fenced(MAX);
    static const uint32_t sizes[] = {512, 1024, 1536, PAGE, 3 * PAGE, 16 << 10, 64 << 10, MAX};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const uint32_t n = sizes[s];
        unsigned char *a = src - n, *b = out - n, *c = spare - n, *d = back - n;
        for (uint32_t i = 0; i < n; i++)
            a[i] = (unsigned char)rnd();
        for (int f = US_FILTER_NONE + 1; f < US_FILTERS; f++) {
            us_filter_do(f, a, b, c, n);
            for (int i = 0; i < 4000; i++) {
                const uint32_t k = below(n), bit = below(8);
                CHECK(bit_of(a, 8ull * k + bit) == bit_of(b, goes_to(f, n, k, bit)));
            }
            if (us_filter_is_bit(f) && theirs != NULL) {
                CHECK(theirs((int32_t)us_filter_item(f), (int32_t)n, a, d) == (int32_t)n);
                CHECK(memcmp(b, d, n) == 0);
            }
            memset(d, 0, n);
            us_filter_undo(f, b, d, c, n);
            CHECK(memcmp(a, d, n) == 0);
        }
    }
}

/* ---- codecs with a filter ---- */

enum { INT64, WALK64, WALK32, NORMAL32, INT32, INT16, TEXT, RANDOM, KINDS };

static void content(void *block, uint32_t n, int kind) {
    static const char words[] = "the page fault returns a block of memory to the region that holds it; ";
    double walk = 5000 + below(1000);
    unsigned char *p = block;
    for (uint32_t i = 0; i < n; i += 8) {
        for (uint32_t k = 0; k < 8; k += 4) {
            union {
                uint8_t b[4];
                int16_t h[2];
                int32_t i;
                float f;
            } u = {.i = 0};
            switch (kind) {
            case WALK32: u.f = (float)(walk += normal()); break;
            case NORMAL32: u.f = (float)normal(); break;
            case INT32: u.i = (int32_t)below(100000); break;
            case INT16: u.h[0] = (int16_t)(normal() * 100), u.h[1] = (int16_t)(normal() * 100); break;
            case RANDOM: u.i = (int32_t)rnd(); break;
            default: break;
            }
            memcpy(p + i + k, u.b, 4);
        }
        if (kind == INT64) {
            const int64_t v = below(1000);
            memcpy(p + i, &v, 8);
        } else if (kind == WALK64) {
            const double v = walk += normal();
            memcpy(p + i, &v, 8);
        }
    }
    for (uint32_t i = 0; kind == TEXT && i < n;) {
        const uint32_t run = 1 + below(12), from = below((uint32_t)sizeof words - 1 - run);
        for (uint32_t k = 0; k < run && i < n; k++)
            p[i++] = (unsigned char)words[from + k];
    }
}

static size_t allocated(void) {
#if __GLIBC_PREREQ(2, 33)
    struct mallinfo2 m = mallinfo2(); /* zeros under a sanitizer */
    return m.uordblks + m.hblkhd;
#else
    return 0;
#endif
}

static void test_round_trips(us_codec_ctx_t *ctx, int codec) {
    unsigned char *src = malloc(MAX), *dst = fenced(us_codec_bound(MAX)), *out = fenced(MAX);
    CHECK(src);
    const size_t before = allocated();
    for (int i = 0; i < 300; i++) {
        const uint32_t n = i % 50 == 0 ? (uint32_t)MAX : below(3) ? (uint32_t)PAGE << below(5) : 512 * (1 + below(64));
        const uint32_t bound = us_codec_bound(n);
        const int with = us_codec_with(codec, 1 + i % (US_FILTERS - 1));
        content(src, n, i % KINDS);
        const int len = us_compress(ctx, with, 1, src, n, dst - bound, bound);
        CHECK(len > 0);
        memset(out - n, 0xEE, n);
        CHECK(us_decompress(ctx, with, dst - bound, (uint32_t)len, out - n, n) == 0);
        CHECK(memcmp(src, out - n, n) == 0);
        /* Cut short or damaged: an error, or other bytes; never one too far. */
        CHECK(us_decompress(ctx, with, dst - bound, (uint32_t)len - 1, out - n, n) == -EILSEQ);
        for (int k = 0; k < 4; k++)
            dst[(int64_t)below((uint32_t)len) - bound] ^= (unsigned char)(1 << below(8));
        const int rc = us_decompress(ctx, with, dst - bound, (uint32_t)len, out - n, n);
        CHECK(rc == 0 || rc == -EILSEQ);
    }
    CHECK(allocated() == before);
    free(src);
}

static void test_arguments(us_codec_ctx_t *ctx, int codec) {
    static unsigned char a[2 * PAGE], b[2 * PAGE];
    const int with = us_codec_with(codec, US_FILTER_BYTE8);
    CHECK(us_codec_base(with) == codec && us_codec_filter(with) == US_FILTER_BYTE8);
    CHECK(us_codec_ready(with) && us_codec_known(with));
    CHECK(!us_codec_known(us_codec_with(codec, US_FILTERS)) && !us_codec_ready(us_codec_with(codec, US_FILTERS)));
    CHECK(!us_codec_known(us_codec_with(US_CODEC_NONE, US_FILTER_BYTE8)));
    CHECK(!us_codec_known(0x7f) && !us_codec_known(3) && us_codec_known(US_CODEC_NONE));
    const int odd[] = {us_codec_with(codec, US_FILTERS), us_codec_with(US_CODEC_NONE, 1), us_codec_with(3, 1), 0x7f};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        CHECK(us_compress(ctx, odd[i], 1, a, PAGE, b, PAGE) == -ENOSYS);
        CHECK(us_decompress(ctx, odd[i], a, 64, b, PAGE) == -ENOSYS);
    }
    CHECK(us_compress(ctx, with, 1, a, PAGE - 8, b, PAGE) == -EINVAL);
    CHECK(us_decompress(ctx, with, a, 64, b, PAGE - 8) == -EILSEQ);
    CHECK(us_decompress(ctx, with, a, 64, b, MAX + PAGE) == -EILSEQ);
    CHECK(us_codec_spare(ctx) != NULL);
}

/* ---- the choice ---- */

typedef struct tally {
    uint32_t raw, skipped, with[US_FILTERS];
    uint64_t bytes; /* after */
    uint32_t tries;
} tally_t;

/* Compresses `blocks` blocks of n bytes; every `among`-th (0: none) is text. */
static tally_t feed(us_choice_t *c, us_probe_t *probe, us_codec_ctx_t *ctx, int codec, int kind, uint32_t n,
                    uint32_t blocks, uint32_t among) {
    unsigned char *src = aligned_alloc(PAGE, n), *dst = malloc(n), *out = malloc(n);
    CHECK(src && dst && out);
    tally_t t = {0};
    for (uint32_t i = 1; i <= blocks; i++) {
        content(src, n, among != 0 && i % among == 0 ? TEXT : kind);
        const uint64_t last = c->last, due = c->due;
        int how = codec;
        const int len = us_choice_compress(c, probe, ctx, &how, 1, src, n, dst, n - n / 16);
        t.tries += c->last != last || (due == 0 && c->due != 0);
        if (len <= 0) {
            t.raw++;
            t.skipped += len == US_CHOICE_SKIPPED;
            t.bytes += n;
            continue;
        }
        CHECK(us_codec_base(how) == codec && (uint32_t)len <= n - n / 16);
        CHECK(us_decompress(ctx, how, dst, (uint32_t)len, out, n) == 0 && memcmp(src, out, n) == 0);
        t.with[us_codec_filter(how)]++;
        t.bytes += (uint32_t)len;
    }
    free(src);
    free(dst);
    free(out);
    return t;
}

static uint32_t filtered(const tally_t *t) {
    uint32_t sum = 0;
    for (int f = US_FILTER_NONE + 1; f < US_FILTERS; f++)
        sum += t->with[f];
    return sum;
}

static bool is_of(int filter, uint32_t item) { return filter != US_FILTER_NONE && us_filter_item(filter) == item; }

static void test_choice(us_codec_ctx_t *ctx, int codec) {
    static const uint32_t item[KINDS] = {[INT64] = 8, [WALK64] = 8, [WALK32] = 4, [INT32] = 4, [INT16] = 2};
    for (uint32_t n = PAGE; n <= 16 * PAGE; n *= 4) {
        for (int kind = 0; kind < KINDS; kind++) {
            for (int told = 0; told < 2; told++) {
                us_choice_t c = {0};
                us_probe_t probe = {0};
                us_choice_init(&c, true, told ? item[kind] : 0);
                const tally_t t = feed(&c, &probe, ctx, codec, kind, n, 100, 0);
                if (item[kind] != 0) {
                    /* Bits of a larger item are no worse where items are independent of each other. */
                    CHECK(told ? is_of(c.filter, item[kind])
                               : c.filter != US_FILTER_NONE && us_filter_item(c.filter) >= item[kind]);
                    CHECK(filtered(&t) >= 95 && t.bytes < 75ull * n); /* found at the first block */
                } else if (kind == TEXT) {
                    CHECK(c.filter == US_FILTER_NONE && t.with[US_FILTER_NONE] == 100);
                } else if (kind == RANDOM) {
                    CHECK(c.filter == US_FILTER_NONE && t.raw == 100 && t.skipped > 70);
                } else { /* nothing that LZ4 could use is worth its time */
                    CHECK(codec != US_CODEC_LZ4 || (c.filter == US_FILTER_NONE && t.raw == 100));
                }
            }
        }
    }
    /* Off: as if there were none. */
    us_choice_t off = {0};
    us_probe_t probe = {0};
    us_choice_init(&off, false, 8);
    tally_t t = feed(&off, &probe, ctx, codec, INT64, BLOCK, 100, 0);
    CHECK(t.with[US_FILTER_NONE] == 100 && t.tries == 0 && off.seen == 0);
}

/* The first try decides by the samples' sizes alone (the table in choice.h): no filter has to gain anything over the
 * state before it, which nobody has chosen. A walk by coarse steps is what zstd takes nearly as well unshuffled. */
static void test_first_try(us_codec_ctx_t *ctx, int codec) {
    unsigned char *src = aligned_alloc(PAGE, PAGE), *dst = malloc(PAGE);
    CHECK(src && dst);
    uint32_t narrow = 0;
    for (int i = 0; i < 1000; i++) {
        double walk = 5000 + below(1000);
        for (uint32_t at = 0; at < PAGE; at += 8) {
            walk += normal_of(24);
            memcpy(src + at, &walk, 8);
        }
        int best = US_FILTER_NONE;
        uint32_t least = 0, plain = 0;
        for (int f = US_FILTER_NONE; f < US_FILTERS; f++) {
            const int len = us_compress(ctx, us_codec_with(codec, f), 1, src, PAGE, dst, PAGE - PAGE / 16);
            const uint32_t bit = !us_filter_is_bit(f) ? 0 : codec == US_CODEC_LZ4 ? PAGE / 12 : PAGE / 128;
            const uint32_t more = f == US_FILTER_NONE ? 0 : codec == US_CODEC_LZ4 ? PAGE / 32 + bit : bit;
            const uint32_t score = len > 0 ? (uint32_t)len + more : PAGE - PAGE / 8;
            if (f == US_FILTER_NONE)
                plain = score;
            else if (len <= 0)
                continue;
            if (f == US_FILTER_NONE || score < least) {
                least = score;
                best = f;
            }
        }
        us_choice_t c = {0};
        us_probe_t probe = {0};
        us_choice_init(&c, true, 0);
        int how = codec;
        (void)us_choice_compress(&c, &probe, ctx, &how, 1, src, PAGE, dst, PAGE - PAGE / 16);
        CHECK(c.filter == best);
        narrow += best != US_FILTER_NONE && plain - least <= PAGE / 64;
    }
    CHECK(codec != US_CODEC_ZSTD || narrow > 0); /* about one in 50 is of those that matter */
    free(src);
    free(dst);
}

/* What comes later is found, and tries are few. */
static void test_change(us_codec_ctx_t *ctx, int codec) {
    us_choice_t c = {0};
    us_probe_t probe = {0};
    us_choice_init(&c, true, 0);
    const uint32_t mib = (1 << 20) / BLOCK;
    tally_t t = feed(&c, &probe, ctx, codec, TEXT, BLOCK, 32 * mib, 0);
    CHECK(t.with[US_FILTER_NONE] == 32 * mib);
    CHECK(t.tries >= 7 && t.tries <= 9); /* at 0, 64 and 256 KiB, 1 MiB, 4, and each 6 to 8 */
    t = feed(&c, &probe, ctx, codec, INT64, BLOCK, 16 * mib, 0);
    CHECK(is_of(c.filter, 8) && t.tries <= 4);
    CHECK(filtered(&t) >= 8 * mib - 1);
    /* Now they get worse, so it is found twice as fast; until then text goes without a filter. */
    t = feed(&c, &probe, ctx, codec, TEXT, BLOCK, 16 * mib, 0);
    CHECK(c.filter == US_FILTER_NONE && t.with[US_FILTER_NONE] == 16 * mib && t.tries <= 5);
    /* Random for long, then numbers that only a filter compresses: the probe does not hide them. */
    t = feed(&c, &probe, ctx, codec, RANDOM, BLOCK, 8 * mib, 0);
    CHECK(probe.score == US_PROBE_TOP && t.skipped > 6 * mib);
    t = feed(&c, &probe, ctx, codec, WALK64, BLOCK, 16 * mib, 0);
    CHECK(is_of(c.filter, 8) && filtered(&t) >= 7 * mib);
}

/* A region that goes out in order again and again is not tried at the same place each time. */
static void test_spread(us_codec_ctx_t *ctx, int codec) {
    enum { BLOCKS = (8 << 20) / BLOCK };
    us_choice_t c = {0};
    us_probe_t probe = {0};
    us_choice_init(&c, true, 0);
    unsigned char *src = aligned_alloc(PAGE, BLOCK), *dst = malloc(BLOCK);
    bool tried[BLOCKS] = {false};
    CHECK(src && dst);
    content(src, BLOCK, TEXT);
    for (uint32_t i = 0; i < 10 * BLOCKS; i++) {
        const uint64_t last = c.last;
        int how = codec;
        CHECK(us_choice_compress(&c, &probe, ctx, &how, 1, src, BLOCK, dst, BLOCK) > 0);
        tried[i % BLOCKS] |= c.last != last;
    }
    uint32_t places = 0;
    for (uint32_t i = 0; i < BLOCKS; i++)
        places += tried[i];
    CHECK(places >= 10);
    free(src);
    free(dst);
}

/* Text among numbers is compressed as text is. */
static void test_mixture(us_codec_ctx_t *ctx, int codec) {
    us_choice_t c = {0};
    us_probe_t probe = {0};
    us_choice_init(&c, true, 8);
    const tally_t t = feed(&c, &probe, ctx, codec, INT64, BLOCK, 1024, 10);
    if (is_of(c.filter, 8))
        CHECK(t.with[US_FILTER_NONE] >= 80);
    CHECK(t.with[US_FILTER_BYTE8] + t.with[US_FILTER_BIT8] >= 600 && t.raw < 20);
}

typedef struct sharer {
    us_choice_t *c;
    int codec;
    uint64_t state;
    uint32_t filtered;
} sharer_t;

static void *share(void *arg) {
    sharer_t *s = arg;
    us_codec_ctx_t *ctx;
    us_probe_t probe = {0};
    if (us_codec_ctx_new(&ctx, BLOCK) != 0)
        return NULL;
    unsigned char *src = aligned_alloc(PAGE, BLOCK), *dst = malloc(BLOCK), *out = malloc(BLOCK);
    for (int i = 0; i < 600; i++) {
        for (uint32_t k = 0; k < BLOCK; k += 8) {
            s->state = s->state * 6364136223846793005u + 1442695040888963407u;
            const uint64_t v = (s->state >> 40) % 1000 << (i / 200 % 2 ? 24 : 0);
            memcpy(src + k, &v, 8);
        }
        int how = s->codec;
        const int len = us_choice_compress(s->c, &probe, ctx, &how, 1, src, BLOCK, dst, BLOCK - BLOCK / 16);
        if (len > 0 && us_decompress(ctx, how, dst, (uint32_t)len, out, BLOCK) == 0 && memcmp(src, out, BLOCK) == 0)
            s->filtered += us_codec_filter(how) != US_FILTER_NONE;
    }
    free(src);
    free(dst);
    free(out);
    us_codec_ctx_free(ctx);
    return NULL;
}

/* Threads that share a choice, under ThreadSanitizer if it is built so. */
static void test_threads(int codec) {
    enum { THREADS = 4 };
    us_choice_t c = {0};
    us_choice_init(&c, true, 0);
    pthread_t thread[THREADS];
    sharer_t s[THREADS];
    for (int i = 0; i < THREADS; i++) {
        s[i] = (sharer_t){.c = &c, .codec = codec, .state = rnd()};
        CHECK(pthread_create(&thread[i], NULL, share, &s[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        CHECK(s[i].filtered >= 590);
    }
    CHECK(is_of(c.filter, 8) && c.seen == 600ull * THREADS * BLOCK);
}

int filter_test_main(int codec, const char *codec_path, const char *path, unsigned long long with);

int filter_test_main(int codec, const char *codec_path, const char *path, unsigned long long with) {
    seed = with;
    state = with * 0x9E3779B97F4A7C15u + 1;
    CHECK(!us_codec_ready(us_codec_with(codec, US_FILTER_BYTE2)));
    int rc = us_codec_load(codec, codec_path);
    if (rc == -ENOENT || rc == -ENOSYS) {
        printf("%s: %s\n", codec_path, strerror(-rc));
        fflush(stdout);
        return 77;
    }
    CHECK(rc == 0);
    us_codec_ctx_t *ctx;
    CHECK(us_codec_ctx_new(&ctx, MAX) == 0);
    test_levels(path);
    test_layout(path);
    test_arguments(ctx, codec);
    test_round_trips(ctx, codec);
    test_choice(ctx, codec);
    test_first_try(ctx, codec);
    test_change(ctx, codec);
    test_spread(ctx, codec);
    test_mixture(ctx, codec);
    test_threads(codec);
    us_codec_ctx_free(ctx);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: filter_test CODEC CODEC_PATH FILTER_PATH SEED\n");
        return 2;
    }
    return filter_test_main(atoi(argv[1]), argv[2], argv[3], strtoull(argv[4], NULL, 10));
}
