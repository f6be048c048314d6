/* SPDX-License-Identifier: MIT
 *
 * All that Python sees of the C core. cffi reads this file as it stands: no preprocessor lines, no
 * function bodies. The glossary and the layouts are in types.h, the map of the files in README.md.
 *
 * Every function returns 0, a count, or -errno. None prints, none exits. Those of the client half run in
 * the process whose memory is paged, those of the pager half in the pager process, on its loop thread,
 * unless said otherwise.
 */

/* ---- numbers that both halves and Python share ---------------------------------------------------- */

/* The states of an entry (see entry.h for who makes each transition). */
enum {
    US_EMPTY = 0,
    US_RESIDENT = 1,
    US_LEAVING = 2,
    US_OUTBOX = 3,
    US_FILLED = 4,
    US_POOLED = 5,
    US_STORED = 6,
    US_LOST = 7,
    US_PLAIN = 8, /* not registered yet: ordinary memory, which counts as resident */
    US_STATES = 9
};

/* What a fault found, and so what it had to do; the index of a latency histogram. */
enum {
    US_KIND_EMPTY = 0,     /* first touch: zeros */
    US_KIND_FILLED = 1,    /* one repeated word */
    US_KIND_OUTBOX = 2,    /* on its way out, not compressed yet */
    US_KIND_POOLED = 3,    /* decompressed from the pool */
    US_KIND_PROTECTED = 4, /* first write to a clean block: protection lifted */
    US_KIND_PRESENT = 5,   /* somebody else had swapped it in: a wake only */
    US_KIND_WAITED = 6,    /* had to wait for the mover, a worker or room */
    US_KIND_STORED = 7,    /* read from the swap file */
    US_KINDS = 8
};

/* How the userfaultfd was opened. */
enum { US_UFFD_AUTO = 0, US_UFFD_DEVICE = 1, US_UFFD_SYSCALL = 2, US_UFFD_USER_MODE = 3 };

/* How a changed block leaves the client's pages, and how an unchanged one is dropped. */
enum { US_TAKE_AUTO = 0, US_TAKE_MOVE = 1, US_TAKE_COPY = 2 };
enum { US_DROP_AUTO = 0, US_DROP_VECTOR = 1, US_DROP_SINGLE = 2 };

/* Threads that compress, at most. */
enum { US_WORKERS_MAX = 16 };

/* What us_pager_serve and the range calls answer. */
enum { US_DONE = 0, US_WAIT_ENTRY = 1, US_WAIT_ROOM = 2, US_STRAY = 3, US_AGAIN = 4 };

/* What us_pager_step tells Python. */
enum {
    US_EV_FAULT = 1,
    US_EV_UNLOCKED = 2,
    US_EV_PROGRESS = 3,
    US_EV_NOROOM = 4,
    US_EV_GONE = 5,
    US_EV_LOST = 6,
    US_EV_IO = 7,
    US_EV_TRACE = 8
};

/* The records of a trace that are no faults; those that are have their US_KIND_*. trace.h draws them. */
enum {
    US_TRACE_VERSION = 1,
    US_TRACE_AHEAD = 16, /* swapped in without a fault */
    US_TRACE_OUT = 17,   /* has left the client's pages */
    US_TRACE_REGION = 18,
    US_TRACE_MORE = 19,
    US_TRACE_GONE = 20,
    US_TRACE_MISSED = 21
};

typedef struct us_uffd {
    int fd;
    int how;           /* US_UFFD_* */
    uint64_t features; /* what the kernel has */
    uint64_t enabled;  /* what was asked for and is on */
} us_uffd_t;

/* What the running kernel can do, asked of it, not of the headers. */
typedef struct us_probe_report {
    int device_errno;    /* 0: /dev/userfaultfd opens */
    int syscall_errno;   /* 0: userfaultfd(2) without USER_MODE_ONLY */
    int user_mode_errno; /* 0: userfaultfd(2) with USER_MODE_ONLY */
    int has_wp, has_move, has_poison, has_thread_id;
    int self_advice_errno; /* 0: process_madvise(self, MADV_DONTNEED) works */
    int pidfd_errno;
    uint64_t features;
} us_probe_report_t;

