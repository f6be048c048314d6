/* SPDX-License-Identifier: MIT */
#ifndef US_SIM_DOORS_H
#define US_SIM_DOORS_H

#include "fds.h"
#include "fibers.h"

int sim_eventfd(void);
bool sim_fd_ready(int fd, bool out);    /* of poll */
void sim_pager_gone(void);              /* its end of the socket is closed */
int sim_sock_recv(void *buf, size_t n); /* the pager's end: bytes, 0 at the end, -EAGAIN */
int sim_sock_send(const void *buf, size_t n);

#endif
