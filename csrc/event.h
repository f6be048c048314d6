/* SPDX-License-Identifier: MIT */
#ifndef US_EVENT_H
#define US_EVENT_H

#include "state.h"

void us_event(us_pager_t *p, us_event_t ev);
/* Somebody in Python waits for room, or for what is under way: whatever is finished is an event. */
void us_want(us_pager_t *p);
/* What was begun is gone on with by the next step, which comes at once. */
void us_go_on(us_pager_t *p);

#endif
