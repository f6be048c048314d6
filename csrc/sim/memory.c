/* SPDX-License-Identifier: MIT
 *
 * The client's memory, as the kernel has it. The bytes of a page lie where the page does, so that code that reads staging
 * or a slot by its address needs no help; beside them stands what the page table would say. A page that is not there is
 * full of GONE, so that whoever reads it all the same is found out.
 *
 * What is told of the kernel is Linux 6.8 and newer, and where `old` says so before 6.4. As fine as a page: COPY, MOVE,
 * WRITEPROTECT and DONTNEED go page by page, and others run between two pages.
 */
#include "memory.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include "fds.h"

enum { PAGE = 4096, PAGES = 8192, GONE = 0xdb, FIRST_GAP = 16, SIGNALS_MAX = 1 << 20, SHARED_MAX = 64 };
#define BASE 0x300000000000ull
#define END (BASE + (uint64_t)PAGES * PAGE)

typedef struct page {
    bool mapped, registered, present, protected, poison, forbidden;
    bool handled;     /* registered with SIM_SIGBUS */
    uint8_t what;     /* SIM_PINNED, ... */
    uint16_t mapping; /* which one; its borders are the kernel's VMAs' */
} page_t;

static page_t table[PAGES];
static uint32_t next_page = FIRST_GAP;
static uint16_t mappings;
sim_kernel_t sim_kernel = {.vector = true, .move = true};

/* A thread that stands in a fault. pending: its message has not been read. */
typedef struct fault {
    struct fault *next;
    uint64_t addr;
    uint32_t flags;
    int tid;
    bool pending, woken;
} fault_t;
static fault_t *oldest, **newest = &oldest;

void *__real_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off);

