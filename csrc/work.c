/* SPDX-License-Identifier: MIT
 *
 * What is under way is called off: writes, jobs of the outbox and recompressions that name a block whose bytes are others now.
 */
#include "work.h"

void us_work_forget(us_pager_t *p, uint32_t first, uint32_t count) {
    for (int k = 0; k < US_WRITES && p->store.on; k++) {
        us_write_t *w = &p->store.write[k];
        for (uint32_t n = 0; (w->busy || w->filling) && n < w->records; n++) {
            if (w->record[n].entry - first < count)
                w->record[n].entry = US_NONE;
        }
    }
    for (uint32_t k = 0; k < p->mm.outbox.pages; k++) {
        us_job_t *job = p->mm.outbox.job[k];
        if (job != NULL && job->entry - first < count)
            job->entry = US_NONE;
    }
    for (int k = 0; k < US_RECOMPRESSIONS; k++) {
        us_job_t *job = p->recompress[k].job;
        if (job != NULL && job->entry - first < count)
            job->entry = US_NONE;
    }
}
