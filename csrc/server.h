/* SPDX-License-Identifier: MIT
 *
 * The second server: a thread that serves faults beside the loop, on another CPU, while several threads fault.
 *
 * Whoever serves has the pager's lock, and is "the loop" of all that is said elsewhere for as long: the only
 * writer of entries, the only one who posts commands and jobs. The lock is given back while a block is decompressed
 * and copied in (install_apart in fault.c); the entry is LOCKED meanwhile, as it is while a worker does the same.
 */
#ifndef US_SERVER_H
#define US_SERVER_H

#include "state.h"

int us_server_open(us_pager_t *p);
void us_server_close(us_pager_t *p);
/* Starts the second one, where there is a CPU for it. */
int us_server_start(us_pager_t *p);

#endif