/* A block that is out lies in one tier: in a pool, 1 being the first and hottest, or in the swap file. */
enum { US_POOLS = 3, US_TIER_FILE = 4, US_TIERS = 5 };

typedef struct us_layout {
    uint64_t ring_off, stats_off, outbox_off, outbox_len;
    uint64_t table_off, table_cap; /* table_cap in entries */
    uint64_t inline_off, claim_off;
    uint64_t pool_off[3], pool_len[3], size; /* of pools 1, 2, 3; a length of 0: there is none */
} us_layout_t;

/* One tier, now or since the start; bytes unless said. Not all have a meaning for the swap file. */
typedef struct us_tier_stats {
    uint64_t budget;
    uint64_t used, allocated;   /* objects; memory (file: segments) that holds them */
    uint64_t raw, bytes;        /* blocks that are out and lie here: before and after compression */
    uint64_t kept;              /* copies of clean resident blocks, compressed */
    uint64_t came_blocks, came; /* that have come from another tier: number; bytes as they are here */
    /* of these, recompressed: bytes before and after */
    uint64_t recompressed_blocks, recompressed_in, recompressed_out;
} us_tier_stats_t;

/* Counters and gauges, in the space: the pager writes them, the client reads them. Bytes unless said. */
typedef struct us_stats {
    uint64_t limit, pool_budget;
    uint64_t regions, region_bytes;
    uint64_t resident, peak_resident;
    uint64_t inline_faults;      /* of the faults, those that the touching thread resolved */
    uint64_t plain;              /* of resident: not registered yet, whether touched or not */
    uint64_t outbox;             /* uncompressed, waiting in the outbox */
    uint64_t pooled_raw, pooled; /* POOLED blocks: before and after compression */
    uint64_t kept;               /* compressed copies of clean resident blocks, in the pool too */
    uint64_t pool_used, pool_allocated;
    uint64_t filled;                     /* FILLED blocks */
    uint64_t stored_raw, stored;         /* STORED blocks: before and after compression */
    uint64_t lost;                       /* LOST blocks */
    uint64_t swap, swap_used, swap_live; /* the file; bytes of segments in use; of these live, headers included */
    uint64_t written, written_segments;  /* to the file, compaction included */
    uint64_t written_objects, written_object_bytes; /* from the pool, payload */
    uint64_t write_garbage;                         /* objects that had changed when their write was done */
    uint64_t rewritten;                             /* payload bytes copied by compaction */
    uint64_t cleaned_segments;                      /* that compaction has read */
    uint64_t cleaned_bytes;                         /* read for that */
    uint64_t padding;                               /* bytes written that hold no object */
    uint64_t reads, read_bytes, read_retries;
    uint64_t write_errors;
    uint64_t allocations;    /* calls for memory by the pager's core, of all its threads */
    uint64_t decompressions; /* by all its threads, whatever for */
    us_tier_stats_t tier[5]; /* by tier; 0 is unused */
    uint64_t pinned;
    uint64_t faults[8];               /* by US_KIND_* (counts) */
    uint64_t evicted, evicted_blocks; /* left the client's pages, by whatever way */
    uint64_t evicted_clean_blocks;    /* of these: clean, dropped at no cost */
    uint64_t evicted_dirty_blocks;    /* of these: taken out to the outbox */
    uint64_t readahead_blocks, readahead_empty_blocks;
    uint64_t compressed_blocks, compressed_raw, compressed_out;
    uint64_t shuffled_blocks;                       /* of these, with a filter */
    uint64_t incompressible_blocks, skipped_blocks; /* stored raw; of these not even tried */
    uint64_t refused_pinned;                        /* the kernel would not move it (EBUSY) */
    uint64_t refused_noroom;                        /* no tier had room: stayed resident */
    uint64_t over_limit;                            /* faults served over the limit because nothing could leave */
    uint64_t throttled;                             /* faults that waited for room */
    uint64_t waited_locked;                         /* faults that waited for an entry's lock */
    uint64_t copy_retries, move_retries;
    uint64_t reclaimed_copies; /* kept copies given up for room */
    uint64_t compactions, compacted;
    uint64_t cpu_moves; /* the loop followed a thread to another CPU */
    uint64_t read_batches, messages;
    uint64_t second_server; /* of these: read by the second server */
    uint64_t stray;         /* faults at addresses of no region */
    uint64_t trace_missed;  /* records that the trace lacks */
    uint64_t loop_cpu_ns, worker_cpu_ns;
    uint64_t injected[22]; /* of the pager process, as us_injected_name numbers them: how often each took effect */
} us_stats_t;

