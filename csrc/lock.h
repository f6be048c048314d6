/* SPDX-License-Identifier: MIT */
#ifndef US_LOCK_H
#define US_LOCK_H

#include "state.h"

/* Without a fault for so long, and the second server sleeps. */
enum { US_QUIET_MS = 20 };
#define US_QUIET_NS (US_QUIET_MS * 1000000ull)

void us_server_lock(us_pager_t *p, us_worker_t *owner);
void us_server_unlock(us_pager_t *p);
/* A fault of thread tid is about to be served. */
void us_server_seen(us_pager_t *p, uint32_t tid, uint64_t now);
/* The second server serves, or sleeps. */
void us_server_wake(us_servers_t *s, bool on);

#endif
