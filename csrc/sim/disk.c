/* SPDX-License-Identifier: MIT
 *
 * The swap file: bytes in memory, with the failures of disks. A request takes its time, others overtake it, and its bytes
 * are read or written at some moment in between. The core promises that nothing reads what is being written and that no
 * two write the same place: that is checked here, as nothing else would notice.
 */
#include "disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fds.h"

enum { FLIGHTS = 128, PAGE = 4096, SLOWEST = 16 };

sim_disk_t sim_disk = {.slow_ns = 100000};
static uint8_t *bytes;
static struct {
    uint64_t off, len;
    bool write, on;
} flight[FLIGHTS];

void *__real_calloc(size_t n, size_t size);

void sim_disk_open(void) {
    bytes = __real_calloc(1, sim_disk.bytes + 1); /* ours may be the call that fails */
    SIM_CHECK(bytes != NULL, "no memory for the disk");
}

static int take_off(uint64_t off, uint64_t len, bool write) {
    int at = -1;
    for (int k = 0; k < FLIGHTS; k++) {
        if (!flight[k].on) {
            at = k;
            continue;
        }
        SIM_CHECK(!(write || flight[k].write) || off >= flight[k].off + flight[k].len || flight[k].off >= off + len,
                  "the disk: %s of [%llu, %llu) while [%llu, %llu) is %s", write ? "a write" : "a read",
                  (unsigned long long)off, (unsigned long long)(off + len), (unsigned long long)flight[k].off,
                  (unsigned long long)(flight[k].off + flight[k].len), flight[k].write ? "written" : "read");
    }
    SIM_CHECK(at >= 0, "more than %d requests", FLIGHTS);
    flight[at].off = off;
    flight[at].len = len;
    flight[at].write = write;
    flight[at].on = true;
    return at;
}

static void pass_time(void) {
    if (sim_disk.slow_ns == 0)
        return;
    const uint64_t most = sim_one_in(16) ? SLOWEST * sim_disk.slow_ns : sim_disk.slow_ns;
    sim_wait(NULL, NULL, sim_now + 1 + sim_random64() % most, "the disk");
}

static ssize_t fails(int err) {
    errno = err;
    return -1;
}

static ssize_t transfer(uint8_t *buf, size_t n, uint64_t off, bool write) {
    SIM_CHECK(off % PAGE == 0 && n % PAGE == 0, "the disk: %zu bytes at %llu", n, (unsigned long long)off);
    const int injected = sim_call(write ? SIM_CALL_PWRITE : SIM_CALL_PREAD);
    if (injected != 0)
        return fails(-injected);
    if (off + n > sim_disk.bytes)
        return write ? fails(ENOSPC) : 0;
    if (sim_one_in(sim_disk.eintr_one_in))
        return fails(EINTR);
    const int at = take_off(off, n, write);
    pass_time();
    size_t done = n;
    int err = 0;
    if (sim_one_in(sim_disk.eio_one_in))
        err = EIO;
    else if (write && sim_one_in(sim_disk.full_one_in))
        err = ENOSPC;
    else if (n > PAGE && sim_one_in(sim_disk.short_one_in))
        done = PAGE * (1 + sim_below((uint32_t)(n / PAGE - 1)));
    if (err != 0 && write) /* some of it may be there all the same, and what was before is gone */
        memset(bytes + off, 0xee, PAGE * sim_below((uint32_t)(n / PAGE + 1)));
    for (size_t k = 0; err == 0 && k < done; k += PAGE) {
        if (write && !sim_one_in(sim_disk.lost_one_in))
            memcpy(bytes + off + k, buf + k, PAGE);
        else if (!write)
            memcpy(buf + k, bytes + off + k, PAGE);
        sim_point();
    }
    if (err == 0 && !write && sim_one_in(sim_disk.flip_one_in))
        buf[sim_below((uint32_t)done)] ^= (uint8_t)(1u << sim_below(8));
    if (sim_loud)
        sim_log("%s of %zu at %#llx: %zu, error %d", write ? "write" : "read", n, (unsigned long long)off, done, err);
    pass_time();
    flight[at].on = false;
    return err != 0 ? fails(err) : (ssize_t)done;
}

ssize_t __real_pread(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t off) {
    if (fd < SIM_FD)
        return __real_pread(fd, buf, n, off);
    if (fd == SIM_PAGEMAP)
        return sim_pagemap_read(buf, n, (uint64_t)off);
    if (fd == SIM_STAT) {
        const char *text = sim_client_stopped() ? "1 (x) T 1" : "1 (x) S 1";
        memcpy(buf, text, strlen(text) + 1);
        return (ssize_t)strlen(text);
    }
    return transfer(buf, n, (uint64_t)off, false);
}

ssize_t __real_pwrite(int fd, const void *buf, size_t n, off_t off);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t off) {
    if (fd < SIM_FD)
        return __real_pwrite(fd, buf, n, off);
    return transfer((uint8_t *)(uintptr_t)buf, n, (uint64_t)off, true);
}

int __wrap_sync_file_range(int fd, off_t off, off_t n, unsigned flags) {
    (void)fd, (void)off, (void)n, (void)flags;
    pass_time();
    if (sim_one_in(sim_disk.eio_one_in))
        return (int)fails(EIO);
    return 0;
}

int __wrap_posix_fadvise(int fd, off_t off, off_t n, int advice) {
    (void)fd, (void)off, (void)n, (void)advice;
    sim_point();
    return 0;
}

int __real_fstat(int fd, struct stat *st);
int __wrap_fstat(int fd, struct stat *st) {
    if (fd < SIM_FD)
        return __real_fstat(fd, st);
    memset(st, 0, sizeof *st);
    st->st_mode = S_IFREG;
    return 0;
}

int __wrap_fstatfs(int fd, struct statfs *fs) {
    (void)fd;
    memset(fs, 0, sizeof *fs);
    fs->f_type = 0xef53;
    return 0;
}
