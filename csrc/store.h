/* SPDX-License-Identifier: MIT
 *
 * The second tier, the loop's own: what is being written, read and compacted (writeout.c).
 */
#ifndef US_STORE_H
#define US_STORE_H

#include "io.h"
#include "segment.h"
#include "types.h"

enum { US_WRITES = 4, US_READS = 64, US_READS_AHEAD = 48 };

/* An object on its way to the file. from: where compaction has it from; UINT64_MAX when from the pool. */
typedef struct us_record {
    uint32_t entry;
    uint16_t gen;
    uint32_t length;
    uint64_t off, from;
} us_record_t;

typedef struct us_write {
    us_io_req_t req;
    us_packer_t pack;
    uint8_t *buf;        /* a segment */
    us_record_t *record;
    uint32_t records, room;
    bool busy, compacting;
} us_write_t;

typedef struct us_read {
    us_io_req_t req;
    uint8_t *buf;        /* the largest block, its header, and what rounding adds */
    uint64_t off;        /* of the object's header */
    uint64_t from;       /* of the span */
    uint32_t bytes, entry, region, length, tries;
    uint16_t gen;
    uint8_t codec;
    bool busy, write, demand;
    uint64_t since;      /* ns: the fault's message */
    uint64_t begun;      /* ns: the read */
} us_read_t;

typedef struct us_store {
    bool on;
    int fd, ring_fd;
    us_io_t *io;
    us_log_t *log;
    uint32_t segment;    /* bytes */
    us_write_t write[US_WRITES];
    us_read_t read[US_READS];
    uint32_t writes, reads; /* busy ones */
    uint32_t demand;     /* of the reads: those that a thread stands still for */
    uint64_t begun;      /* ns: the last of these */
    uint64_t writing;    /* payload bytes in busy writes that came from the pool */
    uint64_t mark_high, mark_low; /* of the pool: start and stop writing */
    uint64_t full_until; /* ns: no writing before; the file system or the log is full, or writes fail */
    bool failing;        /* the last write */
    bool out;            /* between the marks, on the way down */
    bool said_full;
    uint8_t *old;        /* the segment that is compacted */
    us_io_req_t old_req;
    int64_t old_id;      /* -1: none */
    bool old_read;
} us_store_t;

#endif
