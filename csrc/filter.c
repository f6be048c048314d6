/* SPDX-License-Identifier: MIT */
#include "filter.h"

#include <immintrin.h>

static inline __m128i load(const uint8_t *p) { return _mm_loadu_si128((const void *)p); }
static inline __m128i load_half(const uint8_t *p) { return _mm_loadl_epi64((const void *)p); }
static inline void store(uint8_t *p, __m128i v) { _mm_storeu_si128((void *)p, v); }

/* ---- bytes ------------------------------------------------------------------------------------------
 *
 * 16 items of 2, 4 or 8 bytes fill as many registers. The number of a byte in them is, in bits, iiii k..k before the
 * shuffle (item, byte of the item) and k..k iiii after it. A round interleaves the first half of the registers with
 * the second, byte by byte, and so turns these bits left by one: four rounds shuffle, and one, two or three, as many
 * as there are k, unshuffle.
 */

/* The definition, and what the tests compare the others with. */
static void shuffle_c(uint32_t item, const uint8_t *src, uint8_t *dst, uint32_t n) {
    const uint32_t row = n / item;
    for (uint32_t i = 0; i < row; i++)
        for (uint32_t k = 0; k < item; k++)
            dst[k * row + i] = src[i * item + k];
}

static void unshuffle_c(uint32_t item, const uint8_t *src, uint8_t *dst, uint32_t n) {
    const uint32_t row = n / item;
    for (uint32_t i = 0; i < row; i++)
        for (uint32_t k = 0; k < item; k++)
            dst[i * item + k] = src[k * row + i];
}

typedef struct two {
    __m128i r[2];
} two_t;
typedef struct four {
    __m128i r[4];
} four_t;
typedef struct eight {
    __m128i r[8];
} eight_t;

static inline two_t round2(two_t v) {
    return (two_t){{_mm_unpacklo_epi8(v.r[0], v.r[1]), _mm_unpackhi_epi8(v.r[0], v.r[1])}};
}

static inline four_t round4(four_t v) {
    return (four_t){{_mm_unpacklo_epi8(v.r[0], v.r[2]), _mm_unpackhi_epi8(v.r[0], v.r[2]),
                     _mm_unpacklo_epi8(v.r[1], v.r[3]), _mm_unpackhi_epi8(v.r[1], v.r[3])}};
}

static inline eight_t round8(eight_t v) {
    return (eight_t){{_mm_unpacklo_epi8(v.r[0], v.r[4]), _mm_unpackhi_epi8(v.r[0], v.r[4]),
                      _mm_unpacklo_epi8(v.r[1], v.r[5]), _mm_unpackhi_epi8(v.r[1], v.r[5]),
                      _mm_unpacklo_epi8(v.r[2], v.r[6]), _mm_unpackhi_epi8(v.r[2], v.r[6]),
                      _mm_unpacklo_epi8(v.r[3], v.r[7]), _mm_unpackhi_epi8(v.r[3], v.r[7])}};
}

/* Registers that lie `apart` bytes from each other. */
static inline two_t load2(const uint8_t *p, uint64_t apart) { return (two_t){{load(p), load(p + apart)}}; }

static inline four_t load4(const uint8_t *p, uint64_t apart) {
    return (four_t){{load(p), load(p + apart), load(p + 2 * apart), load(p + 3 * apart)}};
}

static inline eight_t load8(const uint8_t *p, uint64_t apart) {
    const four_t a = load4(p, apart), b = load4(p + 4 * apart, apart);
    return (eight_t){{a.r[0], a.r[1], a.r[2], a.r[3], b.r[0], b.r[1], b.r[2], b.r[3]}};
}

static inline void store2(uint8_t *p, uint64_t apart, two_t v) {
    store(p, v.r[0]);
    store(p + apart, v.r[1]);
}