void sim_memory_open(void) {
    void *m = __real_mmap((void *)BASE, END - BASE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    sim_on_fail = sim_show_faults;
    SIM_CHECK(m == (void *)BASE, "no memory at %#llx", BASE);
}

static bool in_memory(const void *at) { return (uint64_t)(uintptr_t)at - BASE < END - BASE; }

static page_t *page_of(uint64_t addr) {
    SIM_CHECK(addr - BASE < END - BASE, "address %#llx is not the client's", (unsigned long long)addr);
    return &table[(addr - BASE) / PAGE];
}
static uint8_t *bytes_of(uint64_t addr) { return (uint8_t *)(uintptr_t)(addr & ~(uint64_t)(PAGE - 1)); }

uint64_t sim_map(uint64_t len) {
    const uint32_t n = (uint32_t)((len + PAGE - 1) / PAGE);
    SIM_CHECK(next_page + n < PAGES, "the client has mapped too much");
    const uint64_t addr = BASE + (uint64_t)next_page * PAGE;
    mappings++;
    for (uint32_t k = 0; k < n; k++)
        table[next_page + k] = (page_t){.mapped = true, .mapping = mappings};
    memset(bytes_of(addr), GONE, (size_t)n * PAGE);
    next_page += n + 1;
    return addr;
}

void sim_map_again(uint64_t addr, uint64_t len) {
    mappings++;
    for (uint64_t off = 0; off < len; off += PAGE)
        *page_of(addr + off) = (page_t){.mapped = true, .mapping = mappings};
    memset(bytes_of(addr), GONE, len);
}

static void lose(page_t *g, uint64_t addr) {
    g->present = g->protected = g->poison = false;
    g->what &= SIM_LOCKED;
    memset(bytes_of(addr), GONE, PAGE);
}

static void set_mapping(uint64_t addr, uint64_t len, uint16_t mapping) {
    for (uint64_t off = 0; off < len; off += PAGE)
        page_of(addr + off)->mapping = mapping;
}

/* A border between mappings. */
static void split(uint64_t addr) {
    const page_t *g = page_of(addr);
    const uint16_t was = g->mapping;
    mappings++;
    for (uint64_t at = addr & ~(uint64_t)(PAGE - 1); at < END && page_of(at)->mapped && page_of(at)->mapping == was;
         at += PAGE)
        page_of(at)->mapping = mappings;
}

bool sim_is_present(uint64_t addr) { return page_of(addr)->present; }
bool sim_is_protected(uint64_t addr) { return page_of(addr)->protected; }
bool sim_is_poisoned(uint64_t addr) { return page_of(addr)->poison; }

void sim_page_set(uint64_t addr, int what, bool on) {
    page_t *g = page_of(addr);
    g->what = (uint8_t)(on ? g->what | what : g->what & ~what);
}

/* Is all of it mapped, by one mapping, and (or not) registered? */
static bool one_mapping(uint64_t addr, uint64_t len, bool registered) {
    for (uint64_t off = 0; off < len; off += PAGE) {
        const page_t *g = page_of(addr + off);
        if (!g->mapped || (registered && !g->registered) || g->mapping != page_of(addr)->mapping)
            return false;
    }
    return true;
}

/* ---- faults ----------------------------------------------------------------------------------------- */

static bool is_woken(void *of) { return ((fault_t *)of)->woken; }

static void forget(fault_t *f) {
    for (fault_t **at = &oldest; *at != NULL; at = &(*at)->next) {
        if (*at == f) {
            *at = f->next;
            if (newest == &f->next)
                newest = at;
            return;
        }
    }
}

static void wake(uint64_t addr, uint64_t len) {
    for (fault_t *f = oldest; f != NULL; f = f->next) {
        if ((f->addr & ~(uint64_t)(PAGE - 1)) - addr < len) {
            f->woken = true;
            f->pending = false; /* who is woken before anybody has read of him: there is no message any more */
        }
    }
}

uint64_t sim_signals;

static bool must_wait(const page_t *g, bool write) {
    return g->registered && !g->poison && (!g->present || (write && g->protected));
}

bool us_inline_fault(const siginfo_t *info, void *context);

/* The signal of an access to memory of SIM_SIGBUS, as x86-64 has it. */
static void raise_sigbus(uint64_t addr, bool write, bool there) {
    siginfo_t info;
    ucontext_t context;
    memset(&info, 0, sizeof info);
    memset(&context, 0, sizeof context);
    info.si_signo = SIGBUS;
    info.si_code = BUS_ADRERR;
    info.si_addr = (void *)(uintptr_t)addr;
    context.uc_mcontext.gregs[REG_ERR] = 4 | (write ? 2 : 0) | (there ? 1 : 0);
    sim_signals++;
    sim_point();
    SIM_CHECK(us_inline_fault(&info, &context), "a SIGBUS at %#llx is nobody's", (unsigned long long)addr);
    sim_point();
}

/* The kernel's own access, in a system call: it waits for nobody. */
sim_touch_t sim_kernel_touch(uint64_t addr, bool write) {
    const page_t *g = page_of(addr);
    if (must_wait(g, write) && (g->handled || sim_kernel.user_mode) && g->mapped && !g->forbidden)
        return SIM_BUS;
    return sim_touch(addr, write);
}

sim_touch_t sim_touch(uint64_t addr, bool write) {
    for (uint32_t signals = 0;;) {
        page_t *g = page_of(addr);
        if (!g->mapped || g->forbidden)
            return SIM_SEGV;
        if (g->poison)
            return SIM_BUS;
        if (!must_wait(g, write)) {
            if (!g->present) {
                g->present = true;
                memset(bytes_of(addr), 0, PAGE);
            }
            if (write)
                g->what &= (uint8_t)~SIM_SHARED;
            return SIM_OK;
        }
        if (g->handled) {
            if (sim_hears_nothing()) /* a signal that is blocked ends the process */
                return SIM_BUS;
            SIM_CHECK(++signals < SIGNALS_MAX, "an access at %#llx is tried for ever", (unsigned long long)addr);
            raise_sigbus(addr, write, g->present);
            continue;
        }
        fault_t f = {.addr = addr, .tid = sim_tid(), .pending = true};
        f.flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;
        if (g->present)
            f.flags |= UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE;
        *newest = &f;
        newest = &f.next;
        sim_point(); /* in the queue; then the page table is looked at once more */
        if (must_wait(g, write))
            sim_wait(is_woken, &f, SIM_NEVER, "its fault");
        forget(&f);
    }
}

void sim_access(uint64_t addr, bool write) {
    const sim_touch_t got = in_memory((void *)(uintptr_t)addr) ? sim_touch(addr, write) : SIM_OK;
    SIM_CHECK(got != SIM_SEGV, "a touch of %#llx is SIGSEGV",
              (unsigned long long)addr); /* SIGBUS: it was lost just now */
}

void sim_show_faults(void) {
    for (const fault_t *f = oldest; f != NULL; f = f->next)
        printf("fault of %d at %#llx, flags %#x%s%s\n", f->tid, (unsigned long long)f->addr, f->flags,
               f->pending ? ", not read" : "", f->woken ? ", woken" : "");
}

bool sim_uffd_pending(void) {
    for (const fault_t *f = oldest; f != NULL; f = f->next) {
        if (f->pending)
            return true;
    }
    return false;
}

ssize_t sim_uffd_read(void *buf, size_t n) {
    struct uffd_msg *out = buf;
    size_t got = 0;
    for (fault_t *f = oldest; f != NULL && (got + 1) * sizeof *out <= n; f = f->next) {
        if (!f->pending)
            continue;
        f->pending = false;
        if (sim_loud)
            sim_log("message of %d: %#llx, flags %#x", f->tid, (unsigned long long)f->addr, f->flags);
        out[got] = (struct uffd_msg){.event = UFFD_EVENT_PAGEFAULT};
        out[got].arg.pagefault.flags = f->flags;
        out[got].arg.pagefault.address = f->addr & ~(uint64_t)(PAGE - 1);
        out[got].arg.pagefault.feat.ptid = (uint32_t)f->tid;
        got++;
    }
    if (got == 0) {
        errno = EAGAIN;
        return -1;
    }
    return (ssize_t)(got * sizeof *out);
}

/* ---- userfaultfd ------------------------------------------------------------------------------------ */

typedef struct move_arg {
    uint64_t dst, src, len, mode;
    int64_t move;
} move_arg_t;
typedef struct poison_arg {
    uint64_t start, len, mode;
    int64_t updated;
} poison_arg_t;
#define IOC_MOVE _IOWR(0xAA, 0x05, move_arg_t)
#define IOC_POISON _IOWR(0xAA, 0x08, poison_arg_t)

static int fill(uint64_t dst, const uint8_t *src, uint64_t len, bool protect, uint64_t *done) {
    *done = 0;
    const int err = sim_call(src != NULL ? SIM_CALL_COPY : SIM_CALL_ZERO);
    if (err != 0)
        return err;
    if (sim_one_in(sim_kernel.again_one_in))
        return -EAGAIN;
    if (!one_mapping(dst, len, true))
        return -ENOENT;
    for (uint64_t off = 0; off < len; off += PAGE) {
        if (off > 0) {
            sim_point();
            if (sim_one_in(sim_kernel.again_one_in))
                return -EAGAIN;
        }
        page_t *g = page_of(dst + off);
        if (!g->mapped || !g->registered)
            return -ENOENT;
        if (g->present || g->poison)
            return -EEXIST;
        if (src != NULL)
            memcpy(bytes_of(dst + off), src + off, PAGE);
        else
            memset(bytes_of(dst + off), 0, PAGE);
        g->present = true;
        g->protected = protect;
        *done += PAGE;
    }
    return 0;
}

/* What the ioctl answers: nothing done is an error, and some is EAGAIN, with how much. */
static int answer(int err, uint64_t done, uint64_t len, int64_t *how_far) {
    *how_far = done > 0 ? (int64_t)done : err;
    return done == len ? 0 : done > 0 ? -EAGAIN : err;
}

static int move(uint64_t dst, uint64_t src, uint64_t len, uint64_t *done) {
    *done = 0;
    const int err = sim_call(SIM_CALL_MOVE);
    if (err != 0)
        return err;
    if (!sim_kernel.move)
        return -EINVAL;
    if (!one_mapping(dst, len, true) || !one_mapping(src, len, false))
        return -EINVAL;
    for (uint64_t off = 0; off < len; off += PAGE) {
        if (sim_one_in(sim_kernel.again_one_in))
            return -EAGAIN;
        page_t *from = page_of(src + off), *to = page_of(dst + off);
        if (!from->mapped || !to->registered)
            return -EINVAL;
        if (to->present || to->poison)
            return -EEXIST;
        if (from->poison)
            return -EFAULT;
        if (from->present && (from->what & (SIM_PINNED | SIM_SHARED)))
            return -EBUSY;
        if (from->present) {
            memcpy(bytes_of(dst + off), bytes_of(src + off), PAGE);
            to->present = true;
            to->protected = false;
            from->present = from->protected = false;
            memset(bytes_of(src + off), GONE, PAGE);
        }
        *done += PAGE;
        sim_point();
    }
    return 0;
}

static int protect(uint64_t addr, uint64_t len, bool on) {
    const int err = sim_call(SIM_CALL_PROTECT);
    if (err != 0)
        return err;
    if (sim_one_in(sim_kernel.again_one_in))
        return -EAGAIN;
    bool any = false;
    for (uint64_t off = 0; off < len; off += PAGE) {
        if (page_of(addr + off)->mapped && !page_of(addr + off)->registered)
            return -ENOENT;
        any |= page_of(addr + off)->mapped;
    }
    if (!any || (sim_kernel.old && !one_mapping(addr, len, true)))
        return -ENOENT;
    for (uint64_t off = 0; off < len; off += PAGE) {
        page_t *g = page_of(addr + off);
        if (g->present)
            g->protected = on;
        sim_point();
    }
    if (!on)
        wake(addr, len);
    return 0;
}

/* Holes are passed by; a range of nothing else is refused. */
static int set_registered(uint64_t addr, uint64_t len, bool on, bool handled) {
    const int err = sim_call(on ? SIM_CALL_REGISTER : SIM_CALL_UNREGISTER);
    bool any = false;
    for (uint64_t off = 0; off < len; off += PAGE)
        any |= page_of(addr + off)->mapped;
    if (err != 0 || !any)
        return err != 0 ? err : -EINVAL;
    for (uint64_t off = 0; off < len; off += PAGE) {
        if (page_of(addr + off)->registered && page_of(addr + off)->handled != handled)
            return on ? -EBUSY : -EINVAL;
    }
    if (!on) { /* wakes before it takes the mapping out: who is woken may come back first */
        wake(addr, len);
        sim_point();
    }
    bool same = true;
    for (uint64_t off = 0; off < len; off += PAGE) {
        page_t *g = page_of(addr + off);
        same &= g->mapped && g->mapping == page_of(addr)->mapping;
        g->registered = on && g->mapped;
        g->handled = g->registered && handled;
        if (!on)
            g->protected = false;
    }
    if (same) { /* what is registered and what is not are two mappings */
        const uint16_t was = page_of(addr)->mapping;
        if (addr + len < END && page_of(addr + len)->mapped && page_of(addr + len)->mapping == was)
            split(addr + len);
        if (addr > BASE && page_of(addr - PAGE)->mapped && page_of(addr - PAGE)->mapping == was)
            set_mapping(addr, len, ++mappings);
    }
    return 0;
}

/* The kernel looks only whether a range is registered; the core is to name the right descriptor all the same. */
static void expect(uint64_t addr, uint64_t len, bool handled) {
    for (uint64_t off = 0; off < len; off += PAGE) {
        const page_t *g = page_of(addr + off);
        SIM_CHECK(!g->registered || g->handled == handled, "the %s userfaultfd is asked for %#llx",
                  handled ? "inline" : "message", (unsigned long long)(addr + off));
    }
}

static int ioctl_of(unsigned long op, void *arg, bool handled) {
    int err;
    uint64_t done;
    if (op == UFFDIO_COPY || op == UFFDIO_ZEROPAGE || op == IOC_MOVE || op == UFFDIO_WRITEPROTECT || op == IOC_POISON) {
        const uint64_t *a = arg;
        expect(a[0], op == UFFDIO_COPY || op == IOC_MOVE ? a[2] : a[1], handled);
    }
    switch (op) {
    case UFFDIO_COPY: {
        struct uffdio_copy *c = arg;
        err = fill(c->dst, (const uint8_t *)(uintptr_t)c->src, c->len, (c->mode & UFFDIO_COPY_MODE_WP) != 0, &done);
        if (done > 0) {
            sim_point();
            wake(c->dst, done);
        }
        int64_t far;
        err = answer(err, done, c->len, &far);
        c->copy = far;
        return err;
    }
    case UFFDIO_ZEROPAGE: {
        struct uffdio_zeropage *z = arg;
        err = fill(z->range.start, NULL, z->range.len, false, &done);
        if (done > 0)
            wake(z->range.start, done);
        int64_t far;
        err = answer(err, done, z->range.len, &far);
        z->zeropage = far;
        return err;
    }
    case IOC_MOVE: {
        move_arg_t *m = arg;
        err = move(m->dst, m->src, m->len, &done);
        if (done > 0)
            wake(m->dst, done);
        return answer(err, done, m->len, &m->move);
    }
    case UFFDIO_WRITEPROTECT: {
        struct uffdio_writeprotect *w = arg;
        return protect(w->range.start, w->range.len, (w->mode & UFFDIO_WRITEPROTECT_MODE_WP) != 0);
    }
    case UFFDIO_WAKE: {
        struct uffdio_range *r = arg;
        wake(r->start, r->len);
        return 0;
    }
    case UFFDIO_REGISTER: {
        struct uffdio_register *r = arg;
        return set_registered(r->range.start, r->range.len, true, handled);
    }
    case UFFDIO_UNREGISTER: {
        struct uffdio_range *r = arg;
        return set_registered(r->start, r->len, false, handled);
    }
    case IOC_POISON: {
        poison_arg_t *p = arg;
        for (uint64_t off = 0; off < p->len; off += PAGE) {
            page_t *g = page_of(p->start + off);
            if (!g->mapped || !g->registered)
                return -ENOENT;
            if (g->present || g->poison)
                return -EEXIST;
            g->poison = true;
        }
        wake(p->start, p->len);
        return 0;
    }
    default: sim_fail("ioctl %#lx", op);
    }
}

int __wrap_ioctl(int fd, unsigned long op, void *arg) {
    SIM_CHECK(fd == SIM_UFFD || fd == SIM_SIGBUS, "ioctl of descriptor %d", fd);
    sim_point();
    const int err = ioctl_of(op, arg, fd == SIM_SIGBUS);
    if (sim_loud) {
        static const char *const names[16] = {"register", "unregister", "wake",     "copy",  "zero",
                                              "move",     "protect",    "continue", "poison"};
        const uint64_t *a = arg; /* where to, and for MOVE where from; then the length */
        sim_log("%s %#llx %#llx: %d", names[op & 15], (unsigned long long)a[0], (unsigned long long)a[1], err);
    }
    sim_point();
    if (err < 0)
        errno = -err;
    return err < 0 ? -1 : 0;
}

/* ---- mappings --------------------------------------------------------------------------------------- */

/* The space, as client and pager have it mapped: a futex in it is one, by its place in the file. */
typedef struct shared {
    uint64_t addr, len, off;
} shared_t;
static shared_t shared[SHARED_MAX];
static uint32_t shared_n;
static bool
    staged; /* staging is mapped; what the client maps from then on is the handlers', and no kernel looks at it */

const void *sim_shared(const void *at) {
    for (uint32_t k = 0; k < shared_n; k++) {
        if ((uintptr_t)at - shared[k].addr < shared[k].len)
            return (const void *)((uintptr_t)at - shared[k].addr + shared[k].off + 1);
    }
    return at;
}

void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off) {
    if (fd == SIM_DISK) {
        errno = ENODEV;
        return MAP_FAILED;
    }
    if (sim_fails(SIM_CALL_MMAP))
        return MAP_FAILED;
    if (fd >= 0 || !sim_is_client() || !(flags & MAP_NORESERVE) || staged) {
        void *got = __real_mmap(at, len, prot, flags, fd, off);
        if (got != MAP_FAILED && fd >= 0 && (flags & MAP_SHARED)) {
            SIM_CHECK(shared_n < SHARED_MAX, "more than %d shared mappings", SHARED_MAX);
            shared[shared_n++] = (shared_t){(uintptr_t)got, len, (uint64_t)off};
        }
        return got;
    }
    staged = true;
    return (void *)(uintptr_t)sim_map(len); /* staging */
}

