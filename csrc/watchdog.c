/* SPDX-License-Identifier: MIT */
#include "watchdog.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "sys.h"

_Noreturn void us_die(const char *text) {
    /* A full pipe that nobody reads must not keep the process from ending. */
    struct pollfd err = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (us_sys_poll(&err, 1, 0) == 1 && (err.revents & POLLOUT)) {
        ssize_t done = write(STDERR_FILENO, text, strlen(text));
        (void)done;
    }
    signal(SIGABRT, SIG_DFL);
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGABRT);
    pthread_sigmask(SIG_UNBLOCK, &s, NULL);
    raise(SIGABRT);
    _exit(134);
}

static void *watchdog_main(void *arg) {
    us_watchdog_t *w = arg;
    prctl(PR_SET_NAME, "uswap-watchdog");
    while (us_atomic_load(&w->stop) == 0) {
        const int pager = us_atomic_load(&w->pager);
        struct pollfd f[2] = {{.fd = w->wake, .events = POLLIN}, {.fd = pager, .events = POLLIN}};
        const int n = us_sys_poll(f, 2, -1);
        if (n > 0 && f[1].revents != 0 && us_atomic_load(&w->pager) == pager && us_atomic_load(&w->stop) == 0) {
            /* The pager ends when its control socket does, which is also what happens to it when somebody closes the
             * descriptors of this process; then ours do not exist any more either. */
            if (fcntl(pager, F_GETFD) < 0)
                us_die("uswap: descriptors of uswap were closed by other code of this process; the pager process has "
                       "ended by that, pages that are out are lost, so this process ends too\n");
            us_die("uswap: the pager process has ended; pages that are out are lost, so this process ends too\n");
        }
        if (n > 0 && (f[0].revents & POLLIN)) {
            uint64_t drained;
            ssize_t got = read(w->wake, &drained, sizeof drained);
            (void)got;
        } else if (n > 0 && f[0].revents != 0) {
            us_die("uswap: descriptors of uswap were closed by other code of this process; pages that are out can't be "
                   "brought back safely, so this process ends\n");
        }
    }
    return NULL;
}

int us_watchdog_start(us_watchdog_t *w) {
    us_atomic_store(&w->pager, -1);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->wake < 0)
        return -errno;
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 64 * 1024);
    const int err = us_sys_thread(&w->thread, &a, watchdog_main, w);
    pthread_attr_destroy(&a);
    w->on = err == 0;
    if (err != 0)
        close(w->wake);
    return err;
}

int us_watchdog_set(us_watchdog_t *w, int pidfd) {
    us_atomic_store(&w->pager, pidfd);
    return us_sys_eventfd_ring(w->wake);
}

void us_watchdog_stop(us_watchdog_t *w) {
    if (!w->on)
        return;
    us_atomic_store(&w->stop, 1);
    us_sys_eventfd_ring(w->wake);
    pthread_join(w->thread, NULL);
    close(w->wake);
    w->on = false;
}
