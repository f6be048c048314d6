/* SPDX-License-Identifier: MIT */
/*
 * The swap file: a log of segments of one size, each of which holds objects packed as they were in the pool.
 *
 * This file knows the format and keeps the books. It does no I/O and holds no locks; one thread (the pager's
 * loop) owns a log. What reads buffers only (us_obj_*, us_seg_walk, us_fsck_segment, us_crc32c) may be called
 * by any thread.
 *
 * A segment's life:
 *
 *      FREE --us_log_open--> OPEN --us_pack_end--> WRITING --us_log_written--> SEALED
 *       ^                     |                       |                          |
 *       +---us_log_abandon----+-----------------------+                          | no live bytes, no pins:
 *       |                                             |                          | us_log_dead, us_log_unpin,
 *       +---------------------------------------------|--------------------------+ us_log_settle
 *                                                     +--us_log_abandon(retire)--> RETIRED
 *
 * Functions return 0, a count, an id, an offset, or -errno. Offsets are bytes in the file. An object is named
 * by the offset of its header: a multiple of 8, never 0.
 */
#ifndef US_SEGMENT_H
#define US_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define US_SEG_MAGIC 0x3147537061777375ull /* "uswapSG1" */
#define US_SEG_VERSION 1u
#define US_OBJ_MAGIC 0x6a624f75u /* "uObj" */
#define US_SEG_ALIGN 4096u       /* of segments, of what is read and written, of large objects */

/* ---- the format, version 1; little-endian --------------------------------------------------------------
 *
 *   segment id at offset id * segment_size of the file:
 *   +--------+----------------+----+----------------+----+-- ... --+----------------+-----------+---------+
 *   | header | object header  | payload, 0 to 7 x 0 | gap | ...    | object header  | payload   | zeros   |
 *   +--------+----------------+---------------------+-----+--- ... +----------------+-----------+---------+
 *   0        64                                                                               used   4096 x n
 *
 *   Object headers are 8-aligned; those of large objects stand on a multiple of 4096, behind a gap of zeros.
 *
 *   segment header, 64 bytes                        object header, 32 bytes
 *    0       4       8       12      16              0       4       8     10  11  12      16
 *   +---------------+-------+-------+               +-------+-------+-----+---+---+-------+
 *   | magic         |version| crc   |               | magic | entry | gen |cod| 0 |length |
 *   +---------------+-------+-------+               +-------+-------+-----+---+---+-------+
 *   | space         | sequence      |               | raw   | crc   | stamp               |
 *   +-------+-------+-------+-------+               +-------+-------+---------------------+
 *   | id    | size  | used  |objects|
 *   +-------+-------+-------+-------+
 *   | 0                             |
 *   +-------------------------------+
 *
 *   cod      how the payload is compressed: codec and filter, see codec.h
 *   crc      crc32c of the header with 0 in this field; an object's goes on over the payload
 *   space    random, one for each run of a pager: tells a former use of the file apart
 *   sequence rises with every segment that is packed, so of two copies of an entry the higher is newer
 *   stamp    us_seg_stamp(space, sequence) of its segment. An object that stood here before, in a former use
 *            of the segment or of the file, has another one, even where gen has come round.
 */
typedef struct us_seg_header {
    uint64_t magic;
    uint32_t version;
    uint32_t crc;
    uint64_t space;
    uint64_t sequence;
    uint32_t id;
    uint32_t segment_size; /* bytes; the same in the whole file */
    uint32_t used;         /* bytes from the segment's start to the end of its last payload */
    uint32_t objects;
    uint64_t spare[2];
} us_seg_header_t;

typedef struct us_obj_header {
    uint32_t magic;
    uint32_t entry;
    uint16_t gen;
    uint8_t codec;
    uint8_t spare;
    uint32_t length; /* of the payload, bytes */
    uint32_t raw;    /* bytes of the block before compression */
    uint32_t crc;
    uint64_t stamp;
} us_obj_header_t;

_Static_assert(sizeof(us_seg_header_t) == 64, "the format");
_Static_assert(sizeof(us_obj_header_t) == 32, "the format");

#define US_OBJ_HEAD ((uint32_t)sizeof(us_obj_header_t))
#define US_SEG_HEAD ((uint32_t)sizeof(us_seg_header_t))

typedef struct us_log us_log_t;

/* ---- a log -------------------------------------------------------------------------------------------- */

/* bytes: of the file, from 0 on. Segments are given out from 0 upwards. -EINVAL: fewer than 2 segments, or
   sizes that are not multiples of 4096; -ENOMEM. */
int us_log_new(us_log_t **out, uint64_t bytes, uint32_t segment_size, uint64_t space);
void us_log_free(us_log_t *l); /* NULL is allowed */

uint32_t us_log_segments(const us_log_t *l);
uint32_t us_log_segment_size(const us_log_t *l);
uint32_t us_log_free_segments(const us_log_t *l);
uint32_t us_log_retired(const us_log_t *l);    /* segments */
uint64_t us_log_live_bytes(const us_log_t *l); /* headers and payloads that entries name */
uint64_t us_log_used_bytes(const us_log_t *l); /* of segments that are not free, whole */
uint64_t us_log_padding(const us_log_t *l);    /* packed since us_log_new() that is no object: headers of
                                                  segments, gaps, tails */

/* ---- writing ------------------------------------------------------------------------------------------ */

/* Takes a free segment, the one freed last. Its id, or -ENOSPC. */
int64_t us_log_open(us_log_t *l);

typedef struct us_packer {
    us_log_t *log;
    uint8_t *buf;  /* the caller's */
    uint64_t base; /* of the segment in the file */
    uint64_t sequence, stamp;
    uint32_t id;
    uint32_t used; /* bytes, the header included */
    uint32_t objects;
    uint32_t padding; /* bytes of gaps so far */
    uint32_t victims; /* the caller's: segments that this one takes the place of; 0: it is the pool's */
    bool full;        /* an object did not fit: what is left at the end is lost. Else it is short */
} us_packer_t;

