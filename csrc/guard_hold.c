/* SPDX-License-Identifier: MIT
 *
 * What one call holds. Nothing is allocated by malloc: read and write may be called in a signal handler.
 */
#include "guard_call.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

int64_t us_holds_part(us_holds_t *h, const void *addr, uint64_t len, bool write) {
    uint64_t a = (uint64_t)(uintptr_t)addr;
    if (len == 0 || !us_guard_near(addr, len) || !us_inline_meets(a, len))
        return (int64_t)len;
    us_holds_t *last = h;
    while (last->n == US_HOLDS) {
        if (!last->more) {
            void *p = mmap(NULL, sizeof *h, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED)
                return -ENOMEM;
            last->more = p;
        }
        last = last->more;
    }
    uint64_t since;
    int64_t n = us_inline_hold(a, len, write, &since);
    if (n > 0)
        last->at[last->n++] = (struct us_held){a, (uint64_t)n, since};
    return n == 0 ? -ENOMEM : n;
}

int us_holds_all(us_holds_t *h, const void *addr, uint64_t len, bool write) {
    int64_t n = us_holds_part(h, addr, len, write);
    return n < 0 ? (int)n : (uint64_t)n < len ? -ENOMEM : 0;
}

void us_holds_end(us_holds_t *h) {
    int err = errno;
    us_holds_t *more = h->more;
    for (uint32_t i = h->n; i-- > 0;)
        us_inline_release(h->at[i].addr, h->at[i].len, h->at[i].since);
    h->n = 0;
    h->more = NULL;
    while (more) {
        us_holds_t *next = more->more;
        for (uint32_t i = more->n; i-- > 0;)
            us_inline_release(more->at[i].addr, more->at[i].len, more->at[i].since);
        munmap(more, sizeof *more);
        more = next;
    }
    errno = err;
}

static void holds_ended(void *h) { us_holds_end(h); }

/* ---- operands ------------------------------------------------------------------------------------------ */

static uint64_t length_of(const us_op_t *op, const long *a) {
    const void *p = (const void *)a[op->arg];
    switch (op->kind) {
    case US_OP_FIXED: return op->size;
    case US_OP_TIMES: return (uint64_t)a[op->by] * op->size;
    case US_OP_TIMES32: return (int)a[op->by] > 0 ? (uint64_t)(int)a[op->by] * op->size : 0;
    case US_OP_BITS32: return (int)a[op->by] > 0 ? ((uint64_t)(int)a[op->by] + 63) / 64 * 8 : 0;
    case US_OP_BEHIND: return a[op->by] ? *(const uint32_t *)a[op->by] : 0;
    case US_OP_BEHIND64: return a[op->by] ? *(const uint64_t *)a[op->by] : 0;
    case US_OP_HEADED: return (uint64_t)op->size + *(const uint32_t *)p;
    case US_OP_MESSAGE: return op->size + (uint64_t)a[op->by];
    case US_OP_STRING: return strnlen(p, PATH_MAX) + 1;
    }
    return 0;
}

bool us_ops_near(const us_op_t *ops, uint32_t n, const long *a) {
    for (uint32_t i = 0; i < n; i++) {
        const us_op_t *op = &ops[i];
        const void *p = (const void *)a[op->arg];
        bool behind = op->kind == US_OP_BEHIND || op->kind == US_OP_BEHIND64;
        if (p && us_guard_near(p, op->kind == US_OP_STRING || op->kind == US_OP_HEADED ? PATH_MAX : length_of(op, a)))
            return true;
        if (behind && a[op->by] && us_guard_near((const void *)a[op->by], 8))
            return true;
    }
    return false;
}

int us_ops_hold(us_holds_t *h, const us_op_t *ops, uint32_t n, const long *a) {
    int err = 0;
    for (uint32_t i = 0; i < n && err == 0; i++) {
        const us_op_t *op = &ops[i];
        if (!a[op->arg])
            continue;
        if (op->kind == US_OP_BEHIND || op->kind == US_OP_BEHIND64)
            err = us_holds_all(h, (const void *)a[op->by], op->kind == US_OP_BEHIND ? 4 : 8, true);
        if (err == 0)
            err = us_holds_all(h, (const void *)a[op->arg], length_of(op, a), op->write);
    }
    return err;
}

/* In a function of its own: what is beside a setjmp of pthread_cleanup_push may be clobbered. */
long us_call_ending(us_holds_t *h, us_call_t call, const long *a) {
    long result;
    pthread_cleanup_push(holds_ended, h);
    result = call(a[0], a[1], a[2], a[3], a[4], a[5]);
    pthread_cleanup_pop(0);
    us_holds_end(h);
    return result;
}

static long refuse(us_holds_t *h, long fail, int err) {
    us_holds_end(h);
    if (fail == US_FAIL_NUMBER)
        return -err;
    errno = -err;
    return fail;
}

long us_call_held(us_call_t call, const us_op_t *ops, uint32_t n, long fail, const long *a) {
    us_holds_t h = {.n = 0};
    int err = us_ops_hold(&h, ops, n, a);
    return err != 0 ? refuse(&h, fail, err) : us_call_ending(&h, call, a);
}

long us_syscall_held(us_syscall_t call, long number, const us_op_t *ops, uint32_t n, const long *a) {
    us_holds_t h = {.n = 0};
    int err = us_ops_hold(&h, ops, n, a);
    if (err != 0)
        return refuse(&h, -1, err);
    long result = call(number, a[0], a[1], a[2], a[3], a[4], a[5]); /* no cancellation point */
    us_holds_end(&h);
    return result;
}
