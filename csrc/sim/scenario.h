/* SPDX-License-Identifier: MIT */
#ifndef US_SIM_SCENARIO_H
#define US_SIM_SCENARIO_H

#include <stdbool.h>
#include <stdint.h>

extern bool sim_lz4, sim_zstd;              /* there are such libraries */
extern bool sim_each;                       /* of --each */
extern const char *sim_with;                /* of --with; NULL */
_Noreturn void sim_run_seed(uint64_t seed); /* ends the process: 0 when all holds */

#endif
