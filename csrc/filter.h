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
 * The bytes are turned by the blosc2 wheel's library, loaded by path and proven by round trips as codecs are
 * (codec.h); the bits by this file, since the library's own bitshuffle, which gives the same bytes, asks for
 * memory at each call, and what undoes a block must not be able to fail.
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

typedef struct us_filter_fn {
    int32_t (*shuffle)(int32_t item, int32_t n, const void *src, void *dst); /* NULL: not loaded */
    int32_t (*unshuffle)(int32_t item, int32_t n, const void *src, void *dst);
} us_filter_fn_t;

/*
 * Opens the library at path and proves it by round trips. 0: it is used from now on by contexts (codec.h)
 * that are made then. Errors as of us_codec_load: -ENOENT, -ENOSYS, -EILSEQ, -ENOMEM.
 */
int us_filter_load(const char *path);

/* The functions that were loaded, or NULLs. */
us_filter_fn_t us_filter_functions(void);

/* The bytes of an item: 2, 4, 8, or 1 for US_FILTER_NONE. */
static inline uint32_t us_filter_item(int filter) { return filter == US_FILTER_NONE ? 1u : 2u << (filter - 1) % 3; }
static inline bool us_filter_is_bit(int filter) { return filter >= US_FILTER_BIT2; }

/*
 * Filters n bytes of src into dst; spare: n bytes more. None of the three may overlap.
 * pre: the library is loaded, filter is above US_FILTER_NONE, n is a multiple of US_FILTER_UNIT.
 */
void us_filter_do(const us_filter_fn_t *fn, int filter, const void *src, void *dst, void *spare, uint32_t n);
/* The inverse, under the same conditions. What is at src may be changed, and is of no use after. */
void us_filter_undo(const us_filter_fn_t *fn, int filter, void *src, void *dst, void *spare, uint32_t n);

#endif
