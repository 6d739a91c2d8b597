// What the compiled kernels are asked to do: plain structures, and one table of functions for each kind of processor.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Element types, as numbered by library.py.
enum : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// How gates are kept: not at all; as the outermost numbers of a clamped tensor; or as one bit an element and gate.
// Those with a low gate alone, the ReLU's, have forms of their own.
enum : int32_t { kNoGates = 0, kClamped = 1, kPlanes = 2, kClampedLow = 3, kPlaneLow = 4 };

// Groups of `group` elements, each with its own range. A code is: the groups' numbers, the groups' (low, high), and one
// plane of bits for each finite gate.
struct Groups {
    void* elements;
    uint8_t* code;
    int64_t numel, group;
    int32_t type, bits, stochastic, gates;
    uint64_t seed;
    float low, high;                // the gates; infinite where there is none
    float outside_low, inside_low;  // neighbours of the low gate among the numbers of the element type
    float inside_high, outside_high;
};

// Elements [outer, rows, cols], each row with its own width and range.
struct Rows {
    void* elements;
    uint8_t* code;
    int64_t outer, rows, cols;
    int32_t type, stochastic;
    int64_t positive;  // what is not above 0 gets the number 0
    uint64_t seed;
    const uint8_t* bits;
    float *low, *high, *step;
    const int64_t* offsets;
};

// Elements [maps, height, width]: block averages in bfloat16, and the rest in few bits.
struct Maps {
    void* elements;
    uint8_t* code;
    int64_t maps, height, width, block;
    int32_t type, bits, stochastic;
    uint64_t seed;
    float epsilon;
};

// Elements that are 0 or `value`, as integers of `element_bytes` bytes.
struct Bits {
    void* elements;
    uint8_t* code;
    int64_t numel;
    int32_t element_bytes;
    uint64_t value;
};

// Each function works on items [first, last) and says whether all was well.
struct Level {
    const char* name;
    bool (*groups_encode)(const Groups&, int64_t first, int64_t last);
    bool (*groups_decode)(const Groups&, int64_t first, int64_t last);
    bool (*rows_range)(const Rows&, int64_t first, int64_t last);
    bool (*rows_encode)(const Rows&, int64_t first, int64_t last);
    bool (*rows_decode)(const Rows&, int64_t first, int64_t last);
    bool (*maps_encode)(const Maps&, int64_t first, int64_t last);
    bool (*maps_decode)(const Maps&, int64_t first, int64_t last);
    bool (*bits_encode)(const Bits&, int64_t first, int64_t last);
    bool (*bits_decode)(const Bits&, int64_t first, int64_t last);
};

constexpr int64_t kTile = 256;     // elements that are packed together
constexpr int64_t kRun = 16;       // groups that share random generators, and are one thread's
constexpr int64_t kBitTile = 512;  // elements of a two-valued tensor that are packed together

extern const Level base_level;
#if defined(__x86_64__)
extern const Level avx2_level, avx512_level;
#endif
