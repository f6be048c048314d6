/* SPDX-License-Identifier: MIT */
#ifndef US_WRITEOUT_H
#define US_WRITEOUT_H

#include "state.h"

int us_store_open(us_pager_t *p, int fd, uint64_t bytes, uint32_t segment, int engine);
void us_store_close(us_pager_t *p);

#endif
