/* SPDX-License-Identifier: MIT */
#ifndef US_MM_H
#define US_MM_H

#include "state.h"

/* pre: all is 0. After a failure too us_mm_close must follow. */
int us_mm_open(us_mm_t *m, const us_mm_config_t *cfg);
void us_mm_close(us_mm_t *m);
/* Bytes that may be resident, from now on. */
void us_mm_limit(us_mm_t *m, uint64_t limit);
/* Promises len bytes, in place of what was promised before and not used. most: resident bytes after it, at most; 0: any.
 * false: there is no room, and nothing is promised. */
bool us_mm_admit(us_mm_t *m, uint64_t len, uint64_t most);
/* What is resident grows, out of what is promised as far as that goes; and shrinks. */
void us_mm_grow(us_mm_t *m, uint64_t len);
void us_mm_shrink(us_mm_t *m, uint64_t len);
/* What is resident shrinks, and what is promised grows: it may come again before the lock is given back. */
void us_mm_withhold(us_mm_t *m, uint64_t len);

#endif
