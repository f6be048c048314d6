/* SPDX-License-Identifier: MIT
 *
 * The second tier, the loop's own: what is being written, read and compacted (writeout.c).
 */
#ifndef US_STORE_H
#define US_STORE_H

#include "io.h"
#include "segment.h"
#include "types.h"

enum { US_VICTIMS = 64 }; /* segments that one write cleans, at most */
enum { US_WRITES = 4, US_READS = 64, US_READS_AHEAD = 48, US_READS_VERIFY = 16, US_PARTS = 64 };

/* An object on its way to the file. */
typedef struct us_record {
    uint32_t entry;     /* US_NONE: its region has gone meanwhile */
    uint32_t size;      /* codec and length, as in an entry */
    uint64_t off, from; /* of its header in the file; where the entry has it */
    uint16_t gen;
} us_record_t;

typedef struct us_write {
    us_io_req_t req;
    us_packer_t pack;
    uint8_t *buf; /* a segment */
    us_record_t *record;
    uint32_t records, room;
    bool busy;
    bool filling;                         /* it is `demoted`, `cleaner` or `gather`: not begun */
    uint32_t victim[US_VICTIMS], victims; /* segments whose objects it holds, pinned until it is done */
} us_write_t;

/* One object of a read. */
typedef struct us_part {
    uint64_t off; /* of its header in the file */
    uint32_t entry, length;
    uint16_t gen;
    uint8_t codec;
} us_part_t;

/* A read of one object that is wanted now or moves to another tier, or of several that lie near each other and are
 * read ahead. */
typedef struct us_read {
    us_io_req_t req;
    uint8_t *buf;  /* the largest block, its header, and what rounding adds */
    uint64_t from; /* of the span in the file */
    uint32_t bytes, region, tries;
    uint32_t parts;
    uint32_t left; /* of these: not yet swapped in */
    us_part_t part[US_PARTS];
    bool busy, write, demand;
    bool verify;    /* it is looked at, and stays where it is */
    uint8_t to;     /* the tier that the object goes to; 0: it is swapped in */
    uint64_t since; /* ns: the fault's message */
    uint64_t begun; /* ns: the read */
} us_read_t;

typedef struct us_store {
    bool on;
    int fd, ring_fd;
    us_io_t *io;
    us_log_t *log;
    uint32_t segment; /* bytes */
    us_write_t write[US_WRITES];
    us_read_t read[US_READS];
    uint32_t writes, reads; /* busy ones */
    uint32_t verifying;     /* of the reads: those that only look */
    us_write_t *demoted;    /* what is demoted is packed into this; NULL: none has been begun */
    us_write_t *gather;     /* what its tier's store puts objects into; NULL: none yet */
    uint64_t gathered;      /* ns: the last one */
    struct us_tier *above;  /* the pool that sinks into the file */
    uint32_t largest;       /* object that a segment has room for, bytes */
    uint64_t full_until;    /* ns: no writing before; the file system or the log is full, or writes fail */
    bool failing;           /* the last write */
    bool said_full;
    uint8_t *old; /* the segment that is cleaned */
    us_io_req_t old_req;
    int64_t old_id;      /* -1: none */
    bool old_read;       /* it is in the buffer */
    bool old_moved;      /* and something was found in it */
    bool gathering;      /* there is more in it to be looked at, and room for it */
    uint64_t old_at;     /* its objects before this offset have been seen to */
    us_write_t *cleaner; /* what lives is gathered here; NULL: none has been begun */
} us_store_t;

#endif