int __real_munmap(void *at, size_t len);
int __wrap_munmap(void *at, size_t len) {
    if (!in_memory(at)) {
        for (uint32_t k = 0; k < shared_n; k++) {
            if (shared[k].addr == (uintptr_t)at)
                shared[k--] = shared[--shared_n];
        }
        return __real_munmap(at, len);
    }
    const uint64_t addr = (uint64_t)(uintptr_t)at;
    for (uint64_t off = 0; off < len; off += PAGE) {
        lose(page_of(addr + off), addr + off);
        *page_of(addr + off) = (page_t){0};
    }
    return 0; /* who stands in a fault on it is not woken by that */
}

int sim_dontneed(uint64_t addr, uint64_t len) {
    int err = 0;
    for (uint64_t off = 0; off < len; off += PAGE) {
        page_t *g = page_of(addr + off);
        if (!g->mapped) {
            err = -ENOMEM; /* and goes on */
            continue;
        }
        if (g->what & SIM_LOCKED)
            return -EINVAL; /* what comes before is gone */
        lose(g, addr + off);
        sim_point();
    }
    return err;
}

int __real_madvise(void *at, size_t len, int advice);
int __wrap_madvise(void *at, size_t len, int advice) {
    if (!in_memory(at))
        return __real_madvise(at, len, advice);
    const uint64_t addr = (uint64_t)(uintptr_t)at;
    sim_point();
    int err = advice == MADV_DONTNEED ? sim_call(SIM_CALL_MADVISE) : 0;
    if (err == 0 && advice == MADV_DONTNEED) {
        err = sim_dontneed(addr, len);
    } else if (advice == 23) { /* MADV_POPULATE_WRITE */
        for (uint64_t off = 0; off < len && err == 0; off += PAGE)
            err =
                (page_of(addr + off)->handled ? sim_kernel_touch : sim_touch)(addr + off, true) == SIM_OK ? 0 : -EFAULT;
    }
    if (sim_loud)
        sim_log("madvise %#llx %zu %d: %d", (unsigned long long)addr, len, advice, err);
    if (err < 0)
        errno = -err;
    return err < 0 ? -1 : 0;
}

