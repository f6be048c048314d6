/* SPDX-License-Identifier: MIT
 *
 * The core's objects as Python owns them: by a capsule, whose destructor is one of these.
 *
 * Why not ffi.gc(): what it calls for an object in a reference cycle it calls in the order in which the collector comes by,
 * with the finalisers of the cycle's other objects, some of which may go on to use the object, or to read a region's memory.
 * A capsule goes when nothing refers to it any more, after all finalisers. Both do so without a line of Python.
 *
 * These few functions are of Python's stable ABI. They are declared here so that nothing of the core needs its headers.
 */
#include "types.h"

struct _object;
extern void *PyCapsule_GetPointer(struct _object *capsule, const char *name);
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *state);

/* What ends with an object may take its time, and other threads need the interpreter meanwhile. */
#define OWNED(name, type, end)                             \
    void name(void *capsule) {                             \
        type *of = PyCapsule_GetPointer(capsule, "uswap"); \
        void *state = PyEval_SaveThread();                 \
        end(of);                                           \
        PyEval_RestoreThread(state);                       \
    }

OWNED(us_owned_client, us_client_t, us_client_free)
OWNED(us_owned_registration, us_registration_t, us_registration_free)
OWNED(us_owned_pin, us_pin_t, us_pin_free)
OWNED(us_owned_ticket, us_ticket_t, us_ticket_free)
