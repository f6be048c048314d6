/* SPDX-License-Identifier: MIT */
#include "alloc.h"

_Atomic uint64_t us_allocations;