long sim_process_madvise(const struct iovec *iov, size_t n, int advice) {
    long done = 0;
    (void)advice; /* MADV_DONTNEED */
    sim_point();
    if (sim_fails(SIM_CALL_VECTOR))
        return -1;
    for (size_t k = 0; k < n; k++) {
        const int err = sim_one_in(sim_kernel.short_one_in)
                            ? -EINTR
                            : sim_dontneed((uint64_t)(uintptr_t)iov[k].iov_base, iov[k].iov_len);
        if (err != 0) {
            errno = -err;
            return done > 0 ? done : -1;
        }
        done += (long)iov[k].iov_len;
    }
    return done;
}

int __real_mincore(void *at, size_t len, unsigned char *vec);
int __wrap_mincore(void *at, size_t len, unsigned char *vec) {
    if (!in_memory(at))
        return __real_mincore(at, len, vec);
    const uint64_t addr = (uint64_t)(uintptr_t)at;
    sim_point();
    if (sim_fails(SIM_CALL_MINCORE))
        return -1;
    for (uint64_t off = 0; off < len; off += PAGE) {
        const page_t *g = page_of(addr + off);
        if (!g->mapped) {
            errno = ENOMEM;
            return -1;
        }
        vec[off / PAGE] = g->present || g->poison;
    }
    return 0;
}

