// Tiles of 256 elements: numbers of 1, 2, 4 or 8 bits from 32-bit floats, and back. Included once for each level.
//
// Number k of lane l is bits [BITS * k, BITS * k + BITS) of 32-bit word l: no narrowing, no shuffling. What is left
// of a run behind its last whole tile is packed element by element.

constexpr bool is_clamped(int gates) { return gates == kClamped || gates == kClampedLow; }
constexpr bool has_planes(int gates) { return gates == kPlanes || gates == kPlaneLow; }

// From elements to numbers: floor((x * factor - low) * inverse + u), in units of 2**-16.
struct ToNumbers {
    float factor, low, inverse, gate_low, gate_high;
    int32_t offset;  // half a unit if rounding is to nearest, and the first number of what lies between the gates
    int32_t levels;  // the largest number
};

constexpr float kFixed = 0x1p16f;
constexpr float kSafely = 1.0f - 0x1p-21f;  // keeps rounding from lifting the largest element beyond the largest number

// `factor` is a power of two that keeps products normal numbers; 1 for steps of usual size.
INLINE ToNumbers to_numbers(float low, float step, int32_t base, int32_t levels, bool stochastic) {
    ToNumbers s = {};
    s.factor = step > 0 && step < 0x1p-90f ? 0x1p90f : step > 0x1p90f ? 0x1p-90f : 1.0f;
    s.low = low * s.factor;
    s.inverse = step > 0 ? kFixed / (step * s.factor) * kSafely : 0.0f;
    s.offset = base * 65536 + (stochastic ? 0 : 32768);
    s.levels = levels;
    return s;
}

// SCALED: the factor is not 1. CLIPPED: elements may lie beyond the range.
template <bool SCALED, bool CLIPPED>
INLINE I fixed_of(F x, const ToNumbers& s) {
    F v = ((SCALED ? x * s.factor : x) - s.low) * s.inverse;
    if (CLIPPED) v = smaller(larger(v, F{}), all((float)s.levels * kFixed));  // 0 also where it is not a number
    return __builtin_convertvector(v, I);
}

template <int BITS, bool STOCHASTIC, int GATES, bool SCALED, bool CLIPPED>
INLINE void encode_tile(const float* x, uint8_t* code, uint8_t* low_plane, uint8_t* high_plane, const ToNumbers& s,
                        Random& random) {
    constexpr int each = BITS == 1 ? 16 : 32 / BITS, words = 16 / each;
    constexpr uint32_t mask = (1u << BITS) - 1;
    for (int part = 0; part < kParts; ++part) {
        U state = random.state[part], above_low = {}, above_high = {};
        for (int w = 0; w < words; ++w) {
            U word = {}, draw = {};
#pragma GCC unroll 16
            for (int k = 0; k < each; ++k) {
                int at = w * each + k;
                F v = load(x + at * 16 + part * LANES);
                I fixed = fixed_of<SCALED, CLIPPED>(v, s) + s.offset;
                if (STOCHASTIC) fixed += (I)quarter_of(state, draw, k % 4);
                if (is_clamped(GATES)) {
                    fixed = v <= s.gate_low ? I{} : fixed;
                    if (GATES == kClamped) fixed = v >= s.gate_high ? I{} + (int32_t)(mask << 16) : fixed;
                }
                U bits = (U)fixed;
                bits = BITS * k < 16 ? bits >> (16 - BITS * k) : bits << (BITS * k - 16);
                word |= bits & (mask << (BITS * k));
                if (has_planes(GATES)) above_low |= (U)(v > s.gate_low) & (1u << at);
                if (GATES == kPlanes) above_high |= (U)(v >= s.gate_high) & (1u << at);
            }
            if (BITS == 1)
                write(code + part * LANES * 2, __builtin_convertvector(word, H));
            else
                write(code + w * 64 + part * LANES * 4, word);
        }
        if (has_planes(GATES) && low_plane) write(low_plane + part * LANES * 2, __builtin_convertvector(above_low, H));
        if (GATES == kPlanes && high_plane)
            write(high_plane + part * LANES * 2, __builtin_convertvector(above_high, H));
        random.state[part] = state;
    }
}