/* ---- both halves ----------------------------------------------------------------------------------- */

uint32_t us_version(void);
/* Inject a failure into system call `op` ("copy", "move", "madvise", ...): every n-th call fails with
 * err. every = 0 turns it off. -EEXIST: another error of it is on. */
int us_inject_set(const char *op, int err, uint32_t every);
/* How often failure number i took effect in this process: of the system calls, from 0 on, by us_inject_set; from
 * US_INJECT_READ on of the swap file's reads and writes, by us_io_inject, which only the pager's statistics count. */
enum { US_INJECT_READ = 12, US_INJECTS = 22 };
uint64_t us_injected(int i);
const char *us_injected_name(int i); /* "copy", "read" (refused), "read:SHORT"; NULL: there is none */
/* Sleep a random time up to `usec` at transition `point` ("taken", "compress", ...; "all"). Point "seed" gives in usec what
 * the times come from, else 1: a thread's are the same again, as long as threads come to their first delays in the same
 * order. Set it before the first delay. */
int us_delay_set(const char *point, uint32_t usec);
int us_probe_kernel(us_probe_report_t *out);
/* 0 when io_uring can be had and works, else why not: -EPERM by a filter or a sysctl, -ENOSYS, ... */
int us_probe_io_uring(void);
/* For each block of [addr, addr + len), whether a page of it is there: 1 or 0, a byte each, of the process whose
 * /proc/PID/pagemap it is. pre: addr and len are multiples of a page, block a power of two of them. */
int us_present(int pagemap, uint64_t addr, uint64_t len, uint32_t block, uint8_t *out);
uint64_t us_now_ns(void);

/* ---- the client half ------------------------------------------------------------------------------- */

typedef struct us_client us_client_t;

/* What the client asks of the pager, one datagram each way over the control socket; answers may come in any order. */
enum {
    US_OP_ADD = 1, /* address, length, block, item, resident; answers id, first entry, entries, plain bytes */
    US_OP_ACTIVATE = 2,
    US_OP_EVICT = 3, /* of these four: first block, last block */
    US_OP_PREFETCH = 4,
    US_OP_VERIFY = 5,
    US_OP_PIN = 6,
    US_OP_UNPIN = 7,
    US_OP_MIGRATE = 8, /* first block, last block, tier */
    US_OP_FREEZE = 9,  /* of these three: entries */
    US_OP_RESTORE = 10,
    US_OP_REMOVE = 11,
    US_OP_CHECK = 12, /* answers the broken invariant's number, or 0 */
    US_OP_LIMIT = 13, /* bytes */
    US_OP_BYE = 14,
    US_OP_POOL = 15 /* bytes */
};

typedef struct us_request {
    uint64_t id;
    uint32_t op; /* US_OP_* */
    int32_t region;
    uint64_t arg[6];
} us_request_t;

typedef struct us_reply {
    uint64_t id;
    int32_t error; /* 0, or an errno; text then says what */
    uint32_t spare;
    uint64_t value[4];
    char text[208];
} us_reply_t;

int us_uffd_open(int how, int sigbus, us_uffd_t *out);
/* Creates the memfd of the space and lays it out; pool_budget[US_POOLS], 0 for a pool there is not.
 * Returns the descriptor; *out says also on failure how large it was to be. */
int us_space_create(uint64_t outbox, const uint64_t *pool_budget, uint64_t table_cap, us_layout_t *out);
/* A client that is not open yet, to be freed by us_client_free; NULL: no memory. */
us_client_t *us_client_new(void);
/* Maps the space, reserves staging and starts the mover. `doorbell` and `notify` are eventfds; drop is
 * US_DROP_VECTOR or US_DROP_SINGLE. The descriptors stay the caller's, open until us_client_close. */
int us_client_open(us_client_t *c, int uffd, int sigbus, int space_fd, int doorbell, int notify, int drop);
/* The pager is ready: its socket (which stays the caller's) is for requests from here on, and its death (pidfd) ends
 * this process. */
