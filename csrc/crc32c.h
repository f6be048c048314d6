/* SPDX-License-Identifier: MIT */
/*
 * crc32c, by instructions where the CPU has them. For segment.c alone: all is static.
 *
 * The instruction takes 8 bytes a cycle but answers after three: so three stretches go side by side and are
 * joined. To append n bytes of zeros is to multiply by x^(8n) modulo the polynomial: a carry-less product by
 * x^(8n - 33), of which the instruction itself takes the rest (it multiplies by x^32, and the product of two
 * reversed words is short of one more x).
 */
#ifndef US_CRC32C_H
#define US_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define POLY 0x82f63b78u          /* Castagnoli, reversed */
enum { LONG = 512, SHORT = 128 }; /* bytes of a stretch */

static uint32_t table[8][256];
static uint32_t join_long[2], join_short[2]; /* x^(8 * 2n - 33) and x^(8n - 33) */
static bool has_instructions;

static uint32_t x_to(uint32_t n) {
    uint32_t r = 0x80000000u; /* 1 */
    while (n--)
        r = r >> 1 ^ (r & 1 ? POLY : 0);
    return r;
}

__attribute__((constructor)) static void crc_init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t r = i;
        for (int k = 0; k < 8; k++)
            r = r >> 1 ^ (r & 1 ? POLY : 0);
        table[0][i] = r;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
    for (uint32_t k = 0; k < 2; k++) {
        join_long[k] = x_to(8 * LONG * (2 - k) - 33);
        join_short[k] = x_to(8 * SHORT * (2 - k) - 33);
    }
    __builtin_cpu_init();
    has_instructions = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}

static inline uint64_t load(const uint8_t *at) {
    uint64_t v;
    memcpy(&v, at, 8);
    return v;
}

static uint32_t crc32c_table(uint32_t crc, const void *data, size_t n) {
    const uint8_t *at = data;
    crc = ~crc;
    for (; n >= 8; n -= 8, at += 8) {
        uint64_t v = load(at) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++)
            crc ^= table[7 - k][v >> 8 * k & 255];
    }
    while (n--)
        crc = crc >> 8 ^ table[0][(crc ^ *at++) & 255];
    return ~crc;
}

typedef long long v2di __attribute__((vector_size(16)));

__attribute__((target("sse4.2,pclmul"))) static inline uint64_t times(uint64_t a, uint32_t b) {
    v2di x = {(long long)a, 0}, y = {b, 0};
    return (uint64_t)__builtin_ia32_pclmulqdq128(x, y, 0)[0];
}

__attribute__((target("sse4.2,pclmul"))) static inline uint64_t stretches(uint64_t a, const uint8_t *at, uint32_t n,
                                                                          const uint32_t *join) {
    uint64_t b = 0, c = 0;
    for (uint32_t i = 0; i < n; i += 8) {
        a = __builtin_ia32_crc32di(a, load(at + i));
        b = __builtin_ia32_crc32di(b, load(at + n + i));
        c = __builtin_ia32_crc32di(c, load(at + 2 * n + i));
    }
    return __builtin_ia32_crc32di(0, times(a, join[0]) ^ times(b, join[1])) ^ c;
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t crc_instructions(uint32_t crc, const uint8_t *at, size_t n) {
    uint64_t a = (uint32_t)~crc;
    for (; n >= 3 * LONG; n -= 3 * LONG, at += 3 * LONG)
        a = stretches(a, at, LONG, join_long);
    for (; n >= 3 * SHORT; n -= 3 * SHORT, at += 3 * SHORT)
        a = stretches(a, at, SHORT, join_short);
    for (; n >= 8; n -= 8, at += 8)
        a = __builtin_ia32_crc32di(a, load(at));
    uint32_t r = (uint32_t)a;
    while (n--)
        r = __builtin_ia32_crc32qi(r, *at++);
    return ~r;
}

static uint32_t crc32c(uint32_t crc, const void *data, size_t n) {
    return has_instructions ? crc_instructions(crc, data, n) : crc32c_table(crc, data, n);
}

#endif
