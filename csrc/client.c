/* SPDX-License-Identifier: MIT
 *
 * The client half: what Python calls in the process whose memory is paged.
 *
 * Lifetime. Regions, pins and tickets are Python objects that may outlive their pager, so each has a reference to the
 * client, which us_client_close only empties. What follows close, and all calls in a forked child, find that out by
 * `open` and `owner` and do nothing.
 *
 * Locks, outer first; none is ever held by code that needs the interpreter:
 *
 *   registering             one for the process: a registration begins, and looks at those of other clients
 *     client.lock           registrations and pins begin and end; held while the pager is asked, but never for what waits
 *                           for room
 *       client.gauges       what statistics and states are read from is mapped
 *       control.lock        in control.c
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alloc.h"
#include "claim.h"
#include "control.h"
#include "guard.h"
#include "inline.h"
#include "mover.h"
#include "sigchain.h"
#include "sys.h"
#include "watchdog.h"

enum {
    STAGING = 4 << 20, /* two of the largest blocks */
    HUGE_MIN = 4 << 20 /* from here on NumPy asks for huge pages */
};

struct us_client {
    us_space_t space;
    int space_fd;    /* the caller's; entries are read from it */
    dev_t space_dev; /* which file it is, if nobody has closed it meanwhile */
    ino_t space_ino;
    us_mover_t mover;
    us_watchdog_t watchdog;
    us_control_t control;
    pid_t owner; /* the process that it is of */
    _Atomic uint32_t refs;
    pthread_mutex_t lock, gauges;
    bool attached;    /* there is a pager to ask */
    bool has_control; /* the socket is open */
    bool open;
    bool leaving;                     /* no more registrations; it closes when the last one ends */
    us_shared_stats_t *last;          /* what statistics told when it was closed */
    us_registration_t *registrations; /* active ones */
    uint64_t pinning;                 /* bytes that the pager has been asked to pin */
    us_client_t *next;                /* of all open clients of the process */
};

struct us_registration {
    us_registration_t *next;
    us_client_t *client;
    _Atomic uint32_t refs; /* the caller's, and one of each pin */
    us_registration_info_t info;
    uint64_t addr, len;
    int hugepage, at_end;
    bool handled; /* inline */
    bool active;
    uint32_t pinning; /* pins that the pager has been asked for; it does not end meanwhile */
};

struct us_pin {
    us_registration_t *of;
    uint32_t first, last;
    bool held;
};

struct us_ticket {
    us_client_t *client;
    us_pending_t pending;
    bool asked;
};

static pthread_mutex_t registering = PTHREAD_MUTEX_INITIALIZER;
static us_client_t *clients;

/* ---- registering ------------------------------------------------------------------------------------- */

/* Keeps [addr, addr+len) from children, and all but its first `plain` bytes from huge pages, and registers that; the
 * plain bytes are the pager's to register when it wants them. fresh: nobody has used it; what is there is given back,
 * and no lock stays on it. Else it is tried whether the plain bytes can be registered. */