int us_client_attach(us_client_t *c, int sock, int pidfd);

/* A request by Python that may be given up at any time: when the ticket is freed, its answer is nobody's. All of these
 * return -ECHILD in a forked child, -ESHUTDOWN after us_client_close, -EPIPE when the pager is gone. */
typedef struct us_ticket us_ticket_t;
us_ticket_t *us_ticket_new(us_client_t *c);
void us_ticket_free(us_ticket_t *t);
int us_ticket_ask(us_ticket_t *t, const us_request_t *request);
/* 1: answered; 0: not within ms. */
int us_ticket_wait(us_ticket_t *t, int ms, us_reply_t *reply);

/* A region as client and pager know it. Each function is done or not done when it returns, with both of the same mind; an
 * exception of Python has no place in between. The memory stays the caller's, who must not give its addresses back before
 * us_registration_end or us_registration_free. */
typedef struct us_registration us_registration_t;
enum { US_END_RESTORE = 0, US_END_DISCARD = 1 };
/* OTHER: another client of this process has it. */
enum { US_FAILED_PAGER = 1, US_FAILED_REGISTER = 2, US_FAILED_OTHER = 3, US_FAILED_INLINE = 4 };
typedef struct us_registration_info {
    int id;
    int failed; /* US_FAILED_*: what us_registration_begin met */
    uint64_t first, entries, plain;
} us_registration_info_t;
us_registration_t *us_registration_new(us_client_t *c); /* NULL: no memory */
/* handled: its faults are inline. at_end: US_END_*, what us_registration_free does. hugepage: 1: the advice for huge pages is
 * given back at the end. */
int us_registration_begin(us_registration_t *r, uint64_t addr, uint64_t len, uint32_t block, uint32_t item,
                          int resident, int handled, int hugepage, int at_end);
/* RESTORE: all of it comes back and is ordinary memory. DISCARD: what it holds is given up, and a touch of it is SIGSEGV.
 * 0 as well when it has ended before. */
int us_registration_end(us_registration_t *r, int how);
int us_registration_active(us_registration_t *r);
void us_registration_info(us_registration_t *r, us_registration_info_t *out);
void us_registration_free(us_registration_t *r);

/* Blocks that are swapped in and held. */
typedef struct us_pin us_pin_t;
us_pin_t *us_pin_new(us_registration_t *r);
/* -EDQUOT: with these `bytes` more than `most` would be pinned. */
int us_pin_begin(us_pin_t *p, uint32_t first, uint32_t last, uint64_t bytes, uint64_t most);
void us_pin_end(us_pin_t *p);
void us_pin_free(us_pin_t *p);
uint64_t us_client_staging(us_client_t *c, uint64_t *len);
int us_client_tid(us_client_t *c); /* of the mover */
int us_client_states(us_client_t *c, uint64_t first, uint64_t n, uint8_t *out);
int us_client_tiers(us_client_t *c, uint64_t first, uint64_t n, uint8_t *out); /* 0: in none */
int us_client_stats(us_client_t *c, us_stats_t *out);
uint64_t us_client_quantile(us_client_t *c, int kind, double q); /* ns; 0 where none was seen */
/* Ends all registrations (how: RESTORE or DISCARD; in memory that was there before they began always RESTORE), tells the
 * pager to end, stops the mover, unmaps. The descriptors stay the caller's. Of what is left of it us_client_stats and
 * us_client_quantile tell what they told last. May be called again.
 * US_END_LATER: takes no more registrations, and does all this when the last one ends. Returns how many there are. */
enum { US_END_LATER = 2 };
int us_client_close(us_client_t *c, int how);
void us_client_free(us_client_t *c);
/* In a forked child: closes what only the core knows of. */
void us_client_in_child(us_client_t *c);
/* For a forked child: covers what the child does not have of [addr, addr+len), region id, so that nothing else can be
 * mapped there and a touch is SIGSEGV, with a line on stderr that names the region. */
int us_child_cover(uint64_t addr, uint64_t len, int id);

/* The destructors of capsules named "uswap" that own one of these (owned.c). */
void us_owned_client(void *capsule);
void us_owned_registration(void *capsule);
void us_owned_pin(void *capsule);
void us_owned_ticket(void *capsule);

/* ---- for the benchmarks, in any process ------------------------------------------------------------ */

