/* SPDX-License-Identifier: MIT */
/*
 * Tests of csrc/codec.c with one real library. As a program: codec_test CODEC PATH SEED. Built as a
 * shared object, codec_test_main is called inside an interpreter, whose symbols the wheels need.
 * Exit status 0 passed, 1 failed, 77 the library is not there.
 */
#include "codec.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { MAX = 2 << 20, PAGE = 4096, KINDS = 7 };

static void content(unsigned char *p, uint32_t n, int kind) {
    static const char words[] = "the page fault returns a block of memory to the region that holds it; ";
    uint32_t period = 1 + below(9000), run = 0, from = 0;
    for (uint32_t i = 0; i < n; i++) {
        switch (kind) {
        case 0: /* random */ p[i] = (unsigned char)rnd(); break;
        case 1: /* one byte */ p[i] = 7; break;
        case 2: /* int64 below 1000 */
            p[i] = i % 8 == 0 ? (unsigned char)rnd() : i % 8 == 1 ? (unsigned char)below(4) : 0;
            break;
        case 3: /* words in random order */
            if (run == 0) {
                run = 1 + below(12);
                from = below((uint32_t)sizeof words - 1 - run);
            }
            p[i] = (unsigned char)words[from++];
            run--;
            break;
        case 4: /* a period */ p[i] = i < period ? (unsigned char)rnd() : p[i - period]; break;
        case 5: /* few symbols, no repetition: entropy alone */ p[i] = (unsigned char)below(6); break;
        default: /* random, then zeros */ p[i] = i < n / 2 ? (unsigned char)rnd() : 0; break;
        }
    }
}

static uint32_t some_size(void) {
    switch (below(4)) {
    case 0: return 1 + below(300);
    case 1: return PAGE << below(10);
    case 2: return 1 + below(1 << 17);
    default: return 1 + below(MAX);
    }
}

static void test_round_trips(us_codec_ctx_t *ctx, int codec) {
    unsigned char *src = malloc(MAX), *dst_end = fenced(us_codec_bound(MAX)), *out_end = fenced(MAX);
    CHECK(src);
    for (int i = 0; i < 120; i++) {
        uint32_t n = some_size(), bound = us_codec_bound(n);
        int level = codec == US_CODEC_ZSTD ? (int)below(8) - 3 : (int)below(10) - 1;
        content(src, n, i % KINDS);
        int len = us_compress(ctx, codec, level, src, n, dst_end - bound, bound);
        CHECK(len > 0 && (uint32_t)len <= bound);
        memset(out_end - n, 0xEE, n);
        CHECK(us_decompress(ctx, codec, dst_end - bound, (uint32_t)len, out_end - n, n) == 0);
        CHECK(memcmp(src, out_end - n, n) == 0);

        /* The smallest room still works or says that it does not fit; it never passes its end. */
        for (int j = 0; j < 4; j++) {
            uint32_t cap = j == 0 ? (uint32_t)len : j == 1 ? (uint32_t)len - 1 : below((uint32_t)len);
            int got = us_compress(ctx, codec, level, src, n, dst_end - cap, cap);
            CHECK(got >= 0 && (uint32_t)got <= cap);
            if (got) {
                CHECK(us_decompress(ctx, codec, dst_end - cap, (uint32_t)got, out_end - n, n) == 0);
                CHECK(memcmp(src, out_end - n, n) == 0);
            }
        }
    }
    free(src);
}

