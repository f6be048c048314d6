/* SPDX-License-Identifier: MIT
 *
 * Glossary, layouts and invariants of the C core.
 *
 *   block     4 KiB to 2 MiB (a power of two) of a region; what leaves and comes back as one. The last
 *             block of a region may be shorter, always a multiple of a page.
 *   entry     16 bytes for each block: its state, its generation, and where its bytes are.
 *   region    a page-aligned range of the client's anonymous memory, registered with userfaultfd.
 *   plain     of a region's memory: not registered yet, and as fast as any other; it counts as resident.
 *   space     the memfd that client and pager share: ring, statistics, outbox, table, pool.
 *   table     all entries of all regions of a client; a region has a contiguous range of it.
 *   tier      where compressed blocks lie: a pool or the swap file. A block that is out lies in one tier.
 *   pool      a tier in RAM: compressed objects, in the space. There are up to three, hot to cold.
 *   demote    to move a tier's coldest objects to the next colder one.   recompress   for its codec, on the way.
 *   object    a block's compressed (or raw) bytes in the pool.
 *   outbox    bytes of changed blocks that were evicted and wait for a worker.
 *   slot      a block's place in the outbox, counted in pages.
 *   staging   address space of the client into which the mover MOVEs pages before it copies them.
 *   client    the user's process.        mover   the one C thread of ours in it.
 *   pager     the process that owns every decision.   loop    its main thread; the only writer of entries.
 *   worker    a C thread of the pager: compresses, or decompresses and installs read-ahead.
 *   swap in   to give a block its pages back.   evict   to take them: of a changed block to the outbox, by MOVE or COPY;
 *             of a clean one DROP gives them back to the kernel, since its copy has the bytes.
 *   victim    the block that is evicted next; of the log, the segment that is cleaned next.
 *   clean     a resident block that is write-protected: unchanged since it came in.
 *   copy      of a clean block: the object or word it came from, kept so that it can be evicted at once.
 *   inline    of a region: the thread that touches what is out gets SIGBUS, and a handler in C swaps it in. The
 *             others' faults are messages, which the pager reads.
 *   claim     of a block of an inline region: who may change it, pager or a handler. See below.
 *   note      what a handler did, for the pager's books.   ask   a handler's fault that the pager must serve.
 */
#ifndef US_TYPES_H
#define US_TYPES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include "atomic.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "uswap.h"

#include "hist.h"

#if !defined(__x86_64__)
#error "uswap runs on x86-64 only: entries are committed by one 16-byte store"
#endif
#include <emmintrin.h>

#define US_PAGE_SHIFT 12
#define US_PAGE 4096u
#define US_BLOCK_MIN_SHIFT 12
#define US_BLOCK_MAX_SHIFT 21
#define US_NONE UINT32_MAX
#ifndef US_GEN_BITS
#define US_GEN_BITS 16 /* of an entry's generation; a test takes few, so that it comes round often */
#endif
#define US_SPACE_MAGIC 0x31657061707377ull
#define US_SPACE_VERSION 1u

/* ---- the entry ---------------------------------------------------------------------------------------
 *
 *    byte 0      1       2..3    4..7                    8..15
 *   +-------+-------+---------+---------------------+---------------------------------------+
 *   | state | flags |   gen   | codec:8 | length:24 | where                                 |
 *   +-------+-------+---------+---------------------+---------------------------------------+
 *
 *   state     where
 *   EMPTY     0
 *   PLAIN     0
 *   RESIDENT  KEPT: the copy (as in POOLED or STORED, or the word when codec is US_FILL); else 0
 *   LEAVING   KEPT: the copy (DROP); else the slot (MOVE, COPY)
 *   OUTBOX    the slot
 *   FILLED    the word; codec is US_FILL
 *   POOLED    tier:8 | offset:56 in that tier's pool
 *   STORED    tier:8 | offset:56 of the object's header in the swap file
 *
 *   gen counts the contents: it changes whenever what the block holds may have changed, so that work that
 *   was begun on older bytes can be told apart. When it comes round, all work under way on the block is called
 *   off (entry.c, changed), so that no two contents that anybody knows of have the same.
 *
 *   Invariants (invariants.c checks them; comments and tests cite the numbers):
 *   E1  only who has the pager's lock writes entries, each by one 16-byte store
 *   E2  LOCKED <=> exactly one command, worker, read or server has the block, which is LEAVING for a command alone and else
 *       EMPTY, FILLED, POOLED or STORED
 *   E3  CLEAN implies RESIDENT or LEAVING;  KEPT implies CLEAN
 *   E4  an object of a pool has exactly one entry that names it, and its header names that entry
 *   E5  a slot in use is of a posted MOVE or COPY, or a job's of the outbox; OUTBOX and LEAVING (MOVE, COPY) name one each
 *   E6  resident bytes = sum over RESIDENT, LEAVING and PLAIN blocks, and those that a worker or a read swaps in; the shared
 *       count has what handlers swap in, or have and is not in the books, beside them
 *   E7  RESIDENT blocks are in exactly one queue of the policy; those that have rounds left, in the main one
 *   E8  PLAIN blocks are those of [plain_from, plain_to) of their region, and no others
 *   E9  live bytes of a segment = sum over STORED blocks and kept copies that lie there; the log's own invariants
 *   E10 pins of segments = parts of reads, victims of writes, and the segment that is cleaned; a buffer for writing is
 *       free, busy, or one of the three that are filled
 *   E11 leaving, pending, recompressions, reads, demand, verifying and the regions' jobs count what is under way; a tier's leaving
 *       and coming are the bytes of its objects in writes and recompressions; no pinned block is LEAVING
 *   E12 the statistics that are gauges are the sums over the entries
 *   E13 a pool's cold queue holds those of its POOLED blocks that are QUEUED, and knows their bytes
 *   E14 CLEAN and DIRTY claims (below) are of blocks that are EMPTY, FILLED, POOLED or OUTBOX and not LOCKED, or, DIRTY alone,
 *       RESIDENT clean; space.in->resident is at least m->resident, m->held, and the bytes of those that are out
 */
