/* SPDX-License-Identifier: MIT */
#include "codec.h"
#include "alloc.h"

#include <dlfcn.h>
#include <emmintrin.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* --- The libraries' functions, declared as their headers do --- */

typedef struct lz4_fn {
    int (*sizeof_state)(void);
    int (*compress)(void *state, const char *src, char *dst, int n, int cap, int acceleration);
    int (*decompress)(const char *src, char *dst, int n, int cap);
} lz4_fn_t;

/* ZSTD_compressionParameters: seven 32-bit fields, passed by value, unchanged since 1.3.0. */
typedef struct zstd_params {
    unsigned field[7];
} zstd_params_t;

typedef struct zstd_fn {
    zstd_params_t (*params)(int level, unsigned long long n, size_t dict);
    size_t (*cctx_size)(zstd_params_t params);
    void *(*cctx_init)(void *workspace, size_t size);
    size_t (*dctx_size)(void);
    void *(*dctx_init)(void *workspace, size_t size);
    size_t (*compress)(void *cctx, void *dst, size_t cap, const void *src, size_t n, int level);
    size_t (*decompress)(void *dctx, void *dst, size_t cap, const void *src, size_t n);
    unsigned (*is_error)(size_t code);
} zstd_fn_t;

/* ZSTD_ErrorCode: an error is returned as (size_t)-code. Stable since 1.3.1, says zstd_errors.h. */
enum { ZSTD_MEMORY_ALLOCATION = 64, ZSTD_DST_TOO_SMALL = 70 };

enum { ZSTD_LEVEL_MAX = 22 };

typedef struct codec_fn {
    bool ready;
    lz4_fn_t lz4;
    zstd_fn_t zstd;
} codec_fn_t;

static codec_fn_t table[US_CODECS];

typedef struct symbol {
    const char *name;
    size_t offset; /* in codec_fn_t */
} symbol_t;

static const symbol_t lz4_symbols[] = {
    {"LZ4_sizeofState", offsetof(codec_fn_t, lz4.sizeof_state)},
    {"LZ4_compress_fast_extState", offsetof(codec_fn_t, lz4.compress)},
    {"LZ4_decompress_safe", offsetof(codec_fn_t, lz4.decompress)},
    {NULL, 0},
};

static const symbol_t zstd_symbols[] = {
    {"ZSTD_getCParams", offsetof(codec_fn_t, zstd.params)},
    {"ZSTD_estimateCCtxSize_usingCParams", offsetof(codec_fn_t, zstd.cctx_size)},
    {"ZSTD_initStaticCCtx", offsetof(codec_fn_t, zstd.cctx_init)},
    {"ZSTD_estimateDCtxSize", offsetof(codec_fn_t, zstd.dctx_size)},
    {"ZSTD_initStaticDCtx", offsetof(codec_fn_t, zstd.dctx_init)},
    {"ZSTD_compressCCtx", offsetof(codec_fn_t, zstd.compress)},
    {"ZSTD_decompressDCtx", offsetof(codec_fn_t, zstd.decompress)},
    {"ZSTD_isError", offsetof(codec_fn_t, zstd.is_error)},
    {NULL, 0},
};

/* --- Contexts --- */

struct us_codec_ctx {
    lz4_fn_t lz4;           /* copies: a codec that is loaded again must not meet the old library's state */
    zstd_fn_t zstd;         /* compress == NULL: not loaded when the context was made */
    void *filtered, *spare; /* max_block each, for filters */
    uint32_t max_block;
    void *lz4_state;
    void *zstd_cspace; /* holds the compression context; ZSTD never allocates beside it */
    void *zstd_dspace;
    void *zstd_cctx;
    void *zstd_dctx;
    int zstd_level;                  /* the highest level that fits in zstd_cspace */
    _Atomic uint64_t decompressions; /* written by the context's thread only */
};

enum { ALIGN = 64 };

static void *alloc_aligned(size_t size) { return us_aligned_alloc(ALIGN, (size + ALIGN - 1) & ~(size_t)(ALIGN - 1)); }

