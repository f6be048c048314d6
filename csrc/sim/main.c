/* SPDX-License-Identifier: MIT
 *
 * Scenarios, many of them:
 *
 *     sim [--from N] [--seeds N] [--loud] [--keep-going]
 *     sim --with unmaps ...              scenarios in which that happens: tricks, stops, limits, ends, unmaps
 *     sim --each [STRIDE] [--from N]     one scenario again and again: each call of each kind fails once, in each way
 *
 * Each seed is a process of its own. Status 0 when all hold; else 1, and the first that does not (--keep-going: each) is
 * shown, with what happened last.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../codec.h"
#include "fibers.h"
#include "scenario.h"

enum { REAL_LIMIT = 120 };

/* ---- many -------------------------------------------------------------------------------------------- */

typedef struct total {
    unsigned long long seeds, n[8];
} total_t;

/* A seed in a process of its own. Returns its status. */
static int one(uint64_t seed, total_t *total, uint64_t calls[SIM_CALL_KINDS]) {
    int way[2];
    fflush(stdout);
    if (pipe(way) != 0)
        return 2;
    const pid_t pid = fork();
    if (pid == 0) {
        close(way[0]);
        dup2(way[1], STDOUT_FILENO);
        alarm(REAL_LIMIT);
        sim_run_seed(seed);
    }
    close(way[1]);
    FILE *in = fdopen(way[0], "r");
    char *text = NULL;
    size_t room = 0, len = 0;
    for (int ch; (ch = fgetc(in)) != EOF;) {
        if (len + 1 >= room) {
            room = room == 0 ? 4096 : 2 * room;
            text = realloc(text, room);
        }
        text[len++] = (char)ch;
    }
    fclose(in);
    int status;
    waitpid(pid, &status, 0);
    unsigned long long v[9];
    if (status == 0 && text != NULL &&
        sscanf((text[len] = 0, text), "%llu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3], &v[4],
               &v[5], &v[6], &v[7], &v[8]) == 9) {
        total->seeds++;
        for (int k = 0; k < 8; k++)
            total->n[k] += v[k + 1];
        const char *at = strchr(text, '\n');
        for (int k = 0; calls != NULL && at != NULL && k < SIM_CALL_KINDS; k++) {
            char *next;
            calls[k] = strtoull(at, &next, 10);
            at = next;
        }
        free(text);
        return 0;
    }
    fwrite(text == NULL ? "" : text, 1, len, stdout);
    if (WIFSIGNALED(status))
        printf("seed %llu: ended by signal %d%s\n", (unsigned long long)seed, WTERMSIG(status),
               WTERMSIG(status) == SIGALRM ? ": it takes too long" : "");
    free(text);
    return 1;
}