// Two forms compiled once for all element types but the commonest: for steps of usual size, and the most general.
template <int BITS, bool STOCHASTIC, int GATES>
__attribute__((noinline)) static void encode_usual_tile(const float* x, uint8_t* code, uint8_t* low_plane,
                                                        uint8_t* high_plane, const ToNumbers& s, Random& random) {
    encode_tile<BITS, STOCHASTIC, GATES, false, false>(x, code, low_plane, high_plane, s, random);
}
template <int BITS, bool STOCHASTIC, int GATES>
__attribute__((noinline)) static void encode_any_tile(const float* x, uint8_t* code, uint8_t* low_plane,
                                                      uint8_t* high_plane, const ToNumbers& s, Random& random) {
    encode_tile<BITS, STOCHASTIC, GATES, true, true>(x, code, low_plane, high_plane, s, random);
}

// What is left behind the last whole tile: element by element, the first in the lowest bits.
template <int BITS, bool STOCHASTIC, int GATES>
__attribute__((noinline)) static void encode_rest(const float* x, int64_t count, uint8_t* code, const ToNumbers& s,
                                                  uint64_t key) {
    for (int64_t i = 0; i < (count * BITS + 7) / 8; ++i) code[i] = 0;
    for (int64_t i = 0; i < count; ++i) {
        float v = (x[i] * s.factor - s.low) * s.inverse, top = (float)s.levels * kFixed;
        v = v > 0.0f ? v : 0.0f;
        int32_t number = ((int32_t)(v < top ? v : top) + s.offset + (STOCHASTIC ? draw_one(key, i) : 0)) >> 16;
        if (is_clamped(GATES)) number = x[i] <= s.gate_low ? 0 : x[i] >= s.gate_high ? (1 << BITS) - 1 : number;
        code[i * BITS / 8] |= (uint8_t)(number << (i * BITS % 8));
    }
}

// From numbers to elements: min(start + (number - base) * step, largest) * grow, then what the gates ask for.
struct FromNumbers {
    float step, start, largest, grow, smallest;
    float inside_low, outside_low, inside_high, outside_high;
    int32_t base, on_low, on_high;  // numbers that mean a gate; -1 where there is none
};

INLINE FromNumbers from_numbers(float low, float step, float largest) {
    FromNumbers s = {};
    bool huge = low < -0x1p120f || low > 0x1p120f || step > 0x1p110f;  // then sums could overflow on their way
    float shrink = huge ? 0x1p-10f : 1.0f;
    s.start = low * shrink, s.step = step * shrink, s.largest = largest * shrink, s.grow = huge ? 0x1p10f : 1.0f;
    s.smallest = low, s.on_low = s.on_high = -1;
    return s;
}

template <int GATES>
INLINE F value_of(I number, const FromNumbers& s) {
    F v = __builtin_convertvector(is_clamped(GATES) ? number - s.base : number, F) * s.step + s.start;
    v = smaller(v, all(s.largest)) * s.grow;
    if (is_clamped(GATES)) v = larger(v, all(s.smallest));  // a tiny one may have been lost beside huge ones
    if (is_clamped(GATES)) v = number == s.on_low ? all(s.outside_low) : v;
    if (GATES == kClamped) v = number == s.on_high ? all(s.outside_high) : v;
    return v;
}

// The elements of every number, as a table where a number has so few values and the processor picks from tables.
#if defined(__clang__)
constexpr bool picks(int) { return false; }
INLINE F pick(F table, U) { return table; }
#else
constexpr bool picks(int bits) { return LANES >= 8 && (1 << bits) <= LANES; }
INLINE F pick(F table, U number) { return __builtin_shuffle(table, (I)number); }  // by the lowest bits alone
#endif

template <int GATES>
INLINE F table_of(const FromNumbers& s, int bits) {
    return value_of<GATES>(read<I>(kLaneNumbers) & ((1 << bits) - 1), s);
}

template <int BITS, int GATES>
INLINE void decode_tile(const uint8_t* code, const uint8_t* low_plane, const uint8_t* high_plane, const FromNumbers& s,
                        float* x) {
    constexpr int each = BITS == 1 ? 16 : 32 / BITS, words = 16 / each;
    F table = {};
    if (picks(BITS)) table = table_of<GATES>(s, BITS);
    for (int part = 0; part < kParts; ++part) {
        U above_low = {}, above_high = {};
        if (has_planes(GATES) && low_plane)
            above_low = __builtin_convertvector(read<H>(low_plane + part * LANES * 2), U);
        if (GATES == kPlanes && high_plane)
            above_high = __builtin_convertvector(read<H>(high_plane + part * LANES * 2), U);
        for (int w = 0; w < words; ++w) {
            U word = BITS == 1 ? __builtin_convertvector(read<H>(code + part * LANES * 2), U)
                               : read<U>(code + w * 64 + part * LANES * 4);
#pragma GCC unroll 16
            for (int k = 0; k < each; ++k) {
                int at = w * each + k;
                U number = word >> (BITS * k);
                F v = picks(BITS) ? pick(table, number) : value_of<GATES>((I)(number & ((1u << BITS) - 1)), s);
                if (has_planes(GATES) && low_plane)
                    v = (above_low & (1u << at)) != 0u ? larger(v, all(s.inside_low)) : smaller(v, all(s.outside_low));
                if (GATES == kPlanes && high_plane)
                    v = (above_high & (1u << at)) != 0u ? larger(v, all(s.outside_high))
                                                        : smaller(v, all(s.inside_high));
                store(x + at * 16 + part * LANES, v);
            }
        }
    }
}

