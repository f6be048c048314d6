/* SPDX-License-Identifier: MIT
 *
 * What must hold, asserted in builds with -DUS_DEBUG and free in others. An assertion says what the code relies on; it
 * never has an effect of its own.
 */
#ifndef US_DEBUG_H
#define US_DEBUG_H

#ifdef US_DEBUG
#include <assert.h>
#define US_ASSERT(x) assert(x)
#else
#define US_ASSERT(x) ((void)0)
#endif

#endif