static void test_arguments(us_codec_ctx_t *ctx, int codec) {
    unsigned char a[64] = "argument", b[64] = {0};
    CHECK(us_codec_ready(US_CODEC_NONE) && us_codec_ready(codec));
    CHECK(!us_codec_ready(US_CODECS) && !us_codec_ready(-1));
    CHECK(us_codec_load(US_CODEC_NONE, "libm.so.6") == -EINVAL);
    CHECK(us_codec_load(US_CODECS, "libm.so.6") == -EINVAL);
    CHECK(us_codec_load(codec, "/nonexistent/lib.so") == -ENOENT);
    CHECK(us_codec_load(codec, "libc.so.6") == -ENOSYS);
    CHECK(us_codec_ready(codec));
    us_codec_ctx_t *none = ctx;
    CHECK(us_codec_ctx_new(&none, 0) == -EINVAL && !none);
    CHECK(us_codec_ctx_new(&none, US_CODEC_MAX + 1u) == -EINVAL && !none);
    us_codec_ctx_free(NULL);

    CHECK(us_compress(ctx, codec, 1, a, 0, b, 64) == -EINVAL);
    CHECK(us_compress(ctx, codec, 1, a, MAX + 1, b, 64) == -EINVAL);
    CHECK(us_compress(ctx, 3, 1, a, 64, b, 64) == -ENOSYS);
    CHECK(us_decompress(ctx, 3, a, 64, b, 64) == -ENOSYS);
    int other = codec == US_CODEC_LZ4 ? US_CODEC_ZSTD : US_CODEC_LZ4; /* not loaded in this process */
    CHECK(us_compress(ctx, other, 1, a, 64, b, 64) == -ENOSYS);
    CHECK(us_decompress(ctx, other, a, 64, b, 64) == -ENOSYS);

    CHECK(us_compress(ctx, US_CODEC_NONE, 1, a, 64, b, 63) == 0);
    CHECK(us_compress(ctx, US_CODEC_NONE, 1, a, 64, b, 64) == 64 && memcmp(a, b, 64) == 0);
    b[0] = 0;
    CHECK(us_decompress(ctx, US_CODEC_NONE, a, 64, b, 64) == 0 && memcmp(a, b, 64) == 0);
    CHECK(us_decompress(ctx, US_CODEC_NONE, a, 63, b, 64) == -EILSEQ);
    CHECK(us_decompress(ctx, codec, a, 0, b, 64) == -EILSEQ);
}

/* Damaged input gives an error, or other bytes of the right number; never a crash, never a byte too far. */
static void test_corruption(us_codec_ctx_t *ctx, int codec) {
    enum { BIG = 64 << 10 };
    unsigned char *src = malloc(BIG), *packed = malloc(us_codec_bound(BIG));
    unsigned char *in_end = fenced(2 * us_codec_bound(BIG)), *out_end = fenced(BIG + 1);
    CHECK(src && packed);
    int refused = 0;
    for (int i = 0; i < 3000; i++) {
        uint32_t n = i % 4 ? 1 + below(PAGE) : 1 + below(BIG);
        content(src, n, i % KINDS);
        int len = us_compress(ctx, codec, 1, src, n, packed, us_codec_bound(n));
        CHECK(len > 0);
        uint32_t in = (uint32_t)len, raw = n;
        switch (i / KINDS % 4) {
        case 0: /* cut short */ in = below(in); break;
        case 1: /* the wrong length asked for */ raw = below(2) ? n + 1 : n - 1; break;
        case 2: /* all of it garbage */
            for (uint32_t j = 0; j < in; j++)
                packed[j] = (unsigned char)rnd();
            break;
        default: /* some bits */
            for (uint32_t j = 1 + below(8); j > 0; j--)
                packed[below(below(2) && in > 16 ? 16 : in)] ^= (unsigned char)(1 << below(8));
            break;
        }
        memcpy(in_end - in, packed, in);
        unsigned char *out = out_end - raw;
        int rc = us_decompress(ctx, codec, in_end - in, in, out, raw);
        CHECK(rc == 0 || rc == -EILSEQ);
        if (i / KINDS % 4 == 1)
            CHECK(rc == -EILSEQ);
        if (i / KINDS % 4 == 0)
            CHECK(rc == -EILSEQ || memcmp(out, src, n) == 0);
        refused += rc != 0;
    }
    CHECK(refused > 1000);
    /* And the context is none the worse for it. */
    content(src, BIG, 3);
    int len = us_compress(ctx, codec, 1, src, BIG, packed, BIG);
    CHECK(len > 0 && us_decompress(ctx, codec, packed, (uint32_t)len, out_end - BIG, BIG) == 0);
    CHECK(memcmp(src, out_end - BIG, BIG) == 0);
    free(packed);
    free(src);
}

static size_t allocated(void) {
#if __GLIBC_PREREQ(2, 33)
    struct mallinfo2 m = mallinfo2(); /* zeros under a sanitizer */
    return m.uordblks + m.hblkhd;
#else
    return 0;
#endif
}

