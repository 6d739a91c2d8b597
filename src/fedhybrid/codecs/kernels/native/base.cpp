// Vectors of 128 bits: any 64-bit x86 (SSE2), ARM (NEON), and whatever the compiler makes of them elsewhere.
#define LANES 4
#define LEVEL base
#include "level.hpp"
