/* SPDX-License-Identifier: MIT */
#ifndef US_FAULT_H
#define US_FAULT_H

#include "state.h"

int us_fault_serve(us_pager_t *p, const us_event_t *f);

/* A message of the userfaultfd: served, or handed to Python as an event. */
void us_message(us_pager_t *p, const us_msg_t *msg, uint64_t now);

#endif
