/* SPDX-License-Identifier: MIT
 *
 * What the benchmark needs to be in C: one access timed, and the floor that any userfaultfd pager has.
 */
#include "types.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys.h"

int us_touch(const uint64_t *addr, uint64_t n, int write, uint64_t *ns) {
    for (uint64_t i = 0; i < n; i++) {
        volatile uint8_t *p = (volatile uint8_t *)(uintptr_t)addr[i];
        uint64_t t = us_now_ns();
        uint8_t v = *p;
        if (write)
            *p = v;
        ns[i] = us_now_ns() - t;
    }
    return 0;
}

typedef struct us_floor_handler {
    int uffd;
    cpu_set_t cpu;
    const uint8_t *page;
    uint32_t len;
    _Atomic int stop;
} us_floor_handler_t;

/* The handler of a pager that has nothing to do: it reads the message and copies a page that is ready. */
static void *floor_main(void *arg) {
    us_floor_handler_t *h = arg;
    sched_setaffinity(0, sizeof h->cpu, &h->cpu);
    while (atomic_load(&h->stop) == 0) {
        struct pollfd f = {.fd = h->uffd, .events = POLLIN};
        poll(&f, 1, 20);
        us_msg_t m;
        while (us_sys_read(h->uffd, &m, 1) == 1) {
            uint64_t done;
            us_sys_copy(h->uffd, m.addr & ~(uint64_t)(h->len - 1), h->page, h->len, false, &done);
        }
    }
    return NULL;
}

int us_floor(uint64_t n, uint32_t len, uint64_t *ns) {
    if (n == 0 || len < US_PAGE || (len & (len - 1)) != 0)
        return -EINVAL;
    us_uffd_t u;
    int err = us_uffd_open(US_UFFD_AUTO, &u);
    if (err < 0)
        return err;
    cpu_set_t before;
    sched_getaffinity(0, sizeof before, &before);
    us_floor_handler_t h = {.uffd = u.fd, .len = len};
    const int cpu = sched_getcpu();
    CPU_ZERO(&h.cpu);
    CPU_SET((size_t)(cpu < 0 ? 0 : cpu), &h.cpu);
    sched_setaffinity(0, sizeof h.cpu, &h.cpu);

    const uint64_t size = n * len;
    uint8_t *page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *area = mmap(NULL, size + len, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    pthread_t thread;
    err = -ENOMEM;
    if (page == MAP_FAILED || area == MAP_FAILED)
        goto out;
    memset(page, 1, len);
    h.page = page;
    uint8_t *from = (uint8_t *)us_align_up((uint64_t)(uintptr_t)area, len);
    madvise(from, size, MADV_NOHUGEPAGE);
    err = us_sys_register(u.fd, (uint64_t)(uintptr_t)from, size);
    if (err == 0)
        err = -pthread_create(&thread, NULL, floor_main, &h);
    if (err == 0) {
        for (uint64_t i = 0; i < n; i++) {
            volatile uint8_t *p = from + i * len;
            uint64_t t = us_now_ns();
            (void)*p;
            ns[i] = us_now_ns() - t;
        }
        atomic_store(&h.stop, 1);
        pthread_join(thread, NULL);
    }
out:
    if (page != MAP_FAILED)
        munmap(page, len);
    if (area != MAP_FAILED)
        munmap(area, size + len);
    close(u.fd);
    sched_setaffinity(0, sizeof before, &before);
    return err;
}
