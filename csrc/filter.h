/* SPDX-License-Identifier: MIT */
/*
 * filter.h: what is done to a block before it is compressed, and undone after.
 *
 * Numbers of one type have bytes that are alike at the same place: the high ones of small integers are zero,
 * the exponents of neighbouring floats near each other. A codec that looks for repeated strings does not see
 * that. So the block is turned, like a matrix of n / item rows and item columns:
 *
 *   byte   all first bytes of the items, then all second ones, ...             "shuffle"
 *   bit    the same, and in each of these rows all lowest bits, then ...       "bitshuffle"
 *
 * The bytes after a filter are stored in swap files. They are those that the functions of the blosc2 library give.
 *
 * Nothing here allocates, takes a lock or writes anywhere but to its arguments, and the stack that it takes is below 1 KiB,
 * so that a handler of signals may call it; what undoes a block can't fail.
 */
#ifndef US_FILTER_H
#define US_FILTER_H

#include <stdbool.h>
#include <stdint.h>

enum {
    US_FILTER_NONE = 0,
    US_FILTER_BYTE2 = 1, /* by the size of an item, in bytes */
    US_FILTER_BYTE4 = 2,
    US_FILTER_BYTE8 = 3,
    US_FILTER_BIT2 = 4,
    US_FILTER_BIT4 = 5,
    US_FILTER_BIT8 = 6,
    US_FILTERS = 7
};

/* What is filtered is a multiple of so many bytes: a row of 64 for each byte of the largest item. */
enum { US_FILTER_UNIT = 512 };

/* How bytes are turned: in plain C, by SSE2, which each x86-64 has, or by AVX2. */
enum { US_SHUFFLE_C = 0, US_SHUFFLE_SSE2 = 1, US_SHUFFLE_AVX2 = 2, US_SHUFFLES = 3 };

/* The fastest of them here. */
int us_shuffle_level(void);

/*
 * Turns n bytes of src, items of `item` bytes, into dst, and back. All levels give the same bytes.
 * pre: level is at most us_shuffle_level(), item is 2, 4 or 8, n is a multiple of US_FILTER_UNIT, no overlap.
 */
void us_shuffle(int level, uint32_t item, const void *src, void *dst, uint32_t n);
void us_unshuffle(int level, uint32_t item, const void *src, void *dst, uint32_t n);

/* The bytes of an item: 2, 4, 8, or 1 for US_FILTER_NONE. */
static inline uint32_t us_filter_item(int filter) { return filter == US_FILTER_NONE ? 1u : 2u << (filter - 1) % 3; }
static inline bool us_filter_is_bit(int filter) { return filter >= US_FILTER_BIT2; }

/*
 * Filters n bytes of src into dst; spare: n bytes more. None of the three may overlap.
 * pre: filter is above US_FILTER_NONE, n is a multiple of US_FILTER_UNIT.
 */
void us_filter_do(int filter, const void *src, void *dst, void *spare, uint32_t n);
/* The inverse, under the same conditions. */
void us_filter_undo(int filter, const void *src, void *dst, void *spare, uint32_t n);

#endif