typedef struct us_entry {
    uint8_t state;
    uint8_t flags; /* US_F_* */
    uint16_t gen;
    uint32_t size; /* codec << 24 | stored length in bytes; the codec's filter is part of it, see codec.h */
    uint64_t where;
} __attribute__((aligned(16))) us_entry_t;

_Static_assert(sizeof(us_entry_t) == 16, "an entry is 16 bytes");

enum {
    US_F_LOCKED = 1,
    US_F_CLEAN = 2,
    US_F_KEPT = 4,
    US_F_WAITED = 8,  /* somebody in Python waits for the lock */
    US_F_MAIN = 16,   /* in the main queue (else in the small one), when queued */
    US_F_QUEUED = 32, /* in a queue of the policy */
    US_F_WAKE = 64,   /* a fault came while a worker swaps it in: wake when done */
    /* POOLED, STORED: its object is on its way to another tier. LOCKED as well: it is being read for that, or only to be
     * verified, and not to be swapped in; no room is reserved for it. */
    US_F_WRITING = 128
};

enum { US_FILL = 0x7f }; /* the codec of one repeated word; no filter has a number as high as 7 */

#define US_SIZE(codec, len) ((uint32_t)(codec) << 24 | (uint32_t)(len))
#define US_CODEC_OF(e) ((e).size >> 24)
#define US_LENGTH_OF(e) ((e).size & 0xffffffu)

static inline int us_tier_of(us_entry_t e) { return (int)(e.where >> 56); }
static inline uint64_t us_offset_of(us_entry_t e) { return e.where & ((1ull << 56) - 1); }
static inline uint64_t us_where(int tier, uint64_t off) { return (uint64_t)tier << 56 | off; }

/* One aligned 16-byte store: whole for a reader on any CPU with AVX, and a killed pager has done it or
 * not. The barriers are the compiler's; x86 keeps stores in order. */
static inline void us_entry_store(us_entry_t *to, us_entry_t e) {
    __m128i v;
    __builtin_memcpy(&v, &e, sizeof v);
    atomic_signal_fence(memory_order_seq_cst);
    _mm_store_si128((__m128i *)(void *)to, v);
    atomic_signal_fence(memory_order_seq_cst);
}

/* ---- the command ring: pager to mover ------------------------------------------------------------- */

enum { US_RING = 1024 }; /* commands; a power of two */
enum { US_CMD_DROP = 1, US_CMD_MOVE = 2, US_CMD_COPY = 3, US_CMD_NOFORK = 4 };
/* DROP, MOVE, COPY: a block, from addr on. NOFORK: spare bytes from addr on, which were plain, are kept from children. */
enum { US_PENDING = 1 };

typedef struct us_cmd {
    uint32_t op;
    _Atomic int32_t status; /* US_PENDING, then 0 or -errno: the mover's one word back */
    uint64_t addr;
    uint32_t len;   /* bytes */
    uint32_t slot;  /* first page of the slot in the outbox */
    uint64_t spare; /* NOFORK: bytes; else 1: of an inline region */
} us_cmd_t;

