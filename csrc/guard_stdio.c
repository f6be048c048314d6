/* SPDX-License-Identifier: MIT
 *
 * Streams. libc's own calls of read and write don't pass through us, and of large reads and writes they have the caller's
 * memory, not the stream's buffer: so it is held, piece by piece. What is formatted, or copied from the stream's own
 * buffer (fgets, getline, scanf), is touched by libc's code in user space, as by any other code. Strings that printf
 * writes may go to the kernel as they are: the text is made first, in memory that is not paged.
 */
#include "guard_call.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

enum {
    FREAD,
    FREAD_UNLOCKED,
    FREAD_CHK,
    FREAD_UNLOCKED_CHK,
    FWRITE,
    FWRITE_UNLOCKED,
    FPUTS,
    FPUTS_UNLOCKED,
    PUTS,
    SETVBUF,
    SETBUF,
    SETBUFFER,
    FOPEN,
    FOPEN64,
    FREOPEN,
    FREOPEN64,
    PRINTF,
    FPRINTF,
    VPRINTF,
    VFPRINTF,
    DPRINTF,
    VDPRINTF,
    PRINTF_CHK,
    FPRINTF_CHK,
    VPRINTF_CHK,
    VFPRINTF_CHK,
    DPRINTF_CHK,
    VDPRINTF_CHK
};
#define OTHER(i) ((us_call_t)us_guard_stdio[i].other)

extern void __chk_fail(void) __attribute__((noreturn));

/* Bytes, in pieces that can be held; the stream is locked by the caller where it should be. */
static size_t in_pieces(us_call_t call, char *p, size_t bytes, FILE *f, bool in) {
    size_t done = 0;
    while (done < bytes) {
        us_holds_t h = {.n = 0};
        int64_t n = us_holds_part(&h, p + done, bytes - done, in);
        if (n < 0) {
            us_holds_end(&h);
            errno = (int)-n;
            break;
        }
        long a[6] = {(long)(p + done), 1, n, (long)f};
        size_t got = (size_t)us_call_ending(&h, call, a);
        done += got;
        if (got < (size_t)n)
            break;
    }
    return done;
}

static void unlock(void *f) { funlockfile(f); }

static size_t items(int which, char *p, size_t size, size_t n, FILE *f, bool in, bool locked) {
    size_t bytes, done;
    if (__builtin_mul_overflow(size, n, &bytes) || bytes == 0 || !us_guard_near(p, bytes))
        return (size_t)OTHER(which)((long)p, (long)size, (long)n, (long)f, 0, 0);
    if (!locked)
        return in_pieces(OTHER(which), p, bytes, f, in) / size;
    flockfile(f); /* one call's bytes lie together */
    pthread_cleanup_push(unlock, f);
    done = in_pieces(OTHER(which), p, bytes, f, in);
    pthread_cleanup_pop(1);
    return done / size;
}

static size_t guarded_fread(void *p, size_t size, size_t n, FILE *f) { return items(FREAD, p, size, n, f, true, true); }
static size_t guarded_fread_unlocked(void *p, size_t size, size_t n, FILE *f) {
    return items(FREAD_UNLOCKED, p, size, n, f, true, false);
}
static size_t guarded_fwrite(const void *p, size_t size, size_t n, FILE *f) {
    return items(FWRITE, (char *)(uintptr_t)p, size, n, f, false, true);
}
static size_t guarded_fwrite_unlocked(const void *p, size_t size, size_t n, FILE *f) {
    return items(FWRITE_UNLOCKED, (char *)(uintptr_t)p, size, n, f, false, false);
}

static void check_room(size_t room, size_t size, size_t n) {
    size_t bytes;
    if (__builtin_mul_overflow(size, n, &bytes) || bytes > room)
        __chk_fail();
}
static size_t guarded_fread_chk(void *p, size_t room, size_t size, size_t n, FILE *f) {
    check_room(room, size, n);
    return guarded_fread(p, size, n, f);
}
static size_t guarded_fread_unlocked_chk(void *p, size_t room, size_t size, size_t n, FILE *f) {
    check_room(room, size, n);
    return guarded_fread_unlocked(p, size, n, f);
}

static int guarded_fputs(const char *text, FILE *f) {
    if (!us_guard_near(text, PATH_MAX) || fwide(f, 0) > 0)
        return (int)OTHER(FPUTS)((long)text, (long)f, 0, 0, 0, 0);
    size_t n = strlen(text);
    return guarded_fwrite(text, 1, n, f) == n ? 1 : EOF;
}