static inline void store4(uint8_t *p, uint64_t apart, four_t v) {
    store2(p, apart, (two_t){{v.r[0], v.r[1]}});
    store2(p + 2 * apart, apart, (two_t){{v.r[2], v.r[3]}});
}

static inline void store8(uint8_t *p, uint64_t apart, eight_t v) {
    store4(p, apart, (four_t){{v.r[0], v.r[1], v.r[2], v.r[3]}});
    store4(p + 4 * apart, apart, (four_t){{v.r[4], v.r[5], v.r[6], v.r[7]}});
}

static void shuffle_sse2(uint32_t item, const uint8_t *src, uint8_t *dst, uint32_t n) {
    const uint32_t row = n / item;
    if (item == 2) {
        for (uint32_t i = 0; i < row; i += 16)
            store2(dst + i, row, round2(round2(round2(round2(load2(src + 2 * i, 16))))));
    } else if (item == 4) {
        for (uint32_t i = 0; i < row; i += 16)
            store4(dst + i, row, round4(round4(round4(round4(load4(src + 4 * i, 16))))));
    } else {
        for (uint32_t i = 0; i < row; i += 16)
            store8(dst + i, row, round8(round8(round8(round8(load8(src + 8 * i, 16))))));
    }
}

static void unshuffle_sse2(uint32_t item, const uint8_t *src, uint8_t *dst, uint32_t n) {
    const uint32_t row = n / item;
    if (item == 2) {
        for (uint32_t i = 0; i < row; i += 16)
            store2(dst + 2 * i, 16, round2(load2(src + i, row)));
    } else if (item == 4) {
        for (uint32_t i = 0; i < row; i += 16)
            store4(dst + 4 * i, 16, round4(round4(load4(src + i, row))));
    } else {
        for (uint32_t i = 0; i < row; i += 16)
            store8(dst + 8 * i, 16, round8(round8(round8(load8(src + i, row)))));
    }
}

/*
 * AVX2: the same with 16 items in each half of the registers, the first half of the 32 in the lower one. To shuffle,
 * the bytes of the items in a half register are put together first, by one instruction; then these groups are
 * interleaved, by as many rounds as there are k.
 */
#define AVX2 __attribute__((target("avx2")))

typedef struct wide2 {
    __m256i r[2];
} wide2_t;
typedef struct wide4 {
    __m256i r[4];
} wide4_t;
typedef struct wide8 {
    __m256i r[8];
} wide8_t;

AVX2 static inline __m256i wide_load(const uint8_t *p) { return _mm256_loadu_si256((const void *)p); }
AVX2 static inline void wide_store(uint8_t *p, __m256i v) { _mm256_storeu_si256((void *)p, v); }

AVX2 static inline __m256i load_halves(const uint8_t *p, uint64_t apart) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load(p)), load(p + apart), 1);
}

AVX2 static inline void store_halves(uint8_t *p, uint64_t apart, __m256i v) {
    store(p, _mm256_castsi256_si128(v));
    store(p + apart, _mm256_extracti128_si256(v, 1));
}

AVX2 static void shuffle2_avx2(const uint8_t *src, uint8_t *dst, uint32_t row) {
    const __m256i group =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    for (uint32_t i = 0; i < row; i += 32) {
        const __m256i a = _mm256_shuffle_epi8(load_halves(src + 2 * i, 32), group);
        const __m256i b = _mm256_shuffle_epi8(load_halves(src + 2 * i + 16, 32), group);
        wide_store(dst + i, _mm256_unpacklo_epi64(a, b));
        wide_store(dst + row + i, _mm256_unpackhi_epi64(a, b));
    }
}

AVX2 static inline wide4_t group_round4(wide4_t v) {
    return (wide4_t){{_mm256_unpacklo_epi32(v.r[0], v.r[2]), _mm256_unpackhi_epi32(v.r[0], v.r[2]),
                      _mm256_unpacklo_epi32(v.r[1], v.r[3]), _mm256_unpackhi_epi32(v.r[1], v.r[3])}};
}

