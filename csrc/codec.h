/* SPDX-License-Identifier: MIT */
/*
 * codec.h: the table of codecs, blocks of one repeated word, and the probe that
 * spares blocks which do not compress.
 *
 * Nothing is linked and nothing is vendored. A codec is a shared library that the
 * process has anyway (the lz4 and zstandard wheels, or the system's), loaded by
 * path and proven by round trips before anything is trusted to it. uswap/codecs.py
 * knows where to look.
 *
 * Threads: us_codec_load belongs to the start of the process, before any context.
 * A context belongs to one thread at a time; so does a us_probe_t.
 */
#ifndef US_CODEC_H
#define US_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "filter.h"

enum { US_CODEC_NONE = 0, US_CODEC_LZ4 = 1, US_CODEC_ZSTD = 2, US_CODECS = 8 };

/*
 * How an object is compressed is a byte: the codec, and a filter (filter.h) that is undone after it.
 *
 *     7      4 3      0
 *   +--------+--------+
 *   | filter | codec  |     0 is not compressed, and then there is no filter either
 *   +--------+--------+
 *
 * Where a codec is asked for below such a byte may be given, but to us_codec_load.
 */
static inline int us_codec_with(int codec, int filter) { return codec | filter << 4; }
static inline int us_codec_base(int codec) { return codec & 15; }
static inline int us_codec_filter(int codec) { return codec >> 4; }
/* Is there such a one at all, whether or not its codec is loaded? */
static inline bool us_codec_known(int codec) {
    const int base = us_codec_base(codec), filter = us_codec_filter(codec);
    return codec == US_CODEC_NONE ||
           ((base == US_CODEC_LZ4 || base == US_CODEC_ZSTD) && filter >= 0 && filter < US_FILTERS);
}

/* The largest max_block of a context: blocks are at most 2 MiB, packed runs of them no more than this. */
enum { US_CODEC_MAX = 1 << 30 };

/* The state of all codecs for one thread. */
typedef struct us_codec_ctx us_codec_ctx_t;

/*
 * Opens the library at path (or a bare soname, for the loader to find) and proves it by round trips.
 * 0: the table's entry is set. A codec loaded again is replaced for contexts made from then on.
 *
 *   -EINVAL  no such codec, or US_CODEC_NONE
 *   -ENOENT  no such file, or the loader refused it
 *   -ENOSYS  it loads, but lacks a function
 *   -EILSEQ  a round trip gave other bytes
 *   -ENOMEM
 */
int us_codec_load(int codec, const char *path);

/* Can contexts that are made now do it? US_CODEC_NONE they always can. */
bool us_codec_ready(int codec);

/*
 * A context for blocks of up to max_block bytes, with the codecs that are in the table now. All memory
 * is taken here: afterwards no call allocates, with one exception, the first use of a zstd level above
 * US_CODEC_ZSTD_LEVEL, which enlarges the workspace. -EINVAL or -ENOMEM.
 */
int us_codec_ctx_new(us_codec_ctx_t **out, uint32_t max_block);
void us_codec_ctx_free(us_codec_ctx_t *ctx);

/* The zstd level for which a context's workspace is made. */
enum { US_CODEC_ZSTD_LEVEL = 3 };

/* The worst-case output of any codec for n bytes. */
uint32_t us_codec_bound(uint32_t n);

/*
 * Compresses n bytes, 1 <= n <= max_block. The length, at most cap; 0 when it does not fit, so that the
 * caller says by cap what is worth keeping (n - n / 16). level: for lz4 the acceleration, 1 or more
 * (anything less is 1); for zstd the level.
 *
 *   -EINVAL  n is out of range, or with a filter no multiple of US_FILTER_UNIT
 *   -ENOSYS  the context has no such codec, or there is no such filter
 *   -ENOMEM  zstd at a high level
 *   -EIO     the library failed in a way it should not
 */
int us_compress(us_codec_ctx_t *ctx, int codec, int level, const void *src, uint32_t n, void *dst, uint32_t cap);

/* Decompresses n bytes into exactly raw bytes. 0, -EILSEQ when the input does not give that, -ENOSYS: the
 * context has no such codec, or there is no such filter. */
int us_decompress(us_codec_ctx_t *ctx, int codec, const void *src, uint32_t n, void *dst, uint32_t raw);

/* max_block bytes that are free between two calls with the context. */
void *us_codec_spare(us_codec_ctx_t *ctx);

/* How often that was done with the context. Any thread may ask. */
uint64_t us_codec_decompressions(const us_codec_ctx_t *ctx);

/*
 * Is it one 8-byte word, repeated? Then *word is set. Leaves at the first word that differs.
 * pre: n is a multiple of 64 and not 0, p is 16-aligned.
 */
bool us_is_filled(const void *p, size_t n, uint64_t *word);

/* The inverse, under the same conditions. */
void us_fill(void *p, size_t n, uint64_t word);

/*
 * What is known of a stream of blocks: one a region, or one a worker. All zero at the start.
 *
 * While blocks compress, the probe costs one comparison. A miss raises the score by two, a hit lowers it
 * by one. From US_PROBE_ON on a part of each block goes through the codec first, and a block whose
 * sample does not compress is skipped; at US_PROBE_TOP only every US_PROBE_BLIND-th block is looked at.
 * Each US_PROBE_FORCE-th is tried in full all the same, since a sample is blind to what repeats at a
 * distance longer than itself; when that one compresses the score is forgotten.
 */
typedef struct us_probe {
    uint32_t score;  /* 0..US_PROBE_TOP: how strongly a block is expected not to compress */
    uint32_t skips;  /* blocks seen while the score was US_PROBE_ON or more */
    uint32_t turn;   /* where in the block the next sample is taken */
    uint32_t forced; /* 1: the block now tried in full was not looked at before */
} us_probe_t;

enum { US_PROBE_ON = 2, US_PROBE_TOP = 8, US_PROBE_BLIND = 4, US_PROBE_FORCE = 16 };

/* Before us_compress. true: try the block in full, then tell us_probe_result how it went. */
bool us_probe_worth(us_probe_t *probe, us_codec_ctx_t *ctx, int codec, const void *p, uint32_t n);
void us_probe_result(us_probe_t *probe, bool compressed);

#endif
