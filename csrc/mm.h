/* SPDX-License-Identifier: MIT */
#ifndef US_MM_H
#define US_MM_H

#include "state.h"

/* pre: all is 0. After a failure too us_mm_close must follow. */
int us_mm_open(us_mm_t *m, const us_mm_config_t *cfg);
void us_mm_close(us_mm_t *m);
/* Bytes that may be resident, from now on. */
void us_mm_limit(us_mm_t *m, uint64_t limit);

#endif