/* Nanoseconds of one access to each of n addresses: a byte read, or read and written back by one
 * instruction, which faults once. */
int us_touch(const uint64_t *addr, uint64_t n, int write, uint64_t *ns);
/* Reads every 8-byte word of [addr, addr+len), in order, and returns their sum (modulo 2^64); write:
 * flips the lowest bit of each as well. len is rounded down to a multiple of 32. */
uint64_t us_sweep(uint64_t addr, uint64_t len, int write);

/* The accesses of `uswap bench peers`, by what is done to a page of 4 KiB. */
enum {
    US_ACCESS_READ = 0, /* all of it is read, and its sum compared */
    US_ACCESS_FLIP = 1, /* the same, and the lowest bit of each word is flipped */
    US_ACCESS_WORD = 2, /* its first word is read */
    US_ACCESS_WRITE = 3 /* all of it is overwritten */
};

typedef struct us_access {
    int kind;             /* US_ACCESS_* */
    uint64_t addr;        /* of page 0; 4096-aligned */
    uint64_t *sums;       /* of each page: the sum of its 8-byte words modulo 2^64, as it must be; kept up to date */
    const uint32_t *page; /* which pages, in order; gone through again at its end */
    uint64_t pages;       /* entries of it */
    uint64_t first;       /* the entry to begin with */
    const void *from;     /* US_ACCESS_WRITE: from_pages pages to write, in turn, and their sums */
    const uint64_t *from_sums;
    uint64_t from_pages;
    uint64_t count, until; /* ends after so many accesses, or at that us_now_ns() */
    uint32_t *ns;          /* out: of each of the first ns_room accesses, nanoseconds */
    uint64_t ns_room;
    uint64_t done;    /* out: accesses */
    uint64_t wrong;   /* out: of these, pages whose sum was another */
    uint64_t seen;    /* out: sum of the words of US_ACCESS_WORD */
    uint64_t elapsed; /* out: nanoseconds, all together */
} us_access_t;
/* On the caller's thread. -EINVAL: no such kind, or a list without entries. */
int us_access(us_access_t *a);
/* Fills sums, as above, for so many pages. */
void us_page_sums(uint64_t addr, uint64_t pages, uint64_t *sums);
/* The value that stands at place k when n values are in ascending order. Reorders them, and takes no memory,
 * so that it can be asked where memory is short. pre: k < n. */
uint32_t us_select(uint32_t *values, uint64_t n, uint64_t k);
/* Keeps a CPU busy, and touches no memory, until us_now_ns() says so. */
void us_spin(uint64_t until);

/* A pager as one writes it at first, to compare with: fresh memory of `bytes`, of which `limit` bytes may be
 * resident. The codec must have been loaded into this process. See naive.c. */
typedef struct us_naive us_naive_t;
typedef struct us_naive_stats {
    uint64_t faults, evicted; /* pages */
    uint64_t kept_raw, kept;  /* bytes that are out; bytes of RAM they take */
} us_naive_stats_t;
int us_naive_open(us_naive_t **out, uint64_t bytes, uint64_t limit, int codec);
uint64_t us_naive_address(const us_naive_t *n);
/* 0, or what its thread has ended with: then a touch waits for ever. */
int us_naive_stats(us_naive_t *n, us_naive_stats_t *out);
void us_naive_close(us_naive_t *n); /* no thread may be in a fault */

typedef struct us_codec_run {
    int codec, level; /* codec: with a filter, or without (codec.h) */
    uint32_t block;
    int scattered;   /* decompress in an order that no cache likes, else one after the other */
    const void *src; /* of len / block blocks */
    uint64_t len;
    uint64_t *compress_ns;   /* out: of each block */
    uint64_t *decompress_ns; /* out: of each block, in the order of decompression */
    uint64_t packed;         /* out: bytes after compression; a block that saves less than 1/16 counts whole */
} us_codec_run_t;
/* A codec by itself, on one thread. The codec must have been loaded into this process. */
int us_measure_codec(us_codec_run_t *run);
/* The floor of a userfaultfd fault on this machine: a C thread on the same CPU which reads the message
 * and copies a ready page. n rounds, nanoseconds each. */
int us_floor(uint64_t n, uint32_t len, uint64_t *ns);

