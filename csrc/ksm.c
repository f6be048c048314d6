/* SPDX-License-Identifier: MIT */
#include "ksm.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { AGE_NS = 1000000 }; /* of an answer, at most */

/* The first number of a file of the kernel's, "12\n" or "name 12\n..."; false: none. */
static bool number(int fd, uint64_t *out) {
    char text[256];
    const ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    if (n <= 0)
        return false;
    text[n] = '\0';
    const char *digit = text + strcspn(text, "0123456789\n");
    char *end;
    *out = strtoull(digit, &end, 10);
    return end != digit;
}

void us_ksm_open(us_ksm_t *k) {
    *k = (us_ksm_t){.scans = open("/sys/kernel/mm/ksm/full_scans", O_RDONLY | O_CLOEXEC),
                    .stat = open("/proc/self/ksm_stat", O_RDONLY | O_CLOEXEC)};
    k->none = k->scans < 0 && k->stat < 0 && access("/sys/kernel/mm", F_OK) == 0;
    if (!k->none && !number(k->scans, &k->seen))
        k->may = true; /* who can't tell must look */
}

void us_ksm_close(us_ksm_t *k) {
    if (k->scans >= 0)
        close(k->scans);
    if (k->stat >= 0)
        close(k->stat);
}

/* What KSM has scanned of a process it keeps as items, whose number the kernel tells (ksm_rmap_items). It makes them before it
 * merges, and drops those of memory that is not mergeable any more in a later scan of all. So where there is no item now and
 * none was at the last look, and no full scan ended between (the number after an item's, so that none is missed), it has
 * merged nothing. Before Linux 6.1 the number of full scans must do: in its first one it compares with nothing. Setting
 * `run` to 2 drops all items, and sets the scans to 0. */
bool us_ksm_may_have_merged(us_ksm_t *k) {
    if (k->none || k->may)
        return k->may;
    const uint64_t now = us_now_ns();
    if (now - k->at < AGE_NS)
        return false;
    k->at = now;
    uint64_t items = 0, scans = 0;
    const bool told = number(k->stat, &items);
    if (!number(k->scans, &scans) || (told ? items > 0 || scans != k->seen : scans > 0))
        k->may = true;
    k->seen = scans;
    return k->may;
}