/* As the kernel does it: page by page, and what there is before one that can't be read. */
ssize_t __wrap_process_vm_readv(pid_t pid, const struct iovec *to, unsigned long tos, const struct iovec *from,
                                unsigned long froms, unsigned long flags) {
    (void)pid, (void)tos, (void)froms, (void)flags;
    sim_point();
    const int err = sim_kernel.no_peek ? -EPERM : sim_call(SIM_CALL_PEEK);
    if (err != 0) {
        errno = -err;
        return -1;
    }
    size_t done = 0;
    for (; done < from->iov_len; done += PAGE) {
        const uint64_t addr = (uint64_t)(uintptr_t)from->iov_base + done;
        if (!page_of(addr)->mapped || sim_kernel_touch(addr, false) != SIM_OK)
            break;
        memcpy((uint8_t *)to->iov_base + done, bytes_of(addr), PAGE);
        sim_point();
    }
    if (done == 0)
        errno = EFAULT;
    return done == 0 ? -1 : (ssize_t)done;
}

int __wrap_munlock(void *at, size_t len) {
    if (!in_memory(at))
        return 0;
    for (uint64_t off = 0; off < len; off += PAGE)
        page_of((uint64_t)(uintptr_t)at + off)->what &= (uint8_t)~SIM_LOCKED;
    return 0;
}

