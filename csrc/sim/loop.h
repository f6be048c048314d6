/* SPDX-License-Identifier: MIT
 *
 * What the pager process does around the core, in C: uswap/pager/loop.py line by line, without what it says to people.
 */
#ifndef US_SIM_LOOP_H
#define US_SIM_LOOP_H

#include "../types.h"

typedef struct sim_pager {
    us_pager_config_t cfg;
    us_mm_config_t mm;
    uint64_t swap; /* bytes; 0: no file */
    uint32_t segment;
    bool trace;            /* to nowhere */
    uint32_t check_one_in; /* calls after which the invariants are checked */
    bool ready, ended;
    int error; /* of the start */
    us_pager_t *pager;
    uint64_t lost; /* blocks */
    uint64_t noroom, unwritten, checks;
} sim_pager_t;

/* Ends the simulation unless the client's pages are as the entries say. */
void sim_check(us_pager_t *p);
/* The same when all regions have gone: nothing is left of handlers. */
void sim_check_end(us_pager_t *p);
/* The pager's main thread. */
void *sim_pager_main(void *pager);

#endif
