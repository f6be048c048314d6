/* SPDX-License-Identifier: MIT */
#ifndef US_SIM_DISK_H
#define US_SIM_DISK_H

#include "memory.h"

typedef struct sim_disk {
    uint64_t bytes;
    uint64_t slow_ns; /* a request takes up to so long, one in 16 sixteen times */
    uint32_t eio_one_in, short_one_in, flip_one_in, full_one_in, lost_one_in, eintr_one_in;
    bool cached; /* opened without O_DIRECT */
} sim_disk_t;
extern sim_disk_t sim_disk;
void sim_disk_open(void);

#endif