/* Sizes change under a context's feet all the time; it must neither allocate nor give up. */
static void test_steady(us_codec_ctx_t *ctx, int codec) {
    unsigned char *src = malloc(MAX), *dst = malloc(us_codec_bound(MAX)), *out = malloc(MAX);
    CHECK(src && dst && out);
    size_t before = allocated();
    for (int i = 0; i < 800; i++) {
        uint32_t n = i % 400 == 0 ? MAX : PAGE << below(3);
        content(src, n, i % KINDS);
        int len = us_compress(ctx, codec, 1 + i % US_CODEC_ZSTD_LEVEL, src, n, dst, us_codec_bound(n));
        CHECK(len > 0 && us_decompress(ctx, codec, dst, (uint32_t)len, out, n) == 0);
        CHECK(memcmp(src, out, n) == 0);
    }
    CHECK(allocated() == before);

    /* A high level enlarges the workspace once; the low ones go on as before. */
    static const int levels[] = {1, 12, 19, 22, 100, 3, -5};
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        uint32_t n = 200000 + below(1000);
        content(src, n, 3);
        int len = us_compress(ctx, codec, levels[i], src, n, dst, us_codec_bound(n));
        CHECK(len > 0 && us_decompress(ctx, codec, dst, (uint32_t)len, out, n) == 0);
        CHECK(memcmp(src, out, n) == 0);
    }
    free(src);
    free(dst);
    free(out);
}

static bool naive_filled(const unsigned char *p, size_t n) {
    for (size_t i = 8; i < n; i++)
        if (p[i] != p[i - 8])
            return false;
    return true;
}

static void test_filled(void) {
    enum { BIG = 64 << 10 };
    unsigned char *p = aligned_alloc(64, BIG);
    CHECK(p);
    for (int i = 0; i < 4000; i++) {
        size_t n = i % 8 ? PAGE : (size_t)PAGE << below(5);
        uint64_t word = below(2) ? rnd() << 20 ^ rnd() : below(2) * below(256) * 0x0101010101010101u;
        uint64_t got = ~word;
        us_fill(p, n, word);
        for (size_t j = 0; j < n; j += 8)
            CHECK(memcmp(p + j, &word, 8) == 0);
        CHECK(naive_filled(p, n) && us_is_filled(p, n, &got) && got == word);
        size_t at = below(4) ? below((uint32_t)n) : below(2) ? below(32) : n - 1 - below(32);
        p[at] ^= (unsigned char)(1 + below(255));
        CHECK(!naive_filled(p, n) && !us_is_filled(p, n, &got));
    }
    /* One value in every half of the word, and a word that repeats at another distance. */
    for (size_t j = 0; j < PAGE; j++)
        p[j] = (unsigned char)(j / 16 % 2);
    uint64_t got;
    CHECK(!us_is_filled(p, PAGE, &got));
    for (size_t j = 0; j < PAGE; j++)
        p[j] = (unsigned char)(j % 16);
    CHECK(!us_is_filled(p, PAGE, &got));
    free(p);
}

typedef struct tally {
    uint32_t tried, compressed, first; /* first: the first block tried, counted from 1 */
} tally_t;

static tally_t feed(us_probe_t *probe, us_codec_ctx_t *ctx, int codec, int kind, uint32_t n, uint32_t blocks) {
    unsigned char *src = malloc(n), *dst = malloc(n);
    CHECK(src && dst);
    tally_t t = {0};
    for (uint32_t i = 1; i <= blocks; i++) {
        if (kind == KINDS) {
            content(src, 2048, 0);
            for (uint32_t j = 2048; j < n; j += 2048)
                memcpy(src + j, src, 2048);
        } else {
            content(src, n, kind);
        }
        if (!us_probe_worth(probe, ctx, codec, src, n))
            continue;
        int len = us_compress(ctx, codec, 1, src, n, dst, n - n / 16);
        CHECK(len >= 0);
        us_probe_result(probe, len > 0);
        CHECK(probe->score <= US_PROBE_TOP && !probe->forced);
        t.tried++;
        t.compressed += len > 0;
        if (!t.first)
            t.first = i;
    }
    free(src);
    free(dst);
    return t;
}