static int guarded_fputs_unlocked(const char *text, FILE *f) {
    if (!us_guard_near(text, PATH_MAX) || fwide(f, 0) > 0)
        return (int)OTHER(FPUTS_UNLOCKED)((long)text, (long)f, 0, 0, 0, 0);
    size_t n = strlen(text);
    return guarded_fwrite_unlocked(text, 1, n, f) == n ? 1 : EOF;
}

static int guarded_puts(const char *text) {
    volatile int result = EOF; /* beside a setjmp of pthread_cleanup_push */
    if (!us_guard_near(text, PATH_MAX) || fwide(stdout, 0) > 0)
        return (int)OTHER(PUTS)((long)text, 0, 0, 0, 0, 0);
    flockfile(stdout);
    pthread_cleanup_push(unlock, stdout);
    if (guarded_fputs_unlocked(text, stdout) >= 0 && putc_unlocked('\n', stdout) != EOF)
        result = 1;
    pthread_cleanup_pop(1);
    return result;
}

/* A buffer in inline memory would be the kernel's at any time: the stream gets one of its own, as setvbuf may do. */
static int guarded_setvbuf(FILE *f, char *p, int mode, size_t size) {
    if (p && us_guard_near(p, size))
        p = NULL;
    return (int)OTHER(SETVBUF)((long)f, (long)p, mode, (long)size, 0, 0);
}
static void guarded_setbuf(FILE *f, char *p) { guarded_setvbuf(f, p, p ? _IOFBF : _IONBF, BUFSIZ); }
static void guarded_setbuffer(FILE *f, char *p, size_t size) { guarded_setvbuf(f, p, p ? _IOFBF : _IONBF, size); }

/* Names and modes. */
static const us_op_t name_and_mode[] = {{US_OP_STRING, 0, 0, false, 0}, {US_OP_STRING, 1, 0, false, 0}};
#define BY_NAME(name, index)                                       \
    static long name(long path, long mode, long f) {               \
        long a[6] = {path, mode, f};                               \
        if (!us_ops_near(name_and_mode, 2, a))                     \
            return OTHER(index)(path, mode, f, 0, 0, 0);           \
        return us_call_held(OTHER(index), name_and_mode, 2, 0, a); \
    }
BY_NAME(guarded_fopen, FOPEN)
BY_NAME(guarded_fopen64, FOPEN64)
BY_NAME(guarded_freopen, FREOPEN)
BY_NAME(guarded_freopen64, FREOPEN64)

/* ---- printf -------------------------------------------------------------------------------------------- */

typedef int (*vfprintf_t)(FILE *, const char *, va_list);
typedef int (*vfprintf_chk_t)(FILE *, int, const char *, va_list);
typedef int (*vdprintf_t)(int, const char *, va_list);
extern int __vasprintf_chk(char **, int, const char *, va_list);

static bool any_inline(void) { return atomic_load_explicit(&us_inline_hi, memory_order_relaxed) != 0; }

static int print(FILE *f, int flag, const char *format, va_list args) {
    char *text;
    int err;
    if (!any_inline() || fwide(f, 0) > 0)
        return flag < 0 ? ((vfprintf_t)us_guard_stdio[VFPRINTF].other)(f, format, args)
                        : ((vfprintf_chk_t)us_guard_stdio[VFPRINTF_CHK].other)(f, flag, format, args);
    int n = flag < 0 ? vasprintf(&text, format, args) : __vasprintf_chk(&text, flag, format, args);
    if (n < 0)
        return n;
    pthread_cleanup_push(free, text);
    n = (int)OTHER(FWRITE)((long)text, 1, n, (long)f, 0, 0) == n ? n : -1;
    err = errno;
    pthread_cleanup_pop(1);
    errno = err;
    return n;
}

static int print_fd(int fd, int flag, const char *format, va_list args) {
    char *text;
    int err, n = flag < 0 ? vasprintf(&text, format, args) : __vasprintf_chk(&text, flag, format, args), done = 0;
    if (n < 0)
        return n;
    pthread_cleanup_push(free, text);
    while (done < n) {
        long got = us_rw_by_number(1 /* SYS_write */)(fd, (long)(text + done), n - done, 0, 0, 0);
        if (got < 0)
            break;
        done += (int)got;
    }
    err = errno;
    pthread_cleanup_pop(1);
    errno = err;
    return done == n ? n : -1;
}