_Static_assert(sizeof(us_cmd_t) == 32, "a command is half a cache line");

/* head: written by the pager.  tail: by the mover, when the commands before it have their status.
 *   tail <= head <= tail + US_RING */
typedef struct us_ring {
    uint64_t magic;
    uint32_t version, spare;
    us_layout_t layout;
    _Alignas(64) _Atomic uint64_t head;
    _Alignas(64) _Atomic uint64_t tail;
    _Alignas(64) _Atomic uint32_t mover_asleep; /* ring the doorbell */
    _Atomic uint32_t loop_asleep;               /* ring notify */
    _Atomic uint32_t urgent;                    /* somebody waits: ring after each piece of work */
    _Atomic uint32_t stop;
    _Atomic uint64_t move_retries;
    _Alignas(64) us_cmd_t cmd[US_RING];
} us_ring_t;

/* ---- faults that the touching thread resolves --------------------------------------------------------
 *
 * A block's claim: who has it, and how many system calls under way hold it in RAM (each one more US_CLAIM_HOLD).
 *
 *              take                          swap in, or first write       in the books
 *   pager      FREE -> PAGER -> FREE
 *   handler    FREE -> BUSY                  -> CLEAN or DIRTY             the pager: -> PAGER -> FREE
 *              CLEAN -> BUSY (first write)   -> DIRTY
 *
 * All by compare and swap, but a step that whoever has it makes alone. A handler writes no entry: between its commit and the
 * books the entry is what it was (EMPTY, FILLED, POOLED, OUTBOX, or RESIDENT clean), and the claim says that the pages are
 * there. An entry that a handler could act on (these, not LOCKED) changes, but for flags of queues, only under the claim.
 */
enum {
    US_CLAIM_FREE = 0,
    US_CLAIM_PAGER = 1,
    US_CLAIM_BUSY = 2,
    US_CLAIM_CLEAN = 3,
    US_CLAIM_DIRTY = 4,
    US_CLAIM_WHO = 7,
    US_CLAIM_HOLD = 8
};
typedef _Atomic uint16_t us_claim_t;

/* Handlers write, who has the pager's lock reads. Note n lies at n % US_NOTES, and is there when its turn is n + 1. */
#ifndef US_NOTES
#define US_NOTES 4096u /* powers of two, as is US_ASKS; the simulation takes few, so that they are full at times */
#endif
typedef struct us_note {
    _Atomic uint32_t turn;
    uint32_t entry;
    uint32_t ns;  /* from the signal to the end */
    uint8_t kind; /* US_KIND_*, or AHEAD: no fault, the block came along */
    uint8_t write;
    uint16_t spare;
} us_note_t;
enum { US_NOTE_AHEAD = US_KINDS };

/* A fault that a handler can't resolve. state is a futex; the thread waits while it is POSTED or TAKEN. */
#ifndef US_ASKS
#define US_ASKS 256u
#endif
enum { US_ASK_FREE = 0, US_ASK_FILLED = 1, US_ASK_POSTED = 2, US_ASK_TAKEN = 3, US_ASK_ANSWERED = 4 };
typedef struct us_ask {
    _Alignas(64) _Atomic uint32_t state;
    uint32_t flags; /* US_FAULT_* */
    uint64_t addr;
    uint64_t since; /* ns */
    uint32_t tid;
} us_ask_t;

enum { US_BIASES = 1024 };
typedef struct us_inline {
    /* Bytes that are resident, or promised: m->resident, what the pager has admitted, and what handlers swap in. Whoever
     * swaps in adds first, and never above `limit` but where nothing can leave. */
    _Alignas(64) _Atomic uint64_t resident;
    _Alignas(64) _Atomic uint64_t limit, mark; /* the pager publishes them; above the mark it wants to evict */
    _Atomic uint64_t ahead;                    /* bytes that may come along, at most */
    _Atomic uint8_t writable[US_BIASES];       /* by region: clean blocks are not worth it */
    _Alignas(64) _Atomic uint32_t note_head;
    _Alignas(64) _Atomic uint32_t note_tail;
    _Alignas(64) _Atomic uint32_t asked; /* asks posted, ever */
    us_note_t note[US_NOTES];
    us_ask_t ask[US_ASKS];
} us_inline_t;

typedef struct us_shared_stats {
    us_stats_t s;
    us_hist_t hist[US_KINDS];
} us_shared_stats_t;

static inline uint64_t us_align_up(uint64_t x, uint64_t a) { return (x + a - 1) & ~(a - 1); }
static inline uint64_t us_min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t us_max(uint64_t a, uint64_t b) { return a > b ? a : b; }

#endif