/* The blocks of a region as the pool would hold them: compressed, or as they are where that saves less than
 * 1/16. The codec must have been loaded into this process. */
typedef struct us_objects us_objects_t;
int us_objects_new(us_objects_t **out, int codec, int level, uint32_t block, const void *src, uint64_t len);
void us_objects_free(us_objects_t *o);
uint64_t us_objects_payload(const us_objects_t *o); /* bytes after compression */

typedef struct us_image {
    uint32_t segment;   /* bytes */
    uint32_t large;     /* payloads of as many bytes or more begin on a multiple of 4096; 0: all, UINT32_MAX: none */
    void *to;           /* 4096-aligned; the image of the file, a segment after the other */
    uint64_t room;      /* bytes */
    uint64_t *span_off; /* out: of each object, what is read to get it: offset in the file, bytes */
    uint32_t *span_len;
    uint64_t segments, written; /* out; written: bytes, as write-out would write them */
    uint64_t payload, padding;  /* out: of these; padding is what is no object */
} us_image_t;
/* Packs all of them as write-out does. 0; -ENOSPC: no room; -EINVAL: a segment can't hold one. */
int us_objects_pack(const us_objects_t *o, us_image_t *image);

/* Reads n spans of an O_DIRECT file, one after the other; nanoseconds each. engine: US_IO_PLAIN is pread,
 * others as in io.h: the caller sleeps until the engine's eventfd is rung. */
enum { US_IO_PLAIN = -1 };
int us_measure_reads(int fd, int engine, const uint64_t *off, const uint32_t *len, uint64_t n, uint64_t *ns);

/* All objects from a pool to a file, by one thread, as the loop does it: packed as they are into segments; or, for
 * comparison, each decompressed into its place in a buffer of that size, which is what zswap writes. */
enum { US_OUT_PACKED = 0, US_OUT_UNPACKED = 1 };
typedef struct us_out {
    int how;
    int fd;                  /* O_DIRECT */
    int engine;              /* US_IO_*, see io.h */
    uint32_t segment, large; /* bytes; as in us_image_t */
    uint64_t room;           /* bytes of the file, from 0 on */
    uint64_t reads_max;      /* one read is in flight all the while, of these spans in order, at most so many */
    const uint64_t *read_off;
    const uint32_t *read_len;
    uint64_t *read_ns;   /* out: of each, from when it was submitted until the thread saw that it is done */
    uint64_t reads;      /* out: their number */
    uint64_t written;    /* out: bytes */
    uint64_t ns, cpu_ns; /* out; cpu_ns of the process */
} us_out_t;
int us_objects_out(us_objects_t *o, us_out_t *out);
/* len bytes to the start of a file, by pwrite of `each` bytes, one after the other; time and CPU time. */
int us_measure_writes(int fd, const void *from, uint64_t len, uint32_t each, uint64_t *ns, uint64_t *cpu);

/* ---- the pager half -------------------------------------------------------------------------------- */

typedef struct us_pager us_pager_t;

typedef struct us_pool_config {
    uint64_t budget; /* bytes */
    int codec, level;
} us_pool_config_t;

/* The process's. */
typedef struct us_pager_config {
    us_pool_config_t pool[3]; /* hot to cold; a budget of 0: there is none, nor any behind it */
    int workers;
    int follow;  /* move to the faulting thread's CPU */
    int servers; /* 2: a thread serves faults beside the loop while several threads fault */
    int shuffle; /* filters are chosen for what is compressed */
} us_pager_config_t;

/* One client's. */
typedef struct us_mm_config {
    int uffd, space_fd, doorbell, notify; /* notify: the mover rings here */
    int sigbus;                           /* userfaultfd of inline regions; -1: there are none */
    int pagemap;                          /* -1: there is none */
    int late;                             /* what the limit has room for is plain memory, where there is a pagemap */
    int client_pid, mover_tid;
    uint64_t staging, staging_len;
    uint64_t limit;     /* bytes */
    uint32_t readahead; /* bytes, the widest window; 0 is none */
    int take;           /* US_TAKE_MOVE or US_TAKE_COPY */
} us_mm_config_t;

