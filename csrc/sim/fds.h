/* SPDX-License-Identifier: MIT
 *
 * The descriptors that are simulated. */
#ifndef US_SIM_FDS_H
#define US_SIM_FDS_H

enum {
    SIM_FD = 10000,
    SIM_UFFD = SIM_FD,
    SIM_SIGBUS, /* the userfaultfd of inline regions */
    SIM_PAGEMAP,
    SIM_DISK,
    SIM_PIDFD,
    SIM_STAT,
    SIM_SOCK,
    SIM_SOCK_END,
    SIM_EVENT = SIM_FD + 100
};

#endif