/* Each call of each kind fails once, every stride-th of them, in each way that the kernel has. */
static int fail_each(uint64_t seed, uint64_t stride, bool keep) {
    static const struct {
        int call, error[4];
    } ways[] = {
        {SIM_CALL_COPY, {EAGAIN, ENOMEM}},
        {SIM_CALL_ZERO, {EAGAIN, ENOMEM}},
        {SIM_CALL_MOVE, {EAGAIN, EBUSY, ENOMEM}},
        {SIM_CALL_PROTECT, {EAGAIN}},
        {SIM_CALL_REGISTER, {ENOMEM, EBUSY}},
        {SIM_CALL_UNREGISTER, {ENOMEM}},
        {SIM_CALL_MADVISE, {EAGAIN, ENOMEM}},
        {SIM_CALL_VECTOR, {EINTR, ENOMEM, EPERM}},
        {SIM_CALL_MINCORE, {EAGAIN}},
        {SIM_CALL_PAGEMAP, {EIO, EINTR}},
        {SIM_CALL_PREAD, {EIO, EINTR}},
        {SIM_CALL_PWRITE, {EIO, EINTR, ENOSPC}},
        {SIM_CALL_POLL, {EINTR}},
        {SIM_CALL_READ, {EINTR}},
        {SIM_CALL_WRITE, {EINTR}},
        {SIM_CALL_SEND, {EINTR, EAGAIN}},
        {SIM_CALL_RECV, {EINTR, EAGAIN}},
        {SIM_CALL_MMAP, {ENOMEM}},
        {SIM_CALL_CALLOC, {ENOMEM}},
        {SIM_CALL_THREAD, {EAGAIN}},
        {SIM_CALL_PEEK, {EFAULT, ENOMEM, EPERM}},
    };
    static const char *const names[] = {
#define NAME(name) #name,
        SIM_CALLS(NAME)};
    uint64_t calls[SIM_CALL_KINDS] = {0};
    total_t total = {0};
    int failed = 0;
    sim_each = true;
    if (one(seed, &total, calls) != 0)
        return 1;
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        uint64_t runs = 0;
        for (int e = 0; e < 4 && ways[w].error[e] != 0; e++) {
            for (uint64_t at = 1 + (stride > 1 ? w % stride : 0); at <= calls[ways[w].call]; at += stride, runs++) {
                sim_failure.call = ways[w].call;
                sim_failure.error = ways[w].error[e];
                sim_failure.at = at;
                if (one(seed, &total, NULL) != 0) {
                    printf("when %s number %llu of %llu fails: %s\n", names[ways[w].call], (unsigned long long)at,
                           (unsigned long long)calls[ways[w].call], strerror(ways[w].error[e]));
                    failed++;
                    if (!keep)
                        return 1;
                }
            }
        }
        printf("%s: %llu of %llu calls\n", names[ways[w].call], (unsigned long long)runs,
               (unsigned long long)calls[ways[w].call]);
        fflush(stdout);
    }
    return failed > 0;
}

int main(int argc, char **argv) {
    uint64_t from = 1, seeds = 1;
    bool keep = false;
    uint64_t stride = 0;
    for (int k = 1; k < argc; k++) {
        const char *value = k + 1 < argc ? argv[k + 1] : "";
        if (strcmp(argv[k], "--loud") == 0) {
            sim_loud = true;
            continue;
        }
        if (strcmp(argv[k], "--keep-going") == 0) {
            keep = true;
            continue;
        }
        if (strcmp(argv[k], "--each") == 0) {
            stride = strtoull(value, NULL, 0);
            if (stride == 0) {
                stride = 1;
                continue;
            }
        } else if (strcmp(argv[k], "--fail") == 0) { /* of one run, with --loud: KIND,AT,ERRNO */
            unsigned long long at;
            if (sscanf(value, "%d,%llu,%d", &sim_failure.call, &at, &sim_failure.error) != 3)
                return 2;
            sim_failure.at = at;
            sim_each = true;
        } else if (strcmp(argv[k], "--with") == 0)
            sim_with = value;
        else if (strcmp(argv[k], "--from") == 0)
            from = strtoull(value, NULL, 0);
        else if (strcmp(argv[k], "--seeds") == 0)
            seeds = strtoull(value, NULL, 0);
        else {
            fprintf(stderr, "sim: what is %s?\n", argv[k]);
            return 2;
        }
        k++;
    }
    sim_lz4 = us_codec_load(US_CODEC_LZ4, "liblz4.so.1") == 0;
    sim_zstd = us_codec_load(US_CODEC_ZSTD, "libzstd.so.1") == 0;
    if (!sim_lz4 || !sim_zstd)
        printf("without %s%s%s: blocks of such a pool stay as they are\n", sim_lz4 ? "" : "lz4",
               sim_lz4 || sim_zstd ? "" : " and ", sim_zstd ? "" : "zstd");
    if (sim_loud)
        sim_run_seed(from);
    if (stride > 0)
        return fail_each(from, stride, keep);
    total_t total = {0};
    int failed = 0;
    for (uint64_t seed = from; seed < from + seeds; seed++) {
        if (one(seed, &total, NULL) != 0) {
            failed++;
            if (!keep)
                break;
        }
    }
    printf(
        "%llu seeds: %llu steps, %llu accesses, %llu blocks out, %llu faults on stored, %llu segments cleaned, %llu blocks lost, "
        "%llu messages of the second server, %llu checks\n",
        total.seeds, total.n[0], total.n[1], total.n[2], total.n[3], total.n[4], total.n[5], total.n[6], total.n[7]);
    return failed > 0;
}