static void test_probe(us_codec_ctx_t *ctx, int codec) {
    for (uint32_t n = PAGE; n <= 16 * PAGE; n *= 4) {
        us_probe_t probe = {0};
        /* What compresses is always tried. */
        tally_t t = feed(&probe, ctx, codec, 2, n, 200);
        CHECK(t.compressed == 200 && probe.score == 0);
        t = feed(&probe, ctx, codec, KINDS, n, 200);
        CHECK(t.compressed == 200);
        /* Random blocks: a few at first, then one in US_PROBE_FORCE. */
        t = feed(&probe, ctx, codec, 0, n, 640);
        CHECK(t.compressed == 0 && t.tried <= 640 / US_PROBE_FORCE + 4);
        CHECK(probe.score == US_PROBE_TOP);
        /* Compressible again: found at the next look, and soon tried every time. */
        t = feed(&probe, ctx, codec, 2, n, 200);
        CHECK(t.first <= US_PROBE_BLIND && t.compressed >= 200 - US_PROBE_BLIND);
        t = feed(&probe, ctx, codec, 0, n, 640);
        CHECK(probe.score == US_PROBE_TOP);
        t = feed(&probe, ctx, codec, 3, n, 200);
        CHECK(t.first <= US_PROBE_BLIND && t.compressed >= 200 - 2 * US_PROBE_BLIND);
        /* A period beyond the sample: found at the next try in full at the latest, then always. */
        t = feed(&probe, ctx, codec, 0, n, 640);
        t = feed(&probe, ctx, codec, KINDS, n, 200);
        CHECK(t.first <= US_PROBE_FORCE && t.compressed > 200 - US_PROBE_FORCE && probe.score == 0);
    }
    /* Whatever the phase, the next look is near. */
    for (uint32_t phase = 0; phase < US_PROBE_FORCE; phase++) {
        us_probe_t at = {.score = US_PROBE_TOP, .skips = phase};
        tally_t t = feed(&at, ctx, codec, 2, PAGE, US_PROBE_FORCE);
        CHECK(t.first && t.first <= US_PROBE_BLIND);
    }
    /* A block no larger than a sample is not sampled, and the state never wraps into nonsense. */
    us_probe_t probe = {.score = US_PROBE_TOP, .skips = UINT32_MAX - 1, .turn = UINT32_MAX - 1};
    unsigned char *src = calloc(1, 512);
    CHECK(src && us_probe_worth(&probe, ctx, codec, src, 512));
    free(src);
    feed(&probe, ctx, codec, 0, PAGE + 64, 100);
}

int codec_test_main(int codec, const char *path, unsigned long long with);

int codec_test_main(int codec, const char *path, unsigned long long with) {
    seed = with;
    state = with * 0x9E3779B97F4A7C15u + 1;
    CHECK(!us_codec_ready(codec));
    int rc = us_codec_load(codec, path);
    if (rc == -ENOENT || rc == -ENOSYS) {
        printf("%s: %s\n", path, strerror(-rc));
        fflush(stdout);
        return 77;
    }
    CHECK(rc == 0);
    us_codec_ctx_t *ctx;
    CHECK(us_codec_ctx_new(&ctx, MAX) == 0);
    test_arguments(ctx, codec);
    test_round_trips(ctx, codec);
    test_corruption(ctx, codec);
    test_steady(ctx, codec);
    test_filled();
    test_probe(ctx, codec);

    /* Loaded again while a context has the first one's functions: both go on. */
    us_codec_ctx_t *second;
    unsigned char a[PAGE] = {1}, b[PAGE], c[PAGE];
    CHECK(us_codec_load(codec, path) == 0 && us_codec_ctx_new(&second, PAGE) == 0);
    int len = us_compress(ctx, codec, 1, a, PAGE, b, PAGE);
    CHECK(len > 0 && us_decompress(second, codec, b, (uint32_t)len, c, PAGE) == 0 && memcmp(a, c, PAGE) == 0);
    us_codec_ctx_free(second);
    us_codec_ctx_free(ctx);
    return 0;
}

int main(int argc, char **argv) {
    return argc == 4 ? codec_test_main(atoi(argv[1]), argv[2], strtoull(argv[3], NULL, 10)) : 2;
}
