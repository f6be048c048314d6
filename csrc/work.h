/* SPDX-License-Identifier: MIT */
#ifndef US_WORK_H
#define US_WORK_H

#include "state.h"

/* Block numbers first to first + count - 1 get other bytes, or other blocks: what is being made of them is garbage. */
void us_work_forget(us_pager_t *p, uint32_t first, uint32_t count);

#endif