template <int BITS, int GATES>
__attribute__((noinline)) static void decode_rest(const uint8_t* code, int64_t count, const FromNumbers& s, float* x) {
    for (int64_t i = 0; i < count; ++i) {
        int32_t number = (code[i * BITS / 8] >> (i * BITS % 8)) & ((1 << BITS) - 1);
        float v = (float)(number - s.base) * s.step + s.start;
        v = (v < s.largest ? v : s.largest) * s.grow;
        v = v > s.smallest ? v : s.smallest;
        x[i] = number == s.on_low ? s.outside_low : number == s.on_high ? s.outside_high : v;
    }
}

// By the width, for those that learn it element run by element run.
static bool encode_tile_of(int bits, bool stochastic, const float* x, uint8_t* code, const ToNumbers& s,
                           Random& random) {
    switch (bits * 2 + stochastic) {
        case 2: return encode_any_tile<1, false, kNoGates>(x, code, nullptr, nullptr, s, random), true;
        case 3: return encode_any_tile<1, true, kNoGates>(x, code, nullptr, nullptr, s, random), true;
        case 4: return encode_any_tile<2, false, kNoGates>(x, code, nullptr, nullptr, s, random), true;
        case 5: return encode_any_tile<2, true, kNoGates>(x, code, nullptr, nullptr, s, random), true;
        case 8: return encode_any_tile<4, false, kNoGates>(x, code, nullptr, nullptr, s, random), true;
        case 9: return encode_any_tile<4, true, kNoGates>(x, code, nullptr, nullptr, s, random), true;
        case 16: return encode_any_tile<8, false, kNoGates>(x, code, nullptr, nullptr, s, random), true;
        case 17: return encode_any_tile<8, true, kNoGates>(x, code, nullptr, nullptr, s, random), true;
    }
    return false;
}
static void encode_rest_of(int bits, bool stochastic, const float* x, int64_t count, uint8_t* code, const ToNumbers& s,
                           uint64_t key) {
    switch (bits * 2 + stochastic) {
        case 2: return encode_rest<1, false, kNoGates>(x, count, code, s, key);
        case 3: return encode_rest<1, true, kNoGates>(x, count, code, s, key);
        case 4: return encode_rest<2, false, kNoGates>(x, count, code, s, key);
        case 5: return encode_rest<2, true, kNoGates>(x, count, code, s, key);
        case 8: return encode_rest<4, false, kNoGates>(x, count, code, s, key);
        case 9: return encode_rest<4, true, kNoGates>(x, count, code, s, key);
        case 16: return encode_rest<8, false, kNoGates>(x, count, code, s, key);
        case 17: return encode_rest<8, true, kNoGates>(x, count, code, s, key);
    }
}
static bool decode_tile_of(int bits, const uint8_t* code, const FromNumbers& s, float* x) {
    switch (bits) {
        case 1: return decode_tile<1, kNoGates>(code, nullptr, nullptr, s, x), true;
        case 2: return decode_tile<2, kNoGates>(code, nullptr, nullptr, s, x), true;
        case 4: return decode_tile<4, kNoGates>(code, nullptr, nullptr, s, x), true;
        case 8: return decode_tile<8, kNoGates>(code, nullptr, nullptr, s, x), true;
    }
    return false;
}
static void decode_rest_of(int bits, const uint8_t* code, int64_t count, const FromNumbers& s, float* x) {
    switch (bits) {
        case 1: return decode_rest<1, kNoGates>(code, count, s, x);
        case 2: return decode_rest<2, kNoGates>(code, count, s, x);
        case 4: return decode_rest<4, kNoGates>(code, count, s, x);
        case 8: return decode_rest<8, kNoGates>(code, count, s, x);
    }
}