/* The most that any level up to this one wants for any block up to max_block: not monotone in either. */
static size_t zstd_space(const zstd_fn_t *fn, int level, uint32_t max_block) {
    size_t most = 0;
    for (int l = 1; l <= level; l++) {
        for (unsigned long long n = 4096;; n *= 2) {
            size_t size = fn->cctx_size(fn->params(l, n, 0));
            if (!fn->is_error(size) && size > most)
                most = size;
            if (n >= max_block)
                break;
        }
    }
    return most;
}

/*
 * A static context, because one made by ZSTD_createCCtx allocates at the first use and, when 128 blocks
 * in a row used a third of its workspace, frees it and allocates a smaller one.
 */
static int zstd_grow(us_codec_ctx_t *ctx, int level) {
    if (level < US_CODEC_ZSTD_LEVEL)
        level = US_CODEC_ZSTD_LEVEL;
    if (level > ZSTD_LEVEL_MAX)
        level = ZSTD_LEVEL_MAX;
    size_t size = zstd_space(&ctx->zstd, level, ctx->max_block);
    void *space = alloc_aligned(size);
    if (!space)
        return -ENOMEM;
    void *cctx = ctx->zstd.cctx_init(space, size);
    if (!cctx) {
        free(space);
        return -EIO;
    }
    free(ctx->zstd_cspace);
    ctx->zstd_cspace = space;
    ctx->zstd_cctx = cctx;
    ctx->zstd_level = level;
    return 0;
}

static int ctx_init(us_codec_ctx_t *ctx) {
    ctx->filtered = alloc_aligned(ctx->max_block);
    ctx->spare = alloc_aligned(ctx->max_block);
    if (!ctx->filtered || !ctx->spare)
        return -ENOMEM;
    if (ctx->lz4.compress) {
        ctx->lz4_state = alloc_aligned((size_t)ctx->lz4.sizeof_state());
        if (!ctx->lz4_state)
            return -ENOMEM;
    }
    if (ctx->zstd.compress) {
        int rc = zstd_grow(ctx, US_CODEC_ZSTD_LEVEL);
        if (rc)
            return rc;
        size_t size = ctx->zstd.dctx_size();
        ctx->zstd_dspace = alloc_aligned(size);
        if (!ctx->zstd_dspace)
            return -ENOMEM;
        ctx->zstd_dctx = ctx->zstd.dctx_init(ctx->zstd_dspace, size);
        if (!ctx->zstd_dctx)
            return -EIO;
    }
    return 0;
}

static int ctx_new(us_codec_ctx_t **out, uint32_t max_block, const codec_fn_t *lz4, const codec_fn_t *zstd) {
    *out = NULL;
    if (max_block == 0 || max_block > US_CODEC_MAX)
        return -EINVAL;
    us_codec_ctx_t *ctx = us_calloc(1, sizeof *ctx);
    if (!ctx)
        return -ENOMEM;
    ctx->max_block = max_block;
    if (lz4->ready)
        ctx->lz4 = lz4->lz4;
    if (zstd->ready)
        ctx->zstd = zstd->zstd;
    int rc = ctx_init(ctx);
    if (rc) {
        us_codec_ctx_free(ctx);
        return rc;
    }
    *out = ctx;
    return 0;
}

int us_codec_ctx_new(us_codec_ctx_t **out, uint32_t max_block) {
    return ctx_new(out, max_block, &table[US_CODEC_LZ4], &table[US_CODEC_ZSTD]);
}

void us_codec_ctx_free(us_codec_ctx_t *ctx) {
    if (!ctx)
        return;
    free(ctx->lz4_state);
    free(ctx->zstd_cspace);
    free(ctx->zstd_dspace);
    free(ctx->filtered);
    free(ctx->spare);
    free(ctx);
}

/* --- Compression --- */

/* LZ4: n + n/255 + 16. ZSTD: n + n/256, and up to 64 more below 128 KiB; its frame header is within that. */
uint32_t us_codec_bound(uint32_t n) { return n + n / 255 + 128; }

