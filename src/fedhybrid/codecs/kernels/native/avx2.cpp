// Vectors of 256 bits; chosen at run time.
#if defined(__x86_64__)
#include "jobs.hpp"  // and what it includes, before the features are on
#define LANES 8
#define LEVEL avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif
#include "level.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