int __real_mprotect(void *at, size_t len, int prot);
int __wrap_mprotect(void *at, size_t len, int prot) {
    if (!in_memory(at))
        return __real_mprotect(at, len, prot);
    for (uint64_t off = 0; off < len; off += PAGE)
        page_of((uint64_t)(uintptr_t)at + off)->forbidden = prot == PROT_NONE;
    return 0;
}

ssize_t sim_pagemap_read(void *buf, size_t n, uint64_t off) {
    uint64_t *out = buf;
    sim_point();
    if (sim_fails(SIM_CALL_PAGEMAP))
        return -1;
    for (size_t k = 0; k < n / 8; k++) {
        const page_t *g = page_of((off / 8 + k) * PAGE);
        out[k] = g->present ? 1ull << 63 | (uint64_t)g->protected << 57 : (uint64_t)g->poison << 62;
    }
    return (ssize_t)n;
}

/* The mover's memcpy: what it reads of the client's memory may fault. */
void *sim_memcpy(void *to, const void *from, size_t n) {
    if (!in_memory(from))
        return memcpy(to, from, n);
    for (size_t off = 0; off < n; off += PAGE) {
        const uint64_t addr = (uint64_t)(uintptr_t)from + off;
        SIM_CHECK(sim_touch(addr, false) == SIM_OK, "%s reads %#llx, which ends the process", sim_name(),
                  (unsigned long long)addr);
        memcpy((uint8_t *)to + off, bytes_of(addr), PAGE);
        sim_point();
    }
    return to;
}