AVX2 static void shuffle4_avx2(const uint8_t *src, uint8_t *dst, uint32_t row) {
    const __m256i group =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    for (uint32_t i = 0; i < row; i += 32) {
        wide4_t v;
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            v.r[r] = _mm256_shuffle_epi8(load_halves(src + 4 * i + 16 * r, 64), group);
        v = group_round4(group_round4(v));
#pragma GCC unroll 4
        for (uint32_t k = 0; k < 4; k++)
            wide_store(dst + k * row + i, v.r[k]);
    }
}

AVX2 static inline wide8_t group_round8(wide8_t v) {
    return (wide8_t){{_mm256_unpacklo_epi16(v.r[0], v.r[4]), _mm256_unpackhi_epi16(v.r[0], v.r[4]),
                      _mm256_unpacklo_epi16(v.r[1], v.r[5]), _mm256_unpackhi_epi16(v.r[1], v.r[5]),
                      _mm256_unpacklo_epi16(v.r[2], v.r[6]), _mm256_unpackhi_epi16(v.r[2], v.r[6]),
                      _mm256_unpacklo_epi16(v.r[3], v.r[7]), _mm256_unpackhi_epi16(v.r[3], v.r[7])}};
}

AVX2 static void shuffle8_avx2(const uint8_t *src, uint8_t *dst, uint32_t row) {
    const __m256i group =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    for (uint32_t i = 0; i < row; i += 32) {
        wide8_t v;
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
            v.r[r] = _mm256_shuffle_epi8(load_halves(src + 8 * i + 16 * r, 128), group);
        v = group_round8(group_round8(group_round8(v)));
#pragma GCC unroll 8
        for (uint32_t k = 0; k < 8; k++)
            wide_store(dst + k * row + i, v.r[k]);
    }
}

AVX2 static void unshuffle2_avx2(const uint8_t *src, uint8_t *dst, uint32_t row) {
    for (uint32_t i = 0; i < row; i += 32) {
        const __m256i a = wide_load(src + i), b = wide_load(src + row + i);
        store_halves(dst + 2 * i, 32, _mm256_unpacklo_epi8(a, b));
        store_halves(dst + 2 * i + 16, 32, _mm256_unpackhi_epi8(a, b));
    }
}

AVX2 static inline wide4_t wide_round4(wide4_t v) {
    return (wide4_t){{_mm256_unpacklo_epi8(v.r[0], v.r[2]), _mm256_unpackhi_epi8(v.r[0], v.r[2]),
                      _mm256_unpacklo_epi8(v.r[1], v.r[3]), _mm256_unpackhi_epi8(v.r[1], v.r[3])}};
}

AVX2 static void unshuffle4_avx2(const uint8_t *src, uint8_t *dst, uint32_t row) {
    for (uint32_t i = 0; i < row; i += 32) {
        wide4_t v;
#pragma GCC unroll 4
        for (uint32_t k = 0; k < 4; k++)
            v.r[k] = wide_load(src + k * row + i);
        v = wide_round4(wide_round4(v));
        /* Of items of 4 bytes the stores are what takes the time, so the halves are put together for them. */
        wide_store(dst + 4 * i, _mm256_permute2x128_si256(v.r[0], v.r[1], 0x20));
        wide_store(dst + 4 * i + 32, _mm256_permute2x128_si256(v.r[2], v.r[3], 0x20));
        wide_store(dst + 4 * i + 64, _mm256_permute2x128_si256(v.r[0], v.r[1], 0x31));
        wide_store(dst + 4 * i + 96, _mm256_permute2x128_si256(v.r[2], v.r[3], 0x31));
    }
}

