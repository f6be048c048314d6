/* SPDX-License-Identifier: MIT */
#ifndef US_NOTES_H
#define US_NOTES_H

#include "state.h"

/* Brings the books up to what handlers have done. */
void us_notes(us_pager_t *p);
/* The pager has work because of handlers: a fault to serve, room to make, or notes that would soon fill their ring. */
bool us_notes_wait(us_pager_t *p);

#endif
