/* SPDX-License-Identifier: MIT
 *
 * Has KSM merged pages of this process? KSM makes the page-table entry of a page that it merges anew, without the write
 * protection of userfaultfd, and does so where other code of the process asks for it (MADV_MERGEABLE, PR_SET_MEMORY_MERGE)
 * although regions are made unmergeable.
 */
#ifndef US_KSM_H
#define US_KSM_H

#include "types.h"

typedef struct us_ksm {
    int scans;     /* /sys/kernel/mm/ksm/full_scans; -1: not there */
    int stat;      /* /proc/self/ksm_stat, since Linux 6.1; -1: not there */
    bool none;     /* a kernel without KSM */
    bool may;      /* it may have merged some; so it stays */
    uint64_t seen; /* full scans at the last look */
    uint64_t at;   /* ns: the last look */
} us_ksm_t;

void us_ksm_open(us_ksm_t *k);
void us_ksm_close(us_ksm_t *k);

/* May KSM have merged a page of this process since us_ksm_open()? Two small reads, at most once a millisecond: so old the
 * answer may be. Else never a false no, save where root sets /sys/kernel/mm/ksm/run to 2 and KSM then makes just as many
 * full scans as before, between two looks. */
bool us_ksm_may_have_merged(us_ksm_t *k);

#endif
