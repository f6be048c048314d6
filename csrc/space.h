/* SPDX-License-Identifier: MIT
 *
 * The space: one memfd, laid out as
 *
 *   | ring, inline (RW both) | statistics (pager RW, client R) | outbox (RW both) | table (pager RW) | claims | pools |
 *
 * each part page-aligned and sparse: what is not used has no memory. Table, claims and pools are mapped by the pager, and by a
 * client from its first inline region on, which then reads table and pools and writes claims. Others read entries by pread,
 * which finds zeros in a hole and leaves it one: mapped, the table would count against the user's limits on address space, and
 * mlockall would fill it.
 */
#ifndef US_SPACE_H
#define US_SPACE_H

#include "types.h"

typedef struct us_space {
    us_layout_t at;
    us_ring_t *ring;
    us_shared_stats_t *stats;
    uint8_t *outbox;
    us_inline_t *in;
    us_entry_t *table; /* NULL in the client until us_space_map_inline, as are claims and pools */
    us_claim_t *claim;
    uint8_t *pool[US_POOLS];
} us_space_t;

/* Reads the layout from the memfd and checks it. -EPROTO: not a space, or of another version. */
int us_space_map(us_space_t *s, int fd, bool pager);
/* The client's: table, claims and pools, so that no lock of the user's (mlockall) fills them. 0 or -errno. */
int us_space_map_inline(us_space_t *s, int fd);
void us_space_unmap(us_space_t *s);

/* The first entry of [i, end) whose page of the table has memory, or end. What was never written has none, is EMPTY, and
 * must not be read: to read a hole of a memfd is to fill it. One system call. */
uint32_t us_space_seek(const us_space_t *s, int fd, uint32_t i, uint32_t end);

/* The entry to look at after i, of those before end: us_space_seek where a page begins. Loops over entries run
 *     for (i = us_space_seek(s, fd, first, end); i < end; i = us_space_next(s, fd, i, end)) */
static inline uint32_t us_space_next(const us_space_t *s, int fd, uint32_t i, uint32_t end) {
    return (i + 1) % (US_PAGE / sizeof(us_entry_t)) != 0 ? i + 1 : us_space_seek(s, fd, i + 1, end);
}

#endif