static int zstd_compress(us_codec_ctx_t *ctx, int level, const void *src, uint32_t n, void *dst, uint32_t cap) {
    if (level > ctx->zstd_level && ctx->zstd_level < ZSTD_LEVEL_MAX) {
        int rc = zstd_grow(ctx, level);
        if (rc)
            return rc;
    }
    size_t len = ctx->zstd.compress(ctx->zstd_cctx, dst, cap, src, n, level);
    if (!ctx->zstd.is_error(len))
        return (int)len;
    if (len == (size_t)-ZSTD_DST_TOO_SMALL)
        return 0;
    return len == (size_t)-ZSTD_MEMORY_ALLOCATION ? -ENOMEM : -EIO;
}

int us_compress(us_codec_ctx_t *ctx, int codec, int level, const void *src, uint32_t n, void *dst, uint32_t cap) {
    if (n == 0 || n > ctx->max_block)
        return -EINVAL;
    if (cap > INT32_MAX)
        cap = INT32_MAX;
    const int filter = us_codec_filter(codec);
    if (filter != US_FILTER_NONE) {
        if (!us_codec_known(codec))
            return -ENOSYS;
        if (n % US_FILTER_UNIT != 0)
            return -EINVAL;
        us_filter_do(filter, src, ctx->filtered, ctx->spare, n);
        src = ctx->filtered;
    }
    switch (us_codec_base(codec)) {
    case US_CODEC_NONE:
        if (n > cap)
            return 0;
        memcpy(dst, src, n);
        return (int)n;
    case US_CODEC_LZ4:
        if (!ctx->lz4.compress)
            return -ENOSYS;
        return ctx->lz4.compress(ctx->lz4_state, src, dst, (int)n, (int)cap, level);
    case US_CODEC_ZSTD:
        if (!ctx->zstd.compress)
            return -ENOSYS;
        return zstd_compress(ctx, level, src, n, dst, cap);
    default: return -ENOSYS;
    }
}

void *us_codec_spare(us_codec_ctx_t *ctx) { return ctx->spare; }

uint64_t us_codec_decompressions(const us_codec_ctx_t *ctx) {
    return us_atomic_load_explicit(&ctx->decompressions, memory_order_relaxed);
}

static int decompress_base(us_codec_ctx_t *ctx, int codec, const void *src, uint32_t n, void *dst, uint32_t raw) {
    switch (codec) {
    case US_CODEC_NONE:
        if (n != raw)
            return -EILSEQ;
        memcpy(dst, src, n);
        return 0;
    case US_CODEC_LZ4:
        if (!ctx->lz4.compress)
            return -ENOSYS;
        return ctx->lz4.decompress(src, dst, (int)n, (int)raw) == (int)raw ? 0 : -EILSEQ;
    case US_CODEC_ZSTD:
        if (!ctx->zstd.compress)
            return -ENOSYS;
        return ctx->zstd.decompress(ctx->zstd_dctx, dst, raw, src, n) == raw ? 0 : -EILSEQ;
    default: return -ENOSYS;
    }
}

int us_decompress(us_codec_ctx_t *ctx, int codec, const void *src, uint32_t n, void *dst, uint32_t raw) {
    if (n > INT32_MAX || raw > INT32_MAX)
        return -EILSEQ;
    if (codec != US_CODEC_NONE)
        us_atomic_store_explicit(&ctx->decompressions, us_codec_decompressions(ctx) + 1, memory_order_relaxed);
    const int filter = us_codec_filter(codec);
    if (filter == US_FILTER_NONE)
        return decompress_base(ctx, codec, src, n, dst, raw);
    if (!us_codec_known(codec))
        return -ENOSYS;
    if (raw > ctx->max_block || raw % US_FILTER_UNIT != 0)
        return -EILSEQ;
    const int err = decompress_base(ctx, us_codec_base(codec), src, n, ctx->filtered, raw);
    if (err == 0)
        us_filter_undo(filter, ctx->filtered, dst, ctx->spare, raw);
    return err;
}

/* --- Loading, and the proof --- */