/* pre: id is open; buf holds segment_size bytes, 4096-aligned, and is the packer's until the write is done.
   Many packers may be at work, each with a segment of its own. */
void us_pack_begin(us_packer_t *k, us_log_t *l, uint32_t id, void *buf);

/* Appends a copy. page_aligned: the header goes on a multiple of 4096, so that no more is read than has to be.
   Returns the object's offset, or -ENOSPC when it does not fit any more; -EINVAL when it never will. */
int64_t us_pack_add(us_packer_t *k, uint32_t entry, uint16_t gen, uint8_t codec, uint32_t length, uint32_t raw,
                    const void *payload, bool page_aligned);

/* Seals the buffer. Returns the bytes to write at k->base, a multiple of 4096. 0: it is empty and stays open. */
uint32_t us_pack_end(us_packer_t *k);

/* The write is done. The segment stays until us_log_settle() even if nothing in it becomes live. */
void us_log_written(us_log_t *l, uint32_t id);

/* All objects of the write have been committed, or found to be garbage: the segment may go if it is empty. */
void us_log_settle(us_log_t *l, uint32_t id);

/* It was not written: free again, or never to be used. pre: open or writing, nothing live. */
void us_log_abandon(us_log_t *l, uint32_t id, bool retire);

/* ---- accounting: off and payload length of an object -------------------------------------------------- */

/* An entry names it from now on, or does not any more. pre: its segment is writing or sealed. */
void us_log_live(us_log_t *l, uint64_t off, uint32_t length);
void us_log_dead(us_log_t *l, uint64_t off, uint32_t length);

/* The object that us_log_dead() was told of lives on in another segment: its death gains nothing by itself. */
void us_log_moved(us_log_t *l, uint32_t length);

/* A read is in flight: the segment is not used again meanwhile. Pins count. */
void us_log_pin(us_log_t *l, uint64_t off);
void us_log_unpin(us_log_t *l, uint64_t off);

/* The sealed, unpinned segment with the fewest live bytes of those that gain by being packed anew; -ENOENT. A segment
   gains if at most max_percent of the bytes of its own objects are live, and not all; what it does not hold, because
   large objects leave gaps, is not counted, since the next one would not hold it either. One that was written short
   gains too if at most max_percent of a segment's size are used. A scan, about 1 ns a segment; a search in vain is
   remembered and costs nothing until a segment has become poor enough.

   It ends. Every segment that is packed anew uses up dead bytes or a short segment, and one that takes the place of a
   single victim is never short, so without deaths or new segments of the pool there is soon none. At 90 percent

       bytes written for victims <= 10 x bytes that died + 2 segments for each written by the pool + 8 segments

   which is kept as an account: beyond it nothing is offered, and us_log_overspent() counts. */
int64_t us_log_victim(us_log_t *l, uint32_t max_percent);
uint64_t us_log_overspent(const us_log_t *l);

/* Compaction could not take out what is live in it (a bad header, a broken object): us_log_victim() does not
   offer it again until it has been free. pre: sealed. */
void us_log_shun(us_log_t *l, uint32_t id);

uint32_t us_log_live_in(const us_log_t *l, uint32_t id); /* bytes */
uint32_t us_log_pins_in(const us_log_t *l, uint32_t id);
uint32_t us_log_used_in(const us_log_t *l, uint32_t id); /* bytes packed: what compaction has to read */

/* Checks the invariants that stand in segment.c. Time: some ns for each segment. */
bool us_log_is_valid(const us_log_t *l);

/* ---- reading ------------------------------------------------------------------------------------------ */

/* The 4096-aligned span of the file that holds header and payload. */
void us_obj_span(uint64_t off, uint32_t length, uint64_t *from, uint32_t *bytes);

/* at: the object's header, avail bytes of it; the payload is US_OBJ_HEAD further. 0, or -EILSEQ: it is not
   that object, or not as it was written. */
int us_obj_check(const void *at, uint32_t avail, uint32_t entry, uint16_t gen, uint32_t length);

/* The same, and it must be from the segment's present use: a write that the disk lost is found out. pre: the
   segment at off is pinned or holds the object live. */
int us_log_check(const us_log_t *l, uint64_t off, const void *at, uint32_t avail, uint32_t entry, uint16_t gen,
                 uint32_t length);

/* !ok: the checksum is wrong and no field can be trusted; payload is then NULL if it would not fit. False
   ends the walk. h and payload point into the buffer. */
typedef bool us_seg_each_fn(void *ctx, uint64_t off, const us_obj_header_t *h, const void *payload, bool ok);

/* Shows the objects of a segment that was read back from seg_off, or as much of it as there is. Goes on behind
   bad ones. Returns how many were shown; -EILSEQ: the segment's header is bad, or of another place or space
   (0: any). pre: buf is 8-aligned. */
int us_seg_walk(const void *buf, uint32_t bytes, uint64_t seg_off, uint64_t space, us_seg_each_fn *each, void *ctx);

/* The same from an object on, named by its offset in the file, or by that of its end; 0: from the first. */
int us_seg_walk_from(const void *buf, uint32_t bytes, uint64_t seg_off, uint64_t space, uint64_t from,
                     us_seg_each_fn *each, void *ctx);

uint64_t us_seg_stamp(uint64_t space, uint64_t sequence);

/* crc32c, going on from the crc of what came before (0 at first). */
uint32_t us_crc32c(uint32_t crc, const void *data, size_t n);
uint32_t us_crc32c_table(uint32_t crc, const void *data, size_t n); /* the same without the instructions */

#endif
