/* SPDX-License-Identifier: MIT
 *
 * The inner loops of `uswap bench peers`: the same accesses to memory that is uswap's, the kernel's, or a
 * file's, each with a look at what it finds.
 */
#include "types.h"

#include <string.h>

/* The clock is read once in so many accesses where none is timed by itself. */
enum { CLOCK_EVERY = 16 };

enum { WORDS = US_PAGE / sizeof(uint64_t) };

/* Flips the lowest bit of each word. Returns the sum before; *after is what it is then. Four sums, as in us_sweep, so that
 * memory is waited for and not the adder. */
static uint64_t flip(uint64_t *p, uint64_t *after) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (int i = 0; i < WORDS; i += 4) {
        const uint64_t v = p[i], w = p[i + 1], x = p[i + 2], y = p[i + 3];
        a += v, b += w, c += x, d += y;
        p[i] = v ^ 1, p[i + 1] = w ^ 1, p[i + 2] = x ^ 1, p[i + 3] = y ^ 1;
        *after += (v ^ 1) + (w ^ 1) + (x ^ 1) + (y ^ 1);
    }
    return a + b + c + d;
}

void us_page_sums(uint64_t addr, uint64_t pages, uint64_t *sums) {
    for (uint64_t i = 0; i < pages; i++)
        sums[i] = us_sweep(addr + i * US_PAGE, US_PAGE, 0);
}

static int access_one(us_access_t *a, uint64_t i) {
    const uint32_t page = a->page[i % a->pages];
    uint64_t *p = (uint64_t *)(uintptr_t)(a->addr + (uint64_t)page * US_PAGE);
    uint64_t sum, after = 0;
    switch (a->kind) {
    case US_ACCESS_READ: a->wrong += us_sweep((uint64_t)(uintptr_t)p, US_PAGE, 0) != a->sums[page]; return 0;
    case US_ACCESS_FLIP:
        a->wrong += flip(p, &after) != a->sums[page];
        a->sums[page] = after;
        return 0;
    case US_ACCESS_WORD:
        sum = *(volatile uint64_t *)p;
        a->seen += sum;
        return 0;
    case US_ACCESS_WRITE:
        sum = i % a->from_pages;
        memcpy(p, (const uint8_t *)a->from + sum * US_PAGE, US_PAGE);
        a->sums[page] = a->from_sums[sum];
        return 0;
    default: return -EINVAL;
    }
}

int us_access(us_access_t *a) {
    if (a->pages == 0 || (a->kind == US_ACCESS_WRITE && a->from_pages == 0))
        return -EINVAL;
    a->done = a->wrong = a->seen = 0;
    const uint64_t start = us_now_ns();
    uint64_t now = start;
    while (a->done < a->count && now < a->until) {
        int err = access_one(a, a->first + a->done);
        if (err != 0)
            return err;
        if (a->done < a->ns_room) {
            const uint64_t then = now;
            now = us_now_ns();
            a->ns[a->done] = (uint32_t)us_min(now - then, UINT32_MAX);
        } else if ((a->done + 1) % CLOCK_EVERY == 0) {
            now = us_now_ns();
        }
        a->done++;
    }
    a->elapsed = us_now_ns() - start;
    return 0;
}

/* Hoare's. What is left of `low` is at most any of the rest, what is right of `high` at least. */
uint32_t us_select(uint32_t *values, uint64_t n, uint64_t k) {
    int64_t low = 0, high = (int64_t)n - 1;
    const int64_t at = (int64_t)k;
    while (low < high) {
        const uint32_t middle = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] < middle)
                i++;
            while (values[j] > middle)
                j--;
            if (i <= j) {
                const uint32_t v = values[i];
                values[i++] = values[j];
                values[j--] = v;
            }
        }
        if (at <= j)
            high = j;
        else if (at >= i)
            low = i;
        else
            break;
    }
    return values[at];
}

void us_spin(uint64_t until) {
    volatile uint64_t nothing = 0;
    while (us_now_ns() < until) {
        for (int i = 0; i < 1000; i++)
            nothing = nothing + 1;
    }
}