static int register_memory(int uffd, uint64_t addr, uint64_t len, uint64_t plain, int fresh) {
    void *at = (void *)(uintptr_t)addr, *rest = (void *)(uintptr_t)(addr + plain);
    if (fresh) { /* after mlockall(MCL_FUTURE) it is locked and populated, and could never leave */
        munlock(at, len);
        if (madvise(at, len, MADV_DONTNEED) < 0)
            return -errno;
    }
    /* A kernel without huge pages says EINVAL, and then there is nothing to keep off. */
    if (plain < len && madvise(rest, len - plain, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
        return -errno;
    if (fresh && len >= HUGE_MIN && plain > 0)
        madvise(at, plain, MADV_HUGEPAGE);
    /* What is plain a child inherits as it does any memory; the mover keeps it from children when it is registered. */
    if (plain < len && madvise(rest, len - plain, MADV_DONTFORK) < 0)
        return -errno;
    /* A page that KSM merges loses its write protection, and the next write to it would not be seen. EINVAL: a kernel
     * without KSM. */
    if (madvise(at, len, MADV_UNMERGEABLE) < 0 && errno != EINVAL)
        return -errno;
    int err = 0;
    if (!fresh) {
        err = us_sys_register(uffd, addr, len);
        if (err == 0 && plain > 0)
            err = us_sys_unregister(uffd, addr, plain);
        if (err != 0) /* what is registered of it may not stay so */
            us_sys_unregister(uffd, addr, len);
    } else if (plain < len) {
        err = us_sys_register(uffd, addr + plain, len - plain);
    }
    if (err != 0)
        madvise(at, len, MADV_DOFORK);
    return err;
}

/* hugepage: 1 give the huge page advice back, 0 leave it off */
static int unregister_memory(int uffd, uint64_t addr, uint64_t len, int hugepage) {
    int err = us_sys_unregister(uffd, addr, len);
    if (err != 0)
        return err;
    madvise((void *)(uintptr_t)addr, len, MADV_DOFORK);
    if (hugepage)
        madvise((void *)(uintptr_t)addr, len, MADV_HUGEPAGE);
    return 0;
}

/* ---- life -------------------------------------------------------------------------------------------- */

static void close_all(us_mover_t *m) {
    us_ksm_close(&m->ksm);
    const int fd[] = {m->self, m->pagemap};
    for (size_t k = 0; k < sizeof fd / sizeof *fd; k++) {
        if (fd[k] >= 0)
            close(fd[k]);
    }
}

uint32_t us_version(void) { return US_SPACE_VERSION; }

us_client_t *us_client_new(void) {
    us_client_t *c = us_aligned_alloc(64, us_align_up(sizeof *c, 64));
    if (c == NULL)
        return NULL;
    memset(c, 0, sizeof *c);
    c->owner = getpid();
    c->refs = 1;
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->gauges, NULL);
    c->last = us_calloc(1, sizeof *c->last);
    if (c->last == NULL) {
        free(c);
        return NULL;
    }
    return c;
}

int us_client_open(us_client_t *c, int uffd, int sigbus, int space_fd, int doorbell, int notify, int drop) {
    struct stat st;
    int err = fstat(space_fd, &st) != 0 ? -errno : us_space_map(&c->space, space_fd, false);
    if (err < 0)
        return err;
    c->space_fd = space_fd;
    c->space_dev = st.st_dev;
    c->space_ino = st.st_ino;
    void *staging = mmap(NULL, STAGING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (staging == MAP_FAILED) {
        err = -errno;
        goto unmap;
    }
    us_mover_t *m = &c->mover;
    *m = (us_mover_t){.space = &c->space,
                      .uffd = uffd,
                      .sigbus = sigbus,
                      .doorbell = doorbell,
                      .notify = notify,
                      .self = us_sys_pidfd(getpid()),
                      .pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
                      .staging = (uint64_t)(uintptr_t)staging,
                      .staging_len = STAGING,
                      .vector = drop == US_DROP_VECTOR};
    us_ksm_open(&m->ksm);
    err = register_memory(m->uffd, m->staging, STAGING, 0, 1);
    if (err == 0)
        err = us_watchdog_start(&c->watchdog);
    if (err == 0)
        err = us_mover_start(m);
    if (err == 0) {
        c->open = true;
        pthread_mutex_lock(&registering);
        c->next = clients;
        clients = c;
        pthread_mutex_unlock(&registering);
        return 0;
    }
    us_watchdog_stop(&c->watchdog);
    close_all(m);
    munmap(staging, STAGING);
unmap:
    us_space_unmap(&c->space);
    return err;
}

static void unref(us_client_t *c) {
    if (us_atomic_fetch_sub(&c->refs, 1) == 1) {
        if (c->has_control)
            close(c->control.fd);
        free(c->last);
        free(c);
    }
}

static bool is_ours(const us_client_t *c) { return c->owner == getpid(); }

int us_client_attach(us_client_t *c, int sock, int pidfd) {
    /* One of its own: a ticket of another thread may be at it when the caller closes his. */
    const int fd = fcntl(sock, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return -errno;
    const int err = us_control_open(&c->control, fd);
    if (err != 0) {
        close(fd);
        return err;
    }
    c->attached = c->has_control = true;
    return us_watchdog_set(&c->watchdog, pidfd);
}

static int ask(us_client_t *c, uint32_t op, int region, const uint64_t arg[6], us_reply_t *reply) {
    us_request_t q = {.op = op, .region = region};
    if (!c->attached)
        return -ESHUTDOWN;
    if (arg != NULL)
        memcpy(q.arg, arg, sizeof q.arg);
    return us_control_ask(&c->control, &q, reply);
}

uint64_t us_client_staging(us_client_t *c, uint64_t *len) {
    *len = c->mover.staging_len;
    return c->mover.staging;
}

int us_client_tid(us_client_t *c) { return us_atomic_load(&c->mover.tid); }

/* ---- registrations ----------------------------------------------------------------------------------- */

us_registration_t *us_registration_new(us_client_t *c) {
    us_registration_t *r = us_calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    r->client = c;
    r->refs = 1;
    r->info.id = -1;
    us_atomic_fetch_add(&c->refs, 1);
    return r;
}

static bool is_taken(const us_client_t *mine, uint64_t addr, uint64_t len) {
    bool taken = false;
    for (us_client_t *c = clients; c != NULL; c = c->next) {
        if (c == mine) /* the pager looks */
            continue;
        pthread_mutex_lock(&c->lock);
        for (const us_registration_t *r = c->registrations; r != NULL; r = r->next)
            taken |= r->addr < addr + len && addr < r->addr + r->len;
        pthread_mutex_unlock(&c->lock);
    }
    return taken;
}

static int uffd_of(const us_registration_t *r) { return r->handled ? r->client->mover.sigbus : r->client->mover.uffd; }

/* What an inline region needs; most of it the first one alone. */
static int open_inline(us_client_t *c, uint32_t block) {
    int err = c->mover.sigbus < 0 ? -EOPNOTSUPP : us_space_map_inline(&c->space, c->space_fd);
    if (err == 0)
        err = us_inline_open(block);
    if (err == 0)
        err = us_sigchain_open();
    return err == 0 ? us_guard_open() : err;
}

/* pre: the caller has c->lock. */
static int begin(us_client_t *c, us_registration_t *r, uint32_t block, uint32_t item, int resident) {
    us_reply_t reply;
    if (!c->open || c->leaving)
        return -ESHUTDOWN;
    if (r->handled) {
        const int err = open_inline(c, block);
        r->info.failed = US_FAILED_INLINE;
        if (err != 0)
            return err;
    }
    const uint64_t arg[6] = {r->addr, r->len, block, item, resident != 0, r->handled};
    r->info.failed = US_FAILED_PAGER;
    int err = ask(c, US_OP_ADD, 0, arg, &reply);
    if (err != 0)
        return err;
    r->info.id = (int)reply.value[0];
    r->info.first = reply.value[1];
    r->info.entries = reply.value[2];
    r->info.plain = reply.value[3];
    if (r->handled) {
        const us_handling_t of = {.space = &c->space, .uffd = c->mover.sigbus, .notify = c->mover.notify};
        err = us_inline_add(&of, r->addr, r->len, (uint32_t)r->info.first, (uint32_t)r->info.id, block);
    }
    if (err == 0)
        err = register_memory(uffd_of(r), r->addr, r->len, r->info.plain, !resident);
    if (err != 0) {
        if (r->handled)
            us_inline_remove(r->addr);
        r->info.failed = US_FAILED_REGISTER;
        ask(c, US_OP_REMOVE, r->info.id, (const uint64_t[6]){r->info.entries}, NULL);
        return err;
    }
    r->active = true;
    r->next = c->registrations;
    c->registrations = r;
    r->info.failed = 0;
    return ask(c, US_OP_ACTIVATE, r->info.id, NULL, NULL);
}

int us_registration_begin(us_registration_t *r, uint64_t addr, uint64_t len, uint32_t block, uint32_t item,
                          int resident, int handled, int hugepage, int at_end) {
    us_client_t *c = r->client;
    if (!is_ours(c))
        return -ECHILD;
    r->addr = addr;
    r->len = len;
    r->hugepage = hugepage;
    r->at_end = at_end;
    r->handled = handled != 0;
    r->info.failed = US_FAILED_OTHER;
    /* Plain memory is not registered, so the kernel does not refuse to let a second pager have it. */
    pthread_mutex_lock(&registering);
    int err = is_taken(c, addr, len) ? -EBUSY : 0;
    if (err == 0) {
        pthread_mutex_lock(&c->lock);
        err = begin(c, r, block, item, resident);
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_unlock(&registering);
    return err;
}

static void shut(us_client_t *c);

/* pre: the caller has c->lock. */
static int end(us_client_t *c, us_registration_t *r, int how) {
    while (r->active && r->pinning > 0) { /* its number must not be another's when the pager comes to it */
        pthread_mutex_unlock(&c->lock);
        const struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&c->lock);
    }
    if (!r->active)
        return 0;
    const uint64_t arg[6] = {r->info.entries};
    /* Registered until nothing is on its way out, so that what finds no room can go back. */
    int err = ask(c, how == US_END_RESTORE ? US_OP_RESTORE : US_OP_FREEZE, r->info.id, arg, NULL);
    if (err != 0)
        return err;
    if (how == US_END_DISCARD) /* never zeros, should anybody still have a pointer to it */
        mprotect((void *)(uintptr_t)r->addr, r->len, PROT_NONE);
    if (r->handled) /* blocks that were never touched stay out, and to bring one in for a call would fail for ever */
        us_inline_ending(r->addr, true);
    const int unregistered = unregister_memory(uffd_of(r), r->addr, r->len, how == US_END_RESTORE && r->hugepage);
    if (unregistered ==
        -ENOMEM) { /* it is still registered: the pager goes on serving it, and this can be tried again */
        if (r->handled)
            us_inline_ending(r->addr, false);
        return unregistered;
    }
    if (r->handled)
        us_inline_remove(r->addr);
    err = ask(c, US_OP_REMOVE, r->info.id, arg, NULL);
    if (err != 0)
        return err;
    for (us_registration_t **at = &c->registrations; *at != NULL; at = &(*at)->next) {
        if (*at == r) {
            *at = r->next;
            break;
        }
    }
    r->active = false;
    if (c->leaving && c->registrations == NULL)
        shut(c);
    return unregistered == -EINVAL ? 0 : unregistered; /* the user has unmapped all of it */
}

int us_registration_end(us_registration_t *r, int how) {
    us_client_t *c = r->client;
    if (!is_ours(c))
        return -ECHILD;
    pthread_mutex_lock(&c->lock);
    const int err = end(c, r, how);
    pthread_mutex_unlock(&c->lock);
    return err;
}

int us_registration_active(us_registration_t *r) { return r->active; }

void us_registration_info(us_registration_t *r, us_registration_info_t *out) { *out = r->info; }

static void unref_registration(us_registration_t *r) {
    if (us_atomic_fetch_sub(&r->refs, 1) == 1) {
        unref(r->client);
        free(r);
    }
}

void us_registration_free(us_registration_t *r) {
    us_client_t *c = r->client;
    if (!is_ours(c)) /* the parent's; what locks there are may be held by threads that the child does not have */
        return;
    pthread_mutex_lock(&c->lock);
    if (end(c, r, r->at_end) != 0 && r->active && c->open)
        us_die(
            "uswap: a region could not be ended, and its addresses are about to be given back; ending the process\n");
    pthread_mutex_unlock(&c->lock);
    unref_registration(r);
}

/* ---- pins -------------------------------------------------------------------------------------------- */

us_pin_t *us_pin_new(us_registration_t *r) {
    us_pin_t *p = us_calloc(1, sizeof *p);
    if (p == NULL)
        return NULL;
    p->of = r;
    us_atomic_fetch_add(&r->refs, 1);
    return p;
}

int us_pin_begin(us_pin_t *p, uint32_t first, uint32_t last, uint64_t bytes, uint64_t most) {
    us_client_t *c = p->of->client;
    if (!is_ours(c))
        return -ECHILD;
    us_registration_t *r = p->of;
    pthread_mutex_lock(&c->lock);
    int err = r->active ? 0 : -ESHUTDOWN;
    if (err == 0) {
        const uint64_t pinned = __atomic_load_n(&c->space.stats->s.pinned, __ATOMIC_RELAXED) + c->pinning;
        err = pinned + bytes > most ? -EDQUOT : 0;
    }
    if (err == 0) { /* without the lock: it waits for room, which another pin's end may make */
        r->pinning++;
        c->pinning += bytes;
        pthread_mutex_unlock(&c->lock);
        err = ask(c, US_OP_PIN, r->info.id, (const uint64_t[6]){first, last}, NULL);
        pthread_mutex_lock(&c->lock);
        r->pinning--;
        c->pinning -= bytes;
    }
    p->held = err == 0;
    p->first = first;
    p->last = last;
    pthread_mutex_unlock(&c->lock);
    return err;
}

void us_pin_end(us_pin_t *p) {
    us_client_t *c = p->of->client;
    if (!is_ours(c))
        return;
    pthread_mutex_lock(&c->lock);
    if (p->held && p->of->active) /* the region's end has ended its pins */
        ask(c, US_OP_UNPIN, p->of->info.id, (const uint64_t[6]){p->first, p->last}, NULL);
    p->held = false;
    pthread_mutex_unlock(&c->lock);
}

void us_pin_free(us_pin_t *p) {
    if (!is_ours(p->of->client))
        return;
    us_pin_end(p);
    unref_registration(p->of);
    free(p);
}

/* ---- tickets ----------------------------------------------------------------------------------------- */

us_ticket_t *us_ticket_new(us_client_t *c) {
    us_ticket_t *t = us_calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->client = c;
    us_atomic_fetch_add(&c->refs, 1);
    return t;
}

int us_ticket_ask(us_ticket_t *t, const us_request_t *request) {
    us_client_t *c = t->client;
    if (!is_ours(c))
        return -ECHILD;
    if (!c->attached)
        return -ESHUTDOWN;
    const int err = us_control_send(&c->control, &t->pending, request);
    t->asked = err == 0;
    return err;
}

int us_ticket_wait(us_ticket_t *t, int ms, us_reply_t *reply) {
    us_client_t *c = t->client;
    if (!is_ours(c))
        return -ECHILD;
    const int n = us_control_wait(&c->control, &t->pending, ms);
    if (n > 0)
        *reply = t->pending.reply;
    return n;
}

void us_ticket_free(us_ticket_t *t) {
    if (!is_ours(t->client))
        return;
    if (t->asked)
        us_control_forget(&t->client->control, &t->pending);
    unref(t->client);
    free(t);
}

/* ---- what there is to know --------------------------------------------------------------------------- */

/* What handlers have noted comes into the books: the pager is rung, and waited for, but not for long. */
static void wait_for_books(const us_client_t *c) {
    enum { TURNS = 100, TURN_NS = 50000 };
    us_inline_t *in = c->space.in;
    const uint32_t head = us_atomic_load(&in->note_head);
    for (int k = 0; k < TURNS && (int32_t)(head - us_atomic_load(&in->note_tail)) > 0; k++) {
        if (us_atomic_exchange(&c->space.ring->loop_asleep, 0) != 0)
            us_sys_eventfd_ring(c->mover.notify);
        const struct timespec pause = {0, TURN_NS};
        nanosleep(&pause, NULL);
    }
}

/* 0 with c->gauges held; or what forbids to look. */
static int look(us_client_t *c) {
    if (!is_ours(c))
        return -ECHILD;
    pthread_mutex_lock(&c->gauges);
    if (c->space.stats != NULL) {
        wait_for_books(c);
        return 0;
    }
    pthread_mutex_unlock(&c->gauges);
    return -ESHUTDOWN;
}

/* Of the space's memfd; 0 or -errno. */
static int read_whole(int fd, void *to, uint64_t n, uint64_t at) {
    for (uint64_t done = 0; done < n;) {
        const ssize_t got = pread(fd, (uint8_t *)to + done, n - done, (off_t)(at + done));
        if (got <= 0 && !(got < 0 && errno == EINTR))
            return got < 0 ? -errno : -EIO;
        done += got < 0 ? 0 : (uint64_t)got;
    }
    return 0;
}

/* Reads n entries from `first` on, and puts a byte of each, as `tell` has it, into out. What a handler has swapped in may
 * not be in the books yet: its claim says so, which is read first. */
static int read_entries(us_client_t *c, uint64_t first, uint64_t n, uint8_t (*tell)(const us_entry_t *), uint8_t *out) {
    enum { AT_ONCE = 512 };
    us_entry_t e[AT_ONCE];
    uint16_t claim[AT_ONCE];
    struct stat st;
    int err = look(c);
    if (err != 0)
        return err;
    if (first + n > c->space.at.table_cap || first + n < first)
        err = -EINVAL;
    else if (fstat(c->space_fd, &st) != 0 || st.st_dev != c->space_dev || st.st_ino != c->space_ino)
        err = -EBADF; /* other code has closed it */
    for (uint64_t i = 0; err == 0 && i < n;) {
        const uint64_t part = us_min(n - i, AT_ONCE);
        err = read_whole(c->space_fd, claim, part * sizeof *claim, c->space.at.claim_off + (first + i) * sizeof *claim);
        if (err == 0)
            err = read_whole(c->space_fd, e, part * sizeof *e, c->space.at.table_off + (first + i) * sizeof *e);
        for (uint64_t k = 0; err == 0 && k < part; k++) {
            const uint16_t who = claim[k] & US_CLAIM_WHO;
            if (who == US_CLAIM_CLEAN || who == US_CLAIM_DIRTY)
                e[k].state = US_RESIDENT;
            out[i++] = tell(&e[k]);
        }
    }
    pthread_mutex_unlock(&c->gauges);
    return err;
}

static uint8_t tell_state(const us_entry_t *e) { return e->state; }

static uint8_t tell_tier(const us_entry_t *e) {
    return e->state == US_POOLED || e->state == US_STORED ? (uint8_t)us_tier_of(*e) : 0;
}

int us_client_states(us_client_t *c, uint64_t first, uint64_t n, uint8_t *out) {
    return read_entries(c, first, n, tell_state, out);
}

int us_client_tiers(us_client_t *c, uint64_t first, uint64_t n, uint8_t *out) {
    return read_entries(c, first, n, tell_tier, out);
}

/* pre: c->gauges is held, and the statistics are mapped. */
static void read_stats(us_client_t *c, us_stats_t *out) {
    const uint64_t *from = (const uint64_t *)&c->space.stats->s;
    uint64_t *to = (uint64_t *)out;
    for (size_t i = 0; i < sizeof *out / sizeof *to; i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    out->move_retries = us_atomic_load(&c->space.ring->move_retries);
}

int us_client_stats(us_client_t *c, us_stats_t *out) {
    const int err = look(c);
    if (err == -ESHUTDOWN)
        *out = c->last->s;
    if (err != 0)
        return err == -ESHUTDOWN ? 0 : err;
    read_stats(c, out);
    pthread_mutex_unlock(&c->gauges);
    return 0;
}

uint64_t us_client_quantile(us_client_t *c, int kind, double q) {
    if (kind < 0 || kind >= US_KINDS)
        return 0;
    const int err = look(c);
    if (err != 0)
        return err == -ESHUTDOWN ? us_hist_quantile(&c->last->hist[kind], q) : 0;
    const uint64_t ns = us_hist_quantile(&c->space.stats->hist[kind], q);
    pthread_mutex_unlock(&c->gauges);
    return ns;
}

/* ---- the end ----------------------------------------------------------------------------------------- */

/* pre: the caller has c->lock, and there are no registrations. */
static void shut(us_client_t *c) {
    c->open = false;
    us_watchdog_stop(&c->watchdog); /* the pager's end is expected from here on */
    pthread_mutex_lock(&c->gauges);
    read_stats(c, &c->last->s);
    memcpy(c->last->hist, c->space.stats->hist, sizeof c->last->hist);
    if (c->attached) {
        const us_request_t bye = {.op = US_OP_BYE};
        us_pending_t q = {0};
        if (us_control_send(&c->control, &q, &bye) == 0)
            us_control_forget(&c->control, &q);
        us_control_close(&c->control);
        shutdown(c->control.fd, SHUT_RDWR);
        c->attached = false;
    }
    us_mover_stop(&c->mover);
    us_sys_unregister(c->mover.uffd, c->mover.staging, c->mover.staging_len);
    munmap((void *)(uintptr_t)c->mover.staging, c->mover.staging_len);
    close_all(&c->mover);
    us_space_unmap(&c->space);
    pthread_mutex_unlock(&c->gauges);
}

int us_client_close(us_client_t *c, int how) {
    if (!is_ours(c))
        return -ECHILD;
    pthread_mutex_lock(&c->lock);
    int err = 0, left = 0;
    if (how == US_END_LATER) {
        c->leaving = c->open;
        for (const us_registration_t *r = c->registrations; r != NULL; r = r->next)
            left++;
    }
    while (how != US_END_LATER && c->registrations != NULL) {
        us_registration_t *r = c->registrations;
        err = end(c, r, r->at_end == US_END_RESTORE ? US_END_RESTORE : how);
        if (err != 0 && r->active)
            break;
        err = 0;
    }
    if (c->open && c->registrations == NULL)
        shut(c);
    pthread_mutex_unlock(&c->lock);
    return err != 0 ? err : left;
}

static void forget(us_client_t *c) {
    pthread_mutex_lock(&registering);
    for (us_client_t **at = &clients; *at != NULL; at = &(*at)->next) {
        if (*at == c) {
            *at = c->next;
            break;
        }
    }
    pthread_mutex_unlock(&registering);
}

void us_client_free(us_client_t *c) {
    if (!is_ours(c))
        return;
    us_client_close(c, US_END_RESTORE);
    forget(c);
    unref(c);
}

void us_client_in_child(us_client_t *c) {
    close_all(&c->mover);
    if (c->has_control)
        close(c->control.fd);
    if (c->watchdog.on)
        close(c->watchdog.wake);
    pthread_mutex_init(&registering, NULL); /* another thread of the parent may have had it */
    clients = NULL;
    us_inline_in_child();
}

/* ---- a forked child ---------------------------------------------------------------------------------- */

enum { COVERED = 256 };
static struct {
    uint64_t addr, len;
    int id;
} covered[COVERED]; /* the last of them stands for the rest */
static _Atomic uint32_t covered_n;
static struct sigaction before;

static char *put(char *to, const char *text) {
    while (*text != 0)
        *to++ = *text++;
    return to;
}

static char *put_number(char *to, uint64_t n, uint32_t base) {
    char digits[24];
    int k = 0;
    do
        digits[k++] = "0123456789abcdef"[n % base];
    while ((n /= base) != 0);
    while (k > 0)
        *to++ = digits[--k];
    return to;
}

/* Says which region it was, then lets what was there before have the signal: the instruction is tried again. */
static void on_touch(int number, siginfo_t *info, void *context) {
    (void)context;
    const int saved = errno;
    const uint64_t at = (uint64_t)(uintptr_t)info->si_addr;
    for (uint32_t k = 0; k < us_atomic_load(&covered_n); k++) {
        if (at - covered[k].addr >= covered[k].len)
            continue;
        char text[400], *to = put(text, "uswap: this forked child touches region ");
        to = put_number(to, (uint64_t)covered[k].id, 10);
        to = put(to, " of its parent (address 0x");
        to = put_number(to, at, 16);
        to = put(to, ", ");
        to = put_number(to, covered[k].len, 10);
        to = put(to, " bytes from 0x");
        to = put_number(to, covered[k].addr, 16);
        to = put(to, "), whose pages are the parent's alone, and ends by SIGSEGV; pass it a copy, or start workers by "
                     "spawn\n");
        struct pollfd err = {.fd = STDERR_FILENO, .events = POLLOUT};
        if (us_sys_poll(&err, 1, 0) == 1 && (err.revents & POLLOUT)) {
            const ssize_t done = write(STDERR_FILENO, text, (size_t)(to - text));
            (void)done;
        }
        break;
    }
    sigaction(number, &before, NULL);
    errno = saved;
}

/* The parts of [addr, addr+len) that the child does not have. What was plain it has. */
static int cover(uint64_t addr, uint64_t len, int id) {
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
    void *at = (void *)(uintptr_t)addr;
    void *m = mmap(at, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (m == at) {
        const uint32_t k = us_atomic_load(&covered_n);
        if (k < COVERED) {
            covered[k].addr = addr;
            covered[k].len = len;
            covered[k].id = id;
            us_atomic_store(&covered_n, k + 1);
        }
        return 0;
    }
    if (m != MAP_FAILED) { /* a kernel before 4.17 takes it as a hint */
        munmap(m, len);
        errno = EEXIST;
    }
    if (errno != EEXIST)
        return -errno;
    if (len <= US_PAGE || us_sys_mapped(addr, len))
        return 0;
    const uint64_t half = (len / 2) & ~(uint64_t)(US_PAGE - 1);
    const int err = cover(addr, half, id);
    return err != 0 ? err : cover(addr + half, len - half, id);
}

int us_child_cover(uint64_t addr, uint64_t len, int id) {
    const uint32_t was = us_atomic_load(&covered_n);
    const int err = cover(addr, len, id);
    if (was == 0 && us_atomic_load(&covered_n) > 0) {
        struct sigaction now = {.sa_sigaction = on_touch, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigemptyset(&now.sa_mask);
        sigaction(SIGSEGV, &now, &before);
    }
    return err;
}
