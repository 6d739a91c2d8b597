// Vectors of 512 bits; chosen at run time.
#if defined(__x86_64__)
#include "jobs.hpp"  // and what it includes, before the features are on
#define LANES 16
#define LEVEL avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#include "level.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
