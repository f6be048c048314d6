/* SPDX-License-Identifier: MIT */
#ifndef US_RECORD_H
#define US_RECORD_H

#include "state.h"

/* Counts a fault on block i that was served, and has it traced. */
void us_record(us_pager_t *p, int kind, uint32_t i, bool write, uint64_t since);
/* A fault on a block that is being swapped in. */
void us_record_wait(us_pager_t *p, uint32_t i, bool write, uint64_t since);
/* Block i is swapped in, or was not: ends the wait of the faults that came meanwhile. copied: ns, when the copy was done
 * that has woken those from before it; 0: they are woken just now, as the others are. */
void us_record_waited(us_mm_t *m, uint32_t i, uint64_t copied);

#endif
