/* SPDX-License-Identifier: MIT */
/*
 * choice.h: which filter suits the blocks of a region, and compressing by it.
 *
 * Nobody says what a region holds, or it is known only how large an item is. So now and then 4 KiB of a block
 * are compressed in each way, and the best is kept for the blocks that follow. What is best is decided by
 * size, with something added for what costs time when the block is wanted back:
 *
 *            as it is           byte    bit                    (parts of the sample)
 *   lz4      7/8 if it does     1/32    1/32 + 1/12
 *   zstd     not compress       0       1/128
 *
 * With LZ4 what was shuffled by bytes is undone two to four times as fast as plain numbers are, and bits from
 * half as fast to twice; so bits have to gain 1/12 of the block over bytes. zstd is the faster the smaller its
 * output. What does not compress is copied as it is, which takes next to no time: a filter has to gain 1/8.
 * What an earlier try chose, or the item's size suggests, is kept unless another gains 1/64.
 *
 * Tries are made at 0, 64 KiB, 256 KiB, 1 MiB and 4 MiB of a region's blocks and then each 6 to 8 MiB; twice
 * as often when blocks come out worse than before. Measured, in blocks of 4 and 16 KiB: a try takes 15 to 70 us
 * with LZ4 (8 to 16 where the item's size is known) and 80 to 150 with zstd (35), and all of them 0.5 to 1.6 and
 * 0.5 to 2.5 percent of the time that compressing takes.
 *
 * Threads: all workers share a region's choice, without a lock. What they may lose to each other is a try.
 */
#ifndef US_CHOICE_H
#define US_CHOICE_H

#include "atomic.h"

#include "codec.h"

/* All zero but `item` and `on` at the start. */
typedef struct us_choice {
    bool on;                /* false: no filters are wanted */
    uint8_t item;           /* 2, 4, 8: bytes of an item, no other is tried; 0: not known */
    _Atomic uint8_t filter; /* US_FILTER_*, for the blocks that come next */
    _Atomic bool tried;     /* filters were compared: `filter` is more than a guess */
    _Atomic uint16_t usual; /* what blocks come to lately, in 1/256 of their size */
    _Atomic uint64_t seen;  /* bytes of blocks, ever */
    _Atomic uint64_t due;   /* the next try is made when so many were seen */
    _Atomic uint64_t last;  /* and the last was made then */
} us_choice_t;

/* item: bytes of an item; what is none of 2, 4 and 8 is not known. */
void us_choice_init(us_choice_t *c, bool on, uint32_t item);

enum { US_CHOICE_RAW = 0, US_CHOICE_SKIPPED = -1 };

/*
 * Compresses a block of n bytes, a multiple of 4096 and 16-aligned, by the filter that suits its region. The
 * length, at most cap, and in *codec what it was compressed by; US_CHOICE_RAW: it does not get so small;
 * US_CHOICE_SKIPPED: nor was it tried. *codec on entry: the codec, without a filter. level: as for us_compress, but 0
 * is LZ4's acceleration 4 where the block is shuffled, which takes 0.7 to 1.0 of the time and up to 5 % more room.
 */
int us_choice_compress(us_choice_t *c, us_probe_t *probe, us_codec_ctx_t *ctx, int *codec, int level, const void *p,
                       uint32_t n, void *out, uint32_t cap);

#endif