AVX2 static inline wide8_t wide_round8(wide8_t v) {
    return (wide8_t){{_mm256_unpacklo_epi8(v.r[0], v.r[4]), _mm256_unpackhi_epi8(v.r[0], v.r[4]),
                      _mm256_unpacklo_epi8(v.r[1], v.r[5]), _mm256_unpackhi_epi8(v.r[1], v.r[5]),
                      _mm256_unpacklo_epi8(v.r[2], v.r[6]), _mm256_unpackhi_epi8(v.r[2], v.r[6]),
                      _mm256_unpacklo_epi8(v.r[3], v.r[7]), _mm256_unpackhi_epi8(v.r[3], v.r[7])}};
}

AVX2 static void unshuffle8_avx2(const uint8_t *src, uint8_t *dst, uint32_t row) {
    for (uint32_t i = 0; i < row; i += 32) {
        wide8_t v;
#pragma GCC unroll 8
        for (uint32_t k = 0; k < 8; k++)
            v.r[k] = wide_load(src + k * row + i);
        v = wide_round8(wide_round8(wide_round8(v)));
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
            store_halves(dst + 8 * i + 16 * r, 128, v.r[r]);
    }
}

static void shuffle_avx2(uint32_t item, const uint8_t *src, uint8_t *dst, uint32_t n) {
    if (item == 2)
        shuffle2_avx2(src, dst, n / 2);
    else if (item == 4)
        shuffle4_avx2(src, dst, n / 4);
    else
        shuffle8_avx2(src, dst, n / 8);
}

static void unshuffle_avx2(uint32_t item, const uint8_t *src, uint8_t *dst, uint32_t n) {
    if (item == 2)
        unshuffle2_avx2(src, dst, n / 2);
    else if (item == 4)
        unshuffle4_avx2(src, dst, n / 4);
    else
        unshuffle8_avx2(src, dst, n / 8);
}

/* The compiler's runtime has asked the CPU and the kernel before main, or when the core was loaded: this reads a word. */
int us_shuffle_level(void) { return __builtin_cpu_supports("avx2") ? US_SHUFFLE_AVX2 : US_SHUFFLE_SSE2; }

void us_shuffle(int level, uint32_t item, const void *src, void *dst, uint32_t n) {
    if (level == US_SHUFFLE_AVX2)
        shuffle_avx2(item, src, dst, n);
    else if (level == US_SHUFFLE_SSE2)
        shuffle_sse2(item, src, dst, n);
    else
        shuffle_c(item, src, dst, n);
}

void us_unshuffle(int level, uint32_t item, const void *src, void *dst, uint32_t n) {
    if (level == US_SHUFFLE_AVX2)
        unshuffle_avx2(item, src, dst, n);
    else if (level == US_SHUFFLE_SSE2)
        unshuffle_sse2(item, src, dst, n);
    else
        unshuffle_c(item, src, dst, n);
}

/* ---- bits -------------------------------------------------------------------------------------------
 *
 * A row of bytes becomes eight rows of bits, the lowest bits first. Eight bytes are a matrix of 8 x 8 bits in
 * a 64-bit lane; to turn it swaps bits 7 apart, then pairs 14 apart, then fours 28 apart.
 *
 * 3.8 GB/s on the machine of TRIED.md, as fast as blosc2's bitshuffle (with AVX2, and its malloc).
 */

static inline __m128i swap(__m128i x, int by, long long mask) {
    const __m128i t = _mm_and_si128(_mm_xor_si128(x, _mm_srli_epi64(x, by)), _mm_set1_epi64x(mask));
    return _mm_xor_si128(x, _mm_xor_si128(t, _mm_slli_epi64(t, by)));
}

static inline __m128i turn(__m128i x) {
    x = swap(x, 7, 0x00AA00AA00AA00AA);
    x = swap(x, 14, 0x0000CCCC0000CCCC);
    return swap(x, 28, 0x00000000F0F0F0F0);
}

/* 16 bytes: the halves' bytes by turns. */
static inline __m128i zip_halves(__m128i v) { return _mm_unpacklo_epi8(v, _mm_unpackhi_epi64(v, v)); }

