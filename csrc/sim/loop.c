/* SPDX-License-Identifier: MIT
 *
 * A task of asyncio is a fiber of the pager that runs only while the loop waits for it, as a task does between two
 * awaits; what it waits for stands in it, and the loop looks.
 */
#include "loop.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "doors.h"
#include "fibers.h"

enum { TASKS = 96, EVENTS = 128, STRAY_TRIES = 400, ENTRIES = 1 << 16 };
#define LOST_NS (50 * SIM_MS)

typedef struct task {
    bool used, turn; /* turn: it runs, and the loop waits */
    uint64_t number; /* in the order of their begin */
    sim_fiber_t *fiber;
    uint64_t until; /* of its wait */
    const uint64_t *of;
    uint64_t was; /* it waits for *of to be another number; NULL: for the time alone */
    bool is_fault;
    us_event_t fault;
    us_request_t request;
    struct task *behind; /* it waits for the end of this one, which has the entry's lock */
    uint64_t behind_number;
} task_t;

static sim_pager_t *sp;
static us_pager_t *p;
static task_t task[TASKS];
static uint64_t tasks, progress, unlocked[ENTRIES];
static bool done;

static void step(void);

/* ---- tasks ------------------------------------------------------------------------------------------ */

static bool has_turn(void *of) { return ((task_t *)of)->turn; }
static bool gave_back(void *of) { return !((task_t *)of)->turn; }

static void await(task_t *t, const uint64_t *of, uint64_t until) {
    t->of = of;
    t->was = of == NULL ? 0 : *of;
    t->until = until;
    t->turn = false;
    sim_wait(has_turn, t, SIM_NEVER, of == &progress ? "progress" : of != NULL ? "an entry" : "its turn");
}

static void sleep_for(task_t *t, uint64_t ns) { await(t, NULL, ns == 0 ? 0 : sim_now + ns); }

static bool is_over(const task_t *t) {
    if (t->behind != NULL)
        return !t->behind->used || t->behind->number != t->behind_number;
    return sim_now >= t->until || (t->of != NULL && *t->of != t->was);
}

static void wait_progress(task_t *t) {
    await(t, &progress, sim_now + LOST_NS);
    if (progress == t->was)
        step();
}

static void wait_unlocked(task_t *t, uint32_t entry) {
    await(t, &unlocked[entry], sim_now + LOST_NS);
    if (unlocked[entry] == t->was)
        step();
}

static void start(void *(*run)(void *), const char *name, const us_event_t *fault, const us_request_t *request) {
    int k = 0;
    while (k < TASKS && task[k].used)
        k++;
    SIM_CHECK(k < TASKS, "more than %d tasks", TASKS);
    task_t *t = &task[k];
    memset(t, 0, sizeof *t);
    t->used = true;
    t->number = ++tasks;
    if (fault != NULL) {
        t->is_fault = true;
        t->fault = *fault;
    }
    if (request != NULL)
        t->request = *request;
    t->fiber = sim_spawn(name, false, run, t);
}

static void run_task(task_t *t) {
    t->turn = true;
    sim_wait(gave_back, t, SIM_NEVER, "a task");
    if (sim_done(t->fiber)) {
        void *nothing;
        pthread_join((pthread_t)(uintptr_t)t->fiber, &nothing);
        t->used = false;
    }
}

/* ---- faults ----------------------------------------------------------------------------------------- */

static void *serve(void *of) {
    task_t *t = of;
    us_event_t *f = &t->fault;
    sim_wait(has_turn, t, SIM_NEVER, "its turn");
    if (f->tid != (uint32_t)sp->mm.mover_tid && f->entry != US_NONE) { /* the entry's lock, in the order of asking */
        for (;;) {
            task_t *before = NULL;
            for (int k = 0; k < TASKS; k++) {
                task_t *o = &task[k];
                if (o->used && o->is_fault && o != t && o->fault.entry == f->entry && o->number < t->number &&
                    o->fault.tid != (uint32_t)sp->mm.mover_tid && (before == NULL || o->number > before->number))
                    before = o;
            }
            if (before == NULL)
                break;
            t->behind = before;
            t->behind_number = before->number;
            await(t, NULL, SIM_NEVER);
            t->behind = NULL;
        }
    }
    uint64_t delay = SIM_MS / 2;
    for (int tries = 0;;) {
        const int answer = us_pager_serve(p, f);
        if (answer == US_DONE)
            break;
        if (answer == US_WAIT_ENTRY) {
            wait_unlocked(t, f->entry);
        } else if (answer == US_WAIT_ROOM) {
            wait_progress(t);
        } else if (answer == US_STRAY) {
            if (++tries == STRAY_TRIES) {
                us_pager_drop(p, f);
                break;
            }
            sleep_for(t, 5 * SIM_MS);
        } else {
            SIM_CHECK(answer == US_AGAIN, "us_pager_serve answers %d", answer);
            sleep_for(t, delay);
            delay = us_min(2 * delay, LOST_NS);
        }
    }
    t->turn = false;
    return NULL;
}

