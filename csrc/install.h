/* SPDX-License-Identifier: MIT */
#ifndef US_INSTALL_H
#define US_INSTALL_H

#include "state.h"

/* Brings block i in: US_DONE, US_AGAIN, or -errno when the memory is gone. */
int us_install(us_pager_t *p, us_region_t *r, uint32_t i, bool write);
/* The same of bytes that are at hand. */
int us_install_copy(us_pager_t *p, us_region_t *r, uint32_t i, bool write, const uint8_t *src);
int us_install_unprotect(us_pager_t *p, us_region_t *r, uint32_t i);
/* POOLED block i, decompressed and let go of again. false: it does not decompress. */
bool us_install_intact(us_pager_t *p, us_region_t *r, uint32_t i);
/* POOLED or STORED block i can't be read back: LOST. wanted: a thread waits for it. */
void us_install_lose(us_pager_t *p, us_region_t *r, uint32_t i, bool wanted);
/* A touch of the range is SIGBUS from here on, but for pages that are there. 0 or -errno. */
int us_install_mark(const us_region_t *r, uint64_t addr, uint64_t len);
/* Fills in a job that swaps block i in, but for the bytes. */
void us_install_job(us_mm_t *m, us_region_t *r, us_job_t *j, uint32_t i, bool clean);
/* Where a worker finds the bytes of a block that is EMPTY, FILLED or POOLED. */
void us_install_bytes(us_pager_t *p, us_job_t *j, uint32_t i);
/* Hands block i to a worker. false: it can't be had now without waiting. */
bool us_install_ahead(us_pager_t *p, us_region_t *r, uint32_t i, bool clean);

#endif