static inline void store_two(uint8_t *first, uint8_t *second, __m128i v) {
    _mm_storel_epi64((void *)first, v);
    _mm_storel_epi64((void *)second, _mm_unpackhi_epi64(v, v));
}

/* pre: len is a multiple of 64. */
static void split_bits(const uint8_t *src, uint8_t *dst, uint32_t len) {
    const uint32_t row = len / 8;
    for (uint32_t i = 0; i < row; i += 8) {
        const uint8_t *s = src + 8 * (uint64_t)i;
        uint8_t *d = dst + i;
        const __m128i a = zip_halves(turn(load(s))), b = zip_halves(turn(load(s + 16)));
        const __m128i c = zip_halves(turn(load(s + 32))), e = zip_halves(turn(load(s + 48)));
        const __m128i ab = _mm_unpacklo_epi16(a, b), ab4 = _mm_unpackhi_epi16(a, b); /* rows 0 to 3, 4 to 7 */
        const __m128i ce = _mm_unpacklo_epi16(c, e), ce4 = _mm_unpackhi_epi16(c, e);
        store_two(d, d + row, _mm_unpacklo_epi32(ab, ce));
        store_two(d + 2 * row, d + 3 * row, _mm_unpackhi_epi32(ab, ce));
        store_two(d + 4 * row, d + 5 * row, _mm_unpacklo_epi32(ab4, ce4));
        store_two(d + 6 * row, d + 7 * row, _mm_unpackhi_epi32(ab4, ce4));
    }
}

static void join_bits(const uint8_t *src, uint8_t *dst, uint32_t len) {
    const uint32_t row = len / 8;
    for (uint32_t i = 0; i < row; i += 8) {
        const uint8_t *s = src + i;
        uint8_t *d = dst + 8 * (uint64_t)i;
        const __m128i r01 = _mm_unpacklo_epi8(load_half(s), load_half(s + row));
        const __m128i r23 = _mm_unpacklo_epi8(load_half(s + 2 * row), load_half(s + 3 * row));
        const __m128i r45 = _mm_unpacklo_epi8(load_half(s + 4 * row), load_half(s + 5 * row));
        const __m128i r67 = _mm_unpacklo_epi8(load_half(s + 6 * row), load_half(s + 7 * row));
        const __m128i a = _mm_unpacklo_epi16(r01, r23), b = _mm_unpackhi_epi16(r01, r23);
        const __m128i c = _mm_unpacklo_epi16(r45, r67), e = _mm_unpackhi_epi16(r45, r67);
        store(d, turn(_mm_unpacklo_epi32(a, c)));
        store(d + 16, turn(_mm_unpackhi_epi32(a, c)));
        store(d + 32, turn(_mm_unpacklo_epi32(b, e)));
        store(d + 48, turn(_mm_unpackhi_epi32(b, e)));
    }
}

/* ---- filters ---------------------------------------------------------------------------------------- */

void us_filter_do(int filter, const void *src, void *dst, void *spare, uint32_t n) {
    const uint32_t item = us_filter_item(filter), row = n / item;
    const bool is_bit = us_filter_is_bit(filter);
    us_shuffle(us_shuffle_level(), item, src, is_bit ? spare : dst, n);
    for (uint32_t at = 0; is_bit && at < n; at += row)
        split_bits((const uint8_t *)spare + at, (uint8_t *)dst + at, row);
}

void us_filter_undo(int filter, const void *src, void *dst, void *spare, uint32_t n) {
    const uint32_t item = us_filter_item(filter), row = n / item;
    const bool is_bit = us_filter_is_bit(filter);
    for (uint32_t at = 0; is_bit && at < n; at += row)
        join_bits((const uint8_t *)src + at, (uint8_t *)spare + at, row);
    us_unshuffle(us_shuffle_level(), item, is_bit ? spare : src, dst, n);
}
