/* SPDX-License-Identifier: MIT */
#ifndef US_OUTBOX_H
#define US_OUTBOX_H

#include "state.h"

/* A slot of so many pages, or US_NONE. */
uint32_t us_outbox_slot(us_outbox_t *o, uint32_t pages);
void us_outbox_free(us_mm_t *m, uint32_t slot);
/* Commands that the ring has room for. */
static inline uint32_t us_outbox_room(const us_mm_t *m) { return US_RING - (uint32_t)(m->head - m->seen); }
/* A command for the mover, which hears of it by us_outbox_ring. pre: there is room. */
void us_outbox_post(us_mm_t *m, us_region_t *r, uint32_t i, uint32_t op, uint32_t slot, us_job_t *job);
void us_outbox_ring(us_mm_t *m);
/* Has the mover keep [addr, addr+len) from children, before it takes anything out of it. false: the ring is full. */
bool us_outbox_nofork(us_mm_t *m, uint64_t addr, uint64_t len);

#endif