/* ---- requests --------------------------------------------------------------------------------------- */

typedef int range_fn(us_pager_t *p, int id, uint32_t *cursor, uint32_t last);

/* call: NULL: us_pager_move to the tier that the request names. */
static int over_range(task_t *t, range_fn *call, int id, uint32_t *cursor, uint32_t last) {
    for (;;) {
        const uint32_t before = *cursor;
        const int answer =
            call != NULL ? call(p, id, cursor, last) : us_pager_move(p, id, cursor, last, (int)t->request.arg[2]);
        if (answer <= 0)
            return answer;
        if (answer == US_AGAIN)
            sleep_for(t, *cursor != before ? 0 : SIM_MS);
        else
            wait_progress(t);
    }
}

static int settle(task_t *t, int id, uint32_t first, uint32_t last) {
    return over_range(t, us_pager_settle, id, &first, last);
}

static int freeze(task_t *t, int id, uint32_t entries) {
    const int err = us_pager_freeze(p, id);
    return err != 0 ? err : settle(t, id, 0, entries);
}

static int add(task_t *t, us_reply_t *reply) {
    const uint64_t *arg = t->request.arg;
    uint32_t cursor = 0;
    const int id = us_pager_add(p, arg[0], arg[1], (uint32_t)arg[2], (uint32_t)arg[3], (int)arg[5], &reply->value[1],
                                &reply->value[2]);
    if (id < 0)
        return id;
    const int64_t plain = us_pager_plain(p, id);
    reply->value[0] = (uint64_t)id;
    reply->value[3] = (uint64_t)plain;
    int answer;
    while ((answer = us_pager_fill(p, id, &cursor, (uint64_t)plain, arg[4] != 0)) == US_AGAIN)
        sleep_for(t, 0);
    return answer;
}

static int answer_of(task_t *t, us_reply_t *reply) {
    const us_request_t *q = &t->request;
    const int id = q->region;
    const uint32_t first = (uint32_t)q->arg[0], last = (uint32_t)q->arg[1];
    uint32_t cursor = first;
    int err;
    switch (q->op) {
    case US_OP_ADD: return add(t, reply);
    case US_OP_ACTIVATE:
        cursor = 0;
        err = us_pager_activate(p, id);
        while (err == 0 && (err = us_pager_probe(p, id, &cursor)) == US_AGAIN) {
            sleep_for(t, 0);
            err = 0;
        }
        step();
        return err;
    case US_OP_EVICT:
        err = over_range(t, us_pager_evict, id, &cursor, last);
        return err != 0 ? err : settle(t, id, first, last);
    case US_OP_PREFETCH:
        err = over_range(t, us_pager_prefetch, id, &cursor, last);
        return err != 0 ? err : settle(t, id, first, last);
    case US_OP_VERIFY:
        err = over_range(t, us_pager_verify, id, &cursor, last);
        return err != 0 ? err : settle(t, id, first, last);
    case US_OP_MIGRATE: {
        err = over_range(t, NULL, id, &cursor, last);
        cursor = first;
        const int moved = over_range(t, us_pager_moved, id, &cursor, last);
        return moved != 0 ? moved : err;
    }
    case US_OP_PIN:
        err = over_range(t, us_pager_pin, id, &cursor, last);
        if (err != 0)
            us_pager_unpin(p, id, first, cursor);
        return err;
    case US_OP_UNPIN:
        err = us_pager_unpin(p, id, first, last);
        step();
        return err;
    case US_OP_FREEZE: return freeze(t, id, first);
    case US_OP_RESTORE:
        err = freeze(t, id, first);
        cursor = 0;
        return err != 0 ? err : over_range(t, us_pager_restore, id, &cursor, first);
    case US_OP_REMOVE:
        err = freeze(t, id, first);
        cursor = 0;
        while (err == 0 && (err = us_pager_remove(p, id, &cursor)) != 0) {
            if (err == -EBUSY)
                err = settle(t, id, cursor, first);
            else if (err == US_AGAIN) {
                sleep_for(t, 0);
                err = 0;
            }
        }
        return err;
    case US_OP_LIMIT:
        while ((err = us_pager_limit(p, q->arg[0])) == US_WAIT_ROOM)
            wait_progress(t);
        return err;
    case US_OP_POOL:
        while ((err = us_pager_pool(p, q->arg[0])) > 0) {
            if (err == US_AGAIN)
                sleep_for(t, 0);
            else
                wait_progress(t);
        }
        return err;
    case US_OP_CHECK: reply->value[0] = us_pager_is_valid(p) ? 0 : (uint64_t)errno; return 0;
    case US_OP_BYE: done = true; return 0;
    default: sim_fail("request %u", q->op);
    }
}

