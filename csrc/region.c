/* SPDX-License-Identifier: MIT
 *
 * The regions: by number, by address and by first entry; and which part of the table each has.
 */
#include "region.h"

#include <stdlib.h>
#include <string.h>

#include "alloc.h"

/* How many of the n regions of a begin at or before key (by address or by first entry). */
static uint32_t upto(us_region_t **a, uint32_t n, uint64_t key, bool by_addr) {
    uint32_t lo = 0, hi = n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        uint64_t at = by_addr ? a[mid]->addr : a[mid]->first;
        if (at <= key)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

us_region_t *us_region_at(us_mm_t *m, uint64_t addr) {
    uint32_t k = upto(m->byaddr, m->live, addr, true);
    if (k == 0 || addr - m->byaddr[k - 1]->addr >= m->byaddr[k - 1]->len)
        return NULL;
    return m->byaddr[k - 1];
}

us_region_t *us_region_of(us_mm_t *m, uint32_t entry) {
    uint32_t k = upto(m->byfirst, m->live, entry, false);
    if (k == 0 || entry - m->byfirst[k - 1]->first >= m->byfirst[k - 1]->count)
        return NULL;
    return m->byfirst[k - 1];
}

static int grow(us_mm_t *m) {
    const uint32_t n = m->regions == 0 ? 16 : m->regions * 2;
    us_region_t **a = us_realloc(m->region, n * sizeof *a);
    if (a != NULL)
        m->region = a;
    us_region_t **b = us_realloc(m->byaddr, n * sizeof *b);
    if (b != NULL)
        m->byaddr = b;
    us_region_t **c = us_realloc(m->byfirst, n * sizeof *c);
    if (c != NULL)
        m->byfirst = c;
    if (a == NULL || b == NULL || c == NULL)
        return -ENOMEM;
    memset(m->region + m->regions, 0, (n - m->regions) * sizeof *a);
    m->regions = n;
    return 0;
}

/* The first gap of the table that holds n entries. */
static uint32_t find_gap(const us_mm_t *m, uint64_t n) {
    uint64_t at = 0;
    for (uint32_t k = 0; k < m->live; k++) {
        if (m->byfirst[k]->first - at >= n)
            return (uint32_t)at;
        at = (uint64_t)m->byfirst[k]->first + m->byfirst[k]->count;
    }
    return at + n <= m->space.at.table_cap ? (uint32_t)at : US_NONE;
}

static void insert(us_region_t **a, uint32_t n, uint32_t at, us_region_t *r) {
    memmove(a + at + 1, a + at, (n - at) * sizeof(us_region_t *));
    a[at] = r;
}

static void erase(us_region_t **a, uint32_t n, const us_region_t *r) {
    for (uint32_t k = 0; k < n; k++) {
        if (a[k] == r) {
            memmove(a + k, a + k + 1, (n - k - 1) * sizeof(us_region_t *));
            return;
        }
    }
}

int us_region_new(us_mm_t *m, uint64_t addr, uint64_t len, uint32_t block, us_region_t **out) {
    const uint32_t k = upto(m->byaddr, m->live, addr + len - 1, true);
    if (k > 0 && m->byaddr[k - 1]->addr + m->byaddr[k - 1]->len > addr)
        return -EEXIST;
    if (m->live == m->regions && grow(m) < 0)
        return -ENOMEM;
    /* Not the last one that was given up: a late request must not find another region under its id. */
    uint32_t id = m->next_id % m->regions;
    while (m->region[id] != NULL)
        id = (id + 1) % m->regions;
    m->next_id = id + 1;
    const uint64_t count = (len + block - 1) / block;
    const uint32_t first = find_gap(m, count);
    if (first == US_NONE)
        return -ENOSPC;
    us_region_t *r = us_calloc(1, sizeof *r);
    if (r == NULL)
        return -ENOMEM;
    *r = (us_region_t){.addr = addr,
                       .len = len,
                       .id = id,
                       .first = first,
                       .count = (uint32_t)count,
                       .shift = (uint8_t)__builtin_ctz(block)};
    m->region[id] = r;
    insert(m->byaddr, m->live, upto(m->byaddr, m->live, addr, true), r);
    insert(m->byfirst, m->live, upto(m->byfirst, m->live, first, false), r);
    m->live++;
    m->s->regions++;
    m->s->region_bytes += len;
    *out = r;
    return 0;
}

void us_region_free(us_mm_t *m, us_region_t *r) {
    erase(m->byaddr, m->live, r);
    erase(m->byfirst, m->live, r);
    m->live--;
    m->region[r->id] = NULL;
    m->s->regions--;
    m->s->region_bytes -= r->len;
    free(r);
}
