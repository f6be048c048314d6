/* SPDX-License-Identifier: MIT
 *
 * The pager's side of claims, and of what handlers ask for. Below entries, which change under claims and answer asks; what
 * handlers did comes into the books in notes.c.
 */
#ifndef US_TURN_H
#define US_TURN_H

#include "state.h"

/* The next fault that a handler asks for. false: there is none. */
bool us_ask_next(us_mm_t *m, us_msg_t *msg, uint64_t *since);
/* What waits for [addr, addr+len) goes on, and touches again. */
void us_ask_answer(us_mm_t *m, uint64_t addr, uint64_t len);
/* The same, and whoever waits in the kernel. */
void us_wake(us_mm_t *m, const us_region_t *r, uint64_t addr, uint64_t len);

/* Block i, so that no handler changes it meanwhile. false: a handler has it. Of a region of messages always true. */
bool us_take(us_mm_t *m, const us_region_t *r, uint32_t i);
/* The same of a block that no system call holds. */
bool us_take_alone(us_mm_t *m, const us_region_t *r, uint32_t i);
/* A handler has block i, or it is not in the books yet. */
bool us_is_claimed(us_mm_t *m, const us_region_t *r, uint32_t i);
void us_give(us_mm_t *m, const us_region_t *r, uint32_t i);
/* The same at the end of the region, whose holds count no longer. */
void us_forget(us_mm_t *m, const us_region_t *r, uint32_t i);

#endif
