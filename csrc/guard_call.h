/* SPDX-License-Identifier: MIT
 *
 * How a guarded call is made: what its operands are, whether it may be cut into pieces. For the files of the guard only.
 */
#ifndef US_GUARD_CALL_H
#define US_GUARD_CALL_H

#include "guard.h"

/* Any function of libc whose arguments are integers and pointers: each is a register, and so is the result. */
typedef long (*us_call_t)(long, long, long, long, long, long);

/* May a call on the descriptor be cut into pieces? */
typedef enum us_fd_kind {
    US_FD_UNKNOWN,
    US_FD_FILE,   /* yes, and a read goes on until all is read */
    US_FD_STREAM, /* yes, and a read returns what there was */
    US_FD_WHOLE   /* no */
} us_fd_kind_t;
us_fd_kind_t us_fd_kind(int fd);

/* An operand of a call: the argument `arg` points to memory that the kernel reads or (write) also writes. */
typedef struct us_op {
    enum {
        US_OP_FIXED,   /* size bytes */
        US_OP_TIMES,   /* size bytes, times the argument `by` (64 bits) */
        US_OP_TIMES32, /* the same, where that argument is an int */
        US_OP_BITS32,  /* longs that have as many bits as the argument `by` says */
        US_OP_BEHIND,  /* as many bytes as the int says to which the argument `by` points; that is held too */
        US_OP_BEHIND64,
        US_OP_HEADED,  /* size bytes, and as many more as the int at their front says */
        US_OP_MESSAGE, /* size bytes, and as many more as the argument `by` says */
        US_OP_STRING   /* up to its 0 */
    } kind;
    uint8_t arg, by;
    bool write;
    uint32_t size;
} us_op_t;

/* Holds all operands, n of them. 0 or -errno. */
int us_ops_hold(us_holds_t *h, const us_op_t *ops, uint32_t n, const long *a);
/* The quick look. */
bool us_ops_near(const us_op_t *ops, uint32_t n, const long *a);

/* Makes the call with its operands held; fail: what it returns, with errno set, when they can't be held. US_FAIL_NUMBER:
 * the errno is what it returns. */
enum { US_FAIL_NUMBER = 1 };
long us_call_held(us_call_t call, const us_op_t *ops, uint32_t n, long fail, const long *a);

/* Makes the call, and ends the holds, also when the thread is cancelled in it. */
long us_call_ending(us_holds_t *h, us_call_t call, const long *a);

/* The same for syscall(), which has the number before its six arguments. */
typedef long (*us_syscall_t)(long, long, long, long, long, long, long);
long us_syscall_held(us_syscall_t call, long number, const us_op_t *ops, uint32_t n, const long *a);

/* What syscall() does for numbers that are calls of one buffer, or of a vector, and so go in pieces; NULL: none. */
us_call_t us_rw_by_number(long number);
us_call_t us_vec_by_number(long number);

#endif