static void *answer(void *of) {
    task_t *t = of;
    us_reply_t reply = {.id = t->request.id};
    sim_wait(has_turn, t, SIM_NEVER, "its turn");
    const int err = answer_of(t, &reply);
    SIM_CHECK(err <= 0, "request %u answers %d", t->request.op, err);
    reply.error = -err;
    while (sim_sock_send(&reply, sizeof reply) == -EAGAIN)
        sleep_for(t, SIM_MS);
    t->turn = false;
    return NULL;
}

static void requests(void) {
    us_request_t q;
    int n;
    while ((n = sim_sock_recv(&q, sizeof q)) > 0)
        start(answer, "request", NULL, &q);
    if (n == 0)
        done = true;
}

/* ---- the loop --------------------------------------------------------------------------------------- */

static void step(void) {
    us_event_t ev[EVENTS];
    const int n = us_pager_step(p, ev, EVENTS);
    for (int k = 0; k < n; k++) {
        switch (ev[k].kind) {
        case US_EV_FAULT: start(serve, "fault", &ev[k], NULL); break;
        case US_EV_UNLOCKED: unlocked[ev[k].entry]++; break;
        case US_EV_PROGRESS: progress++; break;
        case US_EV_LOST:
            sp->lost++;
            sim_log("block %u of region %u is lost", ev[k].entry, ev[k].region);
            SIM_CHECK(ev[k].error == 0, "a lost block can't be marked: %d", ev[k].error);
            break;
        case US_EV_NOROOM: sp->noroom++; break;
        case US_EV_IO: sp->unwritten++; break;
        default: sim_fail("event %u", ev[k].kind);
        }
    }
    if (sim_one_in(sp->check_one_in))
        sim_check(p);
}

static bool has_work(void *of) {
    (void)of;
    if (sim_fd_ready(SIM_UFFD, false) || sim_fd_ready(sp->mm.notify, false) ||
        sim_fd_ready(us_pager_worker_fd(p), false) || (sp->swap > 0 && sim_fd_ready(us_pager_io_fd(p), false)) ||
        sim_fd_ready(SIM_SOCK_END, false))
        return true;
    for (int k = 0; k < TASKS; k++) {
        if (task[k].used && is_over(&task[k]))
            return true;
    }
    return false;
}

/* The first time at which a task's wait ends by itself. */
static uint64_t next_time(void) {
    uint64_t at = SIM_NEVER;
    for (int k = 0; k < TASKS; k++) {
        if (task[k].used && task[k].behind == NULL)
            at = us_min(at, task[k].until);
    }
    return at;
}

static void rung(int fd) {
    if (fd >= 0 && sim_fd_ready(fd, false)) {
        us_pager_rung(p, fd);
        step();
    }
}

void *sim_pager_main(void *of) {
    sp = of;
    sp->error = us_pager_open(&p, &sp->cfg, &sp->mm);
    if (sp->error == 0 && sp->swap > 0)
        sp->error = us_pager_swap(p, SIM_DISK, sp->swap, sp->segment, 2); /* US_IO_THREADS */
    const int nowhere = sp->trace ? open("/dev/null", O_WRONLY) : -1;
    if (sp->error == 0 && nowhere >= 0)
        sp->error = us_pager_trace(p, nowhere);
    sp->pager = p;
    sp->ready = true;
    while (sp->error == 0 && !done) {
        sim_wait(has_work, NULL, next_time(), "events");
        bool over[TASKS]; /* those that a turn of the loop finds; what becomes ready meanwhile has the next */
        for (int k = 0; k < TASKS; k++)
            over[k] = task[k].used && is_over(&task[k]);
        for (uint64_t last = 0;;) { /* in the order of their begin */
            task_t *next = NULL;
            for (int k = 0; k < TASKS; k++) {
                if (over[k] && task[k].number > last && (next == NULL || task[k].number < next->number))
                    next = &task[k];
            }
            if (next == NULL)
                break;
            last = next->number;
            run_task(next);
        }
        if (sim_fd_ready(SIM_UFFD, false))
            step();
        rung(sp->mm.notify);
        rung(us_pager_worker_fd(p));
        rung(us_pager_io_fd(p));
        if (sim_fd_ready(SIM_SOCK_END, false))
            requests();
    }
    if (sp->error == 0) {
        sim_check(p);
        sim_check_end(p);
        us_pager_trace_end(p);
        us_pager_close(p);
    }
    sp->ended = true;
    sim_pager_gone();
    return NULL;
}