typedef struct us_event {
    uint32_t kind;  /* US_EV_* */
    uint32_t entry; /* index in the table */
    uint64_t addr;
    uint32_t flags;  /* of the fault message */
    uint32_t tid;    /* of the fault message */
    uint64_t since;  /* us_now_ns() when the message was read */
    int32_t error;   /* US_EV_IO, US_EV_TRACE: errno; US_EV_LOST: why the pages could not be marked, or 0 */
    uint32_t region; /* US_EV_LOST, and of these three: its id */
    uint64_t offset; /* bytes from the region's start */
    uint32_t length; /* bytes of the block */
    uint32_t tier;   /* where it was, US_TIER_* */
} us_event_t;

/* Gives the pager its swap file, before the first region: bytes of it in segments. engine: US_IO_*. */
int us_pager_swap(us_pager_t *p, int fd, uint64_t bytes, uint32_t segment, int engine);
/* Begins to write a trace to fd, before the first region; fd stays the caller's. -EBUSY: there are regions, or a trace. */
int us_pager_trace(us_pager_t *p, int fd);
/* Ends it. Returns how many records the file lacks. */
int64_t us_pager_trace_end(us_pager_t *p);
int us_pager_io_fd(us_pager_t *p); /* eventfd: a read or write is done */
int us_pager_io_engine(us_pager_t *p);
/* Every n-th read (op 0) or write (1) of the swap file fails with err; see io.h. For tests. */
int us_pager_io_inject(us_pager_t *p, int op, int err, uint32_t every);
int us_pager_open(us_pager_t **out, const us_pager_config_t *cfg, const us_mm_config_t *client);
void us_pager_close(us_pager_t *p);
int us_pager_worker_fd(us_pager_t *p);     /* eventfd: a worker has finished something */
void us_pager_rung(us_pager_t *p, int fd); /* silences an eventfd, before the step that it has rung for */
/* Drains messages and completions and keeps the budgets. Returns how many events were written to ev. */
int us_pager_step(us_pager_t *p, us_event_t *ev, int max);
/* Tries once more a fault that had to wait: US_DONE, US_WAIT_ENTRY, US_WAIT_ROOM, US_STRAY, US_AGAIN. */
int us_pager_serve(us_pager_t *p, const us_event_t *fault);
/* A task gives up on a fault without US_DONE: a stray one. Its thread is woken, and touches again. */
void us_pager_drop(us_pager_t *p, const us_event_t *fault);
/* Adds a region; item: bytes of an item of what it holds, 0 if that is not known. Inactive until us_pager_activate.
 * Returns the region's id. */
int us_pager_add(us_pager_t *p, uint64_t addr, uint64_t len, uint32_t block, uint32_t item, int handled,
                 uint64_t *first_entry, uint64_t *entries);
/* Of an inactive region: how much from its start the limit has room for, to be plain memory, which the pager registers
 * when it wants the room. Bytes; a multiple of 2 MiB unless it is all of it, and 0 without a pagemap. */
int64_t us_pager_plain(us_pager_t *p, int id);
/* Gives an inactive region's blocks their states, a slice at a time from block *cursor, which begins at 0: `plain` bytes
 * from the start are plain memory; resident: the others' bytes are in the client's pages now (a wrapped buffer), else they
 * are zeros. US_AGAIN until it is done. */
int us_pager_fill(us_pager_t *p, int id, uint32_t *cursor, uint64_t plain, int resident);
int us_pager_activate(us_pager_t *p, int id);
/* Of an active region that was wrapped: looks from block *cursor, which begins at 0, for blocks that nobody ever touched, so
 * that they don't count as resident. US_AGAIN until it is done. */
int us_pager_probe(us_pager_t *p, int id, uint32_t *cursor);
/* A new limit, up or down. US_WAIT_ROOM: what is resident above it is on its way out; ask again. US_DONE as well when
 * nothing more can leave. -EINVAL: less than a block of a region. */
int us_pager_limit(us_pager_t *p, uint64_t limit);
/* A new budget for the first pool, up and down; -EINVAL above what it was laid out for. US_WAIT_ROOM: what is above it is on
 * its way to the next tier; ask again. US_DONE as well when nothing more can go. */
int us_pager_pool(us_pager_t *p, uint64_t budget);
/* Nothing of the region leaves any more. */
int us_pager_freeze(us_pager_t *p, int id);
/* The range calls work from block *cursor towards `last` as far as they get without waiting, move
 * *cursor, and answer US_DONE at the end, else what to wait for. */
