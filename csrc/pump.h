/* SPDX-License-Identifier: MIT */
#ifndef US_PUMP_H
#define US_PUMP_H

#include "state.h"

/* Commits what mover, workers and the file have finished. Waits for nothing. */
void us_pump(us_pager_t *p);

#endif