static uint64_t xorshift(uint64_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

enum { PROOF_MAX = 128 << 10 };

/* Five kinds of content: one byte repeated, random, small integers, a long period, both halves mixed. */
enum { PROOF_KINDS = 5 };

static void proof_content(unsigned char *p, uint32_t n, int kind) {
    uint64_t x = 0x9E3779B97F4A7C15u + n;
    for (uint32_t i = 0; i < n; i++) {
        switch (kind) {
        case 0: p[i] = 0x5A; break;
        case 1: p[i] = (unsigned char)xorshift(&x); break;
        case 2: p[i] = i % 8 < 2 ? (unsigned char)(xorshift(&x) & (i % 8 ? 3 : 255)) : 0; break;
        case 3: p[i] = i < 2048 ? (unsigned char)xorshift(&x) : p[i - 2048]; break;
        default: p[i] = i < n / 2 ? (unsigned char)xorshift(&x) : (unsigned char)(i / 7); break;
        }
    }
}

/* The bytes behind raw are a fence: a library that writes past its room is not used either. */
static bool proof_one(us_codec_ctx_t *ctx, int codec, const unsigned char *src, uint32_t n, unsigned char *packed,
                      unsigned char *raw) {
    enum { FENCE = 64 };
    uint32_t bound = us_codec_bound(n);
    int len = us_compress(ctx, codec, 1, src, n, packed, bound);
    if (len <= 0 || (uint32_t)len > bound)
        return false;
    memset(raw, 0xA5, n + FENCE);
    if (us_decompress(ctx, codec, packed, (uint32_t)len, raw, n) || memcmp(raw, src, n) != 0)
        return false;
    for (int i = 0; i < FENCE; i++)
        if (raw[n + (uint32_t)i] != 0xA5)
            return false;
    /* One byte less room than it needs, and one byte less input, must both be refused. */
    memset(packed + len, 0xA5, FENCE);
    if (us_decompress(ctx, codec, packed, (uint32_t)len - 1, raw, n) == 0)
        return false;
    int tight = us_compress(ctx, codec, 1, src, n, packed, (uint32_t)len - 1);
    if (tight < 0 || tight >= len)
        return false;
    for (int i = 0; i < FENCE; i++)
        if (packed[len + i] != 0xA5)
            return false;
    return true;
}

static int prove(int codec, const codec_fn_t *fn) {
    static const uint32_t sizes[] = {1, 13, 4096, 65536, PROOF_MAX};
    static const codec_fn_t nothing;
    us_codec_ctx_t *ctx = NULL;
    int rc = ctx_new(&ctx, PROOF_MAX, codec == US_CODEC_LZ4 ? fn : &nothing, codec == US_CODEC_ZSTD ? fn : &nothing);
    if (rc)
        return rc;
    const size_t room = us_codec_bound(PROOF_MAX) + ALIGN;
    unsigned char *buf = us_malloc(3 * room);
    rc = buf ? 0 : -ENOMEM;
    for (size_t i = 0; !rc && i < sizeof sizes / sizeof *sizes; i++) {
        for (int kind = 0; !rc && kind < PROOF_KINDS; kind++) {
            proof_content(buf, sizes[i], kind);
            if (!proof_one(ctx, codec, buf, sizes[i], buf + room, buf + 2 * room))
                rc = -EILSEQ;
        }
    }
    free(buf);
    us_codec_ctx_free(ctx);
    return rc;
}

int us_codec_load(int codec, const char *path) {
    if (codec != US_CODEC_LZ4 && codec != US_CODEC_ZSTD)
        return -EINVAL;
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return -ENOENT;
    codec_fn_t fn = {.ready = true};
    int rc = 0;
    for (const symbol_t *s = codec == US_CODEC_LZ4 ? lz4_symbols : zstd_symbols; s->name; s++) {
        void *f = dlsym(lib, s->name);
        if (!f)
            rc = -ENOSYS;
        memcpy((char *)&fn + s->offset, &f, sizeof f);
    }
    if (!rc)
        rc = prove(codec, &fn);
    if (rc) {
        dlclose(lib);
        return rc;
    }
    /* The library stays open for good: contexts that exist may hold an earlier one's functions, too. */
    table[codec] = fn;
    return 0;
}

bool us_codec_ready(int codec) {
    if (!us_codec_known(codec))
        return false;
    return codec == US_CODEC_NONE || table[us_codec_base(codec)].ready;
}

/* --- Blocks of one repeated word --- */

bool us_is_filled(const void *p, size_t n, uint64_t *word) {
    const uint64_t *w = p;
    uint64_t first = w[0];
    /* Most blocks differ at once, and those that begin with a run (a padded header) mostly at the end. */
    if (w[1] != first || w[n / 8 - 1] != first)
        return false;
    const __m128i *v = p, *end = v + n / 16;
    const __m128i want = _mm_set1_epi64x((long long)first);
    for (; v < end; v += 4) {
        __m128i a = _mm_and_si128(_mm_cmpeq_epi32(v[0], want), _mm_cmpeq_epi32(v[1], want));
        __m128i b = _mm_and_si128(_mm_cmpeq_epi32(v[2], want), _mm_cmpeq_epi32(v[3], want));
        if (_mm_movemask_epi8(_mm_and_si128(a, b)) != 0xFFFF)
            return false;
    }
    *word = first;
    return true;
}

void us_fill(void *p, size_t n, uint64_t word) {
    __m128i *v = p, *end = v + n / 16;
    const __m128i w = _mm_set1_epi64x((long long)word);
    for (; v < end; v += 4) {
        v[0] = w;
        v[1] = w;
        v[2] = w;
        v[3] = w;
    }
}

/* --- The probe --- */

/*
 * Measured on one machine, in microseconds a block of 4 / 16 / 64 KiB that does not compress:
 *
 *                          lz4                zstd, level 1
 *   tried in full          0.9 / 2.0 / 3.5    2.6 / 7 / 7
 *   sampled                0.5 to 0.7         1.2
 *   at US_PROBE_TOP, mean  0.3 / 0.4 / 0.6    0.5 / 0.9 / 1.0   (tries in full included)
 *
 * LZ4 gives up early by itself, so that sampling a 4 KiB block spares little: what saves there is not to
 * look. Random float32 and a float64 random walk are misses for lz4; zstd gains 7 to 9 % on them, by
 * entropy alone, at 4 to 10 times the cost of a miss; at 4 KiB the sample refuses most of that float32.
 * Int64 below 1000, source text and decimals in float64 were never refused by a sample.
 *
 * What it misses: after a run of misses, up to US_PROBE_BLIND - 1 blocks when data turns compressible,
 * and up to US_PROBE_FORCE - 1 when it repeats only at a distance longer than the sample (random data
 * with a period of 2 KiB); a block half of which compresses is refused about every second time.
 *
 * LZ4_compress_fast_extState_fastReset was tried for the sample: no faster, and Debian's liblz4 hides it.
 */
enum { SAMPLE = 1024 };

/* By its filter or without: what a region's filter is no good for may be text among numbers. */
static bool sample_compresses(us_codec_ctx_t *ctx, int codec, const void *p) {
    unsigned char out[SAMPLE];
    const uint32_t cap = SAMPLE - SAMPLE / 32;
    return us_compress(ctx, codec, 1, p, SAMPLE, out, cap) > 0 ||
           (us_codec_filter(codec) != US_FILTER_NONE &&
            us_compress(ctx, us_codec_base(codec), 1, p, SAMPLE, out, cap) > 0);
}

bool us_probe_worth(us_probe_t *probe, us_codec_ctx_t *ctx, int codec, const void *p, uint32_t n) {
    if (probe->score < US_PROBE_ON || n <= SAMPLE)
        return true;
    uint32_t skips = ++probe->skips;
    if (skips % US_PROBE_FORCE == 0) {
        probe->forced = 1;
        return true;
    }
    if (probe->score == US_PROBE_TOP && skips % US_PROBE_BLIND != 0)
        return false;
    /* Fibonacci hashing walks the window over the block: a block half of which compresses is found soon. */
    uint32_t at = (uint32_t)((uint64_t)(probe->turn++ * 2654435769u) * (n - SAMPLE) >> 32) & ~63u;
    return sample_compresses(ctx, codec, (const char *)p + at);
}

void us_probe_result(us_probe_t *probe, bool compressed) {
    if (!compressed)
        probe->score = probe->score + 2 > US_PROBE_TOP ? US_PROBE_TOP : probe->score + 2;
    else if (probe->forced)
        probe->score = 0; /* the sample is wrong about these blocks */
    else if (probe->score > 0)
        probe->score--;
    probe->forced = 0;
}