int us_pager_evict(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);
int us_pager_prefetch(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);
/* Moves what is out in another tier to tier `to`, whichever it is. -EINVAL: there is no such tier; -ENOSPC: it
 * has no room, and none is being made; -ECANCELED: the region is frozen, or no more. */
int us_pager_move(us_pager_t *p, int id, uint32_t *cursor, uint32_t last, int to);
/* Done when each block was seen with no move of it under way. */
int us_pager_moved(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);
/* Reads what is out of RAM where it is, and leaves it there: a STORED block is read and checked as a fault
 * would, a POOLED one decompressed. What can't be read back is LOST from then on. The last reads are done
 * when the range is settled. -ECANCELED: the region is frozen, or no more. */
int us_pager_verify(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);
/* Done when each block was seen neither locked, leaving nor in the outbox; a frozen region also has no jobs. */
int us_pager_settle(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);
int us_pager_pin(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);
int us_pager_unpin(us_pager_t *p, int id, uint32_t first, uint32_t last);
int us_pager_restore(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);
/* Forgets the region and frees all that its entries hold, a slice at a time from block *cursor, which begins at 0:
 * US_AGAIN until it is done. Frozen and settled only (-EBUSY). */
int us_pager_remove(us_pager_t *p, int id, uint32_t *cursor);
/* Room for the fault or task that waits: 1 when there is something to wait for. */
int us_pager_pending(us_pager_t *p);
int us_pager_is_valid(us_pager_t *p); /* 1, or 0 with the broken invariant's number in errno */

/* ---- codecs (codec.h says more) -------------------------------------------------------------------- */

int us_codec_load(int codec, const char *path);
int us_shuffle_level(void); /* how bytes are shuffled here: 1 by SSE2, 2 by AVX2 (filter.h says more) */

/* ---- swap files ------------------------------------------------------------------------------------ */

/* The alignment, in bytes, that O_DIRECT wants of memory, and of offsets and lengths, on this file.
 * -EOPNOTSUPP: the kernel says that it can't be had; -ENODATA: the kernel (before 6.1) or the file
 * system does not say. */
int us_dio_align(int fd, uint32_t *mem, uint32_t *off);
/* 1 when it is a file of tmpfs, ramfs or hugetlbfs, else 0. */
int us_in_ram(int fd);
/* How much of [off, off+len) the page cache holds, in bytes, by whole pages. The kernel says "all" of a
 * file that the caller may not write. pre: off is a multiple of the page; the file reaches to off + len. */
int64_t us_file_cached(int fd, uint64_t off, uint64_t len);
/* Reserves the first `bytes`, and makes the file no shorter than that. -EOPNOTSUPP where the file system
 * has no such thing: unlike posix_fallocate() it does not write the file full in its place. */
int us_file_reserve(int fd, uint64_t bytes);

/* An object of a segment, as its header says. */
typedef struct us_fsck_obj {
    uint64_t off; /* of its header in the file */
    uint32_t entry;
    uint32_t length; /* of the payload, bytes */
    uint32_t raw;    /* bytes of the block */
    uint16_t gen;
    uint8_t codec; /* codec.h says what is in it */
    uint8_t ok;    /* 0: the checksum is wrong, and no other field can be trusted */
    uint8_t known; /* 0: it is as it was packed, but its codec or filter is none of this version's */
    uint8_t filtered;
} us_fsck_obj_t;

typedef struct us_fsck_seg {
    uint64_t space, sequence;
    uint32_t version, id, segment_size, used;
    uint32_t objects; /* packed */
    uint32_t good;    /* found as they were packed */
    uint32_t bad;     /* the others: wrong, or not found */
} us_fsck_seg_t;

/* Reads a segment (format: segment.h), or as much of it as there is, from a buffer that is 8-aligned. Returns
 * the objects put into out, at most max. -ENODATA: no segment was ever written here; -EILSEQ: there was, but
 * its header is bad (seg is what it says) or of another place or version. */
int us_fsck_segment(const void *buf, uint32_t bytes, uint64_t seg_off, us_fsck_obj_t *out, uint32_t max,
                    us_fsck_seg_t *seg);