#define FORWARD(result_of)  \
    va_list args;           \
    va_start(args, format); \
    int result = result_of; \
    va_end(args);           \
    return result
static int guarded_printf(const char *format, ...) { FORWARD(print(stdout, -1, format, args)); }
static int guarded_fprintf(FILE *f, const char *format, ...) { FORWARD(print(f, -1, format, args)); }
static int guarded_vprintf(const char *format, va_list args) { return print(stdout, -1, format, args); }
static int guarded_vfprintf(FILE *f, const char *format, va_list args) { return print(f, -1, format, args); }
static int guarded_dprintf(int fd, const char *format, ...) { FORWARD(print_fd(fd, -1, format, args)); }
static int guarded_vdprintf(int fd, const char *format, va_list args) { return print_fd(fd, -1, format, args); }
static int guarded_printf_chk(int flag, const char *format, ...) { FORWARD(print(stdout, flag, format, args)); }
static int guarded_fprintf_chk(FILE *f, int flag, const char *format, ...) { FORWARD(print(f, flag, format, args)); }
static int guarded_vprintf_chk(int flag, const char *format, va_list args) { return print(stdout, flag, format, args); }
static int guarded_vfprintf_chk(FILE *f, int flag, const char *format, va_list args) {
    return print(f, flag, format, args);
}
static int guarded_dprintf_chk(int fd, int flag, const char *format, ...) { FORWARD(print_fd(fd, flag, format, args)); }
static int guarded_vdprintf_chk(int fd, int flag, const char *format, va_list args) {
    return print_fd(fd, flag, format, args);
}

us_guard_t us_guard_stdio[] = {
    [FREAD] = {.name = "fread", .ours = guarded_fread},
    [FREAD_UNLOCKED] = {.name = "fread_unlocked", .ours = guarded_fread_unlocked},
    [FREAD_CHK] = {.name = "__fread_chk", .ours = guarded_fread_chk},
    [FREAD_UNLOCKED_CHK] = {.name = "__fread_unlocked_chk", .ours = guarded_fread_unlocked_chk},
    [FWRITE] = {.name = "fwrite", .ours = guarded_fwrite},
    [FWRITE_UNLOCKED] = {.name = "fwrite_unlocked", .ours = guarded_fwrite_unlocked},
    [FPUTS] = {.name = "fputs", .ours = guarded_fputs},
    [FPUTS_UNLOCKED] = {.name = "fputs_unlocked", .ours = guarded_fputs_unlocked},
    [PUTS] = {.name = "puts", .ours = guarded_puts},
    [SETVBUF] = {.name = "setvbuf", .ours = guarded_setvbuf},
    [SETBUF] = {.name = "setbuf", .ours = guarded_setbuf},
    [SETBUFFER] = {.name = "setbuffer", .ours = guarded_setbuffer},
    [FOPEN] = {.name = "fopen", .ours = guarded_fopen},
    [FOPEN64] = {.name = "fopen64", .ours = guarded_fopen64},
    [FREOPEN] = {.name = "freopen", .ours = guarded_freopen},
    [FREOPEN64] = {.name = "freopen64", .ours = guarded_freopen64},
    [PRINTF] = {.name = "printf", .ours = guarded_printf},
    [FPRINTF] = {.name = "fprintf", .ours = guarded_fprintf},
    [VPRINTF] = {.name = "vprintf", .ours = guarded_vprintf},
    [VFPRINTF] = {.name = "vfprintf", .ours = guarded_vfprintf},
    [DPRINTF] = {.name = "dprintf", .ours = guarded_dprintf},
    [VDPRINTF] = {.name = "vdprintf", .ours = guarded_vdprintf},
    [PRINTF_CHK] = {.name = "__printf_chk", .ours = guarded_printf_chk},
    [FPRINTF_CHK] = {.name = "__fprintf_chk", .ours = guarded_fprintf_chk},
    [VPRINTF_CHK] = {.name = "__vprintf_chk", .ours = guarded_vprintf_chk},
    [VFPRINTF_CHK] = {.name = "__vfprintf_chk", .ours = guarded_vfprintf_chk},
    [DPRINTF_CHK] = {.name = "__dprintf_chk", .ours = guarded_dprintf_chk},
    [VDPRINTF_CHK] = {.name = "__vdprintf_chk", .ours = guarded_vdprintf_chk},
    {.name = NULL},
};
